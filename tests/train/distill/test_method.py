"""Rules of Mask-CDKD that hold between its parts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekd.contracts.recipe import Recipe
from edgekd.train.checkpoint import build_student
from edgekd.train.distill.masking import batch_index
from edgekd.train.distill.methods import feature, mae, mask_cdkd
from edgekd.train.distill.methods._base import Batch, to_grid
from edgekd.train.distill.mmoa import MMoA
from edgekd.train.distill.teaching import build_teachers
from edgekd.train.teachers import sam
from tests.helpers.unlabeled import LITE, distill_values

METHODS = {"mask_cdkd": mask_cdkd, "feature": feature, "mae": mae}
LONG = pytest.mark.skipif(
    os.environ.get("EDGEKD_LONG_TESTS") != "1", reason="EDGEKD_LONG_TESTS=1 runs it"
)


def make(name: str, **changes: Any) -> Any:
    values = distill_values(name, **changes)
    recipe = Recipe.model_validate(values)
    torch.manual_seed(0)
    student = build_student("vit_nano", 2, attention="global", head="linear", pretrained=None)
    method = METHODS[name].build(recipe, student, build_teachers(recipe, Path()))
    with torch.no_grad():  # adapters that do something
        for key, value in method.named_parameters():
            if "adapters" in key:
                value.add_(0.02 * torch.randn_like(value))
    return method.eval()


def pixels(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8, generator=generator)


def hide(image: torch.Tensor, kind: str, hidden: bool) -> torch.Tensor:
    """Change all hidden (or all visible) patches of ``image``."""
    index = batch_index(kind, 2, (8, 8), 4, [0, 1], image.device)
    seen = torch.zeros(2, 64, dtype=torch.bool).scatter_(1, index.flatten(1), True).view(2, 1, 8, 8)
    seen = seen.repeat_interleave(16, 2).repeat_interleave(16, 3)
    return torch.where(seen == hidden, image, 255 - image)


@pytest.mark.parametrize("kind", ["lattice", "random"])
@pytest.mark.parametrize("name", ["mask_cdkd", "mae"])
@torch.no_grad()
def test_no_hidden_pixel_reaches_an_encoder(name: str, kind: str) -> None:
    """Neither the student's nor the teacher's: bit for bit."""
    method = make(name, mask={"kind": kind})
    image = pixels()
    other = hide(image, kind, hidden=True)
    assert not torch.equal(image, other)
    weights = (0.2, 0.4, 0.4)
    first = method(Batch(image, image, [0, 1]), weights, inspect=True)
    second = method(Batch(other, other, [0, 1]), weights, inspect=True)
    assert set(first.features) == ({"student", "teacher"} if name == "mask_cdkd" else {"student"})
    for side, features in first.features.items():
        assert torch.equal(features, second.features[side]), side
    # and the loss does look at them, so that the equality above means something
    assert first.parts["student_mae"] != second.parts["student_mae"]
    changed = hide(image, kind, hidden=False)
    seen = method(Batch(changed, changed, [0, 1]), weights, inspect=True)
    for side, features in first.features.items():
        assert not torch.equal(features, seen.features[side]), side


@torch.no_grad()
def test_both_sides_see_the_same_patches() -> None:
    """Features that are compared belong to the same places: make both sides report theirs."""
    method = make("mask_cdkd")
    image = pixels()
    seen: list[torch.Tensor] = []
    vit, teacher = method.student, method.teachers[0]
    for module, name in ((vit, "run_blocks"), (teacher, "run_blocks")):
        original = getattr(module, name)

        def spy(tokens: torch.Tensor, *rest: Any, inner: Any = original) -> Any:
            seen.append(tokens)
            return inner(tokens, *rest)

        object.__setattr__(module, name, spy)
    method(Batch(image, image, [5, 6]), (1, 1, 1))
    index = batch_index("lattice", 2, (8, 8), 4, [5, 6], image.device)
    student = vit.patchify(method.pixels(image)) + vit.positions_for(8, 8)
    side = method.sides[0]
    whole = teacher.patchify(side.pixels(image))
    for tokens, full in zip(seen, (student, whole), strict=True):
        expected = torch.stack([f.flatten(0, 1)[i] for f, i in zip(full, index, strict=True)])
        assert torch.equal(tokens, expected)


@torch.no_grad()
def check_identity(variant: str, side_px: int) -> float:
    """Largest difference between transformers' SAM and ours with fresh MMoA in every block."""
    from transformers.models.sam.modeling_sam import SamVisionEncoder

    teacher = sam.build(variant, "random")
    encoder = teacher.encoder
    assert isinstance(encoder, SamVisionEncoder)
    image = torch.randn(1, 3, side_px, side_px, generator=torch.Generator().manual_seed(1))
    caught: list[torch.Tensor] = []
    hook = encoder.neck.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    encoder(image)
    hook.remove()
    torch.manual_seed(3)
    adapters = [MMoA(teacher.dim) for _ in range(teacher.depth)]
    (ours,) = teacher.run_blocks(teacher.patchify(image), [teacher.depth], adapters)
    return float((ours - caught[0]).abs().max())


