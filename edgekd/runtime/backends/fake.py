"""A backend with a model that can be computed by hand; for tests and for trying the tiler."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from edgekd.runtime.backends.base import Array, Arrays, Backend


class FakeBackend(Backend):
    """Logits from a function of the tile.

    Args:
        tile_px: side of the tile, px.
        classes: channels of the output.
        stride_px: input pixels per logit.
        model: ``(N, 3, tile, tile)`` float32 -> ``(N, classes, tile/stride, tile/stride)``; the
            default averages each cell and gives channel ``k`` the logit ``k * mean``.
        delay_s: extra time per call, s.
        streams: calls that may run at once.
    """

    def __init__(
        self,
        tile_px: int,
        classes: int,
        stride_px: int = 4,
        model: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]] | None = None,
        delay_s: float = 0.0,
        streams: int = 1,
    ) -> None:
        super().__init__()
        cells = tile_px // stride_px
        self.input_shapes = {"image": [None, 3, tile_px, tile_px]}
        self.output_shapes = {"logits": [None, classes, cells, cells]}
        self.details = {"backend": "fake"}
        self.streams = streams
        self._classes, self._stride, self._delay_s = classes, stride_px, delay_s
        self._model = model or self._ramp
        self.calls = self.tiles = 0
        self._lock = threading.Lock()

    def _ramp(self, tile: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        count, channels, height, width = tile.shape
        s = self._stride
        blocks = tile.reshape(count, channels, height // s, s, width // s, s)
        cells: npt.NDArray[np.float32] = blocks.mean(axis=(1, 3, 5))
        weights = np.arange(self._classes, dtype=np.float32)[None, :, None, None]
        logits: npt.NDArray[np.float32] = (cells[:, None] * weights).astype(np.float32)
        return logits

    def _infer(self, inputs: Mapping[str, Array], stream: bool) -> Arrays:
        with self._lock:
            self.calls += 1
            self.tiles += len(inputs["image"])
        if self._delay_s:
            time.sleep(self._delay_s)
        return {"logits": self._model(inputs["image"])}
