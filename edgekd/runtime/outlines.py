"""Areas of a class map as polygons, a block of rows at a time, in time linear in the pixels.

Specks take the class around them before anything is traced (GDAL's sieve, with rows of the
neighbouring blocks as context): a noisy map has millions of them. Polygons that reach the last row
of a block stay open and collect what follows below; they are united once, when they end. What goes
on for ever is cut, since a background with islands would be one polygon of the whole scene: at rows
that are multiples of :data:`CUT_ROWS` an open polygon ends that began as many rows above, and at
the end of a block one that has :data:`CUT_CORNERS`; its rest begins anew below. Anything smaller is
never cut, so memory is what two such stretches of rows hold, whatever the scene's height.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.contracts.imageio import UInt8Array, gdal_environment
from edgekd.contracts.optional import require
from edgekd.contracts.tensors import MAP_NODATA

#: rows that an open polygon may have before it is cut, and the grid it is cut at
CUT_ROWS = 4096
#: corners that an open polygon may have before it is cut at the end of a block
CUT_CORNERS = 1 << 18
#: rows of a neighbouring block that are looked at, at most
_MOST_CONTEXT = 64
#: holes up to which GEOS simplifies a polygon: it looks at every hole for every corner
_GEOS_HOLES = 1000

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shapes:
    """Polygons that are finished.

    Attributes:
        index: class of each.
        drawn: simplified, px.
        pixels: of the exact outline.
    """

    index: Int64Array
    drawn: npt.NDArray[Any]
    pixels: Int64Array


@dataclass
class _Open:
    """A polygon that may go on below.

    Attributes:
        index: its class.
        top: first row.
        parts: what each block gave.
        corners: of all parts.
        cut: whether it goes on where something was cut.
    """

    index: int
    top: int
    parts: list[Any]
    corners: int
    cut: bool

    def take(self, other: _Open) -> None:
        """Go on with what was another."""
        self.top = min(self.top, other.top)
        self.parts += other.parts
        self.corners += other.corners
        self.cut |= other.cut

    def ends(self, bottom: int) -> bool:
        """Whether it is to be cut at this row."""
        tall = bottom % CUT_ROWS == 0 and bottom - self.top >= CUT_ROWS
        return tall or self.corners >= CUT_CORNERS


@dataclass(frozen=True)
class _Traced:
    """Areas of a block.

    Attributes:
        index: class of each.
        polygons: exact, px of the scene.
        first, last: number of the area at each column of the first and last row, -1 is none.
    """

    index: Int64Array
    polygons: npt.NDArray[Any]
    first: Int64Array
    last: Int64Array


def shapes(
    blocks: Iterable[tuple[int, UInt8Array]], simplify_px: float, min_area_px: int
) -> Iterator[Shapes]:
    """Finished polygons, a block's at a time, in an order that depends on the map alone.

    Args:
        blocks: (first row, class indices ``(n, W)``) from the top, without gaps.
        simplify_px: a simplified outline stays within this of the exact one; 0 keeps all corners.
        min_area_px: areas below this take the class of their largest neighbour, and are dropped
            where they have none.
    """
    shapely = require("shapely", "geo", "write polygons")
    open_: list[_Open] = []
    above = cut = None  # at each column of the last row: number in open_; class of what was cut
    for y0, values in _split(_sieved(blocks, min_area_px)):
        bottom = y0 + len(values)
        traced = _trace(shapely, values, y0)
        known, count = len(open_), len(traced.index)
        if above is None or cut is None:
            above = np.full(values.shape[1], -1)
            cut = np.full(values.shape[1], MAP_NODATA)
        before = np.array([item.index for item in open_] + [MAP_NODATA])  # -1 has no class
        below = np.append(traced.index, MAP_NODATA)[traced.first]
        same = (below == before[above]) & (below != MAP_NODATA)
        pairs = np.unique(np.column_stack([above[same], known + traced.first[same]]), axis=0)
        root = _joined(known + count, pairs)
        rest = np.zeros(count + 1, bool)
        rest[traced.first[(below == cut) & (below != MAP_NODATA)]] = True

        inside = np.ones(count + 1, bool)  # touches neither the first nor the last row
        inside[traced.first] = inside[traced.last] = False
        inside = inside[:count]
        outer = np.flatnonzero(~inside)
        some = traced.polygons[outer]
        tops, corners = shapely.bounds(some).reshape(-1, 4)[:, 1], shapely.get_num_coordinates(some)
        groups: dict[int, _Open] = {}
        fresh = (
            (known + number, _Open(index, int(top), [polygon], size, bool(rest[number])))
            for number, index, top, polygon, size in zip(
                outer.tolist(), traced.index[outer].tolist(), tops.tolist(), some.tolist(),
                corners.tolist(), strict=True,
            )
        )  # fmt: skip
        for number, item in (*enumerate(open_), *fresh):
            group = groups.setdefault(int(root[number]), item)
            if group is not item:
                group.take(item)

        at = np.append(root[known:], -1)[traced.last]  # group at each column of the last row
        reaching = set(np.unique(at[at >= 0]).tolist())
        going = {n for n in reaching if not groups[n].ends(bottom)}
        for n in reaching - going:
            groups[n].cut = True
        done = [group for n, group in groups.items() if n not in going]
        table = np.full(known + count + 1, -1)
        table[sorted(going)] = np.arange(len(going))
        open_ = [groups[n] for n in sorted(going)]
        above = table[at]
        cut = np.where(above < 0, values[-1], MAP_NODATA)
        yield _finished(
            shapely, traced.index[inside], traced.polygons[inside], done, simplify_px, min_area_px
        )
    none = np.empty(0, np.int64), np.empty(0, object)
    yield _finished(shapely, *none, open_, simplify_px, min_area_px)


def _joined(count: int, pairs: Int64Array) -> Int64Array:
    """The smallest number of those that each of ``count`` things is joined to, itself included."""
    parent = list(range(count))

    def top(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    for one, other in pairs.tolist():
        low, high = sorted((top(one), top(other)))
        parent[high] = low
    touched = np.unique(pairs)
    root = np.arange(count)
    root[touched] = [top(number) for number in touched.tolist()]
    return root


def _split(blocks: Iterable[tuple[int, UInt8Array]]) -> Iterator[tuple[int, UInt8Array]]:
    """The same rows; a block ends at every multiple of :data:`CUT_ROWS`."""
    for y0, values in blocks:
        start = 0
        while start < len(values):
            stop = min(len(values), start + CUT_ROWS - (y0 + start) % CUT_ROWS)
            yield y0 + start, values[start:stop]
            start = stop


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
        size = min(size, rows.size - 1)  # rasterio takes no larger one
        if size < 2:
            return values
        result = sieve(rows, size, mask=rows != MAP_NODATA, connectivity=4)
        start = 0 if above is None else len(above)
        clean: UInt8Array = result[start : start + len(values)]
        clean[values == MAP_NODATA] = MAP_NODATA
        return clean


def _trace(shapely: Any, values: UInt8Array, y0: int) -> _Traced:
    """Every area of a block; all rings are made in one go."""
    index: list[int] = []
    owner: list[int] = []
    rings: list[Float64Array] = []
    with gdal_environment() as rasterio:
        from rasterio.features import shapes as trace

        move = rasterio.Affine.translation(0, y0)
        for traced, value in trace(values, mask=values != MAP_NODATA, transform=move):
            for ring in traced["coordinates"]:
                rings.append(np.array(ring))
                owner.append(len(index))
            index.append(int(value))
    width = values.shape[1]
    if not rings:
        none = np.full(width, -1)
        return _Traced(np.empty(0, np.int64), np.empty(0, object), none, none)
    owners, points = np.array(owner), np.concatenate(rings)
    number = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    made = shapely.linearrings(points, indices=number)
    at = owners[number]
    return _Traced(
        np.array(index),
        shapely.polygons(made, indices=owners),
        _labels(points, number, at, y0, width),
        _labels(points, number, at, y0 + len(values), width),
    )


def _labels(
    points: Float64Array, ring: Int64Array, owner: Int64Array, line: int, width: int
) -> Int64Array:
    """Whose outline runs along a horizontal line, column by column; -1 is nobody's."""
    on = points[:, 1] == line
    start = np.flatnonzero(on[:-1] & on[1:] & (ring[:-1] == ring[1:]))
    x = np.sort(np.column_stack([points[start, 0], points[start + 1, 0]]), axis=1).astype(np.int64)
    long = x[:, 1] - x[:, 0]
    column = np.repeat(x[:, 0] - (np.cumsum(long) - long), long) + np.arange(long.sum())
    found = np.full(width, -1)
    found[column] = np.repeat(owner[start], long)
    return found


