"""Losses and diagnostics against numbers worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from edgekd.errors import InputError
from edgekd.train.distill.measures import (
    COLLAPSED_OVER,
    CollapseWatch,
    Projector,
    TeacherNorm,
    effective_rank,
    feature_std,
    kd_loss,
)
from tests.helpers.ranks import in_two_processes


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_kd_loss_is_the_mean_square_and_teaches_both_sides():
    student, teacher = (
        normal(0, 2, 3, 4, 5).requires_grad_(),
        normal(1, 2, 3, 4, 5).requires_grad_(),
    )
    loss = kd_loss(student, teacher)
    loss.backward()
    difference = (student - teacher).detach()
    assert loss.item() == pytest.approx(float(difference.square().sum()) / 120)
    torch.testing.assert_close(student.grad, 2 * difference / 120)
    torch.testing.assert_close(teacher.grad, -2 * difference / 120)


def test_kd_loss_is_float32_and_refuses_to_repeat():
    half = torch.ones(1, 2, 2, 3, dtype=torch.bfloat16)
    assert kd_loss(half, half).dtype == torch.float32
    with pytest.raises(InputError, match=r"\(1, 2, 2, 3\) after the projector .* \(1, 1, 1, 3\)"):
        kd_loss(half, half[:, :1, :1])


def test_projectors():
    tokens = normal(0, 2, 3, 4, 6)
    linear = Projector(6, 10, "linear")
    assert [tuple(p.shape) for p in linear.parameters()] == [(10, 6)]
    assert not linear(torch.zeros(1, 1, 1, 6)).any()
    mlp = Projector(6, 10, "mlp")
    assert [tuple(p.shape) for p in mlp.parameters()] == [(10, 6), (10,), (10, 10), (10,)]
    for projector in (linear, mlp):
        out = projector(tokens)
        assert tuple(out.shape) == (2, 3, 4, 10)
        torch.testing.assert_close(out[1, 2, 3], projector(tokens[1, 2, 3]))
    torch.testing.assert_close(linear(2 * tokens), 2 * linear(tokens))
    assert not torch.allclose(mlp(2 * tokens), 2 * mlp(tokens))
    with pytest.raises(InputError, match="projector 'lineal' does not exist"):
        Projector(6, 10, "lineal")


def test_norms_none_and_layer():
    features = 5 + 3 * normal(0, 2, 3, 4, 64)
    none, layer = TeacherNorm(64, "none"), TeacherNorm(64, "layer")
    for norm in (none, layer):
        norm.observe(features)
        assert not norm.state_dict()
        assert not list(norm.parameters())
    assert torch.equal(none(features), features)
    out = layer(features)
    assert out.mean(-1).abs().max() < 1e-5
    torch.testing.assert_close(out.var(-1, unbiased=False), torch.ones(2, 3, 4))
    with pytest.raises(InputError, match="teacher norm 'batch'"):
        TeacherNorm(64, "batch")


def test_standardize_is_exact_over_batches_of_any_size():
    """Against NumPy in float64 over all of it; the mean is large, so plain sums would cancel."""
    random = np.random.default_rng(0)
    batches = [
        (1e4 * (i + 1) + 0.1 * random.standard_normal((n, h, w, 7))).astype(np.float32)
        for i, (n, h, w) in enumerate([(2, 3, 4), (1, 1, 1), (4, 8, 8), (1, 5, 2)])
    ]
    norm = TeacherNorm(7, "standardize")
    for last in range(len(batches)):
        norm.observe(torch.from_numpy(batches[last]))
        rows = np.concatenate([b.reshape(-1, 7) for b in batches[: last + 1]]).astype(np.float64)
        np.testing.assert_allclose(norm.mean.numpy(), rows.mean(0), rtol=1e-13)
        np.testing.assert_allclose(
            (norm.squares / norm.count).numpy(), rows.var(0), rtol=1e-9, atol=1e-12
        )
        assert int(norm.count) == len(rows)


def test_standardize_gives_zero_mean_and_unit_variance():
    features = 5 + 3 * normal(0, 2, 8, 8, 16)
    norm = TeacherNorm(16, "standardize")
    assert torch.equal(norm(features), features)  # nothing observed yet
    norm.observe(features)
    rows = features.reshape(-1, 16).double().numpy()
    expected = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-6)
    np.testing.assert_allclose(norm(features).reshape(-1, 16).numpy(), expected, atol=1e-5)
    assert norm(features).dtype == torch.float32
    assert norm(features.bfloat16()).dtype == torch.float32


def test_standardize_learns_by_observe_in_training_mode_only():
    norm = TeacherNorm(4, "standardize")
    norm(normal(0, 1, 2, 2, 4))
    assert int(norm.count) == 0
    norm.eval().observe(normal(0, 1, 2, 2, 4))
    assert int(norm.count) == 0
    norm.train().observe(normal(0, 1, 2, 2, 4))
    assert int(norm.count) == 4


def test_standardize_is_saved_and_passes_gradients():
    norm = TeacherNorm(4, "standardize")
    norm.observe(3 * normal(0, 1, 4, 4, 4))
    other = TeacherNorm(4, "standardize")
    other.load_state_dict(norm.state_dict())
    features = normal(1, 1, 4, 4, 4).requires_grad_()
    assert torch.equal(other(features), norm(features))
    norm(features).sum().backward()
    torch.testing.assert_close(
        features.grad[0, 0, 0].double(), (norm.squares / norm.count + 1e-6).rsqrt()
    )


def _observe(rank: int) -> tuple[int, list[float], list[float]]:
    norm = TeacherNorm(3, "standardize")
    for step in range(2):
        norm.observe(100 + normal(10 * step + rank, 1, 2, 2 + 3 * rank, 3))
    return int(norm.count), norm.mean.tolist(), norm.squares.tolist()


def test_ranks_agree_and_have_seen_everything():
    """Two processes with batches of different size against one that sees all of it."""
    first, second = in_two_processes(_observe)
    assert first == second
    rows = torch.cat(
        [
            100 + normal(10 * step + rank, 1, 2, 2 + 3 * rank, 3).reshape(-1, 3)
            for step in (0, 1)
            for rank in (0, 1)
        ]
    ).double()
    assert first[0] == len(rows) == 28
    np.testing.assert_allclose(first[1], rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(first[2], rows.var(0, unbiased=False) * 28, rtol=1e-9)


def test_feature_std_by_hand():
    features = torch.tensor([[[[0.0, 10.0], [2.0, 10.0]]], [[[4.0, 16.0], [6.0, 16.0]]]])
    # channel 1: 0, 2, 4, 6 -> sqrt(5); channel 2: 10, 10, 16, 16 -> 3
    assert feature_std(features) == pytest.approx((math.sqrt(5) + 3) / 2)
    assert feature_std(torch.full((2, 3, 3, 4), 7.0)) == 0.0


def test_feature_std_tells_tokens_from_channels():
    """Channels that differ while all tokens are equal: collapsed."""
    assert feature_std(normal(0, 8).expand(2, 4, 4, 8)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("directions", [1, 2, 5, 16])
def test_effective_rank_of_equally_strong_directions(directions):
    """Exactly orthogonal centred columns of equal length, turned into 32 channels, and shifted."""
    columns = torch.linalg.qr(normal(0, 400, directions) - normal(0, 400, directions).mean(0)).Q
    columns = torch.linalg.qr(columns - columns.mean(0)).Q
    basis = torch.linalg.qr(normal(1, 32, directions)).Q
    features = 50 * columns @ basis.T + normal(2, 32)
    assert effective_rank(features.reshape(4, 10, 10, 32)) == pytest.approx(directions, rel=1e-3)


def test_effective_rank_by_hand():
    """Singular values 3 : 1 -> entropy of (3/4, 1/4)."""
    features = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(features) == pytest.approx(expected, rel=1e-6)


def test_effective_rank_of_random_features_is_near_their_width():
    assert effective_rank(normal(0, 4, 32, 32, 8)) == pytest.approx(8, rel=0.01)


def test_effective_rank_is_blind_to_scale_and_shift():
    features = normal(0, 300, 6) * torch.tensor([1.0, 2, 3, 4, 5, 6])
    value = effective_rank(features)
    assert effective_rank(1e-3 * features) == pytest.approx(value, rel=1e-5)
    assert effective_rank(features + 100) == pytest.approx(value, rel=1e-4)


def test_effective_rank_takes_evenly_spaced_tokens():
    features = normal(0, 1, 9, 10, 3) * torch.tensor([1.0, 2.0, 3.0])
    flat = features.reshape(90, 3)
    picked = flat[[0, 11, 22, 33, 44, 56, 67, 78, 89]]
    assert effective_rank(features, 9) == effective_rank(picked)
    assert effective_rank(features, 9) != effective_rank(flat[:9])
    assert effective_rank(features, 90) == effective_rank(features)


def test_effective_rank_without_variation_or_numbers():
    assert effective_rank(torch.zeros(2, 4, 4, 8)) == 0.0
    assert effective_rank(normal(0, 8).expand(2, 40, 40, 8)) == 0.0
    rounding = 1e3 + 1e-4 * normal(0, 50, 8)  # steps of float32 there are 6e-5
    assert rounding.std() > 0
    assert effective_rank(rounding) == 0.0
    assert math.isnan(effective_rank(torch.full((2, 4), math.nan)))


def shown(watch, name, std, rank, step=0, times=COLLAPSED_OVER):
    """The same measurement several times; the first warning."""
    said = [watch.update(step, name, std, rank) for _ in range(times)]
    return next((text for text in said if text), None)


def test_the_watch_warns_once_with_the_reason_and_again_after_a_recovery():
    watch = CollapseWatch()
    assert shown(watch, "teacher block 6", 2.0, 30.0) is None
    assert shown(watch, "teacher block 6", 0.21, 30.0) is None
    warning = shown(watch, "teacher block 6", 0.19, 30.0, step=3)
    assert warning == (
        "step 3: teacher block 6 has collapsed: its deviation over tokens fell from 2 to 0.19"
    )
    assert shown(watch, "teacher block 6", 0.01, 1.0) is None
    assert shown(watch, "teacher block 6", 1.0, 30.0) is None
    assert "has collapsed" in shown(watch, "teacher block 6", 0.1, 30.0, step=9)


def test_a_collapse_among_the_first_measurements_is_seen():
    watch = CollapseWatch()
    said = [
        watch.update(step, "student", std, 30.0) for step, std in enumerate([1.0, 1.0, *[0.01] * 9])
    ]
    assert [step for step, text in enumerate(said) if text] == [4]
    assert "fell from 1 to 0.01" in said[4]


def test_a_batch_of_plain_images_is_no_collapse():
    watch = CollapseWatch()
    for step in range(40):
        plain = step % 5 in (1, 2)
        assert watch.update(step, "student", 0.01 if plain else 1.0, 2.0 if plain else 40) is None


@pytest.mark.parametrize(
    ("most", "now", "warns"),
    [
        (100.0, 3.9, True),
        (100.0, 4.1, False),  # below 10 %, and still four directions
        (30.0, 2.9, True),
        (30.0, 3.5, False),
        (8.0, 1.0, False),
        (8.0, 0.0, True),  # does not vary at all
    ],
)
def test_the_watch_and_the_rank(most, now, warns):
    watch = CollapseWatch()
    shown(watch, "student", 1.0, most)
    warning = shown(watch, "student", 1.0, now, step=7)
    assert (warning is not None) == warns
    if warning:
        assert warning.startswith("step 7: student has collapsed: its effective rank fell")


def test_the_watch_keeps_names_apart():
    watch = CollapseWatch()
    shown(watch, "a", 1.0, 10.0)
    assert shown(watch, "b", 0.01, 10.0) is None
    assert shown(watch, "a", 0.01, 10.0)
    assert shown(watch, "b", 0.0001, 10.0)


def test_the_watch_and_what_is_not_finite():
    watch = CollapseWatch()
    shown(watch, "a", 1.0, 10.0)
    assert "not finite" in watch.update(1, "a", math.nan, 10.0), "at once"
    shown(watch, "b", 1.0, 10.0)
    assert "not finite" in watch.update(1, "b", math.inf, 10.0)
    assert watch.state_dict()["largest"]["b"] == [1.0, 10.0]


def test_the_watch_survives_a_checkpoint():
    watch = CollapseWatch()
    shown(watch, "a", 1.0, 10.0)
    shown(watch, "b", 1.0, 10.0)
    assert shown(watch, "a", 0.01, 10.0)
    shown(watch, "b", 0.01, 10.0, times=2)
    other = CollapseWatch()
    other.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert other.state_dict() == watch.state_dict()
    assert shown(other, "a", 0.001, 10.0) is None  # warned before
    assert other.update(2, "b", 0.01, 10.0)  # the third of five; the largest is remembered
    with pytest.raises(InputError, match="not the state of a collapse watch"):
        other.load_state_dict({"largest": {"a": [1.0]}, "warned": []})
    other.load_state_dict({"largest": {"a": [1.0, 2.0]}, "warned": []})  # as older runs have it
    assert other.state_dict()["last"] == {}
