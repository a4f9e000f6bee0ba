"""What lower precision costs: ``python benchmarks/precision_table.py [--poison] [--write]``.

One tuned student in several files: FP32, FP16, INT8 as ``edgekd build`` makes it for x86 and for
Arm, INT8 by ONNX Runtime's ``quantize_static`` with its own defaults, fed with the same calibration
tiles. For each: mIoU on the whole test split (tiled and blended as ``edgekd eval`` does), part of
the pixels with FP32's class, bytes, tiles/s. Accuracy is given twice: *as written* (ONNX Runtime's
optimiser off: what the graph says, which decides for Arm) and *here* (its fused kernels on this
processor, which decides for x86). x86 without VNNI is a third case: its kernels add pairs of
products in 16 bits and saturate. ``--avx2 qemu-x86_64-static`` shows it on single tiles.

``--poison`` asks another question: the weights of one channel of one layer are multiplied by 50,
once of an output channel and once of an input channel; does the search find which layers suffer,
and how few does it keep high? The poisoned student in FP32 is the reference there.

Speed is the processor time of one thread, FP32 and the other in turn, for the machine may be
shared. Ends with 1 when our INT8 loses more than 0.5 points of mIoU on the test split where it
counts, or when the search misses the gates.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from _records import here
from onnx import numpy_helper

from edgekd.contracts.artifacts import sha256_file, write_json
from edgekd.contracts.imageio import UInt8Array
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.recipe import load_recipe
from edgekd.contracts.sensor_labelled import open_data
from edgekd.deploy.parity import Model, Tensors
from edgekd.deploy.quantize.calibrate import Activations, observe
from edgekd.deploy.quantize.emulate import emulate
from edgekd.deploy.quantize.half import overflowing, to_half
from edgekd.deploy.quantize.judge import Judge, Quality
from edgekd.deploy.quantize.layers import Layer, choose_layers, find_layers
from edgekd.deploy.quantize.material import tile_samples
from edgekd.deploy.quantize.qdq import insert_qdq, quantized, weight_scales
from edgekd.deploy.quantize.search import search
from edgekd.deploy.tiles import labelled_tiles
from edgekd.runtime.backends.onnxrt import OnnxRuntimeBackend, has_int8_dot_product
from edgekd.runtime.bundle import open_bundle
from edgekd.runtime.evaluate import evaluate_bundle
from edgekd.runtime.session import Prediction, Session

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("EDGEKD_TEST_DATA") or ROOT.parent / "shared" / "data")
#: mIoU that our INT8 may lose on the test split, percentage points.
BOUND = 0.5
#: the two ways to run a file.
WRITTEN, HERE = "as written", "here"
WARM_UP = 5
#: validation tiles that the poisoned students are judged on; a build takes up to 32.
JUDGED_TILES = 8
#: a range or scale that grew by more than this is named as a reason.
GROWN = 4
#: run by an emulated processor: tiles, then pairs of model and place of its answers.
CHILD = """
import sys
import numpy as np
import onnxruntime as ort
tiles = np.load(sys.argv[1])
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3
for model, place in zip(sys.argv[2::2], sys.argv[3::2]):
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    np.save(place, np.concatenate([session.run(None, {name: tile[None]})[0] for tile in tiles]))
"""


@dataclass
class Variant:
    """One row: a file, the way of running that decides for its target, and what was found."""

    name: str
    title: str
    path: Path
    decides: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Work:
    """What all parts share: recipe, data, calibration tiles, and a folder for files."""

    def __init__(
        self,
        recipe: Path,
        checkpoint: Path,
        data: Path,
        changes: Sequence[str],
        tiles: int,
        folder: Path,
    ) -> None:
        self.places = {"RECIPE": recipe, "CHECKPOINT": checkpoint, "DATA": data, "OUT": folder}
        self.folder, self.tiles = folder, tiles
        self.recipe = load_recipe(recipe, list(changes))
        self.changes = changes
        self.data = open_data(self.recipe, data, training=False)
        self.spec = self.recipe.io.inputs[0]
        self.normalize = Normalizer(self.spec)
        self.commands: list[str] = []
        self._calibration = labelled_tiles(self.data, "train", self.spec.tile_px, tiles)

    def calibration(self) -> Iterator[Tensors]:
        """Normalised training tiles, the same that a build takes."""
        for tile in self._calibration:
            yield {self.spec.name: self.normalize(tile.pixels)[None]}

    def watch(self, proto: onnx.ModelProto, layers: Sequence[Layer]) -> Activations:
        """What layers see on the calibration tiles."""
        return observe(proto, layers, self.calibration(), self.tiles)

    def calibration_sha256(self) -> str:
        """As a build's manifest states it."""
        digest = hashlib.sha256()
        for tile in self.calibration():
            digest.update(tile[self.spec.name].tobytes())
        return digest.hexdigest()

    def judge(self, fp32: onnx.ModelProto, split: str, count: int) -> Judge:
        """On single tiles of a split."""
        tiles = labelled_tiles(self.data, split, self.spec.tile_px, count)
        reference = emulate(fp32, optimize=True)
        return Judge(reference, tile_samples(tiles, self.spec), len(self.recipe.io.classes))

    def said(self, *words: str) -> None:
        """Keep and show a command, without the places of this machine."""
        text = shlex.join(words)
        for name, place in self.places.items():
            text = text.replace(str(place), name)
        self.commands.append(text)
        click.echo(text, err=True)

    def build(self, name: str, title: str, target: str, precision: str, *changes: str) -> Variant:
        """``edgekd build`` into the folder."""
        out = self.folder / name
        sets = [f"targets=[{target}]", *self.changes, *changes]
        if precision == "int8":
            sets.append(f"calibration={{tiles: {self.tiles}}}")
        words = [
            "build", str(self.places["RECIPE"]), "--target", target, "--precision", precision,
            "--checkpoint", str(self.places["CHECKPOINT"]), "--data", str(self.places["DATA"]),
            "-o", str(out), *(f"--set={text}" for text in sets),
        ]  # fmt: skip
        self.said("edgekd", *words)
        command = [sys.executable, "-m", "edgekd", *words, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise click.ClickException(" ".join(done.stderr.splitlines()[-1:]))
        manifest = json.loads(done.stdout)["manifest"]
        made = manifest["precision"].get("calibration")
        if made is not None and made["sha256"] != self.calibration_sha256():
            raise click.ClickException(f"{name} was calibrated on other tiles than the rest")
        variant = Variant(name, title, out / manifest["model"])
        variant.facts = {"target": target, "kept_high": manifest["precision"]["kept_high"]}
        return variant

    def store(self, name: str, title: str, proto: onnx.ModelProto) -> Variant:
        """A graph as a file."""
        path = self.folder / f"{name}.onnx"
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return Variant(name, title, path)

    def evaluate(self, model: Path, optimize: bool) -> tuple[float, list[UInt8Array]]:
        """mIoU on the test split as ``edgekd eval`` measures it, and the maps.

        The FP32 bundle says how to tile, whichever file runs.
        """
        opened = open_bundle(self.folder / "fp32", ())
        recording = _Recording(opened, OnnxRuntimeBackend(model, optimize=optimize))
        recording.maps = []
        with recording as session:
            found = evaluate_bundle(session, self.data, "test")
        return float(found["miou"]), recording.maps


class _Recording(Session):
    """A session that keeps the maps it makes."""

    maps: list[UInt8Array]

    def run(self, image: npt.NDArray[np.generic], overlap_px: int | None = None) -> Prediction:
        made = super().run(image, overlap_px)
        self.maps.append(made.classes)
        return made


def same_pixels(one: Sequence[UInt8Array], other: Sequence[UInt8Array]) -> float:
    """Part of the pixels with the same class, labelled or not."""
    same = sum(int((a == b).sum()) for a, b in zip(one, other, strict=True))
    return same / sum(item.size for item in one)


def make_variants(work: Work) -> list[Variant]:
    """Build or write every file, FP32 first."""
    fp32 = work.build("fp32", "FP32", "x86-cpu", "fp32")
    plain = onnx.load(fp32.path)
    layers = find_layers(plain)
    half = to_half(plain, too_large=overflowing(work.watch(plain, layers).largest))
    x86 = work.build("int8-x86", "INT8, edgekd for x86-cpu (7-bit weights)", "x86-cpu", "int8")
    arm = work.build("int8-arm", "INT8, edgekd for rpi4, rpi5 (8-bit weights)", "rpi5", "int8")
    x86.decides, arm.decides = HERE, WRITTEN
    made = [fp32, work.store("fp16", "FP16", half), x86, arm]
    kinds = {layer.kind for layer in layers}
    if "conv" in kinds and "conv" not in work.recipe.precision.int8_layers:
        title = "for information: as x86-cpu, other convolutions too"
        change = "precision.int8_layers=[linear, patch, conv]"
        made.append(work.build("int8-conv", title, "x86-cpu", "int8", change))
    return [*made, _ort_defaults(work, fp32)]


def _ort_defaults(work: Work, fp32: Variant) -> Variant:
    """The plain call, without ``quant_pre_process``."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        """The calibration tiles, one at a time, and then None."""

        def __init__(self) -> None:
            self._tiles = work.calibration()

        def get_next(self) -> Tensors | None:
            return next(self._tiles, None)

    made = Variant("int8-ort", "INT8, ONNX Runtime's defaults", work.folder / "int8-ort.onnx")
    work.said("quantize_static", str(fp32.path), str(made.path), "Reader()")
    quantize_static(str(fp32.path), str(made.path), Reader())
    parameters = inspect.signature(quantize_static).parameters
    made.facts["defaults"] = {
        name: str(item.default)
        for name, item in parameters.items()
        if item.default is not inspect.Parameter.empty
    }
    made.facts["quant_pre_process"] = False
    return made


def time_in_turn(variants: Sequence[Variant], tile: Tensors, rounds: int) -> None:
    """One tile through FP32, the first file, FP32, the second, ...; one thread each.

    The calling thread does all the work, so its processor time is the model's; wall-clock beside.
    FP32 is the first file, too, in a session of its own: how far it is from 1 is the noise.
    """
    fp32 = emulate(onnx.load(variants[0].path), threads=1, optimize=True)
    models = [emulate(onnx.load(item.path), threads=1, optimize=True) for item in variants]

    def run(model: Model) -> tuple[float, float]:
        start, start_wall = time.thread_time(), time.perf_counter()
        model(tile)
        return time.thread_time() - start, time.perf_counter() - start_wall

    pairs: list[list[tuple[float, ...]]] = [[] for _ in models]
    for number in range(rounds + WARM_UP):
        for model, mine in zip(models, pairs, strict=True):
            times = (*run(fp32), *run(model))
            if number >= WARM_UP:
                mine.append(times)
    for item, mine in zip(variants, pairs, strict=True):
        _, _, cpu_s, wall_s = (statistics.median(column) for column in zip(*mine, strict=True))
        ratios = [times[0] / times[2] for times in mine]
        item.facts["speed"] = {
            "cpu_s": cpu_s, "wall_s": wall_s, "times_fp32": statistics.median(ratios),
            "times_fp32_quartiles": np.percentile(ratios, [25, 75]).tolist(), "runs": rounds,
        }  # fmt: skip


def without_vnni(work: Work, variants: Sequence[Variant], emulator: str, count: int) -> None:
    """Run every file on an emulated x86 with AVX2 alone; answers beside FP32's of this machine."""
    tiles = labelled_tiles(work.data, "test", work.spec.tile_px, count)
    stored = work.folder / "tiles.npy"
    np.save(stored, np.stack([work.normalize(tile.pixels) for tile in tiles]))
    places = {item.name: work.folder / f"{item.name}.npy" for item in variants}
    pairs = [str(path) for item in variants for path in (item.path, places[item.name])]
    words = [emulator, "-cpu", "Haswell", sys.executable, "-c", CHILD, str(stored), *pairs]
    work.said(Path(emulator).name, "-cpu", "Haswell", "python", f"{len(tiles)} test tiles")
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{emulator}: {' '.join(done.stderr.splitlines()[-1:])}")
    judge = work.judge(onnx.load(variants[0].path), "test", count)
    for item in variants:
        proto, answers = onnx.load(item.path), iter(np.load(places[item.name]))
        item.facts["single_tiles"] = {
            WRITTEN: asdict(judge(emulate(proto))),
            HERE: asdict(judge(emulate(proto, optimize=True))),
            "avx2": asdict(judge(lambda _tile, left=answers: next(left)[None])),  # type: ignore[misc]
        }


def precision_table(
    work: Work, runs: int, emulator: str | None, count: int
) -> tuple[dict[str, Any], bool]:
    """All rows, printed; the record, and whether ours keep the bound."""
    variants = make_variants(work)
    time_in_turn(variants, next(work.calibration()), runs)
    reference: dict[str, tuple[float, list[UInt8Array]]] = {}
    for item in variants:
        for way in (HERE, WRITTEN):
            click.echo(f"{item.name}: test split, {way}", err=True)
            miou, maps = work.evaluate(item.path, optimize=way == HERE)
            before, first = reference.setdefault(way, (miou, maps))
            item.facts[way] = {
                "miou": miou,
                "change": 100 * (miou - before),
                "agreement": same_pixels(first, maps),
            }
        item.facts["bytes"] = item.path.stat().st_size
        item.facts["sha256"] = sha256_file(item.path)
    if emulator is not None:
        without_vnni(work, variants, emulator, count)
    ours = [(item.name, item.facts[item.decides]) for item in variants if item.decides]
    missed = [name for name, found in ours if not -found["change"] <= BOUND]
    _print_table(variants, emulator is not None)
    rows = [
        {"name": item.name, "title": item.title, "decides": item.decides, **item.facts}
        for item in variants
    ]
    what = "one student in several precisions; accuracy on the test split in two ways of running"
    return {"what": what, "bound_points": BOUND, "missed": missed, "variants": rows}, not missed


def _print_table(variants: Sequence[Variant], emulated: bool) -> None:
    here = f"here ({'VNNI' if has_int8_dot_product() else 'no VNNI'})"
    click.echo(
        f"| model | MB | mIoU, {WRITTEN} | same class as FP32 | mIoU, {here} | same class as FP32 "
        "| tiles/s, one core | times FP32 (quartiles) |\n|---|---|---|---|---|---|---|---|"
    )
    for item in variants:
        cells = [f"{item.title} | {item.facts['bytes'] / 1e6:.2f}"]
        for way in (WRITTEN, HERE):
            found = item.facts[way]
            mark = "**" if item.decides == way else ""
            change = round(found["change"], 2) + 0.0  # no "-0.00"
            cells.append(f"{mark}{100 * found['miou']:.2f} % ({change:+.2f}){mark}")
            cells.append(f"{mark}{100 * found['agreement']:.2f} %{mark}")
        speed = item.facts["speed"]
        low, high = speed["times_fp32_quartiles"]
        cells.append(f"{1 / speed['cpu_s']:.0f}")
        cells.append(f"{speed['times_fp32']:.2f} ({low:.2f}-{high:.2f})")
        click.echo(f"| {' | '.join(cells)} |")
    click.echo(f"\nBold decides for the file's target; at most {BOUND:g} points may be lost there.")
    for item in variants:
        if item.facts.get("kept_high"):
            click.echo(f"{item.title}: kept high {', '.join(item.facts['kept_high'])}")
    if not emulated:
        return
    tiles = variants[0].facts["single_tiles"][HERE]["tiles"]
    click.echo(
        f"\n| {tiles} single test tiles: cells with FP32's class, noise of the logits | {WRITTEN} "
        f"| {here} | AVX2 without VNNI, emulated |\n|---|---|---|---|"
    )
    for item in variants:
        told = [
            f"{100 * value['agreement']:.2f} %, {100 * value['noise']:.1f} %"
            for value in item.facts["single_tiles"].values()
        ]
        click.echo(f"| {item.title} | {' | '.join(told)} |")


@dataclass(frozen=True)
class Poison:
    """What is done to a student; ``way`` says of which side the channel is, output or input."""

    layer: str
    way: str
    channel: int
    factor: float

    def applied(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """A poisoned copy.

        Raises:
            click.ClickException: no such layer or channel.
        """
        result = onnx.ModelProto()
        result.CopyFrom(proto)
        layers = {item.name: item for item in find_layers(result)}
        if self.layer not in layers:
            raise click.ClickException(f"no layer {self.layer} (layers: {', '.join(layers)})")
        layer = layers[self.layer]
        axis = layer.axis if self.way == "output" else 1 - layer.axis
        item = _constant(result, layer.weight)
        values = np.moveaxis(numpy_helper.to_array(item).copy(), axis, 0)
        if self.channel >= len(values):
            raise click.ClickException(f"{self.layer} has {len(values)} {self.way} channels")
        values[self.channel] *= self.factor
        item.CopyFrom(numpy_helper.from_array(np.moveaxis(values, 0, axis), item.name))
        return result


def _constant(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = {item.name: item for item in proto.graph.initializer}[name]
    return found


def poisoned(work: Work, clean: onnx.ModelProto, poison: Poison, bits: int) -> dict[str, Any]:
    """Poison, quantise all layers, search; figures of the case."""
    spec, gates = work.recipe.precision, work.recipe.gates
    proto = poison.applied(clean)
    layers = choose_layers(find_layers(proto), spec.int8_layers, spec.keep_high)
    ranges = work.watch(proto, layers).ranges(spec.range, spec.percentile)
    before = work.watch(clean, layers).ranges(spec.range, spec.percentile)
    judge = work.judge(proto, "val", JUDGED_TILES)

    def graph(high: Sequence[str] = ()) -> onnx.ModelProto:
        chosen = [layer for layer in layers if layer.name not in high]
        return insert_qdq(proto, chosen, ranges, weight_bits=bits)

    def make(chosen: Sequence[Layer]) -> Model:
        return emulate(insert_qdq(proto, chosen, ranges, weight_bits=bits))

    def told(quality: Quality) -> dict[str, Any]:
        assert judge.reference.miou is not None and quality.miou is not None  # the set has labels
        drop = 100 * (judge.reference.miou - quality.miou)
        holds = quality.agreement >= gates.agreement_min and drop <= gates.miou_drop_max
        return {**asdict(quality), "change": -drop, "holds": holds}

    found = search(
        layers, make, judge, lambda quality: bool(told(quality)["holds"]),
        lambda text: click.echo(f"  {text}", err=True),
    )  # fmt: skip
    by_name = {layer.name: layer for layer in layers}
    looked_at = [by_name[name] for name in {poison.layer: 0, **dict.fromkeys(found.kept_high)}]
    files = {"fp32": proto, "all_int8": graph(), "repaired": graph(found.kept_high)}
    return {
        **asdict(poison),
        "weight_bits": bits,
        "layers": len(by_name),
        "reference_val_miou": judge.reference.miou,
        "tried": [{"high": count, **told(quality)} for count, quality in found.tried],
        "repaired": told(found.quality),
        "kept_high": found.kept_high,
        "sensitivity": dict(sorted(found.sensitivity.items(), key=lambda item: -item[1])),
        "why": {
            layer.name: {
                "input_range": [before[layer.source], ranges[layer.source]],
                "typical_weight_steps": [
                    _typical_code(model, layer, bits) for model in (clean, proto)
                ],
            }
            for layer in looked_at
        },
        "test": _on_test(work, files),
    }


def _typical_code(proto: onnx.ModelProto, layer: Layer, bits: int) -> float:
    """Median absolute integer of a layer's weights: how many steps a common weight has."""
    values = numpy_helper.to_array(_constant(proto, layer.weight))
    codes = quantized(values, weight_scales(values, layer.axis, bits), layer.axis, bits)
    return float(np.median(np.abs(codes.astype(np.int64))))


def _on_test(work: Work, files: dict[str, onnx.ModelProto]) -> dict[str, dict[str, float]]:
    """mIoU and agreement on the test split, as written; the first file is the reference."""
    found: dict[str, dict[str, float]] = {}
    first: list[UInt8Array] | None = None
    for name, proto in files.items():
        click.echo(f"  test split: {name}", err=True)
        miou, maps = work.evaluate(work.store("poisoned", name, proto).path, optimize=False)
        first = first or maps
        found[name] = {"miou": miou, "agreement": same_pixels(first, maps)}
    return found


def poison_cases(
    work: Work, layer: str, channel: int, factor: float
) -> tuple[dict[str, Any], bool]:
    """Both sides, with the weight bits of Arm and of x86, printed; the record, and whether the
    search kept the gates."""
    clean = onnx.load(work.build("fp32", "FP32", "x86-cpu", "fp32").path)
    cases = []
    for way in ("output", "input"):
        for bits in (8, 7):
            click.echo(f"{way} channel {channel} of {layer} x {factor:g}, {bits} bits", err=True)
            cases.append(poisoned(work, clean, Poison(layer, way, channel, factor), bits))
    gates = work.recipe.gates
    click.echo(
        f"Gates: at least {100 * gates.agreement_min:g} % of the validation cells with FP32's "
        f"class, at most {gates.miou_drop_max:g} points of mIoU lost (both stand in the table).\n\n"
        "| poison | weights | all INT8, validation | after the search | kept high | test mIoU of "
        "FP32, all INT8, repaired | same class as FP32 |\n|---|---|---|---|---|---|---|"
    )
    for case in cases:
        _print_case(case)
    for case in cases:
        _print_reasons(case)
    what = "one channel's weights multiplied, INT8 as written, against the poisoned student in FP32"
    return {"what": what, "gates": gates.model_dump(mode="json"), "cases": cases}, all(
        case["repaired"]["holds"] for case in cases
    )


def _print_case(case: dict[str, Any]) -> None:
    first, last = (
        f"{'holds' if item['holds'] else 'fails'}: {100 * item['agreement']:.3f} %, "
        f"{item['change']:+.2f}"
        for item in (case["tried"][0], case["repaired"])
    )
    test = case["test"]
    mious = ", ".join(f"{100 * item['miou']:.2f}" for item in test.values())
    same = ", ".join(f"{100 * test[name]['agreement']:.2f}" for name in ("all_int8", "repaired"))
    kept = "".join(f": {', '.join(case['kept_high'])}" if case["kept_high"] else "")
    click.echo(
        f"| {case['way']} channel {case['channel']} of {case['layer']} x {case['factor']:g} "
        f"| {case['weight_bits']} bits | {first} | {last} "
        f"| {len(case['kept_high'])} of {case['layers']}{kept} | {mious} % | {same} % |"
    )


def _print_reasons(case: dict[str, Any]) -> None:
    click.echo(f"\n{case['way']} channel, {case['weight_bits']} bits:")
    for name, value in list(case["sensitivity"].items())[:4]:
        click.echo(f"- {name} alone: noise {100 * value:.2f} % of the logits' deviation")
    for name, item in case["why"].items():
        (narrow, wide), (fine, coarse) = item["input_range"], item["typical_weight_steps"]
        says = f"{name}, {'kept high' if name in case['kept_high'] else 'in INT8'}"
        says += f": its input's range {narrow:.3g} -> {wide:.3g}, its median weight {fine:g} -> "
        says += f"{coarse:g} steps"
        if wide > GROWN * narrow:
            says += "; one channel sets the scale of its input, the others share few steps"
        if coarse * GROWN < fine:
            says += "; in each output channel the poisoned weight sets the scale of the others"
        click.echo(f"- {says}")


def write(name: str, work: Work, found: dict[str, Any]) -> None:
    """``results/<device>/NAME.json``."""
    folder, environment = here()
    path = folder / f"{name}.json"
    checkpoint = work.places["CHECKPOINT"]
    best = checkpoint / "best.ckpt" if checkpoint.is_dir() else checkpoint
    record = {
        **found,
        "recipe_sha256": sha256_file(work.places["RECIPE"]),
        "checkpoint_sha256": sha256_file(best),
        "data": work.data.name,
        "data_sha256": work.data.digest,
        "calibration_tiles": work.tiles,
        "calibration_sha256": work.calibration_sha256(),
        "commands": work.commands,
        "int8_dot_product_here": has_int8_dot_product(),
        "versions": {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
        "environment": environment.model_dump(mode="json"),
    }
    write_json(path, record)
    click.echo(f"written: {path}", err=True)


@click.command()
@click.option("--checkpoint", type=click.Path(path_type=Path, exists=True),
              default=ROOT / "out/distill_gain/feature-1/tuned", show_default=True,
              help="What benchmarks/distill_gain.py left, or another of --recipe.")  # fmt: skip
@click.option("--recipe", type=click.Path(path_type=Path, exists=True),
              default=ROOT / "benchmarks/distill_gain.yaml", show_default=True)  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), default=DATA / "landcover",
              show_default=True, help="Labelled set with the recipe's splits.")  # fmt: skip
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Of the recipe.")
@click.option("--tiles", type=click.IntRange(min=2), default=16, show_default=True,
              help="Calibration tiles.")  # fmt: skip
@click.option("--runs", type=click.IntRange(min=3), default=200, show_default=True,
              help="Timed runs of each model.")  # fmt: skip
@click.option("--avx2", metavar="EMULATOR", help="Runs x86 programs as a CPU without VNNI would.")
@click.option("--avx2-tiles", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--poison", is_flag=True, help="Poison a layer and let the search find out.")
@click.option("--layer", default="encoder.blocks.3.mlp.0", show_default=True, help="Of --poison.")
@click.option("--channel", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--factor", type=float, default=50.0, show_default=True)
@click.option("--write", "save", is_flag=True, help="Write benchmarks/results/<device>/.")
def main(
    checkpoint: Path, recipe: Path, data: Path, changes: tuple[str, ...], tiles: int, runs: int,
    avx2: str | None, avx2_tiles: int, poison: bool, layer: str, channel: int, factor: float,
    save: bool,
) -> None:  # fmt: skip
    """Make the files, measure, print the table, and end with 1 when a bound is missed."""
    if not data.exists():
        raise click.UsageError(f"no real data at {data}; give --data, or set EDGEKD_TEST_DATA")
    with tempfile.TemporaryDirectory(prefix="edgekd-precision-") as folder:
        places = (recipe.resolve(), checkpoint.resolve(), data.resolve())
        work = Work(*places, changes, tiles, Path(folder))
        if poison:
            found, passed = poison_cases(work, layer, channel, factor)
        else:
            found, passed = precision_table(work, runs, avx2, avx2_tiles)
    if save:
        write("precision_poison" if poison else "precision_table", work, found)
    click.echo("ok" if passed else "MISSED", err=True)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
