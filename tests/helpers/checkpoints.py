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
        if name.endswith("bias"):
            item.normal_(0, 0.1)
    model.eval()
    _spread(model, recipe)
    return model


def _spread(model: Segmenter, recipe: Recipe) -> None:
    """Scale the last layer: logits of a picture about 0 with a deviation of 3, as after tuning."""
    spec = recipe.io.inputs[0]
    picture = synthetic_tile(spec.tile_px, spec.channel_count)
    logits = model(torch.from_numpy(Normalizer(spec)(picture))[None])
    last = [item for item in model.decoder.modules() if isinstance(item, nn.Conv2d)][-1]
    assert last.out_channels == model.num_classes and last.bias is not None
    factor = 3.0 / logits.std(dim=(0, 2, 3))
    middle = logits.mean(dim=(0, 2, 3))
    last.weight.mul_(factor[:, None, None, None])
    last.bias.sub_(middle).mul_(factor)


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
