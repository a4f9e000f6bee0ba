"""Batch-norm statistics of a new site, without labels.

AdaBN (Li et al. 2016, arXiv:1603.04779): statistics of the place where the network works replace
those of training. A part of the old ones may stay (Schneider et al. 2020, arXiv:2006.16971), since
a site of other classes has other statistics without any change of light.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.train.adapt.features import Look
from edgekd.train.students._base import Segmenter

#: fewer values of a channel say too little about its deviation
_LEAST = 64


def has_norms(model: Segmenter) -> bool:
    """Whether a student has statistics to estimate."""
    return any(_is_norm(item) for item in model.modules())


@torch.inference_mode()
def with_norms(model: Segmenter, look: Look, part: float) -> Segmenter:
    """A copy whose statistics are ``part`` the site's, the rest its old ones.

    Layers are taken in the order of the forward pass, so that each sees what those before it make
    with their new statistics. Only cells whose middle is shown count.

    Args:
        model: in evaluation mode; is left as it is.
        look: windows of the site.
        part: 0-1.
    """
    adapted = copy.deepcopy(model).eval()

    def estimate(module: nn.Module, given: tuple[Any, ...]) -> None:
        values: Tensor = given[0]
        cells = F.interpolate(look.shown, size=values.shape[-2:], mode="area")[:, 0] > 0.5
        if int(cells.sum()) < _LEAST:
            return
        seen = values.permute(0, 2, 3, 1)[cells].double()
        for old, new in (
            (module.running_mean, seen.mean(0)),
            (module.running_var, seen.var(0)),
        ):
            assert isinstance(old, Tensor)
            old.lerp_(new.to(old.dtype), part)

    hooks = [
        item.register_forward_pre_hook(estimate) for item in adapted.modules() if _is_norm(item)
    ]
    adapted(look.images())
    for hook in hooks:
        hook.remove()
    return adapted


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
