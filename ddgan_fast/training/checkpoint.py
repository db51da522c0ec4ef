"""What a run keeps on disk: training states to resume from, EMA snapshots to sample from.

Both are single files that carry their own checksum, so that no kill can separate the two:

* ``state-000005000.pt`` is what ``torch.save`` writes, its SHA-256 in the last bytes (archive.py).
* ``ema-000005000.safetensors`` holds its SHA-256, over tensors and configuration, in the metadata.

A checkpoint is complete when its state exists: write the snapshot first, then the state.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ddgan_fast.files import atomic_open, remove_leftovers
from ddgan_fast.training.archive import (
    bytes_of,
    verify_archive,
    write_archive,
    write_safetensors,
)

FORMAT = "ddgan_fast"
FORMAT_VERSION = "1"
MIN_KEEP = 3

_METADATA = ("format", "format_version", "step", "config")
_PLAIN = (str, int, float, bool, type(None))


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says which one, why and what to do."""


class UnreadableError(CheckpointError, ValueError):
    """A file that is damaged, or no checkpoint of ours."""


def save_state(run_dir: Path | str, step: int, payload: Mapping[str, Any], keep: int) -> Path:
    """Write ``state-%09d.pt`` atomically, then remove the oldest states.

    Args:
        run_dir: the run's directory; made when absent.
        step: number of finished training steps; also stored in the file as ``"step"``.
        payload: nested dicts, lists and tuples of tensors, numbers, strings and None, nothing else,
            as loading accepts nothing else.
        keep: how many of the newest states stay, counted up to ``step`` and at least 3. EMA
            snapshots of removed states go with them.

    Returns:
        The path of the new file.

    Raises:
        CheckpointError: the disk is full or cannot be written to; older checkpoints are untouched.
        TypeError: the payload holds something that could not be loaded again.
    """
    content = {**payload, "step": step}
    path = Path(run_dir) / f"state-{step:09d}.pt"
    needed = _payload_bytes(content)
    what = f"the training state of step {step}"
    _write(path, what, needed, lambda file: write_archive(content, file))
    _prune_states(path.parent, step, keep)
    return path


def load_state(path: Path | str) -> dict[str, Any]:
    """Read and verify a training state.

    Returns:
        The saved payload with ``"step"`` added.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: the file is empty, cut short, changed or no training state.
    """
    try:
        verify_archive(Path(path))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UnreadableError(f"the training state {path} cannot be read: {error}") from error
    return torch.load(path, map_location="cpu", weights_only=True)


def latest_state(
    run_dir: Path | str, report: Callable[[str], None]
) -> tuple[Path, dict[str, Any]] | None:
    """Find the newest good training state, and remove what killed processes left behind.

    Args:
        run_dir: the run's directory; it need not exist.
        report: called with one sentence per damaged state that is skipped.

    Returns:
        The file and its content (on the CPU), or None when the run has no state yet.

    Raises:
        CheckpointError: there are states and all of them are damaged.
    """
    run_dir = Path(run_dir)
    remove_leftovers(run_dir, "state-*")
    remove_leftovers(run_dir, "ema-*")
    states = list_states(run_dir)
    for path in reversed(states):
        try:
            return path, load_state(path)
        except CheckpointError as error:
            report(f"Skipped a damaged checkpoint: {error}.")
    if states:
        raise CheckpointError(
            f"none of the {len(states)} training states in {run_dir} can be read: restore one from "
            "a copy, or move them away to start the run from its beginning"
        )
    return None


def list_states(run_dir: Path | str) -> list[Path]:
    """Training states of a run, oldest first."""
    return _numbered(Path(run_dir), "state", "pt")


def list_emas(run_dir: Path | str) -> list[Path]:
    """EMA snapshots of a run, oldest first."""
    return _numbered(Path(run_dir), "ema", "safetensors")


def step_of(path: Path | str) -> int:
    """The step number in a checkpoint's file name."""
    return int(Path(path).name.partition("-")[2].partition(".")[0])


def _payload_bytes(value: Any, where: str = "payload") -> int:
    """Bytes that torch.save needs for ``value``; TypeError where it could not be loaded again."""
    if type(value) in (Tensor, torch.nn.Parameter):
        return value.untyped_storage().nbytes() + 512  # a view is saved with its whole storage
    if type(value) in (dict, OrderedDict):
        items: list[tuple[Any, Any]] = list(value.items())
    elif type(value) in (list, tuple):
        items = list(enumerate(value))
    elif type(value) in _PLAIN:
        return 16 + (len(value) if isinstance(value, str) else 0)
    else:
        raise TypeError(
            f"{where} is a {type(value).__module__}.{type(value).__name__}, but a training state "
            "holds only tensors, numbers, strings, None and dicts, lists and tuples of them"
        )
    total = 16
    for key, item in items:
        if type(key) not in _PLAIN:
            raise TypeError(f"{where} has the key {key!r}, but keys must be strings or numbers")
        total += 16 + _payload_bytes(item, f"{where}[{key!r}]")
    return total


