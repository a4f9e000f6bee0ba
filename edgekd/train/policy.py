"""The projection of :mod:`edgekd.contracts.projection` as a torch layer with exact gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgekd.contracts import projection as fixed
from edgekd.errors import InputError


class PolicyProjection(nn.Module):
    """Scores ``(N, classes)`` -> probabilities ``(N, classes)`` that obey ``A p <= b``.

    Its gradient is that of the solution (implicit function theorem on the conditions of the last
    barrier), not that of the steps to it; it costs one linear system. Rules and bounds have none.
    Where steps did not suffice and the answer was drawn to the point that obeys (rare), it is that
    of the answer before. Scores that are not finite give a row that is not: nothing raises here.
    """

    def forward(self, scores: Tensor, rules: Tensor, bounds: Tensor, inside: Tensor) -> Tensor:
        """Project.

        Args:
            scores: ``(N, classes)`` logits.
            rules: ``(N, rows, classes)`` or ``(rows, classes)``, rows scaled to a largest
                coefficient of 1.
            bounds: ``(N, rows)`` or ``(rows,)``.
            inside: ``(N, classes)`` or ``(classes,)``, probabilities that obey.

        Raises:
            InputError: shapes that do not fit.
        """
        if rules.dim() == 2:
            rules, bounds = rules[None], bounds[None]
        inside = inside[None] if inside.dim() == 1 else inside
        count = len(scores)
        fits = (
            scores.dim() == 2 and rules.dim() == 3 and bounds.shape == rules.shape[:2]
            and rules.shape[2] == scores.shape[1] and len(rules) in (1, count)
            and inside.shape in {(1, rules.shape[2]), scores.shape}
        )  # fmt: skip
        if not fits:
            raise InputError(
                f"rules {tuple(rules.shape)}, bounds {tuple(bounds.shape)} and inside "
                f"{tuple(inside.shape)} do not fit scores {tuple(scores.shape)}: expected (N, "
                "rows, classes), (N, rows) and (N, classes)"
            )
        found: Tensor = _Projection.apply(  # type: ignore[no-untyped-call]
            scores,
            rules.double().expand(count, -1, -1),
            bounds.double().expand(count, -1),
            inside.double().expand(count, -1),
        )
        return found


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, rules: Tensor, bounds: Tensor, inside: Tensor) -> Tensor:
        p, weight, barrier = _solution(scores.detach().double(), rules, bounds, inside)
        ctx.save_for_backward(p, rules, weight, barrier)
        return p.to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """``dp = C (dz - A^T dw)`` where ``(A C A^T + diag(barrier / w^2)) dw = A C dz``.

        ``C = diag(p) - p p^T``.
        """
        p, rules, weight, barrier = ctx.saved_tensors
        given = grads[0].double()
        moved = p * (given - (p * given).sum(1, keepdim=True))  # C g
        spread = rules * p[:, None]
        past = rules @ p[:, :, None]
        system = spread @ rules.mT - past @ past.mT
        scale = weight / barrier[:, :, 0].sqrt()
        system = scale[:, :, None] * system * scale[:, None]
        system = system + torch.eye(system.shape[1], dtype=system.dtype, device=system.device)
        right = scale[:, :, None] * (rules @ moved[:, :, None])
        pulled = scale[:, :, None] * torch.linalg.solve(system, right)
        back = (rules.mT @ pulled)[:, :, 0]
        found = moved - p * (back - (p * back).sum(1, keepdim=True))
        return found.to(grads[0].dtype), None, None, None


def _solution(
    scores: Tensor, rules: Tensor, bounds: Tensor, inside: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, multipliers ``(N, rows)`` and the last barrier ``(N, 1, 1)``.

    Line by line :func:`edgekd.contracts.projection.project`.
    """
    at = rules.mT
    z = scores[:, :, None]
    z = z - torch.logsumexp(z, 1, keepdim=True)
    b = bounds[:, :, None] + fixed.SLACK
    weight = torch.ones_like(b)
    barrier = torch.full_like(b[:, :1], fixed.BARRIER_FIRST)
    eye = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    halved = 0.5 ** torch.arange(fixed.HALVINGS, dtype=z.dtype, device=z.device)[None, None]
    for _ in range(fixed.STEPS):
        p = torch.softmax(z - at @ weight, 1)
        past = rules @ p
        spread = (rules - past) * p.sqrt().mT
        room, pushed = b - past, barrier / weight
        loose, wish = weight / torch.maximum(room, pushed), pushed - room
        system = spread.mT @ (loose * spread) + eye
        unit = 1 / (system * eye).sum(2, keepdim=True).sqrt()
        system = unit * system * unit.mT + fixed.RIDGE * eye
        shared = unit * _solve(system, unit * (spread.mT @ (loose * wish)), eye)
        way = loose * (wish - spread @ shared)
        steepest = (-way / weight).amax(1, keepdim=True).clamp(min=1e-9)
        longest = (fixed.TO_BOUND / steepest).clamp(max=1)
        moved = at @ way
        apart = moved.amax(1, keepdim=True) - moved.amin(1, keepdim=True)
        longest = torch.minimum(longest, fixed.MOVED / apart.clamp(min=1e-9))
        lengths = longest * halved
        tried = weight + way * lengths
        value = (
            torch.logsumexp(z - at @ tried, 1, keepdim=True)
            + b.mT @ tried
            - barrier * tried.log().sum(1, keepdim=True)
        )
        least = value.amin(2, keepdim=True)
        good = value <= least + fixed.SAME * (1 + least.abs())
        length = torch.where(good, lengths, 0).amax(2, keepdim=True)
        found = (barrier <= fixed.BARRIER_LAST) & (length * apart < fixed.STILL)
        if bool(found.all()):
            break
        length = torch.where(found, 0, length)
        weight = (weight + length * way).clamp(fixed.WEIGHT_LEAST, fixed.WEIGHT_MOST)
        fine = (length >= longest * fixed.GOOD_PART) & (longest > fixed.GOOD_STEP)
        lower = (barrier * fixed.BARRIER_FALL).clamp(min=fixed.BARRIER_LAST)
        barrier = torch.where(fine, lower, barrier)
    p = torch.softmax(z - at @ weight, 1)
    past = (rules @ p - b - fixed.SLACK).clamp(min=0)
    within = inside[:, :, None]
    room = (b - rules @ within).clamp(min=fixed.LEAST_ROOM)
    p = p + (past / (past + room)).amax(1, keepdim=True) * (within - p)
    return p[:, :, 0], weight[:, :, 0], barrier


def _solve(system: Tensor, right: Tensor, eye: Tensor) -> Tensor:
    whole = torch.cat([system, right], 2)
    for row in range(len(eye)):
        this = whole[:, row : row + 1] / whole[:, row : row + 1, row : row + 1]
        whole = whole - (whole[:, :, row : row + 1] - eye[:, row : row + 1]) @ this
    return whole[:, :, len(eye) :]
