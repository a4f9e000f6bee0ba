"""What a portable bundle of ViT-Small at 1024 px costs: time and peak memory on this machine.

    python benchmarks/build_cost.py --data DATA [--checkpoint CKPT] [--write]

Runs `edgekd build engines/landcover.yaml --target orin-nx-16gb` with FP16 and INT8 in a process of
its own and asks the kernel for its peak memory; the compile with TensorRT-RTX is another process,
with about 0.6 GB.
Bounds: 4 minutes and 6 GB on two cores. Without --checkpoint the student has random weights; its
gates are then opened, since random logits lie too close together to agree; the record says so.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from edgekd.contracts.artifacts import write_json
from edgekd.contracts.recipe import load_recipe
from edgekd.telemetry.environment import read_environment

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "engines" / "landcover.yaml"
TARGET = "orin-nx-16gb"
MOST_S, MOST_BYTES = 240.0, 6e9
OPENED = ["gates.agreement_min=0", "gates.miou_drop_max=100"]


def random_checkpoint(path: Path) -> None:
    """The recipe's student without training."""
    sys.path.insert(0, str(ROOT))
    from tests.helpers.checkpoints import make_checkpoint

    make_checkpoint(path, load_recipe(RECIPE).plain())


def measure(command: list[str]) -> tuple[float, dict[str, int], list[str]]:
    """Seconds, peak memory of the process in bytes, lines of progress."""
    start = time.monotonic()
    code = (
        "import resource, sys, json\n"
        "from edgekd.cli.main import main\n"
        "code = main(sys.argv[2:])\n"
        "peak = {'self': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}\n"
        "open(sys.argv[1], 'w').write(json.dumps(peak))\n"
        "sys.exit(code)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "peak.json"
        lines = []
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(place), *command],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(f"{time.monotonic() - start:6.1f} s {line.rstrip()}")
            click.echo(lines[-1], err=True)
        if process.wait():
            raise click.ClickException(f"the build ended with {process.returncode}")
        seconds = time.monotonic() - start
        return seconds, json.loads(place.read_text()), lines


@click.command(help=__doc__)
@click.option("--data", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--write", is_flag=True, help="Keep the record in benchmarks/results/.")
def main(data: Path, checkpoint: Path | None, write: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        used = checkpoint or Path(folder) / "random.ckpt"
        if checkpoint is None:
            random_checkpoint(used)
        out = Path(folder) / "bundle"
        changes = ["precision.allowed=[fp16,int8]", *(OPENED if checkpoint is None else [])]
        arguments = [
            "build", str(RECIPE), "--target", TARGET, "--checkpoint", str(used), "--data",
            str(data), "-o", str(out), *(part for c in changes for part in ("--set", c)),
        ]  # fmt: skip
        load = os.getloadavg()[0]
        seconds, peak, lines = measure(arguments)
        manifest = json.loads((out / "manifest.json").read_text())
        files = {item.name: item.stat().st_size for item in sorted(out.iterdir())}
    environment = read_environment()
    holds = seconds <= MOST_S and peak["self"] <= MOST_BYTES
    record: dict[str, Any] = {
        "question": "time and peak memory of a portable bundle of ViT-Small at 1024 px",
        "command": "python benchmarks/build_cost.py --data DATA"
        + (" --checkpoint CKPT" if checkpoint else "") + " --write",
        "seconds": round(seconds, 1),
        "peak_bytes": peak["self"],
                "bounds": {"seconds": MOST_S, "peak_bytes": MOST_BYTES},
        "holds": holds,
        "weights": "random, gates opened" if checkpoint is None else "tuned",
        "compiled": [item["compile"] for item in manifest["checks"]],
        "tiles": {"calibration": manifest["precision"]["calibration"]["tiles"],
                  "judged": manifest["precision"]["candidates"][0]["tiles"]},
        "files_bytes": files,
        "steps": lines,
        "machine": {"cpu": environment.cpu_model, "cores": environment.cores_usable,
                    "memory_mib": environment.memory_mib, "load_1min_before": load,
                    "python": platform.python_version(), "packages": environment.packages},
    }  # fmt: skip
    click.echo(
        f"{seconds:.0f} s (at most {MOST_S:.0f}), peak {peak['self'] / 1e9:.2f} GB (at most "
        f"{MOST_BYTES / 1e9:.0f}): "
        f"{'holds' if holds else 'MISSED'}"
    )
    if write:
        name = re.sub(r"[^a-z0-9]+", "-", (environment.cpu_model or "unknown").lower()).strip("-")
        place = ROOT / "benchmarks" / "results" / name / "build_cost.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, record)
        click.echo(f"record: {place.relative_to(ROOT)}")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
