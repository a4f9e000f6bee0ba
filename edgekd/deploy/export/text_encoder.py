"""An encoder of texts as ONNX, for a device without torch; and in 8 bits.

In INT8 the weights of linears and tables are unsigned 8 bits, by output channel in linears, and a
linear's inputs are rounded to 8 bits by the range that they have in the text at hand. Unsigned on
both sides because that is the one pair that no CPU saturates: x86 without VNNI adds pairs of
products of unsigned and *signed* bytes in 16 bits, for which ONNX Runtime's tools offer 7-bit
weights (``reduce_range``); two unsigned bytes take another kernel there, and on Arm both are exact.
So one file serves all machines, all with the same integers.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
import torch

from edgekd.contracts.artifacts import publish_file
from edgekd.contracts.manifest import TextEncoderDone
from edgekd.contracts.optional import require
from edgekd.contracts.texts import embed_texts
from edgekd.deploy.export import graph
from edgekd.deploy.export.onnx_export import quiet
from edgekd.errors import GateError, InputError
from edgekd.runtime.text import EMBEDDING, IDS, MASK
from edgekd.runtime.text import TextEncoder as DeviceEncoder
from edgekd.train.places.text import TextEncoder

MODEL, TOKENIZER = "text_encoder.onnx", "tokenizer.json"
#: largest difference of a value of an embedding of length 1 in FP32: two libraries add up in
#: different orders
ATOL: Final = 1e-4
#: least cosine of an INT8 embedding to its own in FP32; two clauses of a made-up coast have 0.44 to
#: each other (median, 0.75 in one pair of a hundred), and MiniLM in INT8 0.97 at the least
COSINE_MIN: Final = 0.95
_BATCH: Final = 4
#: of the export's example; the exporter takes 1 for a constant
_EXAMPLE: Final = (2, 7)
#: texts to compare on where none are given: short, long, beyond one window, and one word
TRIAL_TEXTS: Final = (
    "Dwelling",
    "Permitted by right: single-family homes.",
    "Here seawalls are prohibited, and existing bulkheads shall be removed within 5 years.",
    "Sec. 12.4. The council does not allow revetments. The district is reserved for wetlands.",
    "No building shall be higher than 12 m, measured from the mean ground level of the lot.",
    "Within the 1 % annual chance flood zone the lowest floor shall be 0.6 m above base flood.",
    "The purpose of this section is to provide public parks; storm water is managed on site.",
    "(a) Owners may repair levees; (b) new levees need a permit; (c) § 7 applies otherwise.",
    "Any person aggrieved by a decision of the board may appeal to the court within thirty days. "
    * 30,
)


def export_text_encoder(
    encoder: TextEncoder,
    folder: Path,
    precision: Literal["fp32", "int8"],
    texts: Sequence[str] = TRIAL_TEXTS,
) -> TextEncoderDone:
    """Write an encoder and its tokenizer into a folder, and compare them with torch.

    Opset 17; pooling and normalisation are in the graph. Two exports of one encoder give the same
    bytes.

    Args:
        encoder: to be written.
        folder: gets :data:`MODEL` and :data:`TOKENIZER`.
        precision: of the file.
        texts: real ones to compare on, two at least.

    Returns:
        What a manifest says of it, with the distance to torch that was found.

    Raises:
        InputError: too few texts, or what is no text.
        GateError: the graph is not what it should be, or the file's embeddings are too far from
            the encoder's; nothing stays in the folder then.
        EnvironmentLacksError: onnx, onnxscript or onnxruntime is not installed.
    """
    if len(texts) < 2:
        raise InputError(f"comparing an encoder takes two texts at least, received {len(texts)}")
    require("onnxscript", "deploy", "export ONNX")
    proto = _graph(encoder)
    if precision == "int8":
        proto = _lowered(proto)
    _check(proto, encoder.width)
    with tempfile.TemporaryDirectory() as temporary:
        trial = Path(temporary)
        (trial / MODEL).write_bytes(proto.SerializeToString(deterministic=True))
        (trial / TOKENIZER).write_bytes(encoder.tokenizer)
        done = _compared(encoder, trial, precision, texts)
        for name in (MODEL, TOKENIZER):
            with publish_file(folder / name) as part:
                part.write_bytes((trial / name).read_bytes())
    return done


def _graph(encoder: TextEncoder) -> onnx.ModelProto:
    # two tensors: the exporter takes one that is given twice for one input
    example = tuple(torch.ones(_EXAMPLE, dtype=torch.int64) for _ in (IDS, MASK))
    axes = {0: torch.export.Dim("N"), 1: torch.export.Dim("tokens")}
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            encoder.network,
            example,
            dynamo=True,
            opset_version=graph.EXPORTER_OPSET,
            input_names=[IDS, MASK],
            output_names=[_OUTPUT],
            dynamic_shapes={IDS: axes, MASK: axes},
            optimize=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    graph.finish(proto)
    _rename(proto)
    return proto


#: the exporter calls a table's rows "embedding", so the output gets its name behind it
_OUTPUT: Final = "edgekd_output"


def _rename(proto: onnx.ModelProto) -> None:
    """The output becomes :data:`EMBEDDING`; what else is called so gets another name."""
    names = {EMBEDDING: f"{EMBEDDING}_rows", _OUTPUT: EMBEDDING}
    for node in proto.graph.node:
        for side in (node.input, node.output):
            for at, name in enumerate(side):
                side[at] = names.get(name, name)
    for item in proto.graph.output:
        item.name = names.get(item.name, item.name)


def _lowered(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Weights of linears and tables in 8 bits; see the module's text."""
    tools = require("onnxruntime.quantization", "deploy", "quantise an encoder of texts")
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises to prepare the graph, which export has done
    try:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / MODEL
            tools.quantize_dynamic(
                proto,
                path,
                weight_type=tools.QuantType.QUInt8,
                per_channel=True,
                op_types_to_quantize=["MatMul", "Gather"],
                extra_options={"MatMulConstBOnly": True},
            )
            lowered = onnx.load(path)
    finally:
        logging.root.setLevel(level)
    del lowered.graph.value_info[:]
    kept = [item for item in lowered.opset_import if not item.domain]
    del lowered.opset_import[:]
    lowered.opset_import.extend(kept)
    lowered.producer_name, lowered.producer_version = "edgekd", ""
    del lowered.metadata_props[:]
    if not any(node.op_type == "MatMulInteger" for node in lowered.graph.node):
        raise GateError("nothing of the encoder became INT8; take precision fp32")
    return lowered


