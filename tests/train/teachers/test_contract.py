"""What holds for every teacher in the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="teachers need the extra train (torch)")
pytest.importorskip("transformers", reason="teachers need the extra train (transformers)")

from edgekd.contracts import registry  # noqa: E402
from edgekd.errors import InputError  # noqa: E402
from edgekd.train.teachers._base import Teacher, TransformerTeacher  # noqa: E402
from edgekd.train.teachers._weights import state_sha256  # noqa: E402
from tests.train.teachers.samples import PACKAGE, SAMPLES, changed_weights  # noqa: E402

#: teachers of images; those of several sensors: tests/train/teachers/test_sensors.py
NAMES = [
    name
    for name in registry.module_names(PACKAGE)
    if not getattr(registry.load(PACKAGE, name, "teacher"), "SENSORS", False)
]


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(name)


@pytest.fixture(scope="module")
def teacher(name: str, folder: Path) -> Teacher:
    return SAMPLES[name](folder)


def image(teacher: Teacher, rows: int = 2, columns: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    side = max(teacher.side_multiple, 32)
    return torch.randn(2, 3, rows * side, columns * side, generator=generator)


def test_every_file_is_looked_at() -> None:
    assert NAMES == ["efficientnet_lite", "hf_vision", "sam"] == sorted(SAMPLES)


def test_a_teacher_says_what_it_is(name: str, teacher: Teacher) -> None:
    module = registry.load(PACKAGE, name, "teacher")
    assert teacher.name == name and len(module.VARIANTS) >= 1
    assert teacher.variant in module.VARIANTS or module.VARIANTS == (None,)
    assert len(teacher.mean) == len(teacher.std) == 3
    assert all(1 < value < 256 for value in (*teacher.mean, *teacher.std)), "units are 0-255"
    assert list(teacher.channels) == list(teacher.strides) == sorted(teacher.channels)
    assert min(teacher.channels) == 1 and teacher.report
    assert all(teacher.side_multiple % stride == 0 for stride in teacher.strides.values())
    if isinstance(teacher, TransformerTeacher):
        assert set(teacher.channels) == set(range(1, teacher.depth + 1))
        assert set(teacher.channels.values()) == {teacher.dim}
        assert set(teacher.strides.values()) == {teacher.patch_px}


def test_features_have_the_declared_shapes(teacher: Teacher) -> None:
    picture, taps = image(teacher), list(teacher.channels)
    with torch.no_grad():
        found = teacher.features(picture, taps)
    height, width = picture.shape[2:]
    assert [tuple(item.shape) for item in found] == [
        (2, teacher.channels[t], height // teacher.strides[t], width // teacher.strides[t])
        for t in taps
    ]
    for tap, item in zip(taps, found, strict=True):
        assert torch.isfinite(item).all() and item.std() > 1e-3, tap
        assert not torch.allclose(item[0], item[1]), "pictures must not be mixed or ignored"


def test_some_taps_are_the_same_as_among_all(teacher: Teacher) -> None:
    taps = list(teacher.channels)
    with torch.no_grad():
        every = dict(zip(taps, teacher.features(image(teacher), taps), strict=True))
        for some in ([taps[-1]], taps[:1], taps[::2]):
            for tap, item in zip(some, teacher.features(image(teacher), some), strict=True):
                torch.testing.assert_close(item, every[tap], atol=0, rtol=0)
    assert len({item.double().sum().item() for item in every.values()}) == len(taps)


def test_pictures_of_a_batch_do_not_meet(teacher: Teacher) -> None:
    picture, last = image(teacher), [max(teacher.channels)]
    with torch.no_grad():
        both = teacher.features(picture, last)[0]
        alone = teacher.features(picture[1:], last)[0]
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("taps", [[], [0], [-1], [999], [2, 1], [1, 1]])
def test_wrong_taps_are_refused(teacher: Teacher, taps: list[int]) -> None:
    with pytest.raises(InputError, match=rf"teacher {teacher.name} .*tap.*valid: 1 to"):
        teacher.features(image(teacher), taps)


def test_wrong_images_are_refused(teacher: Teacher) -> None:
    picture = image(teacher)
    for wrong in (picture[:, :, :-1], picture[..., :-4], picture[:, :, :0]):
        with pytest.raises(InputError, match=f"multiples of {teacher.side_multiple} px"):
            teacher.features(wrong, [1])
    for wrong in (picture[:, :2], picture[0]):
        with pytest.raises(InputError, match=r"takes images \(N, 3, H, W\)"):
            teacher.features(wrong, [1])


def test_a_teacher_is_frozen_and_stays_in_evaluation_mode(teacher: Teacher) -> None:
    assert list(teacher.parameters())
    assert not any(value.requires_grad for value in teacher.parameters())
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    assert teacher.train() is teacher
    assert not any(module.training for module in teacher.modules())
    found = teacher.features(image(teacher), [1, 2])
    assert all(item.grad_fn is None and not item.requires_grad for item in found), "no graph"
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


def test_gradients_reach_the_picture(teacher: Teacher) -> None:
    picture = image(teacher).requires_grad_(True)
    teacher.features(picture, [2])[0].square().mean().backward()
    assert picture.grad is not None and picture.grad.abs().sum() > 0


def test_building_again_gives_the_same_and_leaves_random_numbers_alone(
    name: str, folder: Path, teacher: Teacher
) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    again = SAMPLES[name](folder)
    assert torch.equal(torch.rand(3), expected), "building draws from the caller's generator"
    assert again.weights_sha256 == teacher.weights_sha256 and len(teacher.weights_sha256) == 64
    with torch.no_grad():
        pairs = zip(
            teacher.features(image(teacher), [1, 2]),
            again.features(image(teacher), [1, 2]),
            strict=True,
        )
        assert all(torch.equal(a, b) for a, b in pairs)


def test_other_weights_have_another_sha256(teacher: Teacher, tmp_path: Path) -> None:
    other = changed_weights(teacher, tmp_path)
    assert other.weights_sha256 != teacher.weights_sha256


def test_the_sha256_sees_names_types_shapes_values_and_settings() -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1)}
    about = {"variant": "x"}
    seen = {
        state_sha256(state, about),
        state_sha256(state, {"variant": "y"}),
        state_sha256({"c": state["a"], "b": state["b"]}, about),
        state_sha256({"a": state["a"].reshape(3, 2), "b": state["b"]}, about),
        state_sha256({"a": state["a"].view(torch.int32), "b": state["b"]}, about),
        state_sha256({"a": state["a"] + 1e-6, "b": state["b"]}, about),
        state_sha256({"a": state["a"]}, about),
    }
    assert len(seen) == 7
    assert state_sha256(dict(reversed(state.items())), about) == state_sha256(state, about)
    turned = {"a": state["a"].T.contiguous().T, "b": state["b"]}
    assert state_sha256(turned, about) == state_sha256(state, about), "memory layout is no value"


def test_unknown_variants_are_refused(name: str, folder: Path) -> None:
    with pytest.raises(InputError, match=rf"teacher {name} .*variant 'vit_x'"):
        registry.load(PACKAGE, name, "teacher").build("vit_x", "random")


def test_weights_that_are_not_there_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.*(get the weights|package|give one)"):
        registry.load(PACKAGE, name, "teacher").build(None, tmp_path / "absent.pth")
