"""Sensor sets: what training may see, what is learned from it, and every wrong input in a line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edgekd.contracts.blocks import BUFFER, TEST, TRAIN, VAL, grown
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.sensor_set import SensorScene, SensorSet, open_sensor_set
from edgekd.errors import DatasetError, EdgeKDError, InputError, RecipeError
from tests.helpers.sensors import (
    BANDS,
    BLOCKS,
    CLASSES,
    LIDAR,
    NM,
    SPECTRAL,
    VISUAL,
    edit_set,
    materials,
    sensor_recipe,
    sensor_values,
    write_set,
)

IGNORE = 255
TWO = {"one": {**materials(), "split": "train"}, "two": {**materials(seed=1), "split": "test"}}
BLOCKED = {"blocks": BLOCKS}


def scenes(**more: Any) -> dict[str, Any]:
    return copy.deepcopy({**TWO, **more})


def opened(path: Path, sensors: Any = None, data: Any = None, **options: Any) -> SensorSet:
    return open_sensor_set(sensor_recipe(sensors, data), path, **options)


def sensors(**changes: Any) -> dict[str, Any]:
    """The usual three with ``name={key: value}`` changed."""
    base = copy.deepcopy({"spectral": SPECTRAL, "lidar": LIDAR, "visual": VISUAL})
    for name, values in changes.items():
        base[name] = {**base.get(name, {}), **values}
    return base


def said(found: SensorSet, words: str) -> list[str]:
    return [line for line in found.report if words in line]


def test_a_set_of_whole_scenes(tmp_path: Path) -> None:
    found = opened(write_set(tmp_path, scenes()))
    assert found.scene_ids == ["one", "two"] and found.training_ids == ["one"]
    assert found.simulated and found.report[0] == "SIMULATED: this set was computed, not measured"
    arrays = materials()
    scene = found.load("one")
    np.testing.assert_array_equal(scene.sensors["spectral"], arrays["spectral"].transpose(2, 0, 1))
    np.testing.assert_array_equal(scene.sensors["lidar"][0], arrays["lidar"])
    order = {item["index"]: channel for channel, item in enumerate(CLASSES)}
    np.testing.assert_array_equal(scene.target, np.vectorize(order.get)(arrays["labels"]))
    assert (scene.parts == TRAIN).all() and (found.load("two").parts == TEST).all()
    assert scene.valid.all() and scene.crs is None and scene.transform is None
    assert found.channels == {"spectral": BANDS, "lidar": 1, "visual": 3}
    np.testing.assert_allclose(found.wavelengths_nm["spectral"], NM)
    assert scene.visual8.shape == (48, 60, 3) and scene.visual8.dtype == np.uint8
    np.testing.assert_array_equal(scene.sensors["visual"], scene.visual8.transpose(2, 0, 1))
    with pytest.raises(ValueError, match="read-only"):
        scene.sensors["lidar"][0, 0, 0] = 1
    with pytest.raises(DatasetError, match="has no scene 'three'"):
        found.load("three")
    with pytest.raises(DatasetError, match="scene two of .* no pixel with data in the part train"):
        found.training_view("two")
    assert opened(tmp_path).digest == found.digest, "the folder is the set as well"


def test_an_image_becomes_8_bit_by_one_rule_for_all_scenes(tmp_path: Path) -> None:
    path = write_set(tmp_path, scenes())
    found = opened(path)
    picked = materials()["spectral"][..., [8, 5, 2]]
    low, high = np.percentile(picked, [1, 99])
    assert found.ranges["visual"] == pytest.approx((low, high))
    for name, seed in (("one", 0), ("two", 1)):
        values = materials(seed=seed)["spectral"][..., [8, 5, 2]].astype(np.float64)
        expected = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)
        assert np.abs(found.load(name).visual8 - expected).max() <= 1  # of a rounded percentile
    assert len(said(found, f"visual: {low:.6g} becomes 0 and {high:.6g} becomes 255")) == 1
    fixed = opened(path, sensors(visual={"range": [0, 1], "gamma": 2.0}))
    expected = np.rint(255 * np.sqrt(np.clip(picked.astype(np.float64), 0, 1)))
    np.testing.assert_array_equal(fixed.load("one").visual8, expected)
    assert fixed.ranges["visual"] == (0, 1) and not said(fixed, "becomes 255")


def test_statistics_are_of_training_pixels(tmp_path: Path) -> None:
    found = opened(write_set(tmp_path), data=BLOCKED)
    train = found.load("one").parts == TRAIN
    values = materials()["spectral"][train].astype(np.float64)
    made = found.statistics()["spectral"]
    np.testing.assert_allclose(made.mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(made.std, values.std(0), rtol=1e-6)
    assert set(found.statistics()) == {"spectral", "lidar", "visual"}


def spoil(arrays: dict[str, np.ndarray], mask: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Other values, NaN, infinity and extremes of every sensor and label where ``mask`` is set."""
    random = np.random.default_rng(seed)
    result = {}
    for name, values in arrays.items():
        if name == "split":
            continue
        new = values.copy()
        if name == "labels":
            new[mask] = random.choice([1, 4, 7, 255], int(mask.sum()))
        else:
            new[mask] = random.normal(50, 1000, new[mask].shape)
            new[mask & (random.random(mask.shape) < 0.2)] = random.choice([np.nan, np.inf, 4e3])
        result[name] = new
    return result


