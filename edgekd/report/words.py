"""What a record says, in words: rows for the terminal, for Markdown and for the page."""

from __future__ import annotations

import math
from typing import Any

from edgekd.report.answers import AnswersWindow
from edgekd.report.latency import LatencySummary
from edgekd.report.power import Figure, PowerPending, PowerRecord, WorkPower
from edgekd.report.record import BenchmarkRecord
from edgekd.telemetry.power import PowerUnavailable

STATUS = {"pass": "pass", "fail": "FAIL", "unknown": "not checkable"}
_DEVICE_FIELDS = {
    "board": "board",
    "module": "module",
    "cpu_model": "CPU",
    "arch": "architecture",
    "cores": "cores",
    "cores_usable": "cores usable",
    "cpu_quota_cores": "container CPU limit, cores",
    "memory_mib": "memory, MiB",
    "governor": "CPU governor",
    "frequency_mhz": "CPU clock before, MHz",
    "frequency_max_mhz": "CPU clock at most, MHz",
    "gpu_frequency_mhz": "GPU clock before, MHz",
    "gpu_frequency_max_mhz": "GPU clock at most, MHz",
    "power_mode": "power mode",
    "fan": "fan before",
    "temperatures_c": "temperatures before, °C",
    "load_1min": "load before, 1 min",
    "os": "operating system",
    "kernel": "kernel",
    "l4t": "L4T",
    "jetpack": "JetPack",
    "tensorrt": "TensorRT",
    "container": "container",
    "python": "Python",
    "edgekd": "edgekd",
    "hostname": "host name",
}


def banner(record: BenchmarkRecord) -> str:
    """One sentence on the validity of a record, for the top of every rendering."""
    unknown = [check.name for check in record.checks if check.status == "unknown"]
    rest = f" Not checkable here: {', '.join(unknown)}." if unknown else ""
    if isinstance(record.power, PowerRecord) and record.power.status == "replay":
        rest += f" Power is that of another time ({record.power.sensor.source}), not of this work."
    if isinstance(record.power, PowerRecord) and record.power.status == "estimate":
        rest += " Power is an estimate."
    failed = record.failed()
    if failed:
        reasons = "; ".join(f"{check.name}: {check.detail}" for check in failed)
        return f"NOT VALID, do not compare or quote these figures. {reasons}.{rest}"
    passed = sum(check.status == "pass" for check in record.checks)
    return f"Valid: {passed} checks passed.{rest}"


def _streams_rows(record: BenchmarkRecord) -> list[tuple[str, str]]:
    window = record.engine_streams
    if window is None:
        return []
    name = f"bare engine, {window.streams} calls at once"
    return [
        (f"{name}: tiles/s", figure(window.tiles_per_s)),
        (f"{name}: Mpx/s of tiles", figure(window.mpx_per_s)),
        (f"{name}: calls, window", f"{window.calls} in {window.duration_s:.1f} s"),
    ]


def result_rows(record: BenchmarkRecord) -> list[tuple[str, str]]:
    """Figures of a record as (name with unit, value)."""
    from edgekd.report.system_view import system_rows

    engine, summary = record.engine, record.engine.summary
    mpx = ("bare engine: Mpx/s of tiles", figure(engine.mpx_per_s))
    return [
        *latency_rows("bare engine: latency", summary),
        (f"bare engine: {record.unit}s/s", figure(engine.tiles_per_s)),
        *([mpx] if record.answers is None else []),
        ("bare engine: calls, window", f"{summary.n} in {engine.duration_s:.1f} s"),
        *_streams_rows(record),
        *(_scene_rows(record) if record.answers is None else answer_rows(record.answers)),
        ("end to end: share of time in the engine", percent(record.scene.engine_share)),
        ("end to end: what a run does", record.scene.what),
        ("end to end over bare engine", figure(record.ratio.end_to_end_over_engine)),
        *(_ratio_rows(record) if record.answers is None else []),
        ("peak memory of the process, MiB", f"{record.peak_rss_mib:.0f}"),
        *power_rows(record),
        *system_rows(record),
        ("CPU share of other processes", _or_reason(
            None if record.disturbance.other_cpu_share is None
            else percent(record.disturbance.other_cpu_share),
            record.disturbance.absent.get("other_cpu_share"),
        )),
        ("warm-up", record.warm_up.detail),
        ("input", _input(record)),
    ]  # fmt: skip


