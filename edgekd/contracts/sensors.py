"""Sensors of a recipe: what each one measures, on what grid, and how one is derived from another.

A sample of a sensor set is ``{name: array}`` with the names and shapes that stand here; where the
files lie, and what is labelled, stands in the set itself (:mod:`edgekd.contracts.sensor_set`).
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pydantic

from edgekd.contracts.schema import Document

Positive = Annotated[float, pydantic.Field(gt=0)]
#: m; from a microscope's pixel to a planet's, so that no square of it overflows
GroundDistance = Annotated[float, pydantic.Field(ge=1e-9, le=1e9)]
Count = Annotated[int, pydantic.Field(ge=1)]
Name = Annotated[str, pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")]


def _rising(value: list[float]) -> list[float]:
    if not value[0] < value[1]:
        raise ValueError(f"a window is [low, high] with low < high, received {value}")
    return value


#: two wavelengths, nm, rising
Window = Annotated[
    list[Positive], pydantic.Field(min_length=2, max_length=2), pydantic.AfterValidator(_rising)
]


class DeclaredPower(Document):
    """What a device draws while it works, as its maker or a measurement says; never measured here.

    Attributes:
        watts: mean power while it works, W; 0 to 10^6.
        source: where the figure is from: a data sheet, a paper, a meter.
    """

    watts: float = pydantic.Field(ge=0, le=1e6)
    source: str = pydantic.Field(min_length=3)


class BandGrid(Document):
    """Evenly spaced wavelengths.

    Attributes:
        first, last: of the first and last band, nm.
        count: number of bands.
    """

    first: Positive
    last: Positive
    count: int = pydantic.Field(ge=2)


class BadBands(Document):
    """Rules by which bands of a spectral sensor are left out; what they took is listed.

    Attributes:
        windows_nm: wavelength windows, e.g. of water vapour ``[1340, 1450]``.
        bands: single bands, counted from 1.
        constant: bands that have one value all over the training pixels.
        noise_max: bands whose noise (median absolute difference of neighbouring pixels, as a
            standard deviation) is a larger part of their own standard deviation.
    """

    windows_nm: list[Window] = []
    bands: list[Count] = []
    constant: bool = True
    noise_max: Positive | None = None


class DeriveSpec(Document):
    """A sensor that is computed from another one.

    Attributes:
        source: name of the sensor that it is made from.
        bands: bands of the source, counted from 1 before bad ones are left out.
        nm: wavelengths; of each the nearest band is taken, at most one band's spacing away.
        windows_nm: of each window the mean of its good bands, as a broad filter would see it.
        camera: weighted mean over the bands: ``cie1931`` (the standard observer, as linear sRGB),
            or a CSV file with the columns nm, red, green, blue, relative to the sensor set.
    """

    source: Name = pydantic.Field(alias="from")
    bands: list[Count] | None = None
    nm: list[Positive] | None = None
    windows_nm: list[Window] | None = None
    camera: str | None = None

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> DeriveSpec:
        ways = ("bands", "nm", "windows_nm", "camera")
        given = [way for way in ways if getattr(self, way) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give one of {', '.join(ways)}; received {', '.join(given) or 'none'}"
            )
        return self

    @property
    def channels(self) -> int:
        """Number of channels that come out."""
        if self.camera is not None:
            return 3
        return len(self.bands or self.nm or self.windows_nm or [])


class SensorSpec(Document):
    """One sensor.

    Attributes:
        kind: ``image`` (a colour camera: becomes 8 bit as the runtime sees it), ``spectral``
            (reflectance per band), ``elevation`` (heights, m).
        channels: number of channels or bands, bad ones included.
        wavelengths_nm: of the bands, rising; a list, or first, last and count.
        gsd_m: ground sampling distance, m; all sensors of a sample lie on one grid.
        derive: how it is computed from another sensor; absent, the set has files of it.
        bad_bands: of spectral sensors.
        range: values of an image that become 0 and 255; absent, the 1st and 99th percentile over
            the training pixels of the set, all channels together.
        gamma: an image's value v in 0-1 becomes ``v ** (1 / gamma)`` before it is 8 bit.
        missing: whether a scene may lack it.
        power: what it draws while it works.
    """

    kind: Literal["image", "spectral", "elevation"]
    channels: int = pydantic.Field(ge=1)
    wavelengths_nm: list[Positive] | BandGrid | None = None
    gsd_m: GroundDistance
    derive: DeriveSpec | None = None
    bad_bands: BadBands | None = None
    range: Annotated[list[float], pydantic.Field(min_length=2, max_length=2)] | None = None
    gamma: Positive = 1.0
    missing: Literal["refuse", "allowed"] = "refuse"
    power: DeclaredPower | None = None

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> SensorSpec:
        if self.derive is not None and self.derive.channels != self.channels:
            raise ValueError(
                f"channels is {self.channels}, and derive makes {self.derive.channels}"
            )
        listed = self.bad_bands.bands if self.bad_bands is not None else []
        if max(listed, default=0) > self.channels:
            raise ValueError(
                f"bad_bands names band {max(listed)}, and there are {self.channels} channels"
            )
        if self.kind == "spectral":
            self._check_wavelengths()
        elif self.wavelengths_nm is not None or self.bad_bands is not None:
            raise ValueError(
                f"wavelengths_nm and bad_bands are of spectral sensors, not {self.kind}"
            )
        if self.kind != "image" and (self.range is not None or self.gamma != 1.0):
            raise ValueError(f"range and gamma are of images, not of kind {self.kind}")
        if self.kind == "elevation" and self.channels != 1:
            raise ValueError(f"elevation has one channel, received {self.channels}")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError(f"range must be [low, high] with low < high, received {self.range}")
        return self

    def _check_wavelengths(self) -> None:
        if self.derive is not None and self.derive.camera is None:
            if self.wavelengths_nm is not None:
                raise ValueError("the wavelengths of a derived sensor follow from its source")
            return
        if self.wavelengths_nm is None:
            raise ValueError(
                "a spectral sensor needs wavelengths_nm: a list, or {first: 380, last: 2500, "
                "count: 224}"
            )
        values = self.wavelengths()
        if len(values) != self.channels:
            raise ValueError(
                f"wavelengths_nm has {len(values)} values and channels is {self.channels}"
            )
        if values[-1] < 100:
            raise ValueError(
                f"wavelengths_nm ends at {values[-1]:g}: those are micrometres; multiply by 1000"
            )
        falls = np.flatnonzero(np.diff(values) <= 0)
        if len(falls):
            at = int(falls[0])
            raise ValueError(
                f"wavelengths_nm must rise; band {at + 2} has {values[at + 1]:g} nm after "
                f"{values[at]:g} nm"
            )

    def wavelengths(self) -> npt.NDArray[np.float64]:
        """Wavelengths of the bands, nm; empty where none are declared."""
        grid = self.wavelengths_nm
        if grid is None:
            return np.zeros(0)
        if isinstance(grid, BandGrid):
            return np.linspace(grid.first, grid.last, grid.count)
        return np.asarray(grid, dtype=np.float64)


Sensors = dict[Name, SensorSpec]
#: the camera that a student sees
VISUAL = "visual"


def check_sensors(sensors: Sensors) -> Sensors:
    """There must be a colour camera; derivations must name a sensor, and not go in a circle.

    Raises:
        ValueError: names the sensor that is at fault.
    """
    visual = sensors.get(VISUAL)
    if sensors and (visual is None or visual.kind != "image" or visual.channels != 3):
        found = "is not there" if visual is None else f"has {visual.channels} of {visual.kind}"
        raise ValueError(
            f"the camera that the student sees must be named {VISUAL}, of kind image with 3 "
            f"channels; it {found}"
        )
    if visual is not None and visual.missing == "allowed":
        raise ValueError(f"missing: allowed is not for {VISUAL}, which the student sees")
    for name, spec in sensors.items():
        seen, here = [name], spec
        while here.derive is not None:
            source = here.derive.source
            if source not in sensors:
                known = ", ".join(other for other in sensors if other != name)
                raise ValueError(
                    f"{seen[-1]} is derived from '{source}', no sensor (valid: {known})"
                )
            if source in seen:
                raise ValueError(f"sensors are derived in a circle: {' -> '.join([*seen, source])}")
            seen.append(source)
            here = sensors[source]
            if here.missing == "allowed" and spec.missing != "allowed":
                raise ValueError(
                    f"{name} is derived from {source}, which may be missing (missing: allowed), "
                    + (
                        f"and every scene needs {VISUAL}"
                        if name == VISUAL
                        else f"so {name} may be missing as well; say so of {name} too"
                    )
                )
        if spec.derive is not None:
            source_spec = sensors[spec.derive.source]
            if max(spec.derive.bands or [0]) > source_spec.channels:
                raise ValueError(
                    f"{name} takes band {max(spec.derive.bands or [0])} of {spec.derive.source}, "
                    f"which has {source_spec.channels}"
                )
            if spec.derive.bands is None and source_spec.kind != "spectral":
                raise ValueError(
                    f"{name} is derived by wavelength, and {spec.derive.source} has none"
                )
            if abs(spec.gsd_m - source_spec.gsd_m) > 1e-6 * source_spec.gsd_m:
                raise ValueError(
                    f"{name} has gsd_m {spec.gsd_m:g} and its source {spec.derive.source} "
                    f"{source_spec.gsd_m:g}; a derived sensor lies on its source's grid"
                )
    return sensors
