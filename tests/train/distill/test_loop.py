"""The loop of distillation: what is trained, resumed, logged, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from edgekd.contracts.recipe import Recipe
from edgekd.errors import CheckpointError, EdgeKDError, InputError
from edgekd.train.checkpoint import build_student, load_encoder
from edgekd.train.distill import loop, tasks
from edgekd.train.distill.loop import distill
from edgekd.train.distill.teaching import build_teachers
from edgekd.train.run import read_curves
from tests.helpers.labelled import write_recipe
from tests.helpers.unlabeled import LITE, SAM, distill_values, make_tiles

METHODS = ["mask_cdkd", "feature", "mae"]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiles(tmp_path_factory.mktemp("tiles"))


def run(values: dict[str, Any], tiles: Path, out: Path, **options: Any) -> Any:
    options.setdefault("accelerator", "cpu")
    recipe = Recipe.model_validate(values)
    return distill(recipe, tiles.parent, [tiles], out, **options)


def last(out: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(out / "last.ckpt", weights_only=True)
    return state


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def curves(out: Path) -> list[dict[str, str]]:
    """Without what depends on the machine."""
    timed = ("images_per_s", "peak_mib")
    return [
        {key: value for key, value in row.items() if key not in timed}
        for row in read_curves(out / "curves.csv")
    ]


def test_every_method_file_is_tested() -> None:
    from edgekd.contracts import registry

    # cross_modal trains on sensor sets: tests/train/distill/test_chain.py
    found = registry.module_names("edgekd.train.distill.methods")
    assert found == sorted([*METHODS, "cross_modal"])


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_an_encoder_curves_pictures_and_a_log(
    tiles: Path, tmp_path: Path, method: str
) -> None:
    result = run(distill_values(method), tiles, tmp_path)
    encoder = load_encoder(tmp_path)
    assert encoder.distilled == result.distilled
    assert (encoder.distilled["steps"], encoder.distilled["crops"]) == (6, 12)
    rows = read_curves(tmp_path / "curves.csv")
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "lr", "grad_norm", "images_per_s", "peak_mib", "student_std"):
        assert all(float(row[name]) > 0 for row in rows), name
    expected = {
        "mask_cdkd": {"kd", "teacher_mae", "student_mae", "r", "stage", "teacher_rank"},
        "feature": {"kd", "teacher_std", "teacher_rank"},
        "mae": {"student_mae"},
    }
    assert expected[method] <= set(rows[0])
    pictures = sorted(path.name for path in (tmp_path / "pictures").glob("*"))
    if method != "feature":
        assert pictures == ["step_000000.png", "step_000003.png", "step_000006.png"]
        picture = cv2.imread(str(tmp_path / "pictures" / pictures[-1]))
        columns = 4 if method == "mask_cdkd" else 3
        assert picture.shape == (26 + 4 * (128 + 6), columns * (128 + 6) - 6, 3)
    assert "done: 6 steps" in (tmp_path / "log.txt").read_text()
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize("method", METHODS)
def test_resumed_equals_uninterrupted(tiles: Path, tmp_path: Path, method: str) -> None:
    values = distill_values(method)
    run(values, tiles, tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(step: int, steps: int, text: str) -> None:
        if step == 5:  # the last checkpoint is that of step 4
            raise Stop

    with pytest.raises(Stop):
        run(values, tiles, tmp_path / "cut", progress=stop)
    assert last(tmp_path / "cut")["step"] == 4
    assert len(read_curves(tmp_path / "cut" / "curves.csv")) == 5
    run(values, tiles, tmp_path / "cut", resume=True)
    whole, cut = last(tmp_path / "whole"), last(tmp_path / "cut")
    assert same(whole["method"], cut["method"])
    assert whole["stages"] == cut["stages"] and whole["losses"] == cut["losses"]
    assert curves(tmp_path / "whole") == curves(tmp_path / "cut")
    assert same(load_encoder(tmp_path / "whole").weights, load_encoder(tmp_path / "cut").weights)


def test_kill_9_and_resume_equals_uninterrupted(tiles: Path, tmp_path: Path) -> None:
    """A killed process, not an exception: what is on disk must be enough.

    The run to compare with is a process of the same kind: the order of a sum, and so its last
    bit, depends on the number of threads, which other tests of this process may have set.
    """
    values = distill_values(steps=14, save_every_steps=4, picture_every_steps=0)
    recipe = write_recipe(tmp_path, values)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "edgekd", "distill", str(recipe), "--data", str(tiles),
               "--accelerator", "cpu"]  # fmt: skip
    subprocess.run([*command, "-o", str(whole)], check=True, stderr=subprocess.PIPE)
    command += ["-o", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if len(read_curves(out / "curves.csv")) >= 6:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, process.stderr.read()
    assert not (out / "encoder.ckpt").exists()
    done = subprocess.run([*command, "--resume", "--json"], check=True, stdout=subprocess.PIPE)
    assert json.loads(done.stdout)["steps"] == 14
    assert same(last(whole)["method"], last(out)["method"])
    assert curves(whole) == curves(out)


def test_the_backbone_stays_bit_for_bit_and_adapters_and_student_learn(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Any] = []
    before: dict[str, dict[str, torch.Tensor]] = {}
    original = loop._Run.start

    def keep(self: Any, resume: bool, fresh: bool) -> None:
        original(self, resume, fresh)
        runs.append(self)
        before["all"] = {k: v.clone() for k, v in self.method.state_dict().items()}

    monkeypatch.setattr(loop._Run, "start", keep)
    run(distill_values(), tiles, tmp_path)
    after = runs[0].method.state_dict()
    moved = {key for key, value in after.items() if not torch.equal(value, before["all"][key])}
    assert not {key for key in moved if key.startswith("teachers.")}
    assert any(key.startswith("teachers.") for key in after)
    for part in ("student.blocks.0.", "student.blocks.5.", "sides.0.adapters.0.",
                 "sides.0.adapters.5.", "sides.0.branch.", "sides.0.bridges.projectors.2.",
                 "masked.branch."):  # fmt: skip
        assert any(key.startswith(part) for key in moved), part
    assert not any(key.startswith("teachers.") for key in last(tmp_path)["method"])


def gradients(values: dict[str, Any], weights: tuple[float, float, float]) -> dict[str, float]:
    """Name -> largest gradient of one batch with these weights of the losses."""
    recipe = Recipe.model_validate(values)
    torch.manual_seed(0)
    student = build_student("vit_nano", 2, attention="global", head="linear", pretrained=None)
    teachers = build_teachers(recipe, Path())
    from edgekd.train.distill.methods import mask_cdkd
    from edgekd.train.distill.methods._base import Batch

    method = mask_cdkd.build(recipe, student, teachers).train()
    with torch.no_grad():  # away from the zeros of the start, where some gradients vanish
        for name, value in method.named_parameters():
            if value.requires_grad and "adapters" in name:
                value.add_(0.02 * torch.randn_like(value))
    pixels = torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8)
    method(Batch(pixels, pixels, [0, 1]), weights).total.backward()
    return {
        name: 0.0 if value.grad is None else float(value.grad.abs().max())
        for name, value in method.named_parameters()
        if value.requires_grad
    }


def test_the_distillation_loss_alone_reaches_the_adapters() -> None:
    found = gradients(distill_values(), (1.0, 0.0, 0.0))
    deepest = 4  # the deepest pair of SAM tiny compares block 4 of 6
    for number in range(deepest):
        part = {k: v for k, v in found.items() if k.startswith(f"sides.0.adapters.{number}.")}
        assert part and all(value > 0 for value in part.values()), number
    assert all(v == 0 for k, v in found.items() if k.startswith("sides.0.branch."))
    assert found["student.blocks.0.mlp.0.weight"] > 0


def test_one_directional_stops_it_there() -> None:
    found = gradients(distill_values(detach_teacher=True), (1.0, 0.0, 0.0))
    assert all(v == 0 for k, v in found.items() if k.startswith("sides.0.adapters."))
    assert found["student.blocks.0.mlp.0.weight"] > 0
    both = gradients(distill_values(detach_teacher=True), (1.0, 1.0, 0.0))
    assert both["sides.0.adapters.0.fine.down.0.weight"] > 0


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_with_half_the_batch_are_one_process(
    tiles: Path, tmp_path: Path, method: str
) -> None:
    # Adam divides by the gradient's size, which makes rounding visible where a gradient is nearly
    # zero: up to the learning rate per step, hence a small one. It would also hide a sum in place
    # of a mean, hence the look at grad_norm.
    fixed = {"steps": 4, "picture_every_steps": 2, "grad_clip": 100.0, "lr": 2e-4}
    values = distill_values(method, batch=2, **fixed)
    if method == "feature":
        values["teachers"] = [LITE | {"norm": "standardize"}]
    run(values, tiles, tmp_path / "one")
    half = distill_values(method, batch=1, **fixed)
    half["teachers"] = values["teachers"]
    recipe = write_recipe(tmp_path, half)
    command = [sys.executable, "-m", "edgekd", "distill", str(recipe), "--data", str(tiles),
               "-o", str(tmp_path / "two"), "--accelerator", "cpu", "--devices", "2"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("encoder: ") == 1, "only the first process speaks"
    one, two = last(tmp_path / "one"), last(tmp_path / "two")
    assert one["method"].keys() == two["method"].keys()
    worst = max(float((one["method"][k] - two["method"][k]).abs().max()) for k in one["method"])
    assert worst <= 1e-5
    for a, b in zip(
        read_curves(tmp_path / "one" / "curves.csv"),
        read_curves(tmp_path / "two" / "curves.csv"),
        strict=True,
    ):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), abs=1e-5)
        assert float(a["grad_norm"]) == pytest.approx(float(b["grad_norm"]), rel=1e-4)


def test_accumulated_parts_are_one_larger_batch(tiles: Path, tmp_path: Path) -> None:
    fixed = {"picture_every_steps": 0, "lr": 2e-4, "grad_clip": 100.0}
    run(distill_values(batch=4, **fixed), tiles, tmp_path / "one")
    values = distill_values(batch=2, accumulate=2, **fixed)
    run(values, tiles, tmp_path / "parts")
    one, parts = last(tmp_path / "one")["method"], last(tmp_path / "parts")["method"]
    assert max(float((one[key] - parts[key]).abs().max()) for key in one) <= 1e-5
    for a, b in zip(curves(tmp_path / "one"), curves(tmp_path / "parts"), strict=True):
        assert float(a["grad_norm"]) == pytest.approx(float(b["grad_norm"]), rel=1e-4)


def test_checkpointing_changes_memory_only(tiles: Path, tmp_path: Path) -> None:
    run(distill_values(), tiles, tmp_path / "plain")
    run(distill_values(checkpointing=True), tiles, tmp_path / "saved")
    plain, saved = last(tmp_path / "plain")["method"], last(tmp_path / "saved")["method"]
    assert max(float((plain[key] - saved[key]).abs().max()) for key in plain) <= 1e-6


def test_workers_change_nothing(tiles: Path, tmp_path: Path) -> None:
    run(distill_values("mae"), tiles, tmp_path / "none")
    run(distill_values("mae", workers=2), tiles, tmp_path / "two")
    assert same(last(tmp_path / "none")["method"], last(tmp_path / "two")["method"])


def test_cached_features_change_nothing_but_the_teachers_work(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekd.train.distill.methods.feature import Feature

    seen: list[int] = []
    original = Feature.teacher_features

    def counted(self: Feature, number: int, clean: torch.Tensor) -> list[torch.Tensor]:
        seen.append(len(clean))
        return original(self, number, clean)

    monkeypatch.setattr(Feature, "teacher_features", counted)
    values = distill_values("feature", cache={"mib": 50, "crops": 4}, steps=8)
    run(values, tiles, tmp_path / "cold")
    assert sum(seen) == 4, "each of the four crops goes through the teacher once"
    log = (tmp_path / "cold" / "log.txt").read_text()
    assert "feature cache" in log and "share of the cache" not in log
    seen.clear()
    (tmp_path / "warm").mkdir()
    (tmp_path / "cold" / "features").rename(tmp_path / "warm" / "features")
    run(values, tiles, tmp_path / "warm")
    assert not seen, "all of them are on disk"
    few = distill_values("feature", cache={"mib": 1, "crops": 4000}, steps=2)
    run(few, tiles, tmp_path / "few")
    log = (tmp_path / "few" / "log.txt").read_text()
    assert log.count("for 4000 crops take") == 1 and "raise distill.cache.mib" in log
    assert same(last(tmp_path / "cold")["method"], last(tmp_path / "warm")["method"])


@pytest.mark.parametrize("method", ["mask_cdkd", "feature"])
def test_several_teachers_each_with_a_projector(tiles: Path, tmp_path: Path, method: str) -> None:
    values = distill_values(method)
    first = values["teachers"][0]
    second = SAM if method == "mask_cdkd" else LITE | {"variant": "lite2"}
    values["teachers"] = [first | {"weight": 3.0}, second | {"pairs": [[2, 3]]}]
    run(values, tiles, tmp_path)
    row = read_curves(tmp_path / "curves.csv")[-1]
    kd = 0.75 * float(row["kd_0"]) + 0.25 * float(row["kd_1"])
    assert float(row["kd"]) == pytest.approx(kd, rel=1e-5)
    assert float(row["teacher1_std"]) > 0
    assert len(load_encoder(tmp_path).distilled["teachers"]) == 2


def test_features_with_masking_and_reconstruction(tiles: Path, tmp_path: Path) -> None:
    values = distill_values("feature", mae={"dim": 32, "depth": 1, "heads": 2, "weight": 0.5})
    run(values, tiles, tmp_path)
    row = read_curves(tmp_path / "curves.csv")[-1]
    expected = float(row["kd"]) + 0.5 * float(row["student_mae"])
    assert float(row["loss"]) == pytest.approx(expected, rel=1e-5)


def test_a_convolutional_student_learns_features_and_is_refused_where_patches_are_hidden(
    tiles: Path, tmp_path: Path
) -> None:
    values = distill_values("feature", mask={"kind": "none"})
    values["student"] = {"name": "lite0", "pretrained": False}
    run(values, tiles, tmp_path / "ok")
    with pytest.raises(InputError, match=r"lite0 has none; take a vit_\* student"):
        run(values | {"distill": distill_values("feature")["distill"]}, tiles, tmp_path / "no")


def test_a_run_is_not_overwritten_and_not_mixed(tiles: Path, tmp_path: Path) -> None:
    run(distill_values("mae"), tiles, tmp_path)
    with pytest.raises(InputError, match=r"already holds a run .* --resume .* --fresh"):
        run(distill_values("mae"), tiles, tmp_path)
    with pytest.raises(CheckpointError, match="another recipe, data, teacher"):
        run(distill_values("mae", lr=2e-3), tiles, tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        run(distill_values("mae"), tiles, tmp_path / "new", resume=True)
    run(distill_values("mae", lr=2e-3), tiles, tmp_path, fresh=True)
    assert (tmp_path / "log.txt").read_text().count("done: 6 steps") == 1
    assert len(list((tmp_path / "tensorboard").glob("events.*"))) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teachers": [SAM | {"pairs": [[7, 3]]}]},
         r"teachers\[0\].pairs holds \[7, 3\], and sam has the blocks 1 to 6"),
        ({"teachers": [SAM | {"pairs": [[6, 9]]}]}, "the student has the blocks 1 to 6"),
        ({"teachers": [SAM | {"variant": "vit_x"}]}, "sam has no 'vit_x'.*valid: vit_l"),
        ({"teachers": [LITE]}, "needs teachers of transformer blocks"),
        ({"teachers": [SAM | {"sha256": "0" * 64}]}, r"sha256 is that of a file, and weights is"),
        ({"crop_px": 144}, "distill.crop_px is 144 px.*multiples of 32 px"),
        ({"crop_px": 192}, "tile00.png is 160 x 160 px, smaller than the crop of 192 px"),
        ({"student": {"name": "vit_nano", "attention": "windowed"}}, "multiples of 512 px"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line(
    tiles: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    values = distill_values()
    for key, value in change.items():
        (values if key in values else values["distill"])[key] = value
    with pytest.raises(EdgeKDError, match=words) as caught:
        run(values, tiles, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_no_part_of_the_encoder_stays_random_unsaid(tiles: Path, tmp_path: Path) -> None:
    values = distill_values("feature")
    values["teachers"] = [LITE | {"pairs": [[5, 4]]}]
    with pytest.raises(InputError, match="block in teachers.* is 4 of 6: what lies behind"):
        run(values, tiles, tmp_path / "short")
    values["distill"]["mae"]["weight"] = 1.0  # the branch reaches the last block
    run(values, tiles, tmp_path / "branch")


def test_weights_of_a_student_want_their_normalisation(tiles: Path, tmp_path: Path) -> None:
    values = distill_values("feature", mask={"kind": "none"})
    values["student"] = {"name": "lite0", "pretrained": True}
    with pytest.raises(InputError, match="the weights of lite0 were trained with mean"):
        run(values, tiles, tmp_path)


def test_mask_tokens_are_not_decayed(tiles: Path, tmp_path: Path) -> None:
    """With a learning rate of nothing but decay, only what is decayed shrinks."""
    kept = {}
    original = loop._Run._optimizer

    def look(self: Any) -> Any:
        optimizer = original(self)
        names = {id(value): name for name, value in self.method.named_parameters()}
        for group in optimizer.param_groups:
            for value in group["params"]:
                kept[names[id(value)]] = group["weight_decay"]
        return optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "_optimizer", look)
        run(distill_values(steps=1), tiles, tmp_path)
    assert kept["masked.branch.mask_token"] == 0 == kept["sides.0.branch.mask_token"]
    assert kept["student.norm.weight"] == 0 == kept["student.blocks.0.mlp.0.bias"]
    assert kept["student.blocks.0.mlp.0.weight"] == 0.01 == kept["student.patch_embed.weight"]
    assert not any(name.startswith("teachers.") for name in kept)


def test_cached_features_are_those_of_the_teacher(tiles: Path, tmp_path: Path) -> None:
    """Up to float16: the same run with and without the cache, on the same few crops."""
    from edgekd.train.distill.teaching import CachedTeachers

    values = distill_values("feature", cache={"mib": 50, "crops": 4}, steps=4, augment={})
    run(values, tiles, tmp_path / "cache")

    class Uncached(CachedTeachers):
        def features(self, pixels: torch.Tensor, clean: torch.Tensor) -> Any:
            return {0: self._method.teacher_features(0, clean)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "CachedTeachers", Uncached)
        run(values, tiles, tmp_path / "none")
    for a, b in zip(curves(tmp_path / "cache"), curves(tmp_path / "none"), strict=True):
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=2e-3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_during_a_run_is_logged_once_and_too_many_end_it(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    from edgekd.errors import DatasetError, ImageError
    from edgekd.train.datasets.unlabeled import UnlabeledSet

    folder = make_tiles(tmp_path / "many", count=30)
    original = UnlabeledSet.read
    bad = {"tile03.png"}

    def read(self: UnlabeledSet, index: int, window: Any) -> Any:
        path = self._files[index].path
        if path.name in bad:
            raise ImageError(f"{path} is damaged: torn in the middle")
        return original(self, index, window)

    monkeypatch.setattr(UnlabeledSet, "read", read)
    values = distill_values("mae", workers=workers, steps=30, picture_every_steps=0)
    run(values, folder, tmp_path / "one")
    log = (tmp_path / "one" / "log.txt").read_text()
    assert log.count("skipped a broken file") == 1 and "tile03.png is damaged" in log
    bad |= {"tile05.png", "tile07.png"}
    with pytest.raises(DatasetError, match=r"2 of 30 files are broken, more than 5%") as caught:
        run(values, folder, tmp_path / "two")
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


def test_processes_that_a_launcher_started_are_not_ignored(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 processes were started .* --devices"):
        run(distill_values("mae"), tiles, tmp_path)


def test_a_loss_that_is_no_number_stops_the_run(tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the loss( \w+)? became .* at step"):
        run(distill_values("mae", lr=1e30, grad_clip=1e30, steps=20), tiles, tmp_path)


def test_nodes_without_a_launcher_are_refused_at_once(tiles: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither torchrun nor SLURM .* torchrun --nnodes 2"):
        run(distill_values(), tiles, tmp_path, nodes=2)


def test_what_a_method_does_not_look_at_is_said(tiles: Path, tmp_path: Path) -> None:
    values = distill_values("feature", adapter={"gate": "sum"}, detach_teacher=True, steps=1)
    run(values, tiles, tmp_path)
    log = (tmp_path / "log.txt").read_text()
    line = next(line for line in log.splitlines() if line.startswith("set and not used by "))
    assert {"distill.adapter", "distill.detach_teacher"} <= {*line.replace(",", "").split()}
    run(distill_values(adapter={"gate": "sum"}, steps=1), tiles, tmp_path / "used")
    assert "not used" not in (tmp_path / "used" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("method", "watched"), [("mask_cdkd", ["student", "teacher"]), ("feature", ["student"])]
)
def test_only_what_learns_is_watched_for_collapse(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, watched: list[str]
) -> None:
    names: set[str] = set()
    original = loop.CollapseWatch.update

    def keep(self: Any, step: int, name: str, std: float, rank: float) -> str | None:
        names.add(name)
        return original(self, step, name, std, rank)

    monkeypatch.setattr(loop.CollapseWatch, "update", keep)
    run(distill_values(method, steps=2), tiles, tmp_path)
    assert sorted(names) == watched
