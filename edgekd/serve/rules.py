"""The rules that a service answers by: put whole, swapped at once, kept, and every change told.

A folder, held by one process::

    current.json         which version is in force: its number, the hashes of its two files
    versions/000012.yaml the text as it was given, to the byte (YAML or JSON)
    versions/000012.json who, when, which version was before
    audit.jsonl          what was asked for and what became of it (:mod:`edgekd.serve.audit`)

A change goes to the disk in this order, each step whole before the next: the text, who and when,
the line in the trail, and last ``current.json``, by one rename. So a kill at any place leaves the
old rules or the new ones, never none and never half; and no rules are ever in force that the trail
does not tell of. What the trail told and did not come into force, the next opening says. Texts that
are refused here are told as well, see :mod:`edgekd.serve.audit`; what never came here is not.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import re
import threading
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

import pydantic

from edgekd.contracts.artifacts import (
    canonical_json,
    publish_file,
    read_bytes,
    read_json,
    sha256_bytes,
    sync,
    write_json,
)
from edgekd.contracts.evidence import Float32
from edgekd.contracts.policy import ClassFacts
from edgekd.contracts.schema import D, Document, parse_document
from edgekd.errors import (
    ConflictError,
    EdgeKDError,
    EnvironmentLacksError,
    InputError,
    OutputError,
)
from edgekd.serve.audit import KEPT, Allowance, Event, Trail
from edgekd.serve.rule_set import Compiled, Product, RuleSet
from edgekd.serve.rule_text import as_bytes, parse_rules

CURRENT_NAME, VERSIONS_NAME, AUDIT_NAME = "current.json", "versions", "audit.jsonl"
_WHO_MOST = 200
#: clocks are set back by so much, and no law changes within it
_SET_BACK: Final = datetime.timedelta(minutes=10)


class _Current(Document):
    """``current.json``; version 0 is a store without rules, which has no hashes."""

    schema_version: Literal[1] = pydantic.Field(alias="schema")
    version: int = pydantic.Field(ge=0)
    sha256: str | None
    meta_sha256: str | None

    @pydantic.model_validator(mode="after")
    def _hashes(self) -> _Current:
        if (self.version == 0) != (self.sha256 is None) or (self.version == 0) != (
            self.meta_sha256 is None
        ):
            raise ValueError("there is a version without hashes, or hashes without a version")
        return self


class _Meta(Document):
    """``versions/000012.json``; policy_sha256 is of what the text says, whatever its spelling."""

    schema_version: Literal[1] = pydantic.Field(alias="schema")
    version: int = pydantic.Field(ge=1)
    before: int = pydantic.Field(ge=0)
    sha256: str
    policy_sha256: str
    policy: str
    who: str
    when: str


def utc_now() -> datetime.datetime:
    """The clock of a store, unless it is given another."""
    return datetime.datetime.now(datetime.timezone.utc)


class RuleStore:
    """The rules of a product in a folder; for any number of threads, in one process.

    A new store has no rules, and says so when it is asked for them: serving without is the
    caller's explicit choice, and never what a lost file comes to.

    Args:
        folder: made where there is none. Its parts belong together: one that lacks is a fault.
        classes: of the product, in the order of its scores.
        facts: class -> what rules ask of it; classes may be absent.
        rows: how many rules of a zone there is room for.
        clock: gives the time, aware of its zone.
        time_zone: name of the zone whose midnight begins a day of the law, e.g. ``Europe/Lisbon``.
        embed: makes ``(N, width)`` of N texts; called when rules with texts are put or opened, and
            never for an answer. None: rules with texts are refused.
        trust_clock: the clock is right, though the rules in force were put later than it says.
        datum: what the product's levels and floors are above; rules above another are refused.

    Raises:
        InputError: the folder belongs to something else, a file of it lacks or was changed (no
            older rules are taken instead), the rules in it do not fit this product, or no such
            time zone.
        EnvironmentLacksError: another process has the store, the file system has no locks, or
            there is no table of time zones or no scipy.
        OutputError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        facts: Mapping[str, ClassFacts],
        rows: int,
        clock: Callable[[], datetime.datetime] = utc_now,
        time_zone: str = "UTC",
        embed: Callable[[Sequence[str]], Float32] | None = None,
        trust_clock: bool = False,
        datum: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.time_zone = time_zone
        self._product = Product(tuple(classes), dict(facts), rows, datum)
        self._clock, self._zone = clock, _zone(time_zone)
        self._embed, self._allowance = embed, Allowance()
        self._trust_clock = trust_clock
        self._writing = threading.Lock()
        self._current: RuleSet | None = None
        self._held = _hold(self.folder)
        try:
            state = self._state()
            self._trail = Trail(self.folder / AUDIT_NAME)
            try:
                self._open(state)
            except BaseException:
                self._trail.close()
                raise
        except BaseException:
            os.close(self._held)
            raise

    # -- reading

    @property
    def version(self) -> int:
        """In force; 0 where there are no rules yet."""
        current = self._current
        return 0 if current is None else current.version

    def current(self) -> RuleSet:
        """The version in force; keep it for the whole of an answer.

        Raises:
            InputError: there are no rules yet.
        """
        current = self._current
        if current is None:
            raise InputError(
                f"{self.folder} holds no rules yet, and none is not the same as no limits; put "
                "some first (PUT /v1/constraints)"
            )
        return current

    def text_of(self, version: int) -> bytes:
        """The text of a version that is or was in force, as it was put.

        Raises:
            InputError: there is none, or it was changed on the disk.
        """
        if not 1 <= version <= self.version:
            raise InputError(f"there is no version {version}; in force is {self.version}")
        number = self.version
        said = _document(_Meta, self._files(number)[1])
        while number > version:  # back by what was in force before: a number may have failed
            number = said.before
            said = _document(_Meta, self._files(number)[1]) if number else said
        if number != version:
            raise InputError(f"there is no version {version}: it never came into force")
        path = self._files(version)[0]
        content = read_bytes(path)
        if sha256_bytes(content) != said.sha256:
            raise InputError(f"{path.name} was changed since it was put, so it is not told")
        return content

    def history(self, limit: int = 100) -> list[Event]:
        """The newest events first: texts that were accepted, unchanged or refused, and repairs.

        Nothing that is being written is waited for.

        Args:
            limit: 1 to :data:`edgekd.serve.audit.KEPT`; the file has all.

        Raises:
            InputError: another limit.
        """
        if not 1 <= limit <= KEPT:
            raise InputError(f"limit is {limit}, expected 1 to {KEPT}; {AUDIT_NAME} has all events")
        return self._trail.last(limit)

    def today(self) -> datetime.date:
        """The day of the law: in the store's time zone.

        Raises:
            InputError: the clock does not say of which zone its time is.
            EnvironmentLacksError: it is not set, see :meth:`clock_fault`.
        """
        fault = self.clock_fault()
        if fault:
            raise EnvironmentLacksError(fault)
        return self._day(self._now())

    def clock_fault(self) -> str:
        """Why nobody knows what day it is; empty where the clock may be right.

        A board without a battery begins in 1970, or where it was switched off, and the law of that
        day is another. What is known is when the rules in force were put: not after now.
        """
        current, now = self._current, self._now()
        if self._trust_clock or current is None:
            return ""
        put = datetime.datetime.fromisoformat(current.when)
        if now >= put - _SET_BACK:
            return ""
        told = (at.astimezone(self._zone).isoformat(" ", "minutes") for at in (now, put))
        return (
            "the clock says {}, and the rules in force were put at {}, which is later; set the "
            "clock, or begin the service with --trust-clock where it is right"
        ).format(*told)

    def _day(self, now: datetime.datetime) -> datetime.date:
        return now.astimezone(self._zone).date()

    # -- writing

    def put(self, text: bytes | str, who: str, *, expected: int | None = None) -> RuleSet:
        """Check rules whole, keep them and let them be in force, at once and for all readers.

        They are compiled for every zone, today and on every later day on which anything changes,
        so that nothing can fail at a later midnight. A text equal to the one in force, to the
        byte, makes no new version. The trail tells of every text that is given here, whatever
        becomes of it; of those that change nothing, as many as there is an allowance for.

        Args:
            text: YAML or JSON in UTF-8, at most :data:`edgekd.serve.rule_text.MOST_BYTES`.
            who: puts it: one line of at most 200 printable characters.
            expected: the version that the caller saw, 0 for none: refused where another one is in
                force by now.

        Returns:
            The rules that are in force now.

        Raises:
            ConflictError: another version than ``expected`` is in force.
            RecipeError: every fault of the text.
            InputError: too long, not text, too much to check, or ``who`` is no name.
            OutputError: the disk is full, or the store is closed; the old rules stay.
            EnvironmentLacksError: scipy is not installed, or the clock is not set.
        """
        with self._writing:
            if self._held < 0:
                raise OutputError(f"the store {self.folder} is closed; open it again")
            named: str | None = None
            digest: str | None = None
            when = self._when()
            try:
                named = _name(who)
                data = as_bytes(text)
                digest = sha256_bytes(data)
                self._require(expected)
                current = self._current
                if current is None or digest != current.digest:
                    made = self._made(data, self._next, named, when)
                    made.check(self.today())
                    return self._begin(self._with_texts(made, current))
            except EdgeKDError as err:
                self._refuse(err, when, named, digest)
                raise
            said = f"the text is that of version {current.version}, by {current.who}"
            if self._allowance.take():
                self._tell("unchanged", when, named, self.version, digest, said)
            return current

    def close(self) -> None:
        """Let another process have the store; safe to call twice. What was read stays usable.

        The trail gets a last line where refusals were not written, unless the disk is full.
        """
        with self._writing:
            if self._held >= 0 and self._allowance.kept_back:
                with contextlib.suppress(EdgeKDError):  # a full disk holds no end up
                    said, digest = "the store was closed", self._digest()
                    self._tell("closed", self._when(), None, self.version, digest, said)
            self._trail.close()
            if self._held >= 0:
                os.close(self._held)
                self._held = -1

    def __enter__(self) -> RuleStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require(self, expected: int | None) -> None:
        if expected is not None and expected != self.version:
            current = self._current
            found = f"version {current.version}, by {current.who}" if current else "no rules"
            raise ConflictError(
                f"the change is meant for version {expected}, and in force is {found}; read the "
                "rules again, and put the change on top of them"
            )

    def _begin(self, made: RuleSet) -> RuleSet:
        """Bring a version to the disk, in the order of the module's docstring, and swap."""
        self._next += 1  # a number that failed half way is not given to another text
        text, meta = self._files(made.version)
        said = _Meta(
            schema=1, version=made.version, before=self.version, sha256=made.digest,
            policy_sha256=made.policy.digest, policy=made.policy.name, who=made.who, when=made.when,
        )  # fmt: skip
        content = canonical_json(said.model_dump(mode="json", by_alias=True)).encode()
        rules, zones = len(made.policy.rules), len(made.policy.zones)
        sentence = f"version {made.version} of '{made.policy.name}': {rules} rules, {zones} zones"
        try:
            _publish(text, made.text)
            _publish(meta, content)
            self._tell("accepted", made.when, made.who, made.version, made.digest, sentence)
            try:
                write_json(
                    self.folder / CURRENT_NAME,
                    {"schema": 1, "version": made.version, "sha256": made.digest,
                     "meta_sha256": sha256_bytes(content)},
                )  # fmt: skip
            except (OSError, OutputError):
                self._trail.take_back()
                raise
        except OSError as err:
            raise OutputError(f"{self.folder} cannot be written: {err.strerror or err}") from err
        self._current = made
        return made

    def _digest(self) -> str | None:
        return None if self._current is None else self._current.digest

    def _refuse(self, err: EdgeKDError, when: str, who: str | None, digest: str | None) -> None:
        if not self._allowance.take():
            return
        try:
            self._tell("refused", when, who, self.version, digest, str(err))
        except OutputError as full:
            if not isinstance(err, OutputError):  # then that one says it
                raise full from err

    def _tell(
        self,
        event: Literal["accepted", "unchanged", "refused", "opened", "closed"],
        when: str,
        who: str | None,
        after: int,
        digest: str | None,
        sentence: str,
        before: int | None = None,
    ) -> None:
        self._trail.append(
            Event(
                when=when, who=who, event=event, digest=digest,
                sentence=sentence + self._allowance.told(),
                version_before=self.version if before is None else before, version_after=after,
            )
        )  # fmt: skip
        self._allowance.kept_back = 0

    # -- opening

    def _state(self) -> _Current:
        """What ``current.json`` says; a folder that holds nothing yet gets one."""
        place = self.folder / CURRENT_NAME
        if not place.exists():
            others = sorted(p.name for p in self.folder.iterdir() if not p.name.startswith("."))
            if others:
                raise InputError(
                    f"{place} is missing beside {', '.join(others[:4])}, so nothing says which "
                    "rules are in force; put it back, or give an empty folder"
                )
            empty = {"schema": 1, "version": 0, "sha256": None, "meta_sha256": None}
            write_json(place, empty)
            sync(self.folder.parent)
        return _document(_Current, place)

    def _open(self, state: _Current) -> None:
        if state.version:
            self._current = self._load(state)
        last = next(iter(self._trail.last(1)), None)
        told = 0 if last is None else last.version_after
        begun = last is not None and (last.event, last.version_before) == (
            "accepted",
            state.version,
        )
        if told > state.version and not begun:
            raise InputError(
                f"{self.folder / CURRENT_NAME} says version {state.version}, and {AUDIT_NAME} that "
                f"{told} was in force after it; put back the {CURRENT_NAME} of that version"
            )
        names = (
            p.stem for p in (self.folder / VERSIONS_NAME).glob("*") if re.fullmatch(r"\d+", p.stem)
        )
        self._next = 1 + max([state.version, told, *map(int, names)])
        said: list[str] = []
        if self._trail.torn is not None:
            said.append(f"a line without its end was put aside in {self._trail.torn.name}")
        if told > state.version:
            said.append(f"version {told} is not in force: the process ended before it was")
        elif told < state.version:
            said.append(f"the trail did not tell of version {state.version}, which is in force")
        if said:
            digest, sentence = self._digest(), "; ".join(said)
            self._tell("opened", self._when(), None, state.version, digest, sentence, told)

    def _load(self, state: _Current) -> RuleSet:
        text, meta = self._files(state.version)
        for path, expected in ((text, state.sha256), (meta, state.meta_sha256)):
            found = sha256_bytes(read_bytes(path))
            if found != expected:
                raise InputError(
                    f"{path} was changed or damaged: its SHA-256 is {found[:12]}, and "
                    f"{CURRENT_NAME} says {str(expected)[:12]}; put the file back, older rules are "
                    "not taken in its place"
                )
        said = _document(_Meta, meta)
        try:
            made = self._made(read_bytes(text), state.version, said.who, said.when)
            # a clock that is not set yet must not look for faults in the past
            put = datetime.datetime.fromisoformat(said.when)
            made.check(self._day(self._now() if self._trust_clock else max(self._now(), put)))
            made = self._with_texts(made, None)
        except InputError as err:
            raise InputError(
                f"{text}, which is in force, does not fit this product: {err}; serve the product "
                "that it was made for, or give an empty folder and put rules for this one"
            ) from err
        return made

    def _made(self, data: bytes, version: int, who: str, when: str) -> RuleSet:
        policy = parse_rules(data)
        compiled = Compiled(policy, self._product)
        return RuleSet(
            version, sha256_bytes(data), who, when, data, policy, {}, compiled, self.today
        )

    def _with_texts(self, made: RuleSet, before: RuleSet | None) -> RuleSet:
        """With the embeddings of its texts; those that the version before had are taken over."""
        texts = made.policy.texts
        known: dict[str, Float32] = {}
        if before is not None:
            known = {before.policy.texts[zone]: row for zone, row in before.embeddings.items()}
        new = [words for words in dict.fromkeys(texts.values()) if words not in known]
        if new:
            if self._embed is None:
                raise InputError(
                    f"the rules have texts of zones ({', '.join(list(texts)[:4])}), and the bundle "
                    "has nothing that reads texts; leave out 'texts'"
                )
            rows = self._embed(new)
            rows.setflags(write=False)  # many hold them
            known |= dict(zip(new, rows, strict=True))
        return replace(made, embeddings={zone: known[words] for zone, words in texts.items()})

    def _files(self, version: int) -> tuple[Path, Path]:
        """Places of a version's text, and of who and when."""
        base = self.folder / VERSIONS_NAME / f"{version:06d}"
        return base.with_suffix(".yaml"), base.with_suffix(".json")

    def _now(self) -> datetime.datetime:
        now = self._clock()
        if now.tzinfo is None:
            raise InputError(f"the clock says {now}, and not of which time zone that is")
        return now

    def _when(self) -> str:
        return self._now().astimezone(datetime.timezone.utc).isoformat(timespec="milliseconds")


