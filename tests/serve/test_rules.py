"""The store of rules: what is put, refused, kept, told, and read meanwhile."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.contracts.artifacts import sha256_bytes
from edgekd.contracts.policy import ClassFacts
from edgekd.contracts.projection import OBEYED, past_bounds, project
from edgekd.errors import (
    ConflictError,
    EnvironmentLacksError,
    InputError,
    OutputError,
    RecipeError,
)
from edgekd.serve import rule_set
from edgekd.serve.rule_text import MOST_BYTES
from edgekd.serve.rules import RuleStore
from tests.helpers.rules import CLASSES, FACTS, Clock, most, store, text, towers
from tests.helpers.rules import rules as as_values

FROM_JULY = {"from": "2026-07-01"}
UNTIL_JULY = {"until": "2026-07-01"}


def test_what_is_put_is_in_force_and_kept(tmp_path: Path) -> None:
    given = "# of the council\n" + towers(0.25)
    with store(tmp_path / "rules") as first:
        found = first.put(given, "Ana, planning office")
        assert first.current() is found and first.version == found.version == 1
    with store(tmp_path / "rules") as again:
        kept = again.current()
        assert kept == found and kept.text == given.encode()
        assert kept.digest == sha256_bytes(given.encode())
        assert (kept.who, kept.when) == ("Ana, planning office", "2026-06-01T12:00:00.000+00:00")
        assert kept.limits("A").limits.bounds[0] == np.float32(0.25)
        assert again.put(towers(0.5), "Rui").version == 2
    names = sorted(p.name for p in (tmp_path / "rules").rglob("*") if p.is_file())
    assert names == ["000001.json", "000001.yaml", "000002.json", "000002.yaml", "audit.jsonl",
                     "current.json"]  # fmt: skip
    assert (tmp_path / "rules/versions/000001.yaml").read_text() == given


def test_no_rules_are_said_and_not_taken_for_no_limits(tmp_path: Path) -> None:
    for _ in range(2):
        with store(tmp_path) as empty:
            assert empty.version == 0 and empty.history() == []
            with pytest.raises(InputError, match="holds no rules yet, and none is not the same"):
                empty.current()


def test_the_same_text_is_no_new_version(tmp_path: Path) -> None:
    with store(tmp_path) as kept:
        first = kept.put(towers(0.25), "Ana")
        assert kept.put(towers(0.25), "Rui") is first and kept.version == 1
        assert kept.put(towers(0.25) + "\n", "Rui").version == 2, "another text"
        newest, same, begun = kept.history()
        assert (begun.event, same.event, newest.event) == ("accepted", "unchanged", "accepted")
        assert same.who == "Rui" and same.sentence == "the text is that of version 1, by Ana"
        assert (same.version_before, same.version_after) == (1, 1)


def test_a_change_on_top_of_what_is_gone_is_a_conflict(tmp_path: Path) -> None:
    with store(tmp_path) as kept:
        with pytest.raises(ConflictError, match="meant for version 3, and in force is no rules"):
            kept.put(towers(0.2), "Ana", expected=3)
        assert kept.put(towers(0.2), "Ana", expected=0).version == 1
        assert kept.put(towers(0.3), "Rui", expected=1).version == 2
        with pytest.raises(ConflictError, match="version 1, and in force is version 2, by Rui"):
            kept.put(towers(0.4), "Ana", expected=1)
        with pytest.raises(ConflictError):
            kept.put(towers(0.3), "Ana", expected=0)
        assert kept.version == 2 and kept.history(1)[0].event == "refused"


BOMB = "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "is empty"),
        (b"\xff\xfe", "not UTF-8: byte 0"),
        ("title: \udc00", "half of a surrogate pair"),
        (towers(0.2) + 'title: "\\ud83d"\n', "half of a surrogate pair"),
        ("#" * (MOST_BYTES + 1), f"has {MOST_BYTES + 1} bytes, expected at most {MOST_BYTES}"),
        ("a: [", "line 1: not YAML"),
        ("- a", "expected keys and values"),
        (BOMB, "line 1: an alias repeats what stands here"),
        ("a: &a [*a]", "an alias repeats"),
        ("a: " + "[" * 3000, "not YAML that can be read"),
        ('{"a": ' + "[" * 100_000, "not JSON that can be read"),
        ('{"schema": 1, "schema": 1}', "key 'schema' stands twice"),
        ('{"schema": 1,, "schema": 1}', "line 1: not YAML"),
        (towers(0.2) + "name: again\n", "line 14: key 'name' stands twice"),
        (towers(0.2).replace("tower: 1", "tovver: 1"), "class 'tovver', which is not there; did"),
        (towers(0.2).replace("max: 0.2", "max: .inf"), "max"),
        (towers(0.2).replace("max: 0.2", "max: 1e39"), "rule towers has the number 1e.39, exp"),
        (towers(0.2).replace("tower: 1", "tower: 1e-300"), "has the number 1e-300, expected 0"),
        (text(most("x", {"tower": 1}, 0.2), most("x", {"tower": 1}, 0.3)),
         "rule x stands twice for the same days in zone A"),
        (text(most("x", {"tower": 1}, 0.2), most("y", {"tower": -1}, -0.3)),
         "zone A, today: rules x .* and y .* contradict each other at the same priority, 1"),
        # it would fail at a midnight of next month
        (text(most("x", {"tower": 1}, 0.2), most("y", {"tower": -1}, -0.3, valid=FROM_JULY)),
         "has 1 fault: zone A, from 2026-07-01 on: rules x .* and y .* contradict"),
        (text(most("x", {"tower": 1}, 0.2),
              most("y", {"tower": -1}, -0.3, zones=["B"],
                   valid={"from": "2031-05-01", "until": "2031-05-02"})),
         "zone B, from 2031-05-01 on"),
        (text(*(most(name, {name: 1}, 0.5, valid=dict(FROM_JULY)) for name in CLASSES),
              most("two", {"water": 1, "house": 1}, 0.6)),
         "zone A, from 2026-07-01 on: zone A has 5 rules in force on 2026-07-01"),
        (text({"id": "s", "type": "setback", "min_m": 5, "priority": 1, "source": "made up"}),
         "s of type setback asks for setback_m, which no class"),
    ],
)  # fmt: skip
def test_what_is_refused_changes_nothing_and_is_told(
    tmp_path: Path, given: bytes | str, words: str
) -> None:
    with store(tmp_path) as kept:
        before = kept.put(towers(0.25), "Ana")
        files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.name != "audit.jsonl"
                 and p.is_file()}  # fmt: skip
        with pytest.raises(InputError, match=words) as caught:
            kept.put(given, "Rui")
        assert kept.current() is before
        told = kept.history(1)[0]
        assert (told.event, told.who, told.version_before, told.version_after) == (
            "refused", "Rui", 1, 1
        )  # fmt: skip
        assert str(caught.value).startswith(told.sentence[:2000])
        assert all(path.read_bytes() == content for path, content in files.items())
    with store(tmp_path) as again:
        assert again.current() == before and again.history(1) == [told]


def test_all_faults_of_all_days_are_told_at_once(tmp_path: Path) -> None:
    bad = text(
        most("x", {"tower": 1}, 0.2, valid=UNTIL_JULY), most("y", {"tower": -1}, -0.3),
        most("z", {"tower": 1}, 0.1, valid=FROM_JULY),
    )  # fmt: skip
    with store(tmp_path) as kept, pytest.raises(RecipeError) as caught:
        kept.put(bad, "Ana")
    assert len(caught.value.problems) == 2
    assert "zone A, today: rules x" in str(caught.value)
    assert "zone A, from 2026-07-01 on: rules y" in str(caught.value)


def test_what_is_over_needs_not_be_met(tmp_path: Path) -> None:
    """Days before today are history: asked for, they fail by themselves."""
    past = {"until": "2026-05-01"}
    with store(tmp_path) as kept:
        found = kept.put(
            text(most("x", {"tower": 1}, 0.2), most("y", {"tower": -1}, -0.3, valid=past)), "Ana"
        )
        with pytest.raises(InputError, match="contradict each other"):
            found.limits("A", datetime.date(2026, 4, 30))
        with pytest.raises(InputError, match="no zone 'C'"):
            found.limits("C")


def test_too_much_to_check_is_refused_before_it_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two zones, today and July: 2 + 1 of A, 2 + 2 of B, each with one more for the day."""
    given = text(most("x", {"tower": 1}, 0.2), most("y", {"house": 1}, 0.2, valid=FROM_JULY))
    monkeypatch.setattr(rule_set, "MOST_ROWS", 10)
    with store(tmp_path / "a") as kept:
        kept.put(given, "Ana")
    monkeypatch.setattr(rule_set, "MOST_ROWS", 9)
    with store(tmp_path / "b") as kept, pytest.raises(InputError, match="more than 9 rules to"):
        kept.put(given, "Ana")


