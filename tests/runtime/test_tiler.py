"""The tiler against an independent whole-array reference, and its promises one by one."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.tensors import ImageInput
from edgekd.contracts.windows import Blend, Window, plan
from edgekd.errors import EdgeKDError, GateError
from edgekd.runtime import tiler
from edgekd.runtime.backends.fake import FakeBackend
from edgekd.runtime.blend import BandBlender, Upsampler, softmax
from edgekd.runtime.maps import SCORE_TOP, code_scores
from edgekd.runtime.tiler import Piece, TilePlan, TileStats, run_tiles
from tests.helpers import reference

MEAN = np.array([100.0, 110.0, 120.0])
STD = np.array([50.0, 60.0, 70.0])
FILL = MEAN.astype(np.uint8)


def normalizer(tile: int) -> Normalizer:
    return Normalizer(ImageInput(shape=["N", 3, tile, tile], mean=list(MEAN), std=list(STD)))


class Scene:
    """An array with holes that counts how often each pixel is read."""

    def __init__(self, image: np.ndarray, valid: np.ndarray | None = None) -> None:
        self.image = image
        self.height, self.width = image.shape[:2]
        self.valid = np.ones(image.shape[:2], bool) if valid is None else valid
        self.masked, self.block_rows, self.block_columns = valid is not None, 16, 16
        self.reads = np.zeros((self.height, self.width), int)

    def _inside(self, window: Window) -> None:
        assert 0 <= window.y0 < window.y1 <= self.height, "reads outside the scene, or nothing"
        assert 0 <= window.x0 < window.x1 <= self.width

    def read(self, window: Window, out: np.ndarray) -> None:
        self._inside(window)
        assert out.shape == (window.height, window.width, 3)
        self.reads[window.y0 : window.y1, window.x0 : window.x1] += 1
        out[...] = self.image[window.y0 : window.y1, window.x0 : window.x1]

    def read_valid(self, window: Window) -> np.ndarray:
        self._inside(window)
        return self.valid[window.y0 : window.y1, window.x0 : window.x1]


def uneven_model(classes: int, stride: int) -> reference.Model:
    """Logits that also depend on the place in the tile, so that windows disagree."""

    def model(tile: np.ndarray) -> np.ndarray:
        n, c, h, w = tile.shape
        cells = tile.reshape(n, c, h // stride, stride, w // stride, stride).mean(axis=(3, 5))
        y, x = np.mgrid[: h // stride, : w // stride]
        tilt = [np.sin(0.7 * (k + 1) * (y + 2 * x) + k) for k in range(classes)]
        tints = [(k + 1) * cells[:, k % c] for k in range(classes)]
        return (np.stack(tints, axis=1) + np.stack(tilt)[None]).astype(np.float32)

    return model


def joined(parts: list[Piece], height: int, width: int) -> list[np.ndarray]:
    """Channel, confidence and validity; every pixel must come once."""
    whole = [np.zeros((height, width), kind) for kind in (np.uint8, np.float32, bool)]
    came = np.zeros((height, width), int)
    for piece in parts:
        assert piece.channel.shape == piece.confidence.shape == piece.valid.shape
        assert piece.channel.size and 0 <= piece.y0 < piece.y1 <= height
        part = slice(piece.y0, piece.y1), slice(piece.x0, piece.x1)
        came[part] += 1
        values = (piece.channel, piece.confidence, piece.valid)
        for out, value in zip(whole, values, strict=True):
            out[part] = value
    assert (came == 1).all(), "a pixel came twice or never"
    return whole


def run(
    scene: Scene, model: reference.Model, geometry: TilePlan, batch: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray, TileStats]:
    """Channel, confidence and validity of the whole scene; checks order and cover of the pieces."""
    stats = TileStats()
    tile = geometry.tile_px
    backend = FakeBackend(tile, geometry.classes, geometry.stride_px, model)
    parts = list(
        run_tiles(
            scene,
            lambda tensor: backend.infer({"image": tensor})["logits"],
            normalizer(tile),
            geometry,
            stats,
            FILL,
            streams=1 + scene.width % 3,  # the result must not depend on these
            batch=batch,
        )
    )
    channel, confidence, valid = joined(parts, scene.height, scene.width)
    assert (scene.reads == 1).all(), "a pixel was read twice or never"
    assert stats.run + stats.skipped == stats.windows
    assert backend.calls == len(stats.latencies_s) <= stats.run
    assert backend.tiles == stats.run
    return channel, confidence, valid, stats


def compare(
    image: np.ndarray, valid: np.ndarray, geometry: TilePlan, model: reference.Model
) -> TileStats:
    batch = 1 + len(image) % 4
    channel, confidence, found_valid, stats = run(Scene(image, valid), model, geometry, batch)
    expected = reference.probabilities(
        image,
        valid,
        model,
        geometry.classes,
        geometry.tile_px,
        geometry.stride_px,
        geometry.overlap_px,
        geometry.blend,
        MEAN,
        STD,
        FILL,
    )
    np.testing.assert_array_equal(found_valid, valid)
    np.testing.assert_allclose(confidence, expected.max(axis=0), atol=1e-5)
    chosen = np.take_along_axis(expected, channel[None].astype(int), axis=0)[0]
    assert (expected.max(axis=0) - chosen <= 2e-5).all(), "not the winner, and no near tie"
    return stats


@pytest.fixture(autouse=True, params=[40, 2048], ids=["narrow panels", "usual panels"])
def panels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Scenes of tests are small; panels of some windows must not show either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiler, "PANEL_PX", request.param)
        yield


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, TilePlan, int, float]:
    stride = draw(st.sampled_from([1, 2, 4, 8]))
    cells = draw(st.integers(1, 12))
    tile = stride * cells
    geometry = TilePlan(
        tile_px=tile,
        stride_px=stride,
        classes=draw(st.integers(2, 5)),
        overlap_px=draw(st.integers(0, tile - stride)),
        blend=draw(st.sampled_from(get_args(Blend))),
    )
    most = max(2, 6 * (tile - geometry.overlap_px))
    size = st.integers(1, min(180, tile + most))
    return (
        draw(size),
        draw(size),
        geometry,
        draw(st.integers(0, 2**31)),
        draw(st.sampled_from([0.0, 0.3, 0.97])),
    )


@settings(max_examples=120, deadline=None)
@given(cases())
def test_against_the_reference(case: tuple[int, int, TilePlan, int, float]) -> None:
    height, width, geometry, seed, holes = case
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    valid = rng.random((height, width)) >= holes
    compare(image, valid, geometry, uneven_model(geometry.classes, geometry.stride_px))


SIZES = [
    (1, 1), (1, 200), (200, 1), (31, 31), (32, 32), (33, 32), (32, 33), (63, 65), (64, 64),
    (56, 56), (55, 57), (100, 37), (3, 500), (500, 3), (129, 256),
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(cases())
def test_a_run_that_starts_again_gives_the_same_bits(
    case: tuple[int, int, TilePlan, int, float],
) -> None:
    """Behind every row of windows; what was counted before is not counted twice."""
    height, width, geometry, seed, holes = case
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    valid = rng.random((height, width)) >= holes
    model = uneven_model(geometry.classes, geometry.stride_px)
    seen: list[bytes] = []

    def watched(tiles: np.ndarray) -> np.ndarray:
        seen.append(tiles.tobytes())
        return model(tiles)

    backend = FakeBackend(geometry.tile_px, geometry.classes, geometry.stride_px, watched)

    def pieces(stats: TileStats, behind: int) -> list[Piece]:
        return list(
            run_tiles(
                Scene(image, valid), lambda t: backend.infer({"image": t})["logits"],
                normalizer(geometry.tile_px), geometry, stats, FILL, behind=behind, batch=3,
            )
        )  # fmt: skip

    whole_stats = TileStats()
    found = pieces(whole_stats, 0)
    given = [(item.windows, item.y1) for item in found if item.windows]
    assert [number for number, _ in given] == sorted({number for number, _ in given})
    whole = joined(found, height, width)
    calls = list(seen)
    planned = plan(height, width, geometry.tile_px, geometry.overlap_px, geometry.stride_px)
    for number, done in given[:-1]:
        stats = TileStats()
        seen.clear()
        rest = [replace(item, y0=item.y0 - done) for item in pieces(stats, number)]
        for name, values, again in zip(
            ("channel", "confidence", "valid"),
            whole,
            joined(rest, height - done, width),
            strict=True,
        ):
            np.testing.assert_array_equal(again, values[done:], err_msg=name)
        assert seen == calls[len(calls) - len(seen) :], "other tiles share a call"
        assert [item.windows for item in rest if item.windows] == [
            item for item, _ in given if item > number
        ]
        assert stats.windows == whole_stats.windows
        assert stats.run + stats.skipped == sum(len(row) for row in planned[number:])


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("overlap", [0, 8, 20])
def test_sizes(height: int, width: int, overlap: int) -> None:
    rng = np.random.default_rng(height * 1000 + width)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    geometry = TilePlan(32, 4, 3, overlap, "cosine")
    stats = compare(image, np.ones((height, width), bool), geometry, uneven_model(3, 4))
    assert stats.skipped == 0


def test_a_scene_wider_than_a_short_integer() -> None:
    width = 40_001
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, width, 3), dtype=np.uint8)
    geometry = TilePlan(64, 8, 2, 8, "cosine")
    compare(image, np.ones((5, width), bool), geometry, uneven_model(2, 8))


def test_the_reference_itself_on_a_case_worked_out_by_hand() -> None:
    grid = np.array([[[0.0, 1.0]]])
    np.testing.assert_allclose(reference.bilinear(grid, 2)[0, 0], [0, 0.25, 0.75, 1])
    assert reference.starts(10, 8, 0, 4) == ([0, 4], 12)


def test_classes_are_never_averaged() -> None:
    """Class 0 beside class 3: a mean of indices would invent 1 and 2."""
    image = np.zeros((96, 96, 3), np.uint8)
    image[:, 40:] = 255

    def model(tile: np.ndarray) -> np.ndarray:
        bright = tile[:, 0, ::4, ::4] > 0
        logits = np.full((len(tile), 4, *bright.shape[1:]), -20, np.float32)
        logits[:, 0][~bright] = 20
        logits[:, 3][bright] = 20
        return logits

    channel, confidence, _, _ = run(Scene(image), model, TilePlan(32, 4, 4, 16, "cosine"))
    assert set(np.unique(channel)) == {0, 3}
    np.testing.assert_array_equal(channel, np.where(np.arange(96) < 40, 0, 3)[None].repeat(96, 0))
    assert confidence.min() >= 0.5


def test_windows_that_disagree_are_blended_by_probability() -> None:
    """Two windows, equal weights in the middle: 0.9 for class 1 beats 0.8 for class 0."""
    calls: list[int] = []

    def model(tile: np.ndarray) -> np.ndarray:
        calls.append(1)
        p = 0.8 if len(calls) == 1 else 0.1  # of class 0
        logits = np.log(np.array([p, 1 - p], np.float32))
        return np.broadcast_to(logits[None, :, None, None], (1, 2, 8, 8)).copy()

    geometry = TilePlan(8, 1, 2, 4, "constant")
    channel, confidence, _, _ = run(Scene(np.zeros((8, 12, 3), np.uint8)), model, geometry)
    np.testing.assert_array_equal(channel[0], [0] * 4 + [1] * 8)
    expected = [0.8] * 4 + [0.55] * 4 + [0.9] * 4
    np.testing.assert_allclose(confidence, np.tile(expected, (8, 1)), atol=1e-6)


def test_ties_go_to_the_lower_channel() -> None:
    def model(tile: np.ndarray) -> np.ndarray:
        return np.zeros((1, 3, 8, 8), np.float32)

    channel, confidence, _, _ = run(
        Scene(np.zeros((20, 20, 3), np.uint8)), model, TilePlan(32, 4, 3, 8, "cosine")
    )
    assert (channel == 0).all()
    np.testing.assert_allclose(confidence, 1 / 3, atol=1e-6)


def test_windows_without_data_are_skipped_and_the_model_never_sees_nodata() -> None:
    image = np.full((128, 160, 3), 60, np.uint8)
    valid = np.zeros((128, 160), bool)
    valid[10:20, 5:9] = True  # in the first window only
    image[~valid] = 255  # must not reach the model
    seen: list[np.ndarray] = []

    def model(tile: np.ndarray) -> np.ndarray:
        seen.append(tile.copy())
        return np.zeros((1, 2, 8, 8), np.float32)

    _, _, found, stats = run(Scene(image, valid), model, TilePlan(32, 4, 2, 0, "cosine"))
    assert (stats.windows, stats.run, stats.skipped) == (20, 1, 19)
    pixels = seen[0] * STD[None, :, None, None] + MEAN[None, :, None, None]
    for channel, value in enumerate(FILL):
        assert set(np.unique(np.round(pixels[:, channel]))) == {60.0, float(value)}
    np.testing.assert_array_equal(found, valid)


def test_padding_is_a_mirror_and_holds_no_foreign_values() -> None:
    image = np.arange(5, dtype=np.uint8)[None, :, None].repeat(3, 0).repeat(3, 2) + 10
    seen: list[np.ndarray] = []

    def model(tile: np.ndarray) -> np.ndarray:
        seen.append(tile.copy())
        return np.zeros((1, 2, 4, 4), np.float32)

    run(Scene(image), model, TilePlan(16, 4, 2, 0, "cosine"))
    row = np.round(seen[0][0, 0, 7] * STD[0] + MEAN[0]).astype(int).tolist()
    assert row == [10, 11, 12, 13, 14, 14, 13, 12, 11, 10, 10, 11, 12, 13, 14, 14]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_model_that_gives_nan_is_refused(value: float) -> None:
    def model(tile: np.ndarray) -> np.ndarray:
        logits = np.zeros((1, 2, 8, 8), np.float32)
        logits[0, 1, 3, 3] = value
        return logits

    with pytest.raises(GateError, match="NaN or infinite logits for the window at row 0, column 0"):
        run(Scene(np.zeros((8, 8, 3), np.uint8)), model, TilePlan(32, 4, 2, 0, "cosine"))


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (1, 1, 8, 8), (1, 3, 8, 8), (2, 8, 8)])
def test_a_model_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    """NumPy would broadcast the first two without a word."""

    def model(tile: np.ndarray) -> np.ndarray:
        return np.zeros(shape, np.float32)

    with pytest.raises(EdgeKDError, match="is declared as float32 of shape"):
        run(Scene(np.zeros((8, 8, 3), np.uint8)), model, TilePlan(32, 4, 2, 0, "cosine"))


def test_a_call_has_as_many_tiles_as_the_batch() -> None:
    """Empty windows take no place; a batch ends with its row of windows."""
    valid = np.ones((64, 160), bool)
    valid[:32, 32:64] = False
    sizes: list[int] = []

    def model(tiles: np.ndarray) -> np.ndarray:
        sizes.append(len(tiles))
        return np.zeros((len(tiles), 2, 8, 8), np.float32)

    scene = Scene(np.zeros((64, 160, 3), np.uint8), valid)
    stats = run(scene, model, TilePlan(32, 4, 2, 0, "cosine"), batch=3)[3]
    assert sizes == [3, 1, 3, 2] and (stats.run, stats.skipped) == (9, 1)


def test_progress_reaches_the_total_by_one() -> None:
    said: list[tuple[int, int]] = []
    valid = np.zeros((70, 70), bool)
    valid[0, 0] = True
    backend = FakeBackend(32, 2)
    rows = run_tiles(
        Scene(np.zeros((70, 70, 3), np.uint8), valid),
        lambda tensor: backend.infer({"image": tensor})["logits"],
        normalizer(32),
        TilePlan(32, 4, 2, 0, "cosine"),
        TileStats(),
        FILL,
        lambda done, total: said.append((done, total)),
    )
    assert sum(part.channel.size for part in rows) == 70 * 70
    assert said == [(number, 9) for number in range(1, 10)]


class Endless:
    """A scene that exists only as it is read."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.masked, self.block_rows, self.block_columns = True, 8, 8

    def read(self, window: Window, out: np.ndarray) -> None:
        out[...] = window.y0 % 251

    def read_valid(self, window: Window) -> np.ndarray:
        return np.ones((window.height, window.width), bool)


