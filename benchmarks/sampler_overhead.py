"""What watching power costs: ``python benchmarks/sampler_overhead.py [--seconds 20] [--write]``.

CPU time of this process with a sampler at 10 Hz, as a share of one core: against made-up INA3221
files of sysfs, and against a made-up ``tegrastats`` that replays a line through a real pipe (its
own CPU time is the other process's). Beside it, the same with the trace that is written meanwhile,
and a process that only sleeps. Ends with 1 when a share is above the bound.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import click
from _records import here

from edgekd.contracts.artifacts import write_json
from edgekd.telemetry.recorder import Recorder
from edgekd.telemetry.sampler import Sampler
from edgekd.telemetry.sensors import ina3221, tegrastats
from edgekd.telemetry.sensors._base import PowerSensor, Unavailable

ROOT = Path(__file__).resolve().parents[1]
#: of one core, at 10 Hz
BOUND = 0.01
INTERVAL_S = 0.1
_LINE = (
    "04-19-2026 01:31:10 RAM 519/7607MB (lfb 61x4MB) SWAP 0/3803MB (cached 0MB) CPU [10%@1728,"
    "30%@729,9%@729,0%@729,0%@729,off] EMC_FREQ 0%@3199 GR3D_FREQ 99%@[1018] NVDEC off NVJPG off "
    "NVJPG1 off VIC off OFA off APE 200 cpu@48.9C soc2@47.6C soc0@48.1C gpu@49.6C tj@49.5C "
    "soc1@48.2C VDD_IN 5971mW/5971mW VDD_CPU_GPU_CV 1000mW/1000mW VDD_SOC 2308mW/2308mW"
)


def sensors(folder: Path) -> dict[str, PowerSensor]:
    """Made-up ones, found as real ones are."""
    sys.path.insert(0, str(ROOT))
    from tests.helpers.fake_tegrastats import make_tegrastats

    chip = folder / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    chip.mkdir(parents=True)
    for number, name in enumerate(("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"), 1):
        for file, text in (("in%d_label", name), ("in%d_input", "5000"), ("curr%d_input", "1200")):
            (chip / (file % number)).write_text(f"{text}\n")
    make_tegrastats(folder / "usr/bin", [_LINE] * 100_000)
    found = {"ina3221": ina3221.find(folder), "tegrastats": tegrastats.find(folder)}
    for name, sensor in found.items():
        if isinstance(sensor, Unavailable):
            raise click.ClickException(f"{name}: {sensor.reason}")
    return {name: item for name, item in found.items() if not isinstance(item, Unavailable)}


def spent(seconds: float) -> float:
    """Share of a core that this process takes while it sleeps, its threads included."""
    time.sleep(0.5)  # what begins the sampling is no part of it
    before, start = time.process_time(), time.monotonic()
    time.sleep(seconds)
    return (time.process_time() - before) / (time.monotonic() - start)


@click.command(help=__doc__)
@click.option("--seconds", default=20.0, show_default=True, help="Of each.")
@click.option("--write", is_flag=True, help="Keep the record in benchmarks/results/.")
def main(seconds: float, write: bool) -> None:
    """Measure, print, and end with 1 when a bound is missed."""
    rows: dict[str, dict[str, float]] = {"nothing": {"share_of_core": spent(seconds), "samples": 0}}
    with tempfile.TemporaryDirectory(prefix="edgekd-overhead-") as name:
        for kind, sensor in sensors(Path(name)).items():
            with Sampler(sensor, INTERVAL_S) as sampler:
                share = spent(seconds)
            rows[kind] = {"share_of_core": share, "samples": len(sampler.samples.readings)}
            with Recorder(Path(name) / "t.csv", sensor, INTERVAL_S, lambda: 0) as recorder:
                share = spent(seconds)
            rows[f"{kind}, trace written"] = {
                "share_of_core": share, "samples": len(recorder.samples.readings),
            }  # fmt: skip
    holds = all(row["share_of_core"] <= BOUND for row in rows.values())
    for what, row in rows.items():
        click.echo(f"{what}: {row['share_of_core']:.3%} of a core, {row['samples']:.0f} samples")
    click.echo(f"bound {BOUND:.0%}: {'holds' if holds else 'MISSED'}")
    if write:
        folder, environment = here()
        place = folder / "sampler_overhead.json"
        record = {
            "question": "what does a power sampler at 10 Hz take of a core?",
            "command": f"python benchmarks/sampler_overhead.py --seconds {seconds:g} --write",
            "bound": BOUND, "interval_s": INTERVAL_S, "seconds": seconds, "rows": rows,
            "holds": holds, "cpu": environment.cpu_model, "packages": environment.packages,
        }  # fmt: skip
        write_json(place, record)
        click.echo(f"record: {place.relative_to(ROOT)}")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
