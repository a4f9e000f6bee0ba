"""How much room and memory does the runtime take? ``python benchmarks/runtime_size.py [--write]``.

    pip install uv
    python benchmarks/runtime_size.py [--bundle FOLDER] [--runs 5] [--skip-size] [--write]

Room: what the extras of a board unpack to, per package, from the wheels for x86-64 and for aarch64
(as the files' lengths, without byte code; pip compiles at installation, which is measured as well).
pycuda has no wheels and TensorRT is JetPack's: neither is counted.

Memory: resident bytes of a process of its own per stage (a bare Python, ``import edgekd``, the
bundle loaded, one tile run, a scene of 2048 x 2048 px mapped), the median of the runs, on this
computer. "Anonymous" is what cannot be dropped and read again from a file. Without ``--bundle`` the
bundle is ``lite0`` (EfficientNet-Lite0, 512 px, FP32) with random weights. Memory under an emulator
would be the emulator's, so there is none for Arm: see tests/hardware/README.md.
"""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from _emulated import REPOSITORY, quiet, uv
from _records import here
from scene_memory import make_scene

from edgekd.contracts.artifacts import write_json
from edgekd.errors import EdgeKDError

#: name -> (extras, further requirements, Python): the boards' installations.
INSTALLATIONS = {
    "onnxrt": (["onnxrt"], [], "3.11"),
    "onnxrt,geo": (["onnxrt", "geo"], [], "3.11"),
    "onnxrt,geo,trust": (["onnxrt", "geo", "trust"], [], "3.11"),
    "geo,jetson,trust": (["geo", "jetson", "trust"], ["numpy<2"], "3.10"),
}
PLATFORMS = {"x86-64": "x86_64-manylinux_2_35", "aarch64": "aarch64-manylinux_2_35"}
STAGES = ("python", "import", "load", "tile", "scene")
SIDE_PX = 2048

_CHILD = """
import json, sys
stage, bundle, scene, out = sys.argv[1:]
def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024
if stage != "python":
    import edgekd
if stage in ("load", "tile", "scene"):
    session = edgekd.load(bundle)
if stage == "tile":
    import numpy as np
    side = session.manifest.inputs[0].tile_px
    session.run(np.zeros((side, side, 3), np.uint8))
if stage == "scene":
    session.run_scene(scene, out)
print(json.dumps({"rss_bytes": status("VmRSS"), "anonymous_bytes": status("RssAnon"),
                  "peak_bytes": status("VmHWM")}))
"""


def sizes(site: Path) -> dict[str, int]:
    """Distribution -> bytes of the files that it brought."""
    found = {}
    for item in importlib.metadata.distributions(path=[str(site)]):
        paths = [Path(str(item.locate_file(file))) for file in item.files or []]
        found[item.metadata["Name"]] = sum(p.stat().st_size for p in paths if p.is_file())
    return found


def install(
    site: Path, platform: str, extras: Sequence[str], more: Sequence[str], python: str
) -> dict[str, int]:
    """Unpack an installation into ``site``; see :func:`sizes`."""
    quiet(
        *uv(), "pip", "install", "--quiet", "--target", site, "--python-platform", platform,
        "--python-version", python, "--no-python-downloads", "--only-binary=:all:",
        "--no-binary=edgekd", f"edgekd[{','.join(extras)}] @ {REPOSITORY.as_uri()}", *more,
    )  # fmt: skip
    return sizes(site)


def byte_code(site: Path) -> int:
    """Bytes that compiling everything adds."""
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(site)], capture_output=True)
    return sum(path.stat().st_size for path in site.rglob("*.pyc"))


