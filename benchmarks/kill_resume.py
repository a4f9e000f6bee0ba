"""Is anything lost? ``python benchmarks/kill_resume.py [--kills 20] [--write]``.

Runs ``edgekd run`` over a scene once undisturbed, then again and again with interruptions, and
compares every file that it wrote byte by byte:

* ``kill``: a process is killed (SIGKILL) at a random moment of its life, the next one goes on with
  ``--resume``; a trial ends when one of them ends by itself, and one without a kill is no trial;
* ``full disk``: the output's file system (a tmpfs where this may be mounted, otherwise a bound on
  the size of files) is too small; then there is room again;
* ``truncated input``: the scene is cut while it is read, and whole again for the next attempt.

Without --bundle a small convolutional network with fixed weights is made, without --scene a
GeoTIFF is generated with a corner of nodata. Ends with 1 when a byte differs or a run that should
have failed did not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from _records import here

from edgekd.contracts.artifacts import write_json

ROOT = Path(__file__).resolve().parents[1]
SIDE_PX = 3000
NAMES = ("map.tif", "scores.tif", "polygons.gpkg", "summary.json")


def make_scene(path: Path) -> None:
    """Fields of colour, a corner of nodata, UTM."""
    import rasterio

    rng = np.random.default_rng(0)
    cells = rng.integers(30, 220, (3, SIDE_PX // 60, SIDE_PX // 60))
    image = np.kron(cells, np.ones((1, 60, 60), np.int16))
    image = image.astype(np.uint8)
    image[:, : SIDE_PX // 3, : SIDE_PX // 3] = 0
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=image.shape[1], width=image.shape[2],
        dtype="uint8", crs="EPSG:32633", transform=rasterio.Affine(10, 0, 4e5, 0, -10, 5e6),
        nodata=0, tiled=True, compress="deflate",
    ) as data:  # fmt: skip
        data.write(image)


def command(bundle: Path, scene: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "edgekd", "run", str(bundle), str(scene), "-o",
        str(out / NAMES[0]), "--scores", str(out / NAMES[1]), "--polygons", str(out / NAMES[2]),
        "--summary", str(out / NAMES[3]), "--any-device", *more,
    ]  # fmt: skip


def start(words: list[str], **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, **more,
    )  # fmt: skip


def run(words: list[str], **more: Any) -> tuple[int, str]:
    process = start(words, **more)
    said = process.communicate()[1]
    return process.returncode, said.strip().splitlines()[-1] if said.strip() else ""


def digests(folder: Path) -> dict[str, str]:
    return {
        item.name: hashlib.sha256(item.read_bytes()).hexdigest()
        for item in folder.iterdir() if item.is_file()
    }  # fmt: skip


def kill_trial(
    bundle: Path, scene: Path, out: Path, whole_s: float, random_: random.Random
) -> dict[str, Any]:
    """Kill once at least, at any moment of a process's life, then until one ends by itself."""
    moments: list[float] = []
    while True:
        process = start(command(bundle, scene, out, "--resume"))
        wait_s = random_.uniform(0, 1) * whole_s
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=wait_s)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            moments.append(round(wait_s, 3))
            continue
        said = process.communicate()[1]
        if process.returncode != 0:
            raise click.ClickException(f"a resumed run ended with {process.returncode}: {said}")
        if moments:
            return {"killed_after_s": moments}
        shutil.rmtree(out)  # it was faster than the bullet, which proves nothing
        out.mkdir()


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[tuple[Path, str]]:
    """A folder with so many bytes of room, and how that is done."""
    folder = Path(tempfile.mkdtemp(prefix="edgekd-disk-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    ).returncode == 0  # fmt: skip
    try:
        yield folder, "tmpfs" if mounted else "bound on the size of files"
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def bound_files(size: int) -> None:
    """Let no file of this process grow beyond so many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def full_disk(bundle: Path, scene: Path, size: int, needed: int) -> dict[str, Any]:
    """Fail for want of room, get room, go on."""
    with small_disk(size) as (out, how):
        if how == "tmpfs":
            code, said = run(command(bundle, scene, out, "--resume"))
        else:
            code, said = run(
                command(bundle, scene, out, "--resume"),
                preexec_fn=lambda: bound_files(size),
            )
        left = digests(out)
        if how == "tmpfs":
            subprocess.run(
                ["mount", "-o", f"remount,size={needed}", str(out)], check=True, capture_output=True
            )
        again, _ = run(command(bundle, scene, out, "--resume"))
        return {
            "how": how, "room_bytes": size, "exit_code": code, "said": said,
            "files_left": sorted(left), "resumed_exit_code": again, "digests": digests(out),
        }  # fmt: skip


def truncated(bundle: Path, scene: Path, out: Path, whole_s: float) -> dict[str, Any]:
    """Cut the input while it is read; put it back; go on."""
    mine = out.parent / f"{out.name}-scene.tif"
    shutil.copy2(scene, mine)
    content = mine.read_bytes()
    journal = out / f".{NAMES[0]}.edgekd" / "rows"
    process = start(command(bundle, mine, out, "--resume"))
    end = time.monotonic() + 10 * whole_s
    while process.poll() is None and time.monotonic() < end:
        if journal.exists() and journal.stat().st_size > 0:
            break
        time.sleep(0.001)
    os.truncate(mine, len(content) // 2)
    said = process.communicate()[1].strip().splitlines()[-1:]
    code = process.returncode
    left = digests(out)
    mine.write_bytes(content)
    again, text = run(command(bundle, mine, out, "--resume"))
    found = digests(out)
    return {
        "exit_code": code, "said": said, "files_left": sorted(left), "resumed_exit_code": again,
        "resumed_said": text, "digests": found,
    }  # fmt: skip


def verdict(trial: dict[str, Any]) -> str:
    """In words."""
    return "same bytes" if trial["same_bytes"] else "DIFFERENT"


@click.command(help=__doc__)
@click.option("--kills", default=20, show_default=True, help="Trials with kills.")
@click.option("--bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--scene", type=click.Path(path_type=Path, exists=True))
@click.option("--seed", default=0, show_default=True)
@click.option("--write", is_flag=True, help="Keep the record in benchmarks/results/.")
def main(kills: int, bundle: Path | None, scene: Path | None, seed: int, write: bool) -> None:
    random_ = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="edgekd-kill-") as name:
        folder = Path(name)
        if bundle is None:
            sys.path.insert(0, str(ROOT))
            from tests.helpers.bundles import make_bundle

            bundle = make_bundle(folder / "bundle", tile_px=256, classes=5, width=24, layers=2)
        if scene is None:
            scene = folder / "scene.tif"
            make_scene(scene)
        out = folder / "whole"
        out.mkdir()
        lives = []
        for _ in range(2):  # the first finds nothing in the cache
            begin = time.monotonic()
            code, said = run(command(bundle, scene, out))
            lives.append(time.monotonic() - begin)
            if code:
                raise click.ClickException(f"the undisturbed run ended with {code}: {said}")
        whole_s = min(lives)
        expected = digests(out)
        click.echo(f"undisturbed: {whole_s:.1f} s, {sum(p.stat().st_size for p in out.iterdir())}"
                   " bytes in " + ", ".join(sorted(expected)))  # fmt: skip
        trials = []
        for number in range(kills):
            out = folder / f"kill{number}"
            out.mkdir()
            trial = kill_trial(bundle, scene, out, whole_s, random_)
            trial["same_bytes"] = digests(out) == expected
            trial["left_over"] = sorted(p.name for p in out.iterdir() if p.name not in NAMES)
            trials.append(trial)
            click.echo(
                f"trial {number + 1}: killed {len(trial['killed_after_s'])} times, "
                + ("same bytes" if trial["same_bytes"] else "DIFFERENT")
            )
            shutil.rmtree(out)
        needed = 40 * sum((folder / "whole" / n).stat().st_size for n in NAMES) + (64 << 20)
        # The summary tells the scene's name and size, so the scene's own name is used throughout.
        disks = []
        for part in (0.1, 0.6, 1.5):
            size = int(part * sum((folder / "whole" / n).stat().st_size for n in NAMES[:2]))
            disk = full_disk(bundle, scene, size, needed)
            disk["same_bytes"] = disk.pop("digests") == expected
            disks.append(disk)
            click.echo(
                f"full disk ({disk['how']}, {size} bytes): exit {disk['exit_code']}, left "
                f"{disk['files_left']}, then {verdict(disk)}; said: {disk['said'][:150]}"
            )
        out = folder / "cut"
        out.mkdir()
        cut = truncated(bundle, scene, out, whole_s)
        found = cut.pop("digests")
        same = {n: found.get(n) == expected[n] for n in NAMES if n != "summary.json"}
        cut["same_bytes"] = all(same.values())  # the summary names another file
        click.echo(
            f"truncated input: exit {cut['exit_code']}, left {cut['files_left']}, then "
            f"{verdict(cut)}; said: {cut['said']}"
        )
    folder, environment = here()
    good = (
        all(t["same_bytes"] and t["killed_after_s"] and not t["left_over"] for t in trials)
        and all(d["same_bytes"] and d["resumed_exit_code"] == 0 for d in disks)
        and any(d["exit_code"] == 2 for d in disks)
        and cut["same_bytes"] and cut["exit_code"] == 2
    )  # fmt: skip
    total = sum(len(t["killed_after_s"]) for t in trials)
    click.echo(f"{kills} trials, {total} kills: {'nothing lost' if good else 'FAILED'}")
    if write:
        record = {
            "question": "is anything lost by kills, a full disk, a cut input?",
            "command": f"python benchmarks/kill_resume.py --kills {kills} --seed {seed} --write",
            "undisturbed_s": round(whole_s, 2), "trials": trials, "kills": total,
            "full_disk": disks, "truncated_input": cut, "nothing_lost": good,
            "cpu": environment.cpu_model, "packages": environment.packages,
        }  # fmt: skip
        place = folder / "kill_resume.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, json.loads(json.dumps(record)))
        click.echo(f"record: {place.relative_to(ROOT)}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
