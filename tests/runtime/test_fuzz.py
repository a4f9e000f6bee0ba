"""Files of random sizes, windows and holes, mapped whole, against arrays of the whole scene.

``EDGEKD_FUZZ_CASES=5000 pytest tests/runtime/test_fuzz.py`` is the long run.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.contracts.tensors import MAP_NODATA
from edgekd.contracts.windows import Blend
from edgekd.runtime.backends.fake import FakeBackend
from edgekd.runtime.mapping import SceneResult
from edgekd.runtime.session import Session, load
from edgekd.runtime.tiler import TilePlan
from tests.helpers import reference
from tests.helpers.bundles import make_bundle
from tests.helpers.rasters import write_raster

EXAMPLES = min(int(os.environ.get("EDGEKD_FUZZ_CASES", "40")), 5000)
MOST_CLASSES = 5
#: how a file says that a pixel holds no data; the first three keep what the pixel holds
DECLARED = ("alpha", "mask", "not a number", "value", "corners")
SHAPES = ("none", "all", "rectangles", "islands", "specks", "stripes", "windows", "noise", "frame")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@dataclass(frozen=True)
class Case:
    """A scene and how it is cut into windows."""

    height: int
    width: int
    geometry: TilePlan
    shape: str
    declared: str
    storage: int
    streams: int
    seed: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    stride = draw(st.sampled_from([1, 2, 4, 8]))
    tile = stride * draw(st.integers(1, 12))
    overlap = draw(st.one_of(st.just(0), st.integers(0, tile - stride)))
    geometry = TilePlan(
        tile_px=tile,
        stride_px=stride,
        classes=draw(st.integers(2, MOST_CLASSES)),
        overlap_px=overlap,
        blend=draw(st.sampled_from(get_args(Blend))),
    )
    size = st.integers(1, min(150, tile + 5 * max(tile - overlap, 1)))
    return Case(
        draw(size), draw(size), geometry, draw(st.sampled_from(SHAPES)),
        draw(st.sampled_from(DECLARED)), draw(st.integers(0, 2)), draw(st.integers(1, 2)),
        draw(st.integers(0, 2**31)),
    )  # fmt: skip


def empty_pixels(case: Case, rng: np.random.Generator) -> np.ndarray:
    """Where there is no data, ``(H, W)`` bool."""
    shape = (case.height, case.width)
    y, x = np.mgrid[: case.height, : case.width]
    step = max(case.geometry.tile_px - case.geometry.overlap_px, 1)
    empty = np.zeros(shape, bool)
    if case.shape == "all":
        empty[:] = True
    elif case.shape in ("rectangles", "islands"):
        for _ in range(rng.integers(1, 5)):
            y0, x0 = (int(rng.integers(0, side)) for side in shape)
            h, w = (int(rng.integers(1, side + 1)) for side in shape)
            empty[y0 : y0 + h, x0 : x0 + w] = True
        empty ^= case.shape == "islands"
    elif case.shape == "specks":  # of data
        empty[:] = True
        for _ in range(rng.integers(1, 4)):
            empty[tuple(int(rng.integers(0, side)) for side in shape)] = False
    elif case.shape == "stripes":  # beside the windows' borders, or on them
        width = int(rng.choice([step, case.geometry.tile_px, rng.integers(1, 40)]))
        phase = int(rng.choice([0, rng.integers(0, 40)]))
        empty = ((rng.choice([x, y], axis=0) + phase) // max(width, 1)) % 2 == 0
    elif case.shape == "windows":  # whole windows, where they do not overlap
        empty = ((y // step) + (x // step)) % 2 == 0
    elif case.shape == "noise":
        empty = rng.random(shape) < rng.choice([0.05, 0.5, 0.99])
    elif case.shape == "frame":
        margin = int(rng.integers(0, 20))
        empty[:] = True
        empty[margin : case.height - margin, margin : case.width - margin] = False
    if case.declared == "corners":  # all four hold the value, or nothing is found
        empty[:: max(case.height - 1, 1), :: max(case.width - 1, 1)] = True
    return empty


_STORAGE = ({}, {"tiled": True, "blockxsize": 16, "blockysize": 32}, {"blockysize": 7})


def write_scene(path: Path, image: np.ndarray, empty: np.ndarray, case: Case) -> None:
    """The image with its holes declared; what lies under them is ``image`` where that is kept."""
    options = dict(_STORAGE[case.storage])
    if case.declared == "alpha":
        alpha = np.where(empty, 0, 255).astype(np.uint8)
        write_raster(path, np.dstack([image, alpha]), alpha=True, **options)
    elif case.declared == "mask":
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            write_raster(path, image, **options)
            with rasterio.open(path, "r+") as data:
                data.write_mask(~empty)
    elif case.declared == "not a number":
        values = image.astype(np.float32)
        values[empty, image[0, 0, 0] % 3] = np.nan  # one band of them is enough
        write_raster(path, values, photometric="minisblack", **options)
    else:
        filled = np.where(empty[:, :, None], 0, image).astype(np.uint8)
        write_raster(path, filled, nodata=0 if case.declared == "value" else None, **options)


def uneven(classes: int, stride: int, seen: list[bytes]) -> reference.Model:
    """Logits that depend on colours and on the place in the tile; keeps what it was given."""

    def model(tile: np.ndarray) -> np.ndarray:
        seen.append(tile.tobytes())
        n, c, h, w = tile.shape
        cells = tile.reshape(n, c, h // stride, stride, w // stride, stride).mean(axis=(3, 5))
        y, x = np.mgrid[: h // stride, : w // stride]
        planes = [2 * cells[0, k % c] * (k + 1) + np.cos(k + 0.9 * y - 1.3 * x)
                  for k in range(classes)]  # fmt: skip
        return np.stack(planes)[None].astype(np.float32)

    return model


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = make_bundle(tmp_path_factory.mktemp("b") / "b", tile_px=64, classes=MOST_CLASSES)
    with load(folder, streams=2) as opened:
        backend = opened.backend
        yield opened
        opened.backend = backend  # the one that it was opened with is closed


def mapped(
    session: Session, case: Case, path: Path, out: Path, seen: list[bytes]
) -> tuple[SceneResult, np.ndarray, np.ndarray, bytes]:
    """The scene through ``run_scene``; its result, classes, confidences and the files' bytes."""
    geometry = case.geometry
    model = uneven(geometry.classes, geometry.stride_px, seen)
    session.geometry = lambda overlap_px=None: geometry  # type: ignore[method-assign]
    session.backend = FakeBackend(
        geometry.tile_px, geometry.classes, geometry.stride_px, model, streams=case.streams
    )
    result = session.run_scene(
        path, out / "m.tif", [1, 2, 3], scores=out / "s.tif",
        scale=[(0.0, 255.0)] if case.declared == "not a number" else None,
    )  # fmt: skip
    files = [out / "m.tif", out / "s.tif"]
    with rasterio.open(files[0]) as data, rasterio.open(files[1]) as scores:
        return result, data.read(1), scores.read(1), b"".join(f.read_bytes() for f in files)