def measure_sizes() -> dict[str, Any]:
    """Every installation on both platforms."""
    found: dict[str, Any] = {}
    for name, (extras, more, python) in INSTALLATIONS.items():
        found[name] = {"python": python, "more": more}
        for machine, platform in PLATFORMS.items():
            with tempfile.TemporaryDirectory(prefix="edgekd-size-") as folder:
                site = Path(folder) / "site"
                packages = install(site, platform, extras, more, python)
                total = sum(packages.values())
                row: dict[str, Any] = {"total_bytes": total, "packages": packages}
                own = f"{sys.version_info.major}.{sys.version_info.minor}"
                if python == own:  # byte code is the interpreter's
                    row["byte_code_bytes"] = byte_code(site)
                found[name][machine] = row
            largest = sorted(packages.items(), key=lambda item: -item[1])[:5]
            click.echo(
                f"{name} for {machine}, Python {python}: {total / 1e6:.0f} MB in "
                f"{len(packages)} packages"
                + (f", byte code {row['byte_code_bytes'] / 1e6:.0f} MB" if len(row) > 2 else "")
                + f"; {', '.join(f'{key} {value / 1e6:.0f}' for key, value in largest)}"
            )
    return found


def lite0_bundle(folder: Path) -> Path:
    """``edgekd build`` of a lite0 with random weights."""
    sys.path.insert(0, str(REPOSITORY))
    from edgekd.contracts.recipe import load_recipe
    from edgekd.deploy.bundle import build
    from edgekd.deploy.quantize.grounds import Images
    from tests.helpers.checkpoints import make_checkpoint

    recipe = load_recipe(
        REPOSITORY / "engines" / "landcover-lite0.yaml",
        # Random weights: logits span 60 where trained ones span 10, and the bound is for those.
        ["targets=[x86-cpu]", "gates.onnx_vs_torch.atol=1.0e-3"],
    )
    make_checkpoint(folder / "lite0.ckpt", recipe.plain())
    return build(recipe, "x86-cpu", folder / "lite0.ckpt", folder / "lite0", Images(None)).path


def measure_memory(bundle: Path, folder: Path, runs: int) -> dict[str, dict[str, Any]]:
    """Stage -> medians, and every run."""
    scene = folder / "scene.tif"
    make_scene(scene, SIDE_PX)
    found: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        rows = []
        for _ in range(runs):
            done = subprocess.run(
                [sys.executable, "-c", _CHILD, stage, bundle, scene, folder / "map.tif"],
                capture_output=True, text=True, cwd=REPOSITORY, check=False,
            )  # fmt: skip
            if done.returncode:
                raise click.ClickException(done.stderr[-2000:])
            rows.append(json.loads(done.stdout))
        found[stage] = {key: int(statistics.median(row[key] for row in rows)) for key in rows[0]}
        found[stage]["runs"] = rows
        shown = {key: value / 1e6 for key, value in found[stage].items() if key != "runs"}
        click.echo(
            f"{stage:7s} {shown['rss_bytes']:6.0f} MB resident, {shown['anonymous_bytes']:.0f} "
            f"anonymous, peak {shown['peak_bytes']:.0f}"
        )
    return found


@click.command()
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), help="In place of lite0.")
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--skip-size", is_flag=True, help="Memory alone.")
@click.option("--write", is_flag=True, help="Keep the record in benchmarks/results/.")
def main(bundle: Path | None, runs: int, skip_size: bool, write: bool) -> None:
    """Measure and print."""
    if write and skip_size:
        raise click.UsageError("a record holds both; leave --skip-size out")
    try:
        room = {} if skip_size else measure_sizes()
        with tempfile.TemporaryDirectory(prefix="edgekd-size-") as name:
            folder = Path(name)
            used = bundle.resolve() if bundle else lite0_bundle(folder)
            model = sum(item.stat().st_size for item in used.glob("*.onnx"))
            click.echo(f"memory, {used.name}, model {model / 1e6:.1f} MB:")
            memory = measure_memory(used, folder, runs)
    except EdgeKDError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(err.exit_code)
    if write:
        folder, environment = here()
        place = folder / "runtime_size.json"
        write_json(place, {
            "question": "how much room and memory does the runtime take?",
            "command": "python benchmarks/runtime_size.py --write",
            "room": room, "bundle": used.name, "model_bytes": model, "scene_side_px": SIDE_PX,
            "memory": memory, "environment": environment.model_dump(mode="json"),
        })  # fmt: skip
        click.echo(f"record: {place.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
