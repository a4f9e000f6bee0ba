"""The contract of a backend: public methods check, private ones work."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edgekd.errors import EdgeKDError, InputError

Arrays = dict[str, npt.NDArray[np.float32]]


class Backend(abc.ABC):
    """A loaded model with named inputs and outputs.

    Attributes:
        input_shapes, output_shapes: per tensor name; None stands for the free batch dimension.
        details: what really runs (provider, version, threads), for records.
        streams: calls of :meth:`infer` with ``stream`` that run at once to good effect.
        batch_max: tiles of one call, to good effect; more are accepted.
    """

    input_shapes: dict[str, list[int | None]]
    output_shapes: dict[str, list[int | None]]
    details: dict[str, str]
    streams: int = 1
    batch_max: int = 1

    def __init__(self) -> None:
        self._open = True

    def infer(self, inputs: Mapping[str, npt.NDArray[np.float32]], stream: bool = False) -> Arrays:
        """Run the model once and wait for the result.

        Args:
            inputs: one C-contiguous float32 array per input name, shapes as declared.
            stream: False gives this call the whole device, for the shortest time; calls must come
                one at a time. True is for :attr:`streams` threads that call at once, for the most
                tiles per second; a call then takes longer.

        Returns:
            A float32 array per output name; the caller owns them.

        Raises:
            InputError: names, types or shapes differ from the declaration.
            EdgeKDError: the backend is closed or the model failed.
        """
        if not self._open:
            raise EdgeKDError("the session is closed; load the bundle again")
        if set(inputs) != set(self.input_shapes):
            raise InputError(
                f"the model takes the inputs {sorted(self.input_shapes)}, received {sorted(inputs)}"
            )
        batches = set()
        for name, array in inputs.items():
            expected = self.input_shapes[name]
            fits = array.ndim == len(expected) and all(
                want is None or want == have
                for want, have in zip(expected, array.shape, strict=True)
            )
            if array.dtype != np.float32 or not fits:
                want_text = "x".join("N" if side is None else str(side) for side in expected)
                raise InputError(
                    f"input '{name}' must be float32 of shape {want_text}, received {array.dtype} "
                    f"of shape {'x'.join(map(str, array.shape))}"
                )
            batches.add(array.shape[0])
        if len(batches) > 1 or 0 in batches:
            raise InputError(f"all inputs need the same batch of at least 1, received {batches}")
        outputs = self._infer(inputs, stream)
        self._check_outputs(outputs, batches.pop())
        return outputs

    def _check_outputs(self, outputs: Arrays, batch: int) -> None:
        """Raise unless the model gave what it declares; NumPy would broadcast a wrong shape."""
        if set(outputs) != set(self.output_shapes):
            raise EdgeKDError(
                f"the model declares the outputs {sorted(self.output_shapes)}, it gave "
                f"{sorted(outputs)}"
            )
        for name, array in outputs.items():
            declared = self.output_shapes[name]
            expected = tuple(batch if side is None else side for side in declared)
            if array.shape != expected or array.dtype != np.float32:
                raise EdgeKDError(
                    f"output '{name}' is declared as float32 of shape {expected}, the model gave "
                    f"{array.dtype} of shape {array.shape}"
                )

    def close(self) -> None:
        """Free the model; safe to call twice."""
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
    def _infer(self, inputs: Mapping[str, npt.NDArray[np.float32]], stream: bool) -> Arrays:
        """Run checked inputs."""

    def _close(self) -> None:
        """Free what :meth:`_infer` needs."""
