"""The rows of ``bad_input_table`` that are about power, and the files that they name."""

from __future__ import annotations

from pathlib import Path

from edgekd.telemetry.sampler import Samples
from edgekd.telemetry.sensors._base import Reading, SensorInfo
from edgekd.telemetry.trace import Trace, write_trace


def make_power_files(root: Path) -> None:
    """Beside the files of the other rows."""
    (root / "empty.log").touch()
    (root / "text.log").write_text("this is no power file\n")
    (root / "cut.log").write_text("RAM 519/7607MB (lfb 61x4MB) CPU [10%@17")
    info = SensorInfo("made-up", "wall", ("A",))
    readings = [Reading(float(n), 5.0) for n in range(60)]
    write_trace(root / "power.csv", Trace(Samples(info, 1.0, readings)))


#: name, command, words of the printed line, exit code
POWER_ROWS: tuple[tuple[str, str, tuple[str, ...], int], ...] = (
    ("power log empty", "power import empty.log -o t.csv", ("empty.log is empty",), 2),
    ("power log is text", "power import text.log -o t.csv",
     ("text.log is no power file", "tegrastats", "FNIRSI"), 2),
    ("power log is an image", "power energy in.png", ("in.png is no power file",), 2),
    ("power log without a whole line", "power energy cut.log",
     ("cut.log holds no whole line of tegrastats", "1 cut"), 2),
    ("window beyond the trace", "power energy power.csv --from 10 --to 90",
     ("power.csv", "the window 10 to 90 s is not within the samples", "0 to 59 s"), 2),
    ("idle beyond the trace", "power energy power.csv --idle 50,70",
     ("the window 50 to 70 s is not within the samples",), 2),
    ("trace with times and an interval", "power energy power.csv --interval 1",
     ("times of its own", "leave --interval out"), 2),
    ("unknown sensor", "power record --power tegrastat --seconds 1",
     ("power sensor 'tegrastat' does not exist", "did you mean 'tegrastats'", "replay:FILE"), 2),
    ("unknown sensor (run)", "run b in.tif -o m.tif --trace t.csv --power ina322",
     ("did you mean 'ina3221'",), 2),
    ("--power without --trace", "run b in.tif -o m.tif --power auto", ("--trace",), 2),
    ("replay of a text file", "run b in.tif -o m.tif --trace t.csv --power replay:text.log",
     ("text.log is no power file",), 2),
    ("trace with another suffix", "run b in.tif -o m.tif --trace t.txt",
     (".csv or .parquet", "t.txt"), 2),
    ("recording for no number", "power record --power replay:power.csv --seconds nan",
     ("--seconds of 0.001 to 604800 s", "nan"), 2),
    ("recording at no interval", "power record --power replay:power.csv --interval 1e300",
     ("--interval of 0.001 to 3600 s",), 2),
    ("sensor that is not here", "power record --power pmic --seconds 1",
     ("power sensor pmic cannot be read", "edgekd doctor"), 3),
)  # fmt: skip