def _finished(
    shapely: Any,
    index: Int64Array,
    exact: npt.NDArray[Any],
    groups: list[_Open],
    simplify_px: float,
    min_area_px: int,
) -> Shapes:
    """Those of one block, and those that were open, in order."""
    more = np.empty(len(groups), object)
    for number, group in enumerate(groups):
        more[number] = group.parts[0] if len(group.parts) == 1 else shapely.union_all(group.parts)
    cut = np.array([False] * len(index) + [group.cut for group in groups], bool)
    index = np.append(index, np.array([group.index for group in groups], np.int64))
    exact = np.append(exact, more)
    pixels = np.rint(shapely.area(exact)).astype(np.int64)
    large = (pixels >= min_area_px) | cut  # what is left of a large one is no speck
    index, exact, pixels = index[large], exact[large], pixels[large]
    x0, y0, x1, y1 = shapely.bounds(exact).T if len(exact) else np.empty((4, 0))
    order = np.lexsort((index, x1, y1, x0, y0))
    drawn = exact[order]
    if simplify_px and len(drawn):
        drawn = _simplified(shapely, drawn, simplify_px)
    return Shapes(index[order], drawn, pixels[order])


def _simplified(shapely: Any, exact: npt.NDArray[Any], tolerance: float) -> npt.NDArray[Any]:
    """Within a tolerance of the exact ones, and valid."""
    simple = exact.copy()
    few = shapely.get_num_interior_rings(exact) <= _GEOS_HOLES
    simple[few] = shapely.simplify(exact[few], tolerance, preserve_topology=True)
    for number in np.flatnonzero(~few):
        within = tolerance
        simple[number] = simplify_by_ring(exact[number], within)
        while within > 0.5 and not shapely.is_valid(simple[number]):
            within /= 2
            simple[number] = simplify_by_ring(exact[number], within)
    good = shapely.is_valid(simple) & ~shapely.is_empty(simple)
    return np.where(good, simple, exact)


