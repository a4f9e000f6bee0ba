"""What a step of Mask-CDKD costs: ``python benchmarks/distill_step.py [--write]``.

One optimisation step at the paper's size (SAM ViT-L with MMoA in every block, ViT-Small, both
reconstruction branches, three KD pairs, 1024 x 1024 px, random weights) in two ways:

- ``visible``: as edgekd does it, both encoders on the visible quarter of the tokens;
- ``all``: as the article's sample code does it, both encoders on all tokens, the loss still on the
  hidden patches. Everything else is the same code.

Each way runs in processes of its own, in turns (visible, all, visible), and must give: at least
3 times faster, at most half the peak memory. Where the all-token step does not fit into
``--limit-gib``, both are measured at the largest depth of the teacher that does (its peak is
extrapolated from two shallower ones), and the record says so; the visible step is then measured at
full depth besides.

On a GPU it measures ``--batch`` crops with ``--precision bf16`` and says how long the paper's
100,801 tiles x 120 epochs would take. Ends with 1 when a bound is missed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from _records import folder_of, here
from torch import Tensor

from edgekd.contracts.artifacts import write_json
from edgekd.contracts.recipe import load_recipe
from edgekd.telemetry.environment import read_environment
from edgekd.telemetry.process import peak_rss_mib
from edgekd.train.checkpoint import build_student
from edgekd.train.distill.mae import MaeBranch, patches, reconstruction_loss
from edgekd.train.distill.masking import hidden_mask
from edgekd.train.distill.methods._base import Batch, MaskedViT
from edgekd.train.distill.methods.mask_cdkd import MaskCdkd
from edgekd.train.teachers import sam
from edgekd.train.teachers._weights import randomize

SPEED_BOUND = 3.0
MEMORY_BOUND = 0.5
#: the article's training set and length.
PAPER_TILES = 100_801
PAPER_EPOCHS = 120
_RECIPE = Path(__file__).resolve().parent.parent / "engines" / "landcover.yaml"
#: depths from which the peak of the all-token step is extrapolated; each ends with a global block.
_SHALLOW = (6, 12)
_STEP = 6


class AllTokens(MaskedViT):
    """Shows every patch to the encoders; the loss looks at the hidden ones as before."""

    def index(self, numbers: Sequence[int], device: torch.device) -> Tensor:
        """All patches ``(N, h, w)``."""
        self._hidden = hidden_mask(super().index(numbers, device), self.grid)
        height, width = self.grid
        everything = torch.arange(height * width, device=device).view(1, height, width)
        return everything.expand(len(numbers), -1, -1)

    def painted(
        self, visible: Tensor, index: Tensor, image: Tensor, branch: MaeBranch, patch_px: int
    ) -> tuple[Tensor, Tensor]:
        """Loss on the patches that would be hidden."""
        predicted = branch(visible, index, self.grid)
        target = patches(image, patch_px)
        loss = reconstruction_loss(predicted.float(), target.float(), self._hidden, False)
        return loss, predicted


def cut_teacher(depth: int) -> sam.SamEncoder:
    """SAM ViT-L with random weights and its first ``depth`` blocks."""
    size = sam.SIZES["vit_l"]
    sam.SIZES["cut"] = size._replace(
        depth=depth, globals=tuple(block for block in size.globals if block <= depth)
    )
    encoder = sam.container("cut").to_empty(device="cpu")
    randomize(encoder, 0)
    teacher = sam.SamEncoder(encoder, "cut")
    teacher.freeze()
    return teacher


def run_steps(
    way: str, depth: int, steps: int, batch: int, precision: str, checkpointing: bool, device: str
) -> dict[str, Any]:
    """Take steps in this process; times of all but the first, and the peak memory."""
    values = load_recipe(_RECIPE).plain()
    quarter = depth // 4
    values["teachers"][0]["pairs"] = [[quarter * part, 3 * part] for part in (1, 2, 3)]
    values["distill"] |= {"checkpointing": checkpointing, "batch": batch}
    from edgekd.contracts.recipe import Recipe

    recipe = Recipe.model_validate(values)
    torch.manual_seed(0)
    student = build_student("vit_small", 5, attention="windowed", head="upernet", pretrained=None)
    method = MaskCdkd(recipe, student, [cut_teacher(depth)])
    if way == "all":
        masked = AllTokens(student.encoder, student.name, method.spec, branch=True)
        assert masked.branch is not None and method.masked is not None
        assert method.masked.branch is not None
        masked.branch.load_state_dict(method.masked.branch.state_dict())
        method.masked = masked
    method.to(device).train()
    trained = [item for item in method.parameters() if item.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.01)
    crop = recipe.distill.crop_px if recipe.distill else 0
    pixels = torch.randint(0, 256, (batch, 3, crop, crop), dtype=torch.uint8, device=device)
    times, losses = [], []
    for number in range(steps):
        _wait(device)
        start = time.perf_counter()
        numbers = list(range(number * batch, (number + 1) * batch))
        with torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            result = method(Batch(pixels, pixels, numbers), (0.2, 0.4, 0.4))
        result.total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(result.total.item())
        _wait(device)
        times.append(time.perf_counter() - start)
    cuda = device == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else peak_rss_mib()
    return {
        "way": way,
        "depth": depth,
        "batch": batch,
        "steps_s": times,
        "peak_mib": peak,
        "losses": losses,
        "parameters_trained": sum(item.numel() for item in trained),
        "parameters": sum(item.numel() for item in method.parameters()),
    }


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@click.command()
@click.option("--steps", type=click.IntRange(min=2), default=3, show_default=True,
              help="Steps per process; the first is not counted.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--precision", type=click.Choice(["32", "bf16"]), default="32", show_default=True)
@click.option("--checkpointing", is_flag=True, help="Recompute activations, both ways.")
@click.option("--limit-gib", type=float, default=20.0, show_default=True,
              help="Memory that the all-token step may need.")  # fmt: skip
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--write", is_flag=True, help="Write benchmarks/results/<device>/distill_step.json.")
@click.option("--only", hidden=True, help="WAY:DEPTH in this process.")
def main(
    steps: int,
    batch: int,
    precision: str,
    checkpointing: bool,
    limit_gib: float,
    device: str,
    write: bool,
    only: str | None,
) -> None:
    """Measure, print, and end with 1 when a bound is missed."""
    if only is not None:
        way, _, blocks = only.partition(":")
        done = run_steps(way, int(blocks), steps, batch, precision, checkpointing, device)
        click.echo(json.dumps(done))
        return

    def apart(way: str, depth: int, count: int) -> dict[str, Any]:
        click.echo(f"{way} tokens, {depth} blocks ...", err=True)
        command = [sys.executable, __file__, "--only", f"{way}:{depth}", "--steps", str(count),
                   "--batch", str(batch), "--precision", precision, "--device", device]  # fmt: skip
        command += ["--checkpointing"] if checkpointing else []
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        value: dict[str, Any] = json.loads(output.splitlines()[-1])
        return value

    full = sam.SIZES["vit_l"].depth
    probes = [apart("all", depth, 2) for depth in _SHALLOW]
    peaks = [probe["peak_mib"] for probe in probes]
    per_block = (peaks[1] - peaks[0]) / (_SHALLOW[1] - _SHALLOW[0])
    expected_mib = peaks[1] + per_block * (full - _SHALLOW[1])
    depth = full
    while depth > _SHALLOW[1] and peaks[1] + per_block * (depth - _SHALLOW[1]) > limit_gib * 1024:
        depth -= _STEP
    runs = [apart("visible", depth, steps), apart("all", depth, steps),
            apart("visible", depth, steps)]  # fmt: skip
    at_full = runs if depth == full else [apart("visible", full, steps)]
    seconds = {
        way: statistics.median([t for r in runs if r["way"] == way for t in r["steps_s"][1:]])
        for way in ("visible", "all")
    }
    peak = {way: max(r["peak_mib"] for r in runs if r["way"] == way) for way in ("visible", "all")}
    step_s = statistics.median(
        [t for r in at_full if r["way"] == "visible" for t in r["steps_s"][1:]]
    )
    images_per_s = batch / step_s
    speedup = seconds["all"] / seconds["visible"]
    share = peak["visible"] / peak["all"]
    hours = PAPER_TILES * PAPER_EPOCHS / images_per_s / 3600
    full_peak_mib = max(r["peak_mib"] for r in at_full if r["way"] == "visible")
    result: dict[str, Any] = {
        "what": "one optimisation step of Mask-CDKD, SAM ViT-L + MMoA and ViT-Small, 1024 px, "
        "random weights and noise pixels",
        "teacher_depth": depth,
        "teacher_depth_of_the_paper": full,
        "all_tokens_peak_expected_at_full_depth_mib": expected_mib,
        "limit_mib": limit_gib * 1024,
        "batch": batch,
        "precision": precision,
        "checkpointing": checkpointing,
        "step_s": seconds,
        "peak_mib": peak,
        "speedup": speedup,
        "memory_share": share,
        "speed_bound": SPEED_BOUND,
        "memory_bound": MEMORY_BOUND,
        "visible_at_full_depth": {
            "step_s": step_s,
            "images_per_s": images_per_s,
            "peak_mib": full_peak_mib,
        },
        "paper_run_hours": hours,
        "paper_run_is": "extrapolated from the step alone, data not counted",
        "runs": [*probes, *runs, *(at_full if depth != full else [])],
        "environment": read_environment().model_dump(mode="json"),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }
    faster = speedup >= SPEED_BOUND
    smaller = share <= MEMORY_BOUND
    result["passed"] = faster and smaller
    where = "the paper's depth" if depth == full else f"{depth} of the teacher's {full} blocks"
    click.echo(
        f"{where}: all tokens {seconds['all']:.2f} s, visible {seconds['visible']:.2f} s a step: "
        f"{speedup:.2f} times faster (at least {SPEED_BOUND:g}: {_verdict(faster)})"
    )
    click.echo(
        f"peak memory {peak['all']:.0f} and {peak['visible']:.0f} MiB: share "
        f"{share:.2f} (at most {MEMORY_BOUND:g}: {_verdict(smaller)})"
    )
    if depth != full:
        click.echo(
            f"all tokens at full depth would need about {expected_mib / 1024:.0f} GiB "
            f"(extrapolated), more than the {limit_gib:g} GiB allowed"
        )
    click.echo(
        f"visible, full depth: {step_s:.2f} s a step, {images_per_s:.3f} images/s, "
        f"{full_peak_mib:.0f} MiB; the paper's run would take "
        f"{hours:,.0f} h here"
    )
    if write:
        device_name = result["device"]
        folder = here()[0] if device_name == "cpu" else folder_of(device_name)
        write_json(folder / "distill_step.json", result)
        click.echo(f"written: {folder / 'distill_step.json'}", err=True)
    sys.exit(0 if result["passed"] else 1)


def _verdict(held: bool) -> str:
    return "ok" if held else "MISSED"


if __name__ == "__main__":
    main()
