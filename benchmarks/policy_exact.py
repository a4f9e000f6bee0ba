"""Whether rules are met exactly: ``python benchmarks/policy_exact.py [--write]``.

Random problems of ten classes and up to 17 rules that can be met, often just so (groups of classes
from above and below, arbitrary sums, classes that must have nothing), against Clarabel's interior
point method on the exponential cone, which shares nothing with ours:

* NumPy, torch and ONNX Runtime, single precision: the largest difference from the exact answer,
  and from each other; how many obey all rules;
* torch's gradient against central differences in double precision;
* contradictory rules, one of a priority and two or three of it: what each priority yields, its sum
  and its largest, against the least sum beside those before it, and of those with it the least
  maximum, linear programmes in Clarabel; answers obey what is left.

Ends with 1 unless the difference is at most 1e-4, all obey (within 1e-5 of probability), the three
agree within 1e-5, gradients within 1e-5, and the order is right within 1e-6 and what 1.4e-7 of the
bounds makes of it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import numpy as np
import numpy.typing as npt
from _policy_order import alone, held_against, shared, solve_cone
from _records import here

from edgekd.contracts.artifacts import write_json
from edgekd.contracts.policy_rows import padded
from edgekd.contracts.projection import OBEYED, past_bounds, project

ROOT = Path(__file__).resolve().parent.parent
FloatArray = npt.NDArray[np.float64]
CLASSES, ROWS = 10, 17
BOUNDS = {"exact": 1e-4, "agree": 1e-5, "gradient": 1e-5, "order": 1e-6}


def exact(scores: FloatArray, rules: FloatArray, bounds: FloatArray) -> FloatArray:
    """The nearest probabilities: ``max sum u + z p`` with ``(u, p, 1)`` in the exponential cone."""
    import clarabel

    n, rows = len(scores), len(bounds)
    z = scores - scores.max()
    left = np.zeros((1 + rows + 3 * n, 2 * n))
    right = np.zeros(len(left))
    left[0, :n], right[0] = 1, 1
    left[1 : 1 + rows, :n], right[1 : 1 + rows] = rules, bounds
    for number in range(n):
        at = 1 + rows + 3 * number
        left[at, n + number], left[at + 1, number], right[at + 2] = -1, -1, 1
    cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(rows)]
    cones += [clarabel.ExponentialConeT()] * n
    return solve_cone(-np.concatenate([z, np.ones(n)]), left, right, cones)[0][:n]


def gradient_error(scores: FloatArray, *limits: FloatArray) -> float:
    """The largest difference between torch's gradient and central differences, double precision."""
    import torch

    from edgekd.train.policy import PolicyProjection

    layer: Any = PolicyProjection()
    z, *given = (torch.from_numpy(value).double() for value in (scores, *limits))
    z.requires_grad_()
    weight = torch.from_numpy(np.random.default_rng(3).normal(size=scores.shape))
    (layer(z, *given) * weight).sum().backward()
    assert z.grad is not None
    worst, step = 0.0, 1e-6  # its own error falls with the square of the step
    with torch.no_grad():
        for channel in range(scores.shape[1]):
            moved = torch.zeros_like(z)
            moved[:, channel] = step
            change = (layer(z + moved, *given) - layer(z - moved, *given)) / (2 * step)
            error = (change * weight).sum(1) - z.grad[:, channel]
            worst = max(worst, float(error.abs().max()))
    return worst


def answers(
    scores: npt.NDArray[np.float32], limits: dict[str, npt.NDArray[np.float32]]
) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, float]]:
    """By all three, and milliseconds of one answer alone."""
    import onnxruntime
    import torch

    from edgekd.deploy.export.policy import policy_model
    from edgekd.train.policy import PolicyProjection

    torch.set_num_threads(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        policy_model(CLASSES, ROWS).SerializeToString(), options,
        providers=["CPUExecutionProvider"],
    )  # fmt: skip
    layer: Any = PolicyProjection()
    ways: dict[str, Callable[..., npt.NDArray[np.float32]]] = {
        "numpy": project,
        "torch": lambda *given: layer(*map(torch.from_numpy, given)).numpy(),
        "onnx": lambda z, *given: session.run(
            None, {"scores": z, **dict(zip(limits, given, strict=True))}
        )[0],
    }
    found = {name: way(scores, *limits.values()) for name, way in ways.items()}
    times = {}
    for name, way in ways.items():
        taken = []
        for _ in range(20):
            start = time.perf_counter()
            way(scores[:1], *(value[:1] for value in limits.values()))
            taken.append(time.perf_counter() - start)
        times[name] = 1e3 * float(np.median(taken))
    return found, times