def latency_rows(name: str, summary: LatencySummary) -> list[tuple[str, str]]:
    """Percentiles, mean and extremes."""
    p99 = milliseconds(summary.p99_s)
    if summary.n < 100:
        p99 += f" (largest of {summary.n})"
    extremes = f"{milliseconds(summary.min_s)} to {milliseconds(summary.max_s)}"
    return [
        (f"{name} p50, ms", milliseconds(summary.p50_s)),
        (f"{name} p90, ms", milliseconds(summary.p90_s)),
        (f"{name} p99, ms", p99),
        (f"{name} mean, ms", milliseconds(summary.mean_s)),
        (f"{name} min to max, ms", extremes),
    ]


#: part of an answer -> what it is called
PARTS = {
    "picture": "picture read and decoded",
    "tensors": "inputs made",
    "model": "network and projection",
    "check": "held against the rules",
}


def answer_rows(answers: AnswersWindow) -> list[tuple[str, str]]:
    """Answers end to end, and their parts."""
    parts = []
    for part, called in PARTS.items():
        each: LatencySummary = getattr(answers, part)
        three = ", ".join(milliseconds(x) for x in (each.p50_s, each.p90_s, each.p99_s))
        parts.append((f"end to end: {called}, p50, p90, p99, ms", three))
    return [
        *latency_rows("end to end: one answer", answers.total),
        ("end to end: answers/s", figure(answers.answers_per_s)),
        ("end to end: answers", f"{answers.total.n} for {answers.places} places in turn"),
        *parts,
        ("rules in force", rules_words(answers)),
        *(
            []
            if answers.rules_s is None
            else [
                (
                    "what the rules cost, median of pairs of calls, ms",
                    f"{1e3 * answers.rules_s:+.3g}",
                )
            ]
        ),
        ("evidence", answers.evidence),
        ("texts", answers.text),
        *(
            [("SIMULATED", "the evidence or what was learned was computed, not measured")]
            if answers.simulated
            else []
        ),
    ]


def rules_words(answers: AnswersWindow) -> str:
    """Rules in force, or that there were none."""
    rules = answers.rules
    if rules is None:
        return "none"
    zones = ", ".join(f"{count} in {zone}" for zone, count in rules.rows.items())
    return f"{rules.name} ({rules.sha256[:12]}…) on {rules.day}: {zones}"


def _scene_rows(record: BenchmarkRecord) -> list[tuple[str, str]]:
    scene = record.scene
    runs = ", ".join(f"{run.total_s:.3g}" for run in scene.runs)
    return [
        ("end to end: Mpx/s of the input", figure(scene.unique_mpx_per_s)),
        ("end to end: tiles/s", figure(scene.tiles_per_s)),
        ("end to end: s per run", f"{runs} (median {scene.total_s:.3g})"),
        ("end to end: model calls at once", str(scene.streams)),
    ]


def _ratio_rows(record: BenchmarkRecord) -> list[tuple[str, str]]:
    ratio = record.ratio
    at_once = ratio.end_to_end_over_streams
    name = f"end to end over bare engine, {record.scene.streams} calls at once"
    return [
        *([] if at_once is None else [(name, figure(at_once))]),
        ("redundancy by overlap and border", figure(ratio.redundancy)),
        ("tiles end to end over bare engine", figure(ratio.tiles_over_engine)),
    ]


def check_rows(record: BenchmarkRecord) -> list[list[str]]:
    """Checks of a record as (name, verdict, detail)."""
    return [[check.name, STATUS[check.status], check.detail] for check in record.checks]


def device_rows(record: BenchmarkRecord) -> list[tuple[str, str]]:
    """Environment of a record as (name, value or why it is absent)."""
    environment = record.environment
    rows = []
    for field, name in _DEVICE_FIELDS.items():
        value = getattr(environment, field)
        if isinstance(value, list):
            value = ", ".join(f"{item:.0f}" for item in value)
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item:g}" for key, item in value.items())
        rows.append((name, _or_reason(value, environment.absent.get(field))))
    for name, version in environment.packages.items():
        rows.append((name, version or "not installed"))
    if isinstance(record.power, PowerUnavailable):
        for name, reason in record.power.sensors.items():
            rows.append((f"power sensor {name}", reason))
    return rows


