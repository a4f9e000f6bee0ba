"""Texts into windows of tokens, and windows into embeddings."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.contracts import texts
from edgekd.errors import EdgeKDError, EnvironmentLacksError, InputError
from tests.helpers.texts import tokenizer_text

pytest.importorskip("tokenizers")
CONTENT = tokenizer_text().encode()
CLS, SEP = 2, 3


def tokens(max_tokens: int = 24, overlap: int = 3) -> texts.TextTokens:
    return texts.TextTokens(CONTENT, max_tokens, overlap)


def network(ids: texts.Int64, mask: texts.Int64) -> texts.Float32:
    """A direction from the tokens that are there, the place of each included."""
    places = np.arange(1, ids.shape[1] + 1)
    values = np.stack(
        [
            (np.sin(ids * 0.37) * mask).sum(axis=1),
            (np.cos(ids * places) * mask).sum(axis=1),
            mask.sum(axis=1),
        ],
        axis=1,
    )
    found: texts.Float32 = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype("f4")
    return found


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [(0, 1)]),
        (22, [(0, 22)]),  # 24 less two special tokens
        (23, [(0, 22), (1, 23)]),
        (41, [(0, 22), (19, 41)]),  # they share 3
        (42, [(0, 22), (10, 32), (20, 42)]),
        (60, [(0, 22), (19, 41), (38, 60)]),
    ],
)
def test_windows_cover_a_text_and_overlap(count: int, expected: list[tuple[int, int]]) -> None:
    letters = [chr(ord("a") + number % 26) for number in range(count)]
    plain = [tokens(4096).windows(" ".join(letters))[0][1:-1].tolist()]
    assert len(plain[0]) == count
    found = tokens().windows(" ".join(letters))
    assert [window.tolist() for window in found] == [
        [CLS, *plain[0][start:end], SEP] for start, end in expected
    ]


def test_the_file_s_own_cutting_and_filling_is_switched_off() -> None:
    assert tokens().windows("be")[0].tolist() == [CLS, 12, SEP]
    assert len(tokens().windows("be " * 20)[0]) == 22


@pytest.mark.parametrize(
    ("given_texts", "said"),
    [
        ([], "no text"),
        ("Only homes.", "a list of texts, received one str"),
        (b"Only homes.", "received one bytes"),
        (["park", None], "text 2 of 2 is NoneType"),
        ([b"park"], "is bytes, expected str"),
        ([""], "is empty"),
        ([" \n\t"], "is empty"),
        (["park\0"], "zero byte"),
        (["a" * 100_001], "100,001 characters"),
        (["park \ud800"], "half a character"),
        (["\x01"], "knows no word"),
        (["漢字 🙂"], "knows no word"),
    ],
)
def test_what_is_no_text_is_refused(given_texts: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        texts.embed_texts(given_texts, tokens(), network, 3, 8)


def test_a_word_among_unknown_ones_is_enough() -> None:
    assert texts.embed_texts(["漢 park"], tokens(), network, 3, 8).shape == (1, 3)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=7),
    batch=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_order_batch_and_filling_change_nothing(lengths: list[int], batch: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    given_texts = [" ".join(random.choice(list("abcdefgh"), size)) for size in lengths]
    found = texts.embed_texts(given_texts, tokens(), network, 3, batch)
    for text, embedding in zip(given_texts, found, strict=True):
        alone = [network(ids[None], np.ones((1, len(ids)), int)) for ids in tokens().windows(text)]
        mean = np.mean(alone, axis=0)[0]
        np.testing.assert_allclose(embedding, mean / np.linalg.norm(mean), atol=1e-6)
    order = random.permutation(len(given_texts))
    again = texts.embed_texts([given_texts[n] for n in order], tokens(), network, 3, batch)
    np.testing.assert_allclose(again, found[order], atol=1e-6)


def test_the_end_of_a_long_text_counts() -> None:
    short, long = "be " * 60, "be " * 60 + "prohibited"
    one, other = texts.embed_texts([short, long], tokens(), network, 3, 4)
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        (np.full((1, 3), np.nan, "f4"), "not finite"),
        (np.full((1, 3), np.inf, "f4"), "not finite"),
        (np.array([[0.5, 0, 0]], "f4"), "length is 0.5 from 1"),
        (np.zeros((1, 3), "f4"), "length is 1 from 1"),
        (np.array([[1, 0]], "f4"), "expected float32 \\(1, 3\\)"),
        (np.array([[1.0, 0, 0]]), "float64"),
    ],
)
def test_what_is_no_embedding_is_refused(gives: texts.Float32, said: str) -> None:
    with pytest.raises(EdgeKDError, match=said):
        texts.embed_texts(["park"], tokens(), lambda ids, mask: gives, 3, 1)


def test_windows_that_say_the_opposite_have_no_mean() -> None:
    def opposite(ids: texts.Int64, mask: texts.Int64) -> texts.Float32:
        signs = np.where(ids[:, 1] == tokens().windows("park")[0][1], 1.0, -1.0)
        return np.stack([signs, 0 * signs], axis=1).astype("f4")

    with pytest.raises(EdgeKDError, match="2 windows of text 2 cancel each other out"):
        texts.embed_texts(["park", "park " + "be " * 22], tokens(), opposite, 2, 1)


@pytest.mark.parametrize(
    ("content", "max_tokens", "overlap", "said"),
    [
        (b"{}", 24, 3, "tokenizer.json cannot be read"),
        (b"\xff", 24, 3, "tokenizer.json cannot be read"),
        (CONTENT, 2, 0, "room for 0"),
        (CONTENT, 5, 3, "cannot overlap by 3"),
        (CONTENT, 5, -1, "cannot overlap"),
        (CONTENT.replace(b'"type_id":0', b'"type_id":1'), 24, 3, "types of tokens"),
    ],
)
def test_a_tokenizer_that_does_not_fit(
    content: bytes, max_tokens: int, overlap: int, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        texts.TextTokens(content, max_tokens, overlap)


def test_the_filling_token_is_the_file_s() -> None:
    assert tokens().pad_id == 0
    other = CONTENT.replace(b'"pad_id":0', b'"pad_id":7')
    assert other != CONTENT and texts.TextTokens(other, 24, 3).pad_id == 7


def test_a_machine_without_the_library_is_told_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(EnvironmentLacksError, match=r'pip install "edgekd\[text\]"'):
        tokens()
