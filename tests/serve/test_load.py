"""``benchmarks/serve_load.py``: it runs, and it sees what is wrong."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

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
    assert re.search(r"25 requests in 5 s, 0 failed; p50 .* ms, p99 .* ms; 8 changes of the rules, "
                     r"\d versions answered by, 0 answers do not obey; memory .*: holds",
                     done.stdout)  # fmt: skip


def test_an_answer_that_does_not_obey_is_seen(script: ModuleType) -> None:
    law = script.Law(
        rules(most("wet", {"water": 1}, 0.5, zones=["A"])),
        {name: fact.model_dump() for name, fact in FACTS.items()},
    )
    import hashlib

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


def test_what_does_not_hold(script: ModuleType) -> None:
    def tally(**more: object) -> object:
        good = {"took_s": [0.1] * 8, "past": [-0.1] * 8, "versions": {1}, "rss_mib": [100.0] * 80}
        return script.Tally(**(good | more))

    assert script.figures_of(tally(), 10)["holds"]
    for more in ({"failures": ["503"]}, {"past": [-0.1, 1e-3]}, {"past": []},
                 {"rss_mib": list(np.linspace(100, 140, 80))}):  # fmt: skip
        assert not script.figures_of(tally(**more), 10)["holds"], more
    assert script.growth_mib(list(np.linspace(0, 400, 400))) == pytest.approx(200, rel=0.02)
    assert script.growth_mib([1.0] * 59) is None
    assert script.rank_ms([n / 1000 for n in range(1, 101)], 99) == 99.0
    assert script.rank_ms([], 50) is None
