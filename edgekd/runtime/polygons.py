"""A class map as polygons, small enough to send down: GeoPackage or GeoJSON.

Rows come a block at a time, and what is finished (:mod:`edgekd.runtime.outlines`) is written some
thousand polygons at a time. Memory is a batch, and the polygons that are still open: those are cut
at rows that are multiples of :data:`~edgekd.runtime.outlines.CUT_ROWS` when they began as many rows
above (a background all over a scene is not one polygon but one in 4096 rows), so time is linear in
the scene's height and memory does not depend on it. The files say so.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from edgekd.contracts.artifacts import publish_file
from edgekd.contracts.imageio import (
    Raster,
    UInt8Array,
    cause_text,
    gdal_environment,
    gdal_failures,
)
from edgekd.contracts.optional import require
from edgekd.contracts.tensors import ClassSpec
from edgekd.errors import ImageError, InputError, OutputError
from edgekd.runtime.outlines import CUT_CORNERS, CUT_ROWS, Float64Array, shapes

SUFFIXES = (".gpkg", ".geojson")
#: polygons that are written together
_BATCH = 8192
#: GeoPackage asks for a time of writing; the same map is to give the same bytes.
_DATE_OPTION, _NO_DATE = "OGR_CURRENT_DATE", "1970-01-01T00:00:00.000Z"
#: held while that option, one for the whole process, is ours
_DATE_LOCK = threading.Lock()
#: in the metadata of the layer, and of the collection
_CUT_TAG = "EDGEKD_CUT"
_CUT_TEXT = (
    f"a polygon of {CUT_ROWS} rows of pixels or {CUT_CORNERS} corners goes on in another one"
)
#: class, name, pixels, m²
_Fields = tuple[int, str, int, float | None]


@dataclass(frozen=True)
class Outline:
    """How polygons are drawn.

    Attributes:
        simplify_px: a simplified outline stays within this of the exact one (Douglas-Peucker,
            each polygon stays valid); 0 keeps every corner.
        min_area_px: areas below this take the class of their largest neighbour, and are dropped
            where they have none.
    """

    simplify_px: float = 1.0
    min_area_px: int = 16

    def __post_init__(self) -> None:
        if not (0 <= self.simplify_px < math.inf and self.min_area_px >= 0):
            raise InputError(
                f"expected numbers of pixels from 0 on, received simplify {self.simplify_px} and "
                f"least area {self.min_area_px}"
            )


def require_polygon_place(path: Path, raster: Raster) -> None:
    """Raise unless the polygons of a scene could be written there.

    Raises:
        OutputError: another suffix than .gpkg or .geojson.
        EnvironmentLacksError: shapely, or pyogrio for GeoPackage, is not installed.
        ImageError: GeoJSON of a scene whose CRS and place have no longitude and latitude, or a
            scene that only control points place.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise OutputError(
            f"polygons are a GeoPackage or GeoJSON: give a name that ends in .gpkg or .geojson, "
            f"received {path}"
        )
    require("shapely", "geo", "write polygons")
    if suffix == ".gpkg":
        require("pyogrio", "geo", "write GeoPackage files")
    if raster.gcps is not None and raster.transform is None:
        raise ImageError(
            f"{raster.path} is placed by ground control points alone, and polygons would be in "
            "pixels; make it straight first: gdalwarp IN OUT"
        )
    if suffix == ".geojson" and raster.crs is not None:
        _require_lonlat(path, raster)
    elif suffix == ".geojson" and raster.transform is not None:
        raise ImageError(
            f"{path} would be in longitude and latitude, and {raster.path} has a place without a "
            "CRS; write a .gpkg, or name the CRS first: gdal_edit.py -a_srs EPSG:..."
        )


def _require_lonlat(path: Path, raster: Raster) -> None:
    """Raise unless some place in the scene has a longitude and latitude.

    Others may lie beside the Earth, as the corners of a geostationary satellite's picture do.
    """
    affine = _affine(raster)
    why: ImageError | None = None
    for y in (0.5, 0.0, 0.25, 0.75, 1.0):
        for x in (0.5, 0.0, 0.25, 0.75, 1.0):
            point = np.array([[x * raster.width, y * raster.height]])
            try:
                if np.isfinite(_lonlat(affine(point) if affine else point, raster, path)).all():
                    return
            except ImageError as err:
                why = err
    raise why or _no_lonlat(path, raster, "it gives no number")


