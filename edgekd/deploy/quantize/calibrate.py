"""Calibration: what the layers of a model see on real tiles, one tile at a time.

Only the inputs of the layers that may be quantised leave the model, and each is dropped as soon as
it was counted; of every other tensor the graph itself gives the largest absolute value, a single
number. An attention map of 4096 x 4096 tokens is therefore never kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from edgekd.deploy.quantize.emulate import open_graph
from edgekd.deploy.quantize.histogram import Histogram, Method
from edgekd.deploy.quantize.layers import Layer
from edgekd.errors import InputError

FloatArray = npt.NDArray[np.float32]
#: a model that saw fewer tiles than this is not calibrated.
FEWEST_TILES = 2


@dataclass
class Activations:
    """What calibration saw.

    Attributes:
        tiles: number of tiles.
        sha256: over the tiles' bytes, in order.
        largest: every float tensor of the graph -> largest absolute value.
        histograms: input tensor of a layer -> its histogram.
        channels: the same -> largest absolute value per channel (last axis for ``linear``).
    """

    tiles: int = 0
    sha256: str = ""
    largest: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    channels: dict[str, FloatArray] = field(default_factory=dict)

    def ranges(self, method: Method, percentile: float) -> dict[str, float]:
        """Input tensor of a layer -> absolute value that becomes 127."""
        return {
            name: item.value(method, percentile) for name, item in sorted(self.histograms.items())
        }


def observe(
    proto: onnx.ModelProto,
    layers: Sequence[Layer],
    tiles: Iterable[FloatArray],
    expected: int,
    threads: int = 0,
    step: Callable[[int, int], None] | None = None,
) -> Activations:
    """Run the FP32 model on every tile and take in what its layers see.

    Args:
        proto: FP32, one input.
        layers: whose inputs are wanted.
        tiles: normalised ``(1, C, H, W)``.
        expected: number of tiles; fewer are an error, more are not taken.
        threads: of ONNX Runtime; 0 takes all cores.
        step: called with (tiles done, expected).

    Raises:
        InputError: fewer tiles than ``expected`` or than :data:`FEWEST_TILES`, the same tile twice,
            or a value that is not finite.
        EnvironmentLacksError: onnxruntime is not installed.
    """
    if expected < FEWEST_TILES:
        raise InputError(
            f"calibration needs at least {FEWEST_TILES} tiles, received {expected}; give more "
            "images, or lower the tile's side"
        )
    session, sources, scalars = _open(proto, layers, threads)
    name = session.get_inputs()[0].name
    linear = {layer.source for layer in layers if layer.kind == "linear"}
    found = Activations(histograms={source: Histogram() for source in sources})
    digest, seen = hashlib.sha256(), set()
    for tile in tiles:
        content = np.ascontiguousarray(tile, np.float32).tobytes()
        mark = hashlib.sha256(content).digest()
        if mark in seen:
            raise InputError(
                f"calibration tile {found.tiles + 1} is the same as an earlier one; a set that "
                "repeats itself looks larger than it is: remove copies"
            )
        seen.add(mark)
        digest.update(content)
        values = session.run([*sources, *scalars.values()], {name: tile})
        for source, value in zip(sources, values, strict=False):
            try:
                found.histograms[source].add(value)
            except InputError as err:
                raise InputError(f"calibration tile {found.tiles + 1}: {source}: {err}") from err
            axes = tuple(range(value.ndim - 1)) if source in linear else (0, 2, 3)
            top = np.abs(value).max(axis=axes)
            before = found.channels.get(source)
            found.channels[source] = top if before is None else np.maximum(before, top)
        for tensor, value in zip(scalars, values[len(sources) :], strict=True):
            top = float(value)
            top = top if np.isfinite(top) else np.inf
            found.largest[tensor] = max(found.largest.get(tensor, 0.0), top)
        del values
        found.tiles += 1
        if step is not None:
            step(found.tiles, expected)
        if found.tiles == expected:
            break
    if found.tiles < expected:
        raise InputError(
            f"calibration asked for {expected} tiles and the set gave {found.tiles}; give more "
            "images, or ask for fewer with calibration.tiles"
        )
    found.sha256 = digest.hexdigest()
    return found


def _open(
    proto: onnx.ModelProto, layers: Sequence[Layer], threads: int
) -> tuple[Any, list[str], dict[str, str]]:
    """A session that also gives layers' inputs and the largest value of each float tensor."""
    sources = sorted({layer.source for layer in layers})
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    floats = [
        item.name
        for item in (*inferred.graph.value_info, *inferred.graph.output)
        if item.type.tensor_type.elem_type == TensorProto.FLOAT
    ]
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    graph = made.graph
    images = {item.name for item in graph.input}
    scalars = {}
    # ONNX Runtime walks back from the leaves, the last one first. Were a deep tensor's leaf last,
    # the whole network would run before the others are reduced, and every activation be kept.
    place = {name: number for number, node in enumerate(graph.node) for name in node.output}
    for tensor in sorted(set(floats), key=lambda name: (-place.get(name, -1), name)):
        scalars[tensor] = f"{tensor}/largest"
        graph.node.append(helper.make_node("Abs", [tensor], [f"{tensor}/abs"]))
        graph.node.append(
            helper.make_node("ReduceMax", [f"{tensor}/abs"], [scalars[tensor]], keepdims=0)
        )
        graph.output.append(helper.make_tensor_value_info(scalars[tensor], TensorProto.FLOAT, []))
    given = {item.name for item in graph.output}
    for source in sources:
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