def test_a_teacher_with_fresh_adapters_is_plain_sam() -> None:
    assert check_identity("tiny", 1024) <= 1e-5


@LONG
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["vit_b", "vit_l"])
def test_a_full_size_teacher_with_fresh_adapters_is_plain_sam(variant: str) -> None:
    error = check_identity(variant, 1024)
    print(f"{variant}: max abs {error:.3g}")
    assert error <= 1e-4


def test_a_feature_map_stays_where_it_is() -> None:
    """Averaged to a coarser grid or interpolated to a finer one, centres do not move."""
    x = torch.linspace(0.5, 31.5, 32) / 32
    ramp = x.expand(32, 32)[None, None]
    for side in (32, 16, 8):
        expected = (torch.arange(side) + 0.5) / side
        assert to_grid(ramp, (side, side))[0, 0, :, 0] == pytest.approx(expected, abs=1e-6)
    coarse = ((torch.arange(8) + 0.5) / 8).expand(8, 8)[None, None]
    fine = to_grid(coarse, (32, 32))[0, 5, :, 0]
    inside = slice(2, -2)  # beyond the outer centres there is nothing to interpolate with
    assert fine[inside] == pytest.approx(((torch.arange(32) + 0.5) / 32)[inside], abs=1e-6)


@torch.no_grad()
def test_masked_features_are_compared_with_the_teachers_at_the_same_places() -> None:
    """With a teacher whose features are the places themselves, the pairs must agree."""
    method = make("feature", mask={"kind": "lattice"})
    image = pixels()
    tap = method.bridges[0].teacher_taps[0]
    width = method.teachers[0].channels[tap]
    places = torch.arange(64.0).view(1, 1, 8, 8).expand(2, width, 8, 8)
    seen: list[torch.Tensor] = []
    bridge = method.bridges[0]
    original = bridge.loss

    def spy(student: Any, teacher: dict[int, torch.Tensor], distance: Any) -> torch.Tensor:
        seen.append(teacher[tap])
        return original(student, teacher, distance)

    object.__setattr__(bridge, "loss", spy)
    method(Batch(image, image, [3, 9], {0: [places]}), (1, 1, 1))
    index = batch_index("lattice", 2, (8, 8), 4, [3, 9], image.device)
    assert torch.equal(seen[0][..., 0], index.float())


def test_shares_of_teachers_sum_to_one() -> None:
    values = distill_values("feature")
    values["teachers"] = [LITE | {"weight": 3}, LITE | {"weight": 1}]
    recipe = Recipe.model_validate(values)
    student = build_student("vit_nano", 2, attention="global", head="linear", pretrained=None)
    method = feature.build(recipe, student, build_teachers(recipe, Path()))
    assert method.shares == [0.75, 0.25]
