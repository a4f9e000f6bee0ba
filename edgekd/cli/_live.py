"""What a measurement looks like while it runs: a live view in a terminal, lines elsewhere."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgekd.cli._common import note

if TYPE_CHECKING:
    from edgekd.report.power import Kind
    from edgekd.telemetry.sensors._base import Reading

_WORDS: dict[Kind, str] = {
    "idle": "idling",
    "pulse": "load pulse",
    "warm_up": "warming up",
    "guard": "waiting",
    "engine": "bare engine",
    "scene": "end to end",
    "streams": "bare engine, several calls at once",
    "rules": "bare engine with rules and without",
    "other": "other bundle",
}
_BARS = "▁▂▃▄▅▆▇█"
#: readings in the little curve, and calls that the rate looks back on
_SHOWN, _CALLS = 60, 50
#: between lines outside a terminal, s
_LINE_S = 10.0


class LiveView:
    """An observer of a measurement; use it in a ``with`` block; everything goes to stderr.

    Args:
        title: of the view.
        mark: behind every power, e.g. `` (replay)``.
    """

    def __init__(self, title: str, mark: str = "") -> None:
        self._title, self._mark = title, mark
        self._done, self._steps = 0, 0
        self._kind: Kind = "warm_up"
        self._begin, self._expected = time.monotonic(), 0.0
        self._watts: deque[float] = deque(maxlen=_SHOWN)
        self._last: Reading | None = None
        self._calls: deque[float] = deque(maxlen=_CALLS)
        self._lock = threading.Lock()
        self._live: Any = None
        self._told = 0.0

    def __enter__(self) -> LiveView:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                get_renderable=self.render, console=Console(stderr=True), refresh_per_second=4,
                transient=True,
            )  # fmt: skip
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, done: int, steps: int) -> None:
        """See :class:`~edgekd.report.blocks.Observer`."""
        self._done, self._steps = done, steps
        now = time.monotonic()
        if self._live is None and done and (now - self._told >= _LINE_S or done == steps):
            self._told = now
            watts = f", {self._watts[-1]:.2f} W{self._mark}" if self._watts else ""
            note(f"{self._title}: step {done} of {steps}{watts}")

    def phase(self, kind: Kind, seconds: float | None = None) -> None:
        """See :class:`~edgekd.report.blocks.Observer`."""
        self._kind, self._begin, self._expected = kind, time.monotonic(), seconds or 0.0

    def called(self, latency_s: float) -> None:
        """See :class:`~edgekd.report.blocks.Observer`."""
        self._calls.append(latency_s)

    def reading(self, reading: Reading) -> None:
        """See :class:`~edgekd.report.blocks.Observer`."""
        with self._lock:
            self._last = reading
            if reading.watts is not None:
                self._watts.append(reading.watts)

    def render(self) -> Any:
        """The view as of now."""
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(justify="right", style="dim", no_wrap=True)
        table.add_column(ratio=1)
        elapsed = time.monotonic() - self._begin
        rest = f"{elapsed:.0f} s"
        if self._expected:
            rest += f" of about {self._expected:.0f} s"
        table.add_row(_WORDS[self._kind], rest)
        table.add_row("steps", ProgressBar(total=max(self._steps, 1), completed=self._done))
        with self._lock:
            watts, last = list(self._watts), self._last
        if watts:
            table.add_row(f"power{self._mark}", f"{watts[-1]:6.2f} W  {sparkline(watts)}")
        elif last is not None:
            table.add_row("power", f"unavailable: {last.why}")
        if last is not None and last.temperatures_c:
            zone = max(last.temperatures_c, key=lambda name: last.temperatures_c[name])
            table.add_row("hottest zone", f"{last.temperatures_c[zone]:.1f} °C ({zone})")
        if self._calls:
            latency = statistics.median(list(self._calls))
            table.add_row("engine", f"{1e3 * latency:.2f} ms per call, {1 / latency:.2f} calls/s")
        return Panel(table, title=self._title, border_style="cyan")


def sparkline(values: list[float]) -> str:
    """A curve of one line, from the lowest value to the highest."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(_BARS[int((value - low) / span * (len(_BARS) - 1))] for value in values)