def _check(proto: onnx.ModelProto, width: int) -> None:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise GateError(
            f"the exported encoder is not valid ONNX: {' '.join(str(err).split())[:300]}"
        ) from err
    opsets = {item.domain: item.version for item in proto.opset_import}
    if opsets != {"": graph.OPSET} or proto.functions:
        raise GateError(f"the exported encoder has the operator sets {opsets}, expected 17 only")
    found = [
        (item.name, [side.dim_param or side.dim_value for side in item.type.tensor_type.shape.dim])
        for item in (*proto.graph.input, *proto.graph.output)
    ]
    expected = [(IDS, ["N", "tokens"]), (MASK, ["N", "tokens"]), (EMBEDDING, ["N", width])]
    if found != expected:
        raise GateError(f"the exported encoder has {found}, expected {expected}")


def _compared(
    encoder: TextEncoder, folder: Path, precision: Literal["fp32", "int8"], texts: Sequence[str]
) -> TextEncoderDone:
    """Embeddings of the file, by the device's own code, beside those of torch."""
    done = TextEncoderDone(
        model=MODEL, tokenizer=TOKENIZER, name=encoder.name, sha256=encoder.sha256,
        width=encoder.width, max_tokens=encoder.max_tokens, overlap_tokens=encoder.overlap_tokens,
        precision=precision, trial_texts=len(texts), max_abs=0, cosine_least=1, cosine_mean=1,
    )  # fmt: skip
    wanted = encoder.embed(texts, batch=1)
    with DeviceEncoder(folder, done, threads=1) as device:
        found = device.embed(texts)
        off = float(np.abs(found - wanted).max())
        if precision == "fp32":
            # in a batch, where shorter texts are filled up
            filled = embed_texts(texts, device.tokens, device.run, encoder.width, _BATCH)
            off = max(off, float(np.abs(filled - wanted).max()))
    cosines = (found.astype(np.float64) * wanted).sum(axis=1)
    if precision == "fp32" and not off <= ATOL:
        raise GateError(
            f"the exported encoder {encoder.name} gives embeddings that differ from torch's by "
            f"{off:.2g} on {len(texts)} texts, allowed is {ATOL:g}"
        )
    if not cosines.min() >= COSINE_MIN:
        raise GateError(
            f"in {precision} the encoder {encoder.name} gives an embedding whose cosine to its own "
            f"in FP32 is {cosines.min():.3f} (text {int(cosines.argmin())} of {len(texts)}), at "
            f"least {COSINE_MIN} is expected; take precision fp32"
        )
    told = {"max_abs": off, "cosine_least": cosines.min(), "cosine_mean": cosines.mean()}
    return done.model_copy(update={key: float(value) for key, value in told.items()})
