"""``validate RULES`` and ``serve --rules``: the law in words, and faults by file and line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

import edgekd.runtime
from edgekd.cli.main import main
from tests.conftest import ROOT
from tests.helpers.place_line import RULES, PlaceLine
from tests.helpers.places import fake_module

Capture = pytest.CaptureFixture[str]

LAW = """\
schema: 1
name: harbour
zones: {shore: the quay, upland: above the road}
rules:
- id: height
  type: height_limit
  max_m: 20
  zones: [shore]
  priority: 2
  source: Ordinance 12, section 3
- id: floor
  type: flood_zone
  min_floor_m: 2
  priority: 1
  source: Ordinance 12, section 4
  valid: {until: 2030-01-01}
- id: floor
  type: flood_zone
  min_floor_m: 4.5
  priority: 1
  source: Ordinance 14
  valid: {from: 2030-01-01}
- id: houses
  type: linear
  coefficients: {house: -1}
  max: -0.3
  zones: [shore]
  priority: 3
  source: Ordinance 15
- id: old
  type: linear
  coefficients: {park: 1}
  max: 0
  priority: 3
  source: Ordinance 1
  valid: {until: 2001-01-01}
"""
DAY = ["--day", "2026-06-01"]


@pytest.fixture
def law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "law.yaml"
    path.write_text(LAW)
    return path


def test_rules_in_words_by_zone_and_day(
    law: Path, place_bundle: Path, place_line: PlaceLine, capsys: Capture
) -> None:
    for against, room in ((place_bundle, "room for"), (place_line.data, "")):
        assert main(["validate", "law.yaml", *DAY, "--against", str(against)]) == 0
        out = capsys.readouterr().out
        assert "valid rules 'harbour': 5 rules, 2 zones; held against" in out and room in out
        shore = out.index("zone shore (the quay), today:")
        later = out.index("zone shore (the quay), from 2030-01-01 on:")
        assert 0 < out.index("1. floor: no floor below 2 m", shore) < later
        assert "2. height: no buildings above 20 m [Ordinance 12, section 3]" in out[shore:later]
        assert "relaxed: rule houses (-1 house <= -0.3, priority 3) cannot be met" in out
        assert out.index("1. floor: no floor below 4.5 m", later) > later
        assert "on 2026-06-01 and 1 later day with other rules" in out
        assert "no longer in force: old" in out
        assert out.count("not limited by") == 2
        assert "not limited by height, since their height_m is not said: water, park\n" in out
        assert "not limited by floor, since their floor_m is not said: water, park\n" in out


def test_json_and_without_classes(law: Path, capsys: Capture) -> None:
    (law.parent / "law.json").write_text(json.dumps(RULES, indent="\t"))
    assert main(["validate", "law.yaml", "law.json", *DAY, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["results"]
    assert first["kind"] == second["kind"] == "rules" and first["against"] is None
    assert first["day"] == "2026-06-01" and first["later_days"] == ["2030-01-01"]
    assert [item["zone"] for item in first["zones"]] == ["shore", "upland"] * 2
    assert first["zones"][0]["rules"][0]["says"] == "flood_zone min_floor_m 2"
    assert "--against BUNDLE" in first["summary"] and first["not_limited"] == []


def test_facts_that_nobody_asks_for_any_more_are_not_missed(
    law: Path, place_line: PlaceLine, capsys: Capture
) -> None:
    words = ["validate", "law.yaml", "--against", str(place_line.data), "--json"]
    law.write_text(LAW.replace("{from: 2030-01-01}", "{from: 2030-01-01, until: 2031-01-01}"))
    for day, facts in (("2026-06-01", ["height_m", "floor_m"]), ("2031-01-01", ["height_m"])):
        assert main([*words, "--day", day]) == 0
        (found,) = json.loads(capsys.readouterr().out)["results"]
        assert [item["fact"] for item in found["not_limited"]] == facts
    assert found["not_limited"][0]["classes"] == ["water", "park"]
    assert found["not_limited"][0]["rules"] == ["height"]


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("{house: -1}", "{hut: -1}", "line 23: zone shore, today: rule houses has a coefficient "
         "for class 'hut', which is not there"),
        ("until: 2030", "until: 2031", "lines 11 and 17: rule floor stands twice"),
        ("priority: 1\n  source: Ordinance 14", "priority: 3\n  source: Ordinance 14",
         "lines 11, 17 and 23: zone shore, from 2030-01-01 on: rules"),
        ("max_m: 20", "max_n: 20", "line 7: unknown key 'max_n'"),
        ("zones: [shore]\n  priority: 2", "zones: [sea]\n  priority: 2", "line 5: rule height "
         "names zone 'sea'"),
        ("name: harbour", "name: harbour\ntexts: {sea: deep}", "line 3: there is a text of zone "
         "'sea'"),
        ("rules:\n", "rules:\n  - [", "not YAML"),
    ],
)  # fmt: skip
def test_faults_name_file_and_line(
    law: Path, place_line: PlaceLine, capsys: Capture, before: str, after: str, words: str
) -> None:
    law.write_text(LAW.replace(before, after, 1))
    assert main(["validate", "law.yaml", *DAY, "--against", str(place_line.data)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: law.yaml has ") and err.count("\n") == 1
    assert words in err and "this text of rules" not in err


def test_texts_that_the_bundle_cannot_read(law: Path, place_bundle: Path, capsys: Capture) -> None:
    law.write_text(LAW.replace("rules:", "texts: {shore: No towers.}\nrules:"))
    assert main(["validate", "law.yaml", *DAY, "--against", str(place_bundle)]) == 2
    assert "has nothing that reads texts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("{set} --day 2026-06-01", "--against and --day are about rules"),
        ("law.yaml --against {map}", "makes maps"),
        ("law.yaml --against absent", "absent"),
        ("law.yaml --day soon", "expected a day like"),
        ("large.yaml", "large.yaml has"),
    ],
)
def test_wrong_use(
    law: Path, place_line: PlaceLine, capsys: Capture, options: str, words: str
) -> None:
    (law.parent / "large.yaml").write_text(LAW + "# " + "x" * 200_000)
    maps = ROOT / "engines" / "landcover-lite0.yaml"
    given = options.format(set=place_line.data, map=maps)
    assert main(["validate", *given.split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and "this text of rules" not in err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"zones": {}}, "law.yaml has 1 fault: line 4: zones"),
        ({"rules": [{"id": "a", "type": "linear", "coefficients": {"hut": 1}, "max": 0.5,
                     "priority": 1, "source": "made up"}]}, "law.yaml has 1 fault: line 3: zone A"),
    ],
)  # fmt: skip
def test_serve_names_the_file(
    law: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, change: dict[str, object],
    words: str,
) -> None:  # fmt: skip
    module = fake_module()
    monkeypatch.setitem(sys.modules, "edgekd.runtime.places", module)
    monkeypatch.setattr(edgekd.runtime, "places", module, raising=False)
    value = {"schema": 1, "name": "bay", "rules": [], "zones": {"A": "a zone"}} | change
    law.write_text(yaml.safe_dump(value))
    (law.parent / "fake").mkdir()
    command = ["serve", "fake", "--rules", "law.yaml", "--store", "store", "--port", "0"]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert words in err and "this text of rules" not in err


def test_the_rules_in_the_readme_are_valid(tmp_path: Path, capsys: Capture) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = [part.split("```")[0] for part in text.split("```yaml\n")[1:]]
    (block,) = [part for part in blocks if "# rules.yaml" in part.splitlines()[0]]
    path = tmp_path / "rules.yaml"
    path.write_text(block, encoding="utf-8")
    assert main(["validate", str(path), *DAY]) == 0
    assert "valid rules 'harbour': 5 rules, 2 zones" in capsys.readouterr().out
    types = {rule["type"] for rule in yaml.safe_load(block)["rules"]}
    assert types == {"height_limit", "setback", "flood_zone", "linear"}
