"""Page, Markdown and JSON: self-contained, escaped, and loud about what is not valid."""

from __future__ import annotations

import html.parser
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgekd.cli.main import main
from edgekd.errors import InputError
from edgekd.report import render
from edgekd.report.advice import ADVICE, next_steps, ordered
from edgekd.report.checks import CHECKS, POWER_CHECKS
from edgekd.report.markdown import render_markdown
from edgekd.report.record import BenchmarkRecord, Machine, write_record
from edgekd.report.render import render_html
from edgekd.report.sections import energy_table, machine_tables, report_data
from edgekd.report.words import quality_tables
from edgekd.telemetry.sensors._base import SensorInfo
from edgekd.telemetry.state import read_state
from tests.helpers.powers import make_phases, make_power_record, make_powered, make_samples
from tests.helpers.records import make_evidence, make_golden, make_record

PNG = b"\x89PNG\r\n\x1a\n" + b"rest"
EVIL = '</script><script>alert(1)</script>"&|`*'
REPLAY = SensorInfo("replay", "module", ("VDD_IN",), "replay: x.log", 0.04, 0.45)
Render = Callable[[Sequence[BenchmarkRecord]], str]
BOTH = pytest.mark.parametrize("show", [render_html, render_markdown])


class _Page(html.parser.HTMLParser):
    """Collects tags and addresses, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "img", "br", "link", "line", "rect", "circle", "path"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "action", "data")]
        self.ids += [v or "" for k, v in attrs if k == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def parse(text: str) -> _Page:
    page = _Page()
    page.feed(text)
    page.close()
    assert not page.open
    return page


@pytest.fixture(scope="module")
def powered() -> BenchmarkRecord:
    return make_powered()


@pytest.fixture(scope="module")
def replayed() -> BenchmarkRecord:
    return make_powered(power=make_power_record(make_samples(info=REPLAY)), name="again")


def test_the_page_loads_nothing(powered: BenchmarkRecord) -> None:
    text = render_html([powered, make_record(name="other")], [("a picture", PNG)])
    page = parse(text)
    allowed = ("data:image/png;base64,", "data:,", "#r")
    assert page.addresses and all(a.startswith(allowed) for a in page.addresses)
    assert {f"#{name}" for name in page.ids} == {a for a in page.addresses if a.startswith("#")}
    assert not {"iframe", "object", "embed", "base"} & set(page.tags)
    assert page.tags.count("script") == 1 and page.tags.count("link") == 1
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttp|innerHTML|eval\(", text)
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert policy in text and text.index(policy) < text.index("<style>")
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_the_script_is_small_and_a_record_is_not_large(powered: BenchmarkRecord) -> None:
    assert Path(render.__file__).with_name("page.js").stat().st_size < 4000
    assert len(render_html([powered])) < 150_000


@BOTH
def test_figures_stand_in_both_renderings(show: Render) -> None:
    record = make_record()
    text = show([record])
    for figure in ("50.0", "20.0", "2.00", "0.100", "largest of 60", "no sensor in a test",
                   "left out for privacy", record.bundle.model_sha256):  # fmt: skip
        assert figure in text, figure  # ms, tiles/s, Mpx/s end to end, its share of the engine's


@BOTH
def test_power_stands_in_both_with_its_interval_scope_and_sensor(
    show: Render, powered: BenchmarkRecord
) -> None:
    text = show([powered])
    assert re.search(r"0\.80\d+ ± 0\.00\d+", text) and re.search(r"16\.0\d+ ± 0\.0\d+", text)
    for word in ("scope module: VDD", "step 0.04 W", "lag 0.45 s", "J per km²", "net of idle"):
        assert word in text.replace("\\", ""), word


def test_the_large_figures_are_those_of_the_record(powered: BenchmarkRecord) -> None:
    text = render_html([powered])
    tiles = re.findall(r'class="name">(.*?)</span><span class="value">(.*?)</span>', text)
    assert [name for name, _ in tiles] == [
        "energy per tile", "power", "throughput", "end to end", "latency"
    ]  # fmt: skip
    power = powered.power
    assert power.status == "measured" and power.engine is not None
    values = [float(value) for _, value in tiles]
    assert values == pytest.approx(
        [power.engine.gross_j_per_tile.value, power.engine.mean_w.value,
         powered.engine.tiles_per_s, powered.scene.unique_mpx_per_s,
         powered.engine.summary.p50_s * 1e3],
        rel=5e-3,
    )  # fmt: skip


@BOTH
def test_an_invalid_record_says_so_everywhere_and_a_valid_one_does_not(
    show: Render, powered: BenchmarkRecord
) -> None:
    invalid = make_powered(golden=make_golden(1.0))
    text = show([invalid])
    assert text.index("NOT VALID") < text.index("50.3")
    assert "golden outputs differ" in text and "Build the bundle again" in text
    assert "NOT VALID" not in show([powered]).replace("a record that is NOT VALID", "")
    both = show([powered, invalid])
    assert "Side by side" in both
    assert "not compared: this record is NOT VALID" in both


@BOTH
def test_a_replay_carries_the_word_in_every_table_and_heading_of_power(
    show: Render, replayed: BenchmarkRecord, powered: BenchmarkRecord
) -> None:
    text = show([replayed])
    assert "say nothing about this work" in text and "(replay)" in text
    for line in text.splitlines():
        if re.search(r"\d ± \d", re.sub("<[^>]*>", " ", line)):
            assert "replay" in line or "energy" in line or "<tr><th>" in line, line[:200]
    assert "replay" not in show([powered])
    table = energy_table(replayed)
    assert table is not None
    assert all("(replay)" in row[0] for row in [table[0], *table[1]])


@BOTH
def test_differences_stand_in_both(show: Render, powered: BenchmarkRecord) -> None:
    samples = make_samples(engine_w=12.0, seed=5)
    power = make_power_record(samples, make_phases(1 / 0.05 / 1.005))
    text = show([powered, make_powered(power=power, name="frugal")])
    plain = re.sub(r"<[^>]*>", " ", text)
    assert "Differences from tiny" in plain
    assert re.search(r"−(3\.9|4\.0)\d+ ± 0\.\d+ W", plain) and re.search(r"−2[45]\.\d %", plain)
    assert re.search(r"real", plain) and "not distinguishable" in plain
    assert "not measured in turns" in plain


def test_unknown_checks_are_named_beside_valid() -> None:
    evidence = make_evidence()
    held = evidence.disturbance.model_copy(
        update={"frequency_mhz": None, "absent": {"frequency_mhz": "no cpufreq"}}
    )
    for show in (render_html, render_markdown):
        text = show([make_record(make_evidence(disturbance=held))])
        assert re.search(r"Not checkable here: [^.]*frequency\\?_stable", text)


def test_failed_checks_come_first_and_each_check_has_its_advice() -> None:
    record = make_record(make_evidence(golden=make_golden(1.0)))
    states = [check.status for check in ordered(record)]
    assert states == sorted(states, key=["fail", "unknown", "pass"].index)
    assert next_steps(record) == [ADVICE["outputs_right"]]
    assert next_steps(make_record()) == []
    assert set(ADVICE) == {check.__name__ for check in (*CHECKS, *POWER_CHECKS)}


def test_how_to_reproduce() -> None:
    record = make_record()
    command = "edgekd bench tiny.bundle scene.tif --seconds 2"
    for show in (render_html, render_markdown):
        assert "No command made this record" in show([record])
        text = show([record.model_copy(update={"command": command})])
        assert command in text and "No command" not in text
        assert record.input.sha256 is not None and record.input.sha256 in text


def test_the_state_of_the_machine_is_shown_whatever_it_holds() -> None:
    state = read_state(Path("/nonexistent"))
    machine = Machine(before=state, after=state, found={"throttled": ["hot"], "mode_changed": []})
    record = make_record().model_copy(update={"machine": machine})
    (name, (head, rows)), (_, (_, found)) = machine_tables(record)
    assert (name, head) == ("State of the machine", ["", "before", "behind"])
    assert [row[0] for row in rows] and all(len(row) == 3 for row in rows)
    assert found == [["throttled", "hot"], ["mode_changed", "nothing"]]
    for show in (render_html, render_markdown):
        assert "State of the machine" in show([record])
        without = make_record().model_copy(update={"machine": None})
        assert "State of the machine" not in show([without])


def test_everything_from_a_record_is_escaped(powered: BenchmarkRecord) -> None:
    quality = {EVIL: EVIL, "rows": [{EVIL: EVIL}], "baselines": {EVIL: {"iou": 1}}, "iou": 2}
    record = make_powered(name=EVIL, quality=quality)
    power = record.power
    assert power.status == "measured"
    sensor = power.sensor.model_copy(update={"name": EVIL, "total": [EVIL]})
    trace = power.trace.model_copy(update={"zone": EVIL})
    evil = record.model_copy(
        update={"power": power.model_copy(update={"sensor": sensor, "trace": trace}),
                "command": EVIL}
    )  # fmt: skip
    page = render_html([evil, evil, powered], [(EVIL, PNG)], title=EVIL)
    assert "alert(1)" in page and "<script>alert" not in page
    assert parse(page).tags.count("script") == 1
    markdown = render_markdown([evil, evil])
    assert "<script" not in markdown
    width = 0
    for line in markdown.splitlines():
        cells = len(re.split(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not width or cells in (0, width), line
        width = cells


def test_quality_is_put_beside_its_baselines() -> None:
    tables = quality_tables(
        {
            "canopy_iou": 0.61234,
            "accuracy": 0.9,
            "split": "test",
            "baselines": {"constant": {"canopy_iou": 0.2}, "excess green": {"canopy_iou": 0.31}},
            "per_class": [{"name": "canopy", "iou": 0.6}, {"name": "other", "iou": None}],
            "confusion": [[1, 2], [3, 4]],
            "confusion_by_sample": [{"id": "a", "confusion": [[1, 2], [3, 4]]}],
        }
    )
    assert tables[0] == (
        "Quality beside baselines",
        ["", "canopy_iou"],
        [
            ["this bundle", "0.6123"],
            ["baseline constant", "0.2"],
            ["baseline excess green", "0.31"],
        ],
    )
    assert tables[1] == ("Quality: more", ["", ""], [["accuracy", "0.9"], ["split", "test"]])
    assert tables[2][2] == [["canopy", "0.6"], ["other", "-"]]
    assert len(tables) == 3
    assert quality_tables(None) == quality_tables({}) == []


def test_a_report_of_nothing_and_a_picture_of_another_kind_are_refused() -> None:
    for show in (render_html, render_markdown):
        with pytest.raises(InputError, match="at least one"):
            show([])
    with pytest.raises(InputError, match="not PNG"):
        render_html([make_record()], [("jpeg", b"\xff\xd8\xff")])


def test_the_json_holds_figures_checks_and_differences(
    powered: BenchmarkRecord, replayed: BenchmarkRecord
) -> None:
    data = json.loads(json.dumps(report_data([powered, replayed]), allow_nan=False))
    first, second = data["records"]
    assert first["figures"]["power"]["engine"]["gross_j_per_tile"]["value"] == pytest.approx(
        0.804, abs=0.002
    )
    assert second["power"] == second["figures"]["power"]["status"] == "replay"
    assert "trace" not in first["figures"]["power"]
    assert first["engine_tiles_per_s"] == powered.engine.tiles_per_s
    assert [check["name"] for check in first["checks"]]
    (difference,) = data["differences"]
    assert (difference["record"], difference["against"]) == ("again", "tiny")
    verdicts = {item["quantity"]: item["verdict"] for item in difference["quantities"]}
    assert verdicts["energy per tile (replay)"] == "not compared"
    assert verdicts["throughput"] in ("real", "not distinguishable")
    assert data["records"][0]["valid"] is True


def test_the_command_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, out = tmp_path / "record.json", tmp_path / "report.json"
    write_record(make_record(), record)
    assert main(["report", str(record), "-o", str(out)]) == 0
    capsys.readouterr()
    assert main(["report", str(record), "--json"]) == 0
    shown, written = json.loads(capsys.readouterr().out), json.loads(out.read_text())
    assert shown == {"output": None, **written}
    assert np.isclose(written["records"][0]["figures"]["latency"]["p50_s"], 0.05)
    assert main(["report", str(record), "-o", str(tmp_path / "r.pdf")]) == 2
    assert ".json" in capsys.readouterr().err
