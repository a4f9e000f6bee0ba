"""What can hold a machine back, looked at before, during and after a measurement.

Sources (kernel documentation): cpufreq (kHz), ``/sys/class/devfreq`` (Hz), ``/sys/class/thermal``
(m°C; cooling devices), hwmon (``pwm1`` 0-255, ``fan1_input`` rpm, alarms), ``thermal_throttle`` of
x86; ``vcgencmd get_throttled`` of Raspberry Pi's firmware; NVIDIA's ``*-throttle-alert`` cooling
devices and ``bwmgr``. Files are found once and then only read, so that a look each second costs
little; processes (``nvpmodel``, ``vcgencmd``) are asked before and after alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from edgekd.contracts.board import Absent, find_program
from edgekd.telemetry.boards import Described
from edgekd.telemetry.modes import read_mode

_GPU = ("gpu", "ga10b", "gv11b", "gp10b", "gm20b")
#: nvpmodel limits the memory's clock too, but only root may read it where it is not in devfreq
_EMC = ("sys/kernel/debug/bpmp/debug/clk/emc/rate", "sys/kernel/debug/clk/emc/clk_rate")
#: a sensor that is off reads -256 °C
_OFF_C = -100.0
#: get_throttled: bit -> now; 16 more is the same since boot
PI_BITS = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}
_PI_ANSWER = re.compile(r"^throttled=0x([0-9a-fA-F]{1,8})$", re.MULTILINE)
_LIMIT_S = 5.0
_LATER = "looked at before and after alone"


class State(Described):
    """A machine at one moment; null fields have their reason in ``absent``.

    Attributes:
        at_s: monotonic clock, s.
        power_mode: name of the power mode.
        cpu_mhz, cpu_min_mhz, cpu_max_mhz: clock of now, and its limits, by core; cores that are
            off are not there.
        governors: by core.
        gpu_mhz, gpu_min_mhz, gpu_max_mhz: likewise.
        emc_mhz: clock of a Jetson's memory.
        fans: by chip and file: ``pwm1`` 0-255, ``fan1_input`` and ``rpm`` in turns a minute.
        temperatures_c: by thermal zone; zones that are off or cannot be read are not there.
        throttling: what holds clocks down at this moment.
        throttle_counts: counters since boot.
        pi_throttled: ``get_throttled`` of a Raspberry Pi, see :data:`PI_BITS`.
    """

    at_s: float
    power_mode: str | None
    cpu_mhz: dict[str, float] | None
    cpu_min_mhz: dict[str, float] | None
    cpu_max_mhz: dict[str, float] | None
    governors: dict[str, str] | None
    gpu_mhz: float | None
    gpu_min_mhz: float | None
    gpu_max_mhz: float | None
    emc_mhz: float | None
    fans: dict[str, float] | None
    temperatures_c: dict[str, float] | None
    throttling: list[str] | None
    throttle_counts: dict[str, int] | None
    pi_throttled: int | None


def read_state(root: Path = Path("/")) -> State:
    """All of the state of now."""
    return StateReader(root).read()


class StateReader:
    """Knows where the files of a machine are.

    Args:
        root: where the file system begins; another folder in tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        cpu = root / "sys/devices/system/cpu"
        cores = sorted(cpu.glob("cpu[0-9]*"), key=lambda path: int(re.sub(r"\D", "", path.name)))
        self._cores = {path.name: path / "cpufreq" for path in cores}
        self._counters = {
            f"{path.parent.parent.name} {path.name}": path
            for path in sorted(cpu.glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))
        }
        devices = sorted((root / "sys/class/devfreq").glob("*"))
        gpus = [path for path in devices if any(word in path.name for word in _GPU)]
        gpus = [path for path in gpus if "nvd" not in path.name]  # Thor's video decoders
        self._gpu = gpus[0] if gpus else None
        memory = [path for path in devices if path.name == "bwmgr" or "emc" in path.name]
        self._emc = [path / "cur_freq" for path in memory] + [root / name for name in _EMC]
        thermal = root / "sys/class/thermal"
        self._zones = _typed(thermal.glob("thermal_zone*"), "temp")
        self._cooling = {
            name: path
            for name, path in _typed(thermal.glob("cooling_device*"), "cur_state").items()
            if name.endswith("-throttle-alert") or name.startswith(("cpufreq-", "devfreq-"))
        }
        self._fans: dict[str, Path] = {}
        self._alarms: dict[str, Path] = {}
        chips = [*sorted((root / "sys/class/hwmon").glob("hwmon*")), root / "sys/devices/pwm-fan"]
        for chip in chips:
            name = _text(chip / "name") or chip.name
            for file in ("pwm1", "fan1_input", "rpm", "cur_pwm"):
                if (chip / file).exists():
                    self._fans[f"{name} {file}"] = chip / file
            if name == "rpi_volt" and (chip / "in0_lcrit_alarm").exists():
                self._alarms["under-voltage (rpi_volt)"] = chip / "in0_lcrit_alarm"
        for path in sorted(root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/curr*_alarm")):
            channel, kind, _ = path.name.removeprefix("curr").split("_", 2)
            rail = _text(path.parent / f"in{channel}_label") or f"channel {channel}"
            limit = {"crit": "critical", "max": "average"}.get(kind, kind)
            self._alarms[f"{rail} over its {limit} current limit"] = path

    def read(self, *, whole: bool = True) -> State:
        """The state of now.

        Args:
            whole: also what changes seldom or needs a process: mode, limits, counters.
        """
        absent: dict[str, str] = {}

        def got(field: str, value: object, why: str, seldom: bool = False) -> object:
            if seldom and not whole:
                value, why = None, _LATER
            if value is None or value == {}:
                absent[field] = why
                return None
            return value

        values: dict[str, object] = {"at_s": time.monotonic()}
        for field, file in (("cpu_mhz", "scaling_cur_freq"), ("cpu_min_mhz", "scaling_min_freq"),
                            ("cpu_max_mhz", "scaling_max_freq")):  # fmt: skip
            seldom = field != "cpu_mhz"
            clocks = _numbers(self._cores, 1e-3, f"/{file}") if whole or not seldom else {}
            values[field] = got(field, clocks, f"no core has a readable cpufreq/{file}", seldom)
        governors = {}
        if whole:
            texts = {name: _text(path / "scaling_governor") for name, path in self._cores.items()}
            governors = {name: text for name, text in texts.items() if text}
        why = "no core has a readable cpufreq/scaling_governor"
        values["governors"] = got("governors", governors, why, True)
        for field, file in (("gpu_mhz", "cur_freq"), ("gpu_min_mhz", "min_freq"),
                            ("gpu_max_mhz", "max_freq")):  # fmt: skip
            seldom = field != "gpu_mhz"
            path = self._gpu / file if self._gpu and (whole or not seldom) else None
            why = f"no GPU with a readable {file} is at /sys/class/devfreq"
            values[field] = got(field, _first([path], 1e-6), why, seldom)
        why = "the memory's clock is not readable here; below /sys/kernel/debug it needs root"
        values["emc_mhz"] = got("emc_mhz", _first(self._emc, 1e-6), why)
        values["fans"] = got("fans", _numbers(self._fans), "no fan is at /sys/class/hwmon")
        degrees = _numbers(self._zones, 1e-3)
        degrees = {name: value for name, value in degrees.items() if value > _OFF_C}
        why = "no thermal zone can be read at /sys/class/thermal"
        values["temperatures_c"] = got("temperatures_c", degrees, why)
        counts = _numbers(self._counters) if whole else {}
        why = "no core has thermal_throttle counters"
        whole_counts = {name: int(value) for name, value in counts.items()}
        values["throttle_counts"] = got("throttle_counts", whole_counts, why, True)
        active = [*_numbers(self._cooling).items(), *_numbers(self._alarms).items()]
        held: list[str] | None = [name for name, value in active if value > 0] if active else None
        mode, flags = None, None
        if whole:
            try:
                mode = read_mode(self._root).name
            except Absent as err:
                absent["power_mode"] = str(err)
            try:
                flags = ask_pi(self._root)
                held = (held or []) + [
                    f"{text} (get_throttled)" for bit, text in PI_BITS.items() if flags >> bit & 1
                ]
            except Absent as err:
                absent["pi_throttled"] = str(err)
        values["power_mode"] = got("power_mode", mode, absent.get("power_mode", ""), True)
        values["pi_throttled"] = got("pi_throttled", flags, absent.get("pi_throttled", ""), True)
        why = "nothing here tells of throttling: no throttle alert, no alarm, no firmware to ask"
        if self._counters:
            why = "only counters since boot tell of throttling here"
        values["throttling"] = got("throttling", held, why)
        return State.model_validate({**values, "absent": absent})


def ask_pi(root: Path = Path("/")) -> int:
    """``vcgencmd get_throttled`` of a Raspberry Pi.

    Raises:
        Absent: there is no vcgencmd, or its answer is no value; it may end with 0 all the same.
    """
    program = find_program(root, "vcgencmd")
    if program is None:
        raise Absent("there is no vcgencmd; it belongs to Raspberry Pi OS")
    try:
        done = subprocess.run(
            [program, "get_throttled"], stdin=subprocess.DEVNULL, capture_output=True,
            timeout=_LIMIT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as err:
        raise Absent(f"vcgencmd get_throttled: {err}") from err
    text = done.stdout.decode("utf-8", errors="replace").strip()
    match = _PI_ANSWER.search(text)
    if match is None:
        said = " ".join((text or done.stderr.decode("utf-8", errors="replace")).split())[:80]
        raise Absent(f"vcgencmd get_throttled gives no value: {said!r}")
    return int(match[1], 16)


def compare(
    before: State, after: State, during: Sequence[State] = (), *, looked: bool = True
) -> dict[str, list[str]]:
    """What happened, by the name of a check: ``throttled``, ``mode_changed``, ``clocks_changed``.

    An empty list is nothing; a name that is not there cannot be told on this machine. Clocks are
    their limits and the governor: that a governor moves a clock is its work. What a Raspberry Pi
    keeps since boot counts when it is new; where it was kept before already, and nothing else
    tells, "nothing" would be a guess. Alerts and alarms tell of the moment of a look and keep
    nothing: one that is on holds the machine back then, whatever was before.

    Args:
        before, after: whole states.
        during: looks in between.
        looked: False where the looks ended before their time: what they did not see may have
            been.
    """
    told: dict[str, list[str]] = {}
    throttled = _throttled(before, after, during, looked)
    if throttled is not None:
        told["throttled"] = throttled
    if before.power_mode is not None and after.power_mode is not None:
        changed = before.power_mode != after.power_mode
        text = f"the power mode went from {before.power_mode} to {after.power_mode}"
        told["mode_changed"] = [text] if changed else []
    clocks = _clocks_changed(before, after)
    if clocks is not None:
        told["clocks_changed"] = clocks
    return told


def _throttled(
    before: State, after: State, during: Sequence[State], looked: bool
) -> list[str] | None:
    looks = [state for state in (*during, after) if state.throttling is not None]
    moments: dict[str, list[float]] = {}
    for state in looks:
        for text in state.throttling or []:
            moments.setdefault(text, []).append(state.at_s - before.at_s)
    said = [
        f"{text}: in {len(times)} of {len(looks)} looks, first after {times[0]:.0f} s"
        for text, times in moments.items()
    ]
    knows = bool(looks) and looked
    old, new = before.throttle_counts, after.throttle_counts
    if old is not None and new is not None:
        knows = True
        rises = {name: new[name] - old[name] for name in old if new.get(name, 0) > old[name]}
        said += [f"{name} rose by {rise}" for name, rise in rises.items()]
    if before.pi_throttled is not None and after.pi_throttled is not None:
        fresh = after.pi_throttled & ~before.pi_throttled
        said += [f"{text}, kept since then (get_throttled)"
                 for bit, text in PI_BITS.items() if fresh >> bit + 16 & 1]  # fmt: skip
        knows = not before.pi_throttled >> 16 & 0xF
    return said if said or knows else None


def _clocks_changed(before: State, after: State) -> list[str] | None:
    said, knows = [], False
    for field, what in (("cpu_max_mhz", "highest clock"), ("cpu_min_mhz", "lowest clock"),
                        ("governors", "governor")):  # fmt: skip
        old, new = getattr(before, field), getattr(after, field)
        if old is None or new is None:
            continue
        knows = True
        groups: dict[tuple[object, object], list[str]] = {}
        for core in {**old, **new}:
            pair = (old.get(core, "off"), new.get(core, "off"))
            if pair[0] != pair[1]:
                groups.setdefault(pair, []).append(core)
        unit = "" if field == "governors" else " MHz"
        said += [f"{what} of {', '.join(cores)} went from {_shown(pair[0])} to "
                 f"{_shown(pair[1])}{unit}" for pair, cores in groups.items()]  # fmt: skip
    for field, what in (("gpu_max_mhz", "highest"), ("gpu_min_mhz", "lowest")):
        old, new = getattr(before, field), getattr(after, field)
        if old is None or new is None:
            continue
        knows = True
        if old != new:
            said.append(f"{what} GPU clock went from {_shown(old)} to {_shown(new)} MHz")
    return said if knows else None


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


class StateWatch:
    """Looks at the state all the time while a ``with`` block runs.

    Args:
        root: see :class:`StateReader`.
        interval_s: between two looks, s.

    Attributes:
        before: whole state at the beginning.
        during: what changes fast, each ``interval_s``.
        after: whole state at the end; None until then.
        failure: why the looks ended before their time; empty where they did not.
    """

    before: State

    def __init__(self, root: Path = Path("/"), *, interval_s: float = 1.0) -> None:
        self._root, self._interval = root, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="edgekd-state", daemon=True)
        self.during: list[State] = []
        self.after: State | None = None
        self.failure = ""

    def __enter__(self) -> StateWatch:
        self._reader = StateReader(self._root)
        self.before = self._reader.read()
        self._thread.start()
        return self

    def _look(self) -> None:
        try:
            while not self._stop.wait(self._interval):
                self.during.append(self._reader.read(whole=False))
        except Exception as err:  # noqa: BLE001 (told by failure: the measurement goes on)
            self.failure = f"the state could not be looked at: {type(err).__name__}: {err}"

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.after = read_state(self._root)  # cores that came since are found

    def changes(self) -> dict[str, list[str]]:
        """See :func:`compare`; of what was seen so far while it still runs."""
        after = self.after or self._reader.read()
        return compare(self.before, after, list(self.during), looked=not self.failure)


def _text(path: Path | str) -> str | None:
    """A small file; None where it cannot be read. Cores and sensors go off at any time."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.read(handle, 4096).decode("ascii", errors="replace").strip() or None
        finally:
            os.close(handle)
    except OSError:
        return None


def _numbers(files: dict[str, Path], scale: float = 1.0, file: str = "") -> dict[str, float]:
    found = {}
    for name, path in files.items():
        try:
            found[name] = round(int(_text(f"{path}{file}") or "") * scale, 4)
        except ValueError:
            continue
    return found


def _first(files: Iterable[Path | None], scale: float) -> float | None:
    for path in files:
        found = _numbers({"": path}, scale) if path else {}
        if found:
            return found[""]
    return None


def _typed(folders: Iterable[Path], file: str) -> dict[str, Path]:
    """``file`` of thermal zones or cooling devices by their type; a second of a type by both."""
    found: dict[str, Path] = {}
    for folder in sorted(folders, key=lambda path: int(re.sub(r"\D", "", path.name) or "0")):
        name = _text(folder / "type")
        if name:
            found[name if name not in found else f"{name} ({folder.name})"] = folder / file
    return found
