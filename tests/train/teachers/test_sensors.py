"""What holds for every teacher that sees several sensors."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="teachers need the extra train (torch)")

from edgekd.contracts import registry  # noqa: E402
from edgekd.errors import CheckpointError, InputError  # noqa: E402
from edgekd.train.teachers._saved import (  # noqa: E402
    TeacherCheckpoint,
    build_teacher,
    describe_teacher,
    load_teacher,
    rebuild_teacher,
    save_teacher,
)
from edgekd.train.teachers._sensors import SensorPlan, SensorTeacher  # noqa: E402

PACKAGE = "edgekd.train.teachers"
PLANS = {
    "visual": SensorPlan("image", 3),
    "spectral": SensorPlan("spectral", 20),
    "lidar": SensorPlan("elevation", 1),
}
NAMES = [
    name
    for name in registry.module_names(PACKAGE)
    if getattr(registry.load(PACKAGE, name, "teacher"), "SENSORS", False)
]
VARIANTS = [
    (name, variant)
    for name in NAMES
    for variant in registry.load(PACKAGE, name, "teacher").VARIANTS
]


def built(name: str, variant: str | None) -> SensorTeacher:
    torch.manual_seed(3)
    return build_teacher(name, 4, PLANS, variant).eval()


def sensors(count: int = 2, side: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(count, plan.channels, side, side + 2, generator=generator)
        for name, plan in PLANS.items()
    }


def test_every_file_is_looked_at() -> None:
    assert NAMES == ["geology_fusion"]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_scores_and_features_of_every_pixel(name: str, variant: str) -> None:
    teacher = built(name, variant)
    with torch.no_grad():
        scores, features = teacher(sensors())
    assert scores.shape == (2, 9, 11, 4) and features.shape == (2, 9, 11, teacher.width)
    assert torch.isfinite(scores).all() and features.std() > 1e-3


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_chosen_pixels_are_those_of_all(name: str, variant: str) -> None:
    teacher = built(name, variant)
    at = torch.zeros(2, 9, 11, dtype=torch.bool)
    at[0, 0, 0] = at[0, 4, 7] = at[1, 8, 10] = True
    with torch.no_grad():
        every, feature = teacher(sensors())
        some, again = teacher(sensors(), at=at)
    torch.testing.assert_close(some, every[at])
    torch.testing.assert_close(again, feature[at])


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_what_stands_for_an_absent_sensor_is_not_looked_at(name: str, variant: str) -> None:
    teacher = built(name, variant)
    present = torch.tensor([[True, True, False], [True, True, True]])
    with torch.no_grad():
        first, _ = teacher(sensors(), present)
        changed = sensors()
        changed["lidar"] = changed["lidar"] + 9.0
        second, _ = teacher(changed, present)
        whole, _ = teacher(sensors())
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=0)
    assert not torch.allclose(first[1], second[1]) and not torch.allclose(first[0], whole[0])
    torch.testing.assert_close(first[1], whole[1])


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_an_absent_sensor_is_in_no_statistics_of_a_batch(name: str, variant: str) -> None:
    """While training: zeros that stand for heights of 500 m must not move the others' scores."""
    present = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])
    found = []
    for stands in (0.0, -50.0):
        teacher = built(name, variant).train()
        teacher.classifier.eval()  # type: ignore[union-attr]
        values = sensors(3)
        values["lidar"][1] = stands
        scores, _ = teacher(values, present)
        found.append((scores.detach(), {k: v.clone() for k, v in teacher.named_buffers()}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=0)
    for key, value in found[0][1].items():
        torch.testing.assert_close(value, found[1][1][key], rtol=0, atol=0)
    # and those that have it give what they give without the one that lacks it
    alone = built(name, variant).train()
    alone.classifier.eval()  # type: ignore[union-attr]
    whole = {key: item[[0, 2]] for key, item in sensors(3).items()}
    alone(whole)
    for key, value in alone.named_buffers():
        if "lidar" in key:
            torch.testing.assert_close(value, found[0][1][key], rtol=0, atol=0)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_part_learns(name: str, variant: str) -> None:
    teacher = built(name, variant).train()
    scores, features = teacher(sensors())
    (scores.square().mean() + features.square().mean()).backward()
    still = [key for key, value in teacher.named_parameters()
             if value.grad is None or not value.grad.abs().max() > 0]  # fmt: skip
    assert still == [], "keys' bias cancels in softmax, but shares a tensor with queries"


def test_statistics_travel_with_the_weights(tmp_path: Path) -> None:
    teacher = built("geology_fusion", "around")
    teacher.set_statistics("lidar", [100.0], [20.0])
    saved = TeacherCheckpoint(
        {}, describe_teacher(teacher, {}), dict(teacher.state_dict()), {"name": "x"}, {}
    )
    save_teacher(tmp_path / "teacher.ckpt", saved)
    again = rebuild_teacher(load_teacher(tmp_path), "it")
    assert again.variant == "around" and list(again.plans) == list(PLANS)
    values = sensors()
    values["lidar"] = 100 + 20 * values["lidar"]
    with torch.no_grad():
        torch.testing.assert_close(again(values)[0], teacher(values)[0])
        plain = built("geology_fusion", "around")
        torch.testing.assert_close(plain(sensors())[0], again(values)[0], atol=1e-4, rtol=1e-4)


def test_wrong_input_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no variant 'pixle'; did you mean 'pixel'"):
        built("geology_fusion", "pixle")
    with pytest.raises(InputError, match="at least one sensor"):
        build_teacher("geology_fusion", 4, {}, None)
    with pytest.raises(InputError, match="sees images alone"):
        build_teacher("sam", 4, PLANS, None)
    teacher = built("geology_fusion", None)
    values = sensors()
    with pytest.raises(InputError, match=r"takes spectral as \(N, 20, H, W\)"):
        teacher({**values, "spectral": values["spectral"][:, :4]})
    del values["spectral"]
    with pytest.raises(InputError, match="spectral is not given"):
        teacher(values)
    with pytest.raises(CheckpointError, match=r"does not exist; make one with: edgekd distill"):
        load_teacher(tmp_path)
