"""Whether rules are met exactly: ``python benchmarks/policy_exact.py [--write]``.

Random problems of ten classes and up to 17 rules that can be met, often just so (groups of classes
from above and below, arbitrary sums, classes that must have nothing), against Clarabel's interior
point method on the exponential cone, which shares nothing with ours:

* NumPy, torch and ONNX Runtime, single precision: the largest difference from the exact answer,
  and from each other; how many obey all rules;
* torch's gradient against central differences in double precision;
* contradictory rules: what each priority yields against the least beside those before it, a linear
  programme in Clarabel; answers obey what is left.

Ends with 1 unless the difference is at most 1e-4, all obey (within 1e-5 of probability), the three
agree within 1e-5, gradients within 1e-5, and the order is right within 1e-6 and what 1.4e-7 of the
bounds makes of it.
"""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import click
import numpy as np
import numpy.typing as npt
from _records import here

from edgekd.contracts.artifacts import write_json
from edgekd.contracts.policy import policy_of
from edgekd.contracts.policy_rows import ZoneRules, compile_zone, padded
from edgekd.contracts.projection import OBEYED, past_bounds, project

ROOT = Path(__file__).resolve().parent.parent
FloatArray = npt.NDArray[np.float64]
CLASSES, ROWS = 10, 17
DAY = datetime.date(2026, 1, 1)
BOUNDS = {"exact": 1e-4, "agree": 1e-5, "gradient": 1e-5, "order": 1e-6}


def solve_cone(
    cost: FloatArray, left: FloatArray, right: FloatArray, cones: list[Any]
) -> tuple[FloatArray, FloatArray]:
    """``min cost @ x`` with ``right - left @ x`` in the cones: x and the multipliers."""
    import clarabel
    from scipy import sparse

    settings = clarabel.DefaultSettings()
    settings.verbose = False
    for name in ("tol_gap_abs", "tol_gap_rel", "tol_feas"):
        setattr(settings, name, 1e-10)
    none = sparse.csc_matrix((len(cost), len(cost)))
    solver = clarabel.DefaultSolver(none, cost, sparse.csc_matrix(left), right, cones, settings)
    found = solver.solve()
    if "Solved" not in str(found.status):
        raise RuntimeError(f"Clarabel ended with {found.status}")
    return np.array(found.x), np.array(found.z)


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


def relaxations(
    rules: FloatArray, bounds: FloatArray, before: Sequence[float]
) -> tuple[FloatArray, FloatArray]:
    """The least that each rule must yield beside those before it, which yield ``before``.

    What is left of the probabilities may be a point, which rounding makes empty; so bounds have
    room of up to 1.4e-7. The second array is what that much makes of the result (multipliers).
    """
    import clarabel

    n = rules.shape[1]
    found, unsure = [], []
    for count in range(1, len(rules) + 1):
        # unknowns: probabilities, what this one yields
        left = np.zeros((1 + count + n + 1, n + 1))
        right = np.zeros(len(left))
        left[0, :n], right[0] = 1, 1
        left[1 : 1 + count, :n] = rules[:count]
        left[count, n] = -1
        right[1 : 1 + count] = bounds[:count]
        right[1:count] += before[: count - 1]
        left[1 + count :, :] = -np.eye(n + 1)
        cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(count + n + 1)]
        cost = np.append(np.zeros(n), 1.0)
        for room in (1e-8, 3e-8, 1e-7):  # what is left may be a point, empty by rounding
            right[1:count] += room
            try:
                x, multipliers = solve_cone(cost, left, right, cones)
                found.append(max(0.0, float(x[n])))
                unsure.append(1.4e-7 * float(multipliers[1:count].sum()))
                break
            except RuntimeError:
                if room == 1e-7:
                    raise
    return np.array(found), np.array(unsure)


def contradictory(random: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Six rules of six priorities, each of which can be met by itself."""
    rules = random.normal(size=(6, CLASSES))
    rules[random.random(rules.shape) < 0.4] = 0
    rules[:, 0] += np.where(np.abs(rules).max(1) == 0, 1.0, 0.0)
    rules /= np.abs(rules).max(1, keepdims=True)
    low, high = rules.min(1), rules.max(1)
    return rules, low + random.random(6) ** 2 * 0.7 * (high - low) + 1e-3


def settled(rules: FloatArray, bounds: FloatArray) -> ZoneRules:
    """The rules by :func:`edgekd.contracts.policy_rows.compile_zone`, one priority each."""
    names = [f"c{number}" for number in range(CLASSES)]
    policy = policy_of(
        {
            "schema": 1, "name": "random", "zones": {"A": "all"},
            "rules": [
                {"id": f"r{number}", "type": "linear", "priority": number + 1,
                 "coefficients": dict(zip(names, row.tolist(), strict=True)), "max": float(bound),
                 "source": "random"}
                for number, (row, bound) in enumerate(zip(rules, bounds, strict=True))
            ],
        },
        "random",
    )  # fmt: skip
    return compile_zone(policy, "A", DAY, names, {}, ROWS)


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
    orders: list[float] = []
    surely: list[float] = []
    left: list[float] = []
    yielding = 0
    for _ in range(max(1, problems // 5)):
        a, b = contradictory(random)
        ours = settled(a, b)
        yielded = [row.relaxed for row in ours.rows]
        yielding += max(yielded) > 1e-6
        theirs, unsure = relaxations(a, b, yielded)
        apart_by = np.abs(np.array(yielded) - theirs)
        orders.append(float(apart_by.max()))
        surely.append(float((apart_by - unsure).max()))
        drawn = random.normal(0, 3, (50, CLASSES)).astype(np.float32)
        left += past_bounds(project(drawn, *ours.limits), *ours.limits[:2]).tolist()
    for name, value in worst.items():
        click.echo(
            f"{name:6} largest difference from the exact answer {value:.1e}, obeys "
            f"{100 * obey[name]:.1f} %, {times[name]:.2f} ms for one"
        )
    click.echo(f"without projection {100 * obey['without projection']:.1f} % obey")
    click.echo(f"the three differ by at most {apart:.1e}; gradient by at most {gradient:.1e}")
    click.echo(
        f"{len(orders)} sets of six priorities, {yielding} of them contradictory: what yields "
        f"differs by at most {max(orders):.1e}, {max(surely):.1e} of it more than rounding of "
        f"bounds explains; {100 * np.mean(np.array(left) <= OBEYED):.1f} % of "
        f"{len(left)} answers obey what they leave"
    )
    passed = (
        max(worst.values()) <= BOUNDS["exact"]
        and all(obey[name] == 1 for name in found)
        and max(left) <= OBEYED
        and apart <= BOUNDS["agree"]
        and gradient <= BOUNDS["gradient"]
        and max(surely) <= BOUNDS["order"]
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
                "sets_of_priorities": len(orders),
                "contradictory": yielding,
                "largest_difference_of_what_yields": max(orders),
                "largest_beyond_rounding_of_bounds": max(surely),
                "obeys_what_yielding_leaves": float(np.mean(np.array(left) <= OBEYED)),
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
