"""The way back to the last good state of a run that diverges.

Data and draws are functions of the step, so the same steps would lead to the same end. A run that
has returned from step b to step a therefore goes on with the data and the draws of step b: it is
``ahead`` of its count by b - a, also in its later states. Learning rates, R1 and the average follow
the count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import CheckpointError, list_emas, list_states, load_state, step_of

SUFFIX = ".diverged"


class DivergedError(RuntimeError):
    """The run diverges, and no return to an earlier state is left."""


@dataclass(frozen=True)
class Returns:
    """What a run keeps in its states about its returns.

    Attributes:
        count: how many there were.
        ahead: steps that data and draws are ahead of the count of steps.
        last: the step that the last one went to; -1 before any.
    """

    count: int = 0
    ahead: int = 0
    last: int = -1

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Returns:
        """Those of a saved state."""
        return cls(**saved.get("returns", {}))

    def after(self, diverged: int, target: int) -> Returns:
        """After one more, from step ``diverged`` to step ``target``."""
        return Returns(self.count + 1, self.ahead + diverged - target, target)


def find_target(
    run_dir: Path | str, since: int, last: int, say: Callable[[str], None]
) -> tuple[Path, dict[str, Any]]:
    """The newest readable state from before the first sign.

    A state that was returned to once, and from which the run diverged again, comes last.

    Args:
        run_dir: the run's directory.
        since: the last step at which nothing was amiss.
        last: the step of the last return, or -1.
        say: called with one sentence per damaged state.

    Raises:
        DivergedError: there is none.
    """
    good = [path for path in list_states(run_dir) if step_of(path) <= since]
    for path in sorted(good, key=lambda path: (step_of(path) != last, path.name), reverse=True):
        try:
            return path, load_state(path)
        except CheckpointError as error:
            say(f"Skipped a damaged checkpoint: {error}.")
    raise DivergedError(
        f"{run_dir} has no state from step {since:,} or before to return to: start again with a "
        "lower optim.lr_g and optim.lr_d or a higher loss.r1_gamma, and save more often "
        "(run.checkpoint_every)"
    )


def retire(run_dir: Path | str, step: int) -> list[Path]:
    """Rename states and snapshots newer than ``step``, so that nothing resumes from them.

    Those of an earlier return are removed, so that the disk does not fill up.

    Returns:
        The new names.
    """
    run_dir = Path(run_dir)
    for old in run_dir.glob(f"*-*{SUFFIX}"):
        old.unlink(missing_ok=True)
    renamed = []
    # The newest first: a kill in between leaves no gap.
    for path in sorted([*list_states(run_dir), *list_emas(run_dir)], key=step_of, reverse=True):
        if step_of(path) > step:
            with contextlib.suppress(FileNotFoundError):
                renamed.append(path.rename(path.with_name(path.name + SUFFIX)))
    return renamed
