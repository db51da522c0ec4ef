"""What a run saves to go on exactly, and the checks before it does."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import Config, to_dict
from .ema import WeightAverage
from .optim import adam_state, load_adam_state


def payload(
    cfg: Config,
    networks: Mapping[str, nn.Module],
    ema: WeightAverage,
    optimizers: Mapping[str, torch.optim.Optimizer],
    data_digest: str,
) -> dict[str, Any]:
    """Everything, in plain types and tensors; randomness has no state, it follows from the step."""
    return {
        "config": to_dict(cfg),
        **{name: dict(network.state_dict()) for name, network in networks.items()},
        "ema": ema.weights(),
        "optimizers": {name: adam_state(o) for name, o in optimizers.items()},
        "data_digest": data_digest,
    }


def restore(
    saved: Mapping[str, Any],
    networks: Mapping[str, nn.Module],
    ema: WeightAverage,
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Put a saved payload back; ``check`` comes first."""
    for name, network in networks.items():
        network.load_state_dict(saved[name])
    ema.load(saved["ema"])
    for name, optimizer in optimizers.items():
        load_adam_state(optimizer, saved["optimizers"][name])


def check(
    saved: Mapping[str, Any], cfg: Config, data_digest: str, where: Path, say: Callable[[str], None]
) -> None:
    """Refuse to go on with another network, batch, seed or data; mention other changes.

    Raises:
        ValueError: the state in ``where`` belongs to another run.
    """
    # Options that are newer than the state had their defaults.
    old, new = _flat(to_dict(Config())) | _flat(saved["config"]), _flat(to_dict(cfg))
    changed = [name for name in new if old[name] != new[name]]
    fixed = [
        name
        for name in changed
        if name.startswith(("model.", "discriminator."))
        or name in ("loss.kind", "run.seed", "run.batch_size", "data.mode", "data.flip")
    ]
    if fixed:
        name = fixed[0]
        more = f" (and {len(fixed) - 1} more)" if len(fixed) > 1 else ""
        raise ValueError(
            f"{where} holds a run with {name} = {old[name]}, but {name} = {new[name]} is asked "
            f"for{more}: go on with the old value, or choose another --run.dir."
        )
    judged, asked = "discriminator_x0" in saved, cfg.loss.x0_weight > 0
    if judged != asked:
        raise ValueError(
            f"{where} holds a run {'with' if judged else 'without'} a second discriminator, but "
            f"loss.x0_weight = {cfg.loss.x0_weight} is asked for: go on with "
            f"{old.get('loss.x0_weight', 0.0)}, or choose another --run.dir."
        )
    if saved["data_digest"] != data_digest and not cfg.data.allow_change:
        raise ValueError(
            f"{where} was trained on other data (digest {saved['data_digest'][:12]}, now "
            f"{data_digest[:12]}): point --data at the old data, choose another --run.dir, or "
            "pass --data.allow_change true."
        )
    for name in changed:
        if name.startswith(("loss.", "optim.", "run.steps", "run.precision")):
            say(f"Changed since the saved state: {name} {old[name]} -> {new[name]}.")


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{name}": value
        for section, values in config.items()
        if isinstance(values, Mapping)
        for name, value in values.items()
    }


@contextmanager
def only_run_in(run_dir: Path) -> Iterator[None]:
    """Keep a second run out of the directory; a killed run leaves no lock behind.

    Raises:
        RuntimeError: another process is training there.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run_dir / ".lock", os.O_CREAT | os.O_RDWR, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RuntimeError(
                f"another process is training in {run_dir}: wait for it, stop it, or choose "
                "another --run.dir."
            ) from error
        yield
    finally:
        os.close(descriptor)
