"""Embeddings of texts: those of the rules are made when rules are put, a request's once for many.

``embed`` costs as much as an answer, so a text that was read lately is not read again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from edgekd.contracts.artifacts import sha256_bytes
from edgekd.contracts.evidence import Float32
from edgekd.errors import EdgeKDError
from edgekd.serve.model import Asks, PlaceModel

#: texts of requests that are remembered; 384 numbers each are 100 kB in all
KEPT: Final = 64


class Reader:
    """Makes embeddings, one text at a time, for any number of threads.

    Args:
        model: embeds.
        asks: what it says of itself.
        told: called with ``rules`` or ``request`` and a number of texts, each time some were read.
    """

    def __init__(self, model: PlaceModel, asks: Asks, told: Callable[[str, int], None]) -> None:
        self._model, self._width, self._told = model, asks.text_width, told
        self._lock, self._looking = threading.Lock(), threading.Lock()
        self._known: OrderedDict[str, Float32] = OrderedDict()

    def of_rules(self, texts: Sequence[str]) -> Float32:
        """``(N, width)``; for :class:`edgekd.serve.rules.RuleStore`, which keeps them.

        One by one, so that a request's text need not wait for all.

        Raises:
            EnvironmentLacksError, InputError: see :meth:`PlaceModel.embed`.
        """
        return np.stack([self._read(text, "rules") for text in texts])

    def of_request(self, text: str) -> Float32:
        """``(width,)``; the last texts are remembered.

        Raises:
            EnvironmentLacksError, InputError: see :meth:`PlaceModel.embed`.
        """
        key = sha256_bytes(text.encode())
        with self._looking:  # known ones need not wait while another is read
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        found = self._read(text, "request")
        with self._looking:
            self._known[key] = found
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return found

    def _read(self, text: str, whose: str) -> Float32:
        with self._lock:
            found = np.asarray(self._model.embed([text]), np.float32)
        if found.shape != (1, self._width) or not np.isfinite(found).all():
            raise EdgeKDError(
                f"the encoder of texts gave {found.shape} of numbers that are not all finite, "
                f"expected (1, {self._width}); the bundle is damaged: edgekd verify BUNDLE"
            )
        self._told(whose, 1)
        row: Float32 = found[0]
        row.setflags(write=False)
        return row
