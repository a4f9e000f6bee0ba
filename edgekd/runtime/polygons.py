"""A class map as polygons, small enough to send down: GeoPackage or GeoJSON.

Rows come a block at a time. Specks take the class around them before anything is traced (GDAL's
sieve, with rows of the neighbouring blocks as context): a noisy map has millions of them. Polygons
that reach the block's last row wait for the next block and are joined there; all others are
finished: outlines are simplified, coordinates become the map's. Memory is a block or two and the
polygons that are still open.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from edgekd.contracts.tensors import MAP_NODATA, ClassSpec
from edgekd.errors import OutputError

SUFFIXES = (".gpkg", ".geojson")
#: rows of a neighbouring block that are looked at, at most
_MOST_CONTEXT = 64
#: GeoPackage asks for a time of writing; the same map is to give the same bytes.
_NO_DATE = "1970-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Outline:
    """How polygons are drawn.

    Attributes:
        simplify_px: a simplified outline stays within this of the exact one (Douglas-Peucker,
            topology of each polygon kept); 0 keeps every corner.
        min_area_px: areas below this take the class of their largest neighbour, and are dropped
            where they have none.
    """

    simplify_px: float = 1.0
    min_area_px: int = 16


@dataclass(frozen=True)
class _Shapes:
    """Polygons that are finished.

    Attributes:
        index: class of each.
        drawn: simplified, px.
        pixels: of the exact outline.
    """

    index: npt.NDArray[np.int64]
    drawn: npt.NDArray[Any]
    pixels: npt.NDArray[np.int64]


def require_polygon_place(path: Path) -> None:
    """Raise unless ``path`` names a format that is written.

    Raises:
        OutputError: another suffix than .gpkg or .geojson.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(
            f"polygons are a GeoPackage or GeoJSON: give a name that ends in .gpkg or .geojson, "
            f"received {path}"
        )


