"""Losses of a student that takes several kinds of evidence, each with a teacher of its own.

Every teacher sees one kind and is softened by a temperature of its own: a picture's answer is
sharper than a text's. Embeddings of the kinds are drawn together by InfoNCE (van den Oord et al.
2018, https://arxiv.org/abs/1807.03748; symmetric as in CLIP, Radford et al. 2021): the same place
is the positive, other places of the batch are the negatives. Two places that share a series (one
station, one year) are neither: nothing in the series could tell them apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekd.errors import InputError
from edgekd.train.distill.methods.cross_modal import soft_loss

#: added to what must not count as a negative
_OUT = -1e9


def soft_losses(
    scores: Tensor,
    teachers: Mapping[str, Tensor],
    temperatures: Mapping[str, float],
    present: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """``T^2 * KL(teacher || student)`` of each kind, as a mean over the places that have it.

    Args:
        scores: ``(N, K)`` logits of the student, from all evidence that it got.
        teachers: kind -> ``(N, K)`` logits of the teacher who sees that kind alone.
        temperatures: kind -> T, above 0.
        present: kind -> ``(N,)`` bool; a teacher without evidence has nothing to say.

    Raises:
        InputError: a kind without temperature or presence.
    """
    for name, given in (("temperature", temperatures), ("presence", present)):
        missing = sorted(set(teachers) - set(given))
        if missing:
            raise InputError(f"teacher {missing[0]} has no {name} (given: {', '.join(given)})")
    return {
        kind: soft_loss(scores, theirs, temperatures[kind], present[kind].to(scores.dtype))
        for kind, theirs in teachers.items()
    }


def info_nce(
    embeddings: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    sources: Mapping[str, Tensor],
    temperature: float,
) -> Tensor:
    """InfoNCE between every two kinds, symmetric, as a mean over pairs of kinds.

    Of a pair the loss is the mean over places that have both of ``-log softmax`` of the own place
    among all places that have both, by cosine over ``temperature``. A batch in which no pair has
    two places to tell apart gives 0.

    Args:
        embeddings: kind -> ``(N, D)``, of any length.
        present: kind -> ``(N,)`` bool.
        sources: kind -> ``(N,)`` int64: places of one number have the same evidence of that kind.
        temperature: above 0.

    Raises:
        InputError: fewer than two kinds, or a temperature of 0 or less.
    """
    if len(embeddings) < 2 or not temperature > 0:
        raise InputError(
            f"InfoNCE needs two kinds of evidence or more and a temperature above 0, received "
            f"{len(embeddings)} and {temperature}"
        )
    losses = []
    for first, second in itertools.combinations(embeddings, 2):
        both = present[first] & present[second]
        ours, theirs = (F.normalize(embeddings[kind][both], dim=1) for kind in (first, second))
        one, other = sources[first][both], sources[second][both]
        same = (one[:, None] == one[None]) | (other[:, None] == other[None])
        same.fill_diagonal_(fill_value=False)
        if len(ours) < 2 or not bool((~same).sum() > len(ours)):
            continue
        alike = (ours @ theirs.mT / temperature).masked_fill(same, _OUT)
        own = torch.arange(len(ours), device=alike.device)
        losses.append((F.cross_entropy(alike, own) + F.cross_entropy(alike.mT, own)) / 2)
    if not losses:
        return next(iter(embeddings.values())).sum() * 0
    return torch.stack(losses).mean()


def balanced_weights(losses: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """What each kind's loss is to be multiplied by, so that its share is its weight.

    Temperatures change the size of a loss, and so which teacher is heard. Given what the losses
    are (without gradient), ``weight / loss``, times the mean loss, gives each kind
    ``weight / sum of weights`` of the sum. Given running means it does so as far as losses are
    what their means are: of losses that fall, the one that falls slowest has more.

    Args:
        losses: kind -> running mean, at least 0.
        weights: kind -> share asked for, at least 0, not all 0.

    Raises:
        InputError: no weight above 0, or a kind without one.
    """
    if set(losses) != set(weights) or not sum(weights.values()) > 0 or min(weights.values()) < 0:
        raise InputError(
            f"weights of {', '.join(weights)} for losses of {', '.join(losses)}: expected one of "
            "at least 0 for each kind, not all 0"
        )
    total = sum(weights.values())
    mean = sum(weights[kind] / total * losses[kind] for kind in losses)
    return {
        kind: weights[kind] / total * mean / max(losses[kind], 1e-3 * mean, 1e-12)
        for kind in losses
    }