def bundle_rows(record: BenchmarkRecord) -> list[tuple[str, str]]:
    """Provenance of the measured bundle as (name, value)."""
    bundle = record.bundle
    gates = ", ".join(f"{name} {'passed' if ok else 'FAILED'}" for name, ok in bundle.gates.items())
    asked = ", ".join(bundle.precision_asked)
    return [
        ("name", f"{bundle.name} ({bundle.title})" if bundle.title else bundle.name),
        ("student", bundle.student),
        ("precision", f"{bundle.precision} (allowed: {asked})"),
        ("target", f"{bundle.target} ({bundle.target_arch})"),
        ("what ran", ", ".join(f"{key} {value}" for key, value in bundle.backend.items())),
        ("tile, px", f"{bundle.tile_px} (overlap {bundle.overlap_px}, stride {bundle.stride_px})")
        if record.answers is None
        else ("picture, px", str(bundle.tile_px)),
        ("classes", ", ".join(bundle.classes)),
        ("gates of the build", gates or "none recorded"),
        ("tuned on", bundle.data_name),
        ("built", bundle.built_utc),
        ("model sha256", bundle.model_sha256),
        ("recipe sha256", bundle.recipe_sha256),
        ("checkpoint sha256", bundle.checkpoint_sha256),
    ]


#: of an evaluation: they stay in the record
_RAW_COUNTS = ("confusion", "confusion_by_sample")


def quality_tables(quality: dict[str, Any] | None) -> list[tuple[str, list[str], list[list[str]]]]:
    """Accuracy figures as tables (name, head, rows).

    Numbers at the top level are figures of the bundle. A nested mapping that shares their names
    (``{"iou": 0.6, "baselines": {"constant": {"iou": 0.2}}}``, or ``majority_class`` as
    :func:`edgekd.runtime.evaluate.evaluate_bundle` writes it) becomes a row to compare with;
    a list of mappings becomes a table of its own; the rest is listed as it stands.
    """
    if not quality:
        return []
    numbers = {key: value for key, value in quality.items() if _is_number(value)}
    others: dict[str, dict[str, Any]] = {}
    listed: list[list[str]] = []
    tables: list[tuple[str, list[str], list[list[str]]]] = []
    for key, value in quality.items():
        if key in numbers or key in _RAW_COUNTS:
            continue
        if isinstance(value, dict):
            nested = value if key == "baselines" else {key: value}
            for name, item in nested.items():
                if isinstance(item, dict) and any(_is_number(item.get(k)) for k in numbers):
                    others[f"baseline {name}" if key == "baselines" else name] = item
                else:
                    listed.append([f"{key}: {name}" if nested is value else key, plain(item)])
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            head = list(dict.fromkeys(column for row in value for column in row))
            rows = [[plain(row.get(column)) for column in head] for row in value]
            tables.append((f"Quality: {key}", [str(column) for column in head], rows))
        else:
            listed.append([str(key), plain(value)])
    shared = [key for key in numbers if any(key in item for item in others.values())]
    first: list[tuple[str, list[str], list[list[str]]]] = []
    if shared:
        rows = [["this bundle", *(plain(numbers[key]) for key in shared)]]
        rows += [[name, *(plain(item.get(key)) for key in shared)] for name, item in others.items()]
        first.append(("Quality beside baselines", ["", *shared], rows))
    alone = [[key, plain(value)] for key, value in numbers.items() if key not in shared]
    if alone or listed:
        first.append(("Quality" if not shared else "Quality: more", ["", ""], [*alone, *listed]))
    return [*first, *tables]


