"""A disk that fills up during a checkpoint, and states that were cut short."""

import os
import random
import shutil
import subprocess

import pytest
from fault_runs import (
    STEPS,
    assert_nothing_half_written,
    assert_same_weights,
    logged_steps,
    short_run,
    state_steps,
)

from ddgan_fast.config import load_config
from ddgan_fast.training import checkpoint, trainer
from ddgan_fast.training.checkpoint import latest_state
from ddgan_fast.training.engine import Engine


def train(config):
    return trainer.train(load_config(config), device="cpu")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The directory of the short run on one rank, without any fault."""
    folder = tmp_path_factory.mktemp("alone")
    train(short_run(folder))
    return folder / "run"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, a few megabytes large."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def before_step(monkeypatch, actions):
    """Call actions[step] before that step is taken."""
    take_step = Engine.take_step

    def acting(self, batch):
        actions.get(self.step, lambda: None)()
        take_step(self, batch)

    monkeypatch.setattr(Engine, "take_step", acting)


@pytest.mark.parametrize("known_before", [True, False])
def test_full_disk_costs_one_checkpoint(
    small_disk, alone, tmp_path, capsys, monkeypatch, known_before
):
    ballast, seen, usage = small_disk / "ballast", {}, shutil.disk_usage

    def fill():
        room = usage(small_disk).free - 100_000
        ballast.write_bytes(bytes(room))
        seen["before"] = {p.name: p.read_bytes() for p in (small_disk / "run").glob("*-*.*")}

    def make_room():
        ballast.unlink()

    def look():
        seen["after"] = {p.name: p.read_bytes() for p in (small_disk / "run").glob("*-*.*")}

    if not known_before:  # the space runs out while writing
        plenty = usage(tmp_path)._replace(free=1 << 40)
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: plenty)
    save = trainer.CheckpointWriter.save

    def save_and_wait(self, step, content):
        news = save(self, step, content)
        if self._pending is not None:
            self._pending.exception()  # so that the disk is full for the whole of this one
        return news

    monkeypatch.setattr(trainer.CheckpointWriter, "save", save_and_wait)

    def listen():
        seen["said"] = capsys.readouterr().out

    before_step(monkeypatch, {4: fill, 6: look, 7: make_room, 8: listen})
    result = train(short_run(small_disk))
    output = seen["said"]  # by the tick after the failure
    assert "Could not save" not in capsys.readouterr().out
    assert result.finished
    assert output.count("Could not save: ") == 1, output
    assert "step 6 was not saved" in output and "Training goes on" in output
    assert seen["before"] == seen["after"], "older checkpoints are untouched, nothing half-written"
    assert state_steps(small_disk / "run") == [3, 9, 12]
    assert_nothing_half_written(small_disk / "run")
    assert logged_steps(small_disk / "run") == list(range(1, STEPS + 1))
    assert_same_weights(small_disk / "run", alone)


def test_state_cut_short_anywhere_gives_way_to_the_one_before(alone, tmp_path, capsys):
    lengths = random.Random(5)
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    newest = run / f"state-{STEPS:09d}.pt"
    whole = newest.read_bytes()
    for _ in range(20):
        length = lengths.randrange(len(whole))
        newest.write_bytes(whole[:length])
        said = []
        path, state = latest_state(run, said.append)
        assert (path.name, state["step"]) == ("state-000000009.pt", 9), length
        assert len(said) == 1 and newest.name in said[0], length
    train(short_run(tmp_path))
    output = capsys.readouterr().out
    assert f"Skipped a damaged checkpoint: the training state {newest}" in output
    assert f"Going on from {run}/state-000000009.pt" in output
    assert logged_steps(run) == list(range(1, STEPS + 1))
    assert_same_weights(run, alone)