def _prune_states(run_dir: Path, step: int, keep: int) -> None:
    # States beyond `step` were found damaged when the run resumed below them. They must not push
    # out the good ones; training overwrites or overtakes them.
    states = [path for path in list_states(run_dir) if step_of(path) <= step]
    for state in states[: -max(keep, MIN_KEEP)]:
        # In this order a kill in between leaves a pair that the next pruning removes.
        (run_dir / f"ema-{step_of(state):09d}.safetensors").unlink(missing_ok=True)
        state.unlink(missing_ok=True)


def save_ema(
    run_dir_or_path: Path | str,
    step: int,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    keep: int | None = None,
) -> Path:
    """Write the generator's averaged weights with their configuration, atomically.

    Args:
        run_dir_or_path: a run's directory, where the file becomes ``ema-%09d.safetensors``, or a
            file name ending in ``.safetensors``.
        step: number of finished training steps.
        tensors: parameters by name; any device, dtype and memory order.
        config: plain types only; what sampling needs to build the network.
        keep: how many of the newest snapshots stay (at least 3). Default: remove none;
            ``save_state`` removes those whose training state it removes.

    Returns:
        The path of the new file.

    Raises:
        CheckpointError: the disk is full or cannot be written to.
    """
    path = Path(run_dir_or_path)
    if path.suffix != ".safetensors":
        path = path / f"ema-{step:09d}.safetensors"
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "step": str(step),
        "config": json.dumps(config, allow_nan=False),
    }
    metadata["sha256"] = _ema_digest(plain, metadata)
    needed = sum(tensor.nbytes for tensor in plain.values())
    what = f"the EMA snapshot of step {step}"
    _write(path, what, needed, lambda file: write_safetensors(plain, metadata, file))
    if keep is not None:
        snapshots = [other for other in list_emas(path.parent) if step_of(other) <= step]
        for old in snapshots[: -max(keep, MIN_KEEP)]:
            old.unlink(missing_ok=True)
    return path


def load_ema(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any], int]:
    """Read and verify an EMA snapshot.

    Returns:
        The tensors (on the CPU), the configuration and the step.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: the file is damaged or no ddgan_fast snapshot.
    """
    import safetensors.torch

    metadata = check_snapshot(path)
    try:
        tensors = safetensors.torch.load_file(str(path))
        config = json.loads(metadata["config"])
        step = int(metadata["step"])
    except Exception as error:
        raise UnreadableError(f"the snapshot {path} cannot be read: {error}") from error
    if _ema_digest(tensors, metadata) != metadata.get("sha256"):
        raise UnreadableError(
            f"the snapshot {path} does not match its checksum: its bytes changed after it was "
            "written"
        )
    return tensors, config, step


def check_snapshot(path: Path | str) -> dict[str, str]:
    """Look at a snapshot's header only.

    Returns:
        The metadata: format, format_version, step, config (JSON) and sha256.

    Raises:
        FileNotFoundError: there is no such file.
        UnreadableError: this is not a ddgan_fast snapshot, or a newer version wrote it.
    """
    from safetensors import safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no snapshot {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:
        size = path.stat().st_size
        raise UnreadableError(
            f"{path} ({size:,} bytes) is not a ddgan_fast snapshot, or it is cut short: {error}"
        ) from error
    if metadata.get("format") != FORMAT or not set(_METADATA) <= set(metadata):
        raise UnreadableError(
            f"{path} is not a ddgan_fast snapshot: it is a safetensors file without our metadata; "
            "give an ema-*.safetensors file of a run directory"
        )
    if metadata["format_version"] != FORMAT_VERSION:
        raise UnreadableError(
            f"the snapshot {path} has format version {metadata['format_version']}, and this "
            f"ddgan_fast reads version {FORMAT_VERSION}: use the ddgan_fast that wrote it or newer"
        )
    return metadata


def _ema_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    for key in _METADATA:
        digest.update(f"{key}={metadata[key]}\n".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def _numbered(folder: Path, stem: str, suffix: str) -> list[Path]:
    pattern = re.compile(rf"{stem}-\d{{9,}}\.{suffix}")
    found = [path for path in folder.glob(f"{stem}-*.{suffix}") if pattern.fullmatch(path.name)]
    return sorted(found, key=step_of)


def _write(path: Path, what: str, needed: int, write: Callable[[BinaryIO], Any]) -> None:
    """Write ``path`` atomically, or raise CheckpointError and leave everything as it was."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(path.parent).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with atomic_open(path) as file:
            write(file)
    except OSError as error:
        raise CheckpointError(
            f"{what} was not saved to {path} ({error.strerror or error}): it needs about "
            f"{needed:,} bytes and {_free(path.parent)} are free; older checkpoints are untouched, "
            "so make space or move the run directory to another disk, then start the same command "
            "again"
        ) from error


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        return "an unknown number"