def peak(height: int, width: int) -> int:
    backend = FakeBackend(64, 3)
    tracemalloc.start()
    try:
        total = 0
        for piece in run_tiles(
            Endless(height, width),
            lambda tensor: backend.infer({"image": tensor})["logits"],
            normalizer(64),
            TilePlan(64, 4, 3, 16, "cosine"),
            TileStats(),
            FILL,
        ):
            total += piece.channel.size
        assert total == height * width
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("width", "block_columns", "expected"),
    [  # windows are 64 px, overlap 16; panels of 40 or 2048 px
        (4096, 4096, [4096]),
        (4097, 4097, [4097]),  # wider than stored once it is a multiple of the cell
        (4099, 4099, [4099]),
        (4097, 9999, [4097]),
        (6000, 3000, [6000]),  # blocks wider than a panel would be decoded again for each
        (300, 16, None),
    ],
)
def test_what_is_stored_together_is_read_together(
    width: int, block_columns: int, expected: list[int] | None
) -> None:
    scene = Endless(100, width)
    scene.block_columns = block_columns
    seen: list[Window] = []
    read = scene.read

    def watched(window: Window, out: np.ndarray) -> None:
        seen.append(window)
        read(window, out)

    scene.read = watched  # type: ignore[method-assign]
    backend = FakeBackend(64, 3)
    for _ in run_tiles(
        scene, lambda tensor: backend.infer({"image": tensor})["logits"], normalizer(64),
        TilePlan(64, 4, 3, 16, "cosine"), TileStats(), FILL,
    ):  # fmt: skip
        pass
    top = [window.width for window in seen if window.y0 == 0]
    assert sum(top) == width
    if expected is not None:
        assert top == expected
    elif tiler.PANEL_PX == 40:
        assert len(top) > 3


