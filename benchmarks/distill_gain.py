"""What distillation is worth: ``python benchmarks/distill_gain.py [--write]``.

One ViT, four ways to train its encoder without labels (none, masked autoencoding, features of a
real ImageNet teacher, both), several seeds each; then the same decoder is tuned on the frozen
encoder and judged on a tile that nothing has seen. Everything is done by the commands a user
types; ``benchmarks/distill_gain.yaml`` holds the arms as presets and the reasons beside the
numbers. The real data is needed (EDGEKD_TEST_DATA); without it the script says so and ends with 2.

A run that was stopped goes on where it was: finished parts are not done again, unfinished ones are
resumed. Ends with 1 when the distilled encoder does not beat MAE by more than the spread (the sum
of both standard deviations over the seeds).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import yaml
from _records import here

from edgekd.contracts.artifacts import publish_file, sha256_bytes, sha256_file, write_json

ROOT = Path(__file__).resolve().parent.parent
RECIPE = Path(__file__).with_suffix(".yaml")
#: preset of the recipe (None: a random encoder) -> what the figures call it.
ARMS = {
    "scratch": "from scratch (random encoder)",
    "mae": "MAE only",
    "feature": "feature KD",
    "feature-mae": "feature KD + MAE",
}
DATA = Path(os.environ.get("EDGEKD_TEST_DATA") or ROOT.parent / "shared" / "data")


def write_list(path: Path) -> int:
    """List what encoders may learn from; returns the number of images."""
    training = re.compile(r"tile(1|2|3|5)_")
    images = sorted((DATA / "unlabeled_512").glob("*.*"))
    images = [item for item in images if item.suffix.lower() in (".jpg", ".jpeg", ".png", ".tif")]
    images += [
        i for i in sorted((DATA / "landcover" / "images").iterdir()) if training.match(i.name)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with publish_file(path) as part:
        part.write_text("".join(f"{os.path.relpath(item, path.parent)}\n" for item in images))
    return len(images)


class Arm:
    """One arm with one seed; its files lie in ``folder``."""

    def __init__(self, name: str, seed: int, out: Path, changes: Sequence[str]) -> None:
        self.name, self.seed = name, seed
        self.folder = out / f"{name}-{seed}"
        self.commands: list[str] = []
        self._list = out / "images.txt"
        self._changes = changes
        said = [RECIPE.read_text(), *changes, self._list.read_text()]
        self._made_from = sha256_bytes("\n".join(said).encode())

    @property
    def result(self) -> Path:
        """Figures on the test tile; there when the arm is done."""
        return self.folder / "test.json"

    def run(self) -> None:
        """Do what is not done yet."""
        sets = [f"--set={text}" for text in self._changes]
        self.folder.mkdir(parents=True, exist_ok=True)
        mark = self.folder / "made_from.txt"
        if mark.exists() and mark.read_text() != self._made_from:
            raise click.ClickException(
                f"{self.folder} was made with another recipe, --set or images; give another -o"
            )
        mark.write_text(self._made_from)
        encoder = self.folder / "encoder"
        tuning = ["--encoder", "random"]
        if self.name != "scratch":
            tuning = ["--encoder", str(encoder)]
            self._edgekd(
                "distill", str(RECIPE), "--set", f"preset={self.name}", *sets,
                "--set", f"distill.seed={self.seed}", "--data", str(self._list),
                "-o", str(encoder), done=encoder / "encoder.ckpt", state=encoder / "last.ckpt",
            )  # fmt: skip
        tuned = self.folder / "tuned"
        self._edgekd(
            "finetune", str(RECIPE), *tuning, *sets, "--set", f"finetune.seed={self.seed}",
            "--data", str(DATA / "landcover"), "-o", str(tuned),
            done=self.folder / "tuned.json", state=tuned / "last.ckpt",
        )  # fmt: skip
        self._edgekd("eval", str(tuned), "--data", str(DATA / "landcover"), "--split", "test",
                     "-o", str(self.result), done=self.result)  # fmt: skip

    def _edgekd(self, *words: str, done: Path, state: Path | None = None) -> None:
        shown = ["edgekd", *(_short(word, self.folder.parent) for word in words)]
        self.commands.append(shlex.join(shown))
        if done.exists():
            return
        command = [sys.executable, "-m", "edgekd", *words, "--json"]
        if state is not None and words[0] != "eval":
            command.append("--resume" if state.exists() else "--fresh")
        with (self.folder / "log.txt").open("a") as log:
            finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True)
        if finished.returncode:
            tail = (self.folder / "log.txt").read_text().splitlines()[-1:]
            raise click.ClickException(f"{self.name}, seed {self.seed}: {' '.join(tail)}")
        if words[0] == "finetune":
            done.write_text(finished.stdout)
        click.echo(f"{self.name} {self.seed}: {words[0]} done", err=True)

    def figures(self) -> dict[str, Any]:
        """Of a finished arm."""
        test = json.loads(self.result.read_text())
        tuned = json.loads((self.folder / "tuned.json").read_text())
        distilled = tuned["encoder"]
        return {
            "arm": self.name,
            "seed": self.seed,
            "miou": test["miou"],
            "overall_accuracy": test["overall_accuracy"],
            "mean_f1": test["mean_f1"],
            "per_class_iou": {item["name"]: item["iou"] for item in test["per_class"]},
            "val_miou": tuned["best_val_miou"],
            "distill_s": distilled.get("seconds", 0.0),
            "distill_steps": distilled.get("steps", 0),
            "losses": distilled.get("losses", {}),
            "finetune_s": tuned["seconds"],
            "commands": self.commands,
        }


def _short(word: str, out: Path) -> str:
    """A command's word without the places of this machine."""
    return word.replace(str(DATA), "DATA").replace(str(out), "OUT").replace(f"{ROOT}/", "")


