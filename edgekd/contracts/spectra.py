"""Bands of a spectral sensor: which ones are left out, and what other sensors see through them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekd.contracts.artifacts import read_text
from edgekd.contracts.schema import resolve_path
from edgekd.contracts.sensors import BadBands, DeriveSpec
from edgekd.errors import DatasetError

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Cause = Literal["window", "listed", "header", "empty", "constant", "noise"]

#: linear sRGB of XYZ (IEC 61966-2-1, D65)
XYZ_TO_SRGB = np.array(
    [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
)
#: (factor, peak nm, width below, width above) of each lobe (Wyman, Sloan and Shirley 2013, Simple
#: analytic approximations to the CIE XYZ color matching functions, JCGT 2(2), listing 1)
_LOBES = (
    ((1.056, 599.8, 37.9, 31.0), (0.362, 442.0, 16.0, 26.7), (-0.065, 501.1, 20.4, 26.2)),
    ((0.821, 568.8, 46.9, 40.5), (0.286, 530.9, 16.3, 31.1)),
    ((1.217, 437.0, 11.8, 36.0), (0.681, 459.0, 26.0, 13.8)),
)
CIE1931 = "cie1931"
#: of a camera's channel, what a single band that must be left out may carry at most
_NEGLIGIBLE = 1e-3
#: of a camera's sensitivity, what must lie within the bands
_COVERED = 0.9
#: a median absolute difference of two normal values is 0.6745 times sqrt(2) times their deviation
_MEDIAN_TO_SIGMA = 1.4826 / np.sqrt(2.0)


@dataclass(frozen=True)
class DroppedBand:
    """A band that networks are not given.

    Attributes:
        band: counted from 1, before any is left out.
        nm: its wavelength, or None.
        cause: the rule that took it.
        text: the rule in words.
    """

    band: int
    nm: float | None
    cause: Cause
    text: str

    def __str__(self) -> str:
        nm = "" if self.nm is None else f" ({self.nm:.0f} nm)"
        return f"band {self.band}{nm}: {self.text}"


def band_runs(bands: Sequence[DroppedBand]) -> list[str]:
    """Bands in words, neighbours that share a reason in one line."""
    runs: list[list[DroppedBand]] = []
    for item in sorted(bands, key=lambda found: found.band):
        last = runs[-1][-1] if runs else None
        if last is not None and (last.band + 1, last.text) == (item.band, item.text):
            runs[-1].append(item)
        else:
            runs.append([item])
    return [str(run[0]) if len(run) == 1 else _run(run[0], run[-1]) for run in runs]


def _run(first: DroppedBand, last: DroppedBand) -> str:
    nm = "" if first.nm is None else f" ({first.nm:.0f}-{last.nm:.0f} nm)"
    return f"bands {first.band}-{last.band}{nm}: {first.text}"


def spacing_nm(wavelengths: DoubleArray) -> DoubleArray:
    """Width that each band stands for, nm: half the way to either neighbour, twice at an end."""
    if len(wavelengths) < 2:
        return np.ones(len(wavelengths))
    return np.gradient(wavelengths)


def find_bad(
    rules: BadBands | None,
    wavelengths: DoubleArray,
    training: list[tuple[FloatArray, BoolArray]],
    marked: BoolArray,
    scenes: str,
) -> list[DroppedBand]:
    """Bands to leave out, by the first rule that takes each; in the order of the bands.

    Without rules only what the files themselves mark is left out.

    Args:
        rules: of the recipe.
        wavelengths: ``(bands,)`` nm.
        training: of every scene the planes ``(bands, H, W)``, NaN without data, and which pixels
            train; no other pixel has a say.
        marked: ``(bands,)``, True where a file calls the band bad.
        scenes: where the pixels are from, in words.
    """
    found: dict[int, DroppedBand] = {}

    def drop(at: int, cause: Cause, text: str) -> None:
        nm = float(wavelengths[at]) if len(wavelengths) else None
        found.setdefault(at, DroppedBand(at + 1, nm, cause, text))

    for place in np.flatnonzero(marked):
        drop(int(place), "header", "marked bad in its file (bbl)")
    if rules is None:
        return [found[at] for at in sorted(found)]
    for low, high in rules.windows_nm:
        for place in np.flatnonzero((wavelengths >= low) & (wavelengths <= high)):
            drop(int(place), "window", f"within bad_bands.windows_nm {low:g}-{high:g} nm")
    for band in rules.bands:
        drop(band - 1, "listed", "listed in bad_bands.bands")
    if rules.constant:
        for at, value in constants(training).items():
            text = f"constant, {value:g}" if np.isfinite(value) else "without data"
            cause: Cause = "constant" if np.isfinite(value) else "empty"
            drop(at, cause, f"{text} in all training pixels of {scenes}")
    if rules.noise_max is not None:
        for at in range(len(marked)):
            if at in found:
                continue
            share = noise_share([planes[at] for planes, _ in training], [m for _, m in training])
            if share is not None and share > rules.noise_max:
                drop(at, "noise", f"noise is {share:.2f} of its deviation (noise_max "
                     f"{rules.noise_max:g})")  # fmt: skip
    return [found[at] for at in sorted(found)]


def constants(training: list[tuple[FloatArray, BoolArray]]) -> dict[int, float]:
    """Bands (counted from 0) of one value all over the training pixels; NaN where of none."""
    if not any(mask.any() for _, mask in training):
        return {}
    found: dict[int, float] = {}
    for at in range(len(training[0][0])):
        low, high = np.inf, -np.inf
        for planes, mask in training:
            values = planes[at][mask]
            values = values[np.isfinite(values)]
            if values.size:
                low, high = min(low, float(values.min())), max(high, float(values.max()))
        if not low < high:
            found[at] = low if low == high else float("nan")
    return found


def noise_share(planes: list[FloatArray], masks: list[BoolArray]) -> float | None:
    """Noise of a band as part of its standard deviation, over training pixels; None without any.

    Noise is the median absolute difference of horizontal neighbours, both of them training pixels
    with data, as the standard deviation of a normal value (that of a difference is sqrt(2) times).
    """
    steps, values = [], []
    for plane, mask in zip(planes, masks, strict=True):
        usable = mask & np.isfinite(plane)
        pairs = usable[:, 1:] & usable[:, :-1]
        steps.append(np.abs(np.diff(plane.astype(np.float64), axis=1))[pairs])
        values.append(plane[usable].astype(np.float64))
    step, value = np.concatenate(steps), np.concatenate(values)
    if not step.size or not value.std() > 0:
        return None
    return float(_MEDIAN_TO_SIGMA * np.median(step) / value.std())


def observer(nm: DoubleArray) -> DoubleArray:
    """CIE 1931 2-degree colour matching functions x, y, z at wavelengths, ``(3, n)``.

    Wyman, Sloan and Shirley's analytic fit; within 0.04 of the tables (its x at 450 nm).
    """
    curves = np.zeros((3, len(nm)))
    for curve, lobes in zip(curves, _LOBES, strict=True):
        for factor, peak, below, above in lobes:
            width = np.where(nm < peak, below, above)
            curve += factor * np.exp(-0.5 * ((nm - peak) / width) ** 2)
    return curves


def camera_weights(camera: str, wavelengths: DoubleArray, base: Path, name: str) -> DoubleArray:
    """What each band adds to a camera's channels, ``(3, bands)``; every row adds up to 1.

    A reflector of 1 everywhere gives 1 in all channels. ``cie1931``: XYZ under light of equal
    energy at all wavelengths, each divided by that of the white reflector and multiplied by that
    of sRGB's white, then linear sRGB; colours outside sRGB get values below 0 or above 1.

    Args:
        camera: ``cie1931`` or a CSV file.
        wavelengths: ``(bands,)`` nm, rising.
        base: folder that the file's name counts from.
        name: of the source, for messages.

    Raises:
        DatasetError: the bands see less than nine tenths of what the camera does, or the file is
            not what it should be.
    """
    grid, curves = _response(camera, base)
    width = spacing_nm(wavelengths)
    low, high = wavelengths[0] - width[0] / 2, wavelengths[-1] + width[-1] / 2
    inside = (grid >= low) & (grid <= high)
    # a band further from its neighbours than a curve is broad sees nothing of what lies between
    nearest_nm = np.abs(grid[:, None] - wavelengths[None, :]).min(1)
    seen = inside & (nearest_nm <= _FARTHEST_NM)
    shares = np.abs(curves[:, seen]).sum(1) / np.abs(curves).sum(1)
    if shares.min() < _COVERED:
        raise DatasetError(
            f"{name} has bands from {wavelengths[0]:.0f} to {wavelengths[-1]:.0f} nm, which see "
            f"{100 * shares.min():.0f} % of what camera {camera} does, expected at least "
            f"{100 * _COVERED:.0f} %; derive by bands, nm or windows_nm instead"
        )
    at_bands = np.stack([np.interp(wavelengths, grid, row, left=0, right=0) for row in curves])
    weights = at_bands * width
    weights /= weights.sum(1, keepdims=True)
    if camera == CIE1931:
        white = np.linalg.inv(XYZ_TO_SRGB).sum(1)
        weights = XYZ_TO_SRGB @ (weights * white[:, None])
    return weights


#: widest that bands of a camera may lie apart is twice this
_FARTHEST_NM = 25.0


def _response(camera: str, base: Path) -> tuple[DoubleArray, DoubleArray]:
    """Wavelengths nm, and curves ``(3, n)``, of a camera."""
    if camera == CIE1931:
        grid = np.arange(380.0, 781.0)
        return grid, observer(grid)
    path = camera_file(camera, base)
    assert path is not None
    reader = csv.reader(io.StringIO(read_text(path)))
    expected = ["nm", "red", "green", "blue"]
    try:
        rows = [row for row in reader if row]
        if [item.strip().lower() for item in rows[0]] != expected:
            raise DatasetError(f"{path} must begin with the line {','.join(expected)}")
        values = np.array([[float(item) for item in row] for row in rows[1:]], dtype=np.float64)
    except (csv.Error, ValueError) as err:
        raise DatasetError(f"{path} is no table of numbers: {err}") from err
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] != 4:
        raise DatasetError(f"{path} needs two rows or more of {', '.join(expected)}")
    if not np.isfinite(values).all() or (np.diff(values[:, 0]) <= 0).any():
        raise DatasetError(f"{path}: nm must rise from row to row, and every number be finite")
    if (values[:, 1:] < 0).any() or not (values[:, 1:].sum(0) > 0).all():
        raise DatasetError(f"{path}: sensitivities must be 0 or more, and of no colour all 0")
    grid = np.arange(np.ceil(values[0, 0]), values[-1, 0] + 0.5)
    curves = np.stack([np.interp(grid, values[:, 0], values[:, i]) for i in (1, 2, 3)])
    return grid, curves


def camera_file(camera: str, base: Path) -> Path | None:
    """The file of a camera; None where it is none.

    Raises:
        InputError: its name holds a variable that is not set.
    """
    return None if camera == CIE1931 else resolve_path(camera, base)


@dataclass(frozen=True)
class Mixing:
    """How a derived sensor's channels are made of its source's bands.

    Attributes:
        weights: ``(channels, bands)`` float64; only bands with a weight are looked at.
        wavelengths_nm: ``(channels,)`` of the channels, empty where they have none (a camera).
        notes: for the report.
    """

    weights: DoubleArray
    wavelengths_nm: DoubleArray
    notes: tuple[str, ...]

    def __call__(self, planes: FloatArray) -> FloatArray:
        """Channels ``(channels, H, W)`` float32 of planes ``(bands, H, W)``; NaN where any used
        band is."""
        result = np.empty((len(self.weights), *planes.shape[1:]), dtype=np.float32)
        for out, weights in zip(result, self.weights, strict=True):
            used = np.flatnonzero(weights)
            if len(used) == 1 and weights[used[0]] == 1:
                out[...] = planes[used[0]]
                continue
            total = np.zeros(planes.shape[1:], dtype=np.float64)
            for at in used:
                total += weights[at] * planes[at]
            out[...] = total
        return result


def plan_mixing(
    name: str,
    spec: DeriveSpec,
    wavelengths: DoubleArray,
    bands: int,
    dropped: list[DroppedBand],
    base: Path,
) -> Mixing:
    """How to derive a sensor; it rests on no band that is bad.

    Windows take the mean of their good bands. A camera may lose bands that carry less than a
    thousandth of each channel. Bands that are only noisy may be used otherwise.

    Args:
        name: of the sensor that is derived.
        spec: how.
        wavelengths, bands: of the source, bad ones included.
        dropped: bad bands of the source.
        base: folder that a camera's file counts from.

    Raises:
        DatasetError: no band where one is asked for, or a bad one.
    """
    bad = {item.band - 1: item for item in dropped}
    unusable = {at: item for at, item in bad.items() if item.cause != "noise"}
    notes: list[str] = []
    weights = np.zeros((spec.channels, bands))
    if spec.camera is not None:
        weights = camera_weights(spec.camera, wavelengths, base, spec.source)
        share = np.abs(weights) / np.abs(weights).sum(1, keepdims=True)
        lost = [at for at in unusable if share[:, at].max() > 0]
        for at in lost:
            if share[:, at].max() > _NEGLIGIBLE:
                raise _rests_on(name, spec, unusable[at])
        weights[:, lost] = 0
        weights /= weights.sum(1, keepdims=True)
        if lost:
            numbers = ", ".join(str(at + 1) for at in sorted(lost))
            notes.append(f"{name}: camera {spec.camera} goes without band {numbers} of "
                         f"{spec.source}, bad and under 0.1 % of each channel")  # fmt: skip
        return Mixing(weights, np.zeros(0), tuple(notes))
    centres: list[float] = []
    if spec.windows_nm is not None:
        for row, (low, high) in zip(weights, spec.windows_nm, strict=True):
            inside = np.flatnonzero((wavelengths >= low) & (wavelengths <= high))
            good = [int(at) for at in inside if at not in bad]
            if not good:
                why = f"all {len(inside)} are bad" if len(inside) else "there are none"
                raise DatasetError(
                    f"{name} needs a good band of {spec.source} within {low:g}-{high:g} nm, and "
                    f"{why}; change windows_nm"
                )
            row[good] = 1 / len(good)
            centres.append(float(wavelengths[good].mean()))
        return Mixing(weights, np.asarray(centres), ())
    if spec.bands is not None:
        places = [band - 1 for band in spec.bands]
    else:
        places = [_nearest_band(name, spec.source, nm, wavelengths) for nm in spec.nm or []]
    for row, at in zip(weights, places, strict=True):
        if at in unusable:
            raise _rests_on(name, spec, unusable[at])
        row[at] = 1
    found = wavelengths[places] if len(wavelengths) else np.zeros(0)
    return Mixing(weights, found, ())


def _nearest_band(name: str, source: str, nm: float, wavelengths: DoubleArray) -> int:
    at = int(np.abs(wavelengths - nm).argmin())
    width = float(spacing_nm(wavelengths)[at]) if len(wavelengths) > 1 else np.inf
    if abs(wavelengths[at] - nm) > width:
        raise DatasetError(
            f"{name} asks for {nm:g} nm, and the nearest band of {source} has "
            f"{wavelengths[at]:.1f} nm, more than one band's spacing ({width:.1f} nm) away"
        )
    return at


def _rests_on(name: str, spec: DeriveSpec, band: DroppedBand) -> DatasetError:
    how = "camera, bands, nm or windows_nm"
    return DatasetError(
        f"{name} would rest on a bad band of {spec.source}, {band}; change its derive ({how}), or "
        "the rule in bad_bands"
    )