def test_too_many_rules_at_once_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = text(most("x", {"tower": 1}, 0.2), most("y", {"house": 1}, 0.2, valid=FROM_JULY))
    monkeypatch.setattr(rule_set, "MOST_AT_ONCE", 2)
    with store(tmp_path / "a") as kept:
        kept.put(given, "Ana")
    monkeypatch.setattr(rule_set, "MOST_AT_ONCE", 1)
    with store(tmp_path / "b") as kept, pytest.raises(InputError, match="2 rules in force in zone"):
        kept.put(given, "Ana")


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    with store(tmp_path) as kept:
        for given in (5, None, ["rules"]):
            with pytest.raises(InputError, match="expected text or bytes"):
                kept.put(given, "Ana")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="who is 'None', expected one line"):
            kept.put(towers(0.2), None)  # type: ignore[arg-type]
        assert kept.version == 0


@pytest.mark.parametrize(
    "who", ["", "  ", "a\nb", 'x"}\n{"who": "other"', "a\u2028b", "\u202eana", "\x00", "a" * 201]
)
def test_who_is_one_line(tmp_path: Path, who: str) -> None:
    with store(tmp_path) as kept:
        with pytest.raises(InputError, match="who is .* one line of 1 to 200 printable"):
            kept.put(towers(0.2), who)
        assert kept.version == 0 and kept.history(1)[0].who is None
        kept.put(towers(0.2), 'João "Z" ' + "a" * 191)
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["refused", "accepted"]


