"""The coastal network: its size, what it reads, what a missing kind is, and its ONNX file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from edgekd.contracts.evidence import KINDS
from edgekd.errors import InputError
from edgekd.train.places.students._base import left_out
from edgekd.train.places.students.coastal import CoastalNet, Sizes


def some(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 365, 12, generator=random)
    return {
        "image": torch.randn(count, 3, 128, 128, generator=random),
        "series": torch.cat([values, torch.ones_like(values)], dim=2),
        "text": torch.randn(count, 384, generator=random),
        "present": torch.ones(count, 3),
    }


@pytest.fixture(scope="module")
def net() -> CoastalNet:
    torch.manual_seed(0)
    return CoastalNet(Sizes()).eval()


def test_about_twelve_million_parameters_and_little_arithmetic(net: CoastalNet) -> None:
    parameters = sum(value.numel() for value in net.parameters())
    assert 11e6 < parameters < 13e6
    with FlopCounterMode(display=False) as counter:
        net(**some(1))
    whole = counter.get_total_flops() / 2
    with FlopCounterMode(display=False) as counter:
        net.encoder.stages(some(1)["image"], (3, 5, 7))
    assert counter.get_total_flops() / 2 < 0.2e9, "the picture's branch: at most 1 GMAC"
    assert whole < 0.6e9


def test_answers_of_a_batch_are_those_of_its_places(net: CoastalNet) -> None:
    given = some(3)
    with torch.no_grad():
        whole = net(**given)
        alone = torch.cat([net(**{k: v[i : i + 1] for k, v in given.items()}) for i in range(3)])
    assert whole.shape == (3, 10) and torch.allclose(whole, alone, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_and_its_lack_is_no_error(net: CoastalNet, kind: str) -> None:
    given, other = some(2), some(2, seed=1)
    with torch.no_grad():
        before = net(**given)
        changed = net(**(given | {kind: other[kind]}))
        lacks = torch.ones(2, 3)
        lacks[:, KINDS.index(kind)] = 0
        without = net(**(given | {"present": lacks}))
        whatever = net(**(given | {"present": lacks, kind: other[kind]}))
    for after in (changed, without):
        assert torch.isfinite(after).all() and (after - before).abs().max() > 1e-4
    assert torch.equal(without, whatever), "what stands in place of a missing kind is not looked at"


@pytest.mark.parametrize(("row", "column", "token"), [(32, 32, 0), (32, 88, 7), (88, 88, 63)])
def test_the_middle_of_a_picture_is_its_middle(
    net: CoastalNet, row: int, column: int, token: int
) -> None:
    """The first 64 tokens are the centre 64 px in cells of 8, by rows."""
    given = some(1)
    marked = given["image"].clone()
    marked[:, :, row + 2 : row + 6, column + 2 : column + 6] += 5
    with torch.no_grad():
        one, two = (
            net.tokens(picture, given["series"], given["text"])["image"]
            for picture in (given["image"], marked)
        )
    assert one.shape[1] == 64 + 16 + 16
    assert int((one - two).abs().amax(2)[0, :64].argmax()) == token


@pytest.mark.parametrize(
    ("day", "weeks"), [(364, [52]), (360, [52]), (355, [51]), (3, [1]), (0, [0, 1])]
)
def test_the_newest_week_is_whole_and_the_oldest_is_filled_up(
    net: CoastalNet, day: int, weeks: list[int]
) -> None:
    """365 days are 52 weeks and a day, the oldest one; a day is seen two days around it."""
    given = some(1)
    marked = given["series"].clone()
    marked[:, day] += 5
    with torch.no_grad():
        one, two = (
            net.tokens(given["image"], series, given["text"])["series"]
            for series in (given["series"], marked)
        )
    assert one.shape[1] == 53
    assert (one - two).abs().amax(2)[0].nonzero()[:, 0].tolist() == weeks


def test_several_answers_of_the_same_tokens_are_single_answers(net: CoastalNet) -> None:
    given = some(3)
    presents = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 1, 1]])[:, None].expand(3, 3, 3)
    presents = torch.cat([presents, presents[1:, torch.arange(3)].flip(2)])
    with torch.no_grad():
        tokens = net.tokens(*(given[kind] for kind in KINDS))
        many = net.answers(tokens, presents)
        each = torch.stack([net.answer(tokens, present) for present in presents])
    assert many.shape == (5, 3, 10) and torch.allclose(many, each, atol=1e-5)
    assert (many[0] - many[1]).abs().max() > 1e-3


def test_embeddings_of_a_kind_are_of_that_kind_alone(net: CoastalNet) -> None:
    given, other = some(2), some(2, seed=1)
    del given["present"], other["present"]
    with torch.no_grad():
        first = net.embeddings(net.tokens(**given))
        second = net.embeddings(net.tokens(**(other | {"text": given["text"]})))
    assert first["text"].shape == (2, 128) and torch.allclose(first["text"], second["text"])
    assert not torch.allclose(first["image"], second["image"])


def test_its_graph_gives_the_same_and_is_what_engines_fuse(net: CoastalNet) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from edgekd.deploy.export.graph import unscaled_attention
    from edgekd.deploy.export.onnx_export import traced

    given, more = some(2), some(3, seed=2)
    more["present"][1, 0] = 0
    proto = traced(net, given, list(given), "logits")
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: value.numpy() for name, value in more.items()})
    with torch.no_grad():
        assert np.abs(found - net(**more).numpy()).max() < 1e-3
    softmaxes = [node for node in proto.graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == 6 and unscaled_attention(proto) == []
    for node in proto.graph.node:  # the scale is found behind the mask
        if node.op_type == "Add" and any("Softmax" in user.op_type for user in _users(proto, node)):
            node.input[0], node.input[1] = node.input[1], node.input[1]
    assert len(unscaled_attention(proto)) == 3


def _users(proto: Any, node: Any) -> list[Any]:
    return [item for item in proto.graph.node if node.output[0] in item.input]


def test_places_lose_what_is_asked_and_never_all() -> None:
    shares = {"image": 0.5, "series": 0.9, "text": 0.6}
    there = left_out(4000, shares, torch.Generator().manual_seed(0))
    assert set(there.unique().tolist()) == {0.0, 1.0} and bool((there.sum(1) > 0).all())
    expected = [1 - share + 0.27 / 3 for share in shares.values()]  # all gone: 0.27
    assert there.mean(0).tolist() == pytest.approx(expected, abs=0.03)
    assert bool((left_out(50, {}, torch.Generator()) == 1).all())


@pytest.mark.parametrize("shares", [{"image": 1.0}, {"text": -0.1}, {"sound": 0.5}])
def test_shares_that_make_no_sense(shares: dict[str, float]) -> None:
    with pytest.raises(InputError, match="part of places that lose"):
        left_out(1, shares, torch.Generator())


@pytest.mark.parametrize("change", [{"image_px": 100}, {"middle_px": 128}, {"middle_px": 40}])
def test_sides_that_do_not_fit(change: dict[str, int]) -> None:
    with pytest.raises(InputError, match="a picture of"):
        CoastalNet(Sizes(**change))
