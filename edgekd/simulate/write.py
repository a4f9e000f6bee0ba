"""Scenes into a sensor set: a folder with ``sensors.yaml`` and the files of every scene.

Same seed, same bytes: nothing that is written depends on the clock, the machine's name, or how
many scenes there are. What could pass for a survey says that it is simulated: every GeoTIFF in its
tags, the ENVI header in its description, ``sensors.yaml``, ``provenance.json`` and ``README``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd import __version__
from edgekd.contracts.artifacts import canonical_json, publish_folder, sha256_file
from edgekd.contracts.imageio import gdal_environment
from edgekd.contracts.optional import require
from edgekd.errors import InputError, OutputError
from edgekd.simulate.geology import GENERATOR_VERSION, GSD_M, Scene
from edgekd.simulate.instrument import CAMERA_FWHM_NM, CAMERA_NM, WATER_NM
from edgekd.simulate.library import BANDS, Library, load_library
from edgekd.simulate.minerals import CLASSES, Cabinet
from edgekd.simulate.terrain import Seeds

SET_FILE = "sensors.yaml"
PROVENANCE_FILE = "provenance.json"
SPLITS = ("train", "val", "test")
IGNORE_INDEX = 255
#: reflectance is stored as whole numbers of this part
REFLECTANCE_SCALE = 10_000
ABUNDANCE_SCALE = 10_000
CRS = "EPSG:32611"
LEAST_SIDE_PX, MOST_SIDE_PX, MOST_SCENES = 64, 8192, 999
#: of the light that a camera without spectrometer is computed from
_VISIBLE_NM = 720.0
_SAYS = "SIMULATED by edgekd simulate geology; no survey of any place"
_BLOCK_PX = 256
#: scenes lie beside each other on the map, ten to a row
_ORIGIN_M, _GAP_M = (300_000.0, 4_200_000.0), 1000.0


@dataclass(frozen=True)
class Order:
    """What is to be made.

    Attributes:
        scenes: how many.
        side_px: rows and columns of each.
        seed: of the set; scene i is the same whatever ``scenes`` is.
        split: scenes of train, val and test, in turn; their sum must go into ``scenes``.
        rgb_only: without the spectrometer's cube and the abundances.
    """

    scenes: int = 6
    side_px: int = 128
    seed: int = 0
    split: tuple[int, int, int] = (4, 1, 1)
    rgb_only: bool = False

    def check(self) -> None:
        """Raise what is wrong.

        Raises:
            InputError: a number is out of range, or the split does not add up.
        """
        if not LEAST_SIDE_PX <= self.side_px <= MOST_SIDE_PX:
            raise InputError(
                f"a scene's side must be {LEAST_SIDE_PX} to {MOST_SIDE_PX} px, received "
                f"{self.side_px}: a smaller one does not hold twelve classes; give another --side"
            )
        if not 1 <= self.scenes <= MOST_SCENES:
            raise InputError(f"expected 1 to {MOST_SCENES} scenes, received {self.scenes}")
        if self.seed < 0:
            raise InputError(f"a seed is 0 or above, received {self.seed}")
        total = sum(self.split)
        text = ":".join(str(part) for part in self.split)
        if min(self.split) < 0 or total < 1 or self.scenes % total:
            raise InputError(
                f"the split {text} adds up to {total} scenes, which must go into the {self.scenes} "
                "that are made; give others with --split or --scenes"
            )

    def split_of(self, number: int) -> str:
        """``train``, ``val`` or ``test`` of scene ``number``; does not depend on ``scenes``."""
        place = number % sum(self.split)
        return SPLITS[int(np.searchsorted(np.cumsum(self.split), place, side="right"))]


def write_geology(
    out: Path,
    library_path: Path,
    order: Order,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Render the scenes and write the set; the folder appears when it is whole.

    Memory is that of one scene's heights and products (some 16 bytes per pixel) and a strip.

    Args:
        out: folder that is not there, or is empty.
        library_path: ``USGS_1995_Library.mat``.
        progress: told rows done and rows in all.

    Returns:
        what ``provenance.json`` holds.

    Raises:
        InputError: the order, or the library.
        OutputError: the folder exists and holds something, or cannot be written.
        EnvironmentLacksError: scipy, spectral or rasterio is not installed.
    """
    order.check()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists and is not empty; choose another folder with -o")
    if not order.rgb_only:
        require("spectral", "sensors", "write the spectrometer's cubes")
    require("rasterio", "geo", "write scenes")
    library = load_library(library_path)
    visible = int(np.searchsorted(library.wavelengths_nm, _VISIBLE_NM))
    cabinet = Cabinet(library, np.arange(visible if order.rgb_only else BANDS))
    done = 0

    def tell(rows: int) -> None:
        nonlocal done
        done += rows
        progress(done, order.scenes * order.side_px)

    with publish_folder(out, SET_FILE) as part:
        found = []
        for number in range(order.scenes):
            scene = Scene(cabinet, Seeds(order.seed, number), order.side_px)
            found.append(_write_scene(part, scene, number, order, library, tell))
        provenance = _provenance(library, cabinet, order, found)
        hashes = {item.name: sha256_file(item) for item in sorted(part.iterdir()) if item.is_file()}
        text = canonical_json(provenance | {"files": hashes})
        (part / PROVENANCE_FILE).write_text(text, encoding="utf-8")
        (part / SET_FILE).write_text(set_text(order, library), encoding="utf-8")
        (part / "README").write_text(_readme(order, found), encoding="utf-8")
    return provenance


