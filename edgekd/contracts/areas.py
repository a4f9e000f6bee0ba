"""How much ground a pixel covers, by row: from any CRS, or not at all.

A projected metre is a metre on the ground only where the projection says so: 100 m² of Mercator are
25 m² at 60 degrees. So PROJ takes pixels of the scene to longitude and latitude on the CRS's own
ellipsoid, and their area is measured there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

#: by how much the ground may differ from the projection's own metres all over a scene for these to
#: stand. A UTM zone needs it (0.9992 m² of its metres for one of ground in its middle, 1.0020 at 3
#: degrees from it): pixels of 10 cm are 0.01 m² there, as any GIS counts on the plane.
EVEN = 0.002
#: by how much a pixel may differ from the mean of its row. Areas of classes are sums of rows, so
#: this is the most they can be wrong by; a row that crosses a continent is beyond it.
MOST_UNEVEN = 0.01

_EQUATOR_M, _FLATTENING = 6378137.0, 1 / 298.257223563  # WGS 84
#: half of the distance that slopes are taken over: PROJ's inverses stop at 1e-11 radians or so
_STEP_M = 10.0
#: rows that are looked at; between them areas are interpolated, within 2e-5 for all of Mercator
_ROWS = 513
#: places in a row, from end to end, and their weights (Simpson)
_COLUMNS = np.arange(9) / 8
_WEIGHTS = np.array([1, 4, 2, 4, 2, 4, 2, 4, 1]) / 24
#: places in a pixel from top to bottom (Gauss): pixels of whole degrees are not flat
_IN_PIXEL = 0.5 + np.array([-1, 1]) / np.sqrt(12)


def row_areas_m2(
    rasterio: Any, crs: Any, transform: Any, height: int, width: int
) -> FloatArray | None:
    """Area of a pixel of each row on the ground, ``(height,)`` m², or None where none can be told.

    Longitude and latitude: the ellipsoid's area between the row's parallels. Anything else: what
    PROJ says; where that is within :data:`EVEN` of the projection's own metres, those, the same
    for all rows. Where pixels differ along a row, its mean.

    Args:
        rasterio: the module, inside its environment.
        crs: rasterio ``CRS``.
        transform: affine, pixels to CRS.
        height, width: of the scene, px.

    Returns:
        None where the CRS has no datum (a local grid), the scene leaves its map (so that PROJ has
        no place for it), or pixels of a row differ by more than :data:`MOST_UNEVEN`.

    Raises:
        rasterio's errors: the CRS or a place in it makes no sense to PROJ.
    """
    base, derived = _geographic(crs.to_dict(projjson=True))
    if base is None:
        return None
    ground = rasterio.crs.CRS.from_user_input(base)
    globe = _ellipsoid(base)
    radians = float(ground.units_factor[1])
    if not derived and not (transform.b or transform.d):
        return _of_degrees(transform, height, radians, globe)

    metres = float(crs.linear_units_factor[1]) if crs.is_projected else radians * globe[0]
    declared = abs(float(transform.determinant)) * metres**2
    if not 0 < declared < np.inf:
        return None
    rows = np.unique(np.linspace(0, height - 1, min(height, _ROWS)).round())
    step = _STEP_M / metres
    at = np.broadcast_arrays((rows[:, None] + _IN_PIXEL)[..., None], width * _COLUMNS)
    x, y, sides = _crosses(transform, at[0], at[1], step)
    right, below, left, above = _in_space(_to_ground(crs, ground, x, y) * radians, globe)
    across, down = (right - left) / (2 * step) * sides[0], (below - above) / (2 * step) * sides[1]
    areas = np.linalg.norm(np.cross(across, down), axis=-1).mean(axis=1)  # of the places in a pixel

    if (np.abs(areas / declared - 1) <= EVEN).all():
        return np.full(height, declared)
    means: FloatArray = areas @ _WEIGHTS
    # false of NaN (off the map), and of no area at all
    if not (np.abs(areas - means[:, None]) < MOST_UNEVEN * means[:, None]).all():
        return None
    return np.asarray(np.interp(np.arange(height), rows, means), np.float64)


def _geographic(described: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """PROJJSON of the longitude and latitude under a CRS, if any; whether others derive from it."""
    derived = False
    kind = described.get("type")
    while True:
        if "source_crs" in described:  # with a way to another datum
            described = described["source_crs"]
        elif "components" in described:  # with heights
            described = described["components"][0]
        elif "base_crs" in described:
            described, derived = described["base_crs"], True
        else:
            break
        kind = described.get("type", "GeographicCRS")  # PROJ before 9 leaves it out
    return ({**described, "type": kind} if kind == "GeographicCRS" else None), derived


def _ellipsoid(base: dict[str, Any]) -> tuple[float, float]:
    """Radius of the equator, m, and squared eccentricity."""
    figure = (base.get("datum") or base["datum_ensemble"])["ellipsoid"]

    def metres(name: str) -> float:
        value = figure[name]
        if not isinstance(value, dict):
            return float(value)
        unit = value["unit"]
        return float(value["value"]) * (
            float(unit["conversion_factor"]) if isinstance(unit, dict) else 1.0
        )

    radius = metres("radius" if "radius" in figure else "semi_major_axis")
    flattening = 0.0
    if "semi_minor_axis" in figure:
        flattening = 1 - metres("semi_minor_axis") / radius
    elif figure.get("inverse_flattening"):
        flattening = 1 / float(figure["inverse_flattening"])
    if not flattening and radius == _EQUATOR_M:
        flattening = _FLATTENING  # the auxiliary sphere of web maps: its latitudes are WGS 84's
    return radius, flattening * (2 - flattening)


def _of_degrees(
    transform: Any, height: int, unit: float, globe: tuple[float, float]
) -> FloatArray | None:
    latitude = (transform.f + transform.e * np.arange(height + 1)) * unit
    if np.abs(latitude).max() > np.pi / 2 + 1e-9:
        return None
    areas: FloatArray = abs(transform.a) * unit * np.abs(np.diff(_area_to_equator(latitude, globe)))
    return areas


def _area_to_equator(latitude: FloatArray, globe: tuple[float, float]) -> FloatArray:
    """Area between parallels (radians) and the equator, m² for each radian of longitude.

    Snyder, "Map Projections", USGS 1987, equation 3-12.
    """
    radius, squared = globe
    sine = np.sin(np.clip(latitude, -np.pi / 2, np.pi / 2))
    if not squared:
        return np.asarray(radius**2 * sine, np.float64)
    e = float(np.sqrt(squared))
    half = radius**2 * (1 - squared) / 2
    area: FloatArray = half * (sine / (1 - squared * sine**2) + np.arctanh(e * sine) / e)
    return area


def _crosses(
    transform: Any, rows: FloatArray, columns: FloatArray, step: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """x and y, each ``(4, ...)``, a step right of places (px), below, left and above.

    The step is in the CRS's units, along rows and columns; so are the sides of a pixel, the third.
    """
    sides = np.array([[transform.a, transform.d], [transform.b, transform.e]], np.float64)
    lengths: FloatArray = np.hypot(sides[:, 0], sides[:, 1])
    moves = step * sides / lengths[:, None]
    dx, dy = (np.concatenate([move, -move]).reshape(4, *[1] * rows.ndim) for move in moves.T)
    x = transform.a * columns + transform.b * rows + transform.c + dx
    y = transform.d * columns + transform.e * rows + transform.f + dy
    return x, y, lengths


def _to_ground(crs: Any, ground: Any, x: FloatArray, y: FloatArray) -> FloatArray:
    """Longitude and latitude of places, ``(2, ...)``, in the units of ``ground``."""
    from rasterio.warp import transform

    found = transform(crs, ground, x.ravel(), y.ravel())[:2]
    return np.array(found, np.float64).reshape(2, *x.shape)


def _in_space(lonlat: FloatArray, globe: tuple[float, float]) -> FloatArray:
    """Geocentric coordinates, m, ``(..., 3)``: they know no poles and no antimeridian."""
    radius, squared = globe
    good = np.isfinite(lonlat).all(axis=0) & (np.abs(lonlat[1]) <= np.pi / 2)
    longitude, latitude = np.where(good, lonlat, np.nan)
    normal = radius / np.sqrt(1 - squared * np.sin(latitude) ** 2)
    from_axis = normal * np.cos(latitude)
    return np.stack(
        [
            from_axis * np.cos(longitude),
            from_axis * np.sin(longitude),
            normal * (1 - squared) * np.sin(latitude),
        ],
        axis=-1,
    )
