"""Bundles of places: the manifest tells the truth, gates hold, a failure leaves nothing behind."""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekd.contracts import projection
from edgekd.contracts.artifacts import canonical_json, sha256_bytes, sha256_file
from edgekd.contracts.evidence import Answers, EvidenceTensors
from edgekd.contracts.manifest import Manifest, TextEncoderDone
from edgekd.contracts.place_evidence import PlaceReader
from edgekd.contracts.place_set import load_places
from edgekd.contracts.projection import project
from edgekd.contracts.recipe import CalibrationSpec
from edgekd.deploy import places as module
from edgekd.deploy.export import places_export
from edgekd.deploy.export.places_export import torch_places
from edgekd.deploy.finalize import finalize
from edgekd.deploy.place_samples import (
    MOST_JUDGED_PLACES,
    GoldenPlaces,
    PlaceMaterial,
    golden_places,
    open_reader,
)
from edgekd.deploy.places import build_places
from edgekd.deploy.quantize.grounds import Grounds
from edgekd.deploy.quantize.search import Search
from edgekd.errors import CheckpointError, EdgeKDError, GateError, InputError, OutputError
from edgekd.runtime.backends.onnxrt import OnnxRuntimeBackend
from edgekd.runtime.bundle import read_manifest
from edgekd.runtime.places import open_places
from edgekd.train.places.checkpoint import with_statistics
from tests.helpers.place_line import (
    DAYS,
    FEATURES,
    MEAN,
    STD,
    WIDTH,
    PlaceLine,
    embeddings,
    make_place_checkpoint,
    make_place_set,
    place_recipe,
    reuse_export,
    small_student,
)

INT8 = {
    "precision": {"allowed": ["fp32", "int8"], "int8_layers": ["linear", "patch", "conv"]},
    "calibration": {"tiles": 16},
}
DAY = datetime.date(2026, 4, 30)


@pytest.fixture
def quick(place_line: PlaceLine, monkeypatch: pytest.MonkeyPatch) -> None:
    reuse_export(monkeypatch, place_line)


def build(line: PlaceLine, out: Path, target: str = "x86-cpu", **changes: Any) -> Manifest:
    places = line.places()
    recipe = place_recipe(**{k: v for k, v in changes.items() if k not in ("saved", "encoder")})
    more = {k: v for k, v in changes.items() if k in ("saved", "encoder")}
    return build_places(
        recipe, target, line.checkpoint, out, places, embeddings(places), day=DAY, **more
    ).manifest


def test_the_manifest_tells_the_truth(place_line: PlaceLine, place_bundle: Path) -> None:
    manifest = read_manifest(place_bundle)
    assert set(manifest.files) == {"model.onnx", "golden.npz"}
    for name, digest in manifest.files.items():
        assert sha256_file(place_bundle / name) == digest
    evidence = manifest.evidence
    assert evidence is not None and manifest.tiling is None and evidence.text_encoder is None
    assert (evidence.series.days, evidence.series.features) == (DAYS, FEATURES)
    assert (evidence.series.mean, evidence.series.std) == (MEAN, STD), "of the checkpoint"
    assert evidence.simulated and evidence.rules.rows == 5
    assert {n: f.height_m for n, f in evidence.facts.items()} == {"house": 8, "tower": 60}
    origin = manifest.provenance
    recipe = with_statistics(place_recipe(), MEAN, STD)
    assert origin.recipe == recipe.plain()
    assert origin.recipe_sha256 == sha256_bytes(canonical_json(recipe.plain()).encode())
    assert origin.checkpoint_sha256 == sha256_file(place_line.checkpoint)
    gates = {gate.name: gate for gate in manifest.gates}
    assert list(gates) == ["onnx_vs_torch", "batch_vs_single", "projection_vs_numpy",
                           "answers_obey"]  # fmt: skip
    assert gates["onnx_vs_torch"].bound == 1e-3 and gates["projection_vs_numpy"].bound == 1e-5
    assert gates["onnx_vs_torch"].detail.startswith("12 inputs, logits span")
    assert "SIMULATED places of small, split val: val_00" in manifest.golden.source
    assert "with the rules made-up on " in manifest.golden.source
    assert [check.file for check in manifest.checks] == ["model.onnx"]
    assert (manifest.precision.asked, manifest.precision.done) == (["fp32"], "fp32")


