"""Texts into tokens and back into embeddings: what training and a device must do alike.

A text that has more tokens than its encoder reads is never cut. Windows of tokens that overlap are
laid over it, as few as possible and spread evenly, all of the encoder's full length; each is
embedded by itself, and the text's embedding is the mean of theirs, brought to length 1. Both sides
use the functions of this file, so they cannot disagree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekd.contracts.optional import require
from edgekd.contracts.windows import axis_starts
from edgekd.errors import EdgeKDError, InputError

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
#: ``(input_ids, attention_mask)``, both ``(N, tokens)`` int64 -> ``(N, width)`` of length 1
Network = Callable[[Int64, Int64], Float32]

#: of a text; a table of places holds none that is longer
MOST_CHARACTERS: Final = 100_000
#: windows overlap by this part of the encoder's length, so that a sentence at an edge is whole in
#: one of them
OVERLAP_PART: Final = 8
#: how far from 1 the length of an embedding may be that a network calls normalised
UNIT: Final = 1e-3
#: shorter means of windows have no direction
LEAST_MEAN: Final = 1e-3


def overlap_of(max_tokens: int) -> int:
    """Tokens that neighbouring windows share, at least."""
    return max_tokens // OVERLAP_PART


def check_texts(texts: Sequence[str]) -> list[str]:
    """The texts, where each is one.

    Raises:
        InputError: none, not a list of texts, or one that is empty, too long, or no text.
    """
    if isinstance(texts, str | bytes):
        raise InputError(f"expected a list of texts, received one {type(texts).__name__}")
    if not len(texts):
        raise InputError("no text was given, expected one at least")
    for number, text in enumerate(texts, 1):
        where = f"text {number} of {len(texts)}"
        if not isinstance(text, str):
            raise InputError(f"{where} is {type(text).__name__}, expected str")
        if not text.strip():
            raise InputError(f"{where} is empty; leave it out, a place may lack a text")
        if "\0" in text:
            raise InputError(f"{where} holds a zero byte, so it is no text")
        if len(text) > MOST_CHARACTERS:
            raise InputError(
                f"{where} has {len(text):,} characters, expected {MOST_CHARACTERS:,} at most; give "
                "the clauses that concern the place"
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as err:
            raise InputError(
                f"{where} holds half a character (a lone surrogate) at {err.start}; read the file "
                "as UTF-8"
            ) from err
    return list(texts)


class TextTokens:
    """A tokenizer with its special tokens, without the cutting and filling that its file asks for.

    Args:
        content: of ``tokenizer.json``, as the library ``tokenizers`` reads it.
        max_tokens: that the encoder reads at once, special tokens included.
        overlap_tokens: that neighbouring windows of a longer text share, at least.
        extra: of this distribution that brings ``tokenizers``.

    Attributes:
        pad_id: of the token that fills shorter texts of a batch.
        size: number of token numbers.

    Raises:
        InputError: no such file, or special tokens that are not simply before and behind a text.
        EnvironmentLacksError: ``tokenizers`` is not installed.
    """

    def __init__(
        self, content: bytes, max_tokens: int, overlap_tokens: int, extra: str = "text"
    ) -> None:
        library = require("tokenizers", extra, "turn texts into tokens")
        try:
            tokenizer: Any = library.Tokenizer.from_buffer(content)
            about: dict[str, Any] = json.loads(content)
        except (ValueError, TypeError) as err:
            raise InputError(
                f"tokenizer.json cannot be read ({' '.join(str(err).split())[:120]}); copy it again"
            ) from err
        self.pad_id = _pad_id(tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self.max_tokens = tokenizer, max_tokens
        self._before, self._behind = _special(tokenizer)
        unknown = about["model"].get("unk_token")
        self._unknown = tokenizer.token_to_id(unknown) if isinstance(unknown, str) else None
        self.size = int(tokenizer.get_vocab_size(with_added_tokens=True))
        self._room = max_tokens - len(self._before) - len(self._behind)
        if not 0 <= overlap_tokens < self._room:
            raise InputError(
                f"{max_tokens} tokens leave room for {max(self._room, 0)} of the text, so windows "
                f"cannot overlap by {overlap_tokens}"
            )
        self._overlap = overlap_tokens

    def windows(self, text: str) -> list[Int64]:
        """Token numbers of each window of a text, special ones included, at most ``max_tokens``.

        Raises:
            InputError: the tokenizer knows nothing in the text.
        """
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not ids or (self._unknown is not None and set(ids) == {self._unknown}):
            raise InputError(
                f"the encoder knows no word of the text '{text.strip()[:40]}'; it may be of "
                "another language than the encoder"
            )
        length = min(len(ids), self._room)
        return [
            np.array([*self._before, *ids[start : start + length], *self._behind], np.int64)
            for start in axis_starts(len(ids), length, min(self._overlap, length - 1))
        ]

    def lower_cases(self) -> bool:
        """Whether capital letters make no difference."""
        both = [self._tokenizer.encode(t, add_special_tokens=False).ids for t in ("ABC", "abc")]
        return bool(both[0] == both[1])


def embed_texts(
    texts: Sequence[str], tokens: TextTokens, network: Network, width: int, batch: int
) -> Float32:
    """Embeddings ``(N, width)`` float32 of length 1.

    Args:
        texts: checked by :func:`check_texts`.
        tokens: of the encoder.
        network: embeds windows.
        width: that it gives.
        batch: windows at once, of like length; 1 fills nothing up, so that an embedding depends on
            its text alone, to the bit.

    Raises:
        InputError: what is no text.
        EdgeKDError: the network gave something else than embeddings of length 1, or the windows
            of a text say the opposite of each other.
    """
    found = [tokens.windows(text) for text in check_texts(texts)]
    windows = [(owner, ids) for owner, parts in enumerate(found) for ids in parts]
    windows.sort(key=lambda item: len(item[1]))
    sums = np.zeros((len(found), width), np.float64)
    for at in range(0, len(windows), batch):
        part = windows[at : at + batch]
        longest = len(part[-1][1])
        ids = np.full((len(part), longest), tokens.pad_id, np.int64)
        mask = np.zeros_like(ids)
        for row, (_, numbers) in enumerate(part):
            ids[row, : len(numbers)] = numbers
            mask[row, : len(numbers)] = 1
        given = network(ids, mask)
        _check(given, (len(part), width))
        np.add.at(sums, [owner for owner, _ in part], given)
    sums /= np.array([[len(parts)] for parts in found])
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    if float(length.min()) < LEAST_MEAN:
        number = int(length.argmin())
        raise EdgeKDError(
            f"the {len(found[number])} windows of text {number + 1} cancel each other out, so it "
            "has no embedding; give its clauses one by one"
        )
    unit: Float32 = (sums / length).astype(np.float32)
    return unit


def _check(given: Float32, shape: tuple[int, int]) -> None:
    if given.shape != shape or given.dtype != np.float32:
        raise EdgeKDError(f"the encoder gave {given.dtype} {given.shape}, expected float32 {shape}")
    if not np.isfinite(given).all():
        raise EdgeKDError("the encoder gave values that are not finite; its file is damaged")
    off = float(np.abs(np.linalg.norm(given, axis=1) - 1).max())
    if off > UNIT:
        raise EdgeKDError(
            f"the encoder gave an embedding whose length is {off:.2g} from 1; it is no sentence "
            "encoder of this version"
        )


def _pad_id(tokenizer: Any) -> int:
    """Number of the token that fills up; what stands there is masked."""
    if tokenizer.padding:
        return int(tokenizer.padding["pad_id"])
    numbers = (tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>"))
    return next((int(number) for number in numbers if number is not None), 0)


def _special(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Special tokens before and behind every text."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True)
    extra = len(whole.ids) - len(plain)
    for before in range(extra + 1):
        if plain and whole.ids[before : before + len(plain)] == plain and not any(whole.type_ids):
            return whole.ids[:before], whole.ids[before + len(plain) :]
    raise InputError(
        "tokenizer.json puts special tokens elsewhere than before and behind a text, or types of "
        "tokens; this encoder of texts is not supported"
    )
