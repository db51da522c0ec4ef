"""Where and with what a measurement was made, and its file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import ddgan_fast
from ddgan_fast.files import atomic_open
from ddgan_fast.machine import cores, cpu_model, now

__all__ = ["machine", "now", "versions", "write"]


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware, and how busy it was."""
    facts: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }
    if hasattr(os, "getloadavg"):
        facts["load"] = [round(load, 2) for load in os.getloadavg()]
    return facts


def versions() -> dict[str, str | None]:
    """Versions of what was measured; the commit where this is a git checkout."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ddgan_fast": ddgan_fast.__version__,
        "commit": _commit(),
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``{"rows": rows}`` as JSON, whole or not at all."""
    with atomic_open(path) as file:
        file.write((json.dumps({"rows": rows}, indent=1) + "\n").encode())


def _commit() -> str | None:
    """Hash of the checkout's commit, with "+" where its files differ from it."""
    root = Path(ddgan_fast.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("--no-optional-locks", "status", "--porcelain", "--", "ddgan_fast", "kernels")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
