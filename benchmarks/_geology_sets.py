"""The three sensor sets of ``geology_gain.py``: two real scenes and a simulated district."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from edgekd.contracts.artifacts import publish_file, sha256_bytes, sha256_file
from edgekd.contracts.blocks import PART_NAMES
from edgekd.contracts.sensor_scenes import IGNORE, SET_NAME, load_set, scene_files

THIS = Path(__file__).resolve()
ROOT = THIS.parent.parent
FloatArray = npt.NDArray[np.float64]

#: channels of AVIRIS that the crop of Cuprite lacks, counted from 1: noise and water vapour
CUPRITE_LACKS = {1, 2, *range(104, 114), *range(148, 168), *range(221, 225)}
#: bands of the crop, counted from 0, in which minerals with OH absorb: 2.0 to 2.45 um
FEATURES = slice(138, 186)
#: a pixel nearer than this to the border of two classes has no label
MARGIN = 0.03
#: keys of a set that are words, not data
WORDS = {"title", "source", "licence", "attribution"}
CUPRITE = "Rcuprite50x90x188.mat"
ENDMEMBERS = "USGS_lib_DesertVanish_Montmorillonite_Alunite_188b.mat"
LIBRARY = "USGS_1995_Library.mat"


def continuum_removed(spectra: FloatArray) -> FloatArray:
    """Depth below the upper convex hull, ``(n, bands)``: 0 on it (Clark and Roush 1984)."""
    at = np.arange(spectra.shape[1])
    depth = np.empty_like(spectra)
    for row, values in enumerate(spectra):
        hull: list[int] = []
        for band in at:
            while len(hull) >= 2 and (values[hull[-1]] - values[hull[-2]]) * (band - hull[-2]) <= (
                values[band] - values[hull[-2]]
            ) * (hull[-1] - hull[-2]):
                hull.pop()
            hull.append(int(band))
        depth[row] = 1 - values / np.interp(at, hull, values[hull])
    return depth


def cuprite_truth(spectra: FloatArray, endmembers: FloatArray) -> npt.NDArray[np.uint8]:
    """Class by matching with three endmembers: varnish 0, montmorillonite 1, alunite 2.

    The absorption between 2.0 and 2.45 um is taken apart into that of alunite and that of
    montmorillonite (non-negative least squares of continuum-removed spectra, in the spirit of
    Clark et al. 2003): alunite, where its part is the larger. Elsewhere the class is whichever of
    varnish and montmorillonite has the larger share in a non-negative least squares fit of the
    whole spectrum. 255 where the decision hangs on less than 3 %.

    Args:
        spectra: ``(n, 188)`` reflectance.
        endmembers: ``(188, 3)`` of varnish, montmorillonite, alunite.
    """
    from scipy.optimize import nnls

    known = continuum_removed(endmembers[FEATURES].T.copy())
    fits = [nnls(known[1:].T, depth)[0] for depth in continuum_removed(spectra[:, FEATURES].copy())]
    area = np.array(fits) * known[1:].sum(1)
    alunite = area[:, 1] / (area.sum(1) + 1e-9)
    share = np.array([nnls(endmembers, values)[0] for values in spectra])
    share /= share.sum(1, keepdims=True)
    found = np.where(alunite >= 0.5, 2, np.where(share[:, 1] > share[:, 0], 1, 0))
    unclear = np.abs(alunite - 0.5) < MARGIN
    unclear |= (alunite < 0.5) & (np.abs(share[:, 0] - share[:, 1]) < MARGIN)
    return np.where(unclear, 255, found).astype(np.uint8)


def make_cuprite(data: Path, folder: Path) -> Path:
    """Write the Cuprite crop as a sensor set with its matched truth; its ``sensors.yaml``."""
    from scipy.io import loadmat

    cube = np.asarray(loadmat(data / CUPRITE)["Rcuprite50x90x188"], float) / 1e4
    (endmembers,) = (v for k, v in loadmat(data / ENDMEMBERS).items() if not k.startswith("__"))
    truth = cuprite_truth(cube.reshape(-1, 188), np.asarray(endmembers, float))
    order = np.argsort(cuprite_nm(data))  # the spectrometers of AVIRIS overlap
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "spectral.npy", cube[..., order].astype(np.float32))
    np.save(folder / "labels.npy", truth.reshape(cube.shape[:2]))
    return _describe(
        folder,
        name="cuprite",
        title="Cuprite, a crop of 50 x 90 px in 188 bands",
        simulated=False,
        source="NASA/JPL AVIRIS; labels by spectral matching with three USGS endmembers",
        licence="US government data",
        classes=[
            {"index": 0, "name": "desert_varnish", "color": "#5b3a29"},
            {"index": 1, "name": "montmorillonite", "color": "#e8dcb5"},
            {"index": 2, "name": "alunite", "color": "#d1495b"},
        ],
        scenes=[
            {
                "id": "cuprite",
                "files": {"spectral": {"file": "spectral.npy", "layout": "hwc"}},
                "labels": {"file": "labels.npy"},
            }
        ],
    )


def cuprite_nm(data: Path) -> FloatArray:
    """Wavelengths of the crop's bands in its own order, nm, from the library of the same sensor."""
    from scipy.io import loadmat

    every = np.asarray(loadmat(data / LIBRARY)["datalib"], float)[:, 0] * 1000
    return every[[band for band in range(224) if band + 1 not in CUPRITE_LACKS]]