def test_json_is_taken_as_it_is_sent(tmp_path: Path) -> None:
    value = as_values(most("towers", {"tower": 1}, 0.25, valid=FROM_JULY))
    value["title"] = "bay \U0001f30a"
    sent = json.dumps(value, indent="\t")
    assert "\\ud83c" in sent
    with store(tmp_path) as kept:
        found = kept.put(sent, "Ana")
        assert found.policy.title == "bay \U0001f30a" and found.text == sent.encode()
        assert found.limits("A", datetime.date(2026, 7, 1)).rows[0].rule.id == "towers"


def test_another_law_begins_at_midnight_without_a_put(tmp_path: Path) -> None:
    """2026-06-30 23:59 and 2026-07-01 00:00 of Lisbon, which is an hour before UTC in summer."""
    given = text(
        most("x", {"tower": 1}, 0.2, valid=UNTIL_JULY),
        most("x", {"tower": 1}, 0.4, valid=FROM_JULY),
    )
    for zone, minute in (("UTC", datetime.datetime(2026, 6, 30, 23, 59)),
                         ("Europe/Lisbon", datetime.datetime(2026, 6, 30, 22, 59))):  # fmt: skip
        clock = Clock()
        with store(tmp_path / zone[:3], clock=clock, time_zone=zone) as kept:
            found = kept.put(given, "Ana")
            clock.now = minute.replace(tzinfo=datetime.timezone.utc)
            before = found.limits("A")
            clock.now += datetime.timedelta(minutes=1)
            after = found.limits("A")
            assert kept.today() == after.day == datetime.date(2026, 7, 1)
            assert (before.limits.bounds[0], after.limits.bounds[0]) == (
                np.float32(0.2), np.float32(0.4)
            )  # fmt: skip
            assert found.report()["day"] == "2026-07-01" and kept.current() is found
            assert before.day == datetime.date(2026, 6, 30)


