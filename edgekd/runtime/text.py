"""Texts into embeddings on the device: when rules or clauses change, not for every answer.

Windows go through the network one at a time. Nothing is filled up then, so an embedding depends on
its text alone, to the bit; in an INT8 file the range of a layer's inputs is taken over everything
in the call, and a text would otherwise be rounded by its neighbours.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from edgekd.contracts.artifacts import read_bytes
from edgekd.contracts.manifest import TextEncoderDone
from edgekd.contracts.texts import Float32, Int64, TextTokens, embed_texts
from edgekd.errors import BundleError, InputError
from edgekd.runtime.backends.onnxrt import OnnxRuntimeBackend
from edgekd.runtime.bundle import SealedFile

IDS, MASK, EMBEDDING = "input_ids", "attention_mask", "embedding"


class TextEncoder:
    """An encoder of texts from a bundle.

    Args:
        folder: that holds the files.
        done: what the bundle says of it.
        threads: cores that it may use; 0 takes all that this process has.
        sealed: sha256 of files by name, as in the manifest; bytes are read once, hashed, and only
            then used. None for a folder that nobody has sealed.

    Attributes:
        done: as given.
        details: what really runs.

    Raises:
        BundleError: a file that is not the sealed one, that cannot be loaded, or that is not what
            ``done`` says.
        EnvironmentLacksError: onnxruntime or tokenizers is not installed.
    """

    def __init__(
        self,
        folder: Path,
        done: TextEncoderDone,
        threads: int = 0,
        sealed: Mapping[str, str] | None = None,
    ) -> None:
        self.done = done
        tokenizer = folder / done.tokenizer
        try:
            if sealed is None:
                content = read_bytes(tokenizer)
            else:
                content = SealedFile(folder, done.tokenizer, sealed).read()
            self.tokens = TextTokens(content, done.max_tokens, done.overlap_tokens)
        except InputError as err:
            if isinstance(err, BundleError):
                raise
            raise BundleError(f"{tokenizer} is no tokenizer of this bundle: {err}") from err
        path = folder / done.model
        if sealed is None and not path.is_file():
            raise BundleError(f"{path} does not exist; copy the bundle again")
        model = path if sealed is None else SealedFile(folder, done.model, sealed)
        self._backend = OnnxRuntimeBackend(model, threads=threads, streams=1)
        found = (
            self._backend.input_shapes,
            dict(self._backend.input_dtypes),
            self._backend.output_shapes,
        )
        int64 = np.dtype(np.int64)
        expected = (
            {IDS: [None, None], MASK: [None, None]},
            {IDS: int64, MASK: int64},
            {EMBEDDING: [None, done.width]},
        )
        if found != expected:
            self.close()
            raise BundleError(
                f"{path} takes {found[0]} and gives {found[2]}, expected {expected[0]} and "
                f"{expected[2]}; build the bundle again"
            )
        self.details = self._backend.details
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str]) -> Float32:
        """Embeddings ``(N, width)`` float32 of length 1; may be called from several threads.

        Args:
            texts: any length; longer ones than the encoder reads by windows.

        Raises:
            InputError: what is no text.
            EdgeKDError: the encoder gave something else than embeddings, or is closed.
        """
        return embed_texts(texts, self.tokens, self.run, self.done.width, batch=1)

    def run(self, ids: Int64, mask: Int64) -> Float32:
        """The network, as :data:`edgekd.contracts.texts.Network`."""
        with self._lock:
            given: Float32 = self._backend.infer({IDS: ids, MASK: mask})[EMBEDDING]
        return given

    def close(self) -> None:
        """Free the model; safe to call twice."""
        self._backend.close()

    def __enter__(self) -> TextEncoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
