"""What a search knows already: one line per finished training, on the disk before the next begins.

A search is a function of recipe, data, method, seed and budget that asks for trainings. One that
was killed is run again from its beginning and gets from here what it had got; so nothing else of
its state need be kept, and several searches in one folder share what they have in common.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from edgekd.contracts.artifacts import publish_file
from edgekd.errors import InputError
from edgekd.train.run import writing
from edgekd.train.search.space import Values, name_of

NAME = "journal.jsonl"
FORMAT = 1


class Job(NamedTuple):
    """A training to do.

    Attributes:
        values: of the candidate.
        seed: of the training.
    """

    values: Values
    seed: int

    @property
    def name(self) -> tuple[str, int]:
        """What tells it from others."""
        return name_of(self.values), self.seed


@dataclass(frozen=True)
class Outcome:
    """A training that is done.

    Attributes:
        value: balanced accuracy on the validation part, 0-1; None where the training diverged.
        seconds: that it took.
        said: why there is no value.
    """

    value: float | None
    seconds: float
    said: str | None = None


class Journal:
    """The file of a search; its first line says what all others rest on.

    Args:
        path: the file.
        made_from: recipe, data, versions; a file that was made from others is refused.

    Attributes:
        known: what was done.

    Raises:
        InputError: of another search, or damaged.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path, made_from: dict[str, Any]) -> None:
        self.path = path
        self.known: dict[tuple[str, int], Outcome] = {}
        made_from = json.loads(json.dumps({"edgekd_search": FORMAT, **made_from}))
        if path.is_file():
            self._read(made_from)
        else:
            with publish_file(path) as part:
                part.write_text(json.dumps(made_from, sort_keys=True) + "\n", encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def _read(self, made_from: dict[str, Any]) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                item = json.loads(line)
                if number == 1:
                    self._same(item, made_from)
                    continue
                job = Job(item["values"], item["seed"])
                value = item["value"]
                found = Outcome(
                    None if value is None else float(value), item["seconds"], item.get("said")
                )
            except (ValueError, KeyError, TypeError) as err:
                raise InputError(
                    f"line {number} of {self.path} is no line of a search's journal; take the line "
                    "away to do that training again, or start anew with --fresh"
                ) from err
            self.known[job.name] = found
        if whole == 0:
            raise InputError(f"{self.path} is no search's journal; start anew with --fresh")
        if whole < len(content):  # a line that a killed process left incomplete
            os.truncate(self.path, whole)

    def _same(self, found: Any, made_from: dict[str, Any]) -> None:
        if not isinstance(found, dict) or "edgekd_search" not in found:
            raise InputError(f"{self.path} is no search's journal; start anew with --fresh")
        other = sorted(key for key in {*found, *made_from} if found.get(key) != made_from.get(key))
        if other:
            raise InputError(
                f"{self.path} was made with another {', '.join(other)}, so its trainings cannot "
                "be gone on with; take the same, start anew with --fresh, or choose another folder "
                "with -o"
            )

    def add(self, job: Job, outcome: Outcome) -> None:
        """Bring a training to the disk.

        Raises:
            OutputError: it cannot be written.
        """
        line: dict[str, Any] = {
            "values": job.values, "seed": job.seed, "value": outcome.value,
            "seconds": round(outcome.seconds, 3),
        }  # fmt: skip
        if outcome.said is not None:
            line["said"] = outcome.said
        with writing(self.path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self.known[job.name] = outcome

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