def test_a_clock_that_is_not_set_is_no_day_of_the_law(tmp_path: Path) -> None:
    """A board without a battery, which begins in 1970: no law is in force then that is now."""
    given = text(
        most("x", {"tower": 1}, 0.2, valid={"from": "2025-01-01"}),
        # cannot be met, and was over when the rules were put
        most("old", {"water": 1, "meadow": 1, "house": 1, "tower": 1}, 0.5,
             valid={"until": "2000-01-01"}),
    )  # fmt: skip
    clock = Clock()
    with store(tmp_path, clock=clock) as kept:
        kept.put(given, "Ana")
        put = clock.now
        clock.now = put - datetime.timedelta(minutes=9)
        assert kept.clock_fault() == "" and kept.today() == put.date()
        clock.now = put - datetime.timedelta(minutes=11)
        assert "the clock says 2026-06-01 11:49+00:00, and" in kept.clock_fault()
    clock.now = datetime.datetime(1970, 1, 1, 0, 1, tzinfo=datetime.timezone.utc)
    with store(tmp_path, clock=clock) as kept:
        assert kept.version == 1
        for ask in (kept.today, lambda: kept.current().limits("A"), kept.current().report,
                    lambda: kept.put(towers(0.3), "Rui")):  # fmt: skip
            with pytest.raises(EnvironmentLacksError, match="1970-01-01 00:01.*set the clock, or"):
                ask()
        assert kept.version == 1
        clock.now = put + datetime.timedelta(days=1)
        assert kept.today().isoformat() == "2026-06-02" and kept.current().limits("A").rows
    clock.now = put - datetime.timedelta(days=30)
    with store(tmp_path, clock=clock, trust_clock=True) as kept:
        assert kept.today().isoformat() == "2026-05-02"
        kept.put(towers(0.3), "Rui")
    with store(tmp_path, clock=clock) as kept:
        assert kept.clock_fault() == "", "the rules in force are of this clock's own time now"


def test_rows_are_made_once_for_a_time_without_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, datetime.date]] = []
    compiler = rule_set.compile_zone

    def counted(policy: Any, zone: str, day: datetime.date, *rest: Any) -> Any:
        made.append((zone, day))
        return compiler(policy, zone, day, *rest)

    monkeypatch.setattr(rule_set, "compile_zone", counted)
    given = text(most("x", {"tower": 1}, 0.2),
                 most("y", {"house": 1}, 0.2, zones=["B"], valid=FROM_JULY))  # fmt: skip
    june, july = datetime.date(2026, 6, 1), datetime.date(2026, 7, 1)
    with store(tmp_path) as kept:
        found = kept.put(given, "Ana")
        for day in (june, datetime.date(2026, 6, 30), july, datetime.date(2030, 1, 1)):
            assert found.limits("A", day).day == found.limits("B", day).day == day
            assert len(found.limits("B", day).rows) == (1 if day < july else 2)
        assert made == [("A", june), ("B", june), ("B", july)]
        monkeypatch.setattr(rule_set, "KEPT", 1)
        found.limits("A", datetime.date(2020, 1, 1))
        kept.put(given + "\n", "Ana")
        assert len(kept.current()._compiled._known) == 1
        with pytest.raises(ValueError, match="read-only"):
            found.limits("A").limits.bounds[0] = 9