def _describe(folder: Path, **values: Any) -> Path:
    path = folder / "sensors.yaml"
    with publish_file(path) as part:
        part.write_text(yaml.safe_dump({"schema": 1, **values}, sort_keys=False))
    return path


def make_simulated(data: Path, folder: Path) -> Path:
    """Scenes of the simulated district, by seeds that nothing was tuned on."""
    from edgekd.simulate.write import Order, write_geology

    order = Order(scenes=4, side_px=96, seed=2026, split=(1, 0, 0))
    write_geology(folder, data / LIBRARY, order)
    values = yaml.safe_load((folder / SET_NAME).read_text())
    for scene in values["scenes"]:  # blocks cut the scenes instead
        scene.pop("split", None)
    del values["schema"]
    return _describe(folder, **values)


@dataclass(frozen=True)
class Maker:
    """How a set is made: ``make(data, folder)``, out of the files ``sources`` of ``data``."""

    make: Callable[[Path, Path], Path]
    sources: tuple[str, ...]


MAKERS = {
    "cuprite": Maker(make_cuprite, (CUPRITE, ENDMEMBERS, LIBRARY)),
    "simulated": Maker(make_simulated, (LIBRARY,)),
}


def make_set(name: str, data: Path, folder: Path) -> Path:
    """Make a set, unless it is there and was made by the same code from the same files.

    Args:
        name: of ``MAKERS``.
        data: folder of the sources.
        folder: of the set; what it holds is replaced. Beside it lies what it was made by.
    """
    maker = MAKERS[name]
    sources = [(source, data / source) for source in maker.sources]
    wanted = files_digest([*code_files("contracts", "simulate"), *sources])
    path = folder / SET_NAME
    beside = folder.with_name(f"{folder.name}.made_by")
    if path.is_file() and beside.is_file() and beside.read_text() == wanted:
        return path
    beside.unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    maker.make(data, folder)
    with publish_file(beside) as part:
        part.write_text(wanted)
    return path


def set_digest(path: Path) -> str:
    """Digest of a set: its description but for words, and names and contents of its files."""
    spec, file = load_set(path)
    found = set(scene_files(spec, file))
    for header in [item for item in found if item.suffix == ".hdr"]:
        found |= set(header.parent.glob(f"{header.stem}.*"))  # ENVI: the pixels lie beside it
    described = spec.model_dump(mode="json", exclude=WORDS)
    contents = [described, files_digest((item.name, item) for item in found)]
    return sha256_bytes(json.dumps(contents, sort_keys=True).encode())


def code_files(*packages: str) -> list[tuple[str, Path]]:
    """Names and files of packages of edgekd, and this file."""
    found = [path for package in packages for path in (ROOT / "edgekd" / package).rglob("*.py")]
    return [(path.relative_to(ROOT).as_posix(), path) for path in (*found, THIS)]


def files_digest(named: Iterable[tuple[str, Path]]) -> str:
    """sha256 over sorted names and contents."""
    contents = sorted((name, sha256_file(path)) for name, path in named)
    return sha256_bytes(json.dumps(contents).encode())


def part_pixels(data: Any) -> dict[str, int]:
    """Pixels with data whose truth is known: ``train``, whether or not labels are kept, ``test``.

    Args:
        data: an open :class:`~edgekd.contracts.sensor_set.SensorSet`.
    """
    return {
        part: sum(
            int(((data.truth(name) != IGNORE) & (data.load(name).parts == PART_NAMES[part])).sum())
            for name in data.scene_ids
        )
        for part in ("train", "test")
    }


def rare_classes(data: Any) -> list[str]:
    """Classes with less than half of an equal share of the pixels whose truth is known."""
    counts = {item.name: 0 for item in data.classes}
    for name in data.training_ids:
        truth = data.truth(name)
        for number, item in enumerate(data.classes):
            counts[item.name] += int((truth == number).sum())
    least = 0.5 * sum(counts.values()) / len(counts)
    return [name for name, count in counts.items() if count < least]
