"""A set of places opened for a recipe, and what training draws from it.

Item ``n`` is a function of the set, the seed and ``n`` alone: which place it is, and what changes
about it. Only places of the split ``train`` are drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgekd.contracts.evidence import (
    KINDS,
    Evidence,
    EvidenceTensors,
    never_measured,
    series_statistics,
)
from edgekd.contracts.place_evidence import check_embeddings, check_fits, read_picture
from edgekd.contracts.place_recipe import PlaceJitter, PlaceRecipe
from edgekd.contracts.place_set import PlaceSet, load_places
from edgekd.contracts.place_twins import picture_hashes, twins
from edgekd.contracts.plausible import ranges_of
from edgekd.errors import DatasetError
from edgekd.train.places.checkpoint import with_statistics

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
_ORDER, _JITTER, _TIMES = 0, 1, 2
_SAID = {"image": "a picture", "series": "a series", "text": "a text"}
#: a place comes so many times as often as one whose kinds all places have, at most: of a kind that
#: a handful of places have these would be all that is seen, and learned by heart
MOST_TIMES = 10.0
#: decoded pictures that are kept in memory, bytes
_KEPT_BYTES = 2 << 30


class PlaceData:
    """Pictures, series, texts and labels of a set, as a recipe's student takes them.

    Args:
        recipe: whose inputs and classes the set must fit.
        places: the set.
        text: ``(rows, width)`` float32 embeddings, a row of the table each.

    Attributes:
        recipe: with the statistics of the training split's series, unless it had them, and with
            the datum that the set's levels are above.
        digest: sha256 over everything that training reads.
        report: lines for the log.

    Raises:
        InputError: classes, pictures, series or embeddings that do not fit, a value that a feature
            cannot have, or a kind of evidence that no training place has.
    """

    def __init__(self, recipe: PlaceRecipe, places: PlaceSet, text: Float32) -> None:
        _check_fits(recipe, places)
        self.places, self.text = places, check_embeddings(text, places, recipe.io.text)
        self.rows = {split: at for split in ("train", "val", "test") if (at := self._of(split))}
        if "train" not in self.rows:
            raise DatasetError(f"{places.root} has no place of split train")
        for kind in KINDS:
            if not self.having("train", kind):
                raise DatasetError(
                    f"no place of split train of {places.root} has {_SAID[kind]}; what is never "
                    "seen is not learned, and a place that has it would be answered for all the "
                    "same: give it to some"
                )
        given, datum = recipe.io.series, places.about.series.datum
        if given.mean is None or given.std is None:
            named = {places.rows[at].series for at in self.rows["train"]}
            used = sorted(number for number in named if number is not None)
            scale = series_statistics(places.series[used])
            never = never_measured(places.series[used], recipe.io.series.features)
            recipe = with_statistics(recipe, *scale, datum, never)
            places.require_plausible(ranges_of(recipe.io.series))
        else:  # the bundle keeps what it learned above, whoever found the scale
            recipe = with_statistics(recipe, given.mean, given.std, datum)
        self.recipe = recipe
        self.tensors = EvidenceTensors(recipe.io.image, recipe.io.series, recipe.io.text)
        self.labels = np.array([row.label for row in places.rows], np.int64)
        names: dict[str, int] = {}
        self.texts = np.array(
            [
                -1 if row.text is None else names.setdefault(row.text, len(names))
                for row in places.rows
            ]
        )
        #: ``(rows, 3)`` of 0 and 1: which kinds places have, in the order of KINDS
        self.present = np.array(
            [[kind in row.kinds for kind in KINDS] for row in places.rows], np.float32
        )
        self._pictures: dict[int, UInt8] = {}
        self._held = 0
        hashes = picture_hashes(places)
        self.digest = _digest(places, hashes)
        counts = np.bincount(self.labels[self.rows["train"]], minlength=len(places.classes))
        told = zip(places.classes, counts, strict=True)
        split = ", ".join(f"{len(at):,} {name}" for name, at in self.rows.items())
        self.report = [
            f"{places.about.name}: {split} places, {len(places.series)} series, {len(names):,} "
            "texts",
            "training places: " + ", ".join(f"{name} {count}" for name, count in told),
        ]
        without = (len(places.rows) - self.present.sum(0)).astype(int).tolist()
        lacking = [f"{kind} {count}" for kind, count in zip(KINDS, without, strict=True) if count]
        if lacking:
            self.report.append(f"places without a kind: {', '.join(lacking)}")
        if never := self.recipe.io.series.unmeasured:
            self.report.append(
                f"never measured: {', '.join(never)}; what learns from these places will take no "
                "value of it"
            )
        self.report += twins(places, hashes)
        if places.about.simulated:
            self.report.insert(0, "SIMULATED data: figures made with it are no measurements")

    def _of(self, split: str) -> list[int]:
        return [at for at, row in enumerate(self.places.rows) if row.split == split]

    def having(self, split: str, kind: str) -> list[int]:
        """Rows of a split that have a kind."""
        return [at for at in self.rows.get(split, []) if kind in self.places.rows[at].kinds]

    def picture(self, at: int) -> UInt8:
        """``(side, side, 3)`` uint8 of a row that has one.

        Raises:
            InputError: it has none.
            ImageError: it cannot be read, or has another size.
        """
        if at not in self._pictures:
            found = read_picture(self.places.rows[at], self.recipe.io.image.tile_px)
            if self._held + found.nbytes > _KEPT_BYTES:
                return found
            self._pictures[at], self._held = found, self._held + found.nbytes
        return self._pictures[at]

    def evidence(self, at: int, without: Sequence[str] = ()) -> Evidence:
        """What is known of the place in row ``at``, less some kinds."""
        row = self.places.rows[at]
        kinds = [kind for kind in row.kinds if kind not in without]
        return Evidence(
            image=self.picture(at) if "image" in kinds else None,
            series=self.places.series[row.series]
            if row.series is not None and "series" in kinds
            else None,
            text=self.text[at] if "text" in kinds else None,
        )


def open_places_for(recipe: PlaceRecipe, root: Path) -> PlaceSet:
    """Read a set and hold it against a recipe.

    Raises:
        InputError: it cannot be read, or does not fit.
    """
    places = load_places(root)
    _check_fits(recipe, places)
    return places


def _check_fits(recipe: PlaceRecipe, places: PlaceSet) -> None:
    io = recipe.io
    check_fits(f"recipe '{recipe.name}'", io.classes, io.image, io.series, places)


def _digest(places: PlaceSet, pictures: Sequence[bytes | None]) -> str:
    found = hashlib.sha256()
    about = places.about
    series = [about.series.file] if len(places.series) else []
    for name in ("places.yaml", about.table, *series):
        found.update((places.root / name).read_bytes())
    for picture in pictures:
        found.update(b"-" if picture is None else picture)
    return found.hexdigest()


class PlaceItem(NamedTuple):
    """One item; torch's ``collate`` makes one of batches of it.

    Attributes:
        image: ``(3, side, side)`` uint8, changed.
        series: ``(days, 2 features)`` float32: scaled values, and what was measured.
        text: ``(width,)`` float32.
        label: number of the class.
        row: of the table.
        sources: ``(3,)`` int64, numbers of the picture, the series, the text: places of one number
            have the same.
        present: ``(3,)`` of 0 and 1, which kinds the place has; what stands in place of another is
            a picture of the mean colour, a series of gaps, an embedding of 0.
    """

    image: Tensor
    series: Tensor
    text: Tensor
    label: int
    row: int
    sources: Tensor
    present: Tensor


def sampled_kinds(recipe: PlaceRecipe, data: PlaceData) -> tuple[str, ...]:
    """Kinds by which the student's places are drawn; none where each comes once in an epoch.

    None, too, where no place is to come more often than another, as where all have all kinds: a
    run is then what it is without.
    """
    rules = recipe.distill
    if rules.sampling == "plain":
        return ()
    taught = {item.sees for item in recipe.teachers} if rules.kd_weight else set()
    kinds = tuple(kind for kind in KINDS if kind in taught or not taught)
    return () if _alike(kind_weights(_present(data, kinds))) else kinds


def kind_weights(present: Float32) -> npt.NDArray[np.float64]:
    """How often places are drawn, each beside the others.

    A place stands for the rarest of its kinds: its weight is 1 / the part of places that have that
    one, at most :data:`MOST_TIMES`. So, where that bound is not met, each of ``K`` kinds is in at
    least a ``K``-th of what is drawn.

    Args:
        present: ``(places, kinds)`` of 0 and 1.
    """
    part = np.maximum(present.mean(0, dtype=np.float64), 1 / len(present))
    weights: npt.NDArray[np.float64] = np.clip((present / part).max(1), 1, MOST_TIMES)
    return weights


def _present(data: PlaceData, kinds: Sequence[str]) -> Float32:
    """``(training places, kinds)`` of 0 and 1."""
    return data.present[data.rows["train"]][:, [KINDS.index(kind) for kind in kinds]]


def _alike(weights: npt.NDArray[np.float64]) -> bool:
    return bool((weights == weights[0]).all())


class PlaceItems(Dataset[PlaceItem]):
    """Training places, in an order that the seed decides; an epoch is as long as the set.

    Each place comes once in an epoch, or, where kinds are balanced, as many times as its weight
    (:func:`kind_weights`) beside the others' says, to within one; which places have the one more is
    drawn anew for each epoch.

    Args:
        data: the set.
        jitter: random changes.
        length: number of items.
        seed: of order and changes.
        kind: only places that have it; None is all.
        balanced: kinds of evidence that are to come more equally often; none: each place once.
    """

    def __init__(
        self,
        data: PlaceData,
        jitter: PlaceJitter,
        length: int,
        seed: int,
        kind: str | None = None,
        balanced: Sequence[str] = (),
    ) -> None:
        self.data, self.jitter, self._length, self._seed = data, jitter, length, seed
        self._rows = np.array(data.rows["train"] if kind is None else data.having("train", kind))
        columns = [KINDS.index(name) for name in balanced]
        weights = kind_weights(data.present[self._rows][:, columns]) if columns else None
        self._weights = None if weights is None or _alike(weights) else weights
        self._kept: tuple[int, npt.NDArray[np.int64]] = (-1, self._rows)

    def __len__(self) -> int:
        return self._length

    def row(self, number: int) -> int:
        """Row of the table that item ``number`` is."""
        epoch, place = divmod(number, len(self._rows))
        return int(self._epoch(epoch)[place])

    def seen(self, count: int) -> dict[str, float]:
        """Kind -> the part of the first ``count`` items that has it."""
        rows = [self.row(number) for number in range(count)]
        parts = self.data.present[rows].mean(0, dtype=np.float64).tolist()
        return dict(zip(KINDS, parts, strict=True))

    def _epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        """Rows of an epoch in their order; the last one asked for is kept."""
        if self._kept[0] != epoch:
            random = np.random.default_rng([self._seed, _ORDER, 0, epoch])
            order = random.permutation(len(self._rows))
            self._kept = (epoch, self._drawn(epoch)[order])
        return self._kept[1]

    def _drawn(self, epoch: int) -> npt.NDArray[np.int64]:
        """Rows of an epoch, each as many times as it comes: systematic sampling, for which places
        stand in a random order and every ``1 / len``-th of the weights draws one."""
        if self._weights is None:
            return self._rows
        random = np.random.default_rng([self._seed, _TIMES, epoch])
        order = random.permutation(len(self._rows))
        ends = np.cumsum(self._weights[order])
        ticks = (np.arange(len(order)) + random.random()) * (ends[-1] / len(order))
        places = np.searchsorted(ends, ticks, side="right").clip(max=len(order) - 1)
        rows: npt.NDArray[np.int64] = self._rows[order[places]]
        return rows

    def __getitem__(self, number: int) -> PlaceItem:
        data, at = self.data, self.row(number)
        random = np.random.default_rng([self._seed, _JITTER, number])
        row = data.places.rows[at]
        evidence = data.evidence(at)
        arrays = data.tensors([evidence])
        series = self._series(random, arrays[data.recipe.io.series.name][0])
        text = torch.from_numpy(arrays[data.recipe.io.text.name][0])
        picture = self._blank if evidence.image is None else evidence.image
        if self.jitter.text_noise:
            step = torch.from_numpy(random.normal(size=len(text)).astype(np.float32))
            text = text + self.jitter.text_noise * text.norm() * step / step.norm()
        return PlaceItem(
            torch.from_numpy(self._picture(random, picture)),
            torch.from_numpy(series),
            text,
            int(data.labels[at]),
            at,
            torch.tensor([at, -1 if row.series is None else row.series, int(data.texts[at])]),
            torch.from_numpy(data.present[at]),
        )

    @property
    def _blank(self) -> UInt8:
        """Where there is no picture: close to 0 when normalised, as in an answer."""
        image = self.data.recipe.io.image
        colour = np.clip(np.round(image.mean), 0, 255).astype(np.uint8)
        return np.tile(colour, (image.tile_px, image.tile_px, 1))

    def _picture(self, random: np.random.Generator, picture: UInt8) -> UInt8:
        rules = self.jitter
        turns, mirrored = int(random.integers(4)), bool(random.random() < 0.5)
        factors = random.uniform(-1, 1, 2)
        if rules.quarter_turn:
            picture = np.rot90(picture, turns)
        if rules.flip and mirrored:
            picture = picture[:, ::-1]
        if rules.brightness or rules.contrast:
            gain, spread = 1 + factors * [rules.brightness, rules.contrast]
            mean = float(picture.mean())
            changed = (picture.astype(np.float32) - mean) * spread + mean * gain
            picture = np.clip(np.round(changed), 0, 255).astype(np.uint8)
        found: UInt8 = np.ascontiguousarray(picture.transpose(2, 0, 1))
        return found

    def _series(self, random: np.random.Generator, series: Float32) -> Float32:
        rules = self.jitter
        features = series.shape[1] // 2
        values, there = series[:, :features].copy(), series[:, features:].copy()
        if rules.shift_days:
            by = int(random.integers(0, rules.shift_days + 1))  # the newest days fall off
            values, there = np.roll(values, by, axis=0), np.roll(there, by, axis=0)
            values[:by], there[:by] = 0, 0
        if rules.gaps:
            lost = int(random.uniform(0, rules.gaps) * len(values))
            start = int(random.integers(0, len(values) - lost + 1))
            there[start : start + lost] = 0
        if rules.noise:
            values = values + rules.noise * random.normal(size=values.shape)
        return np.concatenate([values * there, there], axis=1).astype(np.float32)