def seen(view: SensorScene) -> dict[str, bytes]:
    parts = {**view.sensors, "visual8": view.visual8, "valid": view.valid, "target": view.target}
    return {name: array.tobytes() for name, array in parts.items()}


RULES = sensors(spectral={"bad_bands": {"noise_max": 0.95}})


@pytest.mark.parametrize("fold", range(4))
@pytest.mark.parametrize("few", [None, 5])
def test_nothing_of_test_blocks_or_their_buffer_reaches_training(
    tmp_path: Path, fold: int, few: int | None
) -> None:
    """Leakage: all else is changed, and training, validation and what was learned are not.

    The labels of the test too: the deal must then not look at them (``stratified: false``).
    """
    data = {"blocks": {**BLOCKS, "fold": fold, "stratified": False}, "labels_per_class": few}
    arrays = materials()
    arrays["spectral"][..., 7] = np.random.default_rng(0).normal(0, 1, arrays["lidar"].shape)
    arrays["spectral"][..., 11] = 3.0  # constant: dropped
    first = opened(write_set(tmp_path / "a", {"one": arrays}), RULES, data)
    parts = first.load("one").parts
    test = grown(parts == TEST, BLOCKS["buffer_px"])
    assert test.sum() > (parts == TEST).sum() > 500
    kept = parts == TRAIN
    for part, shown in (("train", kept), ("val", kept | (parts == VAL))):
        hidden = ~shown  # of validation, its buffer towards training is hidden as well
        assert (hidden & test).sum() == test.sum()
        spoiled = spoil(arrays, hidden, seed=fold)
        other = opened(write_set(tmp_path / part, {"one": spoiled}), RULES, data)
        np.testing.assert_array_equal(other.load("one").parts, parts)
        assert seen(other.view("one", part)) == seen(first.view("one", part))  # type: ignore[arg-type]
        assert seen(other.training_view("one")) == seen(first.training_view("one"))
        assert seen(other.load("one")) != seen(first.load("one"))
        assert other.dropped == first.dropped and other.ranges == first.ranges
        assert [item.band for item in first.dropped["spectral"]] == [8, 12]
        for name, made in first.statistics().items():
            assert made.mean.tobytes() == other.statistics()[name].mean.tobytes()
            assert made.std.tobytes() == other.statistics()[name].std.tobytes()
        assert other.digest != first.digest, "the contents decide what is measured"


def test_the_leakage_test_would_see_a_leak(tmp_path: Path) -> None:
    """One training pixel more or less is noticed by every one of the things compared above."""
    data = {"blocks": {**BLOCKS, "stratified": False}}
    arrays = materials()
    first = opened(write_set(tmp_path / "a", {"one": arrays}), RULES, data)
    train = np.argwhere(first.load("one").parts == TRAIN)
    mask = np.zeros((48, 60), dtype=bool)
    mask[tuple(train[:60].T)] = True
    other = opened(write_set(tmp_path / "b", {"one": spoil(arrays, mask, 0)}), RULES, data)
    assert seen(other.training_view("one")) != seen(first.training_view("one"))
    assert other.ranges != first.ranges
    mean = [item.statistics()["lidar"].mean for item in (first, other)]
    assert mean[0] != mean[1]