def scene_id(number: int) -> str:
    """``scene_007``."""
    return f"scene_{number:03d}"


def set_text(order: Order, library: Library) -> str:
    """``sensors.yaml``."""
    lines = [
        "# SIMULATED: computed scenes, no survey of any place. How: provenance.json",
        "schema: 1",
        "name: geology-simulated",
        "title: Simulated mineral district, 12 classes",
        "simulated: true",
        f'source: "edgekd {__version__} simulate geology, generator {GENERATOR_VERSION}, seed '
        f"{order.seed}; spectra: USGS library 1995 on AVIRIS (Open File Report 93-592), sha256 "
        f'{library.sha256}"',
        "licence: spectra are US public domain; scenes as edgekd that made them (Apache-2.0)",
        f"ignore_index: {IGNORE_INDEX}",
        "classes:",
        *(
            f'  - {{index: {index}, name: {item.name}, color: "{item.color}"}}'
            for index, item in enumerate(CLASSES)
        ),
        "scenes:",
    ]
    for number in range(order.scenes):
        name = scene_id(number)
        lines += [f"  - id: {name}", f"    split: {order.split_of(number)}", "    files:"]
        if not order.rgb_only:
            lines.append(f"      spectral: {{file: {name}_spectral.hdr}}")
        lines += [
            f"      visual: {{file: {name}_rgb.tif}}",
            f"      lidar: {{file: {name}_lidar.tif}}",
            f"    labels: {{file: {name}_labels.tif}}",
        ]
    return "\n".join(lines) + "\n"


def _readme(order: Order, found: list[dict[str, Any]]) -> str:
    counts = np.sum([item["class_pixels"] for item in found], axis=0)
    rows = [
        f"  {index:2d} {item.name:16s} {100 * counts[index] / counts.sum():6.2f} %"
        for index, item in enumerate(CLASSES)
    ]
    abundance = "" if order.rgb_only else (
        "scene_*_abundance.tif  parts of the classes in the rock, 16 bit, "
        f"{ABUNDANCE_SCALE} is the whole\n"
        "scene_*_spectral.hdr   ENVI, apparent reflectance, 16 bit, "
        f"{REFLECTANCE_SCALE} is 1\n"
    )  # fmt: skip
    return (
        "SIMULATED: these scenes are computed; they are no survey of any place.\n\n"
        f"edgekd simulate geology, seed {order.seed}, {order.scenes} scenes of "
        f"{order.side_px} x {order.side_px} px of {GSD_M:g} m.\n\n"
        "scene_*_rgb.tif        camera, 8 bit\n"
        "scene_*_lidar.tif      heights in m, nodata where no pulse came back\n"
        "scene_*_labels.tif     truth: the class with the largest part of the rock\n"
        f"{abundance}\n"
        "Share of the classes:\n" + "\n".join(rows) + "\n\n"
        "How each was made stands in provenance.json; what a reader needs in sensors.yaml.\n"
    )


