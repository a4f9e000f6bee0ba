"""The student geology_rgb: sizes, geometry, two paths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from edgekd.contracts.recipe import Recipe
from edgekd.errors import InputError
from edgekd.train.checkpoint import build_for, build_student
from edgekd.train.students import geology_rgb
from edgekd.train.students._base import Segmenter
from tests.helpers.labelled import recipe_values

SIZES = list(geology_rgb.VARIANTS)
NONE: dict[str, Any] = {"attention": None, "head": None, "pretrained": None}


def built(variant: str | None = None) -> Segmenter:
    torch.manual_seed(2)
    student = build_student("geology_rgb", 5, variant=variant, **NONE)
    with torch.no_grad():  # away from the zeros of the start
        student.decoder.context.weight.normal_(0, 0.3)  # type: ignore[union-attr, operator]
    return student.eval()


@torch.no_grad()
def answers(student: Segmenter, image: Tensor) -> Tensor:
    found: Tensor = student(image)
    return found


@pytest.mark.parametrize("variant", SIZES)
def test_scores_lie_at_stride_one(variant: str) -> None:
    student = built(variant)
    assert (student.stride, student.side_multiple) == (1, 2)
    assert answers(student, torch.randn(2, 3, 24, 34)).shape == (2, 5, 24, 34)
    assert student.options["variant"] == variant


def test_sizes_differ_in_numbers_alone() -> None:
    names = [set(built(size).state_dict()) for size in SIZES]
    assert names[1] < names[0], "nano has no block that small lacks"
    counts = [sum(p.numel() for p in built(size).parameters()) for size in SIZES]
    assert 50_000 < counts[0] < 100_000 and 5_000 < counts[1] < 15_000
    assert built(None).options["variant"] == "small"


@pytest.mark.parametrize("variant", SIZES)
def test_a_patch_gives_what_the_whole_image_gives(variant: str) -> None:
    """Trained on patches, run dense: away from borders nothing depends on where a tile ends."""
    student = built(variant)
    image = torch.randn(1, 3, 128, 128)
    whole, patch = answers(student, image), answers(student, image[..., 16:112, 16:112])
    # first convolution 1 px, two 3 x 3 of each dilation in cells of 2 px, bilinear 2 px
    dilations = geology_rgb.VARIANTS[variant].dilations
    reach = 1 + 2 * 2 * sum(dilations) + 2
    inner = slice(reach + 1, 96 - reach - 1)
    torch.testing.assert_close(
        patch[..., inner, inner], whole[..., 16:112, 16:112][..., inner, inner],
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip
    changed = image.clone()
    changed[..., 60:68, 60:68] += 3.0
    moved = (answers(student, changed) - whole).abs().amax((0, 1)) > 1e-6
    rows = moved.any(1).nonzero()[:, 0]
    assert 60 - reach <= int(rows.min()) < 56 and 72 < int(rows.max()) < 68 + reach


def test_while_training_some_crops_are_left_to_colour_alone() -> None:
    student = built("nano").train()
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    image = torch.randn(64, 3, 8, 8)
    maps = student.encoder(image)
    alone = student.decoder.colour(maps[0])  # type: ignore[union-attr, operator]
    torch.manual_seed(0)
    same = (student(image) == alone).flatten(1).all(1)
    assert 16 < int(same.sum()) < 48
    student.decoder.drop_path = 0.0  # type: ignore[assignment]
    whole = student(image).detach()
    alone = alone.detach()
    torch.manual_seed(0)
    student.decoder.drop_path = 0.5  # type: ignore[assignment]
    with torch.no_grad():
        mean = torch.stack([student(image) for _ in range(400)]).mean(0)
    assert float((mean - whole).abs().mean() / (whole - alone).abs().mean()) < 0.1


@pytest.mark.parametrize(("asked", "alone"), [(None, 32), (0.0, 0), (0.9, 58)])
def test_the_recipe_says_how_many(asked: float | None, alone: int) -> None:
    values = recipe_values(student={"name": "geology_rgb", "variant": "nano", "drop_path": asked})
    student = build_for(Recipe.model_validate(values)).train()
    torch.nn.init.normal_(student.decoder.context.weight)  # type: ignore[union-attr, arg-type]
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    image = torch.randn(64, 3, 8, 8)
    torch.manual_seed(0)
    colour = student.decoder.colour(student.encoder(image)[0])  # type: ignore[union-attr, operator]
    found = int((student(image) == colour).flatten(1).all(1).sum())
    assert abs(found - alone) <= (9 if alone else 0)
    student.eval()
    assert torch.equal(student(image), student(image))


def test_it_begins_as_a_classifier_of_colours() -> None:
    torch.manual_seed(1)
    student = build_student("geology_rgb", 3, variant="nano", **NONE).eval()
    image = torch.randn(1, 3, 16, 16)
    changed = image.clone()
    changed[..., 8:, :] = 2.0
    first, second = answers(student, image), answers(student, changed)
    assert torch.equal(first[..., :8, :], second[..., :8, :])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"variant": "smal"}, "no variant 'smal'; did you mean 'small'"),
        ({"attention": "global"}, "has no such option"),
        ({"head": "upernet"}, "has no such option"),
        ({"pretrained": True}, "has no such option"),
    ],
)
def test_options_that_it_does_not_have(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        build_student("geology_rgb", 3, **{**NONE, "variant": None, **options})


def test_other_students_have_no_sizes_and_no_optional_path() -> None:
    with pytest.raises(InputError, match="vit_nano has no path that can be left out"):
        build_student("vit_nano", 3, drop_path=0.1, **NONE)
    with pytest.raises(ValueError, match="drop_path"):
        Recipe.model_validate(recipe_values(student={"name": "geology_rgb", "drop_path": 1.0}))
    with pytest.raises(InputError, match="vit_nano comes in one size"):
        build_student("vit_nano", 3, variant="small", **NONE)
