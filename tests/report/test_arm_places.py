"""Bundles of places on Arm beside x86: what the script concludes, with the CPU made up."""

from __future__ import annotations

import copy
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from edgekd.contracts.evidence import KINDS, Evidence
from edgekd.contracts.manifest import TextEncoderDone
from edgekd.contracts.place_set import load_places
from edgekd.contracts.tensors import SeriesInput
from tests.helpers.bundles import make_bundle
from tests.helpers.place_bundles import make_place_bundle
from tests.helpers.place_line import (
    COUNTS,
    DAYS,
    FACTS,
    FEATURES,
    MEAN,
    ROWS,
    STD,
    WIDTH,
    embeddings,
    make_place_set,
)
from tests.helpers.texts import tokenizer_text

ROOT = Path(__file__).resolve().parents[2]
DAY = "2026-06-01"
#: by how much the encoder's embeddings may differ, as its manifest says
ALLOWED = 0.01


@pytest.fixture(scope="module")
def scripts() -> Iterator[Callable[[str], Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module


class MadeUp:
    """Stands for :class:`_emulated.Emulator`: this Python that says it is an Arm board."""

    def __init__(self, target: str) -> None:
        self.target, self.asked = target, list[Any]()

    def interpreter(self, cpu: Any, folder: Path) -> Path:
        self.asked.append(cpu.model)
        path = folder / "python"
        as_arm = ROOT / "tests" / "helpers" / "as_arm.py"
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{as_arm}" {self.target} "$@"\n')
        path.chmod(0o755)
        return path

    def version(self) -> str:
        return "made up"


def write_encoder(folder: Path) -> TextEncoderDone:
    """An encoder that takes the mean of its tokens' rows."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(tokenizer_text(), encoding="utf-8")
    values = {
        "table": np.random.default_rng(3).normal(size=(100, WIDTH)).astype(np.float32),
        "last": np.array([2]), "tokens": np.array([1]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["rows", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["sum"], keepdims=0),
        helper.make_node("ReduceL2", ["sum"], ["length"], axes=[1], keepdims=1),
        helper.make_node("Div", ["sum", "length"], ["embedding"]),
    ]
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["N", "tokens"])
        for name in ("input_ids", "attention_mask")
    ]
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", WIDTH])
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "texts", ids, [out], constants)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(
        helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "text_encoder.onnx"
    )
    return TextEncoderDone(
        model="text_encoder.onnx", tokenizer="tokenizer.json", name="made-up", sha256="0" * 64,
        width=WIDTH, max_tokens=24, overlap_tokens=4, precision="int8", trial_texts=2,
        max_abs=ALLOWED, cosine_least=1, cosine_mean=1,
    )  # fmt: skip


def make(
    folder: Path, encoder: bool = True, target: str = "rpi4", done: str = "int8", rows: int = ROWS
) -> Path:
    """A bundle whose manifest says that it is INT8 for a board."""
    text = write_encoder(folder).model_dump(mode="json") if encoder else None
    series = SeriesInput(days=DAYS, features=FEATURES, mean=MEAN, std=STD)
    evidence = {
        "series": series.model_dump(mode="json"), "text": {"width": WIDTH}, "text_encoder": text,
        "rules": {"rows": rows}, "facts": FACTS, "simulated": True,
    }  # fmt: skip
    return make_place_bundle(
        folder, evidence=evidence, precision={"asked": [done], "done": done},
        target={"name": target, "arch": "aarch64", "backend": "onnxrt", "threads": 1,
                "versions": {}},
    )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place_set(tmp_path_factory.mktemp("arm-set") / "set")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("arm-places") / "b")


@pytest.fixture(scope="module")
def ran(scripts: Any, bundle: Path, data: Path) -> tuple[Any, Any]:
    """What the child programs left behind, really run: of x86 and of what says it is Arm."""
    asked = read(scripts, data)
    given = asked.given(bundle, scripts("_arm_run").read_int8("rpi4", bundle))
    child = scripts("_arm_places").CHILD
    x86, arm = scripts("_arm_run").run_both(child, bundle, given, "rpi4", MadeUp("rpi4"), 300)
    assert not isinstance(arm, str), arm
    return x86, arm


def read(scripts: Any, data: Path, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "folder": data, "rules": None, "day": scripts("datetime").date.fromisoformat(DAY),
        "count": 8, "texts": 3, "embeddings": None,
    }  # fmt: skip
    return scripts("_arm_asked").AskedPlaces.read(**(values | changes))


@pytest.fixture
def ask(
    scripts: Any, bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """The command, with these results of the child programs, or with real ones."""
    emulation, places = scripts("arm_emulation"), scripts("_arm_places")

    def run(*words: str | Path, results: tuple[Any, Any] | None = None) -> Result:
        monkeypatch.setattr(emulation.Emulator, "find", lambda *_: MadeUp("rpi4"))
        monkeypatch.setattr(emulation, "PLACES_RECORD", tmp_path / "record.json")
        monkeypatch.setattr(emulation, "RECORD", tmp_path / "other.json")
        if results is not None:
            monkeypatch.setattr(places, "run_both", lambda *_: results)
        given: list[str | Path] = ["--root", tmp_path / "root", "--site", tmp_path / "site"]
        common = [*given, "--places", data, "--count", "8", "--texts", "3", "--day", DAY]
        bundles = [] if "--bundle" in words else ["--bundle", f"rpi4={bundle}"]
        return CliRunner().invoke(emulation.main, [str(w) for w in (*common, *bundles, *words)])

    return run


def whole(ran: tuple[Any, Any]) -> tuple[Any, Any]:
    """A copy, where ONNX Runtime left operators that sum integers (the model here has none)."""
    x86, arm = copy.deepcopy(ran)
    return x86, arm._replace(integer={"QGemm": 3})


def test_places_are_asked_on_both_and_the_record_says_what_was_done(
    ask: Any, ran: Any, data: Path, tmp_path: Path
) -> None:
    done = ask("--write", results=whole(ran))
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["passed"] and record["simulated"] and record["places"] == 8
    assert record["without"] == {"image": 1, "series": 1, "text": 1}
    assert record["rules"]["name"] == "made-up" and record["day"] == DAY
    assert "say nothing about a board" in record["emulated"] and record["bound"] == 0.995
    (item,) = record["bundles"]
    for key in ("before", "after"):
        assert item["compared"][key]["places"] == 8 and item["compared"][key]["agreement"] == 1
    assert item["changed_by_rules"] > 0, "or nothing is said of rules"
    assert item["obeyed_on_arm"]["obey"] == 8 and item["emulated_cpu"] == "cortex-a72"
    assert item["texts"]["compared"] and item["texts"]["texts"] == 3
    assert item["verify"]["passed"] and item["verify"]["same_as_stored"]["after"] == 9
    assert "SIMULATED" in done.output


def test_without_integer_sums_nothing_was_said(ask: Any, ran: Any) -> None:
    done = ask(results=ran)
    assert done.exit_code == 1 and "integer operators on Arm: NONE" in done.output


def spoil_class(x86: Any, _arm: Any, key: str) -> None:
    """One place of eight has another class; what Arm answers stays lawful."""
    row = x86.arrays[key][0]
    row[:] = np.roll(row, 1)


def spoil_nan(x86: Any, arm: Any, key: str) -> None:
    """Where the likeliest class would be, and on both."""
    for side in (x86, arm):
        row = side.arrays[key][3]
        row[row.argmax()] = np.nan


def spoil_law(_x86: Any, arm: Any, key: str) -> None:
    """Of the same class, and a little past a bound."""
    answers, free = arm.arrays[key], arm.arrays["before"]
    at = int(np.flatnonzero((answers < 1e-5).any(1))[0])
    low, top = int(answers[at].argmin()), int(answers[at].argmax())
    assert free.shape == answers.shape
    answers[at, low] += 1e-4
    answers[at, top] -= 1e-4


def spoil_sum(_x86: Any, arm: Any, key: str) -> None:
    arm.arrays[key][2] *= np.float32(0.99)


def spoil_texts(_x86: Any, arm: Any, _key: str) -> None:
    arm.arrays["embeddings"][1, 2] += 1.01 * ALLOWED


def spoil_verify(_x86: Any, arm: Any, _key: str) -> None:
    arm.facts["verify"] = {"passed": False, "error_logits": None, "why": "3 logits apart"}


@pytest.mark.parametrize(
    ("spoil", "key", "said"),
    [
        (spoil_class, "before", "before the rules same likeliest class as x86  87.50 %"),
        (spoil_class, "after", "after the rules  same likeliest class as x86  87.50 %"),
        (spoil_nan, "before", "before the rules same likeliest class as x86  87.50 %"),
        (spoil_nan, "before", "largest difference not finite"),
        (spoil_nan, "after", "rules: 7 of 8 answers obey"),
        (spoil_law, "after", "rules: 7 of 8 answers obey"),
        (spoil_sum, "after", "rules: 7 of 8 answers obey"),
        (spoil_texts, "", "embeddings differ by 0.0101 at most, allowed 0.01"),
        (spoil_verify, "", "verify: REFUSED, 3 logits apart"),
    ],
)
def test_whatever_differs_on_arm_ends_with_1(
    ask: Any, ran: Any, spoil: Callable[[Any, Any, str], None], key: str, said: str
) -> None:
    x86, arm = whole(ran)
    spoil(x86, arm, key)
    done = ask(results=(x86, arm))
    assert done.exit_code == 1, done.output
    assert said in done.output


def test_a_difference_is_named_with_the_lead_that_it_overcame(
    ask: Any, ran: Any, tmp_path: Path
) -> None:
    x86, arm = whole(ran)
    spoil_class(x86, arm, "before")
    assert ask("--write", results=(x86, arm)).exit_code == 1
    (item,) = json.loads((tmp_path / "record.json").read_text())["bundles"]
    (differs,) = item["differ"]
    assert differs["place"] == "test_00" and differs["rules"] == "before"
    first, second = np.sort(x86.arrays["before"][0])[::-1][:2]
    assert differs["lead_on_x86"] == pytest.approx(first - second)
    assert differs["x86"] != differs["arm"]


def test_texts_that_could_not_be_read_on_arm_are_told(ask: Any, ran: Any, tmp_path: Path) -> None:
    x86, arm = whole(ran)
    del arm.arrays["embeddings"]
    arm.facts["no_embeddings"] = "tokenizers is not installed"
    done = ask("--write", results=(x86, arm))
    assert done.exit_code == 0 and "texts: NOT compared, tokenizers is not" in done.output
    (item,) = json.loads((tmp_path / "record.json").read_text())["bundles"]
    assert item["texts"] == {"compared": False, "why": "tokenizers is not installed"}


def test_a_child_that_did_not_finish_is_a_failure(ask: Any, ran: Any) -> None:
    done = ask(results=(ran[0], "died of SIGILL"))
    assert done.exit_code == 1 and "FAILED: died of SIGILL" in done.output


def test_a_bundle_that_does_not_run_here_is_wrong_input(
    scripts: Any, ask: Any, data: Path, tmp_path: Path
) -> None:
    """Really run: the child's sentence is the script's."""
    other = make(tmp_path / "other", encoder=False, rows=ROWS - 1)
    np.save(tmp_path / "texts.npy", embeddings(load_places(data)))
    done = ask("--bundle", f"rpi4={other}", "--embeddings", tmp_path / "texts.npy")
    assert done.exit_code == 2
    assert "does not run on this machine: ended with 2: " in done.output
    assert "the manifest promises" in done.output


def test_what_runs_here_is_refused_by_an_arm_that_is_none(
    scripts: Any, bundle: Path, data: Path
) -> None:
    """Really run: the other child says that it is the CPU of a Pi 5, and a Pi 4's was asked for."""
    run, places = scripts("_arm_run"), scripts("_arm_places")
    given = read(scripts, data).given(bundle, run.read_int8("rpi4", bundle))
    with pytest.raises(Exception, match="the emulated process saw"):
        run.run_both(places.CHILD, bundle, given, "rpi4", MadeUp("rpi5"), 300)


class Killed(MadeUp):
    """An interpreter that dies, as one does at an instruction that the CPU does not have."""

    def interpreter(self, cpu: Any, folder: Path) -> Path:
        path = super().interpreter(cpu, folder)
        path.write_text("#!/bin/sh\nkill -ILL $$\n")
        return path


def test_an_instruction_that_the_cpu_does_not_have_is_told(
    scripts: Any, bundle: Path, data: Path
) -> None:
    run, places = scripts("_arm_run"), scripts("_arm_places")
    given = read(scripts, data).given(bundle, run.read_int8("rpi4", bundle))
    _, arm = run.run_both(places.CHILD, bundle, given, "rpi4", Killed("rpi4"), 300)
    assert arm == "died of SIGILL"


def test_places_are_asked_with_what_the_encoder_makes_of_their_texts(
    scripts: Any, bundle: Path, data: Path
) -> None:
    asked = read(scripts, data)
    given = asked.given(bundle, scripts("_arm_run").read_int8("rpi4", bundle))
    with scripts("edgekd.runtime.places").open_places(bundle, any_device=True) as session:
        for number, (at, without) in enumerate(asked.chosen()):
            there = "text" not in without
            assert given["present"][number].tolist()[2] == there
            if there:
                text = session.embed([asked.places.rows[at].text])[0]
                assert np.array_equal(given["text"][number], text)


def test_bundles_without_an_encoder_take_embeddings(
    ask: Any, data: Path, tmp_path: Path, ran: Any
) -> None:
    plain = make(tmp_path / "plain", encoder=False)
    done = ask("--bundle", f"rpi4={plain}")
    assert done.exit_code == 2 and "give the embeddings" in done.output
    np.save(tmp_path / "texts.npy", embeddings(load_places(data)))
    x86, arm = whole(ran)
    done = ask(
        "--bundle", f"rpi4={plain}", "--embeddings", tmp_path / "texts.npy", results=(x86, arm)
    )
    assert done.exit_code == 0 and "the bundle has no encoder of texts" in done.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"done": "fp32"}, "is fp32 for rpi4, expected int8 for rpi4"),
        ({"target": "rpi5"}, "is int8 for rpi5, expected int8 for rpi4"),
    ],
)
def test_another_precision_or_target_is_refused(
    ask: Any, tmp_path: Path, change: dict[str, str], said: str
) -> None:
    other = make(tmp_path / "other", encoder=False, **change)
    done = ask("--bundle", f"rpi4={other}")
    assert done.exit_code == 2 and said in done.output


