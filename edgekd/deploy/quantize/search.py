"""Which layers a lower precision hurts, and how few of them must stay high.

Sensitivity is measured at the output: one layer quantised, everything else as it was. Where all
layers together fail the gate, the worst are kept high, as few as make it hold: 1, 2, 4, ... and
then the smallest number between the last two. More than half of the layers high is no INT8
model any more: then the precision is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgekd.deploy.parity import Model
from edgekd.deploy.quantize.judge import Judge, Quality
from edgekd.deploy.quantize.layers import Layer

#: layers -> the model in which these are quantised
Make = Callable[[Sequence[Layer]], Model]
#: pixels that each layer alone is measured on: 2 tiles of 1024 px, all of small ones
SENSITIVITY_PX = 2 << 20


@dataclass(frozen=True)
class Search:
    """Where the search ended.

    Attributes:
        kept_high: names of layers that stay in high precision, the worst first.
        quality: with them high.
        passed: whether the gate holds.
        sensitivity: layer -> noise at the output when it alone is quantised; empty where the gate
            held at once.
        tried: number kept high -> quality, in the order tried.
    """

    kept_high: list[str]
    quality: Quality
    passed: bool
    sensitivity: dict[str, float] = field(default_factory=dict)
    tried: list[tuple[int, Quality]] = field(default_factory=list)


def search(
    layers: Sequence[Layer],
    make: Make,
    judge: Judge,
    passes: Callable[[Quality], bool],
    say: Callable[[str], None] = lambda text: None,
) -> Search:
    """Quantise all layers; where the gate fails, keep the worst high.

    Args:
        layers: that may be quantised, at least one.
        make: builds a candidate.
        judge: measures it.
        passes: the gate.
        say: called with a line for every measurement.
    """
    quality = judge(make(layers))
    tried = [(0, quality)]
    if passes(quality):
        return Search([], quality, True, tried=tried)
    say(f"the gate fails with all {len(layers)} layers lowered; look for the worst")
    # A module that is used twice has two nodes and one name: it goes up or down as a whole.
    noise: dict[str, float] = {}
    for name in dict.fromkeys(layer.name for layer in layers):
        alone = [layer for layer in layers if layer.name == name]
        noise[name] = judge(make(alone), SENSITIVITY_PX).noise
    order = sorted(noise, key=lambda name: (-noise[name], name))
    for name in order[:3]:
        say(f"{name} alone: noise {noise[name]:.3g} of the logits' deviation")

    def measure(count: int) -> tuple[bool, Quality]:
        high = set(order[:count])
        found = judge(make([layer for layer in layers if layer.name not in high]))
        tried.append((count, found))
        say(f"{count} of {len(order)} layers high: agreement {100 * found.agreement:.3f} %")
        return passes(found), found

    most = len(order) // 2
    low, count, best = 0, 1, None
    while count <= most:
        passed, found = measure(count)
        if passed:
            best = (count, found)
            break
        low = count
        if count == most:
            break
        count = min(2 * count, most)
    if best is None:
        return Search(order[:low], tried[-1][1], False, noise, tried)
    while best[0] - low > 1:
        middle = (low + best[0]) // 2
        passed, found = measure(middle)
        if passed:
            best = (middle, found)
        else:
            low = middle
    return Search(order[: best[0]], best[1], True, noise, tried)
