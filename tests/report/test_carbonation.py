"""From a map on disk to uptake: every figure beside plain arithmetic on the whole arrays."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from edgekd.cli.main import main
from edgekd.contracts.imageio import Raster
from edgekd.errors import ImageError, InputError, OutputError
from edgekd.report import classmap, ratemap
from edgekd.report.adjusted import AdjustedAreas, Reference
from edgekd.report.carbonation import carbonation
from edgekd.runtime.maps import create_map, probability_look, score_look
from tests.helpers.bundles import make_bundle
from tests.helpers.rasters import smooth_image, write_raster
from tests.helpers.sites import (
    ROCKS,
    UTM,
    Site,
    make_site,
    write_coefficients,
    write_confusion,
    write_site,
)

VALUES = np.array([0, 0.8, 0.9, 0.4, 0.3])
PIXEL_HA = 0.25e-4
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def site() -> Site:
    return make_site(20)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, site: Site) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("site")
    chance, chart = write_site(folder, site, empty_px=40)
    pick = np.random.default_rng(3).choice(len(site.confusions), 20, replace=False)
    return {
        "chance": chance, "map": chart,
        "yaml": write_coefficients(folder / "c.yaml"),
        "eval": write_confusion(folder / "eval.json", site.confusions[pick]),
    }  # fmt: skip


def shares(site: Site) -> np.ndarray:
    """Probabilities ``(K, H, W)`` as the map has them."""
    codes = site.chances.astype(np.float64)
    return codes / codes.sum(axis=0)


def test_a_map_of_probabilities(files: dict[str, Path], site: Site, tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    found = carbonation(
        files["chance"], files["yaml"], output=tmp_path / "rate.tif", table=tmp_path / "t.csv",
        progress=lambda done, total: said.append((done, total)),
    )  # fmt: skip
    expected = shares(site)[:, 40:]
    for number, item in enumerate(found.classes):
        assert (item.name, item.index) == (ROCKS[number].name, number)
        assert item.mapped_m2 == 0.25 * (site.mapped[40:] == number).sum()
        assert item.expected_m2 == pytest.approx(0.25 * expected[number].sum(), rel=1e-6)
        assert item.uptake == pytest.approx(VALUES[number] * 1e-4 * item.expected_m2)
        assert item.adjusted_m2 is item.adjusted_interval is item.uptake_interval is None
        assert item.coefficient == VALUES[number] and item.named == (number > 0)
    rate = np.tensordot(VALUES, expected, 1)
    total = found.total
    assert total.uptake == pytest.approx(PIXEL_HA * rate.sum(), rel=1e-6)
    assert (total.unit, total.by) == ("t CO2 per year", "probabilities")
    assert total.interval is None and not found.interval["known"]
    assert "nothing tells how wrong the map is" in found.interval["reason"]
    assert found.area_m2 == 0.25 * 600 * 640 and found.map["pixels_nodata"] == 40 * 640
    assert found.area_rule == "on the ground, from EPSG:32628"
    assert said == [(512, 640), (640, 640)] and found.confusion is None and not found.notes
    with rasterio.open(tmp_path / "rate.tif") as data:
        values = data.read(1)
        assert data.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and data.dtypes == ("float32",)
        assert data.units == ("t CO2 per ha and year",) and np.isnan(data.nodata)
        assert data.descriptions == ("carbonation rate",) and data.transform == UTM["transform"]
        tags = data.tags()
        assert data.crs.to_epsg() == 32628 and tags["EDGEKD_MODEL_SHA256"] == "5" * 64
        assert tags["EDGEKD_COEFFICIENTS_SHA256"] == found.coefficients["sha256"]
        assert "estimate" in tags["EDGEKD_RULE"] and "not adjusted" in tags["EDGEKD_RULE"]
    assert np.isnan(values[:40]).all()
    np.testing.assert_allclose(values[40:], rate, rtol=1e-5)
    with rasterio.open(tmp_path / "rate.tif", overview_level=0) as data:
        thin = data.read(1)
    means = values[40:].reshape(300, 2, 320, 2).mean(axis=(1, 3))
    assert np.isnan(thin[:20]).all()
    np.testing.assert_allclose(thin[20:], means, rtol=1e-5)
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [row["class"] for row in rows] == [*(item.name for item in ROCKS), "total"]
    assert float(rows[-1]["uptake"]) == total.uptake and rows[-1]["uptake_low"] == ""
    assert float(rows[1]["expected_m2"]) == found.classes[1].expected_m2
    assert rows[1]["adjusted_m2"] == "" and rows[1]["coefficient_sd"] == repr(0.8 * 0.2)


def test_a_class_map_counts_each_pixel_as_its_class(
    files: dict[str, Path], site: Site, tmp_path: Path
) -> None:
    found = carbonation(files["map"], files["yaml"], output=tmp_path / "rate.tif")
    counts = np.bincount(site.mapped[40:].ravel(), minlength=5)
    assert [item.mapped_m2 for item in found.classes] == [0.25 * n for n in counts]
    assert all(item.expected_m2 is None for item in found.classes)
    assert found.total.uptake == pytest.approx(PIXEL_HA * counts @ VALUES)
    assert found.total.by == "mapped" and "the map makes no mistakes" in found.assumes
    assert found.notes == [found.notes[0]] and "probability 1" in found.notes[0]
    with rasterio.open(tmp_path / "rate.tif") as data:
        np.testing.assert_array_equal(data.read(1)[40:], VALUES.astype("f4")[site.mapped[40:]])


def test_with_a_confusion_matrix(files: dict[str, Path], site: Site) -> None:
    found = carbonation(files["chance"], files["yaml"], confusion=files["eval"])
    pick = np.random.default_rng(3).choice(len(site.confusions), 20, replace=False)
    mapped = 0.25 * np.bincount(site.mapped[40:].ravel(), minlength=5)
    adjusted = AdjustedAreas(mapped, Reference(site.confusions[pick].astype(float), "samples"))
    spreads = 1e-4 * np.array([0, 0.16, 0.1, 0.25 / 3.919928, 0.3 * 0.5 / 3.919928])
    for number, item in enumerate(found.classes):
        one = np.eye(5)[number]
        low, high = adjusted.sum(one).interval()
        assert item.adjusted_m2 == pytest.approx(adjusted.areas_m2[number])
        assert item.adjusted_interval is not None and item.uptake_interval is not None
        assert item.adjusted_interval.low == pytest.approx(max(low, 0))
        assert item.adjusted_interval.high == pytest.approx(high)
        pair = adjusted.sum(1e-4 * VALUES * one, spreads * one).interval()
        assert item.uptake_interval.high == pytest.approx(pair[1])
    total = found.total
    figure = adjusted.sum(1e-4 * VALUES, spreads)
    assert total.uptake == pytest.approx(figure.value) and total.by == "adjusted"
    assert total.interval is not None and total.interval_of_areas is not None
    assert total.interval.low == pytest.approx(figure.interval()[0])
    of_areas = adjusted.sum(1e-4 * VALUES).interval()
    assert total.interval_of_areas.low == pytest.approx(of_areas[0])
    assert total.interval.low < total.interval_of_areas.low
    truth = PIXEL_HA * VALUES @ np.bincount(site.truth[40:].ravel(), minlength=5)
    assert total.interval.low < truth < total.interval.high
    # this map is too sure of basalt, which its own probabilities do not tell
    assert not total.interval.low < total.by_map < total.interval.high
    assert any("outside the interval" in text for text in found.notes)
    assert found.interval["known"] and "20 samples" in found.interval["areas"]
    assert found.confusion is not None and found.confusion["units"] == 20
    assert any("simulated site, test" in text for text in found.assumes)
    by_points = carbonation(
        files["map"], files["yaml"], confusion=files["eval"], independent="pixels"
    )
    assert by_points.total.uptake == pytest.approx(total.uptake)
    assert by_points.total.interval_of_areas is not None
    assert by_points.total.interval_of_areas.low > total.interval_of_areas.low
    assert any("20480 labelled pixels was chosen by chance" in text for text in by_points.assumes)
    json.dumps(found.plain(), allow_nan=False)


def test_a_coefficient_whose_uncertainty_is_unknown(files: dict[str, Path], tmp_path: Path) -> None:
    item = {"value": 0.8, "uncertainty": {"kind": "unknown"}, "source": "somebody"}
    path = write_coefficients(tmp_path / "c.yaml", "relative", olivine=item)
    found = carbonation(files["chance"], path, confusion=files["eval"])
    total = found.total
    assert total.interval is None and total.interval_of_areas is not None
    assert "coefficient of olivine is unknown" in found.interval["reason"]
    assert not found.interval["known"] and total.unit == "m² of full potential"
    known = {item.name: item.uptake_interval is not None for item in found.classes}
    assert known == {"soil": True, "olivine": False, "wollastonite": True, "serpentine": True,
                     "basalt": True}  # fmt: skip
    assert total.interval_of_areas.low < total.uptake < total.interval_of_areas.high
    assert total.uptake == pytest.approx(
        sum(item.coefficient * (item.adjusted_m2 or 0) for item in found.classes)
    )


def test_one_uptake_in_many_units(files: dict[str, Path], tmp_path: Path) -> None:
    found = {}
    for unit, factor in (
        ("t CO2 per ha and year", 1),
        ("kg CO2 m-2 a-1", 0.1),
        ("kt CO2/km2", 0.1),
    ):
        items = {
            item.name: {"value": value * factor, "source": "made up",
                        "uncertainty": {"kind": "relative", "sd": 0.1}}
            for item, value in zip(ROCKS, VALUES, strict=True)
        }  # fmt: skip
        path = write_coefficients(tmp_path / "c.yaml", unit, **items)
        total = carbonation(files["map"], path, confusion=files["eval"]).total
        assert total.interval is not None
        found[unit] = (total.uptake, total.interval.low, total.interval.high)
        assert total.unit == ("t CO2 per year" if "a" in unit else "t CO2")
    first, *others = found.values()
    for other in others:
        assert other == pytest.approx(first)


def test_areas_are_those_of_the_ground(files: dict[str, Path], site: Site, tmp_path: Path) -> None:
    """A degree of longitude at 60 degrees is half of one at the equator, and rows differ."""
    place = {"crs": "EPSG:4326", "transform": from_origin(10, 64, 0.01, 0.01)}
    chance, chart = write_site(tmp_path, site, **place)
    with Raster(chance) as raster:
        areas = raster.row_areas_m2()
    assert areas is not None and areas[-1] > 1.1 * areas[0]
    expected = areas @ shares(site).sum(axis=2).T
    found = carbonation(chance, files["yaml"])
    assert [item.expected_m2 for item in found.classes] == pytest.approx(list(expected), rel=1e-6)
    counts = np.stack([(site.mapped == n).sum(axis=1) for n in range(5)], axis=1)
    found = carbonation(chart, files["yaml"])
    assert [item.mapped_m2 for item in found.classes] == pytest.approx(list(areas @ counts))
    with pytest.raises(InputError, match=r"--gsd-m 2 is for a map without a place, and .* has one"):
        carbonation(chart, files["yaml"], gsd_m=2)


def test_a_map_without_a_place(files: dict[str, Path], tmp_path: Path) -> None:
    small = make_site(4)
    chance, _ = write_site(tmp_path, small, crs=None)
    with pytest.raises(InputError, match="has no CRS, so nobody knows .*--gsd-m"):
        carbonation(chance, files["yaml"])
    found = carbonation(chance, files["yaml"], gsd_m=2.0, output=tmp_path / "r.tif")
    assert found.area_m2 == 4 * small.truth.size and "--gsd-m" in found.area_rule
    local = 'LOCAL_CS["mine",UNIT["metre",1]]'
    chance, _ = write_site(tmp_path, small, **(UTM | {"crs": local}))
    with pytest.raises(InputError, match="has a CRS that tells no area"):
        carbonation(chance, files["yaml"])


def test_what_the_matrix_does_not_tell_is_noted(files: dict[str, Path], tmp_path: Path) -> None:
    small = make_site(4)
    chance, _ = write_site(tmp_path, small)
    counts = small.confusions.copy()
    counts[:, :, 2] = 0
    path = write_confusion(tmp_path / "e.json", counts[:4], model_sha256="6" * 64)
    found = carbonation(chance, files["yaml"], confusion=path)
    text = " ".join(found.notes)
    student = write_confusion(tmp_path / "t.json", counts[:4], what="checkpoint")
    assert "is of a checkpoint, not of the bundle that made the map" in " ".join(
        carbonation(chance, files["yaml"], confusion=student).notes
    )
    teacher = write_confusion(tmp_path / "t.json", counts[:4], what="teacher")
    with pytest.raises(InputError, match="is of a teacher, which made no map; evaluate the model"):
        carbonation(chance, files["yaml"], confusion=teacher)
    assert "split" not in text
    for split in ("train", "all"):
        learned = write_confusion(tmp_path / "l.json", counts[:4], split=split)
        assert f"the confusion matrix is of split {split}: where the model learned" in " ".join(
            carbonation(chance, files["yaml"], confusion=learned).notes
        )
    assert "not of the bundle" not in text
    assert "of another model file (666666666666) than the map (555555555555)" in text
    assert "fewer than two samples of the confusion matrix were mapped as wollastonite" in text
    assert "fewer than 5 samples tell how often soil, olivine, serpentine, basalt is" in text
    rare = found.classes[2]
    assert rare.adjusted_interval is not None and rare.adjusted_interval.low == 0
    assert rare.adjusted_m2 is not None and rare.adjusted_m2 >= rare.mapped_m2
    counts[:, :, 1:] = 0
    only = np.zeros_like(small.chances)
    only[2] = 254
    chance, _ = write_site(tmp_path, Site(small.truth, only, 32))
    with pytest.raises(InputError, match="says nothing of the classes that .*fewer than two"):
        carbonation(chance, files["yaml"], confusion=write_confusion(path, counts))


def test_no_interval_holds_what_cannot_be(files: dict[str, Path], tmp_path: Path) -> None:
    """Two samples tell next to nothing, but there is no area below 0 or above that of the map."""
    small = make_site(4)
    chance, _ = write_site(tmp_path, small)
    path = write_confusion(tmp_path / "e.json", small.confusions[:2])
    found = carbonation(chance, files["yaml"], confusion=path)
    assert found.total.interval is not None and found.total.interval.low >= 0
    assert found.total.interval_of_areas is not None
    assert found.total.interval_of_areas.high <= 0.9e-4 * found.area_m2 * (1 + 1e-9)
    bounds = [item.adjusted_interval for item in found.classes]
    assert all(item is not None and item.low >= 0 for item in bounds)
    assert max(item.high for item in bounds if item) == found.area_m2


def test_the_parts_do_not_show(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = carbonation(files["chance"], files["yaml"], output=tmp_path / "a.tif")
    monkeypatch.setattr(classmap, "_READ_PX", 1)
    parts = carbonation(files["chance"], files["yaml"], output=tmp_path / "b.tif")
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    assert parts.total.uptake == pytest.approx(whole.total.uptake, rel=1e-12)
    assert parts.map["pixels_valid"] == whole.map["pixels_valid"]


def test_memory_does_not_depend_on_the_height(files: dict[str, Path], tmp_path: Path) -> None:
    small = make_site(8)

    def peak(times: int) -> int:
        tall = Site(np.tile(small.truth, (times, 1)), np.tile(small.chances, (1, times, 1)), 32)
        chance, _ = write_site(tmp_path / str(times), tall)
        tracemalloc.start()
        try:
            carbonation(chance, files["yaml"], output=tmp_path / "r.tif")
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(4)  # what is imported and kept
    assert peak(40) < 1.05 * peak(4)


def test_a_failure_leaves_what_was_there(
    files: dict[str, Path], site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, chart = write_site(tmp_path, site)
    with rasterio.open(chart) as data:
        profile, tags = data.profile, data.tags()
        values = data.read(1)
    values[600, 7] = 77
    wrong = tmp_path / "wrong.tif"
    with rasterio.open(wrong, "w", **profile) as data:
        data.write(values, 1)
        data.update_tags(**tags)
    for name in ("rate.tif", "t.csv"):
        (tmp_path / name).write_bytes(b"of yesterday")
    before = sorted(tmp_path.iterdir())
    places = {"output": tmp_path / "rate.tif", "table": tmp_path / "t.csv"}
    with pytest.raises(InputError, match=r"holds 77 at row 600, column 7, which is none of its"):
        carbonation(wrong, files["yaml"], **places)
    real = ratemap._read_back

    def other(rasterio: object, path: Path) -> dict[tuple[int, int], int]:
        found = real(rasterio, path)
        found[512, 512] ^= 1
        return found

    monkeypatch.setattr(ratemap, "_read_back", other)
    with pytest.raises(OutputError, match="reads back differently"):
        carbonation(chance, files["yaml"], **places)
    assert sorted(tmp_path.iterdir()) == before
    assert {(tmp_path / name).read_bytes() for name in ("rate.tif", "t.csv")} == {b"of yesterday"}


def test_places_that_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "d.tif").mkdir()
    before = files["chance"].read_bytes()
    coefficients = files["yaml"].with_suffix(".csv")  # whatever it is called
    coefficients.write_bytes(files["yaml"].read_bytes())
    for options, words in (
        ({"output": tmp_path / "r.png"}, "ends in .tif"),
        ({"table": tmp_path / "t.txt"}, "ends in .csv"),
        ({"output": tmp_path / "d.tif"}, "is a folder"),
        ({"output": files["chance"]}, "is one of the inputs"),
        ({"table": files["yaml"].with_suffix(".csv")}, "is one of the inputs"),
    ):
        with pytest.raises(OutputError, match=words):
            carbonation(files["chance"], coefficients, **options)
    assert files["chance"].read_bytes() == before and not list(tmp_path.glob("*.*v"))


def test_files_that_are_no_maps(files: dict[str, Path], tmp_path: Path) -> None:
    def refuse(path: Path, words: str, kind: type[Exception] = InputError) -> None:
        with pytest.raises(kind, match=words):
            carbonation(path, files["yaml"])

    scene = write_raster(tmp_path / "scene.tif", smooth_image(20, 20), **UTM)
    refuse(scene, r"is no map of edgekd: it lacks the tag CLASS_NAMES.*--probabilities")
    with create_map(tmp_path / "s.tif", 20, 20, score_look({}), None) as writer:
        writer.write(np.zeros((20, 20), np.uint8))
    refuse(tmp_path / "s.tif", "lacks the tag CLASS_NAMES")
    carbonation(files["chance"], files["yaml"], output=tmp_path / "r.tif")
    refuse(tmp_path / "r.tif", "lacks the tag CLASS_NAMES")
    for text in ("{", "[]", "{}", '{"a": "b"}', '{"255": "b"}', '{"1": "b", "2": "b"}', '{"1": 2}'):
        with rasterio.open(scene, "r+") as data:
            data.update_tags(CLASS_NAMES=text)
        refuse(scene, "is damaged: its tag CLASS_NAMES names no classes", ImageError)
    with rasterio.open(scene, "r+") as data:
        data.update_tags(CLASS_NAMES='{"0": "soil"}')
    refuse(scene, r"names the classes soil and has the bands unnamed \(uint8\), unnamed")
    look = probability_look(ROCKS, {})
    with create_map(tmp_path / "z.tif", 20, 20, look, None) as writer:
        for number in range(5):
            if number:
                writer.next_band()
            writer.write(np.zeros((20, 20), np.uint8))
    with pytest.raises(InputError, match="gives every class the probability 0 at row 0, column 0"):
        carbonation(tmp_path / "z.tif", files["yaml"], gsd_m=1)
    chance, _ = write_site(tmp_path, make_site(1), empty_px=32)
    refuse(chance, "holds no pixel with a class")


def test_from_a_scene_to_its_uptake(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The commands, one after the other, with what a bundle writes."""
    names = [item.model_dump() for item in ROCKS]
    bundle = make_bundle(tmp_path / "b", tile_px=64, classes=5, changes={"classes": names})
    write_raster(tmp_path / "in.tif", smooth_image(150, 170), **UTM)
    path = write_coefficients(tmp_path / "c.yaml")
    chance = str(tmp_path / "chance.tif")
    command = ["run", str(bundle), str(tmp_path / "in.tif"), "-o", str(tmp_path / "m.tif")]
    assert main([*command, "--probabilities", chance, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["file_bytes"]["probabilities"] > 0
    results = {}
    for name in ("chance.tif", "m.tif"):
        assert (
            main(["carbonation", str(tmp_path / name), "--coefficients", str(path), "--json"]) == 0
        )
        results[name] = json.loads(capfd.readouterr().out)
    soft, hard = (results[name]["classes"] for name in ("chance.tif", "m.tif"))
    assert [item["mapped_m2"] for item in soft] == [item["mapped_m2"] for item in hard]
    assert sum(item["expected_m2"] for item in soft) == pytest.approx(0.25 * 150 * 170)
    assert results["chance.tif"]["map"]["edgekd_bundle"] == "tiny"
    assert results["chance.tif"]["what"] == "estimate"
    assert main(["carbonation", chance, "--coefficients", str(path)]) == 0
    out, err = capfd.readouterr()
    assert "total: " in out and "95 % interval not known" in out and "note:" not in err


def test_what_a_person_reads(files: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    common = ["carbonation", str(files["chance"]), "--coefficients", str(files["yaml"])]
    assert main([*common, "--confusion", str(files["eval"])]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[0].split()[0] == "class" and lines[1].startswith("soil ")
    assert lines[1].split()[-3:] == ["-", "-", "-"]  # soil takes up nothing
    assert "t CO2 per year (95 %: " in out and "areas adjusted by the confusion matrix" in out
    assert "by the map's probabilities alone: 3.536 t CO2 per year" in out
    assert err.count("note: ") == 1
    assert main([*common, "--independent", "pixels"]) == 2
    assert "--independent pixels is about --confusion" in capfd.readouterr().err
