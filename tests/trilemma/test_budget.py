"""How many steps fit into a training time."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from ddgan_fast.config import load_config
from ddgan_fast.trilemma import budget
from ddgan_fast.trilemma.budget import parse_budget, seconds_per_step

TINY = {"model.hidden": 8, "discriminator.hidden": 8, "run.batch_size": 8}


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), (" 3m ", 180)]
)
def test_a_time_is_seconds(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["10", "m", "0s", "-3m", "3 m", "1e3s", ""])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="it must be a time such as 90s"):
        parse_budget(text)


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances by a known time at each training step."""
    now = {"time": 0.0}
    costs = {"gaussians25": (0.5, 0.1), "gaussians25_ddpm": (0.2, 0.2)}
    taken = []

    class Engine(budget.Run):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            real = self.engine.take_step

            def take_step(batch):
                penalized = self.engine.step % self.cfg.loss.lazy_reg == 0
                now["time"] += costs[self.cfg.preset][0 if penalized else 1]
                taken.append(self.cfg.preset)
                real(batch)

            self.engine.take_step = take_step

    monkeypatch.setattr(budget, "Run", Engine)
    monkeypatch.setattr(budget, "time", SimpleNamespace(perf_counter=lambda: now["time"]))
    return taken


def test_steps_with_the_penalty_count_by_their_share_and_methods_take_turns(clock):
    threads = torch.get_num_threads()
    configs = {
        name: load_config(name, {**TINY, "run.threads": 1})
        for name in ("gaussians25", "gaussians25_ddpm")
    }
    assert configs["gaussians25"].loss.lazy_reg == 4

    found = seconds_per_step(configs, "cpu", lambda text: None)

    assert found["gaussians25"][0] == pytest.approx((0.5 + 3 * 0.1) / 4)
    assert found["gaussians25_ddpm"] == (pytest.approx(0.2), "eager")
    turns = [name for name, _ in itertools.groupby(clock)]
    assert turns[2:] == ["gaussians25", "gaussians25_ddpm"] * (len(turns[2:]) // 2)
    assert len(turns) >= 2 + 2 * 5
    assert torch.get_num_threads() == threads


def test_networks_that_know_classes_are_timed_with_them(monkeypatch):
    monkeypatch.setattr(budget, "_BLOCK_S", 0.0)
    monkeypatch.setattr(budget, "_ROUNDS", 1)
    cfg = load_config("gaussians25", {**TINY, "model.num_classes": 25, "run.threads": 1})

    assert seconds_per_step({"a": cfg}, "cpu", lambda text: None)["a"][0] > 0
