"""Crops of sensor sets for training: sensors, labels, what a teacher answered there, and jitter.

Crop ``number`` is a function of the data, the seed and the number alone. Only training views are
looked at (:meth:`edgekd.contracts.sensor_set.SensorSet.training_view`), so no pixel of another
part, nor of the buffer, can be in a crop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgekd.contracts.distill import SensorJitterSpec
from edgekd.contracts.labelled import IGNORE
from edgekd.contracts.sensor_set import SensorSet
from edgekd.errors import DatasetError, InputError

FloatArray = npt.NDArray[np.float32]

#: random points of the smooth curve that warps a spectrum
WARP_POINTS = 8
#: tells the random numbers of the place from those of the jitter
_PLACE, _JITTER = 0, 1


@dataclass(frozen=True)
class Answers:
    """What a teacher said of a scene: scores ``(K, H, W)``, features ``(H, W, D)`` or None."""

    scores: FloatArray
    features: npt.NDArray[np.float16] | None


class SensorCrop(NamedTuple):
    """One item; torch's ``collate`` makes one of batches of it.

    Attributes:
        sensors: name -> ``(C, crop, crop)`` float32 in the sensor's units, jittered.
        present: ``(S,)`` bool in the order of ``sensors``.
        target: ``(crop, crop)`` int64 channel numbers or IGNORE.
        counted: ``(crop, crop)`` bool: training pixels with data.
        scores: ``(K, crop, crop)`` of the teacher; empty without one.
        features: ``(crop, crop, D)`` float16 of the teacher; empty without.
        number: which item.
    """

    sensors: dict[str, Tensor]
    present: Tensor
    target: Tensor
    counted: Tensor
    scores: Tensor
    features: Tensor
    number: int


@dataclass(frozen=True)
class _Place:
    """Rows and columns of a crop, which may reach over the scene's border, and how it is turned."""

    scene: int
    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    turns: int
    mirrored: bool

    def cut(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """``(..., H, W)`` -> ``(..., crop, crop)``."""
        rows = _mirrored(self.rows, values.shape[-2])
        columns = _mirrored(self.columns, values.shape[-1])
        return self._turned(values[..., rows[:, None], columns[None]])

    def cut_pixels(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """``(H, W, ...)`` -> ``(crop, crop, ...)``, pixel by pixel."""
        shape = (len(self.rows), len(self.columns))
        rows = np.broadcast_to(_mirrored(self.rows, values.shape[0])[:, None], shape)
        columns = np.broadcast_to(_mirrored(self.columns, values.shape[1])[None], shape)
        pixels: npt.NDArray[Any] = values[self._turned(rows), self._turned(columns)]
        return pixels

    def inside(self, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """``(crop, crop)`` bool: pixels that are no mirror image of another."""
        rows = (self.rows >= 0) & (self.rows < shape[0])
        columns = (self.columns >= 0) & (self.columns < shape[1])
        return self._turned(rows[:, None] & columns[None])

    def _turned(self, part: npt.NDArray[Any]) -> npt.NDArray[Any]:
        part = np.rot90(part, self.turns, (-2, -1))
        return np.ascontiguousarray(part[..., ::-1] if self.mirrored else part)


class SensorCrops(Dataset[SensorCrop]):
    """Random crops of all training views.

    Args:
        data: the set.
        names: sensors that are wanted, in this order.
        crop_px: side of a crop; a scene that is smaller is mirrored.
        jitter: random changes.
        length: number of crops.
        seed: of everything random here.
        labelled: part of the crops that lie around a labelled pixel, whose class is drawn evenly.
        answers: scene -> what a teacher said of its training view; None without a teacher.

    Raises:
        DatasetError: no training pixel, or ``labelled`` above 0 and no label.
        InputError: unknown sensors.
    """

    def __init__(
        self,
        data: SensorSet,
        names: list[str],
        crop_px: int,
        jitter: SensorJitterSpec,
        length: int,
        seed: int,
        labelled: float,
        answers: Mapping[str, Answers] | None = None,
    ) -> None:
        if unknown := [name for name in names if name not in data.sensors]:
            raise InputError(f"the set has no sensor '{unknown[0]}'")
        self._names, self._crop, self._jitter = names, crop_px, jitter
        self._length, self._seed, self._labelled = length, seed, labelled
        self._kinds = {name: data.sensors[name].kind for name in names}
        self._optional = {name: data.sensors[name].missing == "allowed" for name in names}
        self._channels = dict(data.channels)
        self._std = {name: item.std.astype(np.float32) for name, item in data.statistics().items()}
        self._views = [data.training_view(name) for name in data.training_ids]
        self._answers = answers
        if not self._views:
            raise DatasetError(f"{data.file} has no training pixel")
        self._any = [np.argwhere(view.valid) for view in self._views]
        areas = np.cumsum([len(places) for places in self._any])
        self._areas = areas / areas[-1]
        self._labels: list[npt.NDArray[np.int64]] = []
        for channel in range(len(data.classes)):
            places = [
                np.insert(np.argwhere(view.target == channel), 0, at, axis=1)
                for at, view in enumerate(self._views)
            ]
            if found := [item for item in places if len(item)]:
                self._labels.append(np.concatenate(found))
        if labelled and not self._labels:
            raise DatasetError(f"{data.file} has no label to train on")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> SensorCrop:
        """Crop ``number``, from 0.

        Raises:
            IndexError: there is no such number.
        """
        if not 0 <= number < self._length:
            raise IndexError(f"crop {number} of {self._length}")
        place = self._place(number)
        view = self._views[place.scene]
        cut = place.cut

        random = np.random.default_rng([self._seed, number, _JITTER])
        sensors: dict[str, Tensor] = {}
        present: list[bool] = []
        side = self._crop
        for name in self._names:
            values = view.sensors.get(name)
            lost = values is None or (
                self._optional[name] and random.random() < self._jitter.sensor_dropout
            )
            present.append(not lost)
            crop = (
                np.zeros((self._channels[name], side, side), np.float32)
                if values is None
                else self.changed(name, np.asarray(cut(values), np.float32), random)
            )
            sensors[name] = torch.from_numpy(crop)
        if not any(present):  # all were dropped by chance: the first one that the scene has stays
            present[[name in view.sensors for name in self._names].index(True)] = True
        counted = cut(view.valid) & place.inside(view.valid.shape)
        target = np.where(counted, cut(view.target), IGNORE).astype(np.int64)
        scores = features = torch.zeros(0)
        if self._answers is not None:
            said = self._answers[view.id]
            scores = torch.from_numpy(np.asarray(cut(said.scores), np.float32))
            if said.features is not None:
                features = torch.from_numpy(place.cut_pixels(said.features))
        return SensorCrop(
            sensors, torch.tensor(present), torch.from_numpy(target),
            torch.from_numpy(counted), scores, features, number,
        )  # fmt: skip

    def _place(self, number: int) -> _Place:
        """Where crop ``number`` lies: a chosen pixel is anywhere in it with equal chances."""
        random = np.random.default_rng([self._seed, number, _PLACE])
        if random.random() < self._labelled:
            places = self._labels[int(random.integers(len(self._labels)))]
            scene, y, x = (int(value) for value in places[int(random.integers(len(places)))])
        else:
            scene = int(np.searchsorted(self._areas, random.random(), side="right"))
            y, x = (int(v) for v in self._any[scene][int(random.integers(len(self._any[scene])))])
        top, left = (int(value) for value in random.integers(self._crop, size=2))
        jitter, side = self._jitter, np.arange(self._crop)
        return _Place(
            scene,
            side + (y - top),
            side + (x - left),
            int(random.integers(4)) if jitter.quarter_turn else 0,
            bool(random.integers(2)) if jitter.flip else False,
        )

    def changed(self, name: str, crop: FloatArray, random: np.random.Generator) -> FloatArray:
        """A crop ``(C, h, w)`` with the random changes of its kind of sensor."""
        jitter, std = self._jitter, self._std[name][:, None, None]
        channels = len(crop)
        if self._kinds[name] == "image":
            each = jitter.colour * random.uniform(-1, 1, (2, channels, 1, 1))
            all_ = jitter.illumination * random.uniform(-1, 1, 2)
            crop = crop * (1 + all_[0] + each[0]) + std * (all_[1] + each[1])
            return np.clip(crop, 0, 255).astype(np.float32)
        if self._kinds[name] == "spectral":
            gain = 1 + jitter.spectral_gain * random.standard_normal()
            points = random.standard_normal(WARP_POINTS)
            at = np.linspace(0, WARP_POINTS - 1, channels)
            curve = np.interp(at, np.arange(WARP_POINTS), points)[:, None, None]
            noise = random.standard_normal(crop.shape, dtype=np.float32)
            factor = gain * (1 + jitter.spectral_warp * curve)
            return (crop * factor + jitter.spectral_noise * std * noise).astype(np.float32)
        noise = random.standard_normal(crop.shape, dtype=np.float32)
        lost = random.random(crop.shape) < jitter.elevation_dropout
        crop = crop + np.float32(jitter.elevation_noise_m) * noise
        return np.where(lost, np.float32(np.median(crop)), crop).astype(np.float32)


def _mirrored(at: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Indices outside ``0 .. size - 1`` are mirrored at the border, as often as need be."""
    at = np.mod(at, 2 * size)
    return np.where(at < size, at, 2 * size - 1 - at)