def write_polygons(
    path: Path,
    blocks: Iterable[tuple[int, UInt8Array]],
    classes: list[ClassSpec],
    raster: Raster,
    areas_m2: Float64Array | None,
    outline: Outline,
) -> int:
    """Write the polygons of a map; ``path`` appears when it is whole.

    Args:
        path: ``.gpkg`` (in the scene's CRS) or ``.geojson`` (RFC 7946: longitude and latitude;
            without a CRS, pixels).
        blocks: (first row, class indices ``(n, W)``) from the top, without gaps.
        classes: names.
        raster: the scene, for its georeference.
        areas_m2: of a pixel of each row, ``(H,)``; None where nothing is known.
        outline: how to draw.

    Returns:
        Number of polygons.

    Raises:
        OutputError: another suffix, or the place cannot be written.
        ImageError: GeoJSON of a scene whose CRS has no longitude and latitude.
        EnvironmentLacksError: shapely, or pyogrio for GeoPackage, is not installed.
    """
    require_polygon_place(path, raster)
    shapely = require("shapely", "geo", "write polygons")
    names = {item.index: item.name for item in classes}
    affine = _affine(raster)
    lonlat = path.suffix.lower() == ".geojson" and raster.crs is not None
    count = 0
    geometries: list[npt.NDArray[Any]] = []
    fields: list[_Fields] = []
    with publish_file(path) as part, _writer(shapely, part, raster) as writer:
        for some in shapes(blocks, outline.simplify_px, outline.min_area_px):
            middle = shapely.get_y(shapely.centroid(some.drawn))
            placed = shapely.transform(some.drawn, affine) if affine else some.drawn
            if lonlat:
                placed = _to_lonlat(shapely, placed, raster, path)
            geometries.append(shapely.to_wkb(shapely.normalize(placed)))
            areas = [None] * len(some.index)
            if areas_m2 is not None:  # of the pixels in the polygon's middle row
                rows = np.clip(middle.astype(int), 0, len(areas_m2) - 1)
                areas = (some.pixels * areas_m2[rows]).tolist()
            fields += [
                (int(index), names.get(int(index), ""), int(pixels), area)
                for index, pixels, area in zip(some.index, some.pixels, areas, strict=True)
            ]
            if len(fields) >= _BATCH:
                writer.add(np.concatenate(geometries), fields)
                count += len(fields)
                geometries, fields = [], []
        if fields:
            writer.add(np.concatenate(geometries), fields)
    return count + len(fields)


@contextlib.contextmanager
def _writer(shapely: Any, part: Path, raster: Raster) -> Iterator[_GeoPackage | _GeoJSON]:
    """What takes the features of a file; closed unless there was an error."""
    if part.suffix.lower() == ".gpkg":
        package = _GeoPackage(part, raster)
        yield package
        package.close()
        return
    with part.open("w", encoding="utf-8") as stream:
        text = _GeoJSON(shapely, stream)
        yield text
        text.close()


def _affine(raster: Raster) -> Any:
    step = raster.transform
    if step is None:
        return None

    def place(points: Float64Array) -> Float64Array:
        x, y = points[:, 0], points[:, 1]
        return np.column_stack([step.a * x + step.b * y + step.c, step.d * x + step.e * y + step.f])

    return place


def _to_lonlat(shapely: Any, geometry: Any, raster: Raster, path: Path) -> Any:
    def place(points: Float64Array) -> Float64Array:
        found = _lonlat(points, raster, path)
        if not np.isfinite(found).all():
            raise _no_lonlat(path, raster, "it gives no number")
        return found

    return shapely.transform(geometry, place)