def test_the_report_tells_what_yielded(tmp_path: Path) -> None:
    given = text(
        most("low", {"tower": 1}, 0.1, priority=3), most("high", {"tower": -1}, -0.3, zones=["A"]),
        {"id": "h", "type": "height_limit", "max_m": 100, "priority": 2, "source": "made up"},
        most("end", {"house": 1}, 0.5, zones=["A"], valid=UNTIL_JULY),
        most("wide", {"tower": 1}, 0.9, zones=["B"], priority=4),
    )  # fmt: skip
    with store(tmp_path, rows=3) as kept:
        found = kept.put(given, "Ana").report()
        assert json.loads(json.dumps(found)) == found
        with store(tmp_path / "narrow", rows=1) as narrow:
            with pytest.raises(RecipeError, match="room for 1"):
                narrow.put(given, "Ana")
            beside = narrow.put(text(most("a", {"tower": 1}, 0.9), most("b", {"tower": 1}, 0.5)),
                                "Ana").report()  # fmt: skip
    assert (found["version"], found["who"], found["policy"]) == (1, "Ana", "bay")
    assert (found["day"], found["next_change"]) == ("2026-06-01", "2026-07-01")
    zone = found["zones"]["A"]
    assert [row["id"] for row in zone["rules"]] == ["high", "end", "low"]
    assert zone["rules"][2]["relaxed"] == pytest.approx(0.2, abs=1e-6)
    assert zone["relaxed"] == ["rule low (1 tower <= 0.1, priority 3) cannot be met beside those "
                               "before it, and is relaxed by 0.2"]  # fmt: skip
    assert "rule h limits none" in zone["without"][0] and "(water)" in zone["without"][0]
    assert found["zones"]["B"]["relaxed"] == [] and zone["rules"][0]["source"] == "made up"
    assert beside["zones"]["A"]["implied"] == ["a"]


def test_every_answer_obeys_the_version_it_names(tmp_path: Path) -> None:
    """Eight readers, a hundred changes; version n allows n / 200 of towers, and no more."""
    versions = 100
    stop = threading.Event()
    scores = np.array([[0.0, 0.0, 0.0, 5.0]])

    every: list[list[int]] = [[] for _ in range(8)]

    def read(seen: list[int]) -> None:
        while not stop.wait(0.02):
            held = kept.current()
            limits = held.limits("A").limits
            answer = project(scores, *limits)
            assert past_bounds(answer, *held.limits("A").limits[:2])[0] <= OBEYED
            assert abs(float(answer[0, 3]) - held.version / 200) <= 2e-5
            seen.append(held.version)

    with store(tmp_path) as kept, ThreadPoolExecutor(8) as pool:
        kept.put(towers(1 / 200), "writer")
        readers = [pool.submit(read, seen) for seen in every]
        try:
            for number in range(2, versions + 1):
                found = kept.put(towers(number / 200), "writer", expected=number - 1)
                assert found.version == number
                # puts may be faster than readers; one that failed is seen below
                while (number % 10 == 0 and not all(seen[-1:] >= [number] for seen in every)
                       and not any(reader.done() for reader in readers)):  # fmt: skip
                    time.sleep(0.005)
        finally:
            stop.set()
        for reader, seen in zip(readers, every, strict=True):
            reader.result()
            assert seen == sorted(seen) and len(set(seen)) >= 10
        assert [e.version_after for e in kept.history(100)] == list(range(100, 0, -1))


