"""Teachers of a run: made from the recipe, and answered from disk where a crop was seen before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from edgekd.contracts import registry
from edgekd.contracts.artifacts import sha256_file
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.schema import resolve_path
from edgekd.errors import CheckpointError, InputError
from edgekd.train.distill.cache import FeatureCache
from edgekd.train.distill.methods.feature import Feature
from edgekd.train.teachers._base import Teacher


def build_teachers(recipe: Recipe, folder: Path) -> list[Teacher]:
    """The recipe's teachers with their weights.

    Args:
        recipe: with ``teachers``.
        folder: paths of weights are relative to it.

    Raises:
        InputError: no such variant.
        CheckpointError: weights are missing, damaged, of another size, or not the named ones.
        EnvironmentLacksError: a package with weights is not installed.
    """
    return [build_teacher(spec, number, folder) for number, spec in enumerate(recipe.teachers)]


class Named(Protocol):
    """What a recipe's entry says of a teacher of pictures, of maps and of places alike."""

    @property
    def name(self) -> str: ...
    @property
    def variant(self) -> str | None: ...
    @property
    def weights(self) -> str: ...
    @property
    def sha256(self) -> str | None: ...


def build_teacher(spec: Named, number: int, folder: Path) -> Teacher:
    """One teacher; ``number`` is its place in the recipe, from 0. See :func:`build_teachers`."""
    module = registry.load("edgekd.train.teachers", spec.name, "teacher")
    if spec.variant is not None and spec.variant not in module.VARIANTS:
        valid = [str(item) for item in module.VARIANTS]
        raise InputError(
            f"teachers[{number}].variant: {spec.name} has no '{spec.variant}'"
            f"{registry.nearest(spec.variant, valid)} (valid: {', '.join(valid)})"
        )
    weights: str | Path = spec.weights
    if weights not in ("random", "package"):
        weights = resolve_path(spec.weights, folder)
    check_sha256(weights, spec, number)
    teacher: Teacher = module.build(spec.variant, weights)
    return teacher


def check_sha256(weights: str | Path, spec: Named, number: int) -> None:
    """Refuse another file than the one that the recipe names; one that is missing passes.

    Args:
        weights: the file, or a word for weights that are no file.
        spec: the teacher's entry.
        number: its place in the recipe, from 0.

    Raises:
        InputError: ``sha256`` is given, and ``weights`` is no file.
        CheckpointError: the file has another one.
    """
    if spec.sha256 is None:
        return
    if isinstance(weights, str) or weights.is_dir():
        raise InputError(
            f"teachers[{number}].sha256 is that of a file, and weights is {spec.weights}; name the "
            "file, or leave sha256 out"
        )
    if weights.is_file():
        found = sha256_file(weights)
        if found != spec.sha256:
            raise CheckpointError(
                f"{weights} has sha256 {found[:12]}…, teachers[{number}].sha256 says "
                f"{spec.sha256[:12]}…; fetch the right file, or correct the recipe"
            )


class CachedTeachers:
    """Features of frozen teachers, from disk where they are there.

    What a teacher gives passes through the cache's precision before it is used, so that the first
    sight of a crop gives the same features as later ones.

    Args:
        method: whose teachers are asked.
        folder: of the cache; one below it for each teacher.
        limit_mib: space for all teachers together.
        precision: what the teachers compute in; part of the keys.
        crops: number of different crops that will be asked for.
        say: told at once when they will not all fit.
    """

    def __init__(
        self,
        method: Feature,
        folder: Path,
        limit_mib: int,
        precision: str = "32",
        crops: int = 0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._share = max(1, limit_mib // len(method.teachers))
        self._looked: set[int] = set()
        self._method, self._precision = method, precision
        self._crops, self._say = crops, say
        self._stores = [
            FeatureCache(folder / str(number), self._share)
            for number in range(len(method.teachers))
        ]

    def features(self, pixels: Tensor, clean: Tensor) -> dict[int, list[Tensor]]:
        """Teacher -> features ``(N, C, h, w)`` per tap of a batch.

        Args:
            pixels: crops ``(N, 3, H, W)`` uint8 on the CPU: what the keys are made of.
            clean: the same on the device of the teachers.
        """
        return {
            number: self._of(number, store, pixels, clean)
            for number, store in enumerate(self._stores)
        }

    def _look(self, number: int, features: list[Tensor]) -> None:
        """Say once, at a teacher's first crop, when the pool is larger than its cache."""
        if self._say is None or number in self._looked:
            return
        self._looked.add(number)
        need = self._crops * sum(2 * item.numel() for item in features) / 2**20  # float16
        if need > self._share:
            self._say(
                f"warning: the features that teacher {number} gives for {self._crops} crops take "
                f"{need:.0f} MiB and its share of the cache is {self._share} MiB: the rest is "
                "computed at every sight; raise distill.cache.mib or lower distill.cache.crops"
            )

    @property
    def stats(self) -> list[dict[str, Any]]:
        """Hits, misses, rejected entries and bytes of each teacher's cache."""
        return [dict(store.stats) for store in self._stores]

    def _of(self, number: int, store: FeatureCache, pixels: Tensor, clean: Tensor) -> list[Tensor]:
        teacher = self._method.teachers[number]
        taps = self._method.bridges[number].teacher_taps
        keys = [
            store.key(f"{teacher.weights_sha256} {self._precision}", taps, item) for item in pixels
        ]
        found = [store.get(key) for key in keys]
        missing = [index for index, item in enumerate(found) if item is None]
        if missing:
            maps = self._method.teacher_features(number, clean[missing])
            for place, index in enumerate(missing):
                features = [item[place].cpu() for item in maps]
                self._look(number, features)
                store.put(keys[index], features)
                found[index] = store.as_stored(features)
        whole = [item for item in found if item is not None]
        return [
            torch.stack([item[tap] for item in whole]).to(clean.device) for tap in range(len(taps))
        ]
