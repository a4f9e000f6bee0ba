"""``benchmarks/serve_load.py``: it runs, and it sees what is wrong."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from edgekd.contracts.projection import OBEYED
from tests.helpers.rules import FACTS, most, rules

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "serve_load.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("serve_load", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve_load"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_it_runs() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--fake", "--seconds", "5", "--rate", "5", "--changes", "8"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(
        r"25 requests in 5 s, 0 failed; p50 .* ms, p99 .* ms; 8 changes of the rules, \d versions "
        r"answered by, 0 answers do not obey; memory \d+ MiB, not judged: it was watched for "
        r"5 s, expected 600 or longer: holds", done.stdout,
    )  # fmt: skip


def test_an_answer_that_does_not_obey_is_seen(script: ModuleType) -> None:
    law = script.Law(
        rules(most("wet", {"water": 1}, 0.5, zones=["A"])),
        {name: fact.model_dump() for name, fact in FACTS.items()},
    )
    text = law.version("tower", 0.3)
    named = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "day": "2026-06-01"}

    def past(zone: str, *values: float) -> float:
        classes = ("water", "meadow", "house", "tower")
        answer = {"zone": zone, "probabilities": dict(zip(classes, values, strict=True))}
        found: float = law.past(named, answer)
        return found

    assert past("A", 0.5, 0.2, 0.0, 0.3) == pytest.approx(0, abs=1e-6)
    assert past("A", 0.6, 0.2, 0.0, 0.2) == pytest.approx(0.1, abs=1e-6)
    assert past("B", 0.6, 0.0, 0.0, 0.4) == pytest.approx(0.1, abs=1e-6)
    with pytest.raises(KeyError):
        law.past({**named, "sha256": "0" * 64}, {"zone": "A", "probabilities": {"water": 1.0}})


def tally_of(script: ModuleType, **more: Any) -> Any:
    """Ten minutes, a change every 10 s from 5 s on, all as it should be."""
    begun = [(1, 0.0), *((2 + n, 5.0 + 10 * n) for n in range(60))]
    good = {
        "took_s": [0.1] * 8, "past": [-0.1] * 8, "versions": set(range(1, 62)), "begun": begun,
        "end_s": 600.0, "asked_changes": 60, "changes": 60, "rss_mib": [100.0] * 600,
    }  # fmt: skip
    return script.Tally(**(good | more))


WRONG = [
    ("failed", {"failures": ["503"]}, "1 requests or readings of memory failed"),
    ("nothing", {"past": []}, "nothing was answered"),
    ("far past", {"past": [-0.1, 1e-3]}, "1 answers do not obey"),
    # the product gives no answer that is past a rule by more than OBEYED, so neither is one here
    ("past", {"past": [OBEYED + 3e-7]}, "1 answers do not obey"),
    ("no number", {"past": [float("nan")]}, "1 answers do not obey"),
    ("no change", {"changes": 0}, "0 of 60 changes of the rules were accepted"),
    ("one less", {"changes": 59}, "59 of 60 changes of the rules were accepted"),
    ("for ever by one", {"versions": {1}}, "1 of 61 versions that were in force for longer than 3 "
     "requests are apart were named, expected 0.5 of them or more"),
    ("less than half", {"versions": set(range(1, 31))}, "30 of 61 versions"),
    ("old rules", {"older": 1}, "1 answers name rules before those in force when they were asked"),
    ("memory", {"rss_mib": list(np.linspace(100, 117, 600))}, "memory grew by 8.51 MiB in 600 s, "
     "expected 8 at most"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "words"), [row[1:] for row in WRONG],
                         ids=[row[0] for row in WRONG])  # fmt: skip
def test_what_does_not_hold(script: ModuleType, more: dict[str, Any], words: str) -> None:
    figures = script.figures_of(tally_of(script, **more), 600, 50)
    assert not figures["holds"]
    (said,) = figures["why_not"]
    assert said.startswith(words), said


HOLDS = [
    ("good", {}),
    ("at the bound", {"past": [OBEYED, OBEYED + 5e-8]}),
    ("half of them", {"versions": set(range(1, 32))}),
    ("memory", {"rss_mib": list(np.linspace(100, 115, 600))}),
    # each in force for two and a half requests: nobody need have asked then
    ("too short to be named", {"begun": [(n, 0.05 * n) for n in range(1, 61)] + [(61, 4.0)],
                               "versions": {61}}),
    ("no changes", {"asked_changes": 0, "changes": 0, "versions": {1}, "begun": [(1, 0.0)]}),
]  # fmt: skip


@pytest.mark.parametrize("more", [row[1] for row in HOLDS], ids=[row[0] for row in HOLDS])
def test_what_holds(script: ModuleType, more: dict[str, Any]) -> None:
    figures = script.figures_of(tally_of(script, **more), 600, 50)
    assert figures["holds"] and figures["why_not"] == []


def test_which_versions_are_likely_to_be_named(script: ModuleType) -> None:
    tally = tally_of(script, begun=[(1, 0.0), (2, 0.5), (4, 0.55), (7, 0.8)], end_s=0.82)
    assert script.likely_versions(tally, 50) == {1, 4}
    assert script.likely_versions(tally, 5) == set()
    figures = script.figures_of(tally, 1, 50)
    assert (figures["versions_likely"], figures["versions_likely_seen"]) == (2, 2)


def test_memory_is_judged_where_it_was_watched_for_ten_minutes(script: ModuleType) -> None:
    def figures(seconds: int) -> Any:
        rss = [100.0 + 9 * n for n in range(seconds)]  # 9 MiB/s
        return script.figures_of(tally_of(script, rss_mib=rss), seconds, 50)

    for seconds in (1, 59, 80, 599):
        short = figures(seconds)
        assert short["holds"] and short["rss_growth_mib"] is None
        assert short["memory"] == (
            f"not judged: it was watched for {seconds} s, expected 600 or longer"
        )
    for seconds in (600, 3600):
        assert not figures(seconds)["holds"] and figures(seconds)["rss_growth_mib"] > 8
    assert script.growth_mib(list(np.linspace(0, 800, 800))) == pytest.approx(400, rel=0.02)


def test_ranks(script: ModuleType) -> None:
    assert script.rank_ms([n / 1000 for n in range(1, 101)], 99) == 99.0
    assert script.rank_ms([], 50) is None


def test_an_answer_by_older_rules_is_seen(script: ModuleType) -> None:
    """It obeys the version that it names, which another was put over before it was asked for."""
    law = script.Law(rules(), {})
    sha256 = hashlib.sha256(law.version("tower", 0.5).encode()).hexdigest()

    def body(version: int) -> bytes:
        named = {"version": version, "sha256": sha256, "day": "2026-06-01"}
        answer = {"zone": "A", "probabilities": {"water": 0.9, "tower": 0.1}}
        return json.dumps({"rules": named, "answers": [answer]}).encode()

    tally = script.Tally(bodies=[(2, body(2)), (2, body(3)), (3, body(2)), (3, body(3))])
    tally.judge(law)
    assert tally.older == 1 and tally.versions == {2, 3}
    assert tally.past == pytest.approx([-0.4] * 4)
