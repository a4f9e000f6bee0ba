"""A small library of made-up spectra in the form of USGS_1995_Library.mat."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import savemat

from edgekd.simulate.minerals import MINERALS

#: what the real library holds where it has no data
NO_DATA = -1.23e34
#: level at 0.4 and at 1 micrometre, and absorptions (nm, width nm, depth), where tests look at them
_LOOKS: dict[str, tuple[float, float, list[tuple[float, float, float]]]] = {
    "olivine": (0.40, 0.6, [(1050, 150, 0.5)]),
    "opaque": (0.05, 0.06, []),
    "calcite": (0.85, 0.9, [(2330, 35, 0.4)]),
    "dolomite": (0.85, 0.9, [(2310, 35, 0.4)]),
    "kaolinite": (0.7, 0.85, [(2200, 25, 0.5), (1400, 20, 0.4)]),
    "alunite": (0.7, 0.85, [(2170, 30, 0.5), (1480, 25, 0.4)]),
    "varnish": (0.05, 0.1, []),
    "goethite": (0.04, 0.3, [(920, 90, 0.4)]),
}


def aviris_nm() -> np.ndarray:
    """Wavelengths of four spectrometers that overlap, as in the library: they fall twice, nm."""
    parts = ((383, 687, 32), (664, 1269, 64), (1252, 1879, 64), (1880, 2508, 64))
    return np.concatenate([np.linspace(first, last, count) for first, last, count in parts])


def spectrum(mineral: str, entry: int, nm: np.ndarray) -> np.ndarray:
    """Made-up reflectance of one entry; the later, the coarser and darker."""
    place = 300 + 37 * list(MINERALS).index(mineral)
    blue, red, bands = _LOOKS.get(mineral, (0.5, 0.6, [(1500 + place, 40, 0.3)]))
    level = blue + (red - blue) * np.clip((nm - 400) / 600, 0, 1)
    for centre, width, depth in bands:
        level = level * (1 - depth * np.exp(-0.5 * ((nm - centre) / width) ** 2))
    return level ** (1 + 0.2 * entry)


def library_names() -> list[str]:
    """Names of the entries, two of each mineral where its prefix allows."""
    names = []
    for mineral in MINERALS.values():
        for number, start in enumerate(mineral.starts):
            tail = f"X{number}" if start.endswith(" ") else f" X{number}"
            names.append(f"{start}{tail}")
        if len(mineral.starts) == 1:
            names.append(f"{mineral.starts[0]}Y second")
    return names


def make_library(path: Path, without: str = "", gap: str = "") -> Path:
    """Write the library.

    Args:
        without: mineral whose entries are left out.
        gap: name of an entry that lacks one band.
    """
    nm = aviris_nm()
    columns = [nm / 1000, np.full(224, 0.0098), np.arange(1.0, 225.0)]
    names = ["Wavelengths in microns 224c", "Resolution  in microns 224c", "Data value = channel"]
    for name in library_names():
        mineral = next(key for key, item in MINERALS.items() if name.startswith(item.starts))
        if mineral == without:
            continue
        column = spectrum(mineral, sum(text.startswith(name[:6]) for text in names), nm)
        if name == gap:
            column[100] = NO_DATA
        names.append(name)
        columns.append(column)
    rows = np.array([list(name.ljust(29)[:29].encode()) for name in names], dtype=np.uint8)
    savemat(path, {"names": rows, "datalib": np.stack(columns, axis=1)})
    return path