@settings(max_examples=EXAMPLES, deadline=None)
@given(case=cases())
def test_scenes_against_whole_arrays(session: Session, case: Case) -> None:
    rng = np.random.default_rng(case.seed)
    image = rng.integers(0, 255, (case.height, case.width, 3), dtype=np.uint8)
    image[rng.random((case.height, case.width)) < 0.2, rng.integers(3)] = 0
    image[(image == 0).all(axis=2)] = 1  # a value in one band alone does not mean "no data"
    empty = empty_pixels(case, rng)
    seen: list[bytes] = []
    wanted: list[bytes] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scene(folder / "in.tif", image, empty, case)
        result, classes, scores, files = mapped(session, case, folder / "in.tif", folder, seen)
        other = image.copy()  # what lies under "no data" is nobody's business
        other[empty] = rng.integers(0, 256, (int(empty.sum()), 3), dtype=np.uint8)
        write_scene(folder / "in.tif", other, empty, case)
        again = mapped(session, case, folder / "in.tif", folder, [])
    assert again[3] == files, "pixels without data changed the answer"
    valid = ~empty
    geometry = case.geometry
    expected = _expected(session, image, valid, case, wanted)

    # the model saw exactly the tiles that hold data, bit for bit
    assert Counter(seen) == Counter(wanted)
    assert result.windows_run == len(wanted)
    rows, columns = (
        reference.starts(side, geometry.tile_px, geometry.overlap_px, geometry.stride_px)[0]
        for side in (case.height, case.width)
    )
    tile = geometry.tile_px
    without = [not valid[y : y + tile, x : x + tile].any()
               for y, x in itertools.product(rows, columns)]  # fmt: skip
    assert result.windows_skipped == sum(without)
    assert result.windows == len(without) == result.windows_run + result.windows_skipped

    # every pixel with data has a class, and no other
    np.testing.assert_array_equal(classes == MAP_NODATA, empty)
    np.testing.assert_array_equal(scores == MAP_NODATA, empty)
    assert result.pixels_valid == int(valid.sum()) == sum(result.class_pixels.values())
    assert result.pixels_nodata == int(empty.sum())

    # and it is the right one: the winner, or, at a tie of floating point, as good as it
    best = expected.max(axis=0)
    index = np.where(valid, classes, 0).astype(int)
    assert index.max() < geometry.classes
    chosen = np.take_along_axis(expected, index[None], axis=0)[0]
    assert (best - chosen)[valid].max(initial=0.0) <= 2e-5
    second = np.sort(expected, axis=0)[-2]
    clear = valid & (best - second > 1e-4)
    np.testing.assert_array_equal(classes[clear], expected.argmax(axis=0)[clear])
    assert np.abs(scores[valid] - best[valid] * 254).max(initial=0.0) <= 0.51


def _expected(
    session: Session, image: np.ndarray, valid: np.ndarray, case: Case, wanted: list[bytes]
) -> np.ndarray:
    spec, geometry = session.manifest.inputs[0], case.geometry
    return reference.probabilities(
        image, valid, uneven(geometry.classes, geometry.stride_px, wanted), geometry.classes,
        geometry.tile_px, geometry.stride_px, geometry.overlap_px, geometry.blend,
        np.array(spec.mean), np.array(spec.std), session.fill,
    )  # fmt: skip
