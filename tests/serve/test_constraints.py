"""``/v1/constraints``: whole, versioned, on top of what was seen, and told."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from edgekd.errors import InputError, RecipeError
from edgekd.serve import audit
from edgekd.serve.tokens import Tokens
from edgekd.serve.wire import ConstraintsSaid, HistorySaid, Problem
from tests.helpers.places import FakePlaces
from tests.helpers.rules import most, rules, store, text, towers
from tests.helpers.serving import Served, some_rules

JULY = {"from": "2026-07-01"}


def test_what_is_put_is_read(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        put = served.put(some_rules())
        assert put.status_code == 200 and put.headers["etag"] == '"1"'
        said = ConstraintsSaid.model_validate(put.json())
        assert said.who == "Ana (no token)" and said.version == 1
        assert said.zones["A"].text == "Buildings of more than two floors need a permit."
        got = served.ask("GET", "/v1/constraints")
        assert got.json() == put.json() and got.headers["etag"] == '"1"'
        as_put = served.ask("GET", "/v1/constraints/text")
        assert as_put.content == some_rules().encode()
        assert as_put.headers["content-type"] == "text/plain; charset=utf-8"
        value = json.dumps(rules(most("towers", {"tower": 1}, 0.5)))
        again = served.put(value, **{"content-type": "application/json", "if-match": '"1"',
                                     "x-who": "João".encode()})  # fmt: skip
        assert again.json()["version"] == 2 and again.json()["who"] == "João (no token)"
        events = served.ask("GET", "/v1/constraints/history?limit=5").json()
        HistorySaid.model_validate(events)
        assert [item["version_after"] for item in events["events"]] == [2, 1]


WRONG = [
    ("unknown class", text(most("x", {"tovver": 1}, 0.2)), {}, 422, "class 'tovver', which is not"),
    ("overlapping validity", text(most("x", {"tower": 1}, 0.2), most("x", {"tower": 1}, 0.3)), {},
     422, "rule x stands twice for the same days in zone A"),
    ("contradiction", text(most("x", {"tower": 1}, 0.2), most("y", {"tower": -1}, -0.3)), {}, 422,
     "contradict each other at the same priority, 1"),
    ("later contradiction",
     text(most("x", {"tower": 1}, 0.2), most("y", {"tower": -1}, -0.3, valid=JULY)), {}, 422,
     "zone A, from 2026-07-01 on"),
    ("another datum", "datum: MLLW\n" + towers(0.2), {}, 422,
     "have heights above MLLW, and the product has those above MHHW; convert"),
    ("truth for a number", text(most("x", {"tower": 1}, 0.2)).replace("tower: 1", "tower: true"),
     {}, 422, "tower has true (yes/no in YAML), expected a number"),
    ("another base", towers(0.2).replace("0.2", "1:30"), {}, 422, "1:30 would be read as 90"),
    ("YAML called JSON", towers(0.2), {"content-type": "application/json"}, 422,
     "is no JSON object, and was sent as application/json; send YAML with"),
    ("no YAML", "a: [", {}, 422, "line 1: not YAML"),
    ("NaN", towers(0.2).replace("0.2", ".nan"), {}, 422, "max"),
    ("text of no zone", towers(0.2) + "texts: {C: words}\n", {}, 422, "text of zone 'C', which is"),
    ("text of nothing", towers(0.2) + "texts: {A: '  '}\n", {}, 422, "text of zone A says nothing"),
    ("long text", towers(0.2) + f"texts: {{A: {'x' * 8001}}}\n", {}, 422, "at most 8000"),
    ("text for no encoder", towers(0.2) + f"texts: {{A: {'word ' * 70}}}\n", {}, 422, "70 tokens"),
    ("no type", towers(0.2), {"content-type": ""}, 415, "has no type that is told; exp"),
    ("form", towers(0.2), {"content-type": "application/x-www-form-urlencoded"}, 415,
     "www-form-urlencoded'; expected"),
    ("packed", towers(0.2), {"content-encoding": "gzip"}, 415, "packed; expected it not packed"),
    ("nobody", towers(0.2), {"x-who": " "}, 422, "nobody says who puts these rules"),
    ("no version", towers(0.2), {"if-match": 'W/"x"'}, 422, "expected a version such as"),
    ("old version", towers(0.2), {"if-match": '"7"'}, 409, "meant for version 7, and in force is"),
    ("none seen", towers(0.2), {"if-match": '"0"'}, 409, "meant for version 0"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "headers", "status", "words"),
                         [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])  # fmt: skip
def test_what_is_wrong_leaves_the_rules_as_they_were(
    tmp_path: Path, given: str, headers: dict[str, str], status: int, words: str
) -> None:
    with Served(tmp_path, towers(0.25)) as served:
        before = served.service.store.current()
        found = served.put(given, **headers)
        assert found.status_code == status, found.text
        said = Problem.model_validate(found.json())
        assert words in said.error and said.status == status
        assert served.service.store.current() is before
        assert served.ask("GET", "/v1/constraints").headers["etag"] == '"1"'


def test_all_faults_are_listed_and_bounded(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        found = served.put("\n".join(f"k{n}: 1" for n in range(500))).json()
        assert len(found["faults"]) == 21 and found["faults"][-1].startswith("... and ")
        assert len(found["error"]) < 2100


def test_who_is_told_by_the_token(tmp_path: Path) -> None:
    tokens = Tokens("Ana the-token-of-ana-1\nRui the-token-of-rui-2\n", "tokens")
    with Served(tmp_path, tokens=tokens) as served:
        told = []
        for bound, token, who in (
            (0.1, "the-token-of-ana-1", "x"),
            (0.2, "the-token-of-rui-2", ""),
        ):
            headers = {"authorization": f"Bearer {token}", "x-who": who}
            told.append(served.put(towers(bound), **headers).json()["who"])
        assert told == ["x (token of Ana)", "Rui"]


def test_a_wrong_token_is_not_written(tmp_path: Path) -> None:
    with Served(tmp_path, towers(0.1), tokens=Tokens("the-token-of-ana-1", "tokens")) as served:
        before = (tmp_path / "audit.jsonl").read_bytes()
        for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic dTpw"}):
            found = served.put(towers(0.9), **given)
            assert found.status_code == 401 and Problem.model_validate(found.json())
        assert (tmp_path / "audit.jsonl").read_bytes() == before


def test_the_trail_is_not_filled_by_what_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(audit.time, "monotonic", lambda: now[0])
    with store(tmp_path) as kept:
        kept.put(towers(0.1), "Ana")
        for number in range(500):
            with contextlib.suppress(RecipeError):
                kept.put("nothing" if number % 2 else towers(0.1), "Rui")
        lines = (tmp_path / "audit.jsonl").read_text().splitlines()
        assert len(lines) == 1 + audit.AT_ONCE
        kept.put(towers(0.2), "Ana")
        newest = kept.history(1)[0]
        assert newest.event == "accepted", "changes are always told"
        assert newest.sentence.endswith(" (400 refused or unchanged before it were not written)")
        now[0] += 2.5 * audit.EVERY_S
        for _ in range(5):
            kept.put(towers(0.2), "Rui")
        assert len((tmp_path / "audit.jsonl").read_text().splitlines()) == len(lines) + 1 + 2
        assert kept.history(1)[0].sentence == "the text is that of version 2, by Ana"
    with store(tmp_path) as again:
        assert again.version == 2


def test_texts_are_read_before_the_swap_and_when_opened(tmp_path: Path) -> None:
    seen: list[int] = []

    class Looking(FakePlaces):
        def embed(self, texts: object) -> object:  # type: ignore[override]
            seen.append(kept.version)
            return super().embed(texts)  # type: ignore[arg-type]

    model = Looking()
    with store(tmp_path, embed=lambda texts: model.embed(texts)) as kept:
        kept.put(towers(0.1), "Ana")
        found = kept.put(some_rules(), "Ana")
        assert seen == [1], "the old version was in force"
        row = found.embeddings["A"]
        assert set(found.embeddings) == {"A"} and row.shape == (8,)
        with pytest.raises(ValueError, match="read-only"):
            row[0] = 1
    with store(tmp_path, embed=FakePlaces().embed) as again:
        assert (again.current().embeddings["A"] == row).all()
    with pytest.raises(InputError, match="has nothing that reads texts; leave out 'texts'"):
        store(tmp_path)


def test_texts_count_in_the_hash() -> None:
    from edgekd.contracts.policy import policy_of

    value = rules(most("x", {"tower": 1}, 0.2))
    digests = {policy_of(value | {"texts": texts}, "a test").digest
               for texts in ({}, {"A": "one"}, {"A": "two"})}  # fmt: skip
    assert len(digests) == 3


def test_rules_that_were_in_force_are_read_as_they_were_put(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        for number in (1, 2, 3):
            assert served.put(towers(number / 10)).status_code == 200
        for number in (1, 2, 3):
            found = served.ask("GET", f"/v1/constraints/text?version={number}")
            assert found.status_code == 200 and found.text == towers(number / 10)
            assert found.headers["etag"] == f'"{number}"'
        assert served.ask("GET", "/v1/constraints/text").text == towers(0.3)
        for wrong, words in (
            ("4", "there is no version 4; in force is 3"), ("0", "no version 0"),
            ("-1", "expected"), ("x", "version is 'x', expected a number from 1 on"),
            ("9" * 10, "expected a number"),
        ):  # fmt: skip
            found = served.ask("GET", f"/v1/constraints/text?version={wrong}")
            assert found.status_code == 422 and words in found.text, found.text
        kept = served.service.store.folder / "versions" / "000001.yaml"
        kept.write_text(towers(0.9))
        found = served.ask("GET", "/v1/constraints/text?version=1")
        assert found.status_code == 422 and "was changed since it was put" in found.text


def test_a_version_that_never_came_into_force_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekd.errors import OutputError
    from edgekd.serve import rules as module

    with Served(tmp_path) as served:
        assert served.put(towers(0.1)).status_code == 200

        def full(*_: object) -> None:
            raise OutputError("the disk is full")

        with monkeypatch.context() as broken:
            broken.setattr(module, "write_json", full)
            assert served.put(towers(0.2)).status_code == 507
        assert served.put(towers(0.3)).json()["version"] == 3
        assert served.ask("GET", "/v1/constraints/text?version=1").text == towers(0.1)
        found = served.ask("GET", "/v1/constraints/text?version=2")
        assert found.status_code == 422 and "version 2: it never came into force" in found.text
