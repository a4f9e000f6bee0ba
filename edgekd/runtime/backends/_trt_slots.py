"""What one call at a time has for itself on the GPU: memory, a stream, contexts, graphs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.runtime.backends._cuda_graph import Graph, Refusal
from edgekd.runtime.backends.base import Array, DType

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: what others do on the default stream holds nothing up

Bytes = npt.NDArray[np.uint8]


class BoundContext:
    """A context that is set to a choice of shapes.

    NVIDIA: a graph is bound to the addresses and shapes that its context had when it was recorded,
    so each graph has a context of its own; activations are in the memory that all share.

    Attributes:
        context: of TensorRT.
        shapes: of all tensors, that it is set to.
        warm: it ran since its shapes changed, without which it cannot be recorded.
        graph: the recorded call.
    """

    def __init__(self, context: Any) -> None:
        self.context = context
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.warm = False
        self.graph: Graph | None = None

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether the inputs have these shapes."""
        return bool(self.shapes) and all(self.shapes[n] == shape for n, shape in shapes.items())

    def forget(self) -> None:
        """Drop the graph, whose shapes are no longer the context's."""
        self.warm = False
        if self.graph is not None:
            self.graph.close()
            self.graph = None


class Slot:
    """What one call at a time has for itself.

    Attributes:
        copies: stream of its copies, in both directions.
        arrived, done, back: its inputs are on the GPU, it is computed, its outputs are here.
        host, gpu: page-locked and device memory of each tensor, for its largest shape.
        contexts: the last used first; that one is of the present call.
    """

    def __init__(self, cuda: Any, context: Any) -> None:
        # A thread that waits sleeps: a core that spins is one that reads and writes no tiles.
        flags = int(cuda.event_flags.BLOCKING_SYNC) | int(cuda.event_flags.DISABLE_TIMING)
        self.copies = cuda.Stream(NON_BLOCKING)
        self.arrived, self.done, self.back = (cuda.Event(flags) for _ in range(3))
        self.host: dict[str, Bytes] = {}
        self.gpu: dict[str, Any] = {}
        self.contexts = [BoundContext(context)]

    def forget(self) -> None:
        """Drop contexts and graphs."""
        while self.contexts:
            with contextlib.suppress(Refusal):  # the driver frees it with its context
                self.contexts.pop().forget()

    @property
    def bound(self) -> BoundContext:
        """That of the present call."""
        return self.contexts[0]

    def view(self, name: str, dtype: DType) -> Array:
        """The host memory of a tensor, in the shape that it has now."""
        raw = self.host[name][: self.size(name, dtype)]
        return raw.view(dtype).reshape(self.bound.shapes[name])

    def size(self, name: str, dtype: DType) -> int:
        """Bytes of a tensor in the shape that it has now."""
        return size_bytes(self.bound.shapes[name], dtype)


def size_bytes(shape: tuple[int, ...], dtype: DType) -> int:
    """Bytes of a tensor."""
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