def test_writers_at_once_get_one_version_each(tmp_path: Path) -> None:
    """Four put on top of the same version: one is taken, three are told."""
    taken, told = list[int](), list[str]()

    def put(number: int) -> None:
        try:
            taken.append(kept.put(towers(number / 10), f"writer {number}", expected=0).version)
        except ConflictError as err:
            told.append(str(err))

    with store(tmp_path) as kept:
        writers = [threading.Thread(target=put, args=(n,)) for n in range(1, 5)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert taken == [1] and len(told) == 3 and len(kept.history()) == 4


def test_one_process_has_the_store(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.helpers.rules import store\n"
        "from edgekd.errors import EnvironmentLacksError\n"
        "try: store(Path(sys.argv[1]))\n"
        "except EnvironmentLacksError as err: print(err)"
    )
    with store(tmp_path) as kept:
        kept.put(towers(0.2), "Ana")
        said = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60,
            cwd=Path(__file__).resolve().parents[2], check=True,
        ).stdout  # fmt: skip
        assert said == f"another process has the rules in {tmp_path}; stop it, or give another " \
            "folder\n"  # fmt: skip
        with pytest.raises(EnvironmentLacksError, match="another process has"):
            store(tmp_path)
    kept.close()
    with pytest.raises(OutputError, match="is closed"):
        kept.put(towers(0.3), "Ana")
    assert kept.current().limits("A").rows, "what was read stays usable"
    store(tmp_path).close()


def filled(folder: Path) -> None:
    with store(folder) as kept:
        for number in range(1, 4):
            kept.put(towers(number / 10), f"writer {number}")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("versions/000003.yaml", lambda b: b.replace(b"0.3", b"0.9"), "was changed or damaged"),
        ("versions/000003.yaml", lambda b: b[:-1], "was changed or damaged"),
        ("versions/000003.yaml", lambda b: b"", "is empty"),
        ("versions/000003.yaml", None, "does not exist"),
        ("versions/000003.json", lambda b: b.replace(b"writer 3", b"writer 1"), "was changed"),
        ("versions/000003.json", None, "does not exist"),
        ("current.json", None, "is missing beside audit.jsonl, versions"),
        ("current.json", lambda b: b[:20], "is not JSON"),
        ("current.json", lambda b: b"[]", "expected an object"),
        ("current.json", lambda b: b.replace(b'version": 3', b'version": 2'), "000002.yaml was"),
        ("current.json", lambda b: b.replace(b'version": 3', b'version": 0'), "without a version"),
        ("current.json", lambda b: b.replace(b'schema": 1', b'schema": 2'), "schema"),
        ("audit.jsonl", lambda b: b.replace(b'"accepted"', b'accepted', 1), "line 1 is no event"),
        ("audit.jsonl", lambda b: b.replace(b'"accepted"', b'"agreed"', 1), "line 1 of .*agreed"),
        ("audit.jsonl", lambda b: b"\x00" * 9 + b"\n" + b, "line 1 is no event"),
    ],
)  # fmt: skip
def test_damage_is_named_and_no_older_rules_are_taken(
    tmp_path: Path, name: str, change: Any, words: str
) -> None:
    filled(tmp_path)
    path = tmp_path / name
    path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))
    for _ in range(2):  # the lock is given back
        with pytest.raises(InputError, match=words) as caught:
            store(tmp_path)
        assert path.name in str(caught.value) or "000002.yaml" in str(caught.value)


def test_an_older_current_file_put_back_is_seen(tmp_path: Path) -> None:
    with store(tmp_path) as kept:
        kept.put(towers(0.1), "Ana")
        older = (tmp_path / "current.json").read_bytes()
        for number in range(2, 4):
            kept.put(towers(number / 10), "Ana")
    (tmp_path / "current.json").write_bytes(older)
    with pytest.raises(InputError, match="says version 1, and audit.jsonl that 3 was in force"):
        store(tmp_path)


