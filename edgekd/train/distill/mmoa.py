"""MMoA, the trainable part of a teacher's block: two dilated adapters beside the frozen perceptron.

In the block (Mask-CDKD; ``edgekd.train.teachers._base``)::

    x'  = x + Attn(LN1(x))          frozen
    xn  = LN2(x')                   frozen
    F0  = FFN(xn)                   frozen
    F1  = fine adapter(xn)          dilations 1, 3, 5
    F2  = coarse adapter(xn)        dilations 7, 9, 11
    out = x' + w0 F0 + w1 F1 + w2 F2

``w`` is computed from ``xn`` token by token and sums to 3. Fresh, ``w`` is 1 and ``F1``, ``F2``
are 0, so that the teacher begins as what it was trained to be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgekd.contracts.registry import nearest
from edgekd.errors import InputError

FINE = (1, 3, 5)
COARSE = (7, 9, 11)
GATES = ("softmax", "sum")
STREAMS = 3
#: width of the squeeze-and-excitation bottleneck: the channels divided by this (Hu et al. 2018).
SQUEEZE = 16


class Depthwise(nn.Conv2d):
    """3 x 3 convolution of every channel by itself; tokens keep their grid.

    A permuted ``(N, h, w, C)`` is a channels-last ``(N, C, h, w)``: nothing is copied. The 1 x 1
    convolutions of this file are Linears on the last dimension, which is the same sum.

    Args:
        channels: width in and out.
        dilation: distance of the kernel's taps, in tokens.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__(
            channels, channels, 3, padding=dilation, dilation=dilation, groups=channels
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """``(N, h, w, C)`` -> ``(N, h, w, C)``."""
        return super().forward(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Aspp(nn.Module):
    """Atrous spatial pyramid (Chen et al. 2017): three dilated branches and the image's average.

    Branch: depthwise 3 x 3 at its dilation, GELU, 1 x 1, GELU. The average over the image's tokens
    is a fourth input of the 1 x 1 that joins them. It is the same at every token, so its part of
    the product is computed once per image (``pooled``) and added.

    Args:
        channels: width in and out.
        dilations: one per branch.
    """

    def __init__(self, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                Depthwise(channels, dilation),
                nn.GELU(),
                nn.Linear(channels, channels),
                nn.GELU(),
            )
            for dilation in dilations
        )
        self.join = nn.Linear(len(dilations) * channels, channels)
        self.pooled = nn.Linear(channels, channels, bias=False)
        self.act = nn.GELU()

    def forward(self, tokens: Tensor) -> Tensor:
        """``(N, h, w, C)`` -> ``(N, h, w, C)``."""
        joined = self.join(torch.cat([branch(tokens) for branch in self.branches], dim=-1))
        out: Tensor = self.act(joined + self.pooled(tokens.mean(dim=(1, 2), keepdim=True)))
        return out


class SqueezeExcitation(nn.Module):
    """A weight in 0..1 per image and channel, from the channels' averages (Hu et al. 2018).

    With GELU where Hu et al. have ReLU: the bottleneck is narrow, and ReLU units that start dead
    would stay so, in small adapters all of them.

    Args:
        channels: width in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // SQUEEZE)
        self.weigh = nn.Sequential(
            nn.Linear(channels, inner), nn.GELU(), nn.Linear(inner, channels), nn.Sigmoid()
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """``(N, h, w, C)`` -> ``(N, h, w, C)``."""
        weight: Tensor = self.weigh(tokens.mean(dim=(1, 2), keepdim=True))
        return tokens * weight


class Adapter(nn.Module):
    """Linear, GELU, ASPP, squeeze-and-excitation, depthwise 3 x 3, GELU, Linear; fresh, it gives 0.

    Args:
        dim: width of the tokens.
        reduction: the adapter works on ``dim / reduction`` channels, at least 1.
        dilations: of the ASPP's branches.
    """

    def __init__(self, dim: int, reduction: int, dilations: Sequence[int]) -> None:
        super().__init__()
        channels = max(1, dim // reduction)
        self.down = nn.Sequential(nn.Linear(dim, channels), nn.GELU())
        self.aspp = Aspp(channels, dilations)
        self.excite = SqueezeExcitation(channels)
        self.spread = nn.Sequential(Depthwise(channels, 1), nn.GELU())
        self.up = nn.Linear(channels, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(N, h, w, dim)`` -> ``(N, h, w, dim)``."""
        out: Tensor = self.up(self.spread(self.excite(self.aspp(self.down(tokens)))))
        return out


