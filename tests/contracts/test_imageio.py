"""Damaged files never come back as pixels; what a raster says of itself."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import rasterio.transform
import rasterio.warp

from edgekd.contracts.imageio import Raster, gdal_environment
from edgekd.contracts.windows import Window
from edgekd.errors import ImageError
from tests.helpers.rasters import smooth_image, write_raster

TILED = {"tiled": True, "blockxsize": 64, "blockysize": 64}
KINDS: dict[str, dict[str, object]] = {
    "a.jpg": {"quality": 85},
    "progressive.jpg": {"PROGRESSIVE": "ON"},
    "a.png": {},
    "a.jp2": {"driver": "JP2OpenJPEG"},
    "a.webp": {"driver": "WEBP"},
    "a.bmp": {"driver": "BMP"},
    "raw.tif": {},
    "band.tif": {"interleave": "band"},
    "deflate.tif": {"compress": "deflate"},
    "packbits.tif": {"compress": "packbits"},
    "lzw_tiled.tif": {"compress": "lzw", **TILED},
    "raw_tiled.tif": TILED,
    "deflate_tiled.tif": {"compress": "deflate", **TILED},
    "jpeg_strips.tif": {"compress": "jpeg", "photometric": "ycbcr"},
    "jpeg_tiled.tif": {"compress": "jpeg", "photometric": "ycbcr", **TILED},
    # cloud-optimised: the directory stands at the front, so a cut file still opens
    "cog.tif": {"driver": "COG", "blocksize": 128},
    "cog_raw.tif": {"driver": "COG", "blocksize": 128, "compress": "none"},
    "cog_jpeg.tif": {"driver": "COG", "blocksize": 128, "compress": "jpeg"},
}


def made(folder: Path, name: str) -> Path:
    options = dict(KINDS[name])
    image = smooth_image(150, 190)
    if options.get("driver") in (None, "GTiff"):
        return write_raster(folder / name, image, **options)
    source = write_raster(folder / "source.tif", image)
    with gdal_environment():
        rasterio.shutil.copy(source, folder / name, **options)
    return folder / name


@pytest.mark.parametrize("name", KINDS)
def test_a_cut_file_never_gives_wrong_pixels(tmp_path: Path, name: str) -> None:
    path = made(tmp_path, name)
    blob = path.read_bytes()
    with Raster(path) as raster:
        whole = raster.read_all()
    assert whole.shape == (150, 190, 3) and whole.std() > 10
    count = len(blob)
    cuts = {count * part // 24 for part in range(1, 24)}
    cuts |= {1, 4, 8, 33, 100} | {count - less for less in (1, 2, 4, 8, 9, 12, 13, 16, 40)}
    refused = 0
    for cut in sorted(cuts):
        target = tmp_path / ("cut" + path.suffix)
        target.write_bytes(blob[:cut])
        try:
            with Raster(target) as raster:
                pixels = raster.read_all()
        except ImageError as err:
            assert "\n" not in str(err) and str(target) in str(err)
            refused += 1
        else:  # only the last bytes of a COG, which hold no pixels, may be missed
            assert "cog" in name and cut >= count - 4
            np.testing.assert_array_equal(pixels, whole)
    assert refused >= len(cuts) - 3


def test_a_flipped_byte_of_a_png_is_seen(tmp_path: Path) -> None:
    path = made(tmp_path, "a.png")  # JPEG and TIFF hold no checksum that GDAL would compare
    blob = bytearray(path.read_bytes())
    for place in np.linspace(12, len(blob) - 1, 40).astype(int):
        blob[place] ^= 0x10
        path.write_bytes(blob)
        blob[place] ^= 0x10
        with pytest.raises(ImageError):
            Raster(path)


def test_a_cut_file_is_refused_by_window_too(tmp_path: Path) -> None:
    path = made(tmp_path, "cog.tif")
    with Raster(path) as raster:
        whole = raster.read_all()
    blob = path.read_bytes()
    path.write_bytes(blob[: len(blob) * 6 // 10])
    refused = 0
    with Raster(path) as raster:
        for y in (0, 40, 86):
            window = Window(y, 0, y + 64, 190)
            try:
                pixels = raster.read(window, [1, 2, 3])
            except ImageError as err:
                assert f"rows {y}-{y + 64} cannot be decoded" in str(err)
                refused += 1
            else:
                np.testing.assert_array_equal(pixels, whole[y : y + 64])
    assert refused >= 1


def test_strict_decoding_holds_for_overlapping_rasters_and_other_threads(tmp_path: Path) -> None:
    whole = made(tmp_path, "a.jpg")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole.read_bytes()[:3000])
    first, second = Raster(whole), Raster(cut)
    first.close()  # must not switch strictness off for the second
    with pytest.raises(ImageError):
        second.read_all()
    caught: list[Exception] = []

    def read() -> None:
        try:
            second.read_all()
        except ImageError as err:
            caught.append(err)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert len(caught) == 1
    second.close()
    second.close()


def test_a_vrt_over_damaged_or_missing_files(tmp_path: Path) -> None:
    band = (
        '<VRTRasterBand dataType="{type}" band="{number}"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">{name}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand>"
    )

    def vrt(name: str, types: tuple[str, ...] = ("Byte", "Byte", "Byte")) -> Path:
        bands = [band.format(type=t, number=n, name=name) for n, t in enumerate(types, 1)]
        text = f'<VRTDataset rasterXSize="190" rasterYSize="150">{"".join(bands)}</VRTDataset>'
        (tmp_path / "a.vrt").write_text(text)
        return tmp_path / "a.vrt"

    png = made(tmp_path, "a.png")
    with Raster(vrt("a.png")) as raster:
        assert raster.read_all().std() > 10
    png.write_bytes(png.read_bytes()[:9000])
    with pytest.raises(ImageError, match=r"a\.png is damaged"), Raster(vrt("a.png")) as raster:
        raster.read_all()
    with (
        pytest.raises(ImageError, match=r"absent\.tif does not exist"),
        Raster(vrt("absent.tif")) as raster,
    ):
        raster.read_all()
    made(tmp_path, "raw.tif")
    with Raster(vrt("raw.tif", ("Byte", "UInt16", "Byte"))) as raster:
        assert raster.dtypes == ["uint8", "uint16", "uint8"]


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "empty.tif").touch()
    (tmp_path / "text.tif").write_text("not a picture\n" * 50)
    (tmp_path / "text.png").write_text("a,b\n1,2\n")
    image = smooth_image(16, 16)
    write_raster(tmp_path / "a.img", image)
    for path, words in (
        (tmp_path / "absent.tif", "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "empty.tif", "is empty (0 bytes)"),
        (tmp_path / "text.tif", "cannot be opened as an image"),
        (tmp_path / "text.png", "cannot be opened as an image"),
        (tmp_path / "a.img", "is a HFA file; convert it first"),
    ):
        with pytest.raises(ImageError) as caught:
            Raster(path)
        assert words in str(caught.value) and str(path) in str(caught.value)


def test_pixels_come_back_exactly_and_by_window(tmp_path: Path) -> None:
    image = smooth_image(70, 90, bands=4)
    with Raster(write_raster(tmp_path / "a.tif", image, photometric="minisblack")) as raster:
        assert (raster.height, raster.width, raster.count, raster.dtype) == (70, 90, 4, "uint8")
        assert raster.crs is None and raster.transform is None and raster.nodata is None
        assert raster.row_areas_m2() is None
        np.testing.assert_array_equal(raster.read_all(), image)
        part = raster.read(Window(10, 20, 31, 55), [4, 1])
        np.testing.assert_array_equal(part, image[10:31, 20:55, [3, 0]])
        assert raster.read_valid(Window(0, 0, 70, 90)).all()


def test_bands_are_chosen_with_care(tmp_path: Path) -> None:
    image = smooth_image(8, 8, bands=4)
    with Raster(write_raster(tmp_path / "rgbn.tif", image, photometric="minisblack")) as raster:
        with pytest.raises(ImageError, match=r"has 4 bands and the model takes 3.*--bands 1,2,3"):
            raster.choose_bands(None, 3)
        assert raster.choose_bands([3, 2, 1], 3) == [3, 2, 1]
        for bands, words in (([1, 2], "names 2 bands"), ([1, 2, 5], "band 5"), ([0, 1, 2], "0")):
            with pytest.raises(ImageError, match=words):
                raster.choose_bands(bands, 3)
    with Raster(write_raster(tmp_path / "rgba.tif", image, alpha=True)) as raster:
        assert raster.choose_bands(None, 3) == [1, 2, 3]
    grey = write_raster(tmp_path / "grey.png", image[:, :, 0])
    with Raster(grey) as raster, pytest.raises(ImageError, match="has 1 band and the model"):
        raster.choose_bands(None, 3)


def test_valid_pixels(tmp_path: Path) -> None:
    image = smooth_image(20, 30, bands=4)
    image[image == 255] = 254
    all_of = Window(0, 0, 20, 30)
    rgba = image.copy()
    rgba[:, :, 3] = 255
    rgba[:5, :, 3] = 0
    with Raster(write_raster(tmp_path / "rgba.tif", rgba, alpha=True)) as raster:
        assert raster.masked
        valid = raster.read_valid(all_of)
        assert not valid[:5].any() and valid[5:].all()
    nodata = image[:, :, :3].copy()
    nodata[:, :7] = 255
    nodata[:, 7, 0] = 255  # one band alone does not make a pixel nodata
    with Raster(write_raster(tmp_path / "nodata.tif", nodata, nodata=255)) as raster:
        valid = raster.read_valid(all_of)
        assert not valid[:, :7].any() and valid[:, 7:].all()
        np.testing.assert_array_equal(raster.read_valid(Window(2, 5, 9, 12)), valid[2:9, 5:12])


def test_nodata_that_the_file_does_not_declare(tmp_path: Path) -> None:
    image = np.minimum(smooth_image(20, 30, bands=4), 254)
    image[:4] = image[-1] = 255
    image[10, 10, :3] = 255  # the fourth band holds data there
    path = write_raster(tmp_path / "a.tif", image, photometric="minisblack")
    everything = Window(0, 0, 20, 30)
    for asked in ("declared", "none"):
        with Raster(path, asked) as raster:
            assert raster.read_valid(everything).all() and not raster.masked
            assert raster.nodata_rule.startswith("none")
    for asked, words in (("auto", "detected.*corners hold 255"), (255, "given: 255")):
        with Raster(path, asked) as raster:
            np.testing.assert_array_equal(raster.read_valid(everything), (image != 255).any(axis=2))
            assert raster.masked and re.match(words, raster.nodata_rule)
    image[0, 0, 0] = 254  # one corner holds data: nothing is detected
    with Raster(
        write_raster(tmp_path / "c.tif", image, photometric="minisblack"), "auto"
    ) as raster:
        assert not raster.masked and raster.nodata_rule == "none: the file declares none"
    for value in (256, -1, 0.5, float("nan"), float("inf")):
        with pytest.raises(ImageError, match=r"is no value of .*uint8"):
            Raster(path, nodata=value)
    declared = write_raster(tmp_path / "b.tif", image[:, :, :3], nodata=0)
    for asked in ("declared", "auto"):
        with Raster(declared, asked) as raster:
            assert raster.nodata_rule == "declared by the file (value 0)"
            assert (raster.read_valid(everything) == (image[:, :, :3] != 0).any(axis=2)).all()
    with Raster(declared, "none") as raster:
        assert raster.read_valid(everything).all() and "as asked" in raster.nodata_rule


def test_area_of_a_pixel(tmp_path: Path) -> None:
    image = smooth_image(8, 8)
    sine, cosine = 0.5, 0.75**0.5
    turned = rasterio.Affine(0.5 * cosine, 0.5 * sine, 5e5, 0.5 * sine, -0.5 * cosine, 4e6)
    for crs, transform, expected in (
        ("EPSG:32617", rasterio.Affine(0.1, 0, 500000, 0, -0.1, 4000000), 0.01),
        ("EPSG:32617", turned, 0.25),
        ("EPSG:2263", rasterio.Affine(10, 0, 0, 0, -10, 0), 100 * 0.3048006096**2),  # US feet
        ("EPSG:3395", rasterio.Affine(10, 0, 0, 0, -10, 0), 100),  # Mercator, at the equator
        ("EPSG:4326", rasterio.Affine(1, 0.1, 0, 0.1, -1, 70), None),  # turned
        ("EPSG:4326", rasterio.Affine(1, 0, 0, 0, -1, 95), None),  # beyond the pole
        (None, rasterio.Affine(0.1, 0, 0, 0, -0.1, 0), None),
    ):
        path = write_raster(tmp_path / "a.tif", image, crs=crs, transform=transform)
        with Raster(path) as raster:
            areas = raster.row_areas_m2()
            assert (areas is None) == (expected is None)
            if areas is not None:
                assert areas.tolist() == pytest.approx([expected] * 8, rel=1e-6)


def test_area_of_degrees_and_of_web_mercator(tmp_path: Path) -> None:
    """The Earth as a whole (510 065 622 km2), and the same ground in two systems."""
    globe = rasterio.Affine(360 / 40, 0, -180, 0, -180 / 20, 90)
    image = smooth_image(20, 40)
    with Raster(
        write_raster(tmp_path / "a.tif", image, crs="EPSG:4326", transform=globe)
    ) as raster:
        areas = raster.row_areas_m2()
        assert areas is not None and areas.shape == (20,)
        assert areas.sum() * 40 == pytest.approx(510_065_621.724e6, rel=1e-9)
        assert areas[0] == pytest.approx(areas[-1]) and areas[0] < areas[9] / 10
    west, south, east, north = 10.0, 55.0, 10.4, 55.2
    degrees = rasterio.transform.from_bounds(west, south, east, north, 40, 20)
    bounds = rasterio.warp.transform_bounds("EPSG:4326", "EPSG:3857", west, south, east, north)
    metres = rasterio.transform.from_bounds(*bounds, 40, 20)
    totals = []
    for crs, transform in (("EPSG:4326", degrees), ("EPSG:3857", metres)):
        path = write_raster(tmp_path / "b.tif", image, crs=crs, transform=transform)
        with Raster(path) as raster:
            areas = raster.row_areas_m2()
            assert areas is not None
            totals.append(areas.sum() * 40)
    assert totals[0] == pytest.approx(totals[1], rel=1e-6)
    naive = abs(metres.determinant) * 20 * 40
    assert naive > 2.9 * totals[1], "its own metres are three times too many there"


def test_a_png_with_extra_bytes_behind_its_end_is_accepted(tmp_path: Path) -> None:
    image = smooth_image(20, 30)
    path = write_raster(tmp_path / "a.png", image)
    path.write_bytes(path.read_bytes() + b"trailing")
    with Raster(path) as raster:
        np.testing.assert_array_equal(raster.read_all(), image)


def test_a_vrt_is_stored_as_its_sources_are(tmp_path: Path) -> None:
    """It says 128 px of itself; parts of rows that are stored whole are dear to read."""
    image = smooth_image(40, 300)
    for name, options, expected in (
        ("tiles", {"tiled": True, "blockxsize": 16, "blockysize": 16}, 128),
        ("rows", {}, 300),
    ):
        write_raster(tmp_path / f"{name}.tif", image, **options)
        bands = "".join(
            f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename '
            f'relativeToVRT="1">{name}.tif</SourceFilename><SourceBand>{band}</SourceBand>'
            "</SimpleSource></VRTRasterBand>"
            for band in (1, 2, 3)
        )
        path = tmp_path / f"{name}.vrt"
        path.write_text(f'<VRTDataset rasterXSize="300" rasterYSize="40">{bands}</VRTDataset>')
        with Raster(path) as raster:
            assert raster.block_columns == expected
            np.testing.assert_array_equal(raster.read_all(), image)
