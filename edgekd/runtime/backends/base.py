"""The contract of a backend: public methods check, private ones work."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.errors import EdgeKDError, InputError

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
DType = np.dtype[Any]

#: element types that inputs and outputs may have: those that ONNX, ONNX Runtime, TensorRT and NumPy
#: all know.
DTYPES: dict[str, DType] = {
    name: np.dtype(name)
    for name in ("float32", "float16", "int64", "int32", "int8", "uint8", "bool")
}
_FLOAT32 = DTYPES["float32"]


class Backend(abc.ABC):
    """A loaded model with named inputs and outputs of any rank.

    Where the first dimension of a tensor is free it is the batch, and all inputs that have one need
    the same. A model may have none. Other free dimensions take any size that the model takes.

    Attributes:
        input_shapes, output_shapes: per tensor name; None stands for a free dimension, an empty
            list is a scalar.
        input_dtypes, output_dtypes: of the tensors that are not float32.
        details: what really runs (provider, version, threads), for records.
        streams: calls of :meth:`infer` with ``stream`` that run at once to good effect.
        batch_max: tiles of one call, to good effect; more are accepted.
    """

    input_shapes: dict[str, list[int | None]]
    output_shapes: dict[str, list[int | None]]
    input_dtypes: Mapping[str, DType] = {}
    output_dtypes: Mapping[str, DType] = {}
    details: dict[str, str]
    streams: int = 1
    batch_max: int = 1

    def __init__(self) -> None:
        self._open = True

    @property
    def warnings(self) -> list[str]:
        """What the library warned of since it loaded the model, oldest first, each once."""
        return []

    def infer(self, inputs: Mapping[str, Array], stream: bool = False) -> Arrays:
        """Run the model once and wait for the result.

        Args:
            inputs: one array per input name, shapes and element types as declared; nothing is
                converted.
            stream: False gives this call the whole device, for the shortest time; calls must come
                one at a time. True is for :attr:`streams` threads that call at once, for the most
                tiles per second; a call then takes longer.

        Returns:
            An array per output name; the caller owns them.

        Raises:
            InputError: names, types or shapes differ from the declaration.
            EdgeKDError: the backend is closed or the model failed.
        """
        if not self._open:
            raise closed()
        if set(inputs) != set(self.input_shapes):
            raise InputError(
                f"the model takes the inputs {sorted(self.input_shapes)}, received {sorted(inputs)}"
            )
        batches = set()
        for name, array in inputs.items():
            expected = self.input_shapes[name]
            dtype = self.input_dtypes.get(name, _FLOAT32)
            if array.dtype != dtype or not _fits(array.shape, expected):
                raise InputError(
                    f"input '{name}' must be {dtype} of shape {_text(expected, 'N')}, received "
                    f"{array.dtype} of shape {_text(array.shape)}"
                )
            if expected and expected[0] is None:
                batches.add(array.shape[0])
            if 0 in array.shape[1:]:
                raise InputError(f"input '{name}' is empty: its shape is {_text(array.shape)}")
        if len(batches) > 1 or 0 in batches:
            raise InputError(f"all inputs need the same batch of at least 1, received {batches}")
        outputs = self._infer(inputs, stream)
        self._check_outputs(outputs, batches.pop() if batches else None)
        return outputs

    def _check_outputs(self, outputs: Arrays, batch: int | None) -> None:
        """Raise unless the model gave what it declares; NumPy would broadcast a wrong shape."""
        if set(outputs) != set(self.output_shapes):
            raise EdgeKDError(
                f"the model declares the outputs {sorted(self.output_shapes)}, it gave "
                f"{sorted(outputs)}"
            )
        for name, array in outputs.items():
            expected = list(self.output_shapes[name])
            if expected and expected[0] is None:
                expected[0] = batch
            dtype = self.output_dtypes.get(name, _FLOAT32)
            if not _fits(array.shape, expected) or array.dtype != dtype:
                raise EdgeKDError(
                    f"output '{name}' is declared as {dtype} of shape {_text(expected)}, the model "
                    f"gave {array.dtype} of shape {_text(array.shape)}"
                )

    def close(self) -> None:
        """Free the model once calls in other threads are through; safe to call twice."""
        if self._open:
            self._open = False
            self._close()

    def __enter__(self) -> Backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @abc.abstractmethod
    def _infer(self, inputs: Mapping[str, Array], stream: bool) -> Arrays:
        """Run checked inputs."""

    def _close(self) -> None:
        """Free what :meth:`_infer` needs."""


def closed() -> EdgeKDError:
    """For a call that comes after :meth:`Backend.close`."""
    return EdgeKDError("the session is closed; load the bundle again")


def _fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(shape) == len(expected) and all(
        want is None or want == have for want, have in zip(expected, shape, strict=True)
    )


def _text(sides: Sequence[int | None], batch: str = "?") -> str:
    """``[None, 3, None]`` -> ``Nx3x?``: the first free dimension is the batch."""
    names = [str(side) if side is not None else "?" for side in sides]
    if names and sides[0] is None:
        names[0] = batch
    return "x".join(names) or "() (a scalar)"
