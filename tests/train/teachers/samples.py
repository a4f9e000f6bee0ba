"""Small teachers of every kind, for tests: one entry per file in ``edgekd/train/teachers``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from edgekd.contracts import registry
from edgekd.train.students._efficientnet_lite import BLOCK_NORMS, RENAMED
from edgekd.train.teachers._base import Teacher

STEM_AND_HEAD = {
    "stem.conv": "_conv_stem",
    "stem.norm": "_bn0",
    "head.conv": "_conv_head",
    "head.norm": "_bn1",
}
PACKAGE = "edgekd.train.teachers"


def save_model(folder: Path, kind: str, seed: int = 0, **changes: Any) -> Any:
    """A small random model of ``transformers`` in ``folder``; returns it in evaluation mode."""
    import transformers

    small: dict[str, dict[str, Any]] = {
        "ViT": {"image_size": 64, "patch_size": 8, "num_hidden_layers": 3},
        "Dinov2": {"image_size": 56, "patch_size": 14, "num_hidden_layers": 2},
        "Dinov2WithRegisters": {"image_size": 56, "patch_size": 14, "num_hidden_layers": 2},
        "ConvNextV2": {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1]},
        "Swin": {"image_size": 64, "embed_dim": 8, "depths": [1, 2, 1], "num_heads": [1, 2, 4]},
        "Swin4": {"image_size": 128, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2]},
    }
    options = {**small[kind], **changes}
    if "embed_dim" not in options and "depths" not in options:
        options |= {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 48}
    if kind.startswith("Swin"):
        options |= {"window_size": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        name = kind.rstrip("4")
        config = getattr(transformers, name + "Config")(**options)
        model = getattr(transformers, name + "Model")(config).eval()
        for value in model.parameters():  # the usual small values hide mistakes
            value.data += 0.1 * torch.randn(value.shape)
    model.save_pretrained(folder)
    return model


def sam(folder: Path) -> Teacher:
    return build("sam", "tiny", "random")


def hf_vision(folder: Path) -> Teacher:
    if not (folder / "config.json").exists():
        save_model(folder, "ViT")
    return build("hf_vision", None, folder)


def efficientnet_lite(folder: Path) -> Teacher:
    return build("efficientnet_lite", "lite2", "random")


SAMPLES: dict[str, Callable[[Path], Teacher]] = {
    "sam": sam,
    "hf_vision": hf_vision,
    "efficientnet_lite": efficientnet_lite,
}


def build(name: str, variant: str | None, weights: str | Path) -> Teacher:
    teacher: Teacher = registry.load(PACKAGE, name, "teacher").build(variant, weights)
    return teacher


def changed_weights(teacher: Teacher, folder: Path) -> Teacher:
    """The same kind of teacher from other weights, where a file can be given."""
    if teacher.name == "sam":
        state = {f"vision_encoder.{k}": v for k, v in teacher.encoder.state_dict().items()}
        state["vision_encoder.layers.2.mlp.lin1.bias"][3] += 1e-3
        torch.save(state, folder / "other.pth")
        return build("sam", "tiny", folder / "other.pth")
    if teacher.name == "hf_vision":
        save_model(folder / "other", "ViT", seed=1)
        return build("hf_vision", None, folder / "other")
    state = teacher.encoder.state_dict()
    names = {new: old for old, new in RENAMED.items()}
    stored = {}
    for key, value in state.items():
        parts = key.split(".")
        block_norm = next((k for k, v in BLOCK_NORMS.items() if f".{v}." in key), None)
        if parts[0] == "blocks" and block_norm:
            name = f"_blocks.{parts[1]}.{block_norm}.{parts[-1]}"
        elif parts[0] == "blocks":
            name = f"_blocks.{parts[1]}.{names['.'.join(parts[2:4])]}.{parts[-1]}"
        else:
            name = STEM_AND_HEAD[".".join(parts[:2])] + "." + parts[-1]
        stored[name] = value.flip(2, 3) if value.ndim == 4 else value.clone()
    stored["_bn0.bias"][3] += 1e-3
    torch.save(stored, folder / "other.pth")
    return build("efficientnet_lite", "lite2", folder / "other.pth")
