"""What a line of NVIDIA's ``tegrastats`` says, from JetPack 4 to 7.

The order of a line is not stable and everything but ``RAM`` may be missing, so it is read as
tokens: what is understood is taken, what is not is set aside by name. Forms: the lines in NVIDIA's
Jetson Linux Developer Guide ("tegrastats Utility"), and those of the boards themselves (tests).

Of the figures of a rail only the first is the power of the moment. The second is the arithmetic
mean since tegrastats began; the third (JetPack 7.2) is the highest. So the second is no power of
any window, but it tells when tegrastats began again.
"""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

#: what a thermal zone reads while its block is powered down
_OFF_C = -256.0
#: rails that are wired to nothing
_UNUSED_RAIL = "NC"


@dataclass(frozen=True)
class Rail:
    """A power rail.

    Attributes:
        now_mw: power of the moment; may be negative or zero (a rail that is off).
        mean_mw: mean since tegrastats began.
        peak_mw: highest since then, from JetPack 7.2.
    """

    now_mw: int
    mean_mw: int
    peak_mw: int | None = None


@dataclass(frozen=True)
class Clocked:
    """A core, the GPU, the memory or an engine.

    Attributes:
        load: share of its time that it is busy, percent; None where it does not tell.
        mhz: its clocks; several for a GPU of several clusters, none where it does not tell.
        off: powered down.
    """

    load: int | None = None
    mhz: tuple[int, ...] = ()
    off: bool = False


@dataclass
class Line:
    """What a line says.

    Attributes:
        epoch_s: stamp that jetsontools puts in front, s since 1970.
        wall: tegrastats' own stamp: local time, whole seconds (from JetPack 5).
        ram_mb, ram_total_mb, swap_mb, swap_total_mb: memory.
        cores: of the CPU, by number.
        units: ``GR3D``, ``GR3D2``, ``EMC`` and engines as ``VIC`` by name, without ``_FREQ``.
        temperatures_c: zone -> temperature; zones that are off are absent.
        rails: name -> power; empty where tegrastats shows none (JetPack 5 without root).
        understood: tokens that were read.
        aside: names of those that were not.
        form: names of all tokens in order.
        restarted: by the lines before, tegrastats began again with this one.
    """

    epoch_s: float | None = None
    wall: dt.datetime | None = None
    ram_mb: int | None = None
    ram_total_mb: int | None = None
    swap_mb: int | None = None
    swap_total_mb: int | None = None
    cores: tuple[Clocked, ...] = ()
    units: dict[str, Clocked] = field(default_factory=dict)
    temperatures_c: dict[str, float] = field(default_factory=dict)
    rails: dict[str, Rail] = field(default_factory=dict)
    understood: int = 0
    aside: tuple[str, ...] = ()
    form: tuple[str, ...] = ()
    restarted: bool = field(default=False, compare=False)


class Damaged(Exception):
    """Not one whole line of tegrastats; the text says what it is instead: "cut", "foreign" or
    "several in one"."""


_STAMP = re.compile(
    r"(?:(?P<epoch>\d{9,11}\.\d+)::)?"
    r"(?:(?P<month>\d\d)-(?P<day>\d\d)-(?P<year>\d{4}) (?P<time>\d\d:\d\d:\d\d) )?"
)
_MHZ = r"\d+(?:/\d+)?"  # asked for, or asked for / had
_CLOCK = rf"@(?:(?P<one>{_MHZ})|\[(?P<many>{_MHZ}(?:,{_MHZ})*)\])"
_BLOCKS = r"\(lfb \d+(?:x\d+)?[kM]B\)"
_NUMBER = r"-?\d+(?:\.\d+)?"
_ENGINE = r"MSENC|NVENC|NVDEC|NVJPG|NVDLA|PVA|VIC|OFA|APE|SE|TSEC|ISP|NVCSI|VI"


def _memory(line: Line, match: re.Match[str]) -> None:
    used, total = int(match["used"]), int(match["total"])
    if match["kind"] == "RAM":
        if line.ram_mb is not None:
            raise Damaged("several in one")
        line.ram_mb, line.ram_total_mb = used, total
    elif match["kind"] == "SWAP":
        line.swap_mb, line.swap_total_mb = used, total