def _document(kind: type[D], path: Path) -> D:
    value: Any = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: expected an object")
    return parse_document(kind, value, {}, str(path))


def _publish(path: Path, content: bytes) -> None:
    with publish_file(path) as part:
        part.write_bytes(content)


def _name(who: str) -> str:
    """Who puts rules: what may stand in a line of a log."""
    if not isinstance(who, str) or not who.strip() or len(who) > _WHO_MOST or not who.isprintable():
        raise InputError(
            f"who is {str(who)[:80]!r}, expected one line of 1 to {_WHO_MOST} printable characters"
        )
    return who


def _zone(name: str) -> datetime.tzinfo:
    if name == "UTC":  # needs no table
        return datetime.timezone.utc
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as err:
        if not zoneinfo.available_timezones():
            raise EnvironmentLacksError(
                f"this machine has no table of time zones, so '{name}' means nothing; install "
                "tzdata (apt install tzdata, or pip install tzdata), or use UTC"
            ) from err
        raise InputError(
            f"there is no time zone '{name}'; expected a name like Europe/Lisbon, or UTC"
        ) from err


def _hold(folder: Path) -> int:
    """Make and lock a folder; the lock ends with the process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = os.open(folder, os.O_RDONLY)  # itself locked: no file is left behind
    except OSError as err:
        raise OutputError(f"the store {folder} cannot be made: {err.strerror}") from err
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        with contextlib.suppress(OSError):
            os.close(number)
        if err.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise EnvironmentLacksError(
                f"another process has the rules in {folder}; stop it, or give another folder"
            ) from err
        raise EnvironmentLacksError(
            f"the file system of {folder} has no locks ({err.strerror}), so two processes could "
            "change the rules at once; give a folder on another"
        ) from err
    return number
