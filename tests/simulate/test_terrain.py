"""Random fields, and light on known ground."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.simulate.terrain import (
    Field,
    Seeds,
    Sun,
    incidence,
    longest_shadow_px,
    sky_view,
    slopes,
    sunlit,
)


def places(count: int, step_m: float = 2.0, first: int = 0) -> np.ndarray:
    return (np.arange(first, first + count) + 0.5) * step_m


def test_random_numbers_depend_on_seed_scene_and_purpose_alone() -> None:
    def draw(seed: int, scene: int, *purpose: object) -> list[float]:
        return Seeds(seed, scene).rng(*purpose).random(3).tolist()

    assert draw(1, 2, "rock") == draw(1, 2, "rock")
    others = [draw(2, 2, "rock"), draw(1, 3, "rock"), draw(1, 2, "sky"), draw(12, 2), draw(1, 22)]
    assert all(other != draw(1, 2, "rock") for other in others)
    assert draw(1, 23, "x") != draw(12, 3, "x")  # digits do not run together


def test_a_field_has_its_deviation_and_its_waves() -> None:
    field = Field(np.random.default_rng(3), short_m=16.0, long_m=64.0, beta=1.0)
    assert field.tile.std() == pytest.approx(1, abs=1e-3)
    assert abs(field.tile.mean()) < 1e-3
    power = np.abs(np.fft.rfft2(field.tile)) ** 2
    down = np.fft.fftfreq(512, field.cell_m)[:, None]
    east = np.fft.rfftfreq(512, field.cell_m)[None, :]
    frequency = np.hypot(down, east)
    inside = (frequency >= 1 / 64.0) & (frequency <= 1 / 16.0)
    assert power[~inside].sum() < 1e-6 * power.sum()
    # steeper means smoother: less of the power is in the upper half of the frequencies
    rough = Field(np.random.default_rng(3), 16.0, 64.0, beta=-2.0)
    high = frequency > 1 / 24.0
    rough_power = np.abs(np.fft.rfft2(rough.tile)) ** 2
    assert power[high].sum() / power.sum() < 0.6 * rough_power[high].sum() / rough_power.sum()


def test_a_field_is_the_same_by_rows_and_as_a_whole() -> None:
    field = Field(np.random.default_rng(5), 12.0, 80.0)
    whole = field(places(60), places(40))
    parts = [field(places(20, first=first), places(40)) for first in (0, 20, 40)]
    assert np.array_equal(whole, np.concatenate(parts))
    # at its own cells it is the tile, and it comes back after the tile
    cells = np.arange(6) * field.cell_m
    assert np.allclose(field(cells, cells), field.tile[:6, :6], atol=1e-6)
    period = 512 * field.cell_m
    assert np.allclose(field(cells + period, cells - period), field.tile[:6, :6], atol=1e-5)


def test_between_cells_a_field_is_interpolated() -> None:
    field = Field(np.random.default_rng(5), 12.0, 80.0)
    down, east = np.mgrid[:512, :512].astype(np.float32)
    field.tile = (down - 3 * east).astype(np.float32)  # a plane stays one
    at, across = np.array([100.25, 200.9]), np.array([7.5, 300.1])
    seen = field(at * field.cell_m, across * field.cell_m)
    assert np.allclose(seen, at[:, None] - 3 * across[None, :], atol=1e-3)


@pytest.mark.parametrize(("along_deg", "axis"), [(0.0, 0), (90.0, 1)])
def test_waves_are_longer_along_their_direction(along_deg: float, axis: int) -> None:
    field = Field(np.random.default_rng(1), 8.0, 64.0, 1.0, stretch=5.0, along_deg=along_deg)
    change = [np.abs(np.diff(field.tile, axis=which)).mean() for which in (0, 1)]
    assert change[axis] < 0.5 * change[1 - axis]  # north is along the rows' axis


@pytest.mark.parametrize("azimuth", [0.0, 90.0, 180.0, 270.0])
def test_a_slope_that_faces_the_sun_has_the_most_light(azimuth: float) -> None:
    sun = Sun(azimuth, 30.0, 0.2)
    assert sun.mu0 == pytest.approx(0.5)
    level, mu = incidence(np.zeros(1, np.float32), np.zeros(1, np.float32), sun)
    assert level[0] == pytest.approx(0.5) and mu[0] == 1 and sky_view(mu)[0] == 1
    # a plane that falls towards the sun by 60 degrees faces it; away from it, it has none
    down, east = np.mgrid[:9, :9].astype(np.float32) * 2
    toward = np.radians(azimuth)
    rise = -np.tan(np.radians(60)) * (np.cos(toward) * -down + np.sin(toward) * east)
    facing, mu = incidence(*slopes(rise.astype(np.float32), 2.0), sun)
    assert facing == pytest.approx(1, abs=1e-5) and mu == pytest.approx(0.5, abs=1e-5)
    away, _ = incidence(*slopes(-rise.astype(np.float32), 2.0), sun)
    assert (away == 0).all()
    assert sky_view(mu) == pytest.approx(0.75, abs=1e-5)


@pytest.mark.parametrize(("azimuth", "turns"), [(90.0, 0), (0.0, 1), (270.0, 2), (180.0, 3)])
def test_a_wall_throws_its_shadow_away_from_the_sun(azimuth: float, turns: int) -> None:
    sun = Sun(azimuth, 45.0, 0.2)
    ground = np.zeros((21, 21), np.float32)
    ground[:, 15] = 10.0  # at 45 degrees 10 m of shadow: five pixels to the west of it
    heights = np.rot90(ground, turns).copy()
    reach = longest_shadow_px(heights, 2.0, sun)
    assert reach == 6  # five, and what the sun's disc adds
    lit = np.rot90(sunlit(heights, 2.0, sun, reach, 0, 21), -turns)
    assert (lit[:, 11:15] < 0.01).all()
    assert (lit[:, 15:] == 1).all() and (lit[:, :10] == 1).all()
    # the disc stands half above the wall there
    assert lit[10, 10] == pytest.approx(0.5, abs=0.1)
    rows = [sunlit(heights, 2.0, sun, reach, first, first + 7) for first in (0, 7, 14)]
    assert np.array_equal(np.concatenate(rows), sunlit(heights, 2.0, sun, reach, 0, 21))


def test_skylight_is_bluer_than_the_sun() -> None:
    share = Sun(180.0, 45.0, 0.2).diffuse_share(np.array([400.0, 550.0, 2200.0]))
    assert share[1] == pytest.approx(0.2) and share[0] > 0.3 and share[2] < 0.03
