"""What a run can end with: the errors that are not bugs, and the exit code of each."""

from __future__ import annotations

import signal

# Upon these a run writes a checkpoint and ends.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

EXIT_DONE = 0
EXIT_BUG = 1  # a traceback
EXIT_INPUT = 2  # something the user can mend: an argument, a file, a folder, the environment
EXIT_DIVERGED = 3  # the loss or a gradient is not finite
EXIT_STALLED = 4  # the ranks waited too long for one that has stopped
EXIT_RESUME = 85  # stopped by a signal after a checkpoint: start the same command again


class InputError(Exception):
    """Something the user can mend.  One line that names the file or field and the numbers.

    Args:
        text: line ends in it, of a name or of a library's words, become spaces.

    Attributes:
        agreed: every rank raises the same, so that rank 0 alone reports it.
    """

    def __init__(self, text: str, agreed: bool = False):
        super().__init__(" ".join(text.splitlines()))
        self.agreed = agreed


class Diverged(Exception):
    """The loss or the gradient is not finite; the message has step, epoch and learning rate."""


class Interrupted(Exception):
    """A signal asked the run to stop; every rank stopped at the same step, after a checkpoint."""
