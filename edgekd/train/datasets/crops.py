"""Random training crops, the same for the same seed whatever the number of workers."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgekd.contracts.imageio import UInt8Array
from edgekd.contracts.labelled import IGNORE, LabelledSet
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.recipe import AugmentSpec
from edgekd.contracts.tensors import ImageInput
from edgekd.errors import DatasetError
from edgekd.train.datasets._recolour import draw_side, recolour, resized, turned

#: decoded training images are kept in memory up to this many bytes, later ones are read again.
CACHE_BYTES = 2 << 30
#: a crop counts as rare when this part of it is of another class than the most frequent.
_RARE_SHARE = 0.05
_TRIES = 20


class CropDataset(Dataset[tuple[Tensor, Tensor]]):
    """Crop number ``i`` is a function of ``(seed, i)`` alone.

    Samples are drawn in proportion to their area times their weight; the crop's place is uniform.

    Args:
        data: the labelled set.
        split: which samples to draw from.
        spec: engine input, for the normalisation.
        crop_px: side of the crop.
        augment: random changes.
        length: number of crops.
        seed: of everything random here.
        rare_crops: part of the crops that must hold another class than the most frequent.

    Items are ``(image, target)``: ``(3, crop, crop)`` float32 normalised and ``(crop, crop)``
    int64 with channel numbers, :data:`~edgekd.contracts.labelled.IGNORE` where nothing counts.
    """

    def __init__(
        self,
        data: LabelledSet,
        split: str,
        spec: ImageInput,
        crop_px: int,
        augment: AugmentSpec,
        length: int,
        seed: int,
        rare_crops: float = 0.0,
    ) -> None:
        self._data = data
        self._samples = data.split(split)
        self._normalize = Normalizer(spec)
        self._crop = crop_px
        self._augment = augment
        self._length = length
        self._seed = seed
        self._rare_crops = rare_crops
        self._cache: dict[int, tuple[UInt8Array, UInt8Array]] = {}
        self._cached_bytes = 0
        sizes = []
        self.class_pixels = np.zeros(len(data.classes), dtype=np.int64)
        for index, sample in enumerate(self._samples):
            _, target = self._load(index)
            counts = np.bincount(target.ravel(), minlength=256)
            self.class_pixels += counts[: len(data.classes)]
            sizes.append(float(target.size) * sample.weight)
        if self.class_pixels.sum() == 0:
            raise DatasetError(f"split '{split}' of {data.root} holds no labelled pixel")
        self._probability = np.asarray(sizes) / np.sum(sizes)
        self._common = int(self.class_pixels.argmax())

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        random = np.random.default_rng([self._seed, number])
        index = int(random.choice(len(self._samples), p=self._probability))
        wanted = random.random() < self._rare_crops
        for _ in range(_TRIES if wanted else 1):
            pixels, target = self._cut(*self._load(index), random)
            rare = (target != IGNORE) & (target != self._common)
            if rare.mean() >= _RARE_SHARE:
                break
        pixels, target = turned([pixels, target], self._augment, random)
        pixels = recolour(np.ascontiguousarray(pixels), self._augment, self._augment.tint, random)
        image = torch.from_numpy(self._normalize(pixels))
        return image, torch.from_numpy(np.ascontiguousarray(target)).long()

    def _load(self, index: int) -> tuple[UInt8Array, UInt8Array]:
        if index in self._cache:
            return self._cache[index]
        pair = self._data.load(self._samples[index])
        size = pair[0].nbytes + pair[1].nbytes
        if self._cached_bytes + size <= CACHE_BYTES:
            self._cache[index] = pair
            self._cached_bytes += size
        return pair

    def _cut(
        self, pixels: UInt8Array, target: UInt8Array, random: np.random.Generator
    ) -> tuple[UInt8Array, UInt8Array]:
        """A crop at a random place and scale; a sample that is too small is mirrored."""
        low, high = self._augment.scale
        side = draw_side(self._crop, low, high, random)
        height, width = target.shape
        y = int(random.integers(max(height - side, 0) + 1))
        x = int(random.integers(max(width - side, 0) + 1))
        pixels, target = pixels[y : y + side, x : x + side], target[y : y + side, x : x + side]
        missing = ((0, side - target.shape[0]), (0, side - target.shape[1]))
        if missing != ((0, 0), (0, 0)):
            pixels = np.pad(pixels, (*missing, (0, 0)), mode="symmetric")
            target = np.pad(target, missing, constant_values=IGNORE)
        if side != self._crop:
            size = (self._crop, self._crop)
            pixels = resized(pixels, self._crop)
            target = np.asarray(
                cv2.resize(target, size, interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8
            )
        return pixels, target