def power_rows(record: BenchmarkRecord) -> list[tuple[str, str]]:
    """Power and energy of a record as (name with unit, value); what was replayed or estimated
    says so in every name."""
    power = record.power
    if not isinstance(power, PowerRecord):
        return [("power", f"{power.status}: {power.reason}")]
    mark = power_mark(power)
    rows: list[tuple[str, str]] = []
    if power.idle is not None:
        rows.append((f"power{mark}: idle, W", interval(power.idle.mean_w)))
    for name, work in (("bare engine", power.engine), ("end to end", power.scene)):
        if work is None:
            why = power.without["engine" if name == "bare engine" else "scene"]
            rows.append((f"power{mark}: {name}", f"unavailable: {why}"))
        else:
            rows += _work_rows(f"{name}{mark}", work, record.unit)
    return [*rows, (f"power{mark}: sensor", sensor_words(power))]


def _work_rows(name: str, work: WorkPower, unit: str) -> list[tuple[str, str]]:
    spread = f"p50 {work.p50_w:.4g}, p95 {work.p95_w:.4g}, max {work.max_w:.4g}"
    rows = [
        (f"{name}: power, W", f"{interval(work.mean_w)}; {spread}"),
        (f"{name}: {unit}s/s in the windows of power", figure(work.tiles_per_s)),
        (f"{name}: energy per {unit}, J", interval(work.gross_j_per_tile)),
    ]
    named = [(f"net of idle, per {unit}, J", work.net_j_per_tile)]
    of_maps = unit == "tile"  # a map is made of pixels; a place is no number of them
    if of_maps:
        named += [
            ("energy per Mpx, J", work.gross_j_per_mpx),
            ("net of idle, per Mpx, J", work.net_j_per_mpx),
            ("energy per km², J", work.gross_j_per_km2),
            ("net of idle, per km², J", work.net_j_per_km2),
        ]
    rows += [(f"{name}: {what}", interval(value)) for what, value in named if value is not None]
    rows.append((f"{name}: {unit}s per J", per_joule(work)))
    return rows


def per_joule(work: WorkPower) -> str:
    """Tiles per joule, where any was drawn."""
    return "no energy was drawn" if work.tiles_per_j is None else figure(work.tiles_per_j)


def power_mark(power: PowerRecord | PowerPending | PowerUnavailable) -> str:
    """`` (replay)`` or `` (estimate)`` behind a name; nothing behind what was measured."""
    return f" ({power.status})" if power.status in ("replay", "estimate") else ""


def sensor_words(power: PowerRecord) -> str:
    """What must stand beside a figure: sensor, scope, what is added, step, lag, interval."""
    sensor = power.sensor
    step = "unknown" if sensor.resolution_w is None else f"{sensor.resolution_w:g} W"
    lag = "unknown" if sensor.lag_s is None else f"{sensor.lag_s:g} s"
    if sensor.lag_s is not None and "lag" in sensor.config:
        lag += f" ({sensor.config['lag']})"
    dropped = ", ".join(f"{count} {kind}" for kind, count in power.dropped.items())
    return (
        f"{sensor.name}, {sensor.source}, scope {sensor.scope}: {' + '.join(sensor.total)}; "
        f"step {step}, lag {lag}, a sample every {power.interval_s:.3g} s"
        + (f"; lines dropped: {dropped}" if dropped else "")
    )


def interval(value: Figure) -> str:
    """``8.31 ± 0.12``: a value and half its 95 % interval, with as many digits as that allows."""
    half = value.half
    if half <= 0:
        return figure(value.value)
    digits = max(0, 1 - math.floor(math.log10(half))) if half < 100 else 0
    return f"{value.value:,.{digits}f} ± {half:.{digits}f}"


def device_name(record: BenchmarkRecord) -> str:
    environment = record.environment
    return environment.board or environment.cpu_model or environment.arch


def _input(record: BenchmarkRecord) -> str:
    used = record.input
    bands = f", bands {','.join(map(str, used.bands))}" if used.bands else ""
    return f"{used.name}, {used.width_px} x {used.height_px} px{bands}"


def _or_reason(value: Any, reason: str | None) -> str:
    return f"unavailable: {reason}" if value is None else str(value)


def milliseconds(seconds: float) -> str:
    return figure(seconds * 1e3)


def figure(value: float) -> str:
    """Three significant digits, without an exponent for the sizes that occur."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def plain(value: Any) -> str:
    """A free-form value as text; floats with four significant digits."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value)
    return str(value)
