"""Arrays from ENVI, MATLAB, GeoTIFF and NumPy files: one and the same, or one clear line."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import rasterio
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral.io import envi

from edgekd.contracts.sensor_files import FileSpec, SensorArray, read_sensor
from edgekd.errors import DatasetError, EdgeKDError, EnvironmentLacksError, ImageError
from tests.helpers.rasters import write_raster

CUBE = np.random.default_rng(3).random((5, 7, 4)).astype(np.float32)  # rows, columns, bands
NM = [450.0, 550.0, 650.0, 850.0]


def read(path: Path, **spec: Any) -> SensorArray:
    return read_sensor(path, FileSpec.model_validate({"file": path.name, **spec}))


def write_envi(folder: Path, cube: np.ndarray = CUBE, **header: Any) -> Path:
    path = folder / "cube.hdr"
    order = header.pop("interleave", "bil")
    envi.save_image(str(path), cube, metadata=header, interleave=order, force=True)
    return path


def edit_header(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def write_mat(folder: Path, **arrays: Any) -> Path:
    path = folder / "cube.mat"
    scipy.io.savemat(path, {"cube": CUBE.astype(np.float64), **arrays})
    return path


def stacked(folder: Path, cube: np.ndarray = CUBE, **options: Any) -> Path:
    return write_raster(folder / "cube.tif", cube, **options)


def saved(folder: Path) -> Path:
    np.save(folder / "cube.npy", CUBE)
    return folder / "cube.npy"


@pytest.mark.parametrize(
    ("write", "spec"),
    [
        (write_envi, {}),
        (lambda folder: write_envi(folder, interleave="bsq"), {}),
        (lambda folder: write_envi(folder, interleave="bip"), {}),
        (lambda folder: write_envi(folder, np.asarray(CUBE, ">f4")), {}),
        (write_mat, {"variable": "cube", "layout": "hwc"}),
        (lambda f: write_mat(f, t=CUBE.transpose(2, 0, 1)), {"variable": "t", "layout": "chw"}),
        (stacked, {}),
        (saved, {"layout": "hwc"}),
    ],
)
def test_every_kind_gives_the_same_planes(
    tmp_path: Path, write: Callable[[Path], Path], spec: dict[str, Any]
) -> None:
    found = read(write(tmp_path), **spec)
    np.testing.assert_array_equal(found.values, CUBE.transpose(2, 0, 1))
    assert found.values.dtype == np.float32 and found.values.flags.c_contiguous
    assert found.crs is None and found.transform is None and found.wavelengths_nm is None
    some = read(write(tmp_path), bands=[3, 1], **spec)
    np.testing.assert_array_equal(some.values, CUBE.transpose(2, 0, 1)[[2, 0]])
    with pytest.raises(DatasetError, match="has 4 bands; bands names 5"):
        read(write(tmp_path), bands=[5], **spec)


def test_one_plane_needs_no_layout(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", height=CUBE[..., 0], other=CUBE)
    found = read(tmp_path / "a.npz", variable="height")
    np.testing.assert_array_equal(found.values, CUBE[None, ..., 0])


def test_what_an_envi_header_says_is_honoured(tmp_path: Path) -> None:
    cube = (CUBE * 10000).astype(np.int16)
    cube[1, 2, 3] = -999
    path = write_envi(
        tmp_path, cube,
        **{"wavelength": [value / 1000 for value in NM], "wavelength units": "Micrometers",
           "bbl": [1, 0, 1, 1], "reflectance scale factor": 10000, "data ignore value": -999},
    )  # fmt: skip
    found = read(path)
    expected = cube.transpose(2, 0, 1) / np.float32(10000)
    expected[3, 1, 2] = np.nan
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    np.testing.assert_allclose(found.wavelengths_nm, NM)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found.good, [True, False, True, True])  # type: ignore[arg-type]
    assert found.notes == ("cube.hdr: values times 0.0001, from its reflectance scale factor",)
    assert [item.name for item in found.files] == ["cube.hdr", "cube.img"]
    some = read(path, bands=[4, 2], scale=1e-4)
    assert some.wavelengths_nm is not None and list(some.wavelengths_nm) == [850, 550]
    assert some.good is not None and list(some.good) == [True, False]
    with pytest.raises(DatasetError, match=r"scale is 0.001 in the set, and its reflectance scale"):
        read(path, scale=1e-3)


UTM = rasterio.crs.CRS.from_epsg(32611)


@pytest.mark.parametrize("turn", [0.0, 30.0])
def test_an_envi_place_is_that_of_gdal(tmp_path: Path, turn: float) -> None:
    """GDAL writes the header, and reads it back for comparison; here its text alone is used."""
    place = (
        rasterio.Affine.translation(580000, 4150000) * rasterio.Affine.rotation(turn)
        * rasterio.Affine.scale(2.5, -2.5)
    )  # fmt: skip
    path = tmp_path / "cube.img"
    with rasterio.open(
        path, "w", driver="ENVI", dtype="float32", count=4, height=5, width=7, crs=UTM,
        transform=place,
    ) as data:  # fmt: skip
        data.write(CUBE.transpose(2, 0, 1))
    (tmp_path / "cube.img.aux.xml").unlink(missing_ok=True)
    with rasterio.open(path) as data:
        expected = data.transform
    found = read(tmp_path / "cube.hdr")
    np.testing.assert_array_equal(found.values, CUBE.transpose(2, 0, 1))
    assert found.transform.almost_equals(expected, 1e-4)
    assert found.transform.almost_equals(place, 1e-4)
    assert found.crs == UTM
    header = tmp_path / "cube.hdr"
    lines = [line for line in header.read_text().splitlines() if "coordinate system" not in line]
    header.write_text("\n".join(lines))
    assert read(header).crs == UTM  # by zone, hemisphere and datum of the map info
    edit_header(header, "{UTM", "{State Plane")
    odd = read(header)
    assert odd.crs is None and "names 'State Plane' without a coordinate system" in odd.notes[0]


def test_what_gdal_says_is_honoured(tmp_path: Path) -> None:
    cube = (CUBE * 1000).astype(np.int16)
    cube[0, 0, 2] = -1
    place = rasterio.transform.from_origin(580000, 4150000, 2.5, 2.5)
    path = stacked(tmp_path, cube, nodata=-1, crs=UTM, transform=place)
    with rasterio.open(path, "r+") as data:
        data.scales, data.offsets = [0.001] * 4, [0.5] * 4
        for band, nm in enumerate(NM, start=1):
            data.update_tags(band, ns="IMAGERY", CENTRAL_WAVELENGTH_UM=f"{nm / 1000}")
    found = read(path)
    expected = cube.transpose(2, 0, 1) * np.float32(0.001) + np.float32(0.5)
    expected[2, 0, 0] = np.nan
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    assert found.crs == UTM and found.transform == place
    np.testing.assert_allclose(found.wavelengths_nm, NM)  # type: ignore[arg-type]
    with rasterio.open(path, "r+") as data:
        data.scales = [0.001, 0.001, 0.002, 0.001]
    with pytest.raises(DatasetError, match="different scales or offsets"):
        read(path)
    assert read(path, bands=[1, 2]).values.shape == (2, 5, 7)


def test_an_alpha_band_is_no_band_and_hides_pixels(tmp_path: Path) -> None:
    cube = np.full((5, 7, 4), 200, dtype=np.uint8)
    cube[2, 3, 3] = 0
    found = read(stacked(tmp_path, cube, alpha=True))
    assert found.values.shape == (3, 5, 7)
    assert np.isnan(found.values[:, 2, 3]).all() and np.isnan(found.values).sum() == 3


def test_no_data_is_nan_of_each_band_alone(tmp_path: Path) -> None:
    cube = CUBE.copy()
    cube[0, 1, 2], cube[3, 4, 0], cube[4, 4, 1] = np.inf, np.nan, -9999
    np.save(tmp_path / "a.npy", cube)
    found = read(tmp_path / "a.npy", layout="hwc", nodata=-9999, scale=2.0)
    wrong = np.argwhere(np.isnan(found.values)).tolist()
    assert wrong == [[0, 3, 4], [1, 4, 4], [2, 0, 1]]
    np.testing.assert_allclose(found.values[3], CUBE[..., 3] * 2)


def test_wavelengths_from_a_variable(tmp_path: Path) -> None:
    path = write_mat(tmp_path, nm=NM)
    found = read(path, variable="cube", layout="hwc", wavelengths="nm", bands=[2, 4])
    assert found.wavelengths_nm is not None and list(found.wavelengths_nm) == [550, 850]
    short = write_mat(tmp_path, nm=NM[:3])
    with pytest.raises(DatasetError, match="nm has 3 values for 4 bands"):
        read(short, variable="cube", layout="hwc", wavelengths="nm")


def cut(path: Path, keep: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def odd_envi(folder: Path, old: str, new: str) -> Path:
    header = {"wavelength": NM, "wavelength units": "Nanometers", "bbl": [1, 1, 1, 1],
              "map info": ["UTM", 1, 1, 5e5, 4e6, 2, 2, 11, "North", "WGS-84"]}  # fmt: skip
    return edit_header(write_envi(folder, **header), old, new)


def hdf5(folder: Path) -> Path:
    """The first bytes of what MATLAB writes with -v7.3."""
    head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    (folder / "new.mat").write_bytes(head + b"\0" * 384 + b"\x89HDF\r\n\x1a\n" + b"\0" * 64)
    return folder / "new.mat"


def objects(folder: Path) -> Path:
    np.save(folder / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return folder / "o.npy"


def text(folder: Path, name: str, content: str = "hello\n") -> Path:
    (folder / name).write_text(content)
    return folder / name


@pytest.mark.parametrize(
    ("write", "spec", "words"),
    [
        (lambda f: f / "a.npy", {}, "a.npy does not exist"),
        (lambda f: text(f, "a.csv"), {}, r"no suffix that is read here \(valid: .hdr \(ENVI\)"),
        (lambda f: text(f, "a.img"), {}, r"name the header \(.hdr\)"),
        (saved, {}, r"has the shape \(5, 7, 4\); say which axis is which: layout: hwc"),
        (lambda f: write_mat(f), {"variable": "cub", "layout": "hwc"},
         r"no variable 'cub'; did you mean 'cube'\? \(valid: cube\)"),
        (lambda f: write_mat(f, s="words"), {"variable": "s"}, "s is no array of real numbers"),
        (lambda f: write_mat(f, z=CUBE * 1j), {"variable": "z"}, "no array of real numbers"),
        (lambda f: write_mat(f, q=CUBE[None]), {"variable": "q"}, "has 4 axes"),
        (lambda f: write_mat(f, e=np.zeros((0, 3))), {"variable": "e"}, "holds no pixel"),
        (hdf5, {"variable": "x"}, r"MATLAB 7.3 file \(HDF5\).*save\('new_v7.mat', '-v7'\)"),
        (objects, {}, "as a NumPy file: .*Python objects"),
        (lambda f: cut(saved(f), 0.6), {}, "cannot be read as a NumPy file"),
        (lambda f: cut(write_mat(f), 0.6), {"variable": "cube"}, "as a MATLAB file"),
        (lambda f: text(f, "a.npz"), {"variable": "a"}, "cannot be read as a NumPy file"),
        (lambda f: text(f, "a.tif"), {}, "cannot be opened as an image"),
        (lambda f: text(f, "a.hdr"), {}, "no header of an ENVI image"),
        (lambda f: text(f, "a.hdr", "ENVI\nsamples = 3\n"), {}, "no header of an ENVI image"),
        (lambda f: cut(write_envi(f).with_suffix(".img"), 0.5).with_suffix(".hdr"), {},
         r"cube.img has 280 bytes and its header cube.hdr declares 560; it was cut"),
        (lambda f: odd_envi(f, "samples = 7", "samples = -7"), {}, "expected at least one of each"),
        (lambda f: odd_envi(f, "data type = 4", "data type = 6"), {}, "complex numbers"),
        (lambda f: odd_envi(f, "data type = 4", "data type = 4\nfile compression = 1"), {},
         "is compressed"),
        (lambda f: odd_envi(f, "interleave = bil", "interleave = xyz"), {},
         "interleave is 'xyz', expected bsq, bil or bip"),
        (lambda f: edit_header(write_envi(f, CUBE[:, :, :1], interleave="bsq"), "ENVI Standard",
                               "ENVI Spectral Library"), {}, "is a spectral library, expected an"),
        (lambda f: odd_envi(f, "Nanometers", "Unknown"), {}, "in the unit 'Unknown'; write"),
        (lambda f: odd_envi(f, "450.0 , ", ""), {}, "'wavelength' has 3 values for 4 bands"),
        (lambda f: odd_envi(f, "450.0", "blue"), {}, "'wavelength' is no list of numbers"),
        (lambda f: odd_envi(f, "500000.0", "x"), {}, "'map info' is no place"),
        (lambda f: odd_envi(f, ", 2 , 2 ,", ", 0 , 2 ,"), {}, "'map info' is no place"),
        (lambda f: odd_envi(f, "data type = 4", "data type = 4\ndata ignore value = none"), {},
         "'data ignore value' is 'none', expected a number"),
        (lambda f: odd_envi(f, "data type = 4", "data type = 4\nreflectance scale factor = 0"), {},
         "expected a number above 0"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line(
    tmp_path: Path, write: Callable[[Path], Path], spec: dict[str, Any], words: str
) -> None:
    path = write(tmp_path)
    with pytest.raises(EdgeKDError, match=words) as caught:
        read(path, **spec)
    assert str(path.parent) in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_envi_header_without_pixels(tmp_path: Path) -> None:
    path = write_envi(tmp_path)
    path.with_suffix(".img").unlink()
    with pytest.raises(ImageError, match=r"no file of pixels beside it; expected .*\.img"):
        read(path)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"file": "a.mat"}, "name one with variable"),
        ({"file": "a.npy", "variable": "x"}, "are of .mat and .npz files"),
        ({"file": "a.tif", "layout": "hwc"}, "others know their own"),
        ({"file": "a.tif", "bands": [0]}, "bands are counted from 1"),
        ({"file": "a.tif", "bands": []}, "at least 1 item"),
        ({"file": "a.tif", "scale": 0}, "scale must be above 0"),
    ],
)
def test_a_description_that_cannot_be(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=words):
        FileSpec.model_validate(spec)


@pytest.mark.parametrize(
    ("module", "write", "spec"),
    [("scipy", write_mat, {"variable": "cube", "layout": "hwc"}), ("spectral", write_envi, {})],
)
def test_a_library_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, write: Any, spec: dict[str, Any]
) -> None:
    path = write(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    kept = builtins.__import__

    def refuse(name: str, *more: Any) -> Any:
        if name.split(".")[0] == module:
            raise ModuleNotFoundError(f"No module named '{module}'", name=module)
        return kept(name, *more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr("importlib.import_module", lambda name: refuse(name, {}, {}, [], 0))
    with pytest.raises(EnvironmentLacksError, match=rf"{module} is not installed.*\[sensors\]"):
        read(path, **spec)


KINDS = {
    "mat": (write_mat, {"variable": "cube", "layout": "hwc"}, ""),
    "npy": (saved, {"layout": "hwc"}, ""),
    "envi": (write_envi, {}, ""),
    "npz": (lambda f: np.savez_compressed(f / "a.npz", cube=CUBE) or f / "a.npz",
            {"variable": "cube", "layout": "hwc"}, ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=150)
def test_damaged_files_give_an_error_of_ours_or_an_array(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    write, spec, _ = KINDS[kind]
    path = write(tmp_path_factory.mktemp("fuzz"))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = read(path, **spec)
    except EdgeKDError as err:
        assert str(path.name) in str(err) or str(path.stem) in str(err)
        return
    assert found.values.dtype == np.float32 and found.values.ndim == 3