def test_views_show_the_nearest_pixel_that_may_be_seen(tmp_path: Path) -> None:
    found = opened(write_set(tmp_path), data=BLOCKED)
    scene, view = found.load("one"), found.training_view("one")
    train = scene.parts == TRAIN
    rows, columns = np.nonzero(train)
    for y, x in np.argwhere(~train)[::37]:
        distance = (rows - y) ** 2 + (columns - x) ** 2
        nearest = distance == distance.min()
        pixel = view.sensors["spectral"][:, y, x]
        assert np.isin(pixel, scene.sensors["spectral"][:, rows[nearest], columns[nearest]]).all()
    np.testing.assert_array_equal(view.visual8[train], scene.visual8[train])
    np.testing.assert_array_equal(view.valid, train)
    assert (view.target[~train] == IGNORE).all() and (view.target[train] != IGNORE).all()
    val = found.view("one", "val")
    both = train | (scene.parts == VAL)
    np.testing.assert_array_equal(val.valid, both)
    np.testing.assert_array_equal(val.visual8[both], scene.visual8[both])
    np.testing.assert_array_equal(val.target != IGNORE, scene.parts == VAL)
    test = found.view("one", "test")
    np.testing.assert_array_equal(test.visual8, scene.visual8)
    np.testing.assert_array_equal(test.target != IGNORE, scene.parts == TEST)
    with pytest.raises(DatasetError, match="part 'tests' does not exist"):
        found.view("one", "tests")  # type: ignore[arg-type]


def test_pixels_without_data_count_nowhere_and_look_like_their_neighbour(tmp_path: Path) -> None:
    arrays = materials()
    arrays["spectral"][10, 20, 5] = np.nan
    arrays["lidar"][30, 40] = -9999
    path = write_set(tmp_path, {"one": {**arrays, "split": "train"}})
    edit_set(path, lambda v: v["scenes"][0]["files"]["lidar"].update(nodata=-9999))
    found = opened(path)
    scene = found.load("one")
    assert np.argwhere(~scene.valid).tolist() == [[10, 20], [30, 40]]
    assert scene.target[10, 20] == scene.target[30, 40] == IGNORE
    assert all(np.isfinite(values).all() for values in scene.sensors.values())
    near = [
        scene.sensors["lidar"][0, 30 + y, 40 + x] for y, x in ((0, 1), (0, -1), (1, 0), (-1, 0))
    ]
    assert scene.sensors["lidar"][0, 30, 40] in near
    assert said(found, "one: 0.07 % of the pixels lack data")
    assert abs(found.statistics()["lidar"].mean[0]) < 10


def test_a_band_that_holds_nothing_is_dropped_and_hides_no_pixel(tmp_path: Path) -> None:
    arrays = materials()
    arrays["spectral"][..., 20] = np.nan
    path = write_set(tmp_path, {"one": {**arrays, "split": "train"}})
    found = opened(path)
    assert found.load("one").valid.all() and found.channels["spectral"] == BANDS - 1
    assert [(item.band, item.cause) for item in found.dropped["spectral"]] == [(21, "empty")]
    assert said(found, "spectral: dropped band 21 (1009 nm): without data in all training pixels")
    assert said(found, "spectral: 23 of 24 bands left, 1 dropped")
    np.testing.assert_allclose(found.wavelengths_nm["spectral"], np.delete(NM, 20))
    np.testing.assert_array_equal(
        found.load("one").sensors["spectral"],
        np.delete(arrays["spectral"], 20, 2).transpose(2, 0, 1),
    )
    with pytest.raises(DatasetError, match=r"with data: spectral 0 %, lidar 100 %, visual 100 %\)"
                       "; band 21 of spectral has none at all, see bad_bands"):  # fmt: skip
        opened(path, sensors(spectral={"bad_bands": None}))


