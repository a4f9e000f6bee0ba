"""A small BERT with random weights in a folder as sentence-transformers writes it."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

WORDS = ("seawall", "levee", "allowed", "prohibited", "homes", "towers", "park", "shall", "be")
WIDTH, MAX_TOKENS = 16, 24


def tokenizer_text(lowercase: bool = True) -> str:
    """A WordPiece tokenizer of some words and all letters; it cuts and fills, as MiniLM's does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = string.ascii_lowercase + string.digits + ".,"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    pieces = [*special, *WORDS, *letters, *(f"##{x}" for x in letters)]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_truncation(6)
    made.enable_padding(length=6)
    text: str = made.to_str()
    return text


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def tiny_encoder(folder: Path, pooling: str = "mean", **config: Any) -> Path:
    """Write the folder: two layers, :data:`WIDTH`, :data:`MAX_TOKENS` tokens of 40 positions."""
    import torch
    from transformers import BertConfig, BertModel

    values: dict[str, Any] = {
        "vocab_size": 100, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 40, "initializer_range": 0.5,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        BertModel(BertConfig(**(values | config))).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_text(), encoding="utf-8")
    kinds = ("Transformer", "Pooling", "Normalize")
    parts = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    write(folder / "modules.json", parts)
    names = ("cls_token", "mean_tokens", "max_tokens")
    asked = {f"pooling_mode_{name}": name.startswith(pooling) for name in names}
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH} | asked)
    write(folder / "sentence_bert_config.json", {"max_seq_length": MAX_TOKENS})
    write(folder / "tokenizer_config.json", {"model_max_length": int(1e30)})
    return folder
