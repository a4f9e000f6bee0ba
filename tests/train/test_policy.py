"""The projection in torch: equal to NumPy's, and its gradient that of the answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekd.contracts.policy_rows import padded
from edgekd.contracts.projection import project
from edgekd.errors import InputError
from edgekd.train.policy import PolicyProjection
from tests.helpers.policies import problem


@pytest.fixture(scope="module")
def problems() -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(11)
    found = [problem(random) for _ in range(100)]
    filled = zip(*(padded(a, b, 17) for _, a, b in found), strict=True)
    return (np.stack([z for z, _, _ in found]), *map(np.stack, filled))


@pytest.mark.parametrize(("kind", "bound"), [(np.float32, 1e-5), (np.float64, 1e-11)])
def test_it_is_what_numpy_gives(problems: tuple[np.ndarray, ...], kind: type, bound: float) -> None:
    z, *limits = (value.astype(kind) for value in problems)
    layer = PolicyProjection()
    found = layer(*map(torch.from_numpy, (z, *limits))).numpy()
    assert found.dtype == kind and np.abs(found - project(z, *limits)).max() <= bound
    third = [value[3] for value in limits]
    one = layer(*map(torch.from_numpy, (z, *third)))
    assert np.abs(one.numpy() - project(z, *third)).max() <= bound


def test_gradients_are_those_of_finite_differences(problems: tuple[np.ndarray, ...]) -> None:
    z, *limits = (torch.from_numpy(value).double() for value in problems)
    z.requires_grad_()
    layer = PolicyProjection()
    weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(1)).double()
    (layer(z, *limits) * weight).sum().backward()
    assert z.grad is not None
    step = 1e-4
    with torch.no_grad():
        for channel in range(z.shape[1]):
            moved = torch.zeros_like(z)
            moved[:, channel] = step
            high, low = (layer(z + sign * moved, *limits) for sign in (1, -1))
            expected = ((high - low) * weight).sum(1) / (2 * step)
            assert torch.allclose(z.grad[:, channel], expected, atol=2e-6, rtol=1e-4)
    assert float(z.grad.abs().max()) > 0.01


def test_a_rule_that_binds_takes_the_gradient_of_its_class() -> None:
    """p1 stays at its bound whatever its score; the others share as before."""
    z = torch.tensor([[2.0, 0.3, -0.1]], requires_grad=True)
    rule, bound, inside = map(torch.from_numpy, padded([[1.0, 0, 0]], [0.2], 1))
    PolicyProjection()(z, rule, bound, inside)[0, 0].backward()
    assert z.grad is not None and float(z.grad.abs().max()) < 1e-4
    z.grad = None
    PolicyProjection()(z, rule, bound, inside)[0, 1].backward()
    p = torch.softmax(z.detach()[0, 1:], 0)
    assert torch.allclose(z.grad[0], 0.8 * torch.tensor([0, p[0] * p[1], -p[0] * p[1]]), atol=1e-4)


def test_learning_goes_through_it() -> None:
    """Scores that are pushed to a forbidden class end at the next best."""
    z = torch.zeros(1, 4, requires_grad=True)
    limits = [torch.from_numpy(value) for value in padded([[1.0, 0, 0, 0]], [0.1], 1)]
    optimiser = torch.optim.SGD([z], lr=1.0)
    for _ in range(60):
        optimiser.zero_grad()
        p = PolicyProjection()(z, *limits)
        loss = -(p @ torch.tensor([5.0, 1.0, 0.0, 0.0]))[0]
        loss.backward()
        optimiser.step()
    assert p[0, 0] <= 0.1 + 1e-5 and p[0, 1] > 0.8


def test_shapes_that_do_not_fit_are_refused() -> None:
    layer = PolicyProjection()
    with pytest.raises(InputError, match="do not fit scores"):
        layer(torch.zeros(2, 3), torch.zeros(1, 4), torch.zeros(1), torch.zeros(3))
    with pytest.raises(InputError, match="do not fit scores"):
        layer(torch.zeros(2, 3), torch.zeros(5, 1, 3), torch.zeros(5, 1), torch.zeros(3))
    with pytest.raises(InputError, match="do not fit scores"):
        layer(torch.zeros(2, 3), torch.zeros(1, 3), torch.zeros(1), torch.zeros(4))