def test_bands_are_derived_before_bad_ones_are_left_out(tmp_path: Path) -> None:
    arrays = materials()
    arrays["spectral"][..., 0] = 1.0
    path = write_set(tmp_path, {"one": {**arrays, "split": "train"}})
    chain = {"ms": {"kind": "spectral", "channels": 3, "gsd_m": 2.0, "derive":
                    {"from": "spectral", "windows_nm": [[400, 500], [500, 600], [600, 700]]}},
             "visual": {"derive": {"from": "ms", "nm": [650, 550, 450]}}}  # fmt: skip
    found = opened(path, sensors(**chain))
    assert [item.band for item in found.dropped["spectral"]] == [1]
    blue = np.flatnonzero((NM >= 400) & (NM <= 500))[1:]  # the constant one is not in the mean
    mean = arrays["spectral"][..., blue].mean(2)
    np.testing.assert_allclose(found.load("one").sensors["ms"][0], mean, rtol=1e-5)
    np.testing.assert_allclose(found.wavelengths_nm["ms"][0], NM[blue].mean())
    low, high = found.ranges["visual"]
    expected = np.clip((mean - low) / (high - low), 0, 1) * 255
    assert np.abs(found.load("one").visual8[..., 2] - expected).max() < 0.51
    with pytest.raises(DatasetError, match=r"visual would rest on a bad band of spectral, band 1"):
        opened(path, sensors(visual={"derive": {"from": "spectral", "bands": [3, 2, 1]}}))
    # also where no rule drops it
    with pytest.raises(DatasetError, match="band 1 .*: constant, 1, in all training pixels"):
        opened(path, sensors(spectral={"bad_bands": None}, visual={"derive": {
            "from": "spectral", "bands": [3, 2, 1]}}))  # fmt: skip
    kept = opened(path, sensors(spectral={"bad_bands": {"constant": False}}))
    assert said(kept, "spectral: kept, and tells nothing: band 1")


def test_few_labels_are_drawn_over_all_scenes_and_fewer_are_part_of_more(tmp_path: Path) -> None:
    three = scenes(three={**materials(seed=2), "split": "train"},
                   four={**materials(seed=3), "split": "val"})  # fmt: skip
    three["one"]["labels"][:] = 1  # no quartz there, and four of basalt below
    three["three"]["labels"][three["three"]["labels"] == 4] = 1
    three["three"]["labels"][0, :4] = 4
    path = write_set(tmp_path, three)
    full = opened(path)
    places = {}
    for count in (5, 20):
        found = opened(path, data={"labels_per_class": count})
        assert found.label_counts()["train"] == [count, 4, count]
        assert found.label_counts()["val"] == full.label_counts()["val"]
        assert found.label_counts()["test"] == full.label_counts()["test"]
        assert said(found, f"basalt has 4 training labels, fewer than the {count} asked for; all")
        assert len(said(found, "olivine has")) == 0
        places[count] = {
            (name, *place) for name in found.training_ids
            for place in np.argwhere(found.training_view(name).target != IGNORE).tolist()
        }  # fmt: skip
        for name in found.scene_ids:
            target, truth = found.load(name).target, found.truth(name)
            assert (target[target != IGNORE] == truth[target != IGNORE]).all()
            np.testing.assert_array_equal(truth, full.load(name).target)
        assert found.statistics()["lidar"].mean == full.statistics()["lidar"].mean
    assert places[5] < places[20] and {name for name, *_ in places[20]} == {"one", "three"}
    again = opened(path, data={"labels_per_class": 5, "label_seed": 1})
    assert again.label_counts()["train"] == [5, 4, 5]
    assert (again.load("three").target != opened(path, data={"labels_per_class": 5}).load(
        "three").target).any()  # fmt: skip