def _lonlat(points: Float64Array, raster: Raster, path: Path) -> Float64Array:
    """Degrees of points in the scene's CRS; infinite where a point has none."""
    with gdal_environment() as rasterio:
        from rasterio.warp import transform

        target = rasterio.crs.CRS.from_epsg(4326)
        try:
            x, y = transform(raster.crs, target, points[:, 0], points[:, 1])[:2]
        except gdal_failures(rasterio) as err:
            raise _no_lonlat(path, raster, cause_text(err)) from err
        found: Float64Array = np.round(np.column_stack([x, y]), 7)  # a centimetre
        return found


def _no_lonlat(path: Path, raster: Raster, why: str) -> ImageError:
    return ImageError(
        f"{path} cannot be written: GeoJSON is in longitude and latitude, which do not follow from "
        f"the CRS and place of {raster.path} ({why}); write a GeoPackage: a name that ends in .gpkg"
    )


class _GeoPackage:
    """Features of a layer, appended a batch at a time."""

    def __init__(self, part: Path, raster: Raster) -> None:
        self._pyogrio = require("pyogrio", "geo", "write GeoPackage files")
        self._part = part
        self._begun = False
        self._crs = None if raster.crs is None else raster.crs.to_wkt()

    def add(self, geometries: npt.NDArray[Any], fields: list[_Fields]) -> None:
        columns = list(zip(*fields, strict=True)) if fields else [(), (), (), ()]
        pyogrio = self._pyogrio
        try:
            with _constant_date(pyogrio), warnings.catch_warnings():
                # a picture has no CRS, and neither have its polygons
                warnings.filterwarnings("ignore", message=".*crs.* was not provided")
                pyogrio.raw.write(
                    self._part,
                    geometries,
                    [
                        np.array(columns[0], np.int32),
                        np.array(columns[1], dtype=object),
                        np.array(columns[2], np.int64),
                        np.array([np.nan if v is None else v for v in columns[3]], np.float64),
                    ],
                    ["class", "name", "pixels", "area_m2"],
                    layer="classes",
                    driver="GPKG",
                    geometry_type="Polygon",
                    crs=self._crs,
                    append=self._begun,
                    layer_metadata={_CUT_TAG: _CUT_TEXT},
                )
        except (pyogrio.errors.DataSourceError, pyogrio.errors.FieldError, RuntimeError) as err:
            raise OutputError(
                f"{self._part.parent} cannot be written ({err}); is the disk full?"
            ) from err
        self._begun = True

    def close(self) -> None:
        if not self._begun:  # a map without a pixel of data
            self.add(np.empty(0, object), [])


@contextlib.contextmanager
def _constant_date(pyogrio: Any) -> Iterator[None]:
    """GDAL's date of writing, which is the whole process's, is ours for this block."""
    with _DATE_LOCK:
        before = pyogrio.get_gdal_config_option(_DATE_OPTION)
        pyogrio.set_gdal_config_options({_DATE_OPTION: _NO_DATE})
        try:
            yield
        finally:
            pyogrio.set_gdal_config_options({_DATE_OPTION: before})


class _GeoJSON:
    """A feature a line, written as they come."""

    def __init__(self, shapely: Any, stream: IO[str]) -> None:
        self._shapely, self._stream = shapely, stream
        self._between = "\n"
        stream.write('{"type":"FeatureCollection",')
        stream.write(f'"{_CUT_TAG}":{json.dumps(_CUT_TEXT)},"features":[')

    def add(self, geometries: npt.NDArray[Any], fields: list[_Fields]) -> None:
        shapely = self._shapely
        for content, (index, name, pixels, area) in zip(geometries, fields, strict=True):
            geometry = shapely.geometry.mapping(
                shapely.geometry.polygon.orient(shapely.from_wkb(content))
            )
            feature = {
                "type": "Feature",
                "properties": {
                    "class": index, "name": name, "pixels": pixels,
                    "area_m2": None if area is None else round(area, 3),
                },
                "geometry": geometry,
            }  # fmt: skip
            self._stream.write(self._between)
            json.dump(feature, self._stream, ensure_ascii=False, separators=(",", ":"))
            self._between = ",\n"

    def close(self) -> None:
        self._stream.write("\n]}\n")
