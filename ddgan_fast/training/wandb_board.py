"""A run in Weights & Biases, for those who ask for it: never a reason for the run to fail."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddgan_fast.files import atomic_open

if TYPE_CHECKING:
    from ddgan_fast.training.histograms import Histogram

_PATIENCE_S = 60.0
_NAME = "wandb-run.txt"


class WandBoard:
    """Shows scalars, histograms and pictures over the step; a resumed run goes on in its own.

    Without the package, without a network, or when W&B fails, a sentence says so and the run goes
    on. Without a key, as W&B would ask for one, everything stays in the run's directory.

    Args:
        folder: the run's directory; W&B's own files lie below it.
        project: of W&B.
        config: the run's configuration.
        say: tells the user.
    """

    def __init__(
        self, folder: Path, project: str, config: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._run: Any = None
        try:
            import wandb
        except ImportError as error:
            say(
                f"The run is not shown in W&B ({error}): pip install 'ddgan_fast[wandb]', or set "
                "run.wandb to \"\"."
            )
            return
        self._wandb = wandb
        self._guarded(lambda: self._open(folder, project, config))

    def _open(self, folder: Path, project: str, config: Mapping[str, Any]) -> None:
        wandb = self._wandb
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not _has_key(wandb):
            mode = "offline"
            self._say(
                f"W&B has no key here, so the run is kept below {folder / 'wandb'}: after "
                "`wandb login`, `wandb sync` uploads it."
            )
        self._run = wandb.init(
            project=project,
            id=_run_id(folder),
            name=folder.resolve().name,
            dir=str(folder),
            config=dict(config),
            resume="allow",
            mode=mode,
            settings=wandb.Settings(console="off", silent=True, init_timeout=_PATIENCE_S),
        )
        # W&B's own step cannot go back, as a run can.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._log(step, lambda: dict(values))

    def histograms(self, step: int, values: Mapping[str, Histogram]) -> None:
        def made() -> dict[str, Any]:
            return {
                name: self._wandb.Histogram(np_histogram=tuple(histogram))
                for name, histogram in values.items()
            }

        if values:
            self._log(step, made)

    def image(self, name: str, step: int, pixels: np.ndarray) -> None:
        self._log(step, lambda: {name: self._wandb.Image(pixels)})

    def go_back(self, step: int) -> None:
        """Nothing to do: the steps that come again are drawn over the old ones."""

    def close(self) -> None:
        self._guarded(lambda: self._run.finish() if self._run is not None else None)
        self._run = None

    def _log(self, step: int, made: Callable[[], dict[str, Any]]) -> None:
        if self._run is not None:
            self._guarded(lambda: self._run.log({"step": step, **made()}))

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            self._run = None
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            self._say(f"W&B fails ({reason}); going on without it.")


def _has_key(wandb: Any) -> bool:
    """Whether W&B could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return bool(wandb.login(prompt=False))
    except TypeError:  # an older version
        return bool(wandb.api.api_key)


def _run_id(folder: Path) -> str:
    """The id under which this directory's run is known to W&B, made at its first start."""
    path = folder / _NAME
    if path.is_file() and (known := path.read_text().strip()):
        return known
    made = secrets.token_hex(4)
    with atomic_open(path) as file:
        file.write(made.encode())
    return made
