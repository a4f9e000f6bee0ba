"""The scripts in ``benchmarks/`` run and print what they promise; bounds are not tested here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgekd.contracts.imageio import Raster
from tests.helpers.bundles import make_bundle

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("onnxruntime")


def script(name: str) -> ModuleType:
    if str(ROOT / "benchmarks") not in sys.path:  # as Python does for a script
        sys.path.append(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )


def test_import_time_measures_both_and_finds_no_heavy_module() -> None:
    done = run("import_time", "--runs", "1", "--json")
    assert done.returncode in (0, 1), done.stderr
    value = json.loads(done.stdout)
    assert value["heavy"] == []
    assert [item["what"] for item in value["times"]] == ["import edgekd", "edgekd --help"]
    assert all(item["median_s"] > 0 for item in value["times"])


def test_tiling_overhead_shows_both_overlaps(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", tile_px=64)
    arguments = ["--tiles", "2", "--seconds", "0.1", "--runs", "3", "--skip-memory", "--json"]
    done = run("tiling_overhead", str(bundle), *arguments)
    assert done.returncode in (0, 1), done.stderr
    value = json.loads(done.stdout)
    plain, overlapping = value["speed"]
    assert (plain["overlap_px"], plain["redundancy"]) == (0, 1.0)
    assert plain["tiles_over_engine"] == plain["scene_over_engine"]
    # 128 px in windows of 64 with 8 shared: 3 x 3 windows over 2 x 2 tiles of pixels
    assert (overlapping["overlap_px"], overlapping["redundancy"]) == (8, 2.25)
    assert len(plain["pairs"]) == 3
    assert value["passed"] == (plain["scene_over_engine"] >= 0.9)


def test_memory_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    module = script("tiling_overhead")
    bundle = make_bundle(tmp_path / "bundle", tile_px=64)
    module.write_scene(tmp_path / "scene.tif", 200, module.texture(None, None))
    ballast = bytearray(300 << 20)
    ballast[::4096] = b"x" * len(ballast[::4096])
    found = module.run_apart(bundle, tmp_path / "scene.tif", False)
    assert found["side_px"] == 200
    assert 20 < found["peak_rss_mib"] < 300
    del ballast


def test_the_generated_scene_mirrors_its_texture(tmp_path: Path) -> None:
    module = script("tiling_overhead")
    pixels = np.random.default_rng(3).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    module.write_scene(tmp_path / "scene.tif", 1100, pixels)
    with Raster(tmp_path / "scene.tif") as raster:
        found = raster.read_all()
    tall = np.concatenate([pixels, pixels[::-1]])
    tall = np.concatenate([tall, tall])[:1100]
    expected = np.concatenate([tall, tall[:, ::-1]] * 3, axis=1)[:, :1100]
    assert np.array_equal(found, expected)


def test_adaptations_are_counted_by_place_light_and_labels() -> None:
    """Worse is a loss of more than half a point, of the adapted and of the one with statistics."""
    pytest.importorskip("torch")
    module = script("adapt_gain")

    def row(site: int, after: float, always: float, change: str, labels: int = 10) -> dict:
        return {
            "place": "muufl", "light": "same", "site": site, "labels": labels, "before": 0.5,
            "after": after, "statistics_always": always, "change": change, "seconds": 2.0 * site,
        }  # fmt: skip

    rows = [
        row(1, 0.494, 0.2, "last layers tuned, pull 1"), row(2, 0.496, 0.6, "no change"),
        row(3, 0.7, 0.7, "statistics 100 % the site's"), row(4, 0.9, 0.5, "x", labels=20),
    ]  # fmt: skip
    ten, twenty = module.summarise(rows)
    assert (ten["labels"], ten["sites"], twenty["labels"], twenty["sites"]) == (10, 3, 20, 1)
    assert ten["before"] == 50 and ten["after"] == pytest.approx((49.4 + 49.6 + 70) / 3)
    assert ten["worst_change"] == pytest.approx(-0.6) and ten["worse"] == 1
    assert ten["statistics_always"] == pytest.approx(50) and ten["statistics_worse"] == 1
    assert ten["statistics_worst_change"] == pytest.approx(-30)
    assert (ten["unchanged"], twenty["unchanged"], ten["seconds"]) == (1, 0, 4)
    assert len({len(line) for line in module.lines([ten, twenty])[1:]}) == 1, "columns"


def test_light_of_a_site_is_drawn_by_its_number() -> None:
    module = script("adapt_gain")
    pixels = np.random.default_rng(0).integers(60, 180, (20, 30, 3)).astype(np.uint8)
    first, again, other = (module.recoloured(pixels, site) for site in (100, 100, 101))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    one = module.recoloured(np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (1, 1, 3)), 102)
    for channel in one[0].T.astype(int):
        inside = channel[(channel > 0) & (channel < 255)]
        assert set(np.diff(inside)) <= {0, 1, 2, 3} and (np.diff(channel) >= 0).all()
