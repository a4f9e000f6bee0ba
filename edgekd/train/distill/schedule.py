"""The three stages of Mask-CDKD's loss weights: a machine that only goes forward.

``r`` is the teacher's reconstruction loss over the student's, both smoothed by an exponential
moving average. The teacher's adapters learn first and r falls (early); below ``to_middle``
the student is taught more by the teacher than by its own reconstruction (middle); when it has
caught up and r reaches ``to_late``, more so (late).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgekd.contracts.distill import StagesSpec
from edgekd.errors import InputError

STAGES = ("early", "middle", "late")


class StageMachine:
    """Which stage a run is in, from the two reconstruction losses of every step.

    A stage lasts until its condition has held for ``patience_steps`` updates in a row; then the
    count begins anew. One update moves on by one stage at most, and none moves back. The state is
    part of the checkpoint. Ranks agree only when they are given the same losses, so average
    these over the ranks first.

    Args:
        spec: weights, thresholds, smoothing and patience.
    """

    def __init__(self, spec: StagesSpec) -> None:
        self.spec = spec
        self._stage = 0
        self._updates = 0
        self._teacher = 0.0
        self._student = 0.0
        self._streak = 0

    @property
    def stage(self) -> str:
        """``early``, ``middle`` or ``late``."""
        return STAGES[self._stage]

    @property
    def weights(self) -> tuple[float, float, float]:
        """Of KD, the teacher's and the student's reconstruction in this stage."""
        distil, teacher, student = (self.spec.early, self.spec.middle, self.spec.late)[self._stage]
        return distil, teacher, student

    @property
    def ratio(self) -> float | None:
        """Smoothed teacher loss over smoothed student loss.

        None before the first update, and while the student's is 0.
        """
        if not self._updates or self._corrected(self._student) <= 0:
            return None
        return self._corrected(self._teacher) / self._corrected(self._student)

    def _corrected(self, average: float) -> float:
        """The average without its start at 0 (Adam's correction): the first value counts fully."""
        return average / (1.0 - self.spec.smoothing**self._updates)

    def update(self, teacher_loss: float, student_loss: float) -> None:
        """Take in one step's losses and move on where the condition has held long enough.

        A loss of 0 is taken as it is; while the ratio has no value, the count of steps in a row
        begins anew.

        Args:
            teacher_loss, student_loss: reconstruction losses, at least 0, before any weighting.

        Raises:
            InputError: a loss that is not finite or is negative; the state stays as it was.
        """
        for whose, loss in (("teacher's", teacher_loss), ("student's", student_loss)):
            if not math.isfinite(loss) or loss < 0:
                raise InputError(
                    f"the {whose} reconstruction loss is {loss} at update {self._updates + 1} of "
                    "the schedule, and a mean squared error is finite and not negative; lower lr "
                    "or take precision 32"
                )
        decay = self.spec.smoothing
        self._updates += 1
        self._teacher = decay * self._teacher + (1.0 - decay) * float(teacher_loss)
        self._student = decay * self._student + (1.0 - decay) * float(student_loss)
        self._streak = self._streak + 1 if self._holds() else 0
        if self._streak >= self.spec.patience_steps:
            self._stage += 1
            self._streak = 0

    def _holds(self) -> bool:
        """Whether the ratio now asks for the next stage."""
        ratio = self.ratio
        if ratio is None or self.stage == "late":
            return False
        if self.stage == "early":
            return ratio < self.spec.to_middle
        return ratio >= self.spec.to_late

    def state_dict(self) -> dict[str, Any]:
        """Plain values, exact through JSON."""
        return {
            "stage": self.stage,
            "updates": self._updates,
            "teacher": self._teacher,
            "student": self._student,
            "streak": self._streak,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            InputError: it is not a state of this machine; nothing is changed.
        """
        try:
            stage = STAGES.index(state["stage"])
            updates, streak = int(state["updates"]), int(state["streak"])
            teacher, student = float(state["teacher"]), float(state["student"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"this is not the state of a schedule ({type(error).__name__}: {error}); expected "
                f"stage ({', '.join(STAGES)}), updates, teacher, student and streak"
            ) from error
        self._stage, self._updates, self._streak = stage, updates, streak
        self._teacher, self._student = teacher, student
