"""One tree of errors for the whole product; imports nothing.

Every message is one sentence or two that say what was received, what was expected, why it
matters and what to type next. The command line prints it as a single ``error:`` line and ends
with the class's ``exit_code``; a library user catches :class:`EdgeKDError` or a branch of it.
"""

from __future__ import annotations


class EdgeKDError(Exception):
    """Root of every error that edgekd raises on purpose.

    Attributes:
        exit_code: what the command line ends with: 1 the verdict is no, 2 wrong use or
            unreadable input, 3 the environment lacks something.
    """

    exit_code = 2


class InputError(EdgeKDError):
    """Something the user gave cannot be used: a file, a folder, a value, an option."""


class DivergedError(InputError):
    """A loss or gradient of a training became NaN or infinite."""


class RecipeError(InputError):
    """A recipe does not follow the schema.

    Args:
        path: the recipe's file, as the user wrote it.
        problems: every fault found, each already a full line ("line 4: ...").
    """

    def __init__(self, path: str, problems: list[str]) -> None:
        self.path = path
        self.problems = list(problems)
        count = len(self.problems)
        noun = "fault" if count == 1 else "faults"
        super().__init__(f"{path} has {count} {noun}: " + "; ".join(self.problems))


class ImageError(InputError):
    """An image or scene is missing, damaged, of the wrong kind, or has wrong values."""


class DatasetError(InputError):
    """A labelled data set is laid out wrongly, or a label is outside the declared classes."""


class CheckpointError(InputError):
    """A checkpoint is unreadable or belongs to another student, head or class list."""


class BundleError(InputError):
    """A bundle is incomplete, was changed after it was sealed, or does not fit this machine."""


class TrustError(BundleError):
    """A bundle is not what its signer signed, or not by a signer who is accepted here."""

    exit_code = 1


class OutputError(InputError):
    """A result cannot be written where it was asked for."""


class ConflictError(InputError):
    """What was to be changed is not what the caller saw: somebody changed it in between."""


class GateError(EdgeKDError):
    """A check gave the verdict "no": parity, a quality gate, a verification."""

    exit_code = 1


class CancelledError(EdgeKDError):
    """The caller asked a running job to stop; what is done of it is kept."""

    exit_code = 1


class EnvironmentLacksError(EdgeKDError):
    """This machine lacks an extra, a library, a permission or a device."""

    exit_code = 3