def test_golden_answers_are_those_of_torch_and_numpy(
    place_line: PlaceLine, place_bundle: Path
) -> None:
    with open_places(place_bundle) as session:
        golden = session.read_golden()
    recipe = with_statistics(place_recipe(), MEAN, STD)
    tensors = EvidenceTensors(recipe.io.image, recipe.io.series, recipe.io.text)
    scores = torch_places(small_student(recipe.io), recipe.io)(tensors(golden.places()))
    assert np.abs(golden.logits - scores).max() < 1e-4
    want = project(scores, golden.rules, golden.bounds, golden.inside)
    assert np.abs(golden.probabilities - want).max() < 1e-4
    assert golden.present.sum(1).tolist() == [3] * 6 + [2] * 3 + [1] * 3
    validation = {
        PlaceReader(place_line.places(), recipe.io.image, embeddings(place_line.places()))(
            at
        ).image.tobytes()  # type: ignore[union-attr]
        for at, row in enumerate(place_line.places().rows)
        if row.split == "val"
    }
    shown = [item.tobytes() for item, there in zip(golden.image, golden.present[:, 0], strict=True)
             if there]  # fmt: skip
    assert len(shown) >= 8 and validation.issuperset(shown), "no training or test picture leaves"


def test_the_file_is_the_export_and_the_projection(
    place_line: PlaceLine, place_bundle: Path
) -> None:
    proto = onnx.load(place_bundle / "model.onnx")
    assert [item.name for item in proto.graph.input] == [
        "image", "series", "text", "present", "rules", "bounds", "inside",
    ]  # fmt: skip
    assert [item.name for item in proto.graph.output] == ["logits", "probabilities"]
    assert [node.op_type for node in proto.graph.node].count("Loop") == 1
    plain = onnx.load(place_line.export)
    mine = [node for node in proto.graph.node if not node.name.startswith("policy/")]
    assert [n.SerializeToString() for n in mine] == [
        n.SerializeToString() for n in plain.graph.node
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_the_export_equals_torch_with_and_without_each_kind(
    place_line: PlaceLine, count: int
) -> None:
    recipe = with_statistics(place_recipe(), MEAN, STD)
    run = torch_places(small_student(recipe.io), recipe.io)
    random = np.random.default_rng(9)
    with OnnxRuntimeBackend(place_line.export, threads=1) as backend:
        for there in ([1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 0, 0]):
            given = {
                "image": random.normal(size=(count, 3, 64, 64)),
                "series": random.normal(size=(count, DAYS, 2 * len(FEATURES))),
                "text": random.normal(size=(count, WIDTH)),
                "present": np.tile(there, (count, 1)),
            }
            given = {name: value.astype(np.float32) for name, value in given.items()}
            want = run(given)
            assert want.shape == (count, 4) and np.ptp(want) > 0.5
            assert np.abs(backend.infer(given)["logits"] - want).max() < 1e-4


def spoiled(line: PlaceLine, change: Callable[[onnx.GraphProto], None]) -> Any:
    """An export that was changed."""

    def export(_model: Any, _recipe: Any, path: Path) -> Path:
        proto = onnx.load(line.export)
        change(proto.graph)
        onnx.save(proto, path)
        return path

    return export


def other_bias(graph: onnx.GraphProto) -> None:
    (item,) = [item for item in graph.initializer if item.name == "text.bias"]
    values = numpy_helper.to_array(item)
    more = np.random.default_rng(1).normal(0, 0.1, values.shape).astype(np.float32)
    item.CopyFrom(numpy_helper.from_array(values + more, item.name))


def everything_is_there(graph: onnx.GraphProto) -> None:
    """``present`` is not looked at."""
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name == "present":
                node.input[at] = "present/all"
    graph.node.insert(0, helper.make_node("Mul", ["present", "present/0"], ["present/none"]))
    graph.node.insert(1, helper.make_node("Add", ["present/none", "present/1"], ["present/all"]))
    for value in (0, 1):
        graph.initializer.append(numpy_helper.from_array(np.float32(value), f"present/{value}"))


@pytest.mark.parametrize("change", [other_bias, everything_is_there])
def test_an_export_that_is_another_model_is_refused(
    quick: None, place_line: PlaceLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    change: Callable[[onnx.GraphProto], None],
) -> None:  # fmt: skip
    """Also where only places that lack a kind would notice."""
    monkeypatch.setattr(places_export, "export_places", spoiled(place_line, change))
    with pytest.raises(GateError, match="gate onnx_vs_torch failed"):
        build(place_line, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_projection_that_is_another_is_refused(
    quick: None, place_line: PlaceLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.attach_policy

    def fewer(*args: Any, **more: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(projection, "STEPS", 2)
            real(*args, **more)

    monkeypatch.setattr(module, "attach_policy", fewer)
    with pytest.raises(GateError, match="gate projection_vs_numpy failed"):
        build(place_line, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def int8(place_line: PlaceLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """INT8 for another kind of processor, so that nothing is timed here."""
    out = tmp_path_factory.mktemp("int8") / "b"
    with pytest.MonkeyPatch.context() as patch:
        reuse_export(patch, place_line)
        build(place_line, out, "rpi5", **INT8)
    return out


def test_int8_leaves_the_projection_alone(int8: Path, place_bundle: Path) -> None:
    manifest = read_manifest(int8)
    done = manifest.precision
    assert done.done == "int8" and set(manifest.files) == {
        "model.onnx", "golden.npz", "calibration.json"
    }  # fmt: skip
    lowered, plain = (onnx.load(path / "model.onnx") for path in (int8, place_bundle))

    def law(proto: onnx.ModelProto) -> tuple[list[bytes], list[bytes]]:
        nodes = [n.SerializeToString() for n in proto.graph.node if n.name.startswith("policy/")]
        constants = [
            item.SerializeToString()
            for item in proto.graph.initializer
            if item.name.startswith("policy/")
        ]
        return nodes, constants

    assert law(lowered) == law(plain) and len(law(plain)[0]) > 20
    kinds = [node.op_type for node in lowered.graph.node]
    assert kinds.count("DequantizeLinear") > 80, "convolutions and linears"
    assert (int8 / "model.onnx").stat().st_size < (place_bundle / "model.onnx").stat().st_size / 3
    reference, candidate = done.candidates
    assert reference.accuracy is not None and candidate.miou is None and candidate.tiles == 16
    assert 0 < candidate.noise < 0.3, "it is another model, and near"
    gates = {gate.name: gate for gate in manifest.gates}
    assert gates["accuracy_drop"].unit == "percentage points of accuracy"
    assert gates["agreement_with_fp32"].detail == "16 validation places"
    calibration = done.calibration
    assert calibration is not None and calibration.tiles == 16
    assert "small, split train: train_" in calibration.source
    assert "val_" not in calibration.source and "6 of them lack a kind" in calibration.source


def test_int8_is_verified_as_it_is_written_on_another_processor(int8: Path) -> None:
    with pytest.raises(EdgeKDError, match="was built for rpi5"):
        open_places(int8)
    manifest = read_manifest(int8)
    # a tiny student of random weights, whose convolutions' outputs are of 8 bits, too
    assert 1e-2 <= manifest.golden.atol < 3 and manifest.golden.agreement_min == 0.75
    with open_places(int8, any_device=True) as session:
        session.verify()
        assert session.golden_error() < 1e-4, "stored as a session here runs it"


def test_rounding_elsewhere_may_do_what_rounding_here_did(
    int8: Path, place_line: PlaceLine, place_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels that are off by a fraction of a code, so that some round elsewhere, are taken; all
    logits off by the error of INT8, which is the bound of the worst of them, are not."""
    spec, io = read_manifest(int8).golden, place_recipe().io
    assert read_manifest(place_bundle).golden.rms_max is None
    with open_places(int8, any_device=True) as session:
        golden, backend = session.read_golden(), session.backend
        tensors = session._tensors(golden.places())
        with OnnxRuntimeBackend(place_line.export, threads=1) as exact:
            apart = exact.infer(tensors)["logits"].astype(np.float64) - golden.logits
        assert spec.atol == pytest.approx(np.abs(apart).max(), rel=1e-3)
        assert spec.rms_max == pytest.approx(np.sqrt((apart**2).mean()), rel=1e-3)
        real = backend.infer

        def rounded(inputs: Any, stream: bool = False) -> Any:
            noise = np.random.default_rng(0).normal(0, 1e-3, inputs["image"].shape)
            return real({**inputs, "image": inputs["image"] + noise.astype("f4")}, stream)

        monkeypatch.setattr(backend, "infer", rounded)
        assert session.golden_error() > 1e-2, "codes round elsewhere"
        session.verify()

        def infer(inputs: Any, stream: bool = False) -> Any:
            scores = real(inputs, stream)["logits"]
            scores = scores + 0.99 * np.float32(spec.atol) * (-1) ** np.arange(len(io.classes))
            law = (inputs[name] for name in ("rules", "bounds", "inside"))
            return {"logits": scores.astype("f4"),
                    "probabilities": project(scores, *law).astype("f4")}  # fmt: skip

        monkeypatch.setattr(backend, "infer", infer)
        with pytest.raises(GateError, match=r"logits \(root mean square\) on this machine"):
            session.verify()


def test_a_recipe_s_own_golden_bound_is_taken_for_both(
    quick: None, place_line: PlaceLine, tmp_path: Path
) -> None:
    gates = place_recipe().plain()["gates"] | {"golden": {"atol": 5.0}}
    spec = build(place_line, tmp_path / "b", "rpi5", **INT8, gates=gates).golden
    assert (spec.atol, spec.rms_max) == (5.0, 5.0)


def test_an_answer_that_breaks_a_rule_fails_its_gate(place_bundle: Path) -> None:
    with open_places(place_bundle) as session:
        golden = session.read_golden()
    places = GoldenPlaces(golden.places(), list(golden.limits()), "a test")
    for past, passed in ((0.0, True), (0.1, False)):
        given = golden.probabilities.copy()
        row = int(golden.rules[0].any(1).argmax())
        banned = int(golden.rules[0][row].argmax())
        given[0] *= 1 - past
        given[0, banned] += past
        answers = Answers(golden.logits, golden.logits, given)
        gate = {item.name: item for item in module._law_gates(places, answers)}["answers_obey"]
        assert gate.passed == passed
        assert gate.value == pytest.approx(past, abs=1e-5)
    with pytest.raises(GateError, match="gate answers_obey failed"):
        module.require_gates([gate])


def test_a_saved_calibration_makes_the_same_file(
    quick: None, place_line: PlaceLine, int8: Path, tmp_path: Path
) -> None:
    saved = tmp_path / "calibration.json"
    shutil.copyfile(int8 / "calibration.json", saved)
    build(place_line, tmp_path / "again", "rpi5", saved=saved, **INT8)
    for name in ("model.onnx", "golden.npz", "calibration.json"):
        assert (tmp_path / "again" / name).read_bytes() == (int8 / name).read_bytes(), name
    with pytest.raises(InputError, match="takes no ranges; leave it out"):
        build(place_line, tmp_path / "b", saved=saved)
    other = place_recipe(**INT8).plain()["io"]
    other["image"]["mean"] = [100.0] * 3
    recipe = place_recipe(**INT8, io=other)
    reader = open_reader(recipe, place_line.places(), embeddings(place_line.places()))
    material = PlaceMaterial(with_statistics(recipe, MEAN, STD), reader, saved)
    with pytest.raises(InputError, match="was made with another input"):
        Grounds(onnx.load(place_line.export), recipe, material, lambda text: None)


def test_int8_that_fails_its_gates_is_not_packed(
    quick: None, place_line: PlaceLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_repair(layers: Any, make: Any, judge: Any, *_: Any) -> Search:
        return Search([], judge(make(layers)), False)

    monkeypatch.setattr(Grounds, "passes", lambda self, quality: False)
    monkeypatch.setattr("edgekd.deploy.quantize.grounds.search", no_repair)
    few: dict[str, Any] = {"calibration": {"tiles": 4}}
    both = {"precision": {"allowed": ["fp32", "int8"], "int8_layers": ["linear"]}}
    manifest = build(place_line, tmp_path / "b", "rpi5", **few, **both)
    only = {"precision": {"allowed": ["int8"], "int8_layers": ["linear"]}}
    with pytest.raises(GateError, match=r"no allowed precision keeps the gates: .*accuracy"):
        build(place_line, tmp_path / "c", "rpi5", **few, **only)
    assert manifest.precision.done == "fp32" and not (tmp_path / "c").exists()
    kinds = {node.op_type for node in onnx.load(tmp_path / "b" / "model.onnx").graph.node}
    assert "QuantizeLinear" not in kinds


def material_of(line: PlaceLine) -> PlaceMaterial:
    recipe = with_statistics(place_recipe(), MEAN, STD)
    return PlaceMaterial(
        recipe, open_reader(recipe, line.places(), embeddings(line.places())), None
    )


def test_calibration_sees_training_places_with_and_without_each_kind(
    place_line: PlaceLine,
) -> None:
    samples, wanted, source = material_of(place_line).calibrating(CalibrationSpec(tiles=16))
    assert wanted == 16 == len(samples) and "small, split train" in source
    present = np.concatenate([item.inputs()["present"] for item in samples])
    assert present.min(0).max() == 0, "each kind is missing somewhere"
    assert 0.5 < (present.sum(1) == 3).mean() < 1 and present.sum(1).min() == 2
    seen = [b"".join(v.tobytes() for v in item.inputs().values()) for item in samples]
    assert len(set(seen)) == 16


def test_a_precision_is_judged_on_validation_places(place_line: PlaceLine) -> None:
    samples = material_of(place_line).judged()
    rows = [row for row in place_line.places().rows if row.split == "val"]
    assert sum(item.count for item in samples) == len(rows) < MOST_JUDGED_PLACES
    labels = np.concatenate([item.labels for item in samples if item.labels is not None])
    assert labels.tolist() == [row.label for row in rows]
    assert {item.inputs()["image"].shape[0] for item in samples} == {16}


@pytest.mark.parametrize(
    ("target", "changes", "words"),
    [
        ("orin-nx-16gb", {}, "takes an engine of TensorRT, and bundles of places are built for"),
        ("x86-cpu", {"targets": ["rpi5"]}, "does not name the target x86-cpu"),
        ("x86-cpu", {"precision": {"allowed": ["fp16"]}}, "precision.allowed is fp16"),
    ],
)
def test_targets_and_precisions_that_cannot_be(
    quick: None, place_line: PlaceLine, tmp_path: Path, target: str, changes: dict[str, Any],
    words: str,
) -> None:  # fmt: skip
    with pytest.raises(InputError, match=words):
        build(place_line, tmp_path / "b", target, **changes)
    assert list(tmp_path.iterdir()) == []


def test_without_a_set_places_are_made_up_and_the_bundle_says_so(
    quick: None, place_line: PlaceLine, tmp_path: Path
) -> None:
    out = tmp_path / "b"
    made = build_places(place_recipe(), "x86-cpu", place_line.checkpoint, out, None, None)
    source = made.manifest.golden.source
    assert source.startswith("synthetic places (no data set at hand), with the made-up rule that")
    with open_places(out) as session:
        golden = session.read_golden()
    assert golden.probabilities[:, 0].max() <= 1e-5 < golden.free[:, 0].max()
    recipe = place_recipe(**INT8)
    with pytest.raises(InputError, match="judged on real places, and the set is not here"):
        build_places(recipe, "rpi5", place_line.checkpoint, tmp_path / "c", None, None)
    with pytest.raises(InputError, match="come together"):
        build_places(recipe, "rpi5", place_line.checkpoint, tmp_path / "c", None,
                     np.zeros((1, 8), np.float32))  # fmt: skip


def test_a_set_without_rules_gets_a_made_up_one(tmp_path: Path) -> None:
    places = load_places(make_place_set(tmp_path / "set", rules=False))
    recipe = with_statistics(place_recipe(), MEAN, STD)
    found = golden_places(recipe, open_reader(recipe, places, embeddings(places)), {}, DAY)
    assert "; with the made-up rule that water has no" in found.source
    assert [item.rules[0].tolist() for item in found.limits] == [[1, 0, 0, 0]] * 12


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": place_recipe().plain()}, "has no scale of its series"),
        ({"tuning": {}}, "does not say whether it learned from a simulated set"),
    ],
)
def test_checkpoints_that_lack_something(
    quick: None, place_line: PlaceLine, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = make_place_checkpoint(tmp_path / "c.ckpt", **changes)
    with pytest.raises(CheckpointError, match=words):
        build_places(place_recipe(), "x86-cpu", path, tmp_path / "b", None, None)


def encoder_of(**changes: Any) -> Callable[[Path], TextEncoderDone]:
    def write(folder: Path) -> TextEncoderDone:
        (folder / "text_encoder.onnx").write_bytes(b"onnx")
        (folder / "tokenizer.json").write_text("{}")
        given = {
            "model": "text_encoder.onnx", "tokenizer": "tokenizer.json", "name": "made-up",
            "sha256": "1" * 64, "width": WIDTH, "max_tokens": 64, "precision": "int8",
            # what later versions say besides
            "overlap_tokens": 8, "trial_texts": 2, "max_abs": 0.0, "cosine_least": 1.0,
            "cosine_mean": 1.0,
        }  # fmt: skip
        known = TextEncoderDone.model_fields
        return TextEncoderDone(**{k: v for k, v in (given | changes).items() if k in known})

    return write


def test_an_encoder_of_texts_is_packed_if_it_is_the_students(
    quick: None, place_line: PlaceLine, tmp_path: Path
) -> None:
    manifest = build(place_line, tmp_path / "b", encoder=encoder_of())
    assert {"text_encoder.onnx", "tokenizer.json"} < set(manifest.files)
    assert manifest.evidence is not None and manifest.evidence.text_encoder is not None
    recipe, made = place_recipe(), {"name": "made-up", "sha256": "1" * 64}
    other = encoder_of(sha256="2" * 64)(tmp_path)
    with pytest.raises(CheckpointError, match=r"is made-up \(2222.*learned with made-up \(1111"):
        module._encoder(other, recipe, made, "c.ckpt")
    with pytest.raises(InputError, match="gives embeddings of 9, and recipe .* takes 8"):
        module._encoder(encoder_of(width=9)(tmp_path), recipe, made, "c.ckpt")


def test_a_strangers_folder_is_not_replaced(
    quick: None, place_line: PlaceLine, tmp_path: Path
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError):
        build(place_line, tmp_path / "b")
    assert (tmp_path / "b" / "notes.txt").read_text() == "mine"


def test_there_is_nothing_to_finalise(place_bundle: Path) -> None:
    with pytest.raises(InputError, match=r"needs no engine; it is ready: edgekd run .* SET -o"):
        finalize(place_bundle)
