"""Damaged, evil and absurd image files: a result or one sentence, soon, and in little memory.

``EDGEKD_FUZZ_CASES=50000 pytest tests/contracts/test_image_fuzz.py -k fuzzed`` is the long run.
"""

from __future__ import annotations

import http.server
import os
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import rasterio

from edgekd.cli.main import main
from edgekd.contracts import imageio
from edgekd.contracts.imageio import MOST_SIDE_PX, Raster, gdal_environment
from edgekd.contracts.windows import Window
from edgekd.errors import ImageError
from edgekd.runtime.session import load
from tests.helpers import image_fuzz
from tests.helpers.bundles import make_bundle
from tests.helpers.image_fuzz import evil_sources, make_bases, run_cases, vrt_text
from tests.helpers.rasters import smooth_image, write_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

CASES = int(os.environ.get("EDGEKD_FUZZ_CASES", "400"))
#: of a child: its memory is counted from what it held before a case
BATCH = 2000


@dataclass
class Made:
    """Valid files, a bundle, and a server that nobody should ask."""

    folder: Path
    names: list[str]
    bundle: Path
    port: int
    asked: list[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("fuzz")
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (folder / "bases").mkdir()
    bundle = make_bundle(folder / "bundle", tile_px=image_fuzz.TILE_PX, classes=3)
    names = make_bases(folder / "bases")
    yield Made(folder / "bases", names, bundle, server.server_port, asked)
    server.shutdown()


def cuts(made: Made) -> list[str]:
    """Every length of every file, as far as structure goes."""
    sizes = {name: (made.folder / name).stat().st_size for name in sorted(made.names)}
    return [f"cut:{name}:{n}" for name, size in sizes.items() for n in range(1, min(size, 1500))]


def test_what_is_fuzzed(made: Made) -> None:
    """The files are there, and open before anything is done to them."""
    assert len(made.names) >= 34 and len(set(made.names)) == len(made.names)
    for name in made.names:
        if name != "complex.tif":
            with Raster(made.folder / name) as raster:
                assert raster.read(Window(0, 0, 50, 70), [1]).std() > 0, name


def test_fuzzed_files_never_crash_hang_or_eat_memory(made: Made) -> None:
    every = cuts(made)
    cases = [f"mutate:{number}" for number in range(CASES)]
    cases += every[:: max(1, len(every) // CASES)]
    findings: dict[str, str] = {}
    opened = refused = 0
    for first in range(0, len(cases), BATCH):
        tally = run_cases(cases[first : first + BATCH], made.folder, made.bundle, made.port)
        findings |= tally.findings
        opened, refused = opened + tally.opened, refused + tally.refused
    print(f"{len(cases)} files: {opened} opened, {refused} refused")
    assert not findings, "\n\n".join(f"{case}: {said}" for case, said in findings.items())
    assert opened + refused == len(cases)
    assert opened > CASES // 10 and refused > CASES // 10, "too weak, or too strong"
    assert made.asked == []


def test_the_child_names_what_it_died_of(made: Made) -> None:
    words = {"abort": "with -6", "eat": "MiB", "work": "s of CPU", "raise": "IndexError"}
    cases = [*words, "cut:strips.tif:9"]
    tally = run_cases(cases, made.folder, made.bundle, made.port, most_s=0.8)
    assert set(tally.findings) == set(words) and tally.refused == 1
    tally2 = run_cases(["hang"], made.folder, made.bundle, made.port, hang_s=1)
    for case, word in {**words, "hang": "Timeout"}.items():
        assert word in {**tally.findings, **tally2.findings}[case]


def test_the_command_line_says_one_line_and_ends_with_2(
    made: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen = set()
    for number in range(0, 60):
        suffix, blob = image_fuzz.case_bytes(made.folder, made.names, f"mutate:{number}", made.port)
        path = tmp_path / f"case{suffix}"
        path.write_bytes(blob)
        code = main(
            ["run", str(made.bundle), str(path), "-o", str(tmp_path / "m.tif"), "--restart"]
        )
        said = capfd.readouterr().err
        assert "Traceback" not in said and code in (0, 2), said
        last = said.splitlines()[-1] if said else ""
        assert last.startswith("error: ") == (code == 2), said
        seen.add(code)
    assert seen == {0, 2}


# ------------------------------------------------------------------- what a VRT must not read


def vrt(folder: Path, *sources: str, name: str = "a.vrt", **options: object) -> Path:
    path = folder / name
    path.write_text(vrt_text(sources, **options), encoding="utf-8")  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("number", range(len(evil_sources(0))))
def test_a_vrt_reads_files_of_this_machine_alone(made: Made, tmp_path: Path, number: int) -> None:
    write_raster(tmp_path / "strips.tif", smooth_image(50, 70))
    os.mkfifo(tmp_path / "fifo")
    source = evil_sources(made.port)[number]
    start = time.monotonic()
    with pytest.raises(ImageError) as caught:
        Raster(vrt(tmp_path, source))
    assert "a.vrt" in str(caught.value) and "\n" not in str(caught.value)
    assert made.asked == [] and time.monotonic() - start < 5


def test_gdal_alone_would_ask_the_network(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the test above can fail."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    path = vrt(tmp_path, f"/vsicurl/http://127.0.0.1:{made.port}/y.tif")
    with (
        gdal_environment() as module,
        pytest.raises(rasterio.errors.RasterioIOError),
        module.open(path) as data,
    ):
        data.read(1)
    assert any("y.tif" in item for item in made.asked)
    made.asked.clear()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<SimpleSource SourceFilename="/vsicurl/http://x/y.tif"/>', "expected an image file on"),
        ("<simplesource><SOURCEFILENAME>/vsicurl/http://x/y.tif</SOURCEFILENAME></simplesource>",
         "expected an image file on"),
        ("<SimpleSource><SourceFilename><![CDATA[http://x/y.tif]]></SourceFilename></SimpleSource>",
         "expected an image file on"),
        ("<SimpleSource><SourceFilename>&#104;ttp://x/y.tif</SourceFilename></SimpleSource>",
         "expected an image file on"),
        ("<SimpleSource><SourceFilename>strips.tif<a/></SourceFilename></SimpleSource>",
         "expected an image file on"),
        ('<SourceFilename relativeToVRT="yes">strips.tif</SourceFilename>', "expected an image"),
        ("<SourceFilename>a\nb.tif</SourceFilename>", "expected an image file on"),
        ('<MDI key="X_DATASET">http://x/y.tif</MDI>', "expected an image file on"),
        ('<Option name="RPC_DEM">/vsicurl/http://x/y.tif</Option>', "expected an image file on"),
        ("<DEMPath>/vsicurl/http://x/y.tif</DEMPath>", "expected an image file on"),
        ('<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">http://x/y.tif</MDI></Metadata>',
         "expected an image file on"),
        ("<Unheard>/vsicurl/http://x/y.tif</Unheard>", "expected an image file on"),
        ('<VRTDataset subClass="VRTPansharpenedDataset"/>', "kind VRTPansharpenedDataset"),
        ("<SimpleSource>", "is no XML"),
    ],
)  # fmt: skip
def test_a_source_is_found_however_it_is_spelled(tmp_path: Path, text: str, words: str) -> None:
    write_raster(tmp_path / "strips.tif", smooth_image(50, 70))
    with pytest.raises(ImageError, match=words):
        Raster(vrt(tmp_path, "strips.tif", more=text))


def test_thinned_pixels_are_the_files_own(made: Made, tmp_path: Path) -> None:
    """GDAL takes overviews from wherever a tag of a TIFF, or a note beside it, says."""
    place = f"/vsicurl/http://127.0.0.1:{made.port}/y.tif"
    tagged, noted = (write_raster(tmp_path / f"{n}.tif", smooth_image(50, 70)) for n in "tn")
    with rasterio.open(tagged, "r+") as data:
        data.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=place)
    item = f'<MDI key="OVERVIEW_FILE">{place}</MDI>'
    notes = noted.with_name("n.tif.aux.xml")
    notes.write_text(f'<PAMDataset><Metadata domain="OVERVIEWS">{item}</Metadata></PAMDataset>')
    for path, words in (
        (tagged, "names another file for its thinned pixels"),
        (noted, "n.tif.aux.xml names the source"),
        (vrt(tmp_path, "t.tif"), r"a.vrt cannot be read: .*t.tif names another file"),
        (vrt(tmp_path, "n.tif", name="b.vrt"), r"b.vrt cannot be read: .*n.tif.aux.xml names"),
    ):
        with pytest.raises(ImageError, match=words):
            Raster(path).thumbnail([1, 2, 3], 8)
    item = f'<MDI key="OVERVIEW_FILE">{tagged}</MDI>'
    notes.write_text(f'<PAMDataset><Metadata domain="OVERVIEWS">{item}</Metadata></PAMDataset>')
    with pytest.raises(ImageError, match="names another file's pixels for .*n.tif; remove it"):
        Raster(noted)
    notes.write_text("<PAMDataset><Metadata><MDI key='A'>b</MDI></Metadata></PAMDataset>")
    Raster(noted).close()
    assert made.asked == []


def test_a_vrt_in_other_writings_is_refused(tmp_path: Path) -> None:
    text = vrt_text(["http://x/y.tif"])
    for content, words in (
        (text.encode("utf-16"), "begins as none"),
        (b"<VRTDataset>\xff</VRTDataset>", "is no XML"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><VRTDataset>&b;</VRTDataset>', "words of its own"),
        (b"<a><VRTDataset/></a>", "its root is a"),
        (b"RIFF1234WEBP" + text.encode(), "is no XML"),
        (b"<VRTDataset>" + b" " * (33 << 20), "32 MiB"),
    ):
        (tmp_path / "a.vrt").write_bytes(content)
        with pytest.raises(ImageError, match=words):
            Raster(tmp_path / "a.vrt")


def test_a_vrt_that_reads_itself_or_much_too_much(tmp_path: Path) -> None:
    write_raster(tmp_path / "x.tif", smooth_image(50, 70))
    vrt(tmp_path, "b.vrt", name="a.vrt")
    with pytest.raises(ImageError, match="reads itself"):
        Raster(vrt(tmp_path, "a.vrt", name="b.vrt"))
    start = time.monotonic()
    for level in range(7):  # 20 to the power of 7 readings
        below = "x.tif" if level == 0 else f"l{level - 1}.vrt"
        path = vrt(tmp_path, *[below] * 20, name=f"l{level}.vrt")
    with pytest.raises(ImageError, match="more than 100,000 images"):
        Raster(path)
    assert time.monotonic() - start < 5
    for level in range(12):
        path = vrt(tmp_path, "x.tif" if level == 0 else f"d{level - 1}.vrt", name=f"d{level}.vrt")
    with pytest.raises(ImageError, match="expected at most 8"):
        Raster(path)


def test_vrts_that_are_as_they_should_be(made: Made, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    image = smooth_image(50, 70)
    write_raster(tmp_path / "strips.tif", image)
    write_raster(tmp_path / "2026-11-21T10:00:00.tif", image)
    inner = vrt(tmp_path / "below", *["../strips.tif"] * 3)
    outer = vrt(tmp_path, *["below/a.vrt"] * 3)
    (tmp_path / "link.vrt").symlink_to(inner)  # GDAL looks beside the file that is linked to
    timed = vrt(tmp_path, *["2026-11-21T10:00:00.tif"] * 3, name="t.vrt")
    for path in (inner, outer, tmp_path / "link.vrt", timed):
        with Raster(path) as raster:
            np.testing.assert_array_equal(raster.read_all(), image)
    absolute = tmp_path / "absolute.vrt"
    text = inner.read_text().replace('relativeToVRT="1"', 'relativeToVRT="0"')
    absolute.write_text(text.replace("../strips.tif", str(tmp_path / "strips.tif")))
    with Raster(absolute) as raster:
        np.testing.assert_array_equal(raster.read_all(), image)


# --------------------------------------------------------------------- one case for each finding


def test_what_a_header_may_declare(tmp_path: Path) -> None:
    write_raster(tmp_path / "x.tif", smooth_image(50, 70))
    path = vrt(tmp_path, "x.tif", width=MOST_SIDE_PX, height=90_000)
    with Raster(path) as raster:
        assert raster.width == MOST_SIDE_PX
    for width, height in ((MOST_SIDE_PX + 1, 1), (1, 2**31 - 1), (400_000, 400_000)):
        with pytest.raises(ImageError, match=rf"declares {width} x {height} px, expected at most"):
            Raster(vrt(tmp_path, "x.tif", width=width, height=height))
    bands = "".join(f'<VRTRasterBand dataType="Byte" band="{n}"/>' for n in range(1, 4098))
    with pytest.raises(ImageError, match="declares 4097 bands"):
        Raster(vrt(tmp_path, more=bands))


def test_parts_that_no_memory_holds(tmp_path: Path) -> None:
    """A file of some hundred bytes whose only tile is 400 MiB once it is decoded."""
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "compress": "deflate"}
    for side, fits in ((16_384, True), (20_480, False)):
        path = tmp_path / f"{side}.tif"
        size = {"width": 21_000, "height": 21_000, "blockxsize": side, "blockysize": side}
        with rasterio.open(path, "w", tiled=True, SPARSE_OK="TRUE", **profile, **size):
            pass
        assert path.stat().st_size < 1000
        if fits:
            Raster(path, "declared").close()
            continue
        for item in (path, vrt(tmp_path, path.name)):  # and by way of a VRT
            with pytest.raises(ImageError, match="parts of 20480 x 20480 px, 400 MiB each"):
                Raster(item)
    with rasterio.open(
        path,
        "w",
        **{**profile, "count": 3},
        tiled=True,
        width=9_984,
        height=9_984,
        blockxsize=9_984,
        blockysize=9_984,
        SPARSE_OK="TRUE",
    ):
        pass  # bands that lie together are decoded together
    with pytest.raises(ImageError, match="parts of 9984 x 9984 px, 285 MiB each"):
        Raster(path)


def test_more_parts_than_the_file_has_room_for(tmp_path: Path) -> None:
    """An image of 70 x 50 px that says it has a million rows; GDAL reads the rest as zeros."""
    path = write_raster(tmp_path / "a.tif", smooth_image(50, 70), compress="deflate", blockysize=1)
    blob = bytearray(path.read_bytes())
    tiff = image_fuzz.Tiff(bytes(blob))
    for entry in tiff.entries:
        if struct.unpack_from("<H", blob, entry)[0] == 257:
            struct.pack_into("<HHII", blob, entry, 257, 4, 1, 1_000_000)
    path.write_bytes(blob)
    with pytest.raises(ImageError, match="declares 1,000,000 parts and has no room for them"):
        Raster(path)


def test_complex_numbers(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.ones((8, 8, 1), np.complex64))
    with pytest.raises(ImageError, match="holds complex numbers"):
        Raster(path)


def test_a_reference_system_whose_name_is_no_utf_8(tmp_path: Path) -> None:
    system = rasterio.crs.CRS.from_wkt('LOCAL_CS["MARKMARK",UNIT["metre",1]]')
    path = write_raster(tmp_path / "a.tif", smooth_image(8, 8), crs=system)
    with Raster(path) as raster:
        assert "MARKMARK" in str(raster.crs)
    blob = path.read_bytes()
    assert b"MARKMARK" in blob
    path.write_bytes(blob.replace(b"MARKMARK", b"MARK\xffARK"))
    with pytest.raises(ImageError, match="utf-8"):
        Raster(path)


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    image = smooth_image(8, 8)
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.tif"))
    path.write_bytes(write_raster(tmp_path / "a.tif", image).read_bytes())
    with pytest.raises(ImageError, match="is no UTF-8; rename it") as caught:
        Raster(path)
    str(caught.value).encode()
    named = "Wasser ü.tif"
    with Raster(write_raster(tmp_path / named, image)) as raster:
        np.testing.assert_array_equal(raster.read_all(), image)


def test_ground_control_points_without_a_system_are_carried_over(
    made: Made, tmp_path: Path
) -> None:
    point = rasterio.control.GroundControlPoint
    gcps = [point(0, 0, 10, 50), point(0, 20, 11, 50), point(20, 0, 10, 49)]
    path = write_raster(tmp_path / "a.tif", smooth_image(50, 70), gcps=gcps, crs=rasterio.crs.CRS())
    with load(made.bundle, streams=1) as session:
        session.run_scene(path, tmp_path / "m.tif", summary=tmp_path / "s.json")
    with rasterio.open(tmp_path / "m.tif") as data:
        found, crs = data.gcps
    assert crs is None and [(g.row, g.col, g.x, g.y) for g in found] == [
        (g.row, g.col, g.x, g.y) for g in gcps
    ]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e308", "1e16"])
@pytest.mark.parametrize("index", range(6))
def test_a_place_that_is_on_no_map(tmp_path: Path, value: str, index: int) -> None:
    write_raster(tmp_path / "x.tif", smooth_image(50, 70))
    path = vrt(tmp_path, *["x.tif"] * 3)
    numbers = ["5e5", "0.5", "0", "4e6", "0", "-0.5"]
    numbers[index] = value
    path.write_text(path.read_text().replace("5e5, 0.5, 0, 4e6, 0, -0.5", ", ".join(numbers)))
    with pytest.raises(ImageError, match="is no place on a map"):
        Raster(path)


@pytest.mark.parametrize("case", ["no ground", "far away"])
def test_geojson_of_a_place_without_longitudes(made: Made, tmp_path: Path, case: str) -> None:
    write_raster(tmp_path / "x.tif", smooth_image(50, 70))
    path = vrt(tmp_path, *["x.tif"] * 3)
    text = path.read_text()
    if case == "no ground":
        text = text.replace("EPSG:32617", 'LOCAL_CS["a",UNIT["metre",1]]'.replace('"', "&quot;"))
    else:
        text = text.replace("5e5, 0.5, 0, 4e6, 0, -0.5", "1e14, 1e9, 0, 4e14, 0, -1e9")
    path.write_text(text)
    with load(made.bundle, streams=1) as session:
        asked: list[int] = []
        with pytest.raises(ImageError, match=r"a\.vrt .*write a GeoPackage: "):
            session.run_scene(
                path, tmp_path / "m.tif", polygons=tmp_path / "p.geojson",
                progress=lambda done, total: asked.append(done),
            )  # fmt: skip
        assert not asked and not list(tmp_path.glob(".m*"))  # told before any work
        session.run_scene(path, tmp_path / "m.tif", polygons=tmp_path / "p.gpkg")
    assert sorted(tmp_path.glob("p.*")) == [tmp_path / "p.gpkg"]


def test_a_value_without_data_in_bands_of_several_types(tmp_path: Path) -> None:
    image = smooth_image(50, 70)
    image[:9] = 0
    write_raster(tmp_path / "x.tif", image)
    path = vrt(tmp_path, *["x.tif"] * 3)
    path.write_text(path.read_text().replace('"Byte"', '"UInt16"', 1))
    with Raster(path, nodata=0) as raster:
        assert raster.dtypes == ["uint16", "uint8", "uint8"]
        valid = raster.read_valid(Window(0, 0, 50, 70))
    np.testing.assert_array_equal(valid, (image != 0).any(axis=2))


def test_gdal_is_told_the_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to itself it asks 150 drivers, some of which would go to the network."""
    asked: list[object] = []
    usual = imageio.open_quietly

    def spy(module: object, path: Path, **options: object) -> object:
        asked.append(options["driver"])
        return usual(module, path, **options)

    monkeypatch.setattr(imageio, "open_quietly", spy)
    for name in ("a.tif", "a.png", "a.jpg", "a.bmp", "a.webp", "a.jp2"):
        Raster(write_raster(tmp_path / name, smooth_image(64, 64))).close()
    Raster(vrt(tmp_path, "a.tif")).close()
    expected = ["GTiff", "PNG", "JPEG", "BMP", "WEBP", "JP2OpenJPEG"]
    assert asked == [*expected, "GTiff", "VRT"]  # the source of the VRT is looked at, too


def test_a_mask_beside_an_image_is_no_list_of_others(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", smooth_image(50, 70))
    vrt(tmp_path, "http://x/y.tif", name="a.tif.msk")
    with pytest.raises(ImageError, match=r"a\.tif\.msk is a VRT"):
        Raster(path)


def test_devices_pipes_and_names_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.tif")
    for path, words in (
        (tmp_path / "fifo.tif", "a device or a pipe"),
        (Path("/dev/zero"), "a device or a pipe"),
        (tmp_path / ("x" * 5000), "cannot be read"),
        (tmp_path / "a\0b", "cannot be read|does not exist"),
    ):
        with pytest.raises(ImageError, match=words):
            Raster(path)
