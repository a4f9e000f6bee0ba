"""The service itself, knowing nothing of HTTP: bytes in, answers out, by one version of the rules.

A request takes the version in force and the day of the law once, and everything in its answer is
of those two, whatever is put meanwhile. Rules are checked, embedded and written in a thread of
their own; the next request after the swap has them. Nothing that the event loop asks waits for that
thread or for the disk.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgekd.contracts.evidence import Answers, Evidence
from edgekd.contracts.policy_rows import ZoneRules
from edgekd.contracts.projection import OBEYED, past_bounds
from edgekd.errors import ConflictError, EdgeKDError, GateError, InputError
from edgekd.serve.body import evidence_of, read_places
from edgekd.serve.figures import Figures
from edgekd.serve.model import Asks, PlaceModel, asks_of, kinds_of
from edgekd.serve.power import PowerWatch
from edgekd.serve.rule_set import RuleSet
from edgekd.serve.rules import RuleStore, utc_now
from edgekd.serve.texts import Reader
from edgekd.serve.wire import PlaceAsked
from edgekd.serve.worker import TOGETHER, Answered, Busy, Worker

#: threads that read requests; a Pi has four cores, and the model wants them
_READERS: Final = 2
#: changes of the rules in hand at once: one is checked, one waits
_CHANGES: Final = 2
#: a rule is stood at where its bound is so near, in units of probability
_AT: Final = 1e-4
#: probabilities sum to 1 within this
_SUM: Final = 1e-4
#: after that long in one request the model is taken for stuck, s
_STUCK_S: Final = 60.0


@dataclass(frozen=True)
class Bounds:
    """What a stranger, or too many friends, can ask of the service at most.

    Attributes:
        waiting: requests before the model, beside the one in it.
        requests: to ``/v1/predict`` in hand at once: being received, read, waiting, in the model.
        body_bytes: of a request.
        body_s: for a body to arrive, s.
        answer_s: from a whole request to its answer, s; later it is given up.
        head_s: for the first lines of a request to arrive, s.
        connections: open at once.
    """

    waiting: int = 8
    requests: int = 16
    body_bytes: int = 4 << 20
    body_s: float = 10.0
    answer_s: float = 10.0
    head_s: float = 10.0
    connections: int = 200


@dataclass(frozen=True)
class _Ready:
    """A request that was read."""

    asked: list[PlaceAsked]
    places: list[Evidence]
    texts: list[str]
    zones: list[ZoneRules]
    rules: RuleSet
    day: datetime.date


class Service:
    """Answers for places by the rules in force.

    Args:
        model: is the caller's to close, when the service was closed.
        folder: of the rules' store.
        figures: counts.
        bounds: see :class:`Bounds`.
        power: is started and closed here.
        time_zone: whose midnight begins a day of the law.
        clock: of the store.

    Attributes:
        asks: what the model takes.
        store: of the rules.
        failure: why the model did not answer the first time; None while it has or may.

    Raises:
        EdgeKDError: see :class:`edgekd.serve.rules.RuleStore`.
    """

    def __init__(
        self,
        model: PlaceModel,
        folder: Path,
        figures: Figures,
        bounds: Bounds = Bounds(),
        power: PowerWatch | None = None,
        time_zone: str = "UTC",
        clock: Callable[[], datetime.datetime] = utc_now,
        trust_clock: bool = False,
    ) -> None:
        self.asks: Asks = asks_of(model)
        self.figures, self.bounds = figures, bounds
        self._reader = Reader(model, self.asks, figures.embedded)
        embed = self._reader.of_rules if self.asks.reads_texts else None
        self.store = RuleStore(
            folder, self.asks.classes, self.asks.facts, self.asks.rows, clock, time_zone, embed,
            trust_clock, self.asks.datum,
        )  # fmt: skip
        self.power = power or PowerWatch("none")
        self._pool = ThreadPoolExecutor(_READERS, "edgekd-read")
        self._writer = ThreadPoolExecutor(1, "edgekd-rules")
        self._worker = Worker(model, bounds.waiting)
        self._changes = 0
        self._answered = self._closing = False
        self.failure: BaseException | None = None
        figures.follow(
            depth=lambda: self._worker.depth,
            version=lambda: self.store.version,
            ready=lambda: not self.why_not_ready(),
            power=self.power.now,
        )

    # -- life

    def start(self, failed: Callable[[], object]) -> None:
        """Begin to read power, and let the model answer once, for as many places as it ever does.

        What a larger batch needs is taken then, and not when the first crowd comes: 35 MiB for the
        coastal student, which would look like a leak, and on a small board come at a bad time.

        Args:
            failed: called, in another thread, if it cannot; :attr:`failure` says why.
        """

        def first(done: Future[Answered]) -> None:
            self.failure = done.exception()
            self._answered = self.failure is None
            if self.failure is not None:
                failed()

        self.power.start()
        places = [self.asks.warm_up()] * TOGETHER
        self._worker.submit(places, None).add_done_callback(first)

    def why_not_ready(self) -> str:
        """Empty where requests are answered."""
        if self._closing:
            return "the service is shutting down"
        if self.failure is not None:
            return "the model did not answer"
        if not self._answered:
            return "the model has not answered yet"
        if not self.store.version:
            return "there are no rules yet; put some (PUT /v1/constraints)"
        if fault := self.store.clock_fault():
            return fault
        if ended := self._worker.ended:
            return ended
        if self._worker.stuck_s > _STUCK_S:
            return f"the model has been at one request for {self._worker.stuck_s:.0f} s"
        return ""

    def retry_after_s(self) -> int:
        """When it is worth while to come again, s."""
        return Busy("", self._worker.retry_after_s()).retry_after_s

    def drain(self) -> None:
        """Be no longer ready; what is in hand is finished."""
        self._closing = True

    def close(self) -> None:
        """Finish what is in hand and let go of the store; safe to call twice."""
        self.drain()
        # the store first, which has something to write: a model that hangs holds up what follows
        self._writer.shutdown()
        self.store.close()
        self._worker.close()
        self._pool.shutdown()
        self.power.close()

    # -- answers

    async def predict(self, body: bytes) -> dict[str, Any]:
        """Answer for the places of a request, as :class:`edgekd.serve.wire.PredictAnswer`.

        Raises:
            InputError: what was asked does not fit.
            ConflictError: there are no rules yet.
            Busy: no room, or no time.
            EdgeKDError: the model failed, or its answer does not obey.
        """
        begun_s = time.monotonic()
        if self._closing:
            raise Busy("the service is shutting down; ask another, or again later", 5)
        try:
            return await asyncio.wait_for(self._predict(body, begun_s), self.bounds.answer_s)
        except asyncio.TimeoutError as err:
            raise Busy(
                f"no answer came within {self.bounds.answer_s:g} s, so it is given up; ask for "
                "fewer places, or less often",
                self._worker.retry_after_s(),
            ) from err

    async def _predict(self, body: bytes, begun_s: float) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        ready = await loop.run_in_executor(self._pool, self._read, body)
        del body
        future = self._worker.submit(ready.places, [zone.limits for zone in ready.zones])
        done = await asyncio.wrap_future(future)  # cancelled with this task
        total_s = time.monotonic() - begun_s
        answers = self._answers(ready, done.answers)
        took = {"waiting": done.waited_s, "model": done.model_s, "total": total_s}
        when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.figures.answered(
            [
                {
                    "when": when, "zone": answer["zone"], "top": answer["top"],
                    "probability": answer["probability"], "top_before": answer["top_before"],
                    "changed": answer["changed"], "version": ready.rules.version,
                    "active": [rule["id"] for rule in answer["active"]],
                    "evidence": answer["evidence"], "text": answer["text"],
                    "ms": round(1e3 * total_s, 1),
                }
                for answer in answers
            ],
            done.waited_s, done.model_s, total_s, done.first,
        )  # fmt: skip
        return {
            "rules": {
                "version": ready.rules.version, "sha256": ready.rules.digest,
                "policy_sha256": ready.rules.policy_digest,
                "policy": ready.rules.policy.name, "day": ready.day.isoformat(),
                "time_zone": self.store.time_zone,
            },
            "model": {"name": self.asks.name, "simulated": self.asks.simulated},
            "answers": answers,
            "milliseconds": {name: round(1e3 * value, 3) for name, value in took.items()},
        }  # fmt: skip

    def _read(self, body: bytes) -> _Ready:
        asked = read_places(body)
        if not self.store.version:
            raise ConflictError(
                "there are no rules yet, and none is not the same as no limits; put some first "
                "(PUT /v1/constraints)"
            )
        rules, day = self.store.current(), self.store.today()
        ready = _Ready(asked, [], [], [], rules, day)
        for number, place in enumerate(asked, 1):
            try:
                ready.zones.append(rules.limits(place.zone, day))
            except InputError as err:
                raise InputError(f"place {number}: {err}") from err
            found = evidence_of(place, number, self.asks)
            whose = "none"
            if "text" not in place.model_fields_set:
                row = rules.embeddings.get(place.zone)
                if row is not None:
                    found, whose = replace(found, text=row), "rules"
            elif place.text is not None:
                found, whose = self._with_text(found, place.text, number), "request"
            if not kinds_of(found):
                raise InputError(
                    f"place {number}: nothing is known of it; give a picture, a series or a text"
                )
            ready.places.append(found)
            ready.texts.append(whose)
        return ready

    def _with_text(self, found: Evidence, text: str, number: int) -> Evidence:
        if not self.asks.reads_texts:
            raise InputError(
                f"place {number}: the bundle {self.asks.name} has nothing that reads texts; leave "
                "'text' out"
            )
        try:
            return replace(found, text=self._reader.of_request(text))
        except InputError as err:
            raise InputError(f"place {number}: {err}") from err

    def _answers(self, ready: _Ready, found: Answers) -> list[dict[str, Any]]:
        return [
            self._answer(ready, at, found.before[at], found.probabilities[at])
            for at in range(len(ready.places))
        ]

    def _answer(self, ready: _Ready, at: int, before: Any, after: Any) -> dict[str, Any]:
        zone, classes = ready.zones[at], self.asks.classes
        if before.shape != (len(classes),) or not np.isfinite([before, after]).all():
            raise EdgeKDError("the model gave no probabilities; nothing is answered")
        rules, bounds, _ = zone.limits
        past = float(past_bounds(after[None], rules, bounds)[0])
        least, total = float(after.min()), float(after.sum())
        fault = ""
        if past > OBEYED:
            fault = f"is {past:.2g} past a rule in force"
        elif least < -OBEYED:
            fault = f"has a probability of {least:.2g}"
        elif abs(total - 1) > _SUM:
            fault = f"sums to {total:.6g}, expected 1"
        if fault:
            raise GateError(
                f"the answer {fault}, so it is not given; the bundle is damaged: edgekd verify "
                "BUNDLE"
            )
        changed = float(past_bounds(before[None], rules, bounds)[0]) > OBEYED
        top, top_before = int(after.argmax()), int(before.argmax())
        return {
            "zone": zone.zone,
            "top": classes[top],
            "probability": float(after[top]),
            "top_before": classes[top_before],
            "probabilities": dict(zip(classes, map(float, after), strict=True)),
            "before": dict(zip(classes, map(float, before), strict=True)),
            "changed": changed,
            "active": [
                {"id": row.rule.id, "says": row.says, "source": row.rule.source,
                 "relaxed": row.relaxed}
                for row in zone.rows
                if changed and float(row.coefficients @ after) >= row.bound - _AT
            ],
            "evidence": kinds_of(ready.places[at]),
            "text": ready.texts[at],
        }  # fmt: skip

    # -- rules

    async def put(self, text: bytes, who: str, expected: int | None) -> dict[str, Any]:
        """Put rules; what is in force then, as :class:`edgekd.serve.wire.ConstraintsSaid`.

        Raises:
            Busy: two changes are in hand already.
            EdgeKDError: see :meth:`edgekd.serve.rules.RuleStore.put`.
        """
        if self._closing:
            raise Busy("the service is shutting down; ask another, or again later", 5)
        if self._changes >= _CHANGES:
            raise Busy("other changes of the rules are being checked; read them and ask again", 2)
        self._changes += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._writer, self._put, text, who, expected)
        finally:
            self._changes -= 1

    def _put(self, text: bytes, who: str, expected: int | None) -> dict[str, Any]:
        return self.store.put(text, who, expected=expected).report()

    async def rules(self) -> dict[str, Any]:
        """What is in force today, as :class:`edgekd.serve.wire.ConstraintsSaid`.

        In a thread of those that read: rows that are not kept any more are made again.

        Raises:
            InputError: there are no rules yet.
            EnvironmentLacksError: the clock is not set.
        """
        found = self.store.current()
        return await asyncio.get_running_loop().run_in_executor(self._pool, found.report)

    def status(self) -> dict[str, Any]:
        """What the page shows beside the rules."""
        power = self.power.now()
        version, late = self.store.version, self.store.clock_fault()
        return {
            "name": self.asks.name,
            "title": self.asks.title,
            "simulated": self.asks.simulated,
            "ready": not (why := self.why_not_ready()),
            "why": why,
            "queue": {"depth": self._worker.depth, "room": self.bounds.waiting + 1},
            "power": {
                "watts": power.watts, "sensor": power.sensor, "scope": power.scope,
                "status": power.status, "why": power.why,
            },
            "rules": {
                "version": version, "day": None if late else self.store.today().isoformat(),
                "time_zone": self.store.time_zone,
            },
            "events": [event.model_dump(mode="json") for event in self.store.history(6)],
            **self.figures.page(),
        }  # fmt: skip
