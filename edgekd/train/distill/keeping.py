"""Which weights of a run are kept: the averaged ones of the last step, or of the best one."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from edgekd.train.average import Average


class Keeper:
    """Averaged weights, and with ``best`` those of the best validation so far.

    Args:
        learner: what learns.
        ema: decay of the average; 0 is off.
        keep: ``last`` or ``best``.
        figure: name of the validation figure, for what was done.
    """

    def __init__(
        self, learner: nn.Module, ema: float, keep: Literal["last", "best"], figure: str
    ) -> None:
        self.learner, self.average = learner, Average(learner, ema)
        self._keep, self._figure = keep, figure
        self._best: tuple[float, int, dict[str, Tensor]] | None = None

    def stepped(self) -> None:
        """Take the weights into their average."""
        self.average.update(self.learner)

    def saw(self, found: float, step: int) -> None:
        """A validation's figure, 0-1, of the averaged weights after ``step``."""
        if self._keep == "best" and (self._best is None or found > self._best[0]):
            self._best = (found, step, self.average.weights(self.learner))

    def weights(self, done: dict[str, Any]) -> dict[str, Tensor]:
        """What is to be saved; ``done`` learns of the best step, where there is one."""
        if self._best is None:
            return self.average.weights(self.learner)
        done[f"best_val_{self._figure}"], done["best_step"], weights = self._best
        return weights

    def state(self) -> dict[str, Any]:
        """For ``last.ckpt``."""
        return {
            "average": self.average.shadow,
            "updates": self.average.updates,
            "best": None if self._best is None else list(self._best),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state`."""
        for name, value in state["average"].items():
            self.average.shadow[name].copy_(value)
        self.average.updates = state["updates"]
        best = state["best"]
        self._best = None if best is None else (best[0], best[1], best[2])