class Gate(nn.Module):
    """How much each of the three streams counts, token by token.

    ``q``, ``k``, ``v`` are three numbers each, without bias; ``A = softmax(q k^T / sqrt(3))`` is
    3 x 3 with rows that sum to 1, and ``w = 3 softmax(A v)``. ``v`` is 0 in the beginning, so that
    ``w`` is 1.

    Args:
        dim: width of the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, STREAMS, bias=False)
        self.key = nn.Linear(dim, STREAMS, bias=False)
        self.value = nn.Linear(dim, STREAMS, bias=False)
        nn.init.zeros_(self.value.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(N, h, w, dim)`` -> ``(N, h, w, 3)``, in 0..3, summing to 3 over the streams."""
        # float32 under autocast too: bfloat16 has steps of 0.008 at 1 and would hide small changes
        query, key, value = (
            linear(tokens).float() for linear in (self.query, self.key, self.value)
        )
        scores = query[..., :, None] * key[..., None, :] * STREAMS**-0.5
        logits = (scores.softmax(dim=-1) * value[..., None, :]).sum(dim=-1)
        weight: Tensor = STREAMS * logits.softmax(dim=-1)
        return weight


class MMoA(nn.Module):
    """Multi-scale mixture of adapters, one per teacher block.

    Fresh, it returns ``ffn`` exactly. At that point gradients reach the adapters' last Linear and
    the gate's value; one step later, all parameters. Under autocast the weights of the streams are
    float32, and so is the sum.

    With dim 1024 and reduction 4 it has 2,017,312 parameters (1,004,048 per adapter, 9,216 in the
    gate), 48.4 M in 24 blocks. On 1024 tokens and one CPU core it takes about half the time of the
    block's own perceptron, forward and backward.

    Args:
        dim: width of the tokens.
        reduction: the adapters work on ``dim / reduction`` channels.
        multi_scale: False gives both adapters dilation 1 throughout (an ablation).
        gate: ``softmax``, or ``sum``: all three streams count 1 and the gate has no parameters (an
            ablation).

    Raises:
        InputError: no such gate.
    """

    def __init__(
        self, dim: int, reduction: int = 4, multi_scale: bool = True, gate: str = "softmax"
    ) -> None:
        super().__init__()
        if gate not in GATES:
            raise InputError(
                f"adapter gate '{gate}' does not exist{nearest(gate, list(GATES))} "
                f"(valid: {', '.join(GATES)})"
            )
        self.fine = Adapter(dim, reduction, FINE if multi_scale else (1,) * len(FINE))
        self.coarse = Adapter(dim, reduction, COARSE if multi_scale else (1,) * len(COARSE))
        self.gate = Gate(dim) if gate == "softmax" else None

    def forward(self, xn: Tensor, ffn: Tensor) -> Tensor:
        """The block's update of the residual stream.

        Args:
            xn: ``(N, h, w, dim)``, the normalised stream.
            ffn: ``(N, h, w, dim)``, what the frozen perceptron gives for it.

        Returns:
            ``(N, h, w, dim)``.
        """
        fine, coarse = self.fine(xn), self.coarse(xn)
        total: Tensor
        if self.gate is None:
            total = ffn + fine + coarse
        else:
            weight = self.gate(xn)
            total = weight[..., 0:1] * ffn + weight[..., 1:2] * fine + weight[..., 2:3] * coarse
        return total
