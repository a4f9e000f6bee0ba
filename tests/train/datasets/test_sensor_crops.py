"""Crops of sensor sets: the same for the same number, turned alike, of training pixels alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekd.contracts.blocks import TRAIN
from edgekd.contracts.distill import SensorJitterSpec
from edgekd.contracts.labelled import IGNORE
from edgekd.contracts.sensor_set import SensorSet, open_sensor_set
from edgekd.train.datasets.sensor_crops import Answers, SensorCrop, SensorCrops
from tests.helpers.sensors import BLOCKS, LIDAR, materials, sensor_recipe, write_set

STILL = SensorJitterSpec(illumination=0, spectral_gain=0, spectral_warp=0, spectral_noise=0)
NAMES = ["visual", "spectral", "lidar"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> SensorSet:
    folder = tmp_path_factory.mktemp("set")
    recipe = sensor_recipe(data={"blocks": BLOCKS})
    return open_sensor_set(recipe, write_set(folder))


def crops(data: SensorSet, **changes: Any) -> SensorCrops:
    values = {"names": NAMES, "crop_px": 12, "jitter": STILL, "length": 40, "seed": 5,
              "labelled": 0.5, "answers": None}  # fmt: skip
    return SensorCrops(data, **{**values, **changes})


def same(first: SensorCrop, second: SensorCrop) -> bool:
    tensors = [(first.sensors[name], second.sensors[name]) for name in first.sensors] + [
        (first.target, second.target),
        (first.counted, second.counted),
    ]
    return all(torch.equal(a, b) for a, b in tensors)


def test_a_crop_is_a_function_of_seed_and_number(found: SensorSet) -> None:
    jitter = SensorJitterSpec(elevation_noise_m=0.1, elevation_dropout=0.2, colour=0.2)
    first, again = crops(found, jitter=jitter), crops(found, jitter=jitter, length=99)
    assert all(same(first[n], again[n]) for n in range(40))
    other = crops(found, jitter=jitter, seed=6)
    assert not any(same(first[n], other[n]) for n in range(10))
    with pytest.raises(IndexError):
        first[40]


def test_all_sensors_and_labels_are_cut_and_turned_alike(found: SensorSet) -> None:
    """A pixel's spectrum, height and label must be those of one place of the view."""
    view = found.training_view("one")
    height, width = view.valid.shape
    index = np.arange(height * width, dtype=np.float32).reshape(1, height, width)
    answers = {
        "one": Answers(index, np.stack([index[0] // width, index[0] % width], 2).astype(np.float16))
    }
    turned = set()
    for crop in (data := crops(found, answers=answers))[0], *(data[n] for n in range(1, 30)):
        places = crop.scores[0].numpy().astype(int)
        ys, xs = places // width, places % width
        for name in NAMES:
            assert np.array_equal(crop.sensors[name].numpy(), view.sensors[name][:, ys, xs])
        counted = crop.counted.numpy()
        assert (view.valid[ys, xs] | ~counted).all()
        expected = np.where(counted, view.target[ys, xs], IGNORE)
        assert np.array_equal(crop.target.numpy(), expected)
        assert crop.features.dtype == torch.float16
        assert np.array_equal(crop.features.numpy(), np.stack([ys, xs], 2))
        steps = (ys[1, 0] - ys[0, 0], xs[1, 0] - xs[0, 0], ys[0, 1] - ys[0, 0])
        turned.add((*map(int, steps), int(xs[0, 1] - xs[0, 0])))
    assert len(turned) >= 6, "of eight ways to lie"


def test_mirrored_pixels_of_the_border_do_not_count(found: SensorSet) -> None:
    """A place counts once in a crop: its mirror image is context."""
    view = found.training_view("one")
    width = view.valid.shape[1]
    index = np.arange(view.valid.size, dtype=np.float32).reshape(1, *view.valid.shape)
    data = crops(found, answers={"one": Answers(index, None)}, crop_px=24)
    mirrored = 0
    for number in range(40):
        crop = data[number]
        places = crop.scores[0].numpy().astype(int)
        counted = places[crop.counted.numpy()]
        assert len(set(counted.tolist())) == len(counted)
        mirrored += len(set(places.ravel().tolist())) < places.size
        assert places.max() < view.valid.size and width
    assert mirrored > 5


def test_labelled_crops_hold_every_class_alike(tmp_path: Path) -> None:
    arrays = materials()
    rare = arrays["labels"].copy()
    rare[rare == 1] = 255
    rare[:2, :2] = 1  # four pixels of the first class
    path = write_set(tmp_path, {"one": {**arrays, "labels": rare, "split": "train"}})
    data = open_sensor_set(sensor_recipe(), path)
    items = crops(data, labelled=1.0, length=150, crop_px=8)
    held = sum(bool((items[n].target == 0).any()) for n in range(150))
    assert 35 <= held <= 100, "a third of the crops, though 4 of 2,880 pixels are of the class"
    assert all(bool((items[n].target != IGNORE).any()) for n in range(150))
    anywhere = crops(data, labelled=0.0, length=150, crop_px=8)
    assert sum(bool((anywhere[n].target == 0).any()) for n in range(150)) < 12


def test_no_pixel_of_another_part_is_in_a_crop(tmp_path: Path) -> None:
    """Test blocks and the buffer hold absurd values; no crop may show one, counted or context."""
    recipe = sensor_recipe(data={"blocks": BLOCKS})
    plain = open_sensor_set(recipe, write_set(tmp_path / "a"))
    hidden = plain.load("one").parts != TRAIN
    arrays = materials()
    arrays["spectral"][hidden], arrays["lidar"][hidden] = 77.0, -5000.0
    spoiled = open_sensor_set(recipe, write_set(tmp_path / "b", {"one": arrays}))
    assert float(spoiled.load("one").sensors["spectral"].max()) == 77.0
    jitter = SensorJitterSpec(elevation_noise_m=0.1, elevation_dropout=0.1, colour=0.2)
    ours, theirs = (
        crops(plain, jitter=jitter, crop_px=20),
        crops(spoiled, jitter=jitter, crop_px=20),
    )
    assert all(same(ours[n], theirs[n]) for n in range(40))
    assert max(float(theirs[n].sensors["spectral"].abs().max()) for n in range(40)) < 5


def test_jitter_changes_what_it_says(found: SensorSet) -> None:
    still = crops(found)[3]
    gain = crops(found, jitter=STILL.model_copy(update={"spectral_gain": 0.3}))[3]
    ratio = gain.sensors["spectral"] / still.sensors["spectral"]
    assert float(ratio.std()) < 1e-5 and abs(float(ratio.mean()) - 1) > 0.01
    assert torch.equal(gain.sensors["visual"], still.sensors["visual"])
    warp = crops(found, jitter=STILL.model_copy(update={"spectral_warp": 0.1}))[3]
    curve = (warp.sensors["spectral"] / still.sensors["spectral"]).reshape(24, -1)
    assert float(curve.std(1).max()) < 1e-5 < float(curve.mean(1).std())
    steps = curve.mean(1).diff().abs().max()
    assert float(steps) < 0.15, "smooth over the wavelengths"
    light = crops(found, jitter=STILL.model_copy(update={"illumination": 0.5}))[3]
    assert torch.equal(light.sensors["spectral"], still.sensors["spectral"])
    assert 0 <= float(light.sensors["visual"].min()) <= float(light.sensors["visual"].max()) <= 255
    assert not torch.equal(light.sensors["visual"], still.sensors["visual"])
    lost = crops(found, jitter=STILL.model_copy(update={"elevation_dropout": 0.5}))[3]
    changed = lost.sensors["lidar"] != still.sensors["lidar"]
    assert 0.2 < float(changed.float().mean()) < 0.7
    assert lost.sensors["lidar"][changed].unique().numel() == 1


def jittered(data: SensorSet, name: str, count: int, **jitter: float) -> tuple[np.ndarray, ...]:
    """The same crops ``(count, C, crop, crop)`` of a sensor, as they are and changed."""
    sets = (crops(data, length=count), crops(data, length=count,
            jitter=STILL.model_copy(update=jitter)))  # fmt: skip
    still, changed = (
        np.stack([item[n].sensors[name].double().numpy() for n in range(count)]) for item in sets
    )
    return still, changed


@pytest.mark.parametrize("key", ["spectral_gain", "spectral_warp"])
def test_gain_and_warp_of_spectra_have_the_deviation_that_they_are_given(
    found: SensorSet, key: str
) -> None:
    """A gain is one factor per crop; a warp's 8 knots have the deviation, what lies between less.

    Of one value of a piecewise linear curve the variance is ``(1 - t)^2 + t^2`` of a knot's,
    2 / 3 on average along it.
    """
    still, changed = jittered(found, "spectral", 500, **{key: 0.1})
    factor = (changed / still).mean(axis=(2, 3)) - 1  # (crops, bands)
    assert abs(float(factor.mean())) < 0.015
    if key == "spectral_gain":
        assert np.abs(factor - factor[:, :1]).max() < 1e-4, "one factor for all bands"
        assert 0.093 < float(factor[:, 0].std()) < 0.107
    else:
        assert 0.093 < float(factor[:, 0].std()) < 0.107, "the first knot"
        assert 0.093 < float(factor[:, -1].std()) < 0.107, "the last one"
        at = np.linspace(0, 7, factor.shape[1]) % 1
        share = ((1 - at) ** 2 + at**2).mean() ** 0.5
        assert abs(float((factor**2).mean() ** 0.5) / (0.1 * share) - 1) < 0.05
        assert np.corrcoef(factor[:, 0], factor[:, -1])[0, 1] < 0.2, "more than a gain"


def test_noise_of_spectra_is_a_part_of_each_bands_deviation(found: SensorSet) -> None:
    still, changed = jittered(found, "spectral", 60, spectral_noise=0.4)
    noise = np.moveaxis(changed - still, 1, 0).reshape(24, -1)  # 8,640 values of each band
    view = found.training_view("one")
    deviation = view.sensors["spectral"][:, view.valid].astype(np.float64).std(1)
    assert deviation.max() > 1.5 * deviation.min(), "else one size would do for all bands"
    np.testing.assert_allclose(noise.std(1), 0.4 * deviation, rtol=0.05)
    np.testing.assert_allclose(noise.mean(1), 0, atol=0.05 * deviation.max())
    assert np.abs(np.corrcoef(noise) - np.eye(24)).max() < 0.06, "each band has its own"
    assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.02, "each pixel"


def test_noise_of_heights_is_in_metres(found: SensorSet) -> None:
    still, changed = jittered(found, "lidar", 60, elevation_noise_m=0.3)
    noise = (changed - still).ravel()
    assert noise.std() == pytest.approx(0.3, rel=0.04)
    assert abs(noise.mean()) < 0.015 and abs(np.corrcoef(noise[1:], noise[:-1])[0, 1]) < 0.05


@pytest.mark.parametrize("key", ["colour", "illumination"])
def test_light_is_a_factor_and_an_offset(found: SensorSet, key: str) -> None:
    """Both uniform up to the size, the offset in deviations: of each channel its own, or of all."""
    size, count = 0.3, 150
    still, changed = jittered(found, "visual", count, **{key: size})
    view = found.training_view("one")
    deviation = view.sensors["visual"][:, view.valid].astype(np.float64).std(1)
    drawn = np.full((2, 3, count), np.nan)
    for n, channel in np.ndindex(count, 3):
        x, y = still[n, channel].ravel(), changed[n, channel].ravel()
        kept = (y > 0) & (y < 255)
        if np.ptp(x[kept]) < 10:
            continue  # all is cut off
        factor, offset = np.polyfit(x[kept], y[kept], 1)
        assert np.abs(factor * x[kept] + offset - y[kept]).max() < 1e-3
        drawn[:, channel, n] = factor - 1, offset / deviation[channel]
    drawn = drawn[:, :, ~np.isnan(drawn).any((0, 1))]
    assert drawn.shape[2] > 0.8 * count and np.abs(drawn).max() < size + 1e-3
    # uniform from -size to size has a deviation of size / sqrt(3)
    np.testing.assert_allclose(drawn.std(2), size / 3**0.5, rtol=0.15)
    table = np.corrcoef(drawn.reshape(6, -1))
    alike = np.kron(np.eye(2), np.ones((3, 3))) if key == "illumination" else np.eye(6)
    np.testing.assert_allclose(table, alike, atol=0.3)


def test_absent_sensors_are_told(tmp_path: Path) -> None:
    arrays = materials()
    without = {key: value for key, value in materials(seed=1).items() if key != "lidar"}
    path = write_set(
        tmp_path, {"one": {**arrays, "split": "train"}, "two": {**without, "split": "train"}}
    )
    recipe = sensor_recipe()
    sensors = dict(recipe.sensors)
    sensors["lidar"] = sensors["lidar"].model_validate({**LIDAR, "missing": "allowed"})
    data = open_sensor_set(recipe.model_copy(update={"sensors": sensors}), path)
    present = [crops(data)[n].present.tolist() for n in range(40)]
    assert {tuple(item) for item in present} == {(True, True, True), (True, True, False)}
    dropping = crops(data, jitter=STILL.model_copy(update={"sensor_dropout": 1.0}))
    assert {tuple(dropping[n].present.tolist()) for n in range(20)} == {(True, True, False)}
