"""Losses of supervised tuning."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekd.contracts.labelled import IGNORE


def segmentation_loss(
    logits: Tensor,
    target: Tensor,
    *,
    ce_weight: float,
    dice_weight: float,
    class_weights: Tensor | None,
) -> Tensor:
    """``ce_weight`` x cross-entropy + ``dice_weight`` x (1 - mean soft Dice).

    Args:
        logits: ``(N, K, h, w)`` at the student's stride; resized bilinearly to the target.
        target: ``(N, H, W)`` int64 channels, :data:`IGNORE` counts neither way.
        class_weights: ``(K,)`` for the cross-entropy, or None.

    A batch without a single counted pixel has loss 0 (and gradient 0).
    Soft Dice: Milletari et al., V-Net, 2016, over the batch, mean over the classes that occur in
    its targets.
    """
    logits = F.interpolate(
        logits.float(), size=target.shape[-2:], mode="bilinear", align_corners=False
    )
    keep = target != IGNORE
    if not bool(keep.any()):
        return logits.sum() * 0.0
    loss = logits.new_zeros(())
    if ce_weight:
        loss = loss + ce_weight * F.cross_entropy(
            logits, target, weight=class_weights, ignore_index=IGNORE
        )
    if dice_weight:
        chance = logits.softmax(dim=1) * keep[:, None]
        truth = torch.zeros_like(chance).scatter_(
            1, target.clamp(max=logits.shape[1] - 1)[:, None], 1.0
        )
        truth = truth * keep[:, None]
        overlap = (chance * truth).sum(dim=(0, 2, 3))
        present = truth.sum(dim=(0, 2, 3))
        dice = (2 * overlap + 1) / (chance.sum(dim=(0, 2, 3)) + present + 1)
        loss = loss + dice_weight * (1 - dice[present > 0].mean())
    return loss


def balanced_weights(class_pixels: list[int]) -> Tensor:
    """Inverse square root of the pixel frequency, scaled to a mean of 1 over present classes.

    A class without a pixel gets weight 0: no target can ask for it.
    """
    counts = torch.tensor(class_pixels, dtype=torch.float32)
    weights = torch.where(counts > 0, counts.clamp(min=1).rsqrt(), torch.zeros_like(counts))
    return weights / weights[counts > 0].mean()
