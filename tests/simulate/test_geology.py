"""Whole scenes: the truth adds up, light is bounded, spectra are those of their minerals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekd.simulate.geology import GSD_M, Scene
from edgekd.simulate.library import load_library
from edgekd.simulate.minerals import CLASS_NAMES, CLASSES, MINERALS, Cabinet, diameters_um, recipes
from edgekd.simulate.structure import SHARES, UNITS
from edgekd.simulate.terrain import Seeds
from tests.helpers.spectra import make_library

SIDE = 96
RARE = ("wollastonite", "alunite", "goethite")


@pytest.fixture(scope="module")
def cabinet(tmp_path_factory: pytest.TempPathFactory) -> Cabinet:
    path = make_library(tmp_path_factory.mktemp("library") / "lib.mat")
    return Cabinet(load_library(path), np.arange(224))


class Whole:
    """All strips of a scene as one."""

    def __init__(self, cabinet: Cabinet, seed: int, number: int, side: int = SIDE) -> None:
        self.scene = Scene(cabinet, Seeds(seed, number), side)
        strips = list(self.scene.strips())
        for name in ("abundances", "labels", "reflectance", "apparent", "lit"):
            setattr(self, name, np.concatenate([getattr(strip, name) for strip in strips]))
        self.rgb = np.concatenate([self.scene.picture(strip) for strip in strips])
        self.lidar = np.concatenate([self.scene.ranges(strip) for strip in strips])
        self.spectra = np.concatenate([self.scene.spectra(strip) for strip in strips])

    abundances: np.ndarray
    labels: np.ndarray
    reflectance: np.ndarray
    apparent: np.ndarray
    lit: np.ndarray


@pytest.fixture(scope="module")
def scenes(cabinet: Cabinet) -> list[Whole]:
    return [Whole(cabinet, 5, number) for number in range(3)]


def test_the_twelve_classes() -> None:
    assert len(CLASSES) == 12 == len({item.color for item in CLASSES})
    assert {"olivine", "wollastonite", "serpentine", "basalt", *RARE} <= set(CLASS_NAMES)
    assert np.allclose(recipes().sum(1), 1) and recipes().shape == (12, len(MINERALS))
    assert (diameters_um() > 0).all()
    basalt = CLASSES[CLASS_NAMES.index("basalt")]
    assert {"augite", "labradorite", "olivine"} <= set(basalt.minerals) and basalt.dark > 0.05


def test_the_truth_adds_up(scenes: list[Whole]) -> None:
    for whole in scenes:
        assert whole.abundances.min() >= 0
        assert np.allclose(whole.abundances.sum(-1), 1, atol=1e-5)
        assert np.array_equal(whole.labels, whole.abundances.argmax(-1))


def test_shares_of_the_classes(scenes: list[Whole]) -> None:
    counts = np.mean([np.bincount(item.labels.ravel(), minlength=12) for item in scenes], axis=0)
    share = dict(zip(CLASS_NAMES, counts / SIDE**2, strict=True))
    assert all(value > 0.004 for value in share.values()), share
    assert all(share[name] < 0.02 for name in RARE), share
    assert max(share.values()) < 0.4
    for whole in scenes:
        assert len(np.unique(whole.labels)) >= 11
        given = whole.scene.structure.shares
        assert all(0.55 * SHARES[name] < given[name] < 1.65 * SHARES[name] for name in SHARES)


def test_light_is_bounded(scenes: list[Whole]) -> None:
    for whole in scenes:
        assert whole.reflectance.min() > 0 and whole.reflectance.max() < 1
        assert whole.apparent.min() > 0  # the sky lights shadows, too
        # a white slope that faces the sun: all of the beam, and the sky
        sun = whole.scene.sun
        assert whole.apparent.max() < 1 / sun.mu0 + 0.6
        assert np.isfinite(whole.spectra).all() and whole.spectra.min() >= 0


def test_shadows_are_dark_and_blue(cabinet: Cabinet) -> None:
    numbers = iter(range(40))
    while True:  # of a scene with a low sun
        scene = Scene(cabinet, Seeds(5, next(numbers)), SIDE)
        if scene.sun.elevation_deg < 33:
            break
    strip = next(iter(scene.strips()))
    shade, sun = strip.lit < 0.05, strip.lit > 0.95
    assert shade.sum() > 20 and sun.sum() > 500
    relative = strip.apparent / strip.reflectance
    assert relative[shade].mean() < 0.4 * relative[sun].mean()
    blue, infrared = 5, 200
    assert relative[shade][:, blue].mean() > 3 * relative[shade][:, infrared].mean()
    assert abs(relative[sun][:, blue].mean() - relative[sun][:, infrared].mean()) < 0.1


def test_rocks_mix_in_a_pixel_where_they_meet(cabinet: Cabinet) -> None:
    scene = Scene(cabinet, Seeds(5, 0), SIDE)
    main, other, share = scene._rocks(0, SIDE)
    assert set(np.unique(main)) <= set(range(len(UNITS)))
    mixed = share < 1
    assert 0.03 < mixed.mean() < 0.4
    assert (share[mixed] >= 0.5).all() and (main != other)[mixed].all()
    # a pixel with one rock has neighbours of the same
    edge = np.zeros_like(mixed)
    for axis in (0, 1):
        for step in (-1, 1):
            edge |= np.roll(main, step, axis) != main
    assert edge[mixed].mean() > 3 * edge[~mixed].mean()


def test_the_ground_follows_the_rocks(scenes: list[Whole]) -> None:
    """What LiDAR can tell: valley floors are low and level, lava stands above schist."""
    standing = []
    for whole in scenes:
        heights = whole.scene.heights_m
        assert heights.shape == (SIDE, SIDE) and heights.dtype == np.float32
        slope = np.hypot(*np.gradient(heights, GSD_M))
        unit = whole.scene._rocks(0, SIDE)[0]
        fill = unit == UNITS.index("alluvium")
        assert heights[fill].mean() < np.median(heights) - 3
        assert np.median(slope[fill]) < 0.6 * np.median(slope[~fill])
        lava, schist = (unit == UNITS.index(name) for name in ("basalt", "schist"))
        standing.append(heights[lava].mean() - heights[schist].mean())
        has = whole.lidar != whole.scene.nodata_m
        assert 0.97 < has.mean() < 1
        assert np.abs(whole.lidar - heights)[has].mean() < 0.5
    assert np.mean(standing) > 0


def test_the_same_seed_gives_the_same_scene(cabinet: Cabinet, scenes: list[Whole]) -> None:
    again, other = Whole(cabinet, 5, 1), Whole(cabinet, 6, 1)
    for name in ("labels", "rgb", "lidar", "spectra"):
        assert np.array_equal(getattr(again, name), getattr(scenes[1], name)), name
        assert not np.array_equal(getattr(other, name), getattr(scenes[1], name)), name
    facts = [item.scene.facts for item in scenes]
    assert len({item["sun_azimuth_deg"] for item in facts}) == 3


def test_without_the_infrared_the_scene_is_the_same(tmp_path: Path, scenes: list[Whole]) -> None:
    library = load_library(make_library(tmp_path / "lib.mat"))
    visible = int(np.searchsorted(library.wavelengths_nm, 720))
    small = Whole(Cabinet(library, np.arange(visible)), 5, 0)
    assert np.array_equal(small.labels, scenes[0].labels)
    assert np.array_equal(small.lidar, scenes[0].lidar)
    assert np.abs(small.rgb.astype(int) - scenes[0].rgb).max() <= 1


def depth(spectra: np.ndarray, nm: np.ndarray, left: float, centre: float, right: float) -> float:
    """Depth of an absorption below the line between its shoulders, of the mean spectrum."""
    at = [np.abs(nm - place) < 15 for place in (left, centre, right)]
    mean = spectra.mean(0)
    low, middle, high = (mean[near].mean() for near in at)
    line = low + (high - low) * (centre - left) / (right - left)
    return float(1 - middle / line)


#: shoulder, absorption, shoulder, nm, and the least depth; of a class and of one that lacks it
ABSORPTIONS = [
    ("kaolinite", 2120, 2205, 2250, 0.15, "calcite"),
    ("alunite", 2080, 2170, 2280, 0.15, "olivine"),
    ("calcite", 2240, 2338, 2380, 0.08, "kaolinite"),
    ("dolomite", 2240, 2318, 2380, 0.05, "quartz_feldspar"),
    ("olivine", 700, 1050, 1650, 0.15, "alunite"),
    ("serpentine", 2260, 2325, 2380, 0.05, "olivine"),
    ("muscovite", 2130, 2200, 2250, 0.06, "basalt"),
    ("montmorillonite", 2120, 2210, 2260, 0.08, "calcite"),
    ("goethite", 750, 930, 1250, 0.10, "calcite"),
]


def test_real_minerals_are_recognised_by_their_absorptions(test_data: Path) -> None:
    library = load_library(test_data / "hsi" / "USGS_1995_Library.mat")
    cabinet = Cabinet(library, np.arange(224))
    found = [Whole(cabinet, 0, number) for number in range(2)]
    spectra = np.concatenate([item.reflectance.reshape(-1, 224) for item in found])
    parts = np.concatenate([item.abundances.reshape(-1, 12) for item in found])
    measured = np.concatenate([item.spectra.reshape(-1, 224) for item in found])
    lit = np.concatenate([item.lit.ravel() for item in found])
    for name, left, centre, right, least, other in ABSORPTIONS:
        nm = library.wavelengths_nm
        pure, none = (
            (parts[:, CLASS_NAMES.index(kind)] > 0.75) & (lit > 0.9) for kind in (name, other)
        )
        assert pure.sum() >= 5 and none.sum() >= 5, (name, pure.sum(), none.sum())
        here = depth(spectra[pure], nm, left, centre, right)
        assert here > least, (name, here)
        assert depth(measured[pure], nm, left, centre, right) > 0.8 * least, name
        assert depth(spectra[none], nm, left, centre, right) < 0.5 * here, (name, other)