def test_rules_come_from_the_set_or_are_given(
    scripts: Any, data: Path, tmp_path: Path, bundle: Path
) -> None:
    bare = make_place_set(tmp_path / "bare", rules=False)
    with pytest.raises(Exception, match="comes without rules"):
        read(scripts, bare)
    mine = tmp_path / "mine.yaml"
    mine.write_text((data / "rules.yaml").read_text().replace("made-up", "mine"))
    asked = read(scripts, bare, rules=mine)
    assert asked.policy.name == "mine" and len(asked.chosen()) == 8
    everything = read(scripts, bare, rules=mine, count=1000)
    assert len(everything.chosen()) == COUNTS["test"]


def test_what_is_sent_is_what_the_child_reads(scripts: Any) -> None:
    random = np.random.default_rng(0)
    full = Evidence(
        random.integers(0, 256, (4, 4, 3), np.uint8), np.full((5, 2), np.nan, np.float32),
        np.ones(3, np.float32),
    )  # fmt: skip
    places = [full, Evidence(text=full.text), Evidence(image=full.image, series=full.series)]
    blank = {kind: np.zeros_like(getattr(full, kind)) for kind in KINDS}
    limits = scripts("edgekd.contracts.projection").Limits(
        np.eye(2, 3, dtype=np.float32), np.ones(2, np.float32), np.full(3, 1 / 3, np.float32)
    )
    sent = scripts("_arm_asked").pack(places, [limits] * 3, blank, ["a", "öß"])

    class Session:
        def answer(self, found: list[Evidence], given: list[Any]) -> Any:
            for mine, other in zip(found, places, strict=True):
                for kind in KINDS:
                    have, want = getattr(mine, kind), getattr(other, kind)
                    assert (have is None) == (want is None)
                    assert have is None or np.array_equal(have, want, equal_nan=kind == "series")
            assert len(given) == 3
            for item in given:
                assert all(map(np.array_equal, item, limits))
            return scripts("edgekd.contracts.evidence").Answers(*np.zeros((3, 3, 3), np.float32))

    assert sent["texts"].tolist() == ["a", "öß"]
    assert set(scripts("_arm_places_child").answer(Session(), sent)) == {
        "scores", "before", "after"
    }  # fmt: skip


@pytest.mark.parametrize(
    "words", [("--rules", "r.yaml"), ("--embeddings", "t.npy"), ("--day", DAY)]
)
def test_what_is_about_places_needs_them(scripts: Any, words: tuple[str, str]) -> None:
    given = ["--root", "r", "--site", "s", "--bundle", "rpi4=b", *words]
    done = CliRunner().invoke(scripts("arm_emulation").main, given)
    assert done.exit_code == 2 and "give --places SET" in done.output


def test_pictures_do_not_go_with_places(scripts: Any) -> None:
    given = ["--root", "r", "--site", "s", "--bundle", "rpi4=b", "--places", "p", "a.jpg"]
    done = CliRunner().invoke(scripts("arm_emulation").main, given)
    assert done.exit_code == 2 and "leave them out with --places" in done.output


def test_each_kind_of_bundle_has_its_own_question(
    scripts: Any, ask: Any, bundle: Path, tmp_path: Path
) -> None:
    examine = scripts("arm_emulation").examine
    with pytest.raises(Exception, match="answers for places"):
        examine("rpi4", bundle, [], MadeUp("rpi4"), 60)
    maps = make_bundle(tmp_path / "maps")
    done = ask("--bundle", f"rpi4={maps}")
    assert done.exit_code == 2
