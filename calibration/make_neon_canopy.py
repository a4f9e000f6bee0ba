"""Make the data set ``neon_canopy`` from the ``deepforest`` wheel.

    pip download --no-deps deepforest==2.1.0
    python calibration/make_neon_canopy.py deepforest-2.1.0-py3-none-any.whl

Reads four aerial images and their crown boxes from the wheel (a zip; an unpacked folder will do)
and writes, beside this file, ``neon_canopy/`` (GeoTIFF images, CSV boxes, the wheel's licence)
and ``neon_canopy.yaml`` (what is in it, with the sha256 of every file). ``neon_canopy/README.md``
is written by hand. Two runs with the same GDAL give the same bytes; another GDAL may encode JPEG
differently, which changes the images' sha256 and, by a grey level here and there, their pixels.

Needs ``numpy`` and ``rasterio`` (extra ``geo``).
"""

from __future__ import annotations

import hashlib
import sys
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.transform import Affine, from_origin

HERE = Path(__file__).resolve().parent
DATA = "deepforest/data/"
GSD_M = 0.1
JPEG_QUALITY = 90
APPROXIMATE = (
    "approximate: the crop's offset inside its 1 km NEON mosaic tile is not known; the crop is"
    " anchored at the tile's nominal south-west corner. Scale and orientation are right, the"
    " position may be wrong by up to 1 km."
)
EXACT = "as published: georeference copied from the source file"
UNKNOWN = "unknown: the source gives no position, so the file has no CRS and no transform"


@dataclass(frozen=True)
class Image:
    """One image of the wheel.

    Attributes:
        stem: name of the files written here.
        source: image file inside the wheel; boxes are in the ``.xml`` of the same name.
        south_west_m: nominal UTM zone 12N easting and northing of the mosaic tile, from the file
            name; None where the file carries its own position or has none.
        position: what is written into the TIFF tag ``EDGEKD_POSITION``.
        size_px: expected width and height.
        boxes: expected number of crowns.
    """

    stem: str
    source: str
    south_west_m: tuple[int, int] | None
    position: str
    size_px: tuple[int, int]
    boxes: int


IMAGES = (
    Image(
        "yell_528000",
        "2019_YELL_2_528000_4978000_image_crop2.png",
        (528000, 4978000),
        APPROXIMATE,
        (2299, 2472),
        574,
    ),
    Image(
        "yell_541000",
        "2019_YELL_2_541000_4977000_image_crop.png",
        (541000, 4977000),
        APPROXIMATE,
        (1249, 1035),
        279,
    ),
    Image("osbs_029", "OSBS_029.tif", None, EXACT, (400, 400), 61),
    Image("soap_061", "SOAP_061.png", None, UNKNOWN, (400, 400), 37),
)

# (sample id, image stem, split, region, weight per area). OSBS and SOAP are other forests than the
# scene's, so they are drawn less. Between train and test 50 px (5 m, more than the median
# crown) and between train and val 40 px are left out, so that hardly a crown is in two parts.
SAMPLES: tuple[tuple[str, str, str, list[int] | None, float], ...] = (
    ("yell_528000_west", "yell_528000", "train", [0, 0, 1100, 1820], 1.0),
    ("yell_528000_southwest", "yell_528000", "val", [0, 1860, 1100, 2472], 1.0),
    ("yell_528000_east", "yell_528000", "test", [1150, 0, 2299, 2472], 1.0),
    ("yell_541000", "yell_541000", "train", None, 1.0),
    ("osbs_029", "osbs_029", "train", None, 0.3),
    ("soap_061", "soap_061", "train", None, 0.3),
)

HEADER = """\
# Tree canopy in 10 cm aerial images: the data of `make demo`. A few labels from one side of a
# scene, a map of the rest. Made by calibration/make_neon_canopy.py; see neon_canopy/README.md.
# Regions are x0, y0, x1, y1 in pixels, half-open; null means the whole image.
schema: 1
name: neon_canopy
title: Tree canopy in NEON aerial images (10 cm)
root: neon_canopy
source: >-
  Airborne RGB imagery of the National Ecological Observatory Network (NEON) and crown boxes, as
  shipped in the Python package deepforest 2.1.0. Sites YELL (Yellowstone), OSBS (Ordway-Swisher)
  and SOAP (Soaproot Saddle). The two yell_* images have an APPROXIMATE position: the crop's
  offset inside its 1 km mosaic tile is not known, so it is anchored at the tile's nominal
  south-west corner. soap_061 has no position.
licence: >-
  Imagery: public, National Ecological Observatory Network. Boxes and packaging: MIT
  (neon_canopy/LICENSE-deepforest.txt).
attribution: >-
  National Ecological Observatory Network (NEON), a program sponsored by the U.S. National Science
  Foundation and operated under cooperative agreement by Battelle. Weinstein, B.G., Marconi, S.,
  Aubry-Kientz, M., Vincent, G., Senyondo, H. and White, E.P., 2020. DeepForest: A Python package
  for RGB deep learning tree crown delineation. Methods in Ecology and Evolution, 11(12),
  1743-1751. https://doi.org/10.1111/2041-210X.13472
gsd_m: 0.1
labels: boxes
box_shape: ellipse   # the ellipse inscribed in the box is the crown
classes:
  - {index: 0, name: background, color: "#d9cfb8"}
  - {index: 1, name: canopy, color: "#1b7f3b"}
ignore_index: null
samples:
"""


