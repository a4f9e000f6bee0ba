"""``geology``: a mineral district in an arid place, seen by camera, spectrometer and LiDAR.

Twelve classes, four of them minerals that take up carbon dioxide. What a pixel reflects is made
from measured spectra: minerals mix intimately within a rock and side by side where rocks meet
(:mod:`.mixing`), varnish and dust cover some of it, the sun and the sky light a terrain that the
rocks themselves shaped. So a class can be guessed from its place, its neighbours, its texture
and its relief, but calcite and dolomite, or kaolinite and alunite, differ in their spectra alone.

The truth of a pixel is the class with the largest part of the rock there; what covers the rock is
not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage

from edgekd.simulate.instrument import (
    Camera,
    Spectrometer,
    camera_weights,
    lidar_blots,
    photograph,
    range_heights,
)
from edgekd.simulate.minerals import (
    CLASSES,
    MINERAL_NAMES,
    Cabinet,
    diameters_um,
    recipes,
)
from edgekd.simulate.mixing import (
    albedo_factor,
    blend,
    cross_sections,
    reflect,
    reflect_diffuse,
    regrain,
)
from edgekd.simulate.structure import UNITS, Structure
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

Array = npt.NDArray[np.float32]

#: of this file's geology: scenes of one version and seed are the same, byte for byte
GENERATOR_VERSION = 1
GSD_M = 2.0
#: pixels that are worked through at once, which bounds the memory
_STRIP_PX = 16384
#: parts of a pixel's side in which rocks are told apart
_SUB = 3
_BASE_M = 1400.0
_NODATA_M = -9999.0
#: least cosine of incidence for the model, which goes wrong for grazing light
_GRAZING = 0.05
#: how rough what was washed together is beside the rock that it came from
_FILL = np.float32(0.15)
#: thickness of a bed and the next, m
_BED_M = 11.0
#: a texture shows more in the opaque grains than in the size of all
_DARKENS = np.float32(1.5)
_GRAIN = np.log(np.array([item.grain for item in CLASSES], dtype=np.float32))


@dataclass(frozen=True)
class Strip:
    """Some rows of a scene.

    Attributes:
        first_row: number of the first one.
        abundances: float32 (rows, columns, classes), parts of the rock, sum 1.
        labels: uint8 (rows, columns), the class with the largest part.
        reflectance: float32 (rows, columns, bands), 0-1: of the ground, level, as seen from above.
        apparent: the same with the slope's light; 1 is a white level surface in the sun, and a
            slope that faces the sun passes it.
        lit: float32 (rows, columns), share of the sun's disc that is seen, 0 where turned away.
    """

    first_row: int
    abundances: Array
    labels: npt.NDArray[np.uint8]
    reflectance: Array
    apparent: Array
    lit: Array


class Scene:
    """One scene; everything follows from its seeds.

    Args:
        cabinet: the spectra, on the bands that are wanted.
        seeds: of the scene.
        side_px: rows and columns.

    Attributes:
        sun, camera: of the scene.
        nodata_m: height where LiDAR has none.
    """

    nodata_m = _NODATA_M

    def __init__(self, cabinet: Cabinet, seeds: Seeds, side_px: int) -> None:
        self.seeds, self.side_px = seeds, side_px
        self.wavelengths_nm = cabinet.wavelengths_nm
        rng = seeds.rng("light")
        self.sun = Sun(
            azimuth_deg=float(rng.uniform(95, 265)),
            elevation_deg=float(rng.uniform(26, 60)),
            diffuse=float(rng.uniform(0.10, 0.22)),
        )
        exposure = float(np.exp(rng.normal(0, 0.08)))
        balance = np.exp(rng.normal(0, 0.015, 3))
        self.camera = Camera(0.9 * exposure, (balance[0], 1.0, balance[2]))
        self.structure = Structure(seeds, side_px * GSD_M)
        self._facies = cabinet.facies(seeds)
        self._cover = _covers(self._facies, seeds)
        self._base_m = _BASE_M + float(rng.normal(0, 25))
        self._stain = float(rng.uniform(0.001, 0.006))
        dark = np.array([item.dark for item in CLASSES]) * np.exp(rng.normal(0, 0.2, len(CLASSES)))
        self._dark = dark.astype(np.float32)
        self._dust = float(rng.uniform(0.03, 0.10))
        self._varnish = float(rng.uniform(0.05, 0.25))
        strike = self.structure.strike_deg
        made: dict[str, tuple[float, ...]] = {
            "look_0": (60.0, 400.0, 2.0),
            "look_1": (60.0, 400.0, 2.0),
            "look_2": (60.0, 400.0, 2.0),
            "blocky": (8.0, 18.0, 1.0),
            "foliated": (5.0, 12.0, 1.0, 6.0, strike),
            "mottled": (10.0, 50.0, 1.5),
            "stain": (16.0, 120.0, 1.8),
            "cover": (12.0, 90.0, 1.8),
            "rough": (4.5, 9.0, 1.0),
        }
        self._fields = {name: Field(seeds.rng("scene", name), *spec) for name, spec in made.items()}

    @property
    def facts(self) -> dict[str, Any]:
        """What was drawn for this scene, for its provenance."""
        return {
            "sun_azimuth_deg": round(self.sun.azimuth_deg, 3),
            "sun_elevation_deg": round(self.sun.elevation_deg, 3),
            "diffuse_share_550_nm": round(self.sun.diffuse, 4),
            "camera_full_scale": round(self.camera.full_scale, 4),
            "camera_balance": [round(float(value), 4) for value in self.camera.balance],
            "strike_deg": round(self.structure.strike_deg, 2),
            "shares_of_units": {
                name: round(value, 4) for name, value in self.structure.shares.items()
            },
        }

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First row and row behind the last of each strip."""
        rows = max(1, _STRIP_PX // self.side_px)
        for first in range(0, self.side_px, rows):
            yield first, min(first + rows, self.side_px)

    def _places(self, first: int, last: int, sub: int = 1) -> tuple[Any, Any]:
        down = (np.arange(first * sub, last * sub) + 0.5) * (GSD_M / sub)
        east = (np.arange(self.side_px * sub) + 0.5) * (GSD_M / sub)
        return down, east

    @cached_property
    def heights_m(self) -> Array:
        """True heights of the whole scene, float32 (rows, columns), m."""
        ground = np.empty((self.side_px, self.side_px), dtype=np.float32)
        stands, rough = np.empty_like(ground), np.empty_like(ground)
        relief = np.array([item.relief_m for item in CLASSES], dtype=np.float32)
        for first, last in self.blocks():
            down, east = self._places(first, last)
            scores = self.structure.scores(down, east)
            unit = self.structure.units(scores)
            ground[first:last], stands[first:last] = self.structure.ground_m(scores, unit)
            solid = np.where(unit == UNITS.index("alluvium"), _FILL, np.float32(1))
            amount = solid * blend(self.structure.expected(scores, unit), relief)
            blocks = np.abs(self._fields["blocky"](down, east)) - np.float32(0.8)
            small = self._fields["rough"](down, east)
            rough[first:last] = amount * (blocks + np.float32(0.4) * small)
            rough[first:last] += np.float32(0.25) * solid * scores["detail"]
        # erosion rounds the edges of what it leaves standing
        scipy.ndimage.gaussian_filter(stands, 2.0, mode="nearest", output=stands)
        ground += stands
        ground += rough
        ground += np.float32(self._base_m)
        return ground

    def strips(self) -> Iterator[Strip]:
        """The scene from north to south."""
        for first, last in self.blocks():
            yield self._strip(first, last)

    def _strip(self, first: int, last: int) -> Strip:
        down, east = self._places(first, last)
        scores = self.structure.scores(down, east)
        rng = self.seeds.rng("rock", first)
        main, other, share = self._rocks(first, last)
        fields = {name: field(down, east) for name, field in self._fields.items()}
        south, to_east = self._slopes(first, last)
        cosine, mu = incidence(south, to_east, self.sun)
        lit = sunlit(self.heights_m, GSD_M, self.sun, self._reach_px, first, last) * (cosine > 0)
        parts = self.structure.parts(scores, main, rng)
        light = (np.maximum(cosine, _GRAZING).ravel(), mu.ravel())
        fields["bedded"] = np.sin(scores["strata"] * np.float32(2 * np.pi / _BED_M))
        texture = self._texture(parts, fields, rng)
        looks = self._looks(fields)
        beam, level, sky = self._reflect(parts, texture, looks, fields, light)
        mixed = share < 1
        abundances = parts
        if mixed.any():
            two = self.structure.parts(scores, other, rng)
            at = mixed.ravel()
            second = self._reflect(
                two[mixed], texture[mixed], looks[mixed], {k: v[mixed] for k, v in fields.items()},
                (light[0][at], light[1][at]),
            )  # fmt: skip
            one = share[mixed][:, None]
            for whole, part in zip((beam, level, sky), second, strict=True):
                whole[at] = one * whole[at] + (1 - one) * part
            abundances = share[..., None] * parts + (1 - share[..., None]) * two
        covers = self._covering(fields, mu, abundances)
        self._put_cover(beam, level, sky, covers, light)
        direct = (1 - self._diffuse) * (lit * cosine / self.sun.mu0).reshape(-1, 1)
        apparent = direct * beam + self._diffuse * sky_view(mu).reshape(-1, 1) * sky
        shape = (last - first, self.side_px, -1)
        return Strip(
            first,
            abundances,
            abundances.argmax(-1).astype(np.uint8),
            level.reshape(shape),
            apparent.reshape(shape),
            lit.astype(np.float32),
        )

    @cached_property
    def _reach_px(self) -> int:
        return longest_shadow_px(self.heights_m, GSD_M, self.sun)

    @cached_property
    def _diffuse(self) -> Array:
        return self.sun.diffuse_share(self.wavelengths_nm)

    def _slopes(self, first: int, last: int) -> tuple[Array, Array]:
        """Of these rows, with a row on either side for the differences."""
        top, bottom = max(first - 1, 0), min(last + 1, self.side_px)
        south, east = slopes(self.heights_m[top:bottom], GSD_M)
        rows = slice(first - top, first - top + last - first)
        return south[rows], east[rows]

    def _rocks(self, first: int, last: int) -> tuple[Any, Any, Array]:
        """The two rocks with the largest areas in each pixel, and the first one's share of both."""
        down, east = self._places(first, last, _SUB)
        fine = self.structure.units(self.structure.scores(down, east))
        tiles = fine.reshape(last - first, _SUB, self.side_px, _SUB)
        counts = np.stack(
            [(tiles == unit).sum((1, 3), dtype=np.uint8) for unit in range(len(UNITS))], axis=-1
        )
        main = counts.argmax(-1).astype(np.uint8)
        most = np.take_along_axis(counts, main[..., None].astype(np.int64), -1)[..., 0]
        np.put_along_axis(counts, main[..., None].astype(np.int64), 0, -1)
        other = counts.argmax(-1).astype(np.uint8)
        next_most = counts.max(-1)
        share = most.astype(np.float32) / (most + next_most)
        return main, other, share

    def _texture(self, parts: Array, fields: dict[str, Array], rng: np.random.Generator) -> Array:
        """How rough the rock of each pixel looks, by its classes' textures; mean about 0."""
        textures = {
            "bedded": fields["bedded"],
            "blocky": (np.abs(fields["blocky"]) - np.float32(0.8)) / np.float32(0.6),
            "foliated": fields["foliated"],
            "mottled": fields["mottled"],
        }
        texture = np.float32(0.05) * rng.standard_normal(parts.shape[:-1], dtype=np.float32)
        for name, field in textures.items():
            amount = np.array([getattr(item, name) for item in CLASSES], dtype=np.float32)
            texture = texture + blend(parts, amount) * field
        return np.asarray(texture)

    def _looks(self, fields: dict[str, Array]) -> Array:
        """Weight of each look of the minerals, (rows, columns, looks), sum 1."""
        shape = np.stack([fields[f"look_{index}"] for index in range(self._facies.shape[1])], -1)
        weights = np.exp(np.float32(1.5) * shape)
        return np.asarray(weights / weights.sum(-1, keepdims=True))

    def _reflect(
        self, parts: Array, texture: Array, looks: Array, fields: dict[str, Array],
        light: tuple[Array, Array],
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """Reflectance of the rock for the sun's beam, for level ground, for the sky's light.

        Each (pixels, bands); the pixels of all arguments in one order.
        """
        parts, texture = parts.reshape(-1, len(CLASSES)), texture.reshape(-1, 1)
        minerals = blend(parts, recipes().astype(np.float32))
        dark = blend(parts, self._dark) * np.exp(np.minimum(_DARKENS * texture[:, 0], 2))
        minerals[:, MINERAL_NAMES.index("opaque")] += dark
        # iron from weathering tints whatever it runs over; of rocks with iron more
        stain = self._stain * np.exp(np.float32(0.6) * fields["stain"].ravel())
        minerals[:, MINERAL_NAMES.index("goethite")] += 0.7 * stain
        minerals[:, MINERAL_NAMES.index("hematite")] += 0.3 * stain
        sections = cross_sections(minerals, diameters_um().astype(np.float32))
        by_look = sections[:, :, None] * looks.reshape(-1, 1, looks.shape[-1])
        facies = self._facies.reshape(-1, self._facies.shape[-1])
        w = blend(by_look.reshape(len(sections), -1), facies)
        grain = np.exp(blend(parts, _GRAIN) + texture[:, 0])[:, None]
        gamma = albedo_factor(regrain(w, grain))
        mu0, mu = (value[:, None] for value in light)
        return (
            reflect(gamma, mu0, mu),
            reflect(gamma, np.float32(self.sun.mu0), np.float32(1)),
            reflect_diffuse(gamma),
        )

    def _covering(self, fields: dict[str, Array], mu: Array, abundances: Array) -> Array:
        """Share of the area under varnish and under dust, (pixels, 2).

        Varnish needs rock that lasts, dust lies where it is level.
        """
        lasting = np.array(
            [item.name in ("basalt", "quartz_feldspar", "muscovite", "olivine") for item in CLASSES]
        ).astype(np.float32)
        wave = np.exp(np.float32(0.6) * fields["cover"])
        varnish = np.minimum(self._varnish * wave * blend(abundances, lasting), 0.4)
        dust = np.minimum(self._dust * mu**4 / wave, 0.3)
        return np.stack([varnish.ravel(), dust.ravel()], -1)

    def _put_cover(
        self, beam: Array, level: Array, sky: Array, covers: Array, light: tuple[Array, Array]
    ) -> None:
        """Areas of varnish and dust take the place of rock."""
        mu0, mu = (value[:, None] for value in light)
        bare = 1 - covers.sum(-1, keepdims=True)
        for values in (beam, level, sky):
            values *= bare
        for index, gamma in enumerate(self._cover):
            area = covers[:, index : index + 1]
            beam += area * reflect(gamma[None, :], mu0, mu)
            level += area * reflect(gamma, np.float32(self.sun.mu0), np.float32(1))[None, :]
            sky += area * reflect_diffuse(gamma)[None, :]

    def picture(self, strip: Strip) -> npt.NDArray[np.uint8]:
        """What the camera gives, uint8 (rows, columns, 3)."""
        weights = camera_weights(self.wavelengths_nm)
        rng = self.seeds.rng("camera", strip.first_row)
        return photograph(strip.apparent, weights, self.camera, rng)

    @cached_property
    def _spectrometer(self) -> Spectrometer:
        return Spectrometer(self.seeds, self.wavelengths_nm, self.side_px)

    def spectra(self, strip: Strip) -> Array:
        """What the spectrometer gives, float32 (rows, columns, bands), apparent reflectance."""
        rng = self.seeds.rng("cube", strip.first_row)
        return self._spectrometer.measure(strip.apparent, rng)

    @cached_property
    def _blots(self) -> npt.NDArray[np.float64]:
        return lidar_blots(self.seeds, self.side_px)

    def ranges(self, strip: Strip) -> Array:
        """What LiDAR gives, float32 (rows, columns), m; ``nodata_m`` where it has nothing."""
        rows = slice(strip.first_row, strip.first_row + len(strip.labels))
        south, east = self._slopes(rows.start, rows.stop)
        return range_heights(
            self.heights_m[rows], np.hypot(south, east), rows.start, self.nodata_m, self._blots,
            self.seeds.rng("lidar", rows.start),
        )  # fmt: skip


def _covers(facies: Array, seeds: Seeds) -> list[Array]:
    """Albedo factors of this scene's varnish and of its dust, (bands,) each."""
    rng = seeds.rng("covers")

    def cover(parts: dict[str, float]) -> Array:
        w = sum(
            part * blend(rng.dirichlet(np.ones(facies.shape[1])), facies[MINERAL_NAMES.index(name)])
            for name, part in parts.items()
        )
        return albedo_factor(np.asarray(w, dtype=np.float32))

    dust = {"montmorillonite": 0.35, "quartz": 0.3, "feldspar": 0.25, "goethite": 0.05,
            "hematite": 0.01, "calcite": 0.04}  # fmt: skip
    return [cover({"varnish": 1.0}), cover(dust)]
