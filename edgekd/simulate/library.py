"""Reflectance spectra of minerals from the USGS library, on the bands of AVIRIS.

``USGS_1995_Library.mat`` is the USGS spectral library (Clark, Swayze, Gallagher, King and Calvin
1993, USGS Open File Report 93-592) as resampled to the 224 channels of AVIRIS 1995: a matrix
``datalib`` (224, entries) and ``names`` (entries, characters). Its first three columns are not
spectra: wavelengths in micrometres, resolution in micrometres, the number of the channel.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.contracts.artifacts import sha256_file
from edgekd.contracts.optional import require
from edgekd.errors import InputError

FloatArray = npt.NDArray[np.float64]

BANDS = 224
#: below this an entry holds no data (the library writes -1.23e34)
_NO_DATA = -1e30
_HEAD = "Wavelengths in microns"


@dataclass(frozen=True)
class Library:
    """Spectra in order of wavelength.

    AVIRIS has four spectrometers that overlap, so the library's wavelengths fall back by 23 nm
    behind channel 32 and by 17 nm behind channel 96. Channels are sorted by wavelength here: all
    224 stay, nothing is interpolated, and ``channels`` says which is which.

    Attributes:
        path, sha256: of the file.
        wavelengths_nm: (224,), rising.
        resolution_nm: (224,), full width at half maximum.
        channels: (224,), numbers of AVIRIS's channels, from 1.
        names: of the entries.
        reflectance: (entries, 224), 0 to a little above 1; NaN where there is no data.
    """

    path: str
    sha256: str
    wavelengths_nm: FloatArray
    resolution_nm: FloatArray
    channels: npt.NDArray[np.int64]
    names: tuple[str, ...]
    reflectance: FloatArray

    def pick(
        self, starts: tuple[str, ...], without: tuple[str, ...] = ()
    ) -> tuple[tuple[str, ...], FloatArray]:
        """Entries of one mineral that have data in every band.

        Args:
            starts: beginnings of the names that are wanted, e.g. ``("Olivine ",)``.
            without: beginnings of names that are not.

        Returns:
            names, and their reflectance (entries, 224).

        Raises:
            InputError: there is none.
        """
        chosen = [
            index
            for index, name in enumerate(self.names)
            if name.startswith(starts)
            and not (without and name.startswith(without))
            and np.isfinite(self.reflectance[index]).all()
        ]
        if not chosen:
            wanted = " or ".join(f"'{text}'" for text in starts)
            raise InputError(
                f"{self.path} has {len(self.names)} spectra and none without gaps that begins "
                f"with {wanted}; give the USGS library as resampled to AVIRIS 1995 with --library"
            )
        return tuple(self.names[index] for index in chosen), self.reflectance[chosen]


def load_library(path: Path) -> Library:
    """Read the library.

    Raises:
        InputError: the file is missing, is not MATLAB's, or holds something else.
        EnvironmentLacksError: scipy is not installed.
    """
    io = require("scipy.io", "sensors", "read the library of spectra")
    matlab = require("scipy.io.matlab", "sensors", "read the library of spectra")
    if not path.is_file():
        raise InputError(
            f"the library {path} does not exist; give the file USGS_1995_Library.mat with --library"
        )
    # what scipy raises on files that are damaged, or of something else, has no common root
    kinds = (ValueError, TypeError, KeyError, IndexError, NotImplementedError, EOFError, OSError)
    try:
        content = io.loadmat(path)
    except (*kinds, struct.error, zlib.error, matlab.MatReadError) as err:
        cause = " ".join(str(err).split())
        raise InputError(f"{path} cannot be read as a MATLAB file: {cause}") from err
    names, table = content.get("names"), content.get("datalib")
    if names is None or table is None:
        held = ", ".join(key for key in content if not key.startswith("__")) or "nothing"
        raise InputError(
            f"{path} is not the library: it holds {held}, expected the arrays names and datalib; "
            "give the file USGS_1995_Library.mat with --library"
        )
    texts = _texts(names)
    numeric = table.ndim == 2 and table.dtype.kind == "f"
    if not numeric or table.shape != (BANDS, len(texts)) or texts[0][: len(_HEAD)] != _HEAD:
        raise InputError(
            f"{path} is not the library on AVIRIS 1995: datalib is {table.shape} for "
            f"{len(texts)} names, expected ({BANDS}, names) and '{_HEAD}' as the first; give the "
            "file USGS_1995_Library.mat with --library"
        )
    micrometres = np.asarray(table[:, 0], dtype=np.float64)
    if not (micrometres > 0.3).all() or not (micrometres < 3.0).all():
        raise InputError(
            f"{path}: wavelengths from {micrometres.min():g} to {micrometres.max():g} are no "
            "micrometres of AVIRIS (0.38 to 2.51)"
        )
    order = np.argsort(micrometres, kind="stable")
    if (np.diff(micrometres[order]) <= 0).any():
        raise InputError(f"{path}: two channels have the same wavelength")
    spectra = np.asarray(table[:, 3:], dtype=np.float64).T[:, order]
    return Library(
        path=str(path),
        sha256=sha256_file(path),
        wavelengths_nm=np.round(micrometres[order] * 1000, 2),
        resolution_nm=np.round(np.asarray(table[order, 1], dtype=np.float64) * 1000, 2),
        channels=order.astype(np.int64) + 1,
        names=tuple(texts[3:]),
        reflectance=np.where(spectra < _NO_DATA, np.nan, spectra),
    )


def _texts(names: npt.NDArray[np.generic]) -> list[str]:
    """Rows of characters, which the file holds as 8-bit numbers, or strings."""
    if names.ndim == 2 and names.dtype == np.uint8:
        return [bytes(row).decode("ascii", "replace").strip() for row in names]
    return [str(item).strip() for item in names.ravel()] or [""]
