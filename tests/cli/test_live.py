"""The live view of a measurement: in a terminal, and lines elsewhere."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from edgekd.cli._live import LiveView, sparkline
from edgekd.telemetry.sensors._base import Reading

rich_console = pytest.importorskip("rich.console")


def shown(view: LiveView, width: int = 72) -> str:
    console = rich_console.Console(file=io.StringIO(), width=width, color_system=None)
    console.print(view.render())
    text: str = console.file.getvalue()
    return text


def test_the_view_shows_phase_power_temperature_and_speed() -> None:
    view = LiveView("bench")
    assert "warming up" in shown(view)
    view.step(2, 9)
    view.phase("engine", 12.0)
    for number in range(100):
        view.reading(Reading(number * 0.1, 5.0 + number % 8, temperatures_c={"tj": 51.5, "cpu": 4}))
        view.called(0.02)
    text = shown(view)
    for words in ("bare engine", "of about 12 s", "8.00 W", "51.5 °C (tj)", "20.00 ms per call",
                  "50.00 calls/s"):  # fmt: skip
        assert words in text, text
    assert max(len(line) for line in text.splitlines()) <= 72
    assert "▁" in text and "█" in text


def test_a_sensor_without_power_says_why() -> None:
    view = LiveView("bench")
    view.reading(Reading(0.0, None, why="tegrastats shows no rails; needs root"))
    assert "unavailable: tegrastats shows no rails" in shown(view, 100)


@pytest.mark.parametrize(
    ("values", "curve"),
    [([1.0, 2.0], "▁█"), ([3.0, 3.0, 3.0], "▁▁▁"), ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█")],
)
def test_a_curve_goes_from_the_lowest_to_the_highest(values: list[float], curve: str) -> None:
    assert sparkline(values) == curve


def test_outside_a_terminal_it_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("edgekd.cli._live.time.monotonic", lambda: now[0])
    with LiveView("bench") as view:
        for number in range(11):
            view.step(number, 10)
            now[0] += 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "bench: step 1 of 10" and lines[-1] == "bench: step 10 of 10"
    assert 3 <= len(lines) <= 5


def test_in_a_terminal_it_is_redrawn_and_gone_at_the_end(tmp_path: Path) -> None:
    code = (
        "import time; from edgekd.cli._live import LiveView\n"
        "with LiveView('bench') as view:\n"
        "    view.phase('scene', 3); view.step(1, 4); time.sleep(0.6)\n"
        "print('the end')\n"
    )
    mine, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=its, stderr=its, stdin=its,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
    )  # fmt: skip
    os.close(its)
    text = b""
    while True:
        try:
            data = os.read(mine, 4096)
        except OSError:
            break
        if not data:
            break
        text += data
    assert process.wait(30) == 0
    said = text.decode()
    assert "end to end" in said and said.rstrip().splitlines()[-1].endswith("the end")
    assert "\x1b[" in said  # redrawn, not scrolled