@click.command(help=__doc__)
@click.option("--problems", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=7, show_default=True)
@click.option("--write", is_flag=True, help="Write benchmarks/results/<device>/policy_exact.json")
def main(problems: int, seed: int, write: bool) -> None:
    sys.path.insert(0, str(ROOT))
    from tests.helpers.policies import problem

    random = np.random.default_rng(seed)
    made = [problem(random, CLASSES) for _ in range(problems)]
    filled = [padded(a, b, ROWS)._asdict() for _, a, b in made]
    scores = np.stack([z for z, _, _ in made]).astype(np.float32)
    limits = {name: np.stack([item[name] for item in filled]) for name in filled[0]}
    rules, bounds = limits["rules"], limits["bounds"]
    best = np.stack(
        [
            exact(*(v.astype(float) for v in each))
            for each in zip(scores, rules, bounds, strict=True)
        ]
    )
    found, times = answers(scores, limits)
    plain = np.exp(scores - scores.max(1, keepdims=True))
    plain /= plain.sum(1, keepdims=True)
    obey = {
        name: float((past_bounds(p, rules, bounds) <= OBEYED).mean())
        for name, p in {"without projection": plain, **found}.items()
    }
    worst = {name: float(np.abs(p - best).max()) for name, p in found.items()}
    apart = max(float(np.abs(found["numpy"] - found[name]).max()) for name in ("torch", "onnx"))
    gradient = gradient_error(scores.astype(float), *limits.values())
    sets = max(1, problems // 5)
    orders = {
        kind: [held_against(*make(random, CLASSES), random, ROWS) for _ in range(sets)]
        for kind, make in (("one", alone), ("two or three", shared))
    }
    left = np.concatenate([item.past for held in orders.values() for item in held])
    surely = max(item.surely for held in orders.values() for item in held)
    for name, value in worst.items():
        click.echo(
            f"{name:6} largest difference from the exact answer {value:.1e}, obeys "
            f"{100 * obey[name]:.1f} %, {times[name]:.2f} ms for one"
        )
    click.echo(f"without projection {100 * obey['without projection']:.1f} % obey")
    click.echo(f"the three differ by at most {apart:.1e}; gradient by at most {gradient:.1e}")
    for kind, held in orders.items():
        click.echo(
            f"{len(held)} sets with {kind} of a priority, {sum(item.yields for item in held)} of "
            f"them contradictory, {sum(item.uneven for item in held)} where rules of a priority "
            f"yield together: what yields differs by at most {max(i.apart for i in held):.1e}, "
            f"{max(i.surely for i in held):.1e} of it more than rounding of bounds explains"
        )
    click.echo(f"{100 * np.mean(left <= OBEYED):.1f} % of {len(left)} answers obey what they leave")
    passed = (
        max(worst.values()) <= BOUNDS["exact"]
        and all(obey[name] == 1 for name in found)
        and left.max() <= OBEYED
        and apart <= BOUNDS["agree"]
        and gradient <= BOUNDS["gradient"]
        and surely <= BOUNDS["order"]
    )
    click.echo("passed" if passed else "NOT passed")
    if write:
        folder, environment = here()
        write_json(
            folder / "policy_exact.json",
            {
                "what": "information projection onto random rules against Clarabel",
                "command": f"python benchmarks/policy_exact.py --problems {problems} --seed {seed} "
                "--write",
                "problems": problems,
                "largest_difference": worst,
                "obeys": obey,
                "largest_difference_between_the_three": apart,
                "largest_difference_of_gradient": gradient,
                "order": {
                    f"{kind} of a priority": {
                        "sets": len(held),
                        "contradictory": sum(item.yields for item in held),
                        "rules_of_a_priority_yield_together": sum(item.uneven for item in held),
                        "largest_difference_of_what_yields": max(item.apart for item in held),
                        "largest_beyond_rounding_of_bounds": max(item.surely for item in held),
                    }
                    for kind, held in orders.items()
                },
                "obeys_what_yielding_leaves": float(np.mean(left <= OBEYED)),
                "milliseconds_of_one": times,
                "times": "one thread, on a machine that other work may have shared",
                "bounds": BOUNDS,
                "passed": passed,
                "environment": environment.model_dump(mode="json"),
            },
        )
        click.echo(f"written: {folder}/policy_exact.json", err=True)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
