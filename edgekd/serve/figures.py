"""What is counted while the service runs: for Prometheus, and the last minutes for the page."""

from __future__ import annotations

import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from edgekd.contracts.optional import require
from edgekd.serve.power import PowerNow
from edgekd.telemetry.process import rss_mib

#: answers shown on the page
SHOWN: Final = 12
#: a point of the page's curves, s, and how many there are
POINT_S, POINTS = 5, 60
#: over which the rate and percentiles are told, s
RATE_S, TIMES_S = 30, 60
#: a Pi takes tenths of a second for an answer, a workstation milliseconds
_BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_METHODS: Final = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH")


@dataclass
class _Point:
    """Five seconds."""

    number: int
    answers: int = 0
    slowest_s: float = 0.0
    times_s: array[float] = field(default_factory=lambda: array("d"))
    watts: list[float] = field(default_factory=list)


class Figures:
    """Counts, for any number of threads.

    Args:
        routes: paths that are counted under their name; others are ``other``, since whoever asks
            for a million paths must not make a million counters.
        clock: monotonic, s.

    Raises:
        EnvironmentLacksError: prometheus_client is not installed.
    """

    def __init__(self, routes: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        prometheus: Any = require("prometheus_client", "serve", "count what is served")
        self._routes, self._clock, self._begun_s = frozenset(routes), clock, clock()
        self._registry = registry = prometheus.CollectorRegistry()
        self._render = prometheus.generate_latest
        self.content_type: str = prometheus.CONTENT_TYPE_LATEST
        prometheus.ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Any:
            return prometheus.Counter(f"edgekd_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, *labels: str) -> Any:
            return prometheus.Histogram(
                f"edgekd_{name}", text, labels, registry=registry, buckets=_BUCKETS
            )

        def gauge(name: str, text: str, *labels: str) -> Any:
            return prometheus.Gauge(f"edgekd_{name}", text, labels, registry=registry)

        self._gauge = gauge
        self._requests = counter("requests", "Requests.", "route", "method", "status")
        self._seconds = histogram("request_seconds", "From the head to the last byte.", "route")
        self._model = histogram("model_seconds", "A call of the model, which answers what waits.")
        self._waited = histogram("waited_seconds", "In the queue before the model.")
        self._answers = counter("answers", "Places answered for.", "changed_by_rules")
        self._embeddings = counter("embeddings", "Texts that were read.", "of")
        self._lock = threading.Lock()
        self._last: deque[dict[str, Any]] = deque(maxlen=SHOWN)
        self._points: deque[_Point] = deque(maxlen=POINTS)
        self._total = 0

    def follow(
        self, depth: Callable[[], int], version: Callable[[], int], ready: Callable[[], bool],
        power: Callable[[], PowerNow],
    ) -> None:  # fmt: skip
        """Read gauges from their sources when they are asked for; power only where there is any."""
        for name, text, source in (
            ("queue_depth", "Requests in the model and before it.", depth),
            ("rules_version", "Version of the rules in force; 0 is none.", version),
            ("ready", "1 where /readyz says so.", ready),
        ):
            self._gauge(name, text).set_function(source)
        self._power = power
        self._watts = self._gauge(
            "power_watts", "Power now; absent where nothing reads it.", "sensor", "scope", "status"
        )

    def render(self) -> bytes:
        """As Prometheus reads it."""
        now = self._power()
        self._watts.clear()
        if now.watts is not None:
            self._watts.labels(now.sensor, now.scope, now.status).set(now.watts)
        found: bytes = self._render(self._registry)
        return found

    def request(self, path: str, method: str, status: int, seconds: float) -> None:
        """A request that was answered, whatever the answer."""
        route = path if path in self._routes else "other"
        method = method if method in _METHODS else "other"
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def embedded(self, whose: str, count: int) -> None:
        """Texts that were read, of ``rules`` or of a ``request``."""
        self._embeddings.labels(whose).inc(count)

    def answered(
        self, places: Sequence[dict[str, Any]], waited_s: float, model_s: float, total_s: float,
        first: bool = True,
    ) -> None:  # fmt: skip
        """Places of a request that were answered for, as the page shows them.

        Args:
            waited_s, model_s, total_s: before the model, in it, and from the request's arrival.
            first: of those that one call of the model answered, whose time is counted once.
        """
        if first:
            self._model.observe(model_s)
        self._waited.observe(waited_s)
        for place in places:
            self._answers.labels("yes" if place["changed"] else "no").inc()
        now = self._clock()
        with self._lock:
            self._last.extend(places)
            self._total += len(places)
            point = self._point(now)
            point.answers += len(places)
            point.slowest_s = max(point.slowest_s, total_s)
            point.times_s.append(total_s)

    def power(self, watts: float) -> None:
        """A reading, for the page's curve."""
        now = self._clock()
        with self._lock:
            self._point(now).watts.append(watts)

    def _point(self, now: float) -> _Point:
        number = int(now // POINT_S)
        if not self._points or self._points[-1].number != number:
            self._points.append(_Point(number))
            for point in list(self._points)[:-1]:
                if point.number < number - TIMES_S // POINT_S:
                    point.times_s = array("d")  # nobody asks for them any more
        return self._points[-1]

    def page(self) -> dict[str, Any]:
        """The last minutes: rate, percentiles, curves (None where nothing was), last answers."""
        now = self._clock()
        with self._lock:
            oldest = int(now // POINT_S) - TIMES_S // POINT_S
            times = sorted(
                took for point in self._points if point.number >= oldest for took in point.times_s
            )
            points = {point.number: point for point in self._points}
            last, total = list(self._last)[::-1], self._total
        number = int(now // POINT_S)
        # the present point is not whole yet
        span = range(max(number - POINTS, int(self._begun_s // POINT_S)), number)
        shown = [points.get(n) for n in span]
        lately = sum(p.answers for p in shown[-RATE_S // POINT_S :] if p is not None)
        seconds = max(min(len(shown) * POINT_S, RATE_S), POINT_S)
        return {
            "up_s": round(now - self._begun_s, 1),
            "answers": total,
            "answers_per_s": lately / seconds if shown else None,
            "p50_ms": _rank(times, 50),
            "p99_ms": _rank(times, 99),
            "memory_mib": rss_mib(),
            "curves": {
                "point_s": POINT_S,
                "answers_per_s": [0.0 if p is None else p.answers / POINT_S for p in shown],
                "slowest_ms": [
                    None if p is None or not p.answers else round(1e3 * p.slowest_s, 2)
                    for p in shown
                ],
                "watts": [
                    None if p is None or not p.watts else round(sum(p.watts) / len(p.watts), 3)
                    for p in shown
                ],
            },
            "last": last,
        }


def _rank(times: list[float], percent: int) -> float | None:
    """Nearest rank, ms."""
    if not times:
        return None
    return round(1e3 * times[min(len(times) - 1, max(0, -(-percent * len(times) // 100) - 1))], 2)
