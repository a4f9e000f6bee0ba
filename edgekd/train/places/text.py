"""Encoders of texts: a sentence or a clause into an embedding of length 1.

An encoder is a file in ``edgekd/train/places/teachers`` that offers ``SEES = "text"`` and::

    def encoder(variant: str | None, weights: str | Path) -> TextEncoder

It is read from a folder of ``transformers``, with the files that ``sentence-transformers`` puts
beside it: ``modules.json`` (what follows the network), ``1_Pooling/config.json``,
``sentence_bert_config.json`` (how many tokens it was made for), and ``tokenizer.json``. Nothing is
taken from the network, and code that lies in the folder is not run. A folder that asks for what is
not computed here (another pooling, a further layer, a prompt) is refused: the embedding would be
another one than its makers measured, and nothing would show it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from edgekd.contracts.artifacts import read_bytes, read_json, sha256_bytes
from edgekd.contracts.texts import Float32, Int64, TextTokens, check_texts, embed_texts, overlap_of
from edgekd.errors import CheckpointError, InputError
from edgekd.train.places.text_cache import EmbeddingCache
from edgekd.train.teachers._folders import load, needed_by, settings
from edgekd.train.teachers._weights import UNREADABLE, refuse_not_finite, state_sha256

Say = Callable[[str], None]
#: parts of ``modules.json`` whose meaning is built in here
_PARTS: Final = ("Transformer", "Pooling", "Normalize")
POOLINGS: Final = ("mean", "cls")
#: texts of :func:`embeddings_of` between two visits to the disk
_CHUNK: Final = 64


class Embedder(nn.Module):
    """A network with its pooling: tokens -> embeddings of length 1.

    Args:
        model: of ``transformers``; gives ``last_hidden_state``.
        pooling: of :data:`POOLINGS`: mean over the tokens that are there (Reimers and Gurevych
            2019, Sentence-BERT), or the first token.
    """

    def __init__(self, model: Any, pooling: str) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Both ``(N, tokens)`` int64 -> ``(N, width)`` float32."""
        output = self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        hidden: Tensor = output.last_hidden_state
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            there = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * there).sum(1) / there.sum(1)
        return nn.functional.normalize(pooled, dim=1)


