"""The reader of the library of spectra: order of its channels, gaps, and files that are not it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from edgekd.errors import InputError
from edgekd.simulate.library import load_library
from edgekd.simulate.minerals import MINERALS, Cabinet
from tests.helpers.spectra import aviris_nm, make_library, spectrum


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_library(tmp_path_factory.mktemp("library") / "lib.mat", gap="Olivine Y second")


def test_channels_are_sorted_and_none_is_lost(path: Path) -> None:
    library = load_library(path)
    assert (np.diff(aviris_nm()) < 0).sum() == 2  # what there is to sort
    assert (np.diff(library.wavelengths_nm) > 0).all() and len(library.wavelengths_nm) == 224
    assert sorted(library.channels) == list(range(1, 225))
    assert np.allclose(library.wavelengths_nm, aviris_nm()[library.channels - 1], atol=0.01)
    # the spectra went with their channels
    index = library.names.index("Kaolinite X0")
    expected = spectrum("kaolinite", 0, library.wavelengths_nm)
    assert np.allclose(library.reflectance[index], expected, atol=1e-4)


def test_an_entry_with_a_gap_is_left_out(path: Path) -> None:
    library = load_library(path)
    assert np.isnan(library.reflectance[library.names.index("Olivine Y second")]).sum() == 1
    names, spectra = library.pick(("Olivine ",))
    assert names == ("Olivine X0",) and spectra.shape == (1, 224)
    assert library.pick(("Calcite ",), without=("Calcite Y",))[0] == ("Calcite X0",)


def test_every_mineral_must_be_there(tmp_path: Path) -> None:
    library = load_library(make_library(tmp_path / "lib.mat", without="wollastonite"))
    with pytest.raises(InputError, match=r"none without gaps that begins with 'Wollastonite '"):
        Cabinet(library, np.arange(224))


def damaged(folder: Path, kind: str) -> Path:
    file = folder / "x.mat"
    whole = make_library(folder / "whole.mat").read_bytes()
    if kind == "text":
        file.write_text("wavelength,reflectance\n" * 40)
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif kind == "scrambled":
        file.write_bytes(whole[:200] + bytes(255 - b for b in whole[200:]))
    elif kind == "other arrays":
        savemat(file, {"cube": np.zeros((3, 3))})
    elif kind == "other bands":
        names = np.full((6, 29), 65, dtype=np.uint8)
        savemat(file, {"names": names, "datalib": np.zeros((188, 6))})
    elif kind == "no names":
        names = np.full((6, 29), 65, dtype=np.uint8)
        savemat(file, {"names": names, "datalib": np.zeros((224, 6))})
    elif kind == "nanometres":
        names = np.array([list(b"Wavelengths in microns".ljust(29))] * 5, dtype=np.uint8)
        savemat(file, {"names": names, "datalib": np.full((224, 5), 400.0)})
    elif kind == "twice":
        names = np.array([list(b"Wavelengths in microns".ljust(29))] * 5, dtype=np.uint8)
        savemat(file, {"names": names, "datalib": np.full((224, 5), 1.0)})
    return file


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "does not exist; give the file USGS_1995_Library.mat with --library"),
        ("text", "cannot be read as a MATLAB file"),
        ("empty", "cannot be read as a MATLAB file"),
        ("cut", "cannot be read as a MATLAB file"),
        ("scrambled", "cannot be read as a MATLAB file"),
        ("other arrays", "it holds cube, expected the arrays names and datalib"),
        ("other bands", r"datalib is \(188, 6\) for 6 names"),
        ("no names", "'Wavelengths in microns' as the first"),
        ("nanometres", "are no micrometres"),
        ("twice", "two channels have the same wavelength"),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path: Path, kind: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_library(damaged(tmp_path, kind))
    assert "\n" not in str(caught.value)


def test_the_real_library_has_every_mineral(test_data: Path) -> None:
    library = load_library(test_data / "hsi" / "USGS_1995_Library.mat")
    assert len(library.names) == 498 and (np.diff(library.wavelengths_nm) > 0).all()
    assert library.channels[:33].tolist()[-4:] == [33, 30, 34, 31]
    cabinet = Cabinet(library, np.arange(224))
    assert set(cabinet.entries) == set(MINERALS)
    assert len(cabinet.entries["olivine"]) == 17 and len(cabinet.entries["wollastonite"]) == 1
    assert not [name for name in cabinet.entries["serpentine"] if "Kaolin" in name]