def _cpu(line: Line, match: re.Match[str]) -> None:
    cores = []
    for text in match["cores"].split(","):
        load, _, clock = text.partition("%")
        if text == "off":
            cores.append(Clocked(off=True))
        else:
            mhz = _numbers(clock.lstrip("@") or match["all"] or "")
            cores.append(Clocked(int(load), mhz))
    line.cores = tuple(cores)


def _unit(line: Line, match: re.Match[str]) -> None:
    load, off = match["load"], match["off"]
    mhz = _numbers(match["many"] or match["one"] or match["bare"] or "")
    line.units[match["name"]] = Clocked(None if load is None else int(load), mhz, off is not None)


def _temperature(line: Line, match: re.Match[str]) -> None:
    value = float(match["now"])
    if value != _OFF_C:
        line.temperatures_c[match["name"]] = value


def _rail(line: Line, match: re.Match[str]) -> None:
    if match["name"] != _UNUSED_RAIL:
        peak = None if match["peak"] is None else int(match["peak"])
        line.rails[match["name"]] = Rail(int(match["now"]), int(match["mean"]), peak)


def _nothing(line: Line, match: re.Match[str]) -> None:
    """Understood, and of no use here."""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part.partition("/")[0]) for part in text.split(",") if part)


_Reader = Callable[[Line, "re.Match[str]"], None]
#: each token is followed by a space or by the end
_TOKENS: tuple[tuple[re.Pattern[str], _Reader], ...] = tuple(
    (re.compile(rf"(?:{pattern})(?=\s|$)"), reader)
    for pattern, reader in (
        (rf"(?P<kind>RAM) (?P<used>\d+)/(?P<total>\d+)MB {_BLOCKS}", _memory),
        (r"(?P<kind>SWAP) (?P<used>\d+)/(?P<total>\d+)MB \(cached \d+MB\)", _memory),
        (rf"IRAM \d+/\d+kB ?{_BLOCKS}", _nothing),
        (
            rf"(?:CPU|cpu) \[(?P<cores>(?:off|\d+%(?:@{_MHZ})?)(?:,(?:off|\d+%(?:@{_MHZ})?))*)\]"
            rf"(?:@(?P<all>{_MHZ}))?",
            _cpu,
        ),
        (r"MTS fg \d+% bg \d+%", _nothing),
        (
            rf"(?P<name>EMC|GR3D2?|(?:{_ENGINE})\d*)(?:_FREQ|_LOAD)? +(?=\S)"
            rf"(?:(?P<off>off)|(?P<bare>{_MHZ})|(?:(?P<load>\d+)%)?(?:{_CLOCK})?)",
            _unit,
        ),
        (rf"(?P<name>[A-Za-z]\w*)@(?P<now>{_NUMBER})C(?:/{_NUMBER}C)?", _temperature),
        (
            r"(?P<name>(?!RAM |SWAP |IRAM )[A-Z]\w*) "
            r"(?P<now>-?\d+)(?P<unit>mW|)/(?P<mean>-?\d+)(?P=unit)(?:/(?P<peak>-?\d+)(?P=unit))?",
            _rail,
        ),
    )
)
_WORD = re.compile(r"\S+")
_SPACE = re.compile(r"\s*")
#: a line ends in one of these; a number that ends it may have been longer
_ENDS = (_temperature, _rail)


