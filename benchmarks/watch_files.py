"""Is a file lost, or done twice? ``python benchmarks/watch_files.py [--files 200] [--kills 5]``.

Feeds ``edgekd watch`` with files that arrive a piece at a time, some of them broken (cut, empty,
no picture, another number of bands), and kills it (SIGKILL) at random moments; the next one goes
on. At the end every good file must be in ``done`` with one result whose pixels are those of an
undisturbed ``Session.run_scene``, every broken one in ``failed`` beside its reason, and nothing
else anywhere.
Ends with 1 otherwise.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from edgekd.contracts.artifacts import write_json
from edgekd.telemetry.environment import read_environment

ROOT = Path(__file__).resolve().parents[1]
SIDE_PX = 400


def make_files(folder: Path, count: int, broken: int) -> dict[str, bytes]:
    """name -> bytes of every file; the broken ones begin with ``bad``."""
    import rasterio

    rng = np.random.default_rng(0)
    files: dict[str, bytes] = {}
    place = folder / "one.tif"
    for number in range(count):
        cells = rng.integers(0, 256, (3, 10, 10), dtype=np.uint8)
        image = np.kron(cells, np.ones((1, SIDE_PX // 10, SIDE_PX // 10), np.uint8))
        bands = 4 if number < broken and number % 4 == 3 else 3
        with rasterio.open(
            place, "w", driver="GTiff", count=bands, height=SIDE_PX, width=SIDE_PX, dtype="uint8",
            crs="EPSG:32633", transform=rasterio.Affine(10, 0, 4e5, 0, -10, 5e6),
            compress="deflate", photometric="rgb" if bands == 3 else "minisblack",
        ) as data:  # fmt: skip
            data.write(image if bands == 3 else np.concatenate([image, image[:1]]))
        content = place.read_bytes()
        if number < broken:
            content = [content[: len(content) // 2], b"", b"no picture" * 20, content][number % 4]
        files[f"{'bad' if number < broken else 'scene'}{number:03d}.tif"] = content
    return files


def feed(files: dict[str, bytes], inputs: Path, random_: random.Random, every_s: float) -> None:
    """Let the files arrive in any order, each in pieces."""
    names = list(files)
    random_.shuffle(names)
    for name in names:
        content = files[name]
        with (inputs / name).open("wb") as stream:
            for start in range(0, len(content), len(content) // 3 + 1):
                stream.write(content[start : start + len(content) // 3 + 1])
                stream.flush()
                time.sleep(every_s / 4)
        time.sleep(every_s / 4)


def start(bundle: Path, inputs: Path, outputs: Path, settle_s: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgekd", "watch", str(bundle), str(inputs), str(outputs),
         "--settle", str(settle_s), "--any-device"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


@click.command(help=__doc__)
@click.option("--files", "count", default=200, show_default=True)
@click.option("--broken", default=10, show_default=True)
@click.option("--kills", default=5, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--write", is_flag=True, help="Keep the record in benchmarks/results/.")
def main(count: int, broken: int, kills: int, seed: int, write: bool) -> None:
    sys.path.insert(0, str(ROOT))
    import rasterio

    from edgekd.runtime.session import load
    from tests.helpers.bundles import make_bundle

    random_ = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="edgekd-watch-") as name:
        folder = Path(name)
        inputs, outputs = folder / "in", folder / "out"
        inputs.mkdir()
        bundle = make_bundle(folder / "bundle", tile_px=128, classes=5, width=24, layers=2)
        files = make_files(folder, count, broken)
        feeder = threading.Thread(target=feed, args=(files, inputs, random_, 0.1))
        begin = time.monotonic()
        feeder.start()
        killed: list[float] = []
        process = start(bundle, inputs, outputs, 1.0)
        while True:
            wait_s = random_.uniform(1.5, 6.0) if len(killed) < kills else 1.0
            time.sleep(wait_s)
            if process.poll() is not None:
                raise click.ClickException(f"watch ended by itself: {process.communicate()[1]}")
            if len(killed) < kills:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                killed.append(round(time.monotonic() - begin, 2))
                process = start(bundle, inputs, outputs, 1.0)
            elif not feeder.is_alive() and not [n for n in names(inputs) if n in files]:
                break
            if time.monotonic() - begin > 900:
                raise click.ClickException(f"after 15 minutes {len(names(inputs))} are waiting")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        seconds = time.monotonic() - begin
        good = sorted(n for n in files if n.startswith("scene"))
        bad = sorted(n for n in files if n.startswith("bad"))
        wrong = []
        with load(bundle, any_device=True) as session:
            for item in good:
                if not (outputs / item).is_file():
                    wrong.append(item)
                    continue
                session.run_scene(inputs / "done" / item, folder / "alone.tif")
                with rasterio.open(outputs / item) as a, rasterio.open(folder / "alone.tif") as b:
                    if not (a.read(1) == b.read(1)).all() or a.transform != b.transform:
                        wrong.append(item)
        failed = names(inputs / "failed") if (inputs / "failed").is_dir() else []
        figures: dict[str, Any] = {
            "files": count, "broken": broken, "killed_at_s": killed, "seconds": round(seconds, 1),
            "exit_code_on_sigterm": process.returncode,
            "results": len(names(outputs)), "results_wrong": wrong,
            "done": len(names(inputs / "done")),
            "set_aside": {n: (inputs / "failed" / f"{n}.txt").read_text().strip()
                          for n in failed if not n.endswith(".txt")},
            "left_over": sorted(p.name for p in outputs.iterdir()
                                if p.name not in files and p.name != ".edgekd-watch.lock"),
        }  # fmt: skip
        holds = (
            names(outputs) == good and names(inputs / "done") == good and not wrong
            and sorted(figures["set_aside"]) == bad and not figures["left_over"]
            and process.returncode == 0
        )  # fmt: skip
    click.echo(
        f"{count} files, {len(killed)} kills, {seconds:.0f} s: {figures['results']} results "
        f"({len(wrong)} wrong), {figures['done']} done, {len(figures['set_aside'])} set aside, "
        f"left over {figures['left_over']}: {'holds' if holds else 'FAILED'}"
    )
    for item, reason in list(figures["set_aside"].items())[:4]:
        click.echo(f"  {item}: {reason}")
    if write:
        environment = read_environment()
        cpu = re.sub(r"[^a-z0-9]+", "-", (environment.cpu_model or "unknown").lower()).strip("-")
        record = {
            "question": "does edgekd watch lose a file, or do one twice?",
            "command": f"python benchmarks/watch_files.py --files {count} --kills {kills} --write",
            **figures, "holds": holds, "cpu": environment.cpu_model,
            "packages": environment.packages,
        }  # fmt: skip
        place = ROOT / "benchmarks" / "results" / cpu / "watch_files.json"
        write_json(place, record)
        click.echo(f"record: {place.relative_to(ROOT)}")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