def test_labels_from_abundances(tmp_path: Path) -> None:
    shares = np.zeros((48, 60, 3), dtype=np.float64)
    shares[..., 0] = 1
    shares[:10] = [0.2, 0.5, 0.3]
    shares[10:20] = [0.1, 0.1, 0.8]
    shares[40] = [0.5, 0.5, 0]  # the first of equal ones
    shares[41], shares[42, :, 1] = 0, np.nan
    arrays = materials()
    path = write_set(tmp_path, {"one": {**arrays, "labels": shares, "split": "train"}})
    edit_set(path, lambda v: v["scenes"][0]["labels"].update(abundances=True))
    rows = opened(path).load("one").target[:, 0]
    expected = np.zeros(48, dtype=int)
    expected[:10], expected[10:20], expected[41:43] = 1, 2, IGNORE
    np.testing.assert_array_equal(rows, expected)
    edit_set(path, lambda v: v["scenes"][0]["labels"].update(purity_min=0.8))
    expected[:10] = expected[40] = IGNORE
    pure = opened(path, every_class=False)
    np.testing.assert_array_equal(pure.load("one").target[:, 0], expected)
    with pytest.raises(DatasetError, match="not a single training label of basalt, so it"):
        opened(path)
    edit_set(path, lambda v: v["classes"].pop())
    values = sensor_values()
    values["io"]["classes"].pop()
    with pytest.raises(DatasetError, match="abundances of 3 classes, and the set names 2: olivine"):
        open_sensor_set(Recipe.model_validate(values), path, every_class=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found[0].update(name="kelp"),
        lambda found: found[2].update(index=9),
        lambda found: found.pop(),
        # the same names in another order: channel 0 would be called quartz and be olivine
        lambda found: [
            item.update(name=name)
            for item, name in zip(found, [c["name"] for c in reversed(found)], strict=True)
        ],
    ],
)  # fmt: skip
def test_classes_of_another_recipe_are_refused(tmp_path: Path, change: Any) -> None:
    path = write_set(tmp_path, scenes())
    values = sensor_values(name="rocks")
    change(values["io"]["classes"])
    with pytest.raises(DatasetError, match=r"classes 1 olivine.*, recipe 'rocks' has \d \w+"):
        open_sensor_set(Recipe.model_validate(values), path, every_class=False)


def test_a_scene_that_a_teacher_cannot_see_is_named(tmp_path: Path) -> None:
    less = scenes(three={**materials(seed=2), "split": "train"})
    del less["three"]["lidar"]
    found = opened(write_set(tmp_path, less), sensors(lidar={"missing": "allowed"}))
    found.require_one_of(["lidar", "visual"], ["one", "three"], "it")
    with pytest.raises(DatasetError, match=r"scene three .* none of the sensors that it sees \(li"):
        found.require_one_of(["lidar"], ["one", "three"], "it")


def test_a_sensor_may_be_missing_where_the_recipe_says_so(tmp_path: Path) -> None:
    less = scenes(three={**materials(seed=2), "split": "train"})
    del less["three"]["lidar"]
    path = write_set(tmp_path, less)
    with pytest.raises(DatasetError, match=r"scene three has no file of the sensor lidar \(it has "
                       r"spectral\); .*sensors.lidar.missing: allowed"):  # fmt: skip
        opened(path)
    found = opened(path, sensors(lidar={"missing": "allowed"}))
    assert not said(found, "no scene has a file of it")
    radar = {"kind": "elevation", "channels": 1, "gsd_m": 2.0, "missing": "allowed"}
    never = opened(path, sensors(lidar={"missing": "allowed"}, radar=radar))
    assert said(never, "radar: no scene has a file of it (missing: allowed), so nothing is learned")
    assert set(found.training_view("three").sensors) == {"spectral", "visual"}
    assert found.statistics()["lidar"].mean == opened(
        write_set(tmp_path / "b", scenes())).statistics()["lidar"].mean  # fmt: skip


def test_what_the_recipe_does_not_read_is_told(tmp_path: Path) -> None:
    path = write_set(tmp_path, scenes())
    found = opened(path, {"spectral": SPECTRAL, "visual": VISUAL})
    assert said(found, "one: its file of lidar is not read: the recipe does not name it")
    assert "lidar" not in found.load("one").sensors


def test_splits_come_from_one_place(tmp_path: Path) -> None:
    bare = {name: {key: v for key, v in item.items() if key != "split"}
            for name, item in scenes(three=materials(seed=2)).items()}  # fmt: skip
    path = write_set(tmp_path / "a", bare)
    rule = {"split": {"pattern": "(.*)", "train": ["one"], "val": [], "test": ["two"]}}
    found = opened(path, data=rule)
    assert (found.load("two").parts == TEST).all() and (found.load("three").parts == BUFFER).all()
    assert said(found, "three: in no split, so it is not used")
    assert found.training_ids == ["one"]
    blocked = opened(path, data=BLOCKED)
    parts = [blocked.load(name).parts for name in blocked.scene_ids]
    assert all((part == value).any() for part in parts for value in (TRAIN, VAL, TEST, BUFFER))
    assert (parts[0] != parts[1]).any(), "scenes share a seed and not a deal"
    assert len(said(blocked, "blocks of 12 px, fold 0 of 4, seed 0, chosen so that")) == 3
    whole = write_set(tmp_path / "b", scenes())
    with pytest.raises(
        DatasetError, match="scene one into split train, and the recipe cuts scenes"
    ):
        opened(whole, data=BLOCKED)
    cut = opened(whole, data=BLOCKED, resplit=True)
    assert [(cut.load(n).parts == blocked.load(n).parts).all() for n in cut.scene_ids] == [True] * 2
    other = {"split": {"pattern": "(.*)", "train": ["two"], "val": [], "test": ["one"]}}
    with pytest.raises(DatasetError, match="into split train, the recipe's data.split into test"):
        opened(whole, data=other)


