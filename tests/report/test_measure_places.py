"""Measuring bundles that answer for places: parts of an answer, rules, energy, and the report."""

from __future__ import annotations

import datetime
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.contracts.place_set import load_places
from edgekd.contracts.policy import load_policy
from edgekd.contracts.projection import OBEYED, past_bounds
from edgekd.errors import InputError
from edgekd.report import places as module
from edgekd.report import sections
from edgekd.report.compare import caution, compare
from edgekd.report.markdown import render_markdown
from edgekd.report.measure import measure_subjects
from edgekd.report.places import PlaceSubject, RulesAsked, of_set, stored_or_random
from edgekd.report.plan import Plan
from edgekd.report.power import PowerRecord
from edgekd.report.record import BenchmarkRecord, read_record, write_record
from edgekd.report.render import render_html
from edgekd.report.words import result_rows
from edgekd.runtime.places import PlaceSession, Spent, open_places
from edgekd.telemetry.sensors._base import Polled, Reading, SensorInfo
from tests.helpers.place_bundles import make_place_bundle, some_places
from tests.helpers.place_line import SIDE_PX, embeddings, make_place_set
from tests.helpers.records import decide, make_record

pytest.importorskip("onnxruntime")
SHORT = Plan(duration_s=0.15, warmup_s=0.05, repeats=3)
DAY = datetime.date(2026, 1, 1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_place_set(tmp_path_factory.mktemp("set") / "set")
    np.save(root / "texts.npy", embeddings(load_places(root)))
    return root


def in_force(data: Path) -> RulesAsked:
    return RulesAsked(load_policy(data / "rules.yaml"), DAY)


@pytest.fixture
def session(bundle: Path) -> Any:
    with open_places(bundle) as found:
        yield found


def test_golden_places_are_asked_about_one_at_a_time(
    session: PlaceSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = PlaceSession.answer

    def counted(self: PlaceSession, places: Any, limits: Any = None, spent: Any = None) -> Any:
        if spent is not None:
            asked.append(len(places))
            assert places[0].image is not None and places[0].series is not None
        return real(self, places, limits, spent)

    monkeypatch.setattr(PlaceSession, "answer", counted)
    given = stored_or_random(session, tmp_path)
    (record,) = measure_subjects([partial(PlaceSubject, session, given)], SHORT)
    answers = record.answers
    assert answers is not None and set(asked) == {1}
    whole = [p for p in some_places(9) if p.image is not None and p.series is not None]
    assert answers.places == len([p for p in whole if p.text is not None]) == 2
    assert answers.total.n == len(asked) == 2 * len(record.scene.runs)
    assert record.unit == "answer" and record.input.kind == "golden" and answers.simulated
    assert (record.input.width_px, record.bundle.tile_px) == (SIDE_PX, SIDE_PX)
    assert record.scene.windows_run == 2 and record.ratio.redundancy == 1
    # runs fill the time of a block: three runs alone would be six answers
    assert sum(run.total_s for run in record.scene.runs) >= 0.9 * SHORT.duration_s
    parts = np.array([*answers.parts_s().values()])
    assert (parts >= 0).all() and parts[0].min() > 0 and parts[2].min() > 0
    spent_s = sum(run.total_s for run in record.scene.runs)
    assert parts.sum() == pytest.approx(spent_s, rel=0.1)
    assert answers.rules is None and answers.rules_s is None and not answers.with_rules_s
    assert "outputs_right" not in [check.name for check in record.failed()]
    write_record(record, tmp_path / "r.json")
    assert read_record(tmp_path / "r.json") == record


def test_pictures_are_the_stored_ones(session: PlaceSession, tmp_path: Path) -> None:
    given = stored_or_random(session, tmp_path)
    stored = [
        place
        for place in session.read_golden().places()
        if all(x is not None for x in (place.image, place.series, place.text))
    ]
    for path, place in zip(given.pictures, stored, strict=True):
        assert (module.read_picture_file(path, SIDE_PX) == place.image).all()


def test_without_whole_golden_places_evidence_is_random_and_says_so(
    session: PlaceSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = session.read_golden()
    golden.present[:, 1] = 0
    monkeypatch.setattr(PlaceSession, "read_golden", lambda self: golden)
    given = stored_or_random(session, tmp_path)
    assert given.used.kind == "synthetic" and given.used.sha256 is None
    assert given.evidence.startswith("random: pictures are uniform noise")
    assert len(given.pictures) == len(given.rest) == module.PLACES
    assert PlaceSubject(session, given).feeds[0]["present"].tolist() == [[1, 1, 1]]


def test_places_of_a_set_under_its_rules(session: PlaceSession, data: Path, tmp_path: Path) -> None:
    places, rules = load_places(data), in_force(data)
    given = of_set(session, places, "test", data / "texts.npy", rules)
    assert [path.name[:4] for path in given.pictures] == ["test"] * 12
    by_name = {row.image: row for row in places.rows}
    vectors = embeddings(places)
    every = of_set(session, places, "all", data / "texts.npy", rules)
    assert len(every.pictures) == module.PLACES and every.pictures[-1] == places.rows[-1].image
    for path, rest in zip(every.pictures, every.rest, strict=True):
        row = by_name[path]
        assert rest.text is not None and (rest.text == vectors[places.rows.index(row)]).all()
        assert rest.series is not None
        assert np.array_equal(rest.series, places.series[row.series], equal_nan=True)
    (record,) = measure_subjects([partial(PlaceSubject, session, given)], SHORT)
    answers = record.answers
    assert answers is not None and answers.rules is not None
    assert answers.rules.rows == {"shore": 2, "upland": 1} and answers.rules.day == "2026-01-01"
    assert answers.evidence.startswith("places of the set small (SIMULATED")
    assert len(answers.with_rules_s) == len(answers.without_rules_s) >= 30
    differences = np.subtract(answers.with_rules_s, answers.without_rules_s)
    assert answers.rules_s == pytest.approx(float(np.median(differences)))
    # what the bare engine is fed obeys: the rules are in its inputs
    subject = PlaceSubject(session, given)
    found = session.infer(subject.feeds[0])["probabilities"]
    feed = subject.feeds[0]
    assert past_bounds(found, feed["rules"], feed["bounds"]).max() <= OBEYED


def test_what_rules_cost_is_found_whatever_else_goes_on(
    session: PlaceSession, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls with rules take 3 ms more; everything becomes slower from call to call."""
    real, calls = PlaceSession.infer, iter(range(10**6))

    def slow(self: PlaceSession, inputs: Any) -> Any:
        cost_s = 0.003 if inputs["rules"].any() else 0.0
        time.sleep(cost_s + 0.00005 * next(calls))
        return real(self, inputs)

    given = stored_or_random(session, tmp_path, in_force(data))
    monkeypatch.setattr(PlaceSession, "infer", slow)
    subject = PlaceSubject(session, given)
    subject.beside(module.Pace(0.0, 30))
    subject.runs.run()
    answers = subject.answers()
    assert answers.rules_s is not None and 0.002 < answers.rules_s < 0.006


def test_energy_is_of_answers(session: PlaceSession, tmp_path: Path, monkeypatch: Any) -> None:
    class Steady:
        info = SensorInfo("ina3221", "module", ("VDD_IN",), "measured", 0.04, 0.01)

        def open(self, interval_s: float) -> Polled:
            return Polled(lambda: Reading(time.monotonic(), 6.0), interval_s)

    decide(monkeypatch)
    given = stored_or_random(session, tmp_path)
    plan = Plan(duration_s=0.9, warmup_s=0.1, repeats=3, idle_s=0.3, interval_s=0.01, power="x")
    (record,) = measure_subjects([partial(PlaceSubject, session, given)], plan, sensor=Steady())  # type: ignore[arg-type]
    power = record.power
    assert isinstance(power, PowerRecord) and power.scene is not None
    work = power.scene
    per_answer = work.gross_j_per_tile.value
    assert per_answer == pytest.approx(6.0 * work.seconds / work.tiles, rel=0.05)
    windows = [phase for phase in power.phases if phase.kind == "scene"]
    assert record.answers is not None
    for phase in windows:  # whole runs over the places
        assert phase.tiles % record.answers.places == 0
    names = dict(result_rows(record))
    assert "end to end: energy per answer, J" in names and "bare engine: answers per J" in names
    assert not [name for name in names if "tile" in name or "Mpx" in name or "km²" in name]
    table = sections.energy_table(record)
    assert table is not None and "J per answer" in table[0] and "J per Mpx" not in table[0]
    page = render_html([record])
    assert "Energy per answer" in page and "J/answer" in page and "answers/s" in page
    assert "J per tile" not in page and "tiles/s" not in page
    text = render_markdown([record])
    assert "network and projection, p50, p90, p99, ms" in text and "SIMULATED" in text
    kept = sections.report_data([record])["records"][0]["figures"]["answers"]
    assert kept["total"]["n"] == record.answers.total.n and "model_s" not in kept


@pytest.fixture(scope="module")
def measured(bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> BenchmarkRecord:
    with open_places(bundle) as session:
        given = stored_or_random(session, tmp_path_factory.mktemp("p"), in_force(data))
        return measure_subjects([partial(PlaceSubject, session, given)], SHORT)[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a | {"answers_per_s": 2 * a["answers_per_s"]}, "answers_per_s does not follow"),
        (lambda a: a | {"rules_s": 0.0}, "rules_s does not follow"),
        (lambda a: a | {"rules": None}, "do not go together"),
        (lambda a: a | {"without_rules_s": a["without_rules_s"][1:]}, "differ in number"),
        (lambda a: a | {"check_s": a["check_s"][1:]}, "parts of the answers differ"),
        (lambda a: a | {"model_s": [0.0, *a["model_s"][1:]]}, "does not follow from the latencies"),
        (lambda a: a | {"total": a["total"] | {"p99_s": 0.0}}, "total.p99_s does not follow"),
    ],
)
def test_a_changed_figure_is_refused(
    measured: BenchmarkRecord, tmp_path: Path, change: Any, said: str
) -> None:
    value = measured.plain()
    value["answers"] = change(value["answers"])
    import json

    (tmp_path / "r.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=said):
        read_record(tmp_path / "r.json")


def test_answers_and_tiles_are_not_compared(measured: BenchmarkRecord) -> None:
    valid = measured.model_copy(update={"valid": True, "checks": make_record().checks})
    found = compare(make_record(), valid)
    assert {item.verdict for item in found} == {"not compared"}
    assert found[0].why == "the first is of tiles, this one of answers"
    assert valid.answers is not None
    free = valid.model_copy(
        update={"answers": valid.answers.model_copy(update={"rules": None, "rules_s": None})}
    )
    names = [(item.name, item.unit) for item in compare(valid, free)]
    assert ("throughput", "answers/s") in names and ("energy per answer", "J") in names
    assert "not under the same rules" in caution(valid, free)
    assert "not asked about the same places" not in caution(valid, free)


def test_two_bundles_of_places_take_turns_on_the_same_places(bundle: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        sessions = [stack.enter_context(open_places(bundle)) for _ in range(2)]
        given = stored_or_random(sessions[0], tmp_path)
        plan = Plan(duration_s=0.1, warmup_s=0.02, repeats=2)
        records = measure_subjects([partial(PlaceSubject, s, given) for s in sessions], plan)
    assert [r.turns.order for r in records if r.turns] == ["ABBA", "ABBA"]
    assert records[0].input == records[1].input


def test_time_is_added_up_by_part(session: PlaceSession) -> None:
    spent = Spent()
    begin = time.monotonic()
    session.answer(some_places(20), None, spent)
    total_s = time.monotonic() - begin
    assert spent.tensors_s > 0 and spent.model_s > 0
    assert spent.tensors_s + spent.model_s <= total_s