def test_rules_of_another_product_are_not_served(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(InputError, match=r"000003.yaml, which is in force, does not fit this prod"):
        RuleStore(tmp_path, ["water", "rock"], {}, 4, clock=Clock())


def test_a_line_without_its_end_is_put_aside(tmp_path: Path) -> None:
    filled(tmp_path)
    trail = tmp_path / "audit.jsonl"
    whole = trail.read_bytes()
    line = whole.splitlines(keepends=True)[-1]
    for number, cut in enumerate((1, len(line) // 2, len(line) - 1), 1):
        trail.write_bytes(whole + line[:cut])
        with store(tmp_path) as kept:
            assert kept.version == 3
            told = kept.history(1)[0]
            assert told.event == "opened" and told.who is None
            assert told.sentence == f"a line without its end was put aside in audit.torn-{number}" \
                ".jsonl"  # fmt: skip
        assert (tmp_path / f"audit.torn-{number}.jsonl").read_bytes() == line[:cut]
        assert trail.read_bytes().startswith(whole) and trail.read_bytes().endswith(b"}\n")
    with store(tmp_path) as kept:
        assert kept.history(1)[0] == told, "told once"


def test_a_lost_trail_is_told(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "audit.jsonl").unlink()
    with store(tmp_path) as kept:
        (told,) = kept.history()
        assert told.sentence == "the trail did not tell of version 3, which is in force"
        assert (told.version_before, told.version_after) == (0, 3)


@pytest.mark.parametrize("failing", ["000002.yaml", "000002.json", "current.json"])
def test_a_full_disk_leaves_the_old_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if Path(target).name == failing:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    with store(tmp_path) as kept:
        before = kept.put(towers(0.1), "Ana")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", full)
            with pytest.raises(OutputError, match=f"{failing} cannot be written: No space left"):
                kept.put(towers(0.2), "Rui")
        assert kept.current() is before
        assert [e.event for e in kept.history()] == ["refused", "accepted"]
        after = kept.put(towers(0.3), "Ana")
        assert after.version == 3, "a number never stands for two texts"
    with store(tmp_path) as again:
        assert again.current() == after
        assert [e.event for e in again.history()] == ["accepted", "refused", "accepted"]


def test_nothing_changes_without_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full in the middle of the line."""
    import os

    write = os.write

    def full(number: int, data: bytes) -> int:
        if len(data) > 30:
            return write(number, data[:30])
        raise OSError(28, "No space left on device")

    with store(tmp_path) as kept:
        before = kept.put(towers(0.1), "Ana")
        trail = (tmp_path / "audit.jsonl").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OutputError, match=r"audit.jsonl cannot be written: No space"):
                kept.put(towers(0.2), "Rui")
            with pytest.raises(OutputError, match=r"audit.jsonl cannot be written: No space"):
                kept.put("", "Rui")
        assert kept.current() is before and (tmp_path / "audit.jsonl").read_bytes() == trail
        kept.put(towers(0.3), "Rui")
    with store(tmp_path) as again:
        assert [e.event for e in again.history()] == ["accepted", "accepted"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"time_zone": "Europe/Lissabon"}, "no time zone 'Europe/Lissabon'"),
        ({"time_zone": "../etc/passwd"}, "no time zone"),
        ({"rows": 0}, "rows is 0"),
        ({"clock": lambda: datetime.datetime(2026, 6, 1)}, "not of which time zone"),
    ],
)
def test_what_a_store_cannot_work_with(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        store(tmp_path, **more).put(towers(0.1), "Ana")


def test_facts_and_classes_belong_together(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="class 'hous', which the product has not; did you mean"):
        RuleStore(tmp_path, CLASSES, {"hous": ClassFacts()}, 4)
    with pytest.raises(InputError, match="or one of them stands twice"):
        RuleStore(tmp_path, [*CLASSES, "water"], FACTS, 4)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="missing beside thesis.txt"):
        store(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(OutputError, match="cannot be made"):
        store(tmp_path / "thesis.txt")


def test_history_is_bounded(tmp_path: Path) -> None:
    filled(tmp_path)
    with store(tmp_path) as kept:
        assert [e.version_after for e in kept.history(2)] == [3, 2]
        for limit in (0, -1, 1001):
            with pytest.raises(InputError, match="expected 1 to 1000"):
                kept.history(limit)
        with pytest.raises(RecipeError) as caught:
            kept.put("\n".join(f"k{n}: 1" for n in range(500)), "Ana")
        told = kept.history(1)[0].sentence
        assert len(str(caught.value)) > 10_000 > len(told) and told.endswith("letters in all)")