def simplify_by_ring(exact: Any, tolerance: float) -> Any:
    """A polygon of pixels with many holes, simplified ring by ring; in rare cases not valid.

    GEOS, which looks at every hole for every corner, takes the square of them: 80 s for 40 000.
    Here sides that meet others than in a common corner get back what they left out, until none do.
    """
    shapely = require("shapely", "geo", "write polygons")
    rings = shapely.get_rings(exact)
    points, ring = _corners(shapely, rings)
    some, of = _corners(shapely, shapely.simplify(rings, tolerance, preserve_topology=True))
    low = points.min(axis=0)
    width, height = (np.ptp(points, axis=0) + 1).astype(np.int64)

    def key(which: Int64Array, where: Float64Array) -> Int64Array:
        x, y = (where - low).astype(np.int64).T
        found: Int64Array = (which * height + y) * width + x
        return found

    kept = np.isin(key(ring, points), key(of, some))
    first = np.searchsorted(ring, np.arange(len(rings)))
    size = np.diff(first, append=len(ring))
    while True:
        # A side goes from a corner to the next that is kept, past those that were left out.
        at = np.flatnonzero(kept)
        last = np.append(ring[at[1:]] != ring[at[:-1]], True)
        to = np.append(at[1:], 0)
        to[last] = at[np.append(0, np.flatnonzero(last)[:-1] + 1)]
        past = np.mod(to - at, size[ring[at]]) - 1
        ends = np.stack([points[at], points[to]], axis=1)
        sides = shapely.linestrings(ends)
        loose = np.flatnonzero(past)
        one, other = shapely.STRtree(sides).query(sides[loose], predicate="intersects")
        one = loose[one]
        apart = np.ones(len(one), bool)
        for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
            apart &= (ends[one, a] != ends[other, b]).any(axis=1)
        wrong = np.unique(one[apart])
        if not len(wrong):
            break
        for side in wrong.tolist():
            base, count = first[ring[at[side]]], size[ring[at[side]]]
            kept[base + (at[side] - base + np.arange(past[side] + 1)) % count] = True
    drawn = shapely.linearrings(points[at], indices=ring[at])
    return shapely.polygons(drawn[0], holes=drawn[1:])


def _corners(shapely: Any, rings: npt.NDArray[Any]) -> tuple[Float64Array, Int64Array]:
    """Points and the ring of each, without the one that closes it."""
    points, ring = shapely.get_coordinates(rings, return_index=True)
    open_ = np.append(ring[1:] == ring[:-1], False)
    return points[open_], ring[open_]
