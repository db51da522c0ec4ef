"""What the fault tests share: the run that faults happen to, and what must be true afterwards."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tiny_runs import final_state, tensors_of, tiny

from ddgan_fast.config import save_yaml
from ddgan_fast.training.checkpoint import list_states, step_of

FAULTY_RANK = Path(__file__).with_name("faulty_rank.py")
STEPS = 12


def short_run(folder: Path, **overrides: object) -> Path:
    """The configuration file of 12 steps with a state after every third, a log line after each."""
    options = {
        "run__steps": STEPS,
        "run__checkpoint_every": 3,
        "run__tick": 1,
        "run__timeout_s": 10.0,
    }
    path = folder / "config.yaml"
    save_yaml(tiny(folder / "run", **(options | overrides)), path)
    return path


def assert_same_weights(run: Path, undisturbed: Path) -> None:
    """Both runs end with equal bits: weights, averages and moments."""
    want, got = (tensors_of(final_state(folder)) for folder in (undisturbed, run))
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert torch.equal(value, got[name]), name


def logged_steps(run: Path) -> list[int]:
    """The steps of the log's lines."""
    return [json.loads(line)["step"] for line in (run / "log.jsonl").open()]


def state_steps(run: Path) -> list[int]:
    """The steps of the saved states."""
    return [step_of(path) for path in list_states(run)]


def assert_nothing_half_written(run: Path) -> None:
    """No temporary file is left."""
    assert [path.name for path in run.iterdir() if path.name.endswith(".tmp")] == []


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Whether the condition comes true within the time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def processes_of(word: object) -> list[int]:
    """Processes, other than this one, whose command line holds the word."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if str(word).encode() in line and state != "Z":
                found.append(int(entry.name))
    return found


def end_processes_of(word: object) -> None:
    """Kill what a test has left behind."""
    for process in processes_of(word):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
