"""The ViT students: geometry, attention plans, positions, and wrong options."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekd.errors import InputError
from edgekd.train.students import vit_nano, vit_small, vit_tiny
from edgekd.train.students._vit import Attention, ViT, attend, sincos_positions


def tiny_vit(attention: str = "windowed", taps: tuple[int, ...] = (3, 6)) -> ViT:
    torch.manual_seed(0)
    return ViT(dim=48, depth=6, heads=3, taps=taps, attention=attention).eval()


def image(height: int, width: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("head", ["linear", "upernet"])
@pytest.mark.parametrize("attention", ["global", "windowed"])
@pytest.mark.parametrize(("height", "width"), [(256, 256), (512, 512), (256, 512)])
def test_shapes(height, width, attention, head):
    model = vit_nano.build(5, attention=attention, head=head).eval()
    with torch.no_grad():
        features = model.encoder(image(height, width, batch=2))
        logits = model(image(height, width, batch=2))
    assert [tuple(f.shape) for f in features] == [(2, 96, height // 16, width // 16)] * 2
    assert model.stride == (16 if head == "linear" else 4)
    assert tuple(logits.shape) == (2, 5, height // model.stride, width // model.stride)
    assert model.options == {"attention": attention, "head": head, "pretrained": False}


@pytest.mark.parametrize(
    ("module", "name", "dim", "blocks", "heads", "taps"),
    [
        (vit_nano, "vit_nano", 96, 6, 3, (3, 6)),
        (vit_tiny, "vit_tiny", 192, 12, 3, (3, 6, 9, 12)),
        (vit_small, "vit_small", 384, 12, 6, (3, 6, 9, 12)),
    ],
)
def test_numbers_of_each_student(module, name, dim, blocks, heads, taps):
    model = module.build(3)
    encoder = model.encoder
    assert model.name == name
    assert (encoder.dim, len(encoder.blocks), encoder.blocks[0].attention.heads) == (
        dim,
        blocks,
        heads,
    )
    assert encoder.taps == taps
    assert encoder.strides == [16] * len(taps)
    assert all(encoder.is_global(number) for number in taps)
    assert model.options["attention"] == "windowed"


def test_side_multiple_is_what_encoder_and_head_need_together():
    multiples = {
        (attention, head): vit_nano.build(2, attention=attention, head=head).side_multiple
        for attention in ("global", "windowed")
        for head in ("linear", "upernet")
    }
    assert multiples == {
        ("global", "linear"): 16,
        ("global", "upernet"): 256,
        ("windowed", "linear"): 256,
        ("windowed", "upernet"): 256,
    }


def test_global_attention_takes_any_multiple_of_the_patch():
    model = vit_nano.build(2, attention="global", head="linear").eval()
    with torch.no_grad():
        assert tuple(model(image(48, 80)).shape) == (1, 2, 3, 5)


@pytest.mark.parametrize(
    ("attention", "height", "width"),
    [
        ("windowed", 250, 256),
        ("windowed", 256, 272),
        ("windowed", 0, 256),
        ("global", 256, 250),
    ],
)
def test_a_side_that_does_not_fit_is_refused(attention, height, width):
    with pytest.raises(InputError, match=f"image of {height} x {width} px") as caught:
        tiny_vit(attention)(image(height, width))
    assert f"multiples of {256 if attention == 'windowed' else 16} px" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "windowd"}, "did you mean 'windowed'"),
        ({"head": "uppernet"}, "did you mean 'upernet'"),
        ({"head": "_base"}, "valid: linear, upernet"),
        ({"pretrained": True}, "no bundled weights"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        vit_nano.build(2, **options)


@pytest.mark.parametrize("taps", [(), (0, 3), (3, 7), (6, 3), (3, 3)])
def test_wrong_taps_are_refused(taps):
    with pytest.raises(InputError, match="taps"):
        tiny_vit(taps=taps)


def test_pretrained_false_is_the_same_as_none():
    assert vit_nano.build(2, pretrained=False).options == vit_nano.build(2).options


def test_windows_do_not_see_each_other_before_the_first_global_block():
    """One pixel changes only its own 16 x 16 tokens until block 3, and everything from there on."""
    encoder = tiny_vit("windowed", taps=(1, 2, 3))
    before = image(512, 512)
    after = before.clone()
    after[0, 1, 300, 40] += 5.0  # token (18, 2): second row of windows, first column
    with torch.no_grad():
        changed = [
            (a != b).any(dim=1)[0] for a, b in zip(encoder(before), encoder(after), strict=True)
        ]
    own_window = torch.zeros(32, 32, dtype=torch.bool)
    own_window[16:32, 0:16] = True
    for block in (0, 1):
        assert not changed[block][~own_window].any()
        assert changed[block][own_window].all()
    assert changed[2].float().mean() > 0.99


def test_global_attention_reaches_everywhere_in_one_block():
    encoder = tiny_vit("global", taps=(1,))
    before = image(512, 512)
    after = before.clone()
    after[0, 1, 300, 40] += 5.0
    with torch.no_grad():
        changed = (encoder(before)[0] != encoder(after)[0]).any(dim=1)
    assert changed.float().mean() > 0.99


def test_both_plans_are_the_same_network_on_one_window():
    """256 x 256 px is a single window: the same weights must give the same features."""
    windowed, everywhere = tiny_vit("windowed"), tiny_vit("global")
    with torch.no_grad():
        for a, b in zip(windowed(image(256, 256)), everywhere(image(256, 256)), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_windowed_block_equals_attention_on_each_crop():
    """An independent way to the same numbers: cut the token grid, run block 1 on each piece."""
    encoder = tiny_vit("windowed", taps=(1,))
    tokens = torch.randn(2, 32, 48, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (whole,) = encoder.run_blocks(tokens)
        for row in range(0, 32, 16):
            for column in range(0, 48, 16):
                crop = tokens[:, row : row + 16, column : column + 16]
                alone = encoder.blocks[0](crop.flatten(1, 2)).reshape(2, 16, 16, 48)
                torch.testing.assert_close(
                    whole[:, row : row + 16, column : column + 16], alone, atol=1e-5, rtol=0
                )


def test_explicit_and_fused_attention_agree():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 64, 16, generator=generator) for _ in range(3))
    torch.testing.assert_close(
        attend(query, key, value, explicit=True),
        attend(query, key, value, explicit=False),
        atol=1e-5,
        rtol=0,
    )


def test_attention_equals_pytorchs_own_layer():
    """Weights copied into nn.MultiheadAttention give the same output: scale, heads and order."""
    torch.manual_seed(0)
    ours = Attention(48, 3).eval()
    reference = torch.nn.MultiheadAttention(48, 3, batch_first=True).eval()
    with torch.no_grad():
        torch.nn.init.normal_(ours.qkv.bias)
        reference.in_proj_weight.copy_(ours.qkv.weight)
        reference.in_proj_bias.copy_(ours.qkv.bias)
        reference.out_proj.load_state_dict(ours.proj.state_dict())
        tokens = torch.randn(2, 10, 48)
        expected, _ = reference(tokens, tokens, tokens, need_weights=False)
        torch.testing.assert_close(ours(tokens), expected, atol=1e-5, rtol=0)


def test_an_export_spells_attention_out_and_agrees():
    """Tracing for export takes the explicit form, with the scale on Q, and no fused operator."""
    encoder = tiny_vit("windowed").eval()
    picture = image(256, 256, batch=2)
    with torch.no_grad():
        expected = encoder(picture)
        exported = torch.export.export(encoder, (picture,), strict=False)
        actual = exported.module()(picture)
    calls = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    names = [call.split(".")[1] for call in calls if call.startswith("aten.")]
    assert not {name for name in names if "scaled_dot_product" in name}
    assert not {"sin", "cos", "arange"} & set(names)
    assert names.count("softmax") == 6
    attention = names[names.index("split_with_sizes") : names.index("softmax")]
    assert attention.index("mul") < attention.index("matmul")
    assert attention.count("mul") == 1
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_positions_are_those_of_the_paper():
    """Written out for one cell: columns in the first half, rows in the second, sin before cos."""
    table = sincos_positions(4, 6, 8)
    assert table.shape == (4, 6, 8)
    assert table.dtype == np.float32
    row, column = 3, 5
    expected = [
        np.sin(column), np.sin(column / 100), np.cos(column), np.cos(column / 100),
        np.sin(row), np.sin(row / 100), np.cos(row), np.cos(row / 100),
    ]  # fmt: skip
    np.testing.assert_allclose(table[row, column], expected, atol=1e-6)
    assert len({tuple(cell) for cell in table.reshape(-1, 8).tolist()}) == 24


def test_positions_follow_the_grid_and_are_not_saved():
    encoder = tiny_vit("global")
    with torch.no_grad():
        encoder(image(64, 32))
        assert tuple(encoder.positions_for(4, 2).shape) == (1, 4, 2, 48)
        first = encoder(image(32, 64))
        encoder(image(64, 64))
        again = encoder(image(32, 64))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not {"positions", "columns", "rows"} & set(encoder.state_dict())


def test_positions_added_as_two_tables_are_the_bits_of_the_paper_s_table():
    """In FP16 too: where one table holds a number the other holds zero, so nothing rounds twice."""
    for kind in (torch.float32, torch.float16):
        encoder = tiny_vit("global").to(kind)
        tokens = torch.randn(2, 4, 6, 48, generator=torch.Generator().manual_seed(1)).to(kind)
        table = torch.from_numpy(sincos_positions(4, 6, 48)).to(kind)
        assert torch.equal(encoder.positions_for(4, 6)[0], table)
        assert torch.equal(encoder.place(tokens), tokens + table)
        assert (encoder.columns.numel(), encoder.rows.numel()) == (6 * 48, 4 * 48)
    encoder.float()  # and what FP16 had rounded is made anew
    assert torch.equal(encoder.positions_for(4, 6)[0], torch.from_numpy(sincos_positions(4, 6, 48)))


def test_positions_matter():
    """Without them a ViT could not tell two equal patches apart."""
    encoder = tiny_vit("global")
    with torch.no_grad():
        features = encoder(torch.ones(1, 3, 64, 64))[-1]
    assert features[0, :, 0, 0].sub(features[0, :, 3, 2]).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["global", "windowed"])
def test_the_encoder_runs_on_a_subsampled_grid(attention):
    """Distillation's way in: every second token with its own position, in any batch."""
    encoder = tiny_vit(attention)
    with torch.no_grad():
        tokens = encoder.patchify(image(512, 512, batch=2))
        tokens = tokens + encoder.positions_for(32, 32)
        features = encoder.run_blocks(tokens[:, ::2, 1::2])
        hidden_changed = tokens.clone()
        hidden_changed[:, 1::2] += 1.0
        again = encoder.run_blocks(hidden_changed[:, ::2, 1::2])
    assert [tuple(f.shape) for f in features] == [(2, 16, 16, 48)] * 2
    assert all(torch.equal(a, b) for a, b in zip(features, again, strict=True))
    assert [tuple(f.shape) for f in encoder.normalize(features)] == [(2, 48, 16, 16)] * 2


def test_features_are_normalised_tap_by_tap():
    with torch.no_grad():
        features = tiny_vit()(image(256, 256))
    for feature in features:
        assert feature.mean(dim=1).abs().max() < 1e-4
        torch.testing.assert_close(
            feature.var(dim=1, unbiased=False), torch.ones(1, 16, 16), atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("head", ["linear", "upernet"])
def test_gradients_reach_every_parameter(head):
    model = vit_nano.build(3, head=head).train()
    model(image(256, 256, batch=2)).square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_same_seed_same_network_and_same_answer():
    outputs = []
    for _ in range(2):
        torch.manual_seed(7)
        model = vit_nano.build(3, head="upernet").eval()
        with torch.no_grad():
            outputs += [model(image(256, 256)), model(image(256, 256))]
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])


def test_images_of_a_batch_do_not_see_each_other():
    model = vit_nano.build(3, head="upernet").eval()
    batch = image(256, 256, batch=3)
    with torch.no_grad():
        together = model(batch)
        alone = model(batch[1:2])
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=0)
