"""Which TensorRT reads which operator, opset and type; which ONNX Runtime reads which opset.

Sources: ``docs/operators.md`` and ``docs/Changelog.md`` of https://github.com/onnx/onnx-tensorrt at
8.4 (May 2022), 10.6 and 10.15; NVIDIA's ONNX Opset Guide for TensorRT 11; and what the parser of
TensorRT-RTX 1.7.1 was seen to do. Versions between two that are documented are treated as unknown.
"""

from __future__ import annotations

from typing import Final

Version = tuple[int, int]

#: rules are known from the first to below the second.
TENSORRT_KNOWN: Final[tuple[Version, Version]] = ((8, 4), (12, 0))
#: first version that is documented to read up to this opset.
TENSORRT_OPSETS: Final[list[tuple[Version, int]]] = [
    ((8, 4), 17),
    ((10, 0), 20),
    ((10, 15), 24),
    ((11, 0), 25),
]
#: ONNX Runtime -> (opset, IR version); https://onnxruntime.ai/docs/reference/compatibility.html
ONNXRUNTIME_OPSETS: Final[list[tuple[Version, int, int]]] = [
    ((1, 12), 17, 8),
    ((1, 14), 18, 8),
    ((1, 15), 19, 9),
    ((1, 17), 20, 9),
    ((1, 18), 21, 10),
    ((1, 21), 22, 10),
    ((1, 22), 23, 11),
]

#: read by 8.4 and every later version.
_BASE_WORDS: Final = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast
Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace
DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather
GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
HardSigmoid Identity If ImageScaler InstanceNormalization IsNaN LRN LSTM LeakyRelu Less
LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean Min Mul Neg
NonMaxSuppression Not Or PRelu Pad ParametricSoftplus Pow QuantizeLinear RNN RandomUniform
RandomUniformLike Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence Round
ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size
Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
ThresholdedRelu Tile TopK Transpose Unsqueeze Upsample Where Xor
"""
BASE: Final[frozenset[str]] = frozenset(_BASE_WORDS.split())
#: operator -> version that took it up, where the change log or release notes say so.
SINCE: Final[dict[str, Version]] = {
    **dict.fromkeys(
        ["GridSample", "MeanVarianceNormalization", "Mod", "NonZero", "RandomNormal", "RoiAlign",
         "Trilu"], (8, 5)),
    **dict.fromkeys(["GroupNormalization", "IsInf", "LayerNormalization"], (8, 6)),
    "Hardmax": (9, 2),
    "Gelu": (10, 0),
    "DeformConv": (10, 1),
    **dict.fromkeys(["BlackmanWindow", "HammingWindow", "HannWindow"], (10, 4)),
    "STFT": (10, 5),
    "Attention": (10, 14),
}  # fmt: skip
#: read by 10.15 and not by 8.4; which version between took it up is not documented.
SOMEWHERE: Final[frozenset[str]] = frozenset(
    ["CastLike", "HardSwish", "Mish", "OneHot", "RMSNormalization", "RandomNormalLike",
     "Reciprocal", "RotaryEmbedding"]
)  # fmt: skip
SOMEWHERE_FROM: Final[Version] = (10, 15)

#: ONNX tensor types (lower case) -> first TensorRT that holds them; others never.
TYPES: Final[dict[str, Version]] = {
    **dict.fromkeys(["float", "float16", "int8", "int32", "int64", "bool"], (8, 4)),
    "double": (8, 4),  # narrowed to float
    "uint8": (8, 5),  # as input and output of the network alone
    **dict.fromkeys(["bfloat16", "float8e4m3fn", "int4"], (10, 0)),
    "float4e2m1": (10, 8),
}


def parse_version(text: str) -> Version:
    """``10.3.0`` -> (10, 3).

    Raises:
        ValueError: no number.number.
    """
    parts = text.split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts):
        raise ValueError(f"expected a version like 10.3, received '{text}'")
    return int(parts[0]), int(parts[1])


def shown(version: Version) -> str:
    """(10, 3) -> ``10.3``."""
    return f"{version[0]}.{version[1]}"


def opset_bounds(version: Version) -> tuple[int, int]:
    """Opset that this TensorRT is documented to read, and the one of the next documented version.

    The two are equal where the version itself is documented or no later one is.
    """
    known = [opset for first, opset in TENSORRT_OPSETS if first <= version]
    after = [opset for first, opset in TENSORRT_OPSETS if first > version]
    sure = known[-1] if known else TENSORRT_OPSETS[0][1]
    documented = version in [first for first, _ in TENSORRT_OPSETS] or version[0] == 8
    if documented or not after or version[0] != 10 or version < (10, 4):
        return sure, sure
    return sure, after[0]
