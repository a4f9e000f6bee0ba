"""Images without labels: found once, scaled by rule, drawn alike by everyone, broken ones named."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from edgekd.contracts.distill import JitterSpec, UnlabeledSpec
from edgekd.contracts.windows import Window
from edgekd.errors import DatasetError, InputError
from edgekd.train.datasets import unlabeled
from edgekd.train.datasets._recolour import draw_window, to_bytes
from edgekd.train.datasets.unlabeled import Crop, UnlabeledCrops, UnlabeledSet, open_unlabeled
from tests.helpers.rasters import smooth_image, write_raster

PLAIN = JitterSpec(flip=False, quarter_turn=False)
COLOURS = JitterSpec(scale=[0.5, 2.0], brightness=0.3, contrast=0.3, saturation=0.3)


def spec(**changes: object) -> UnlabeledSpec:
    return UnlabeledSpec.model_validate({"roots": ["x"], **changes})


def opened(*roots: Path, crop_px: int = 32, **changes: object) -> UnlabeledSet:
    return open_unlabeled(roots, spec(**changes), crop_px)


def tiles(folder: Path, count: int, side: int = 48, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_raster(folder / f"t{number:02d}{suffix}", smooth_image(side, side, number))
    return folder


def cut(path: Path, part: float = 0.5) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    return path


def whole(data: UnlabeledSet, index: int = 0) -> np.ndarray:
    height, width = data.sizes[index]
    return np.asarray(data.read(index, Window(0, 0, height, width))[0])


def clean(crops: UnlabeledCrops) -> list[torch.Tensor]:
    return [crops[number].clean for number in range(len(crops))]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


# ---------------------------------------------------------------- what is found


def test_folders_images_lists_links_and_doubles(tmp_path: Path) -> None:
    folder = tiles(tmp_path / "a", 3)
    tiles(folder / "deep" / "er", 2, suffix=".tif")
    tiles(folder / ".hidden", 1)
    (folder / "._t00.png").write_bytes(b"not an image")
    (folder / "notes.md").write_text("x")
    (folder / "linked.png").symlink_to(folder / "t00.png")
    (folder / "side").mkdir()
    for name in ("loop", "again", "side/loop"):  # followed blindly: 3**40 ways
        (folder / name).symlink_to(folder)
    elsewhere = tiles(tmp_path / "elsewhere", 2)
    (folder / "more").symlink_to(elsewhere)
    assert len(opened(folder)) == 3 + 2 + 2
    assert len(opened(folder, folder / "deep", folder / "t01.png", elsewhere)) == 7

    listing = tmp_path / "lists" / "some.txt"
    listing.parent.mkdir()
    listing.write_text("# chosen\n\n../a/t01.png\n../a/deep\n ../a/t01.png \n")
    assert len(opened(listing)) == 3


def test_order_and_digest_depend_on_the_files_alone(tmp_path: Path) -> None:
    first, second = tiles(tmp_path / "a", 4), tmp_path / "b"
    second.mkdir()
    for path in sorted(first.iterdir(), reverse=True):
        (second / path.name).write_bytes(path.read_bytes())
    (single := tmp_path / "single").mkdir()
    write_raster(single / "s.png", smooth_image(40, 50))
    one, other = opened(first, single), opened(single, second)
    assert one.digest == other.digest
    assert same(
        clean(UnlabeledCrops(one, 32, COLOURS, 20, 1)),
        clean(UnlabeledCrops(other, 32, COLOURS, 20, 1)),
    )
    (second / "t03.png").rename(second / "t09.png")
    assert opened(single, second).digest != one.digest
    assert opened(first).digest != one.digest


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda p: p / "absent", InputError, "absent does not exist"),
        (lambda p: p, DatasetError, "holds no image"),
        (lambda p: touched(p / "x.hdf"), InputError, "neither a folder, nor an image"),
        (lambda p: touched(p / "l.txt", "# none\n"), DatasetError, "holds no image"),
        (lambda p: touched(p / "l.txt", "\nno.png\n"), InputError, "line 2: .*no.png does not"),
        (lambda p: touched(p / "l.txt", "l.txt\n"), InputError, "may not name another list"),
    ],
)
def test_nothing_there_is_one_clear_line(tmp_path: Path, make, kind, words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        opened(make(tmp_path))
    assert "\n" not in str(caught.value)


def touched(path: Path, text: str = "x") -> Path:
    path.write_text(text)
    return path


def test_no_roots() -> None:
    with pytest.raises(DatasetError, match="roots is empty"):
        opened()


def test_images_smaller_than_the_crop_are_refused_with_what_to_do(tmp_path: Path) -> None:
    tiles(tmp_path, 3, 48)
    write_raster(tmp_path / "big.png", smooth_image(80, 96))
    write_raster(tmp_path / "u.png", smooth_image(40, 90))
    assert len(opened(tmp_path, crop_px=40)) == 5
    with pytest.raises(DatasetError) as caught:
        opened(tmp_path, crop_px=64)
    assert str(caught.value) == (
        f"{tmp_path}/t00.png is 48 x 48 px, smaller than the crop of 64 px (and 3 more); set "
        "distill.crop_px to 40 or less, or leave these files out"
    )
    with pytest.raises(DatasetError, match="smaller than the crop of 64"):
        UnlabeledCrops(opened(tmp_path), 64, PLAIN, 1, 0)


# ---------------------------------------------------------------- broken files


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_one_of_forty_broken_is_left_out_and_named_three_are_refused(
    tmp_path: Path, suffix: str
) -> None:
    tiles(tmp_path, 40, suffix=suffix)
    said: list[str] = []
    cut(tmp_path / f"t07{suffix}")
    data = open_unlabeled([tmp_path], spec(), 32, log=said.append)
    assert len(data) == 39 and [path.name for path, _ in data.broken] == [f"t07{suffix}"]
    assert f"t07{suffix}" in said[0] and said[1] == "1 of 40 files are broken"
    (tmp_path / f"t08{suffix}").write_bytes(b"")
    assert len(opened(tmp_path)) == 38, "5 % are not more than 5 %"
    cut(tmp_path / f"t09{suffix}", 0.9)
    with pytest.raises(DatasetError, match="3 of 40 files are broken, more than 5%.*t07.*t09"):
        opened(tmp_path)


def test_a_large_geotiff_cut_short_is_found_when_opened(tmp_path: Path) -> None:
    path = write_raster(
        tmp_path / "s.tif", smooth_image(1100, 1100), tiled=True, blockxsize=256, blockysize=256
    )
    assert len(opened(path)) == 1
    cut(path, 0.95)
    with pytest.raises(DatasetError, match="1 of 1 files are broken"):
        opened(path)


def test_a_file_that_breaks_later_is_replaced_alike_by_everyone(tmp_path: Path) -> None:
    tiles(tmp_path, 30)
    early, late = opened(tmp_path), opened(tmp_path)
    before = clean(UnlabeledCrops(opened(tmp_path), 32, COLOURS, 120, 5))
    (tmp_path / "t11.png").unlink()
    with pytest.warns(RuntimeWarning, match="skipped a broken file.*t11.png") as caught:
        forward = clean(UnlabeledCrops(early, 32, COLOURS, 120, 5))
    assert len(caught) == 1, "named once"
    crops = UnlabeledCrops(late, 32, COLOURS, 120, 5)
    with pytest.warns(RuntimeWarning):
        backward = [crops[number].clean for number in reversed(range(120))][::-1]
    assert same(forward, backward)
    changed = [not torch.equal(a, b) for a, b in zip(before, forward, strict=True)]
    assert 0 < sum(changed) < 20, "only crops of the broken file are others"
    assert [path.name for path, _ in early.broken] == ["t11.png"]
    (tmp_path / "t12.png").unlink()
    with pytest.raises(DatasetError, match="2 of 30 files are broken"), pytest.warns():
        clean(UnlabeledCrops(opened_without_cache(early), 32, COLOURS, 120, 5))


def opened_without_cache(data: UnlabeledSet) -> UnlabeledSet:
    """As a worker that is spawned gets it."""
    return pickle.loads(pickle.dumps(data))


def test_a_file_replaced_by_another_is_refused(tmp_path: Path) -> None:
    tiles(tmp_path, 1)
    data = opened(tmp_path)
    write_raster(tmp_path / "t00.png", smooth_image(64, 64))
    with pytest.raises(DatasetError, match="was 48 x 48 px of uint8 and is now 64 x 64"):
        whole(data)


# ---------------------------------------------------------------- pixels


def test_eight_bits_are_used_as_they_are(tmp_path: Path) -> None:
    image = smooth_image(40, 50)
    write_raster(tmp_path / "a.png", image)
    data = opened(tmp_path, range=[10, 20])
    assert np.array_equal(whole(data), image)
    assert "8-bit images (1): pixels are used as they are" in data.rules


@pytest.mark.parametrize(
    ("dtype", "values", "given", "expected"),
    [
        ("uint16", [0, 100, 300, 500, 900, 65535], [100, 900], [0, 0, 64, 128, 255, 255]),
        ("int16", [-32768, -100, 0, 51, 100, 32767], [-100, 155], [0, 0, 100, 151, 200, 255]),
        ("float32", [-1.0, 0.0, 0.1, 0.2, 0.5, 9.0], [0.0, 0.5], [0, 0, 51, 102, 255, 255]),
        ("uint16", [7, 8, 9, 10, 11, 12], [8, 9], [0, 0, 255, 255, 255, 255]),
    ],
)
def test_sixteen_bits_by_hand(dtype: str, values: list, given: list, expected: list) -> None:
    assert to_bytes(np.array(values, dtype), *map(float, given)).tolist() == expected


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_percentiles_of_all_chosen_bands_without_nodata(tmp_path: Path, dtype: str) -> None:
    random = np.random.default_rng(0)
    image = random.integers(100, 5000, (60, 60, 4)).astype(dtype)
    image[:, :, 3] = 30000  # a band that is not chosen does not count
    image[:20] = -9 if dtype != "uint16" else 0
    path = write_raster(tmp_path / "a.tif", image, nodata=float(image[0, 0, 0]))
    data = opened(path, bands=[3, 1, 2])
    chosen = image[:, :, [2, 0, 1]].astype(np.float64)
    low, high = np.percentile(chosen[20:], [2, 98])
    expected = np.clip(np.rint((chosen - low) * 255 / (high - low)), 0, 255)
    assert np.array_equal(whole(data)[20:], expected[20:])
    assert any("98th percentile become 0 and 255, linearly" in rule for rule in data.rules)
    assert "bands 3, 1, 2 of every image are used" in data.rules
    given_range = opened(path, bands=[3, 1, 2], range=[0, 510])
    assert np.array_equal(whole(given_range)[20:], np.minimum(np.rint(chosen[20:] / 2), 255))


def test_percentiles_of_a_large_file_are_near_those_of_all_its_pixels(tmp_path: Path) -> None:
    image = (smooth_image(1500, 1400).astype(np.uint16) + 7) * 40
    data = opened(write_raster(tmp_path / "a.tif", image, tiled=True, compress="deflate"))
    low, high = np.percentile(image, [2, 98])
    assert data._files[0].low == pytest.approx(low, abs=200)
    assert data._files[0].high == pytest.approx(high, abs=200)
    assert not data._files[0].whole


def test_a_flat_file_and_one_without_any_data(tmp_path: Path) -> None:
    flat = write_raster(tmp_path / "a.tif", np.full((40, 40, 3), 700, np.uint16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a division by zero
        assert whole(opened(flat)).max() == 0
    empty = write_raster(tmp_path / "b.tif", np.full((40, 40, 3), np.nan, np.float32))
    with pytest.raises(DatasetError, match="no pixel with data where it was looked at"):
        opened(empty)


def test_an_8_bit_file_without_any_data_is_left_out_and_named(tmp_path: Path) -> None:
    tiles(tmp_path / "t", 30)
    nothing = np.zeros((48, 48, 3), np.uint8)
    write_raster(tmp_path / "t" / "void.tif", nothing, nodata=0)
    lines: list[str] = []
    data = open_unlabeled([tmp_path / "t"], spec(), 32, log=lines.append)
    assert len(data) == 30 and [path.name for path, _ in data.broken] == ["void.tif"]
    assert any("void.tif holds no pixel with data" in line for line in lines)
    assert len(opened(write_raster(tmp_path / "dark.tif", nothing))) == 1, "black is data here"


def test_a_large_file_with_data_in_one_corner_only_is_whole(tmp_path: Path) -> None:
    """Nine looks miss it, sixty-four do not."""
    image = np.zeros((1500, 1500, 3), np.uint8)
    image[200:260, 200:260] = 90
    path = write_raster(tmp_path / "a.tif", image, nodata=0, tiled=True)
    assert len(opened(path)) == 1
    empty = write_raster(tmp_path / "b.tif", np.zeros_like(image), nodata=0, tiled=True)
    with pytest.raises(DatasetError, match="b.tif holds no pixel with data"):
        opened(empty)


@pytest.mark.parametrize("dtype", ["int32", "uint32", "float64", "int8"])
def test_other_types_are_refused(tmp_path: Path, dtype: str) -> None:
    path = write_raster(tmp_path / "a.tif", np.ones((40, 40, 3), dtype))
    with pytest.raises(DatasetError, match=f"a.tif has {dtype} pixels, expected uint8, uint16"):
        opened(path)


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", np.ones((40, 40, 3), "complex64"))
    with pytest.raises(DatasetError, match="a.tif holds complex numbers, expected real ones"):
        opened(tmp_path / "a.tif")


def test_one_band_is_repeated_and_alpha_is_no_band(tmp_path: Path) -> None:
    grey = smooth_image(40, 40, 1, bands=1)
    data = opened(write_raster(tmp_path / "g.png", grey))
    assert np.array_equal(whole(data), np.repeat(grey, 3, axis=2))
    assert "images of which one band is used (1): repeated to 3 channels" in data.rules
    crop = UnlabeledCrops(data, 32, COLOURS, 1, 0)[0]
    assert crop.view.shape == (3, 32, 32) and torch.equal(crop.clean[0], crop.clean[2])
    image = smooth_image(40, 40, 2, bands=4)
    rgba = opened(write_raster(tmp_path / "c.tif", image, alpha=True))
    assert np.array_equal(whole(rgba), image[:, :, :3])


@pytest.mark.parametrize(
    ("bands", "count", "words"),
    [
        (None, 5, r"has 5 bands and the model takes 3; say which in distill.data.bands"),
        (None, 2, r"has 2 bands and the model takes 3"),
        ([1, 2], 5, r"distill.data.bands names 2 bands and the model takes 3"),
        ([1, 2, 6], 5, r"names band 6, but .*m.tif has 5"),
    ],
)
def test_bands_that_do_not_fit_are_refused(
    tmp_path: Path, bands: list[int] | None, count: int, words: str
) -> None:
    image = np.random.default_rng(0).integers(0, 9, (40, 40, count)).astype(np.uint16)
    write_raster(tmp_path / "m.tif", image)
    with pytest.raises(DatasetError, match=words):
        opened(tmp_path, bands=bands)


def test_a_palette_is_no_brightness(tmp_path: Path) -> None:
    palette = {value: (value, 0, 255 - value, 255) for value in range(256)}
    write_raster(tmp_path / "p.tif", smooth_image(40, 40, bands=1), palette=palette)
    with pytest.raises(DatasetError, match="p.tif holds numbers of a palette"):
        opened(tmp_path)


def test_nodata_is_drawn_again_and_what_is_left_is_filled(tmp_path: Path) -> None:
    image = np.full((200, 200, 3), (40, 80, 121), np.uint8)
    image[:150] = 0
    path = write_raster(tmp_path / "n.tif", image, nodata=0)
    strict = UnlabeledCrops(opened(path, max_nodata=0.0), 32, PLAIN, 100, 0)
    mixed = opened(path, max_nodata=0.5)
    lax = UnlabeledCrops(opened(path, max_nodata=1.0), 32, PLAIN, 100, 0)
    colour = torch.tensor([40, 80, 121], dtype=torch.uint8)[:, None, None].expand(3, 32, 32)
    redrawn = [bool((crop == 0).all()) for crop in clean(strict)]
    assert sum(redrawn) <= 8, "one crop in nine is whole; (8/9)**20 = 9.5 % stay without data"
    assert all(torch.equal(crop, colour) for crop in clean(strict) if crop.any())
    found = clean(lax)
    assert sum(not crop.any() for crop in found) > 50, "nothing is drawn again"
    assert all(torch.equal(crop, colour) for crop in found if crop.any()), "filled by the mean"
    places: list[Window] = []
    read = mixed.read
    mixed.read = lambda index, window: (places.append(window), read(index, window))[1]
    crops = UnlabeledCrops(mixed, 32, PLAIN, 100, 0)
    for number in range(100):
        places.clear()
        crops[number]
        shares = [np.clip((150 - place.y0) / 32, 0, 1) for place in places]
        assert all(share > 0.5 for share in shares[:-1])
        assert shares[-1] <= 0.5 or len(places) == 20
    assert any("more than 50% of pixels without data" in rule for rule in mixed.rules)


# ---------------------------------------------------------------- crops


@settings(max_examples=200, deadline=None)
@given(
    st.integers(32, 300),
    st.integers(0, 500),
    st.integers(0, 500),
    st.tuples(st.floats(0.25, 4), st.floats(0.25, 4)).map(sorted),
    st.integers(0, 2**32),
)
def test_every_source_lies_inside_and_has_the_right_side(
    crop: int, taller: int, wider: int, scale: list[float], seed: int
) -> None:
    height, width = crop + taller, crop + wider
    window = draw_window(height, width, crop, scale, np.random.default_rng(seed))
    assert 0 <= window.y0 < window.y1 <= height and 0 <= window.x0 < window.x1 <= width
    assert window.height == window.width
    fits = crop / min(height, width)
    low = max(scale[0], fits)
    high = max(scale[1], low)
    # the logarithm that is drawn from is inexact in its last place, and half a pixel may lie there
    narrow, wide = crop / high * (1 - 1e-9), crop / low * (1 + 1e-9)
    assert max(8, round(narrow)) <= window.height <= round(wide)


def test_scales_that_do_not_fit_are_not_heaped_up_at_the_one_that_does() -> None:
    random = np.random.default_rng(0)
    sides = [draw_window(64, 80, 64, [0.5, 2.0], random).height for _ in range(400)]
    assert min(sides) == 32 and max(sides) == 64 and sides.count(64) < 20
    assert {draw_window(70, 80, 64, [0.5, 0.6], random).height for _ in range(20)} == {70}


def test_scale_is_a_magnification(tmp_path: Path) -> None:
    image = np.zeros((256, 256, 3), np.uint8)
    image[:, ::2] = 200
    data = opened(write_raster(tmp_path / "a.png", image))
    shrunk = UnlabeledCrops(data, 64, JitterSpec(scale=[0.5, 0.5]), 1, 0)[0].clean
    assert set(shrunk.unique().tolist()) == {100}, "area mean of pairs of columns"
    grown = UnlabeledCrops(data, 64, PLAIN.model_copy(update={"scale": [4.0, 4.0]}), 1, 0)[0]
    assert int((grown.clean[0, 0].diff() > 0).sum()) > 20


def test_turns_and_mirrors_all_appear(tmp_path: Path) -> None:
    image = smooth_image(32, 32)
    data = opened(write_raster(tmp_path / "a.png", image))
    found = {
        crop.numpy().tobytes() for crop in clean(UnlabeledCrops(data, 32, JitterSpec(), 99, 0))
    }
    base = image.transpose(2, 0, 1)
    turns = [np.rot90(b, k, (1, 2)) for b in (base, base[:, :, ::-1]) for k in range(4)]
    assert found == {np.ascontiguousarray(turn).tobytes() for turn in turns}
    assert len({c.numpy().tobytes() for c in clean(UnlabeledCrops(data, 32, PLAIN, 9, 0))}) == 1


def test_one_scene_among_tiles_is_not_all_that_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles(tmp_path, 16, 32)
    write_raster(tmp_path / "scene.tif", smooth_image(1100, 1100), tiled=True)
    data = opened(tmp_path)
    drawn: list[int] = []
    read = data.read
    monkeypatch.setattr(data, "read", lambda i, w: (drawn.append(i), read(i, w))[1])
    clean(UnlabeledCrops(data, 32, PLAIN, 600, 0))
    scene = next(i for i, size in enumerate(data.sizes) if size[0] == 1100)
    assert 0.44 < np.mean(np.array(drawn) == scene) < 0.56, "16 of 32, not 98 %"
    assert set(drawn) == set(range(17))


@pytest.mark.parametrize(("workers", "batch"), [(0, 7), (2, 3), (2, 8)])
def test_workers_and_batches_change_nothing(tmp_path: Path, workers: int, batch: int) -> None:
    tiles(tmp_path, 3)
    write_raster(tmp_path / "s.tif", smooth_image(1100, 1100), tiled=True, compress="deflate")
    data = opened(tmp_path)
    crops = UnlabeledCrops(data, 32, COLOURS, 24, 7)
    expected = [crops[number] for number in range(24)]  # opens files before workers are forked
    loader = DataLoader(crops, batch, num_workers=workers, multiprocessing_context=fork(workers))
    numbers = []
    for found in loader:
        assert isinstance(found, Crop) and found.clean.dtype == torch.uint8
        for clean_, view, number in zip(found.clean, found.view, found.number, strict=True):
            numbers.append(int(number))
            assert torch.equal(clean_, expected[int(number)].clean)
            assert torch.equal(view, expected[int(number)].view)
    assert numbers == list(range(24))
    other = UnlabeledCrops(data, 32, COLOURS, 24, 8)
    assert not torch.equal(other[0].clean, expected[0].clean)


def fork(workers: int) -> str | None:
    return "fork" if workers else None


def test_a_spawned_worker_draws_the_same(tmp_path: Path) -> None:
    data = opened(tiles(tmp_path, 3))
    crops = UnlabeledCrops(data, 32, COLOURS, 4, 7)
    loader = DataLoader(crops, 4, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(next(iter(loader)).view, torch.stack([crops[n].view for n in range(4)]))


def test_open_files_do_not_cross_a_fork_or_a_pickle(tmp_path: Path) -> None:
    write_raster(tmp_path / "s.tif", smooth_image(1100, 1100), tiled=True)
    data = opened(tmp_path)
    before = data.read(0, Window(0, 0, 64, 64))[0]
    handle = data._rasters[0]
    data._process = -1  # what a forked worker sees: another process opened these
    assert np.array_equal(data.read(0, Window(0, 0, 64, 64))[0], before)
    assert data._rasters[0] is not handle
    assert not pickle.loads(pickle.dumps(data))._rasters


def test_a_pool_repeats_places_and_changes_colours(tmp_path: Path) -> None:
    data = opened(tiles(tmp_path, 6))
    crops = UnlabeledCrops(data, 32, COLOURS, 30, 3, pool=10)
    items = [crops[number] for number in range(30)]
    for number in range(10, 30):
        assert torch.equal(items[number].clean, items[number % 10].clean)
        assert not torch.equal(items[number].view, items[number % 10].view)
        assert items[number].number == number
    assert len({item.clean.numpy().tobytes() for item in items}) == 10
    endless = UnlabeledCrops(data, 32, COLOURS, 30, 3)
    assert len({crop.numpy().tobytes() for crop in clean(endless)}) == 30
    assert same(clean(endless)[:10], [item.clean for item in items[:10]])


def test_without_colour_changes_the_view_is_the_clean_crop(tmp_path: Path) -> None:
    data = opened(tiles(tmp_path, 1, 32))
    crops = UnlabeledCrops(data, 32, PLAIN, 2, 0)
    item = crops[0]
    assert item.view is item.clean
    item.clean.zero_()
    assert crops[0].clean.any(), "the kept pixels are not the item's memory"
    with pytest.raises(IndexError):
        crops[2]
    with pytest.raises(InputError, match="must not be negative"):
        UnlabeledCrops(data, 32, PLAIN, 2, 0, pool=-1)


def test_decoded_files_are_kept_within_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = opened(tiles(tmp_path, 8, 64))
    expected = [whole(data, index).copy() for index in range(8)]
    monkeypatch.setattr(unlabeled, "CACHE_BYTES", 3 * 64 * 64 * 3)
    data._forget()
    for index in [*range(8), 7, 6, 5, 0, 1]:
        assert np.array_equal(whole(data, index), expected[index])
        assert sum(pair[0].nbytes for pair in data._decoded.values()) <= unlabeled.CACHE_BYTES
        assert data._decoded_bytes == sum(pair[0].nbytes for pair in data._decoded.values())
    assert len(data._decoded) == 3 and not data._rasters


_GIANT = """
import resource, sys
from pathlib import Path
from edgekd.contracts.distill import JitterSpec, UnlabeledSpec
from edgekd.train.datasets.unlabeled import UnlabeledCrops, open_unlabeled
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = open_unlabeled([Path(sys.argv[1])], UnlabeledSpec(roots=["x"], max_nodata=1.0), 256)
crops = UnlabeledCrops(data, 256, JitterSpec(scale=[0.5, 2.0]), 30, 0)
assert sum(bool(crops[number].clean.any()) for number in range(30)) > 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_giant_scene_is_never_in_memory(tmp_path: Path, dtype: str) -> None:
    path, side = tmp_path / "giant.tif", 20_000
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 3, "dtype": dtype}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
    with rasterio.open(path, "w", **profile, SPARSE_OK=True, nodata=0) as data:
        tile = smooth_image(512, 512).astype(dtype).transpose(2, 0, 1) // 2 + 1
        for y in range(0, side - 512, 2048):
            for x in range(0, side - 512, 2048):
                data.write(tile, window=rasterio.windows.Window(x, y, 512, 512))
    grown = subprocess.run(
        [sys.executable, "-c", _GIANT, str(path)], capture_output=True, text=True, check=True
    )
    assert int(grown.stdout) < 250 * 1024, "KiB; all of it would be 1.1 or 2.2 GiB"


def test_real_tiles(test_data: Path) -> None:
    folder = test_data / "unlabeled_512"
    if not folder.is_dir():
        pytest.skip("no unlabeled_512")
    said: list[str] = []
    start = time.process_time()
    data = open_unlabeled([folder], spec(), 256, log=said.append)
    assert time.process_time() - start < 10, "3 s are asked for on a machine of its own"
    assert len(data) == 243 and data.broken == [] and said == data.rules
    crop = UnlabeledCrops(data, 256, COLOURS, 1, 0)[0]
    assert crop.clean.shape == (3, 256, 256) and crop.clean.float().std() > 5
    with pytest.raises(DatasetError, match=r"512 x 512 px, smaller .* 1024 px \(and 242 more\)"):
        open_unlabeled([folder], spec(), 1024)
