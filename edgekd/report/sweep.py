"""One measurement in each power mode of a Jetson."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from edgekd.errors import EnvironmentLacksError
from edgekd.report.record import BenchmarkRecord
from edgekd.telemetry.modes import Mode, known_modes, restored_mode, set_mode


@dataclass
class Sweep:
    """What came of it.

    Attributes:
        records: by the mode's name, in the order of the modes.
        skipped: modes that could not be set -> why.
    """

    records: dict[str, BenchmarkRecord] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def sweep_modes(
    measure: Callable[[Mode], BenchmarkRecord], say: Callable[[str], None] = lambda text: None
) -> Sweep:
    """Set each mode, measure in it, and put the old one back whatever happens.

    A mode that cannot be set (some need a reboot) is skipped with its reason.

    Args:
        measure: makes a record in the mode that is set.
        say: is told of each mode.

    Raises:
        EnvironmentLacksError: no modes can be set here, or the old one could not be put back.
    """
    found = Sweep()
    with restored_mode() as old:
        modes = known_modes()
        for number, mode in enumerate(modes, 1):
            say(f"mode {mode.name} ({number} of {len(modes)}; {old.name} is put back at the end)")
            try:
                set_mode(mode)
            except EnvironmentLacksError as err:
                found.skipped[mode.name] = str(err)
                say(f"skipped {mode.name}: {err}")
                continue
            found.records[mode.name] = measure(mode)
    return found