def summarise(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Arm -> mean and sample standard deviation over the seeds."""
    arms: dict[str, dict[str, Any]] = {}
    for name, title in ARMS.items():
        mine = [run for run in runs if run["arm"] == name]
        if mine:
            values = [run["miou"] for run in mine]
            arms[name] = {
                "title": title,
                "seeds": [run["seed"] for run in mine],
                "val_miou_mean": statistics.fmean([run["val_miou"] for run in mine]),
                "miou_mean": statistics.fmean(values),
                "miou_sd": statistics.stdev(values) if len(values) > 1 else None,
                "minutes_mean": statistics.fmean(
                    [(run["distill_s"] + run["finetune_s"]) / 60 for run in mine]
                ),
            }
    return arms


def verdict(arms: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Whether the distilled arm that validates better beats MAE on the test tile by more than
    the spread."""
    distilled = [name for name in ("feature", "feature-mae") if name in arms]
    if "mae" not in arms or not distilled:
        return {"passed": False, "why": "arms are missing"}
    best = max(distilled, key=lambda name: arms[name]["val_miou_mean"])
    gain = arms[best]["miou_mean"] - arms["mae"]["miou_mean"]
    spreads = [arms[name]["miou_sd"] for name in (best, "mae")]
    if None in spreads:
        return {"passed": False, "why": "one seed has no spread", "gain_miou": gain}
    return {
        "best": best,
        "gain_miou": gain,
        "spread_miou": sum(spreads),
        "passed": gain > sum(spreads),
    }


def draw(path: Path, runs: list[dict[str, Any]], arms: dict[str, dict[str, Any]]) -> None:
    """Points per seed and the mean with its standard deviation."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for place, (name, arm) in enumerate(arms.items()):
        values = [100 * run["miou"] for run in runs if run["arm"] == name]
        axes.errorbar(
            100 * arm["miou_mean"], place, xerr=100 * (arm["miou_sd"] or 0), fmt="D",
            color="#117733", capsize=4,
        )  # fmt: skip
        axes.plot(values, [place + 0.25] * len(values), "o", color="#666666", markersize=4)
    axes.set_yticks(range(len(arms)), [arm["title"] for arm in arms.values()])
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.set_xlabel("mIoU on test tile 7, %  (mean ± standard deviation; dots: seeds)")
    axes.grid(axis="x", alpha=0.3)
    with publish_file(path) as part:
        figure.savefig(part, dpi=130)
    plt.close(figure)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=ROOT / "out/distill_gain",
              show_default=True, help="Folder of the runs; finished parts are kept.")  # fmt: skip
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--arms", default=",".join(ARMS), show_default=True)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Of the recipe.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True,
              help="Arms at once, a core each.")  # fmt: skip
@click.option("--write", is_flag=True, help="Write benchmarks/results/<device>/distill_gain.*")
def main(
    output: Path, seeds: str, arms: str, changes: tuple[str, ...], jobs: int, write: bool
) -> None:
    """Run what is missing, print the table, and end with 1 when distillation does not help."""
    if not (DATA / "landcover").is_dir():
        raise click.UsageError(f"no real data at {DATA}; set EDGEKD_TEST_DATA")
    chosen = [name.strip() for name in arms.split(",")]
    if unknown := [name for name in chosen if name not in ARMS]:
        raise click.UsageError(f"no arm '{unknown[0]}' (valid: {', '.join(ARMS)})")
    images = write_list(output / "images.txt")
    if jobs > 1:  # spinning threads of two runs would eat each other's time
        os.environ["OMP_NUM_THREADS"] = "1"
    numbers = [int(seed) for seed in seeds.split(",")]
    work = [Arm(name, seed, output.resolve(), changes) for seed in numbers for name in chosen]
    with ThreadPoolExecutor(jobs) as pool:
        for _ in pool.map(Arm.run, work):
            pass
    runs = [arm.figures() for arm in work]
    table = summarise(runs)
    judged = verdict(table)
    for arm in table.values():
        spread = "" if arm["miou_sd"] is None else f" ± {100 * arm['miou_sd']:.2f}"
        click.echo(
            f"{arm['title']:32s} mIoU {100 * arm['miou_mean']:.2f}{spread} %, "
            f"{arm['minutes_mean']:.1f} min"
        )
    click.echo(json.dumps(judged))
    if write:
        folder, environment = here()
        recipe = yaml.safe_load(RECIPE.read_text())
        write_json(
            folder / "distill_gain.json",
            {
                "what": "frozen encoder, decoder tuned on tiles 1, 2, 3, 5; mIoU on test tile 7",
                "recipe_sha256": sha256_file(RECIPE),
                "student": recipe["student"],
                "changes": list(changes),
                "unlabeled_images": images,
                "jobs_at_once": jobs,
                "minutes": "wall-clock, on a machine that other work may have shared",
                "arms": table,
                "verdict": judged,
                "runs": runs,
                "environment": environment.model_dump(mode="json"),
            },
        )
        draw(folder / "distill_gain.png", runs, table)
        click.echo(f"written: {folder}/distill_gain.*", err=True)
    sys.exit(0 if judged["passed"] else 1)


if __name__ == "__main__":
    main()
