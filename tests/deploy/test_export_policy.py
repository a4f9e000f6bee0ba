"""The projection as ONNX: the same answers, rules as inputs, behind any classifier."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.contracts.policy_rows import padded
from edgekd.contracts.projection import OBEYED, past_bounds, project
from edgekd.deploy.export.policy import attach_policy, policy_model
from edgekd.errors import InputError
from tests.helpers.policies import problem

ort = pytest.importorskip("onnxruntime")
ROWS = 17


def session(proto: onnx.ModelProto) -> object:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def classifier(shape: list[object], opset: int = 17) -> onnx.ModelProto:
    """``image (N, 6)`` -> ``logits``, a linear layer."""
    weight = np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "w"], ["logits"], name="head/MatMul")],
        "net",
        [value("image", TensorProto.FLOAT, ["N", 6])],
        [value("logits", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def some(count: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    random = np.random.default_rng(5)
    found = [problem(random) for _ in range(count)]
    filled = zip(*(padded(a, b, ROWS) for _, a, b in found), strict=True)
    scores = np.stack([z for z, _, _ in found]).astype(np.float32)
    return scores, dict(zip(("rules", "bounds", "inside"), map(np.stack, filled), strict=True))


def test_it_gives_what_numpy_gives() -> None:
    scores, limits = some(100)
    run = session(policy_model(10, ROWS))
    (found,) = run.run(None, {"scores": scores, **limits})
    assert np.abs(found - project(scores, **limits)).max() <= 1e-6
    assert past_bounds(found, limits["rules"], limits["bounds"]).max() <= OBEYED
    (one,) = run.run(None, {"scores": scores[:1], **{k: v[:1] for k, v in limits.items()}})
    assert np.abs(one - found[:1]).max() <= 1e-6


def test_the_loop_ends_where_nothing_moves(tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    run = ort.InferenceSession(
        policy_model(10, 2).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    easy = padded([[1.0] + [0.0] * 9], [0.05], 2)._asdict()
    run.run(
        None, {"scores": np.zeros((1, 10), np.float32), **{k: v[None] for k, v in easy.items()}}
    )
    events = json.loads(Path(run.end_profiling()).read_text())
    kinds = collections.Counter(
        e["args"]["op_name"] for e in events if e["name"].endswith("kernel_time")
    )
    # one after the loop, one in each step
    assert 9 <= kinds["Softmax"] - 1 <= 16


def test_it_obeys_whatever_becomes_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekd.contracts.projection.STEPS", 1)
    scores, limits = some(100)
    (found,) = session(policy_model(10, ROWS)).run(None, {"scores": scores, **limits})
    assert np.abs(found - project(scores, **limits)).max() <= 1e-6
    assert past_bounds(found, limits["rules"], limits["bounds"]).max() <= OBEYED


def test_behind_a_classifier_new_rules_need_no_new_file() -> None:
    proto = classifier(["N", 10])
    attach_policy(proto, ROWS)
    assert [item.name for item in proto.graph.input] == ["image", "rules", "bounds", "inside"]
    assert [item.name for item in proto.graph.output] == ["probabilities"]
    run = session(proto)
    image = np.random.default_rng(2).normal(size=(8, 6)).astype(np.float32)
    weight = numpy_helper.to_array(proto.graph.initializer[0])
    _, limits = some(8)
    for these in (limits, {name: value[::-1].copy() for name, value in limits.items()}):
        (found,) = run.run(None, {"image": image, **these})
        assert np.abs(found - project(image @ weight, **these)).max() <= 1e-6


def test_the_scores_may_stay_an_output() -> None:
    proto = classifier(["N", 10])
    attach_policy(proto, ROWS, keep_scores=True)
    assert [item.name for item in proto.graph.output] == ["logits", "probabilities"]
    image = np.random.default_rng(2).normal(size=(8, 6)).astype(np.float32)
    _, limits = some(8)
    scores, found = session(proto).run(None, {"image": image, **limits})
    assert np.abs(scores - image @ numpy_helper.to_array(proto.graph.initializer[0])).max() < 1e-5
    assert np.abs(found - project(scores, **limits)).max() <= 1e-6


def test_two_files_of_it_are_equal() -> None:
    first, second = policy_model(10, 8), policy_model(10, 8)
    assert first.SerializeToString() == second.SerializeToString()
    assert first.ByteSize() < 30_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: (classifier(["N", 10], opset=18), 4), "opset 18, expected 17"),
        (lambda: (classifier(["N", "classes"]), 4), "with a fixed number of them"),
        (lambda: (classifier(["N", 10, 1]), 4), r"must be \(N, classes\)"),
        (lambda: (classifier(["N", 10]), 0), "rows is 0"),
        (lambda: (policy_model(10, 4), 4), "has a tensor called"),
    ],
)
def test_other_models_are_refused(change: object, words: str) -> None:
    proto, rows = change()  # type: ignore[operator]
    with pytest.raises(InputError, match=words):
        attach_policy(proto, rows)
