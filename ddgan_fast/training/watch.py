"""Looks after a run: skipped updates, signs of divergence, the way back, and the fault log."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .checkpoint import load_state
from .divergence import Detector, Sign
from .faults import FaultLog, previous_end
from .guard import NonFiniteError
from .rollback import DivergedError, find_target, retire

if TYPE_CHECKING:
    from .trainer import Run

_ADVICE = (
    "start again with a lower optim.lr_g and optim.lr_d, a higher loss.r1_gamma or "
    "run.precision fp32"
)


class Watch:
    """What a run does about faults; every rank has one and all of them agree.

    Args:
        run: the run, resumed, but before it writes to its log.
        resumed: the state that it goes on from, or None.
        say: tells the user.
    """

    def __init__(
        self, run: Run, resumed: Mapping[str, Any] | None, say: Callable[[str], None]
    ) -> None:
        self._run = run
        self._faults = FaultLog(run.run_dir, run.ranks.rank, run.say)
        self._detector = Detector(run.step)
        if resumed is not None and run.ranks.rank == 0 and run.step < run.cfg.run.steps:
            planned = resumed["config"]["run"]["steps"]
            end = previous_end(run.run_dir, run.step, planned)
            say(end)
            self.fault("resume", f"Going on from step {run.step:,}. {end}")

    def fault(self, kind: str, sentence: str, **details: Any) -> None:
        """Write to the fault log, once for all ranks."""
        if self._run.ranks.rank == 0:
            self._faults.add(kind, self._run.step, sentence, **details)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """An error that ends the run goes to the fault log, from whichever rank has it."""
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            sentence = str(error) or type(error).__name__
            self._faults.add("error", self._run.step, sentence, error=type(error).__name__)
            raise

    def look(self, values: Mapping[str, float]) -> bool:
        """Take in a tick, on every rank.

        Args:
            values: means since the last tick.

        Returns:
            Whether the run has gone back to an earlier step.

        Raises:
            NonFiniteError: losses or gradients are no numbers, and the run may not go back.
            DivergedError: it may, but has nowhere to go back to, or has done so too often.
        """
        run, back = self._run, self._run.cfg.run.on_divergence == "rollback"
        try:
            message = run.engine.guard.at_tick()
        except NonFiniteError as error:
            if not back:
                raise
            self.fault("sign", str(error), sign="not_finite")
            since = min(error.step, self._detector.quiet_until)
            limit = run.cfg.run.max_skipped
            self._go_back(Sign("not_finite", since, f"more than {limit} gradients were not finite"))
            return True
        if message:
            run.say(message)
            self.fault("skipped", message)
        sign = run.ranks.share(self._detector.look(run.step, values))
        if sign is None:
            return False
        what = f"Since step {sign.since:,} {sign.sentence}"
        self.fault("sign", f"{what}.", sign=sign.kind)
        if back:
            self._go_back(sign)
            return True
        if sign.kind == "not_finite":
            sentence = f"since step {sign.since:,} {sign.sentence}: {_ADVICE}"
            raise NonFiniteError(sentence, sign.since)
        run.say(f"{what}. Training goes on; with run.on_divergence rollback it would go back.")
        return False

    def _go_back(self, sign: Sign) -> None:
        run, engine = self._run, self._run.engine
        left, returns = run.step, engine.returns
        if returns.count >= run.cfg.run.max_rollbacks:
            raise DivergedError(
                f"since step {sign.since:,} {sign.sentence}, and the run has gone back "
                f"{returns.count} times already, run.max_rollbacks: {_ADVICE}"
            )
        found, problem = None, None
        run.finish_saving()
        if run.ranks.rank == 0:
            try:
                found = find_target(run.run_dir, sign.since, returns.last, run.say)
                retire(run.run_dir, int(found[1]["step"]))
            except DivergedError as error:
                problem = f"since step {sign.since:,} {sign.sentence}, and {error}"
        path, problem = run.ranks.share((str(found[0]) if found else None, problem))
        if problem or path is None:
            raise DivergedError(problem)
        saved = found[1] if found else load_state(Path(path))
        returns = returns.after(left, int(saved["step"]))
        run.go_back(saved, returns)
        self._detector.go_back(run.step)
        sentence = (
            f"Since step {sign.since:,} {sign.sentence}: gone back from step {left:,} to step "
            f"{run.step:,}, with data and noise not seen before (return {returns.count} of at most "
            f"{run.cfg.run.max_rollbacks})."
        )
        run.say(sentence)
        self.fault("return", sentence, left=left)
