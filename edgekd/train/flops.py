"""Arithmetic and parameters of a student, attention products included.

Built on ``torch.utils.flop_counter`` and run on the meta device: shapes only, no memory, no time.
Attention is pinned to PyTorch's plain spelling while counting: a fused kernel that the counter
has no formula for would be left out without a word. PyTorch 2.13 picks the plain spelling on the
meta device anyway; the pin keeps it so, and the tests hold the result to a count by hand.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgekd.contracts import registry

# Products of two activations. In the students these are Q K^T and A V, and nothing else.
_PRODUCTS = ("bmm", "baddbmm")
_FUSED_ATTENTION = "scaled_dot_product"


@dataclass(frozen=True)
class Cost:
    """What one image costs.

    Two operations per multiply-add. Convolutions, linear layers and attention products are
    counted; norms, activations, softmax, pooling, resizing, bias and residual additions are not
    (about one per cent of the whole).

    Attributes:
        parameters: number of learned values (buffers are not among them).
        flops: operations of everything that is counted.
        flops_attention_products: the part of ``flops`` in the products Q K^T and A V.
        by_operator: ``flops`` per PyTorch operator, the largest first.
    """

    parameters: int
    flops: int
    flops_attention_products: int
    by_operator: dict[str, int]


def count(model: nn.Module, side_px: int = 1024) -> Cost:
    """Cost of ``model`` on one image ``(1, 3, side_px, side_px)``.

    The model is neither run nor changed: its tensors are replaced by shapes for the count.

    Args:
        model: takes a float image ``(N, 3, H, W)``.
        side_px: side of the square image in pixels; for the students a multiple of their
            ``side_multiple``.

    Raises:
        InputError: the student refuses this side.
    """
    shapes = {
        name: tensor.detach().to("meta")
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    image = torch.empty(1, 3, side_px, side_px, dtype=dtype, device="meta")
    modes = {module: module.training for module in model.modules()}
    counter = FlopCounterMode(display=False)
    model.eval()
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            functional_call(model, shapes, (image,))
    finally:
        for module, training in modes.items():
            module.training = training
    counted = {str(op).split(".")[-1]: n for op, n in counter.get_flop_counts()["Global"].items()}
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        flops=sum(counted.values()),
        flops_attention_products=sum(
            n for op, n in counted.items() if op in _PRODUCTS or _FUSED_ATTENTION in op
        ),
        by_operator=dict(sorted(counted.items(), key=lambda item: (-item[1], item[0]))),
    )


def variants(name: str, side_px: int = 1024) -> list[dict[str, Any]]:
    """Cost of a student in every combination of size, attention and head that it offers.

    Two classes are counted; more of them change little but the last layer.

    Returns:
        JSON-ready rows: ``name``, ``variant``, ``attention``, ``head`` (None where the student has
        no choice), ``parameters``, ``flops``, ``flops_attention_products``, ``stride``,
        ``side_multiple``.
    """
    module = registry.load("edgekd.train.students", name, "student")
    rows = []
    sizes: tuple[str | None, ...] = tuple(getattr(module, "VARIANTS", (None,)))
    for size, attention, head in itertools.product(sizes, module.ATTENTIONS, module.HEADS):
        options = {"attention": attention, "head": head, "pretrained": False}
        if size is not None:
            options["variant"] = size
        model = module.build(2, **options)
        cost = count(model, side_px)
        rows.append(
            {
                "name": name,
                "variant": size,
                "attention": attention,
                "head": head,
                "parameters": cost.parameters,
                "flops": cost.flops,
                "flops_attention_products": cost.flops_attention_products,
                "stride": model.stride,
                "side_multiple": model.side_multiple,
            }
        )
    return rows
