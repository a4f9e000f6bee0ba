"""The main job, end to end, on real pixels: what ``make demo`` runs.

    python benchmarks/demo.py --out out/demo

A student is tuned on crown boxes from the west of an aerial scene and three smaller crops,
exported, built into a bundle, run over the whole scene, and judged on the eastern half, which
tuning never saw. Writes map.tif, preview.png, record.json, report.html, bundle/ and run/ into
the output folder. Each stage is the function behind the command that is printed for it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.cli._common import progress_bar
from edgekd.contracts.artifacts import write_json
from edgekd.contracts.imageio import Raster
from edgekd.contracts.labelled import LabelledSet, Sample, open_labelled
from edgekd.contracts.metrics import Confusion
from edgekd.contracts.recipe import data_root, load_recipe
from edgekd.contracts.tensors import ClassSpec
from edgekd.contracts.windows import Window
from edgekd.errors import EdgeKDError, GateError
from edgekd.runtime.session import Session

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "engines" / "canopy.yaml"
CANOPY = 1  # channel of the class "canopy"
TARGET = "x86-cpu"
SCENE_ID = "yell_528000_east"

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]


def main() -> int:
    """Run the stages; returns the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "demo")
    parser.add_argument("--bench-seconds", type=float, default=5.0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    try:
        run(arguments.out, arguments.bench_seconds, arguments.set)
    except EdgeKDError as err:
        print(f"error: {err}", file=sys.stderr)
        return err.exit_code
    return 0


def run(out: Path, bench_seconds: float, overrides: list[str]) -> None:
    """All stages, with the time of each."""
    clock = Clock()
    recipe = load_recipe(RECIPE, overrides)
    data = open_labelled(data_root(recipe, RECIPE))
    (test,) = [sample for sample in data.split("test") if sample.id == SCENE_ID]
    scene = test.image
    shown = _shown(out)

    clock.stage(f"tune: edgekd finetune engines/canopy.yaml -o {shown}/run --fresh")
    from edgekd.train.finetune import finetune

    with progress_bar("finetune", "step") as update:
        tuned = finetune(recipe, data.root, out / "run", fresh=True, progress=update)

    bundle = out / "bundle"
    clock.stage(f"build: edgekd build engines/canopy.yaml --target {TARGET} "
                f"--checkpoint {shown}/run -o {shown}/bundle")  # fmt: skip
    from edgekd.deploy.bundle import build
    from edgekd.deploy.quantize.grounds import Images

    built = build(recipe, TARGET, out / "run", bundle, Images(data))

    from edgekd.report.record import read_record, write_record
    from edgekd.runtime.evaluate import evaluate_bundle
    from edgekd.runtime.session import load

    with load(bundle) as session:
        clock.stage(f"map: edgekd run {shown}/bundle {_shown(scene)} -o {shown}/map.tif")
        with progress_bar("run", "tile") as update:
            result = session.run_scene(scene, out / "map.tif", progress=update)
        clock.stage(f"judge: edgekd eval {shown}/bundle --data calibration/neon_canopy")
        quality = judge(session, data, test, out / "map.tif")
        quality["per_class"] = evaluate_bundle(session, data, "test")["per_class"]
    clock.stage(f"measure: edgekd bench {shown}/bundle {_shown(scene)} -o {shown}/record.json")
    bench(bundle, scene, bench_seconds, out / "record.json")
    record = read_record(out / "record.json")
    quality["tuning"] = tuned.tuning
    quality["gates"] = [gate.model_dump() for gate in built.manifest.gates]
    record = record.model_copy(update={"quality": quality})
    clock.stage("draw")
    draw_preview(data, test, out / "map.tif", quality, out / "preview.png")
    write_record(record, out / "record.json")
    from edgekd.report.render import render_html

    caption = (
        "Scene, truth and map. Right of the dashed line is the test half, which tuning never saw."
    )
    html = render_html([record], [(caption, (out / "preview.png").read_bytes())])
    (out / "report.html").write_text(html, encoding="utf-8")
    write_json(out / "scene.json", result.plain())
    clock.stop()
    print_result(out, quality, record, result.plain(), clock)
    student = quality["canopy_iou"]
    best = max(item["canopy_iou"] for item in quality["baselines"].values())
    if not student > 1.5 * best:
        raise GateError(
            f"the student's canopy IoU of {student:.3f} does not clearly beat the baselines "
            f"({best:.3f}); at least 1.5 times that is expected of the demo"
        )


def bench(bundle: Path, scene: Path, seconds: float, path: Path) -> None:
    """``edgekd bench`` in a process of its own: training must not count in its memory.

    Raises:
        GateError: it left no record. A record that is not valid is kept; every page says so.
    """
    command = [sys.executable, "-m", "edgekd", "bench", str(bundle), str(scene)]
    command += ["--seconds", str(seconds), "-o", str(path)]
    path.unlink(missing_ok=True)
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in (0, 1) or not path.is_file():
        raise GateError(f"edgekd bench ended with exit code {done.returncode}")


class Clock:
    """Prints each stage with its command on stderr and keeps the seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name: str | None = None
        self._start = self._begin = time.perf_counter()

    def stage(self, text: str) -> None:
        self.stop()
        self._name = text.split(":")[0]
        self._start = time.perf_counter()
        print(f"== {text}", file=sys.stderr)

    def stop(self) -> None:
        if self._name is not None:
            self.seconds[self._name] = time.perf_counter() - self._start
            self._name = None

    @property
    def total_s(self) -> float:
        return time.perf_counter() - self._begin


def judge(session: Session, data: LabelledSet, test: Sample, map_path: Path) -> dict[str, Any]:
    """Canopy IoU on the test half, beside two answers that need no network.

    The student is run on the half alone, as ``edgekd eval`` does, so that not even pixels of the
    other half help at the border; the figure of the map, where they do, stands beside it.
    """
    pixels, target = data.load(test)
    assert test.region is not None
    in_map = read_channels(map_path, test.region, data.classes)
    student = np.asarray(session.run(pixels).classes, dtype=np.uint8)
    if [item.index for item in data.classes] != list(range(len(data.classes))):
        raise GateError("the demo takes class indices for channels, and they differ")
    threshold = tune_excess_green(data)
    green = (excess_green(pixels) > threshold).astype(np.uint8)
    answers = {
        "student": student,
        "map": in_map,
        "constant": np.full_like(target, CANOPY),
        "excess green": green,
    }
    scores: dict[str, dict[str, Any]] = {}
    for name, answer in answers.items():
        confusion = Confusion(len(data.classes))
        confusion.add(target, answer)
        scores[name] = {
            "canopy_iou": confusion.iou()[CANOPY],
            "miou": confusion.miou(),
            "overall_accuracy": confusion.accuracy(),
        }
    return {
        "what": "the eastern half run alone, which tuning never saw; pixels against ellipses",
        **scores.pop("student"),
        "canopy_iou_in_the_map": scores.pop("map")["canopy_iou"],
        "baselines": scores,
        "excess_green_threshold": threshold,
        "test_pixels": int(target.size),
        "canopy_share": float((target == CANOPY).mean()),
    }


def read_channels(path: Path, region: Window, classes: list[ClassSpec]) -> UInt8Array:
    """Channels ``(h, w)`` uint8 of a region of a map."""
    with Raster(path) as raster:
        values = np.asarray(raster.read(region, [1])[:, :, 0], dtype=np.uint8)
    table = np.full(256, 255, dtype=np.uint8)
    for channel, item in enumerate(classes):
        table[item.index] = channel
    return table[values]


def excess_green(pixels: UInt8Array) -> FloatArray:
    """Excess green ``2g - r - b`` of chromatic coordinates, -1 to 2, ``(H, W)`` float32.

    Woebbecke et al., Color indices for weed identification, Transactions of the ASAE, 1995.
    """
    values = pixels.astype(np.float32)
    total = values.sum(axis=2)
    total[total == 0] = 1.0
    result: FloatArray = 3.0 * values[:, :, 1] / total - 1.0  # r + g + b = 1
    return result


def tune_excess_green(data: LabelledSet) -> float:
    """The threshold with the best canopy IoU over the training and validation parts."""
    indices, targets = [], []
    for sample in (*data.split("train"), *data.split("val")):
        pixels, target = data.load(sample)
        indices.append(excess_green(pixels).ravel())
        targets.append(target.ravel() == CANOPY)
    index, truth = np.concatenate(indices), np.concatenate(targets)
    edges = np.linspace(-0.3, 0.6, 181)
    inside = np.histogram(index[truth], bins=[-np.inf, *edges, np.inf])[0]
    outside = np.histogram(index[~truth], bins=[-np.inf, *edges, np.inf])[0]
    hit = inside[::-1].cumsum()[::-1][1:]  # canopy pixels above edge k
    false = outside[::-1].cumsum()[::-1][1:]
    iou = hit / (truth.sum() + false)
    return round(float(edges[int(iou.argmax())]), 3) + 0.0


def draw_preview(
    data: LabelledSet, test: Sample, map_path: Path, quality: dict[str, Any], path: Path
) -> None:
    """Scene, truth and map side by side with legend and the training border."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    whole = Sample("scene", "test", test.image, boxes=test.boxes)
    pixels, truth = data.load(whole)
    channels = read_channels(map_path, Window(0, 0, *truth.shape), data.classes)
    assert test.region is not None
    border = test.region.x0
    palette = np.array([item.rgb for item in data.classes], dtype=np.uint8)
    height, width = truth.shape
    figure, axes = plt.subplots(1, 3, figsize=(16, 6.7), layout="constrained")
    panels = (
        ("Scene, 10 cm aerial image", pixels),
        ("Truth: crown boxes as ellipses", palette[truth]),
        ("Map by the student on this machine", palette[channels]),
    )
    for axis, (title, picture) in zip(axes, panels, strict=True):
        axis.imshow(picture, extent=(0, width * 0.1, height * 0.1, 0), interpolation="antialiased")
        axis.axvline(border * 0.1, color="black", linewidth=2.6)
        axis.axvline(border * 0.1, color="white", linewidth=1.4, linestyle=(0, (5, 4)))
        axis.set_title(title, fontsize=13)
        axis.set_xlabel("metres")
        for x, text in ((border / 2, "labels used in tuning"),
                        ((border + width) / 2, "test half, never seen")):  # fmt: skip
            axis.text(x * 0.1, 6, text, ha="center", va="center", fontsize=10, color="black",
                      bbox={"boxstyle": "round", "facecolor": "white", "alpha": 0.85,
                            "edgecolor": "none"})  # fmt: skip
    figure.suptitle(
        f"Canopy IoU on the test half: student {quality['canopy_iou']:.2f}, "
        f"excess green {quality['baselines']['excess green']['canopy_iou']:.2f}, "
        f"constant answer {quality['baselines']['constant']['canopy_iou']:.2f}",
        fontsize=15,
    )
    handles: list[Any] = [
        Patch(facecolor=item.color, edgecolor="grey", label=item.name) for item in data.classes
    ]
    handles.append(Line2D([], [], color="black", linestyle=(0, (5, 4)), label="training border"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=12)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def print_result(
    out: Path, quality: dict[str, Any], record: Any, scene: dict[str, Any], clock: Clock
) -> None:
    """The verdict and what to type next."""
    shown = _shown(out)
    print()
    print(f"Canopy IoU on the eastern half ({quality['test_pixels']:,} px that tuning never saw):")
    for value, text in (
        (
            quality["canopy_iou"],
            f"student ({quality['canopy_iou_in_the_map']:.3f} in the map, where windows cross "
            "the border)",
        ),
        (
            quality["baselines"]["excess green"]["canopy_iou"],
            "excess green, threshold tuned on the training part",
        ),
        (quality["baselines"]["constant"]["canopy_iou"], "best constant answer: all canopy"),
    ):
        print(f"  {value:.3f}  {text}")
    latency = record.engine.summary
    size = f"{scene['width']} x {scene['height']} px"
    print(f"map: {size}, {scene['crs']}, {scene['total_s']:.1f} s; "
          f"bare engine p50 {latency.p50_s * 1e3:.0f} ms per {record.bundle.tile_px} px tile; "
          f"power {record.power.status}")  # fmt: skip
    print("time: " + ", ".join(f"{name} {s:.0f} s" for name, s in clock.seconds.items())
          + f"; together {clock.total_s:.0f} s")  # fmt: skip
    print(f"written: {shown}/map.tif preview.png report.html record.json bundle/")
    print()
    print("Next:")
    for command in (
        f"{_tool()} inspect {shown}/bundle",
        f"{_tool()} run {shown}/bundle YOUR_SCENE.tif -o map.tif --bands 1,2,3",
        f"{_tool()} eval {shown}/bundle --data calibration/neon_canopy",
        f"{_tool()} bench {shown}/bundle calibration/neon_canopy/yell_528000.tif -o record.json",
        f"{_tool()} ls recipes",
    ):
        print(f"  {command}")


def _tool() -> str:
    """How this user calls edgekd: from the virtual environment that ``make`` made, or plainly."""
    tool = ROOT / ".venv" / "bin" / "edgekd"
    return ".venv/bin/edgekd" if Path(sys.prefix) == tool.parent.parent else "edgekd"


def _shown(path: Path) -> str:
    """A path as a user would type it: relative to the working directory where it can be."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


if __name__ == "__main__":
    sys.exit(main())
