"""Adapting a student to a site, whole on one page.

Two changes are on offer, alone or together: batch-norm statistics of the site (no label needed),
and last layers tuned on the labels. Which one, and how much, the labels decide among themselves by
cross-validation, with no change to beat; what is held out only measures what came of it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekd.contracts.artifacts import canonical_json, sha256_bytes, sha256_file
from edgekd.contracts.manifest import MANIFEST_NAME
from edgekd.contracts.recipe import Recipe
from edgekd.errors import CheckpointError, InputError
from edgekd.train.adapt.choose import PARTS, Judged, View, choose, fit, judge
from edgekd.train.adapt.features import LastLayers, Look, look_around, look_at_labels
from edgekd.train.adapt.features import side_px as window_side
from edgekd.train.adapt.labels import Labels, draw, folds
from edgekd.train.adapt.measure import measure
from edgekd.train.adapt.norms import has_norms, with_norms
from edgekd.train.adapt.points import open_points
from edgekd.train.adapt.site import Site, open_site
from edgekd.train.checkpoint import (
    BEST_NAME,
    Checkpoint,
    kind_of,
    load_checkpoint,
    rebuild,
    save_checkpoint,
)
from edgekd.train.run import make_room, only_one
from edgekd.train.students._base import Segmenter

#: called with (done, of, text)
Progress = Callable[[int, int, str], None]
_STAGES = ("looking", "choosing", "measuring")


@dataclass(frozen=True)
class AdaptResult:
    """What came of it.

    Attributes:
        best: the new checkpoint.
        tuning: what it says of itself.
        warning: one line where the site is worse off than before; None otherwise.
    """

    best: Path
    tuning: dict[str, Any]
    warning: str | None


def adapt(
    checkpoint_path: Path,
    data_path: Path,
    out: Path,
    *,
    labels: int | None = 20,
    points: Path | None = None,
    blocks: tuple[int, int] | None = None,
    seed: int = 0,
    unmeasured: bool = False,
    fresh: bool = False,
    progress: Progress | None = None,
) -> AdaptResult:
    """Adapt a student to a site by a handful of labelled pixels.

    Args:
        checkpoint_path: of ``edgekd finetune`` or of ``edgekd distill`` with ``cross_modal``.
        data_path: the site; see :func:`~edgekd.train.adapt.site.open_site`.
        out: folder of the new ``best.ckpt``.
        labels: labelled pixels in all, drawn evenly over the classes; None takes all, up to
            :data:`~edgekd.train.adapt.labels.MAX_LABELS`.
        points: table of labelled pixels of the images in ``data_path``; see
            :func:`~edgekd.train.adapt.points.open_points`.
        blocks: see :func:`~edgekd.train.adapt.site.open_site`; of points the buffer alone.
        seed: of all draws. The same seed gives the same weights.
        unmeasured: go on where nothing is held out; the result then has no accuracy.
        fresh: an earlier run in ``out`` may be lost.
        progress: called after every stage.

    Raises:
        CheckpointError: a bundle, an encoder, a teacher, or no checkpoint.
        DatasetError, ImageError: the site cannot be used, or has other classes.
        InputError: too few labels; nothing held out; a run is in the way.
    """
    start = time.perf_counter()
    file = student_file(checkpoint_path)
    checkpoint = load_checkpoint(file)
    recipe = checkpoint.parsed_recipe(str(file))
    model = rebuild(checkpoint, str(file))
    told = progress or (lambda done, total, text: None)
    with only_one(out):
        if (out / BEST_NAME).exists() and (out / BEST_NAME).samefile(file):
            raise InputError(
                f"{out} holds the checkpoint that is adapted; choose another folder with -o"
            )
        make_room(out, [BEST_NAME], "", fresh, look_only=True)
        if points is None:
            site = open_site(recipe, data_path, blocks, seed)
        else:
            site = open_points(recipe, data_path, points, blocks[1] if blocks else None)
        if not site.held_out and not unmeasured:
            advice = (
                "add a test split, or cut the images with --blocks SIDE,BUFFER"
                if points is None
                else "say split: test of some points"
            )
            raise InputError(
                f"{data_path} holds nothing out to measure on ({site.split}), so nobody would know "
                f"whether it became worse; {advice}, or go on without an accuracy: --unmeasured"
            )
        drawn = draw(site, labels, seed)
        adapted, judged, chosen = _adapt(model, recipe, site, drawn, seed, told)
        told(2, len(_STAGES), _STAGES[2])
        measured = measure(model, adapted, site, recipe) if site.held_out else None
        told(3, len(_STAGES), "done")
        tuning = {
            "adapted_from_sha256": sha256_file(file),
            "site": site.name,
            "site_sha256": site.digest,
            "simulated": site.simulated,
            "split": site.split,
            "labels_asked": "all" if labels is None else labels,
            "labels": _told(drawn, site),
            "change": chosen.candidate.name,
            "candidates": [item.plain() for item in judged],
            "measured": measured,
            "seed": seed,
            "seconds": time.perf_counter() - start,
            "torch": str(torch.__version__),
            "before": checkpoint.tuning,
        }
        make_room(out, [BEST_NAME], "", fresh)
        save_checkpoint(out / BEST_NAME, _renewed(checkpoint, adapted, site, tuning))
    return AdaptResult(out / BEST_NAME, tuning, _warning(measured, file))


def student_file(path: Path) -> Path:
    """The file of a student's checkpoint.

    Raises:
        CheckpointError: a bundle, or another kind of file, which is named.
    """
    if (path / MANIFEST_NAME).is_file():
        raise CheckpointError(
            f"{path} is a bundle, whose weights are compiled; adapt the checkpoint that it was "
            "built from, and build again"
        )
    file = path / BEST_NAME if path.is_dir() else path
    kind = kind_of(file)
    wrong = {"edgekd_teacher": "a teacher of several sensors", "edgekd_encoder": "an encoder"}
    if kind in wrong:
        raise CheckpointError(
            f"{file} is {wrong[kind]}, and no student with a decoder; give the best.ckpt of edgekd "
            "finetune, or of edgekd distill with method cross_modal"
        )
    return file


def _adapt(
    model: Segmenter, recipe: Recipe, site: Site, drawn: Labels, seed: int, told: Progress
) -> tuple[Segmenter, list[Judged], Judged]:
    """The adapted student, all candidates and the one that was taken."""
    fold = folds(drawn, seed)
    if len(np.unique(fold)) < 2:
        raise InputError(
            "all labels lie within a few pixels of each other, so none can judge what the others "
            "teach; label places that are further apart"
        )
    told(0, len(_STAGES), _STAGES[0])
    side, step = window_side(model, recipe), model.side_multiple
    around = look_around(site, recipe, side, step, seed)
    labelled = look_at_labels(site, drawn, recipe, side, step)
    models = {
        part: with_norms(model, around, part) if part else model
        for part in PARTS
        if not part or has_norms(model)
    }
    views = {part: _view(item, labelled, around) for part, item in models.items()}
    told(1, len(_STAGES), _STAGES[1])
    channel = torch.from_numpy(drawn.channel)
    judged = judge(views, channel, fold)
    chosen = choose(judged)
    adapted = copy.deepcopy(models[chosen.candidate.norms])
    if chosen.candidate.pull is not None:
        LastLayers(adapted).write(
            *fit(views[chosen.candidate.norms], channel, chosen.candidate.pull)
        )
    return adapted.eval(), judged, chosen


def _view(model: Segmenter, labelled: Look, around: Look) -> View:
    last = LastLayers(model)
    there = last.look(labelled)
    here = last.look(around)
    return View(there, here, *(last.weights() if there.linear and here.linear else (None, None)))


def _told(drawn: Labels, site: Site) -> dict[str, Any]:
    counts = drawn.per_class(len(site.classes))
    places = np.stack([drawn.image, drawn.row, drawn.column, drawn.channel], axis=1)
    text = canonical_json({"images": drawn.images, "places": places.tolist()})
    return {
        "used": len(drawn),
        "available": sum(drawn.available),
        "per_class": {
            item.name: {"used": used, "available": there}
            for item, used, there in zip(site.classes, counts, drawn.available, strict=True)
        },
        "sha256": sha256_bytes(text.encode()),
    }


def _renewed(
    checkpoint: Checkpoint, adapted: Segmenter, site: Site, tuning: dict[str, Any]
) -> Checkpoint:
    return Checkpoint(
        recipe=checkpoint.recipe,
        student=checkpoint.student,
        weights={name: value.detach().clone() for name, value in adapted.state_dict().items()},
        data={"name": site.name, "sha256": site.digest},
        tuning=tuning,
    )


def _warning(measured: dict[str, Any] | None, file: Path) -> str | None:
    if measured is None:
        return None
    gain = measured["difference"]["balanced_accuracy"]
    if gain >= 0:
        return None
    interval = measured["difference"]["interval_95"]
    if interval is None:
        sure = f"{measured['squares']} squares are too few to tell it from chance"
    else:
        low, high = interval
        sure = f"95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
        sure += "" if high < 0 else ", which may be chance"
    return (
        f"balanced accuracy on the held-out pixels fell by {-100 * gain:.1f} points ({sure}); "
        f"keep the old checkpoint {file}, or give "
        "more labels and look whether they are right"
    )