class Wheel:
    """Files of a wheel, packed or unpacked, by their path inside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.zip = None if path.is_dir() else zipfile.ZipFile(path)

    def names(self) -> list[str]:
        """Every file inside, with forward slashes."""
        if self.zip is not None:
            return self.zip.namelist()
        return [p.relative_to(self.path).as_posix() for p in self.path.rglob("*") if p.is_file()]

    def read(self, name: str) -> bytes:
        """Content of one file."""
        return self.zip.read(name) if self.zip is not None else (self.path / name).read_bytes()


def read_boxes(xml: bytes, image: Image) -> list[tuple[int, int, int, int]]:
    """Crown boxes ``xmin, ymin, xmax, ymax`` in pixels, as published, in the file's order.

    Raises:
        ValueError: the size, the count or a box differs from what this script was written for.
    """
    root = ElementTree.fromstring(xml)
    width, height = image.size_px
    stated = tuple(int(root.findtext(f"size/{k}", "0")) for k in ("width", "height"))
    if stated != image.size_px:
        raise ValueError(f"{image.source}: boxes are for {stated} pixels, not {image.size_px}")
    boxes = []
    for node in root.iter("bndbox"):
        x0, y0, x1, y1 = (int(node.findtext(k, "-1")) for k in ("xmin", "ymin", "xmax", "ymax"))
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(f"{image.source}: box {x0, y0, x1, y1} outside {width}x{height}")
        boxes.append((x0, y0, x1, y1))
    if len(boxes) != image.boxes:
        raise ValueError(f"{image.source}: {len(boxes)} boxes, expected {image.boxes}")
    return boxes


def write_image(content: bytes, image: Image, path: Path) -> None:
    """Decode one source image and write it as tiled JPEG GeoTIFF of the same pixel grid."""
    with MemoryFile(content) as memory, memory.open() as source:
        pixels = source.read([1, 2, 3])
        crs, transform = source.crs, source.transform
    width, height = image.size_px
    if pixels.shape != (3, height, width) or pixels.dtype != np.uint8:
        raise ValueError(
            f"{image.source}: {pixels.dtype} {pixels.shape}, expected {width}x{height}"
        )
    profile: dict[str, object] = {
        "driver": "GTiff",
        "width": width,
        "height": height,
        "count": 3,
        "dtype": "uint8",
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "JPEG",
        "photometric": "YCBCR",
        "interleave": "pixel",
        "JPEG_QUALITY": JPEG_QUALITY,
    }
    if image.south_west_m is not None:
        east, south = image.south_west_m
        crs, transform = "EPSG:32612", from_origin(east, south + height * GSD_M, GSD_M, GSD_M)
    if crs is not None and transform != Affine.identity():
        profile.update(crs=crs, transform=transform)
    with rasterio.open(path, "w", **profile) as target:
        target.write(pixels)
        target.update_tags(
            EDGEKD_POSITION=image.position,
            EDGEKD_SOURCE=f"deepforest 2.1.0, {image.source}; imagery: NEON",
        )


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def descriptor(root: Path) -> str:
    """Text of ``neon_canopy.yaml`` for the files in ``root``."""
    lines = [HEADER]
    for name, stem, split, region, weight in SAMPLES:
        image, boxes = root / f"{stem}.tif", root / f"{stem}.csv"
        lines.append(
            f"  - id: {name}\n"
            f"    image: {image.name}\n"
            f"    image_sha256: {sha256(image)}\n"
            f"    boxes: {boxes.name}\n"
            f"    boxes_sha256: {sha256(boxes)}\n"
            f"    box_labels: {{tree: 1}}\n"
            f"    split: {split}\n"
            f"    region_xyxy: {'null' if region is None else region}\n"
            f"    weight: {weight}\n"
        )
    return "".join(lines)


def main(argv: list[str]) -> int:
    """Write the data set; the exit code is 0 when every file was written."""
    if len(argv) != 1:
        print("usage: python calibration/make_neon_canopy.py WHEEL_OR_UNPACKED_DIR")
        return 2
    wheel = Wheel(Path(argv[0]))
    root = HERE / "neon_canopy"
    root.mkdir(exist_ok=True)
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    for image in IMAGES:
        write_image(wheel.read(DATA + image.source), image, root / f"{image.stem}.tif")
        boxes = read_boxes(wheel.read(DATA + Path(image.source).stem + ".xml"), image)
        rows = ["xmin,ymin,xmax,ymax,label", *(",".join(map(str, b)) + ",tree" for b in boxes)]
        text = "\n".join(rows) + "\n"
        (root / f"{image.stem}.csv").write_text(text, encoding="utf-8", newline="\n")
    licences = [n for n in wheel.names() if n.endswith(".dist-info/licenses/LICENSE")]
    if len(licences) != 1:
        raise ValueError(f"{wheel.path}: expected one licence file, found {licences}")
    (root / "LICENSE-deepforest.txt").write_bytes(wheel.read(licences[0]))
    (HERE / "neon_canopy.yaml").write_text(descriptor(root), encoding="utf-8", newline="\n")
    total_mb = sum(p.stat().st_size for p in root.iterdir()) / 1e6
    crowns = sum(image.boxes for image in IMAGES)
    print(f"{root.name}: {len(IMAGES)} images, {crowns} boxes, {total_mb:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
