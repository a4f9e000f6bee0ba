"""Calibration: what the layers of a model see on real tiles (or places), one at a time.

Only the inputs of the layers that may be quantised leave the model, and each is dropped as soon as
it was counted; of every other tensor the graph itself gives the largest absolute value, a single
number. An attention map of 4096 x 4096 tokens is therefore never kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from edgekd.contracts.memory import give_back_memory
from edgekd.deploy.parity import Tensors
from edgekd.deploy.quantize.emulate import open_graph
from edgekd.deploy.quantize.histogram import Histogram, Method
from edgekd.deploy.quantize.layers import Layer
from edgekd.errors import InputError

FloatArray = npt.NDArray[np.float32]
#: operators that compute nothing
_PASS_ON = frozenset(
    ["Reshape", "Transpose", "Identity", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split",
     "Gather", "Expand", "Tile"]
)  # fmt: skip
#: tiles that show the largest value of every tensor, for FP16
WATCHED_TILES = 4
#: a model that saw fewer tiles than this is not calibrated.
FEWEST_TILES = 2


@dataclass
class Activations:
    """What calibration saw.

    Attributes:
        tiles: number of tiles.
        sha256: over the tiles' bytes, in order.
        largest: float tensors of the graph -> largest absolute value, of the layers' inputs over
            all tiles and of the others over the first :data:`WATCHED_TILES`; those that cannot
            exceed 1 are left out, and a part of another tensor has that one's.
        histograms: input tensor of a layer -> its histogram.
        channels: the same -> largest absolute value per channel (last axis for ``linear``).
        behind: tensor that was asked for besides -> its histogram.
    """

    tiles: int = 0
    sha256: str = ""
    largest: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    channels: dict[str, FloatArray] = field(default_factory=dict)
    behind: dict[str, Histogram] = field(default_factory=dict)

    def ranges(self, method: Method, percentile: float) -> dict[str, float]:
        """Input tensor of a layer -> absolute value that becomes the largest integer."""
        return _values(self.histograms, method, percentile)

    def outputs(self, method: Method, percentile: float) -> dict[str, float]:
        """The same of what was asked for besides."""
        return _values(self.behind, method, percentile)


def _values(
    histograms: Mapping[str, Histogram], method: Method, percentile: float
) -> dict[str, float]:
    return {name: item.value(method, percentile) for name, item in sorted(histograms.items())}


def observe(
    proto: onnx.ModelProto,
    layers: Sequence[Layer],
    tiles: Iterable[Tensors],
    expected: int,
    threads: int = 0,
    step: Callable[[int, int], None] | None = None,
    unit: str = "tile",
    behind: Sequence[str] = (),
) -> Activations:
    """Run the FP32 model on every tile and take in what its layers see.

    Args:
        proto: FP32.
        layers: whose inputs are wanted.
        tiles: inputs by name, normalised, a batch of 1: a tile, or what is known of a place.
        expected: number of tiles; fewer are an error, more are not taken.
        threads: of ONNX Runtime; 0 takes all cores.
        step: called with (tiles done, expected).
        unit: what a tile is called.
        behind: further tensors to count, which layers put out.

    Raises:
        InputError: fewer tiles than ``expected`` or than :data:`FEWEST_TILES`, the same tile twice,
            or a value that is not finite.
        EnvironmentLacksError: onnxruntime is not installed.
    """
    if expected < FEWEST_TILES:
        raise InputError(
            f"calibration needs at least {FEWEST_TILES} {unit}s, received {expected}; give more "
            + ("images, or lower the tile's side" if unit == "tile" else "of them")
        )
    further = sorted(set(behind) - {layer.source for layer in layers})
    session, sources, scalars = _open(proto, layers, threads, further)
    names = [item.name for item in session.get_inputs()]
    watching = True
    linear = {layer.source for layer in layers if layer.kind == "linear"}
    found = Activations(
        histograms={source: Histogram() for source in sources},
        behind={name: Histogram() for name in further},
    )
    digest, seen = hashlib.sha256(), set()
    flat = 0
    same = _passed_on(proto)
    for tile in tiles:
        given = {name: np.ascontiguousarray(tile[name], np.float32) for name in names}
        content = b"".join(array.tobytes() for array in given.values())
        mark = hashlib.sha256(content).digest()
        if mark in seen:
            raise InputError(
                f"calibration {unit} {found.tiles + 1} is the same as an earlier one; a set that "
                "repeats itself looks larger than it is: remove copies"
            )
        seen.add(mark)
        flat += int(all(_is_flat(array) for array in given.values()))
        digest.update(content)
        if watching and layers and found.tiles >= WATCHED_TILES:
            # FP16 has eight times of headroom over these; INT8's ranges want every tile.
            watching = False
            session, _, scalars = _open(proto, layers, threads, further, watch=False)
        ends = [output for pair in scalars.values() for output in pair]
        values = session.run([*sources, *ends, *further], given)
        counted = [
            *zip(found.histograms.items(), values, strict=False),
            *zip(found.behind.items(), values[len(sources) + len(ends) :], strict=True),
        ]
        for (name, histogram), value in counted:
            try:
                histogram.add(value)
            except InputError as err:
                raise InputError(f"calibration {unit} {found.tiles + 1}: {name}: {err}") from err
        del counted, values[len(sources) + len(ends) :]
        for source, value in zip(sources, values, strict=False):
            last = value.ndim - 1
            axes = tuple(range(last)) if source in linear else (0, *range(2, last + 1))
            top = np.maximum(value.max(axis=axes), -value.min(axis=axes))
            before = found.channels.get(source)
            found.channels[source] = top if before is None else np.maximum(before, top)
            found.largest[source] = found.histograms[source].largest
        extremes = np.abs(np.array(values[len(sources) :], np.float64)).reshape(-1, 2).max(axis=1)
        for tensor, value in zip(scalars, extremes, strict=True):
            top = float(value) if np.isfinite(value) else np.inf
            found.largest[tensor] = max(found.largest.get(tensor, 0.0), top)
        del values
        give_back_memory()
        found.tiles += 1
        if step is not None:
            step(found.tiles, expected)
        if found.tiles == expected:
            break
    if found.tiles and flat == found.tiles:
        raise InputError(
            f"none of the {flat} calibration {unit}s shows anything, each is of one colour, so the "
            "ranges of the layers would mean nothing; give real images"
        )
    if found.tiles < expected:
        raise InputError(
            f"calibration asked for {expected} {unit}s and the set gave {found.tiles}; give more "
            "of them, or ask for fewer with calibration.tiles"
        )
    for tensor, origin in same.items():
        if origin in found.largest:
            found.largest[tensor] = found.largest[origin]
    found.sha256 = digest.hexdigest()
    return found


def _is_flat(array: FloatArray) -> bool:
    """Whether each channel of a picture, or another input as a whole, has one value."""
    axes = (2, 3) if array.ndim == 4 else None
    return bool((np.ptp(array, axis=axes) == 0).all())


def _passed_on(proto: onnx.ModelProto) -> dict[str, str]:
    """Tensors that hold the values of another one, or a part of them -> that one."""
    same: dict[str, str] = {}
    for node in proto.graph.node:
        if node.op_type in _PASS_ON:
            for name in node.output:
                same[name] = same.get(node.input[0], node.input[0])
    return same


def _open(
    proto: onnx.ModelProto,
    layers: Sequence[Layer],
    threads: int,
    further: Sequence[str],
    watch: bool = True,
) -> tuple[Any, list[str], dict[str, tuple[str, str]]]:
    """A session that also gives layers' inputs and what is asked for further, and names of each
    tensor's largest and least."""
    sources = sorted({layer.source for layer in layers})
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    # Sources are looked at outside; what is passed on was seen before; a softmax is at most 1.
    known = {*sources, *_passed_on(proto)}
    known |= {n.output[0] for n in proto.graph.node if n.op_type in ("Softmax", "Sigmoid")}
    floats = [
        item.name
        for item in (*inferred.graph.value_info, *inferred.graph.output)
        if item.type.tensor_type.elem_type == TensorProto.FLOAT and item.name not in known
    ]
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    graph = made.graph
    images = {item.name for item in graph.input}
    scalars: dict[str, tuple[str, str]] = {}
    # ONNX Runtime walks back from the leaves, the last one first. Were a deep tensor's leaf last,
    # the whole network would run before the others are reduced, and every activation be kept.
    place = {name: number for number, node in enumerate(graph.node) for name in node.output}
    watched = set(floats) if watch else set()
    for tensor in sorted(watched, key=lambda name: (-place.get(name, -1), name)):
        # Two numbers rather than one of an absolute copy, which would be written and read again.
        scalars[tensor] = (f"{tensor}/max", f"{tensor}/min")
        for operator, name in zip(("ReduceMax", "ReduceMin"), scalars[tensor], strict=True):
            graph.node.append(helper.make_node(operator, [tensor], [name], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
    given = {item.name for item in graph.output}
    for source in (*sources, *further):
        if source not in given and source not in images:
            graph.output.append(helper.make_tensor_value_info(source, TensorProto.FLOAT, None))
    # An input cannot be an output: it is passed on under another name.
    names = []
    for source in sources:
        if source in images:
            graph.node.append(helper.make_node("Identity", [source], [f"{source}/given"]))
            graph.output.append(
                helper.make_tensor_value_info(f"{source}/given", TensorProto.FLOAT, None)
            )
            names.append(f"{source}/given")
        else:
            names.append(source)
    session = open_graph(made, threads, optimize=True)
    return _Renamed(session, dict(zip(sources, names, strict=True))), sources, scalars


class _Renamed:
    """A session whose outputs are asked for by the tensors' own names."""

    def __init__(self, session: Any, names: dict[str, str]) -> None:
        self._session, self._names = session, names

    def get_inputs(self) -> Any:
        """Of the session."""
        return self._session.get_inputs()

    def run(self, outputs: Sequence[str], inputs: dict[str, FloatArray]) -> list[FloatArray]:
        """Outputs in the order asked for."""
        asked = [self._names.get(name, name) for name in outputs]
        values: list[FloatArray] = self._session.run(asked, inputs)
        return values
