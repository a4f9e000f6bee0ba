"""Checkpoints without training: a student with random weights, norms and statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.recipe import Recipe, parse_recipe
from edgekd.deploy.export.onnx_export import synthetic_tile
from edgekd.train.checkpoint import Checkpoint, build_student, describe_student, save_checkpoint
from edgekd.train.students._base import Segmenter


def parsed(values: dict[str, Any]) -> Recipe:
    """The values as a checked recipe."""
    return parse_recipe(values, "a test")


@torch.no_grad()
def random_student(values: dict[str, Any], seed: int = 11) -> Segmenter:
    """The recipe's student, evaluation mode.

    Biases, norms and BatchNorm statistics are drawn anew: at their initial 0 and 1 an export
    that forgets one of them would still compare equal.
    """
    recipe = parsed(values)
    torch.manual_seed(seed)
    spec = recipe.student
    model = build_student(
        spec.name,
        len(recipe.io.classes),
        variant=spec.variant,
        attention=spec.attention,
        head=spec.head,
        pretrained=False,
    )
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)):
            module.weight.uniform_(0.7, 1.3)
    for name, item in model.named_parameters():
        if name.endswith("bias") or not item.any():
            item.normal_(0, 0.1)
    model.eval()
    _spread(model, recipe)
    return model


def _spread(model: Segmenter, recipe: Recipe) -> None:
    """Scale what gives scores: those of a picture are about 0 with a deviation of 3, as tuned."""
    spec = recipe.io.inputs[0]
    picture = synthetic_tile(spec.tile_px, spec.channel_count)
    logits = model(torch.from_numpy(Normalizer(spec)(picture))[None])
    convolutions = [item for item in model.decoder.modules() if isinstance(item, nn.Conv2d)]
    scoring = [item for item in convolutions if item.out_channels == model.num_classes]
    assert scoring and scoring[-1] is convolutions[-1]
    factor = 3.0 / logits.std(dim=(0, 2, 3))
    assert scoring[-1].bias is not None
    scoring[-1].bias.sub_(logits.mean(dim=(0, 2, 3)))
    for item in scoring:
        assert item.bias is not None
        item.weight.mul_(factor[:, None, None, None])
        item.bias.mul_(factor)


def make_checkpoint(path: Path, values: dict[str, Any], seed: int = 11) -> Path:
    """Write a checkpoint of :func:`random_student` as tuning would."""
    model = random_student(values, seed)
    save_checkpoint(
        path,
        Checkpoint(
            recipe=parsed(values).plain(),
            student=describe_student(model),
            weights=model.state_dict(),
            data={"name": "none", "sha256": "0" * 64},
            tuning={"steps_done": 0, "best_step": 0, "best_val_miou": 0.0, "seed": seed},
        ),
    )
    return path