def test_memory_does_not_grow_with_the_height() -> None:
    peak(200, 256)  # first use of everything
    low, high = peak(600, 256), peak(2400, 256)
    more_windows = (2400 - 600) // 48 * 6  # a window costs its plan and its latency, no pixels
    assert high - low <= 500 * more_windows, f"{low} -> {high} bytes for four times the height"
    assert 500 * more_windows < 0.1 * (2400 - 600) * 256 * 3


def test_softmax() -> None:
    logits = np.array([[[[1000.0]], [[1001.0]], [[-1000.0]]]], np.float32)
    expected = np.array([1, np.e, 0]) / (1 + np.e)
    before = logits.copy()
    np.testing.assert_allclose(softmax(logits)[0, :, 0, 0], expected, atol=1e-6)
    np.testing.assert_array_equal(logits, before)


def test_memory_hardly_grows_with_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what two rows of windows share is as wide as the scene, where blocks allow panels."""
    monkeypatch.setattr(tiler, "PANEL_PX", 512)
    peak(200, 256)
    low, high = peak(300, 4096), peak(300, 16384)
    # shared: 16 rows and a cell of pixels with their mask, and 4 rows of cells
    shared = (16 + 4) * (3 + 1) + (3 + 1) * 4 * 4 / 4 + 3 * 2 * 4 / 4
    more_windows = (16384 - 4096) // 48 * 6
    growth = high - low - 500 * more_windows
    assert growth <= 1.2 * shared * (16384 - 4096), f"{low} -> {high} bytes, four times the width"


def test_the_blender_refuses_windows_out_of_order_and_gaps() -> None:
    blender = BandBlender(2, 8, 4, np.ones((4, 4), np.float32))
    part = np.full((2, 4, 4), 0.5, np.float32)
    blender.add(0, 0, part)
    with pytest.raises(ValueError, match="starts at cell row 2"):
        blender.add(2, 0, part)
    with pytest.raises(ValueError, match="columns 0-8 are not covered"):
        blender.advance(2)
    assert blender.advance(2, 3).shape == (2, 2, 3)
    with pytest.raises(ValueError, match="starts at cell column 0, the panel at 3"):
        blender.add(0, 0, part)
    blender.add(0, 4, part)
    assert blender.advance(2).shape == (2, 2, 5)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 6),
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.data(),
)
def test_pixels_come_out_the_same_however_cells_are_fed(
    stride: int, bands: list[int], panels: list[int], data: st.DataObject
) -> None:
    count, width = sum(bands), sum(panels)
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    grid = rng.random((3, count, width)).astype(np.float32)
    height = data.draw(st.integers(max(1, (count - 1) * stride + 1), count * stride))
    width_px = data.draw(st.integers(max(1, (width - 1) * stride + 1), width * stride))
    upsampler = Upsampler(stride, height, width_px, width)
    pieces = []
    for y0, band in zip(np.cumsum([0, *bands]), bands, strict=False):
        for x0, panel in zip(np.cumsum([0, *panels]), panels, strict=False):
            cells = grid[:, y0 : y0 + band, x0 : x0 + panel]
            for y, x, channel, confidence, _ in upsampler.push(cells, y0 + band == count):
                pieces.append(Piece(y, x, channel, confidence, np.ones(channel.shape, bool)))
    expected = reference.bilinear(grid.astype(np.float64), stride)[:, :height, :width_px]
    _, confidence, _ = joined(pieces, height, width_px)
    np.testing.assert_allclose(confidence, expected.max(axis=0), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("spread", [0.0, 0.02, 3.0], ids=["all level", "nearly level", "sure"])
def test_the_probabilities_of_all_channels(classes: int, spread: float) -> None:
    """Each within half a step of the truth, or one more below a winner that it ties with; the
    highest is the winner, whose code is that of the confidence."""
    rng = np.random.default_rng(classes)
    grid = softmax(spread * rng.standard_normal((1, classes, 9, 11)).astype(np.float32))[0]
    plain = list(Upsampler(4, 35, 42, 11).push(grid, True))
    found = list(Upsampler(4, 35, 42, 11, planes=True).push(grid, True))
    without = list(Upsampler(4, 35, 42, 11, confidence=False, planes=True).push(grid, True))
    exact = reference.bilinear(grid.astype(np.float64), 4)[:, :35, :42] * SCORE_TOP
    tied = 0
    for old, new, other in zip(plain, found, without, strict=True):
        np.testing.assert_array_equal(new.channel, old.channel)
        np.testing.assert_array_equal(new.confidence, old.confidence)
        assert old.planes is None and new.planes is not None and other.planes is not None
        np.testing.assert_array_equal(new.planes, other.planes)
        np.testing.assert_array_equal(new.planes.argmax(axis=0), new.channel)
        codes = code_scores(new.confidence)
        np.testing.assert_array_equal(new.planes.max(axis=0), codes)
        assert ((new.planes == codes).sum(axis=0) == 1).all()
        here = exact[:, new.y0 : new.y0 + len(codes), new.x0 : new.x0 + codes.shape[1]]
        above, below = new.planes - here, here - new.planes
        assert above.max() <= 0.5 + 1e-3 and below.max() <= 1.5 + 1e-3
        tied += int((below > 0.5 + 1e-3).sum())
    assert tied > 0 or spread > 1
