"""The record: percentiles by hand, reading back, and refusing what was changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.errors import InputError, OutputError
from edgekd.report.latency import LatencySummary, percentile
from edgekd.report.record import read_record, write_record
from tests.helpers.records import make_evidence, make_record


@pytest.mark.parametrize(
    ("percent", "expected"),
    [(50, 20), (90, 50), (99, 50), (100, 50), (20, 15), (20.1, 20), (1, 15)],
)
def test_percentile_by_hand(percent: float, expected: float) -> None:
    # 5 values: rank = ceil(percent / 20); the textbook example without its middle values
    assert percentile([50, 15, 20, 20, 35], percent) == expected


def test_percentile_rank_does_not_slip_by_rounding() -> None:
    values = list(range(1, 101))
    for percent in range(1, 101):  # 0.07 * 100 is not 7 in binary
        assert percentile(values, percent) == percent


@given(
    st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=200),
    st.floats(1e-3, 100),
)
def test_percentile_is_nearest_rank(values: list[float], percent: float) -> None:
    found = percentile(values, percent)
    assert found in values
    below = sum(value <= found for value in values)
    assert below >= percent * len(values) / 100
    assert sum(value < found for value in values) < percent * len(values) / 100
    assert found == np.percentile(values, percent, method="inverted_cdf")


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 100.1)])
def test_percentile_refuses_what_has_none(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        percentile(values, percent)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=100))
def test_summary_is_ordered(values: list[float]) -> None:
    s = LatencySummary.of(values)
    assert s.n == len(values)
    assert s.min_s <= s.p50_s <= s.p90_s <= s.p99_s <= s.max_s
    assert s.min_s * (1 - 1e-12) <= s.mean_s <= s.max_s * (1 + 1e-12)


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    record = make_record(quality={"iou": 0.5})
    write_record(record, tmp_path / "r.json")
    assert read_record(tmp_path / "r.json") == record


def test_fields_with_a_quantity_carry_their_unit() -> None:
    units = ("_s", "_ms", "_mib", "_px", "_mhz", "_w", "_j", "_logits", "_cores", "_1min")
    dimensionless = ("share", "over_engine", "over_streams", "redundancy")
    counts = {"n", "iterations", "tiles", "schema", "windows_run", "windows_skipped", "repeats"}
    counts |= {"streams"}
    counts |= {"pixels_unique", "cores", "cores_usable", "block_n", "bands", "load_1min"}

    def visit(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                visit(item, key)
        elif isinstance(value, list):
            for item in value:
                visit(item, name)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            known = name.endswith((*units, "_before", "_after")) or name in counts
            assert known or any(word in name for word in dimensionless), name

    visit(make_record().plain(), "")


def _set(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        place: Any = record
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("kind", value="other"), "is not a benchmark record"),
        (_set("schema", value=99), "record of schema 99"),
        (_set("schema", value="1"), "record of schema '1'"),
        (_set("valid", value=False), "valid does not follow"),
        (_set("checks", 0, "status", value="fail"), "verdict of outputs_right does not follow"),
        (_set("checks", value=[]), "checks"),
        (_set("golden", "error_logits", value=1.0), "verdict of outputs_right"),
        (_set("warm_up", "steady", value=False), "verdict of warm_up_steady"),
        (_set("disturbance", "other_cpu_share", value=0.9), "verdict of not_disturbed"),
        (_set("bundle", "target_arch", value="riscv"), "verdict of device_fits"),
        (_set("engine", "summary", "p50_s", value=0.001), "p50_s does not follow"),
        (_set("engine", "latencies_s", 0, value=0.04), "does not follow"),
        (_set("engine", "latencies_s", value=[]), "latencies_s"),
        (_set("engine", "tiles_per_s", value=1e3), "tiles_per_s does not follow"),
        (_set("scene", "total_s", value=0.1), "median of the runs"),
        (_set("scene", "unique_mpx_per_s", value=1e3), "unique_mpx_per_s"),
        (_set("ratio", "end_to_end_over_engine", value=1.0), "the ratio"),
        (_set("ratio", "end_to_end_over_streams", value=1.0), "end_to_end_over_streams"),
        (_set("scene", "streams", value=2), "another number of streams"),
        (_set("power", value={"status": "measured", "mean_w": 0}), "power"),
        (_set("extra", value=1), "extra"),
        (_set("environment", "board", value="Orin"), "do not agree"),
    ],
)
def test_a_changed_record_is_refused_with_what_is_wrong(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    values = make_record().plain()
    change(values)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=words) as caught:
        read_record(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"x"', "{}", "null", '{"kind": NaN}'])
def test_a_file_that_is_no_record_is_an_input_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(InputError):
        read_record(path)


def test_a_record_cut_anywhere_is_an_input_error(tmp_path: Path) -> None:
    write_record(make_record(), tmp_path / "r.json")
    data = (tmp_path / "r.json").read_bytes()
    cut = tmp_path / "cut.json"
    for length in range(0, len(data) - 2, 97):
        cut.write_bytes(data[:length])
        with pytest.raises(InputError):
            read_record(cut)


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        write_record(make_record(make_evidence()), tmp_path / "file" / "r.json")


def test_records_that_are_committed_can_be_read() -> None:
    kept = Path(__file__).parents[2] / "benchmarks" / "results"
    found = [path for path in kept.rglob("*.json") if '"edgekd.benchmark"' in path.read_text()]
    assert found
    for path in found:
        assert read_record(path).valid, path