def _provenance(
    library: Library, cabinet: Cabinet, order: Order, found: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "simulated": True,
        "generator": "edgekd simulate geology",
        "generator_version": GENERATOR_VERSION,
        "edgekd_version": __version__,
        "seed": order.seed,
        "side_px": order.side_px,
        "gsd_m": GSD_M,
        "crs": CRS,
        "rgb_only": order.rgb_only,
        "split": ":".join(str(part) for part in order.split),
        "library": {"file": Path(library.path).name, "sha256": library.sha256},
        "entries": {name: list(names) for name, names in cabinet.entries.items()},
        "camera": {
            "response": "Gaussian", "centres_nm": list(CAMERA_NM), "fwhm_nm": CAMERA_FWHM_NM,
            "curve": "sRGB",
        },
        "wavelengths_nm": [round(float(value), 2) for value in cabinet.wavelengths_nm],
        "aviris_channels": library.channels[: len(cabinet.wavelengths_nm)].tolist(),
        "useless_windows_nm": [list(window) for window in WATER_NM],
        "scenes": found,
    }  # fmt: skip


class _Raster:
    """A GeoTIFF that grows by rows: whole blocks are written, so its bytes do not depend on how
    the rows came."""

    def __init__(
        self, rasterio: Any, path: Path, profile: dict[str, Any], tags: dict[str, str]
    ) -> None:
        tiled = profile["width"] >= 2 * _BLOCK_PX
        layout: dict[str, Any] = {"blockysize": _BLOCK_PX // 4}
        if tiled:
            layout = {"tiled": True, "blockxsize": _BLOCK_PX, "blockysize": _BLOCK_PX}
        self._rows = int(layout["blockysize"])
        self._window = rasterio.windows.Window
        self._held: list[npt.NDArray[Any]] = []
        self._first = 0
        said = {"TIFFTAG_IMAGEDESCRIPTION": _SAYS, "TIFFTAG_SOFTWARE": "edgekd", "SIMULATED": "YES"}
        self.data = rasterio.open(
            path, "w", driver="GTiff", compress="deflate", zlevel=6, num_threads=1,
            interleave="band", **layout, **profile,
        )  # fmt: skip
        self.data.update_tags(**said, **tags)

    def add(self, rows: npt.NDArray[Any]) -> None:
        """Rows to the south of those before, (rows, columns) or (rows, columns, bands)."""
        planes = rows[None] if rows.ndim == 2 else np.moveaxis(rows, 2, 0)
        self._held.append(planes.astype(self.data.dtypes[0]))
        count = sum(item.shape[1] for item in self._held)
        while count >= self._rows or (count and self._first + count == self.data.height):
            held = np.concatenate(self._held, axis=1)
            now, rest = held[:, : self._rows], held[:, self._rows :]
            window = self._window(0, self._first, self.data.width, now.shape[1])
            self.data.write(np.ascontiguousarray(now), window=window)
            self._first += now.shape[1]
            self._held, count = [rest], rest.shape[1]


def _write_scene(
    folder: Path, scene: Scene, number: int, order: Order, library: Library,
    tell: Callable[[int], None],
) -> dict[str, Any]:  # fmt: skip
    """All files of one scene; what stands of it in the provenance."""
    name = scene_id(number)
    counts = np.zeros(len(CLASSES), dtype=np.int64)
    shadow = 0.0
    tags = {"GENERATOR": f"edgekd simulate geology {GENERATOR_VERSION}", "SEED": str(order.seed),
            "SCENE": str(number)}  # fmt: skip
    with contextlib.ExitStack() as stack:
        rasterio = stack.enter_context(gdal_environment())
        stack.enter_context(rasterio.Env(GDAL_TIFF_ENDIANNESS="LITTLE"))
        corner = _corner_m(number, order.side_px)
        place: dict[str, Any] = {
            "width": order.side_px, "height": order.side_px, "crs": CRS,
            "transform": rasterio.transform.from_origin(*corner, GSD_M, GSD_M),
        }  # fmt: skip

        def raster(what: str, **profile: Any) -> _Raster:
            path = folder / f"{name}_{what}.tif"
            made = _Raster(rasterio, path, profile | place, tags)
            stack.enter_context(made.data)
            return made

        rgb = raster("rgb", dtype="uint8", count=3, photometric="RGB", predictor=2)
        labels = raster("labels", dtype="uint8", count=1, nodata=IGNORE_INDEX)
        lidar = raster("lidar", dtype="float32", count=1, nodata=scene.nodata_m, predictor=3)
        _describe(labels, lidar)
        abundance = cube = None
        if not order.rgb_only:
            abundance = raster("abundance", dtype="uint16", count=len(CLASSES), predictor=2)
            for band, item in enumerate(CLASSES, 1):
                abundance.data.set_band_description(band, item.name)
            abundance.data.scales = [1 / ABUNDANCE_SCALE] * len(CLASSES)
            cube = stack.enter_context(
                _cube(folder / f"{name}_spectral.hdr", order, library, corner, number)
            )
        for strip in scene.strips():
            rows = slice(strip.first_row, strip.first_row + len(strip.labels))
            rgb.add(scene.picture(strip))
            labels.add(strip.labels)
            lidar.add(scene.ranges(strip))
            if abundance is not None and cube is not None:
                abundance.add(np.rint(strip.abundances * ABUNDANCE_SCALE))
                stored = np.minimum(np.rint(scene.spectra(strip) * REFLECTANCE_SCALE), 65_535)
                cube[:, rows] = np.moveaxis(stored, 2, 0)
            counts += np.bincount(strip.labels.ravel(), minlength=len(CLASSES))
            shadow += float((strip.lit < 0.5).sum())
            tell(len(strip.labels))
    return {
        "id": name, "split": order.split_of(number), **scene.facts,
        "class_pixels": [int(value) for value in counts],
        "shadow_share": round(shadow / order.side_px**2, 4),
        "height_min_m": round(float(scene.heights_m.min()), 2),
        "height_max_m": round(float(scene.heights_m.max()), 2),
    }  # fmt: skip


def _describe(labels: _Raster, lidar: _Raster) -> None:
    lidar.data.set_band_description(1, "height, m")
    labels.data.set_band_description(1, "class")
    palette = {
        index: (*(int(item.color[at : at + 2], 16) for at in (1, 3, 5)), 255)
        for index, item in enumerate(CLASSES)
    }
    labels.data.write_colormap(1, palette)
    labels.data.update_tags(**{f"CLASS_{at}": item.name for at, item in enumerate(CLASSES)})


def _corner_m(number: int, side_px: int) -> tuple[float, float]:
    """North western corner of a scene, easting and northing."""
    step = side_px * GSD_M + _GAP_M
    return _ORIGIN_M[0] + step * (number % 10), _ORIGIN_M[1] - step * (number // 10)


@contextlib.contextmanager
def _cube(
    path: Path, order: Order, library: Library, corner: tuple[float, float], number: int
) -> Iterator[npt.NDArray[np.uint16]]:
    """The spectrometer's file, (bands, rows, columns), written where it lies."""
    envi = require("spectral.io.envi", "sensors", "write the spectrometer's cubes")
    crs = require("rasterio.crs", "geo", "write scenes").CRS.from_string(CRS)
    metadata = {
        "description": f"{_SAYS}; seed {order.seed}, scene {number}",
        "sensor type": "SIMULATED",
        "reflectance scale factor": REFLECTANCE_SCALE,
        "map info": ["UTM", 1, 1, *corner, GSD_M, GSD_M, 11, "North", "WGS-84", "units=Meters"],
        "coordinate system string": f"{{{crs.to_wkt(version='WKT1_ESRI')}}}",
        "wavelength units": "Nanometers",
        "wavelength": [f"{value:.2f}" for value in library.wavelengths_nm],
        "fwhm": [f"{value:.2f}" for value in library.resolution_nm],
        "band names": [f"AVIRIS channel {channel}" for channel in library.channels],
    }
    side = order.side_px
    image = envi.create_image(
        str(path), metadata, dtype=np.uint16, interleave="bsq", shape=(side, side, BANDS)
    )
    table = image.open_memmap(interleave="bsq", writable=True)
    yield table
    table.flush()