def stretched(arrays: dict[str, Any], name: str) -> None:
    arrays[name] = np.repeat(arrays[name], 2, axis=1)


def without(arrays: dict[str, Any], index: int) -> None:
    arrays["labels"][arrays["labels"] == index] = 255


@pytest.mark.parametrize(
    ("change", "changed", "words"),
    [
        (lambda a: a.update(spectral=a["spectral"][..., 1:]), {},
         r"one_spectral.npy has 23 bands, and sensors.spectral.channels of the recipe is 24; corr"),
        (lambda a: stretched(a, "lidar"), {}, r"scene one: .*one_lidar.npy has 120x48 px and .*"
         r"one_spectral.npy 60x48 px; all of a scene lies on one grid"),
        (lambda a: stretched(a, "labels"), {}, "one_labels.npy has 120x48 px"),
        (lambda a: without(a, 7), {}, "not a single training label of quartz, so it cannot be lea"),
        (lambda a: a["labels"].__setitem__((3, 4), 9), {},
         r"one_labels.npy holds class index 9 \(first at row 3, column 4\), which is not in the "
         r"classes \(1 olivine, 4 basalt, 7 quartz; ignored: 255\)"),
        (lambda a: a.update(labels=a["labels"] + 0.5), {}, "holds class index 1.5, 4.5, 7.5"),
        (lambda a: a["lidar"].fill(np.nan), {}, "scene one of .* has no pixel with data in all"),
        (lambda a: a["spectral"].fill(0.5), {}, "all 24 bands of spectral are bad, e.g. band 1"),
        (lambda a: a["spectral"][:, 1:].fill(0.5), {"visual": {"range": None}},
         r"hold 0.5 nearly everywhere, so they give no range; give sensors.visual.range: \[low"),
        (lambda a: a.update(lidar=np.dstack([a["lidar"]] * 2)), {},
         "one_lidar.npy has 2 bands, and sensors.lidar.channels of the recipe is 1"),
        (lambda a: a.pop("spectral"), {}, "no file of the sensor spectral"),
    ],
)  # fmt: skip
def test_wrong_data_is_one_clear_line(
    tmp_path: Path, change: Callable[[Any], None], changed: dict[str, Any], words: str
) -> None:
    given = scenes()
    del given["two"]
    change(given["one"])
    with pytest.raises(DatasetError, match=words) as caught:
        opened(write_set(tmp_path, given), sensors(**changed))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda v: v["scenes"].append(v["scenes"][0]), RecipeError, "scene id one stands twice"),
        (lambda v: v["scenes"][0].update(id="a.b"), RecipeError, "should match pattern"),
        (lambda v: v["scenes"][0]["files"]["lidar"].update(varable="x"), RecipeError,
         r"line \d+: unknown key 'varable' in scenes.0.files.lidar; did you mean 'variable'"),
        (lambda v: v["scenes"][0]["labels"].update(purity_min=0.5), RecipeError,
         "purity_min is of abundances"),
        (lambda v: v.update(simulated="perhaps"), RecipeError, "simulated is 'perhaps'"),
        (lambda v: v.pop("simulated"), RecipeError, "lacks the key 'simulated'"),
        (lambda v: v.update(ignore_index=4), RecipeError, "ignore_index 4 is also a class"),
        (lambda v: v["scenes"][0]["files"]["lidar"].update(file="gone.npy"), InputError,
         "names files that do not exist: .*gone.npy"),
        (lambda v: v["scenes"][0]["files"]["lidar"].update(file="${EDGEKD_NO_SUCH}/x.npy"),
         InputError, "variable EDGEKD_NO_SUCH, which is not set"),
        (lambda v: v["scenes"][0]["files"].update(lydar=v["scenes"][0]["files"].pop("lidar")),
         DatasetError, "no file of the sensor lidar; did you mean 'lydar'"),
    ],
)  # fmt: skip
def test_a_wrong_description_is_one_clear_line(
    tmp_path: Path, change: Callable[[Any], None], error: type[EdgeKDError], words: str
) -> None:
    path = write_set(tmp_path, scenes())
    edit_set(path, change)
    with pytest.raises(error, match=words):
        opened(path)