class TextEncoder:
    """A frozen encoder of texts.

    Attributes:
        name: of the file that made it.
        sha256: of the weights and of all else that decides about embeddings. Two encoders with the
            same value give the same embeddings.
        width: of an embedding.
        max_tokens: that are read at once; longer texts are embedded by windows
            (:mod:`edgekd.contracts.texts`).
        overlap_tokens: that neighbouring windows share, at least.
        tokenizer: bytes of ``tokenizer.json``.
        network: tokens -> embeddings.
        tokens: the tokenizer.
        report: what loading found, in words.
    """

    def __init__(
        self,
        name: str,
        network: Embedder,
        tokenizer: bytes,
        max_tokens: int,
        about: dict[str, Any],
        report: list[str],
    ) -> None:
        self.name, self.network, self.tokenizer, self.report = name, network, tokenizer, report
        self.max_tokens, self.overlap_tokens = max_tokens, overlap_of(max_tokens)
        self.tokens = TextTokens(tokenizer, max_tokens, self.overlap_tokens, "train")
        self.width = len(self._try())
        self.sha256 = state_sha256(
            network.state_dict(),
            about
            | {
                "pooling": network.pooling,
                "tokenizer": sha256_bytes(tokenizer),
                "max_tokens": max_tokens,
                "overlap_tokens": self.overlap_tokens,
            },
        )

    def _try(self) -> Tensor:
        """The embedding of as many tokens as are promised to fit."""
        other = int(self.tokens.pad_id == 0)  # some networks do not count what only fills up
        ids = torch.full((1, self.max_tokens), other)
        with torch.inference_mode():
            embedding: Tensor = self.network(ids, torch.ones_like(ids))[0]
        return embedding

    def embed(self, texts: Sequence[str], batch: int = 32) -> Float32:
        """Embeddings ``(N, width)`` float32 of length 1.

        Args:
            texts: any length.
            batch: windows at once; on a CPU 1 is as fast, since nothing is filled up.

        Raises:
            InputError: what is no text.
            EdgeKDError: the network gave something else than embeddings.
        """
        return embed_texts(texts, self.tokens, self.run, self.width, batch)

    def run(self, ids: Int64, mask: Int64) -> Float32:
        """The network on arrays, as :data:`edgekd.contracts.texts.Network`."""
        with torch.inference_mode():
            given: Float32 = self.network(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        return given


def embeddings_of(
    texts: Sequence[str], encoder: TextEncoder, cache: Path | None, say: Say | None = None
) -> Float32:
    """Embeddings ``(N, width)`` of many texts, float32 of length 1.

    Each text is embedded by itself, so that its embedding is the same to the bit whatever the cache
    holds and whatever stands beside it.

    Args:
        texts: equal ones are embedded once.
        encoder: any.
        cache: folder that keeps embeddings by encoder and text; None keeps none. What a killed
            process had finished stays; what is damaged is made again.
        say: gets a line where something was damaged; a warning where absent.

    Raises:
        InputError: what is no text.
        OutputError: the cache cannot be written.
    """
    todo = list(dict.fromkeys(check_texts(texts)))
    known: dict[str, Float32] = {}
    store = None
    if cache is not None:
        store = EmbeddingCache(cache, encoder.sha256, encoder.width, say or _warn)
        known = store.get(todo)
        todo = [text for text in todo if text not in known]
    try:
        for at in range(0, len(todo), _CHUNK):
            part = todo[at : at + _CHUNK]
            found = dict(zip(part, encoder.embed(part, batch=1), strict=True))
            if store is not None:
                store.put(found)
            known |= found
    finally:
        if store is not None:
            store.close()
    return np.stack([known[text] for text in texts])


def _warn(line: str) -> None:
    warnings.warn(line, stacklevel=2)


def from_folder(name: str, folder: Path) -> TextEncoder:
    """An encoder from a folder, in float32 on the CPU.

    Args:
        name: of the file that asks.
        folder: see the module's text.

    Raises:
        CheckpointError: the folder is missing, incomplete or damaged.
        InputError: it asks for what is not computed here.
        EnvironmentLacksError: transformers or tokenizers is not installed.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is no folder; give one with config.json, model.safetensors and "
            "tokenizer.json, e.g. a download of sentence-transformers/all-MiniLM-L6-v2 from "
            "Hugging Face"
        )
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} holds no tokenizer.json, which is what a device reads; make it with: python "
            f'-c "from transformers import AutoTokenizer as T; '
            f"T.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    report: list[str] = []
    pooling = _pooling(folder, report)
    _check_prompt(folder)
    model, missing = load(folder, report, f"encoder {name}", attn_implementation="eager")
    config = read_json(folder / "config.json")
    network = Embedder(model, pooling).eval().requires_grad_(False)
    max_tokens = _max_tokens(folder, config, report)
    tokenizer = read_bytes(folder / "tokenizer.json")
    about = {"encoder": "text", "config": settings(config)}
    try:
        encoder = TextEncoder(name, network, tokenizer, max_tokens, about, report)
    except (*UNREADABLE, AttributeError) as err:
        said = " ".join(str(err).split())[:200]
        raise InputError(
            f"{folder} ({model.config.model_type}) cannot encode texts of {max_tokens} tokens: "
            f"{said}"
        ) from err
    rows = model.get_input_embeddings().weight.shape[0]
    if encoder.tokens.size > rows:
        raise CheckpointError(
            f"{folder}: tokenizer.json has {encoder.tokens.size} tokens, the network {rows}; they "
            "are of different models, copy the folder again"
        )
    _check_case(folder, encoder.tokens)
    if missing:
        names = f"{len(missing)} tensors ({', '.join(list(missing)[:3])})"
        if needed_by(missing, lambda: [encoder._try()]):
            raise CheckpointError(f"{folder} lacks {names}, which embeddings need; copy it again")
        report.append(f"{names} missing and set to 0, embeddings do not need them")
    refuse_not_finite(model.state_dict(), str(folder))
    return encoder


def _pooling(folder: Path, report: list[str]) -> str:
    """Of :data:`POOLINGS`, as the folder says; mean where it says nothing."""
    if (folder / "modules.json").is_file():
        parts = read_json(folder / "modules.json")
        try:
            kinds = [str(part["type"]).rpartition(".")[2] for part in parts]
        except (TypeError, KeyError) as err:
            raise CheckpointError(f"{folder}/modules.json is damaged; copy it again") from err
        if other := [kind for kind in kinds if kind not in _PARTS]:
            raise InputError(
                f"{folder}/modules.json names a module {other[0]}, which is not computed here "
                f"(known: {', '.join(_PARTS)}); take another encoder"
            )
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        report.append("no 1_Pooling/config.json: mean over tokens")
        return "mean"
    values = read_json(path)
    asked = {
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, value in values.items()
        if key.startswith("pooling_mode_") and value is True
    }
    if isinstance(values.get("pooling_mode"), str):
        asked.add(values["pooling_mode"])
    if len(asked) != 1 or not asked <= set(POOLINGS):
        raise InputError(
            f"{path} asks for pooling by {', '.join(sorted(asked)) or 'nothing'}, expected one of "
            f"{', '.join(POOLINGS)}; take another encoder"
        )
    return str(asked.pop())


def _check_prompt(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    if path.is_file() and (prompt := read_json(path).get("default_prompt_name")):
        raise InputError(
            f"{path}: the encoder puts the prompt '{prompt}' before every text, which is not done "
            "here; take another encoder"
        )


def _max_tokens(folder: Path, config: dict[str, Any], report: list[str]) -> int:
    """What the makers say that the encoder reads: the least of what the folder's files say."""
    said: dict[str, int] = {}
    for file, key in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        if (folder / file).is_file():
            value = read_json(folder / file).get(key)
            # tokenizers without a bound say 1e30
            if isinstance(value, int) and 8 <= value <= 1_000_000:
                said[file] = value
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int):
        said["config.json"] = positions
    if not said:
        raise InputError(
            f"{folder} does not say how many tokens the encoder reads; write "
            '{"max_seq_length": 256} into its sentence_bert_config.json'
        )
    least = min(said, key=lambda file: said[file])
    report.append(f"{said[least]} tokens at once, as {least} says; longer texts by windows")
    return said[least]


def _check_case(folder: Path, tokens: TextTokens) -> None:
    path = folder / "sentence_bert_config.json"
    if path.is_file() and read_json(path).get("do_lower_case") and not tokens.lower_cases():
        raise InputError(
            f"{path} asks for lower case, and tokenizer.json tells cases apart; set do_lower_case "
            "in the tokenizer and save it again"
        )