def write_polygons(
    path: Path,
    blocks: Iterable[tuple[int, UInt8Array]],
    classes: list[ClassSpec],
    raster: Raster,
    areas_m2: npt.NDArray[np.float64] | None,
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
        OutputError: another suffix, the place cannot be written, or GeoJSON of a scene whose CRS
            has no longitude and latitude.
        EnvironmentLacksError: shapely, or pyogrio for GeoPackage, is not installed.
    """
    require_polygon_place(path)
    shapely = require("shapely", "geo", "write polygons")
    names = {item.index: item.name for item in classes}
    geometries: list[bytes] = []
    fields: list[tuple[int, str, int, float | None]] = []
    affine = _affine(raster)
    lonlat = path.suffix.lower() == ".geojson" and raster.crs is not None
    for some in _shapes(shapely, _sieved(blocks, outline.min_area_px), outline):
        middle = shapely.get_y(shapely.centroid(some.drawn))
        placed = shapely.transform(some.drawn, affine) if affine else some.drawn
        if lonlat:
            placed = _to_lonlat(shapely, placed, raster, path)
        geometries += shapely.to_wkb(shapely.normalize(placed)).tolist()
        areas = [None] * len(some.index)
        if areas_m2 is not None:  # of the pixels in the polygon's middle row
            rows = np.clip(middle.astype(int), 0, len(areas_m2) - 1)
            areas = (some.pixels * areas_m2[rows]).tolist()
        fields += [
            (int(index), names.get(int(index), ""), int(pixels), area)
            for index, pixels, area in zip(some.index, some.pixels, areas, strict=True)
        ]
    with publish_file(path) as part:
        if path.suffix.lower() == ".gpkg":
            _write_geopackage(part, geometries, fields, raster)
        else:
            _write_geojson(shapely, part, geometries, fields)
    return len(fields)


def _affine(raster: Raster) -> Any:
    step = raster.transform
    if step is None:
        return None

    def place(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        x, y = points[:, 0], points[:, 1]
        return np.column_stack([step.a * x + step.b * y + step.c, step.d * x + step.e * y + step.f])

    return place


def _to_lonlat(shapely: Any, geometry: Any, raster: Raster, path: Path) -> Any:
    with gdal_environment() as rasterio:
        from rasterio.warp import transform

        target = rasterio.crs.CRS.from_epsg(4326)

        def place(points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
            x, y = transform(raster.crs, target, points[:, 0], points[:, 1])[:2]
            found = np.round(np.column_stack([x, y]), 7)  # a centimetre
            if not np.isfinite(found).all():
                raise _no_lonlat(path, raster, "it gives no number")
            return found

        try:
            return shapely.transform(geometry, place)
        except gdal_failures(rasterio) as err:
            raise _no_lonlat(path, raster, cause_text(err)) from err


def _no_lonlat(path: Path, raster: Raster, why: str) -> OutputError:
    return OutputError(
        f"{path} cannot be written: GeoJSON is in longitude and latitude, which do not follow from "
        f"the CRS and place of {raster.path} ({why}); write a GeoPackage: a name that ends in .gpkg"
    )


def _sieved(
    blocks: Iterable[tuple[int, UInt8Array]], min_area_px: int
) -> Iterator[tuple[int, UInt8Array]]:
    """The same rows without areas below a size; rows around them decide with them."""
    if min_area_px < 2:
        yield from blocks
        return
    context = min(min_area_px, _MOST_CONTEXT)
    above: UInt8Array | None = None
    held: tuple[int, UInt8Array] | None = None
    for y0, values in blocks:
        if held is not None:
            if len(held[1]) < context:  # too thin to be context; joined with what follows
                held = (held[0], np.concatenate([held[1], values]))
                continue
            yield held[0], _sieve(above, held[1], values[:context], min_area_px)
            above = held[1][-context:]
        held = (y0, values)
    if held is not None:
        yield held[0], _sieve(above, held[1], None, min_area_px)


def _sieve(
    above: UInt8Array | None, values: UInt8Array, below: UInt8Array | None, size: int
) -> UInt8Array:
    with gdal_environment():
        from rasterio.features import sieve

        parts = [part for part in (above, values, below) if part is not None]
        rows = np.concatenate(parts)
        result = sieve(rows, size, mask=rows != MAP_NODATA, connectivity=4)
        start = 0 if above is None else len(above)
        clean: UInt8Array = result[start : start + len(values)]
        clean[values == MAP_NODATA] = MAP_NODATA
        return clean


def _shapes(
    shapely: Any, blocks: Iterable[tuple[int, UInt8Array]], outline: Outline
) -> Iterator[_Shapes]:
    """Finished polygons, a block's at a time, in an order that depends on the map alone."""
    open_at, open_ = np.empty(0, np.int64), np.empty(0, object)
    bottom = 0
    for y0, values in blocks:
        bottom = y0 + len(values)
        index, found = _polygonize(shapely, values, y0)
        upper = shapely.bounds(found)[:, 1] <= y0
        touching = np.concatenate([open_, found[upper]])
        at = np.concatenate([open_at, index[upper]])
        joined, joined_at = [found[~upper]], [index[~upper]]
        for value in np.unique(at):
            # Parts of one class that only touch at a corner stay apart, as within a block.
            parts = shapely.get_parts(shapely.union_all(touching[at == value]))
            joined.append(parts)
            joined_at.append(np.full(len(parts), value))
        every, every_at = np.concatenate(joined), np.concatenate(joined_at)
        still = shapely.bounds(every)[:, 3] >= bottom
        open_at, open_ = every_at[still], every[still]
        yield _finished(shapely, every_at[~still], every[~still], outline)
    yield _finished(shapely, open_at, open_, outline)


def _polygonize(
    shapely: Any, values: UInt8Array, y0: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    """(class, polygon) of every area of a block; all rings are made in one go."""
    index: list[int] = []
    owner: list[int] = []
    rings: list[npt.NDArray[np.float64]] = []
    with gdal_environment() as rasterio:
        from rasterio.features import shapes

        move = rasterio.Affine.translation(0, y0)
        for traced, value in shapes(values, mask=values != MAP_NODATA, transform=move):
            for ring in traced["coordinates"]:
                rings.append(np.array(ring))
                owner.append(len(index))
            index.append(int(value))
    if not rings:
        return np.empty(0, np.int64), np.empty(0, object)
    number = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    made = shapely.linearrings(np.concatenate(rings), indices=number)
    return np.array(index), shapely.polygons(made, indices=np.array(owner))


def _finished(
    shapely: Any, index: npt.NDArray[np.int64], exact: npt.NDArray[Any], outline: Outline
) -> _Shapes:
    pixels = np.rint(shapely.area(exact)).astype(np.int64)
    large = pixels >= outline.min_area_px
    index, exact, pixels = index[large], exact[large], pixels[large]
    x0, y0, x1, y1 = shapely.bounds(exact).T if len(exact) else np.empty((4, 0))
    order = np.lexsort((index, x1, y1, x0, y0))
    drawn = exact[order]
    if outline.simplify_px and len(drawn):
        simple = shapely.simplify(drawn, outline.simplify_px, preserve_topology=True)
        good = shapely.is_valid(simple) & ~shapely.is_empty(simple)
        drawn = np.where(good, simple, drawn)
    return _Shapes(index[order], drawn, pixels[order])


def _write_geopackage(
    part: Path,
    geometries: list[bytes],
    fields: list[tuple[int, str, int, float | None]],
    raster: Raster,
) -> None:
    pyogrio = require("pyogrio", "geo", "write GeoPackage files")
    columns = list(zip(*fields, strict=True)) if fields else [(), (), (), ()]
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": _NO_DATE})
    try:
        with warnings.catch_warnings():  # a picture has no CRS, and neither have its polygons
            warnings.filterwarnings("ignore", message=".*crs.* was not provided")
            pyogrio.raw.write(
                part,
                np.array(geometries, dtype=object),
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
                crs=None if raster.crs is None else raster.crs.to_wkt(),
            )
    except (pyogrio.errors.DataSourceError, pyogrio.errors.FieldError, RuntimeError) as err:
        raise OutputError(f"{part.parent} cannot be written ({err}); is the disk full?") from err
    finally:
        pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": None})


def _write_geojson(
    shapely: Any,
    part: Path,
    geometries: list[bytes],
    fields: list[tuple[int, str, int, float | None]],
) -> None:
    with part.open("w", encoding="utf-8") as stream:
        stream.write('{"type":"FeatureCollection","features":[')
        for number, (content, (index, name, pixels, area)) in enumerate(
            zip(geometries, fields, strict=True)
        ):
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
            stream.write(",\n" if number else "\n")
            json.dump(feature, stream, ensure_ascii=False, separators=(",", ":"))
        stream.write("\n]}\n")