def test_what_is_no_sensor_set(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("schema: 1\n")
    for place, words in (("gone", "does not exist"), (".", "is no sensor set"),
                         ("other.yaml", "is no sensor set; expected a folder")):  # fmt: skip
        with pytest.raises(DatasetError, match=words):
            opened(tmp_path / place)


def pictured(arrays: dict[str, Any], shift: tuple[int, int]) -> dict[str, Any]:
    """A camera's own file beside the spectral one, its content moved by (rows, columns) px."""
    random = np.random.default_rng(0)
    picture = arrays["spectral"][..., [8, 5, 2]] * 200 + random.normal(0, 1, (48, 60, 3))
    return {**arrays, "visual": np.roll(picture, shift, (0, 1)).astype(np.float32)}


def textured(seed: int = 0) -> dict[str, Any]:
    arrays = materials(seed=seed)
    random = np.random.default_rng(seed)
    light = cv2.GaussianBlur(random.random((48, 60)), (0, 0), 1.0).astype(np.float32)
    return {**arrays, "spectral": arrays["spectral"] * (0.5 + light)[..., None]}


OWN = {"kind": "image", "channels": 3, "gsd_m": 2.0}


def test_a_camera_with_its_own_file_is_compared_with_the_spectral_sensor(tmp_path: Path) -> None:
    own = {"spectral": SPECTRAL, "visual": OWN}
    path = write_set(tmp_path / "a", {"one": {**pictured(textured(), (0, 0)), "split": "train"}})
    found = opened(path, own)
    (line,) = said(found, "one: visual lies 0.0")
    assert "beside spectral" in line and "by phase correlation" in line
    for number, (shift, words) in enumerate(
        [((0, 3), r"visual lies 3.0 px beside spectral \(\+3.0 columns, [+-]0.0 rows"),
         ((-4, -3), r"lies 5.0 px beside spectral \(-3.0 columns, -3.9 rows; at most 1 px\)")]
    ):  # fmt: skip
        moved = {"one": {**pictured(textured(), shift), "split": "train"}}
        with pytest.raises(DatasetError, match=f"scene one: .*{words}"):
            opened(write_set(tmp_path / str(number), moved), own)
    other = {**pictured(textured(), (0, 0)), "split": "train"}
    other["visual"] = np.random.default_rng(9).random((48, 60, 3)).astype(np.float32)
    untold = opened(write_set(tmp_path / "b", {"one": other}), own)
    assert said(untold, "one: whether visual and spectral show the same ground could not be told")
    tiny = {name: value[:20, :20] for name, value in pictured(textured(), (0, 0)).items()}
    few = opened(write_set(tmp_path / "c", {"one": {**tiny, "split": "train"}}), own,
                 every_class=False)  # fmt: skip
    assert said(few, "20x20 px are too few for a correlation")


def test_pickles(tmp_path: Path) -> None:
    import pickle

    found = opened(write_set(tmp_path), data=BLOCKED)
    again = pickle.loads(pickle.dumps(found))
    assert seen(again.training_view("one")) == seen(found.training_view("one"))


def test_the_digest_is_of_what_decides_and_of_nothing_else(tmp_path: Path) -> None:
    path = write_set(tmp_path, scenes())
    first = opened(path).digest
    edit_set(path, lambda v: v.update(title="other words"))
    assert opened(path).digest == first
    assert (
        opened(path, sensors(lidar={"power": {"watts": 30, "source": "a sheet"}})).digest == first
    )
    others = {
        opened(path, sensors(visual={"gamma": 2.2})).digest,
        opened(path, data={"labels_per_class": 5}).digest,
        opened(path, data={"labels_per_class": 5, "label_seed": 1}).digest,
    }
    np.save(tmp_path / "two_lidar.npy", np.zeros((48, 60), dtype=np.float32))
    others.add(opened(path).digest)
    assert len(others | {first}) == 5