def parse_line(text: str) -> Line:
    """Read a line.

    Args:
        text: without its line end; one that never had one is cut and none of this function's.

    Raises:
        Damaged: not one whole line.
    """
    stamp = _STAMP.match(text)
    assert stamp is not None  # all of it is optional
    line = Line(epoch_s=float(stamp["epoch"]) if stamp["epoch"] else None)
    try:
        if stamp["time"]:
            line.wall = dt.datetime.fromisoformat(
                f"{stamp['year']}-{stamp['month']}-{stamp['day']}T{stamp['time']}"
            )
    except ValueError as err:
        raise Damaged("foreign") from err
    if "\0" in text or not text.startswith("RAM ", stamp.end()):
        raise Damaged("foreign")
    place, last = stamp.end(), None
    form: list[str] = []
    aside: list[str] = []
    while place < len(text):
        match, last = next(
            ((match, reader) for token, reader in _TOKENS if (match := token.match(text, place))),
            (None, None),
        )
        if match is None or last is None:
            match = _WORD.match(text, place)
            assert match is not None  # spaces were skipped
            name = re.split(r"[@\[(/:,=]", match[0])[0]
            # the values of a name that is not known belong to it
            if re.match(r"[A-Za-z_]", name) or not aside or last is not None:
                aside.append(name)
                form.append(name)
        else:
            last(line, match)
            line.understood += 1
            form.append(match[0].split(" ")[0].split("@")[0])
        place = _SPACE.match(text, match.end()).end()  # type: ignore[union-attr]
    if line.ram_mb is None or last not in _ENDS:
        raise Damaged("cut")
    line.aside, line.form = tuple(aside), tuple(form)
    return line


@dataclass
class Counts:
    """What a stream consisted of.

    Attributes:
        lines: whole lines of tegrastats.
        damaged: others by what they were: "cut", "foreign", "several in one".
        understood: tokens that were read.
        aside: tokens that were not, by name.
        restarts: how often tegrastats began again.
    """

    lines: int = 0
    damaged: Counter[str] = field(default_factory=Counter)
    understood: int = 0
    aside: Counter[str] = field(default_factory=Counter)
    restarts: int = 0


class Reader:
    """Lines out of a stream of bytes that comes in any pieces.

    A line that is cut and yet ends, as when two processes write, is told by those before it: it
    begins as they do and ends early, or its last mean is none that could follow theirs. Where all
    that follow end so, too, that is how lines are now (rails are gone for a user who is not root).

    Attributes:
        counts: so far.
    """

    def __init__(self) -> None:
        self.counts = Counts()
        self._rest = b""
        self._before: Line | None = None
        self._short: tuple[str, ...] = ()  # form of the line that was dropped for it

    def feed(self, data: bytes) -> list[Line]:
        """The lines that ``data`` ends."""
        *ended, self._rest = (self._rest + data).split(b"\n")
        found = []
        for raw in ended:
            text = raw.decode("utf-8", errors="replace").rstrip("\r")
            if not text.strip():
                continue
            try:
                line = parse_line(text)
                self._compare(line)
            except Damaged as err:
                self.counts.damaged[str(err)] += 1
                continue
            self._before = line
            self.counts.lines += 1
            self.counts.understood += line.understood
            self.counts.aside.update(line.aside)
            found.append(line)
        return found

    def close(self) -> None:
        """The stream has ended; what never got its line end is cut."""
        if self._rest.strip():
            self.counts.damaged["cut"] += 1
        self._rest = b""

    def _compare(self, line: Line) -> None:
        """Against the line before.

        The n-th mean is the one before plus (now - it) / n: from the second line on it moves by
        half the difference at most.
        """
        before = self._before
        if before is None:
            return
        short, known = len(line.form), self._short
        self._short = ()
        if short < len(before.form) and before.form[:short] == line.form != known:
            self._short = line.form
            raise Damaged("cut")
        shared = [name for name in line.rails if name in before.rails]
        jumped = [name for name in shared if _jumps(before.rails[name], line.rails[name])]
        if shared and jumped == [shared[-1]] and line.form[-1] == shared[-1]:
            mean = str(line.rails[shared[-1]].mean_mw)
            if str(before.rails[shared[-1]].mean_mw).startswith(mean) or len(shared) > 1:
                raise Damaged("cut")
        if jumped and all(rail.now_mw == rail.mean_mw for rail in line.rails.values()):
            self.counts.restarts += 1
            line.restarted = True


def _jumps(before: Rail, now: Rail) -> bool:
    step = abs(now.now_mw - before.mean_mw)
    return abs(now.mean_mw - before.mean_mw) > step / 2 + 1.5  # each mean is rounded
