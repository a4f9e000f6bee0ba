"""Verdicts of the checks in the order in which a reader needs them, and what to do about them."""

from __future__ import annotations

from edgekd.report.record import BenchmarkRecord, Check

#: check -> what to do when it failed
ADVICE = {
    "outputs_right": "Build the bundle again on this machine; do not use this one.",
    "device_fits": "Build for this machine's target, or measure on the machine it was built for.",
    "enough_samples": "Measure longer: --seconds and --repeats.",
    "warm_up_steady": "Warm up longer (--warmup), and look for what else runs.",
    "latency_steady": "Let the machine cool, warm up longer, and look at clocks and fan.",
    "repeats_agree": "Measure again on an idle machine; if it stays, look at the disk.",
    "not_disturbed": "End what else runs on the machine and measure again.",
    "frequency_stable": "Set the governor to performance or lock the clocks (jetson_clocks).",
    "clock_sound": "Measure on a machine whose monotonic clock is sound.",
    "not_throttled": "Cool the machine, use a stronger supply or a lower power mode.",
    "mode_unchanged": "Set the power mode beforehand and leave it alone while measuring.",
    "clocks_unchanged": "Lock the clocks beforehand and leave them alone while measuring.",
    "power_sampled": "Look why the sensor stopped (edgekd doctor names it), then measure again.",
    "power_windows": "Measure longer (--seconds), so that each window outlasts the sensor's lag.",
    "power_steady": "Warm up longer (--warmup), until temperature and power are flat.",
    "idle_steady": "Let the machine come to rest before and behind; end what else runs.",
    "synchronised": "Look whether the sensor reads this machine, and at the clock of the meter.",
}
_ORDER = {"fail": 0, "unknown": 1, "pass": 2}


def ordered(record: BenchmarkRecord) -> list[Check]:
    """Failed checks first, then those that could not be made."""
    return sorted(record.checks, key=lambda check: _ORDER[check.status])


def next_steps(record: BenchmarkRecord) -> list[str]:
    """What to do about the failed checks, each advice once; empty for a valid record."""
    known = [ADVICE.get(check.name, f"See what {check.name} says.") for check in record.failed()]
    return list(dict.fromkeys(known))
