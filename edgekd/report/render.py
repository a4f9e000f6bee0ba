"""Records to one self-contained HTML page, or to Markdown.

The page holds its style, plots and pictures itself, loads nothing, follows the reader's light or
dark setting and fits a phone. Every text from a record is escaped. A record that is not valid
says so above its figures in every form, and no figure is ever averaged over records.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgekd.errors import InputError
from edgekd.report.plot import histogram_svg, series_svg
from edgekd.report.record import BenchmarkRecord

Picture = tuple[str, bytes]
_STATUS = {"pass": "pass", "fail": "FAIL", "unknown": "not checkable"}
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


def render_html(
    records: Sequence[BenchmarkRecord],
    pictures: Sequence[Picture] = (),
    title: str | None = None,
) -> str:
    """One HTML page.

    Args:
        records: at least one; two or more are also put side by side.
        pictures: (caption, PNG bytes), shown first.
        title: heading; made from the bundles' names if absent.

    Raises:
        InputError: no record, or a picture that is not PNG.
    """
    _some(records)
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = Path(__file__).with_name("template.html.j2").read_text(encoding="utf-8")
    page: str = environment.from_string(source).render(
        title=title or _title(records),
        pictures=[(caption, _data_uri(caption, data)) for caption, data in pictures],
        comparison=_comparison(records) if len(records) > 1 else None,
        records=[_view(record, markupsafe.Markup) for record in records],
    )
    return page


def render_markdown(records: Sequence[BenchmarkRecord]) -> str:
    """The same figures as Markdown, without plots and pictures.

    Raises:
        InputError: no record.
    """
    _some(records)
    parts = [f"# {_md(_title(records))}", ""]
    if len(records) > 1:
        parts += ["## Side by side", "", *_md_table(*_comparison(records)), ""]
    for record in records:
        parts += [f"## {_md(_heading(record))}", "", _md(_when(record)), ""]
        parts += [f"**{_md(banner(record))}**", ""]
        sections = [
            ("Result", ["", ""], [list(row) for row in result_rows(record)]),
            ("Checks", ["check", "verdict", "detail"], check_rows(record)),
            *[(name, head, rows) for name, head, rows in quality_tables(record.quality)],
            ("Device", ["", ""], [list(row) for row in device_rows(record)]),
            ("Bundle", ["", ""], [list(row) for row in bundle_rows(record)]),
        ]
        for name, head, rows in sections:
            parts += [f"### {_md(name)}", "", *_md_table(head, rows), ""]
        parts += [_md(record.ratio.definition), ""]
    return "\n".join(parts).rstrip() + "\n"


def banner(record: BenchmarkRecord) -> str:
    """One sentence on the validity of a record, for the top of every rendering."""
    unknown = [check.name for check in record.checks if check.status == "unknown"]
    rest = f" Not checkable here: {', '.join(unknown)}." if unknown else ""
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
        (f"{name}: tiles/s", _figure(window.tiles_per_s)),
        (f"{name}: Mpx/s of tiles", _figure(window.mpx_per_s)),
        (f"{name}: calls, window", f"{window.calls} in {window.duration_s:.1f} s"),
    ]


def result_rows(record: BenchmarkRecord) -> list[tuple[str, str]]:
    """Figures of a record as (name with unit, value)."""
    engine, scene, summary = record.engine, record.scene, record.engine.summary
    p99 = f"{_ms(summary.p99_s)}" + (f" (largest of {summary.n})" if summary.n < 100 else "")
    runs = ", ".join(f"{run.total_s:.3g}" for run in scene.runs)
    return [
        ("bare engine: latency p50, ms", _ms(summary.p50_s)),
        ("bare engine: latency p90, ms", _ms(summary.p90_s)),
        ("bare engine: latency p99, ms", p99),
        ("bare engine: latency mean, ms", _ms(summary.mean_s)),
        ("bare engine: latency min to max, ms", f"{_ms(summary.min_s)} to {_ms(summary.max_s)}"),
        ("bare engine: tiles/s", _figure(engine.tiles_per_s)),
        ("bare engine: Mpx/s of tiles", _figure(engine.mpx_per_s)),
        ("bare engine: calls, window", f"{summary.n} in {engine.duration_s:.1f} s"),
        *_streams_rows(record),
        ("end to end: Mpx/s of the input", _figure(scene.unique_mpx_per_s)),
        ("end to end: tiles/s", _figure(scene.tiles_per_s)),
        ("end to end: s per run", f"{runs} (median {scene.total_s:.3g})"),
        ("end to end: model calls at once", str(scene.streams)),
        ("end to end: share of time in the engine", _percent(scene.engine_share)),
        ("end to end: what a run does", scene.what),
        ("end to end over bare engine", _figure(record.ratio.end_to_end_over_engine)),
        *(
            []
            if record.ratio.end_to_end_over_streams is None
            else [(
                f"end to end over bare engine, {scene.streams} calls at once",
                _figure(record.ratio.end_to_end_over_streams),
            )]
        ),
        ("redundancy by overlap and border", _figure(record.ratio.redundancy)),
        ("tiles end to end over bare engine", _figure(record.ratio.tiles_over_engine)),
        ("peak memory of the process, MiB", f"{record.peak_rss_mib:.0f}"),
        ("power", f"{record.power.status}: {record.power.reason}"),
        ("CPU share of other processes", _or_reason(
            None if record.disturbance.other_cpu_share is None
            else _percent(record.disturbance.other_cpu_share),
            record.disturbance.absent.get("other_cpu_share"),
        )),
        ("warm-up", record.warm_up.detail),
        ("input", _input(record)),
    ]  # fmt: skip


def check_rows(record: BenchmarkRecord) -> list[list[str]]:
    """Checks of a record as (name, verdict, detail)."""
    return [[check.name, _STATUS[check.status], check.detail] for check in record.checks]


def device_rows(record: BenchmarkRecord) -> list[tuple[str, str]]:
    """Environment of a record as (name, value or why it is absent)."""
    environment = record.environment
    rows = []
    for field, name in _DEVICE_FIELDS.items():
        value = getattr(environment, field)
        if isinstance(value, list):
            value = ", ".join(f"{item:.0f}" for item in value)
        rows.append((name, _or_reason(value, environment.absent.get(field))))
    for name, version in environment.packages.items():
        rows.append((name, version or "not installed"))
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
        ("tile, px", f"{bundle.tile_px} (overlap {bundle.overlap_px}, stride {bundle.stride_px})"),
        ("classes", ", ".join(bundle.classes)),
        ("gates of the build", gates or "none recorded"),
        ("tuned on", bundle.data_name),
        ("built", bundle.built_utc),
        ("model sha256", bundle.model_sha256),
        ("recipe sha256", bundle.recipe_sha256),
        ("checkpoint sha256", bundle.checkpoint_sha256),
    ]


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
        if key in numbers:
            continue
        if isinstance(value, dict):
            nested = value if key == "baselines" else {key: value}
            for name, item in nested.items():
                if isinstance(item, dict) and any(_is_number(item.get(k)) for k in numbers):
                    others[f"baseline {name}" if key == "baselines" else name] = item
                else:
                    listed.append([f"{key}: {name}" if nested is value else key, _plain(item)])
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            head = list(dict.fromkeys(column for row in value for column in row))
            rows = [[_plain(row.get(column)) for column in head] for row in value]
            tables.append((f"Quality: {key}", [str(column) for column in head], rows))
        elif key != "confusion":  # the raw counts stay in the record
            listed.append([str(key), _plain(value)])
    shared = [key for key in numbers if any(key in item for item in others.values())]
    first: list[tuple[str, list[str], list[list[str]]]] = []
    if shared:
        rows = [["this bundle", *(_plain(numbers[key]) for key in shared)]]
        rows += [
            [name, *(_plain(item.get(key)) for key in shared)] for name, item in others.items()
        ]
        first.append(("Quality beside baselines", ["", *shared], rows))
    alone = [[key, _plain(value)] for key, value in numbers.items() if key not in shared]
    if alone or listed:
        first.append(("Quality" if not shared else "Quality: more", ["", ""], [*alone, *listed]))
    return [*first, *tables]


def _view(record: BenchmarkRecord, markup: Callable[[str], str]) -> dict[str, Any]:
    """What the template shows of one record; the plots are made of numbers only."""
    summary = record.engine.summary
    return {
        "heading": _heading(record),
        "when": _when(record),
        "valid": record.valid,
        "banner": banner(record),
        "tiles": [
            ("engine, median", _ms(summary.p50_s), "ms per tile"),
            ("engine", _figure(record.engine.tiles_per_s), "tiles/s"),
            ("end to end", _figure(record.scene.unique_mpx_per_s), "Mpx/s"),
            ("peak memory", f"{record.peak_rss_mib:.0f}", "MiB"),
            ("power", record.power.status, ""),
        ],
        "series": markup(series_svg(record)),
        "histogram": markup(histogram_svg(record)),
        "result": result_rows(record),
        "checks": [
            (check.name, check.status, _STATUS[check.status], check.detail)
            for check in record.checks
        ],
        "device": device_rows(record),
        "bundle": bundle_rows(record),
        "quality": quality_tables(record.quality),
        "definition": record.ratio.definition,
    }


def _comparison(records: Sequence[BenchmarkRecord]) -> tuple[list[str], list[list[str]]]:
    """One row per record; nothing is averaged."""
    head = [
        "bundle", "precision", "device", "valid", "p50, ms", "p99, ms", "tiles/s",
        "end to end, Mpx/s", "end to end / engine", "peak, MiB", "power",
    ]  # fmt: skip
    rows = [
        [
            record.bundle.name,
            record.bundle.precision,
            _device(record),
            "yes" if record.valid else "NO",
            _ms(record.engine.summary.p50_s),
            _ms(record.engine.summary.p99_s),
            _figure(record.engine.tiles_per_s),
            _figure(record.scene.unique_mpx_per_s),
            _figure(record.ratio.end_to_end_over_engine),
            f"{record.peak_rss_mib:.0f}",
            record.power.status,
        ]
        for record in records
    ]
    return head, rows


def _some(records: Sequence[BenchmarkRecord]) -> None:
    if not records:
        raise InputError("a report needs at least one record; give the file of one")


def _title(records: Sequence[BenchmarkRecord]) -> str:
    names = list(dict.fromkeys(record.bundle.name for record in records))
    return f"edgekd: {', '.join(names)} measured"


def _heading(record: BenchmarkRecord) -> str:
    return f"{record.bundle.name}, {record.bundle.precision}, on {_device(record)}"


def _device(record: BenchmarkRecord) -> str:
    environment = record.environment
    return environment.board or environment.cpu_model or environment.arch


def _when(record: BenchmarkRecord) -> str:
    return f"measured {record.created_utc} by edgekd {record.environment.edgekd}"


def _input(record: BenchmarkRecord) -> str:
    used = record.input
    bands = f", bands {','.join(map(str, used.bands))}" if used.bands else ""
    return f"{used.name}, {used.width_px} x {used.height_px} px{bands}"


def _or_reason(value: Any, reason: str | None) -> str:
    return f"unavailable: {reason}" if value is None else str(value)


def _ms(seconds: float) -> str:
    return _figure(seconds * 1e3)


def _figure(value: float) -> str:
    """Three significant digits, without an exponent for the sizes that occur."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _plain(value: Any) -> str:
    """A free-form value as text; floats with four significant digits."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def _data_uri(caption: str, data: bytes) -> str:
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise InputError(f"the picture '{caption}' is not PNG; convert it first")
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def _md(text: str) -> str:
    """Text for Markdown: on one line, and nothing in it acts as markup or HTML."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_[]|#":
        text = text.replace(mark, "\\" + mark)
    return text


def _md_table(head: list[str], rows: list[list[str]]) -> list[str]:
    escaped = [[_md(cell) for cell in row] for row in (head, *rows)]
    lines = [escaped[0], ["---"] * len(head), *escaped[1:]]
    return ["| " + " | ".join(line) + " |" for line in lines]
