"""Runs that diverge: what they say, where they go back to, and that they go on exactly."""

import contextlib
import json
import math
import subprocess
import sys

import pytest
import torch
from tiny_runs import final_state, tensors_of, tiny
from torch import nn

from ddgan_fast.config import save_yaml
from ddgan_fast.kernels import philox
from ddgan_fast.training import trainer, writer
from ddgan_fast.training.checkpoint import CheckpointError, load_state, save_state
from ddgan_fast.training.divergence import Detector, Sign
from ddgan_fast.training.engine import Engine
from ddgan_fast.training.faults import read_faults
from ddgan_fast.training.guard import FiniteGuard, NonFiniteError
from ddgan_fast.training.rollback import DivergedError
from ddgan_fast.training.steps import DiscriminatorLoss

COMMON = {
    "run__steps": 12,
    "run__checkpoint_every": 2,
    "run__tick": 2,
    "run__max_skipped": 1,
    "run__on_divergence": "rollback",
}


def train(cfg):
    return trainer.train(cfg, device="cpu", quiet=True)


def kinds(run_dir):
    return [fault["kind"] for fault in read_faults(run_dir)]


def logged(run_dir):
    return [json.loads(line) for line in (run_dir / "log.jsonl").open()]


@torch.no_grad()
def break_weights(engine):
    next(engine.discriminator.parameters()).fill_(math.nan)


@contextlib.contextmanager
def poison(*positions, stop_at=None, sound_states=False):
    """The data of some steps destroys the discriminator; one step can be interrupted.

    With ``sound_states`` it is destroyed just before the next step, after a state was saved.
    """
    take_step = Engine.take_step
    seen = []

    def poisoned(engine, batch):
        if stop_at is not None and engine.returns.count and engine.step == stop_at:
            raise KeyboardInterrupt
        seen.append((engine.step, batch.step))
        if sound_states and batch.step - 1 in positions:
            break_weights(engine)
        take_step(engine, batch)
        if not sound_states and batch.step in positions:
            break_weights(engine)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "take_step", poisoned)
        yield seen


def assert_same_weights(a, b):
    want, got = tensors_of(final_state(a)), tensors_of(final_state(b))
    assert want.keys() == got.keys()
    assert [key for key, value in want.items() if not torch.equal(value, got[key])] == []


def test_the_way_back(tmp_path, monkeypatch):
    folder, drawn, real = tmp_path / "run", [], philox.step_seeds

    def step_seeds(seed, position, draws):
        drawn.append(int(position))
        return real(seed, position, draws)

    monkeypatch.setattr(philox, "step_seeds", step_seeds)
    with poison(5) as seen:
        assert train(tiny(folder, **COMMON)).finished
    # State 6 is sick already, though nothing has shown yet: it does not help, and state 4 does.
    # Data position 5 is met once only, and none is met twice after the last return.
    assert seen == [
        *((step, step) for step in range(8)),
        (6, 8), (7, 9),
        *((step, step + 6) for step in range(4, 12)),
    ]  # fmt: skip
    assert drawn == [position for _, position in seen]
    assert kinds(folder) == ["sign", "return"] * 2
    assert "gone back from step 8 to step 4" in read_faults(folder)[-1]["sentence"]
    state = final_state(folder)
    assert state["step"] == 12 and state["returns"] == {"count": 2, "ahead": 6, "last": 4}
    assert all(value.isfinite().all() for value in tensors_of(state).values())
    assert [line["step"] for line in logged(folder)] == [2, 4, 6, 8, 10, 12]
    aside = sorted(path.name for path in folder.glob("*.diverged"))
    assert aside == ["ema-000000006.safetensors.diverged", "state-000000006.pt.diverged"]

    # The same as a run that was told at step 4 to take other data and draws.
    told = tmp_path / "told"
    with contextlib.suppress(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        stop = Engine.take_step

        def interrupted(engine, batch):
            if engine.step == 5:
                raise KeyboardInterrupt
            stop(engine, batch)

        patch.setattr(Engine, "take_step", interrupted)
        train(tiny(told, **COMMON))
    saved = load_state(told / "state-000000004.pt")
    save_state(told, 4, {**saved, "returns": state["returns"]}, keep=3)
    train(tiny(told, **COMMON))
    assert_same_weights(folder, told)


def test_a_run_that_went_back_is_resumed_exactly(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with poison(3):
        train(tiny(whole, **COMMON))
    # Interrupted right after the first return, which does not help, and after the second.
    for stop_at in (4, 9):
        with poison(3, stop_at=stop_at), pytest.raises(KeyboardInterrupt):
            train(tiny(parts, **COMMON))
    # The poison stays: the data that carried it must not come again.
    with poison(3) as seen:
        train(tiny(parts, **COMMON))
    assert 3 not in [position for _, position in seen]
    assert_same_weights(whole, parts)
    assert final_state(parts)["returns"] == final_state(whole)["returns"]
    again = ["error", "resume"]
    assert kinds(parts) == ["sign", "return", *again, "sign", "return", *again]
    assert "It ended at step 9: KeyboardInterrupt" in read_faults(parts)[-1]["sentence"]


DIVERGING_RANK = """
import math, os, sys, torch
from ddgan_fast.config import load_config
from ddgan_fast.training import trainer
from ddgan_fast.training.engine import Engine

torch.set_num_threads(1)
take_step = Engine.take_step


def poisoned(engine, batch):
    take_step(engine, batch)
    if batch.step == 5 and engine.ranks.rank == 1:
        with torch.no_grad():
            next(engine.discriminator.parameters()).fill_(math.nan)


Engine.take_step = poisoned
trainer.train(load_config(sys.argv[1]), device="cpu", quiet=True)
"""


@pytest.mark.slow
def test_all_ranks_go_back_together(tmp_path):
    """One rank's weights break: both return, and end like one rank on the same data."""
    exact = COMMON | {"run__precision": "fp64"}
    save_yaml(tiny(tmp_path / "two", **exact), tmp_path / "config.yaml")
    program = tmp_path / "rank.py"
    program.write_text(DIVERGING_RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(program), str(tmp_path / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    state = final_state(tmp_path / "two")
    # Rank 0 saves, whose weights were sound: the first return helps.
    assert state["returns"] == {"count": 1, "ahead": 2, "last": 6}
    assert kinds(tmp_path / "two") == ["sign", "return"]
    one = tmp_path / "one"
    with poison(5, sound_states=True):
        train(tiny(one, **exact))
    want, got = tensors_of(final_state(one)), tensors_of(state)
    assert max(float((got[key] - value).abs().max()) for key, value in want.items()) < 1e-8


def test_too_many_returns_end_the_run(tmp_path):
    folder = tmp_path / "run"
    cfg = tiny(folder, **COMMON, run__max_rollbacks=2)
    with poison(*range(3, 100)), pytest.raises(DivergedError) as caught:
        train(cfg)
    text = str(caught.value)
    assert "gone back 2 times already, run.max_rollbacks" in text and "optim.lr_d" in text
    assert kinds(folder).count("return") == 2 and kinds(folder)[-1] == "error"
    good = tensors_of(load_state(folder / "state-000000002.pt"))
    assert all(value.isfinite().all() for value in good.values())


def test_nowhere_to_go_back_to(tmp_path):
    with poison(0), pytest.raises(DivergedError, match="no state from step 1 or before"):
        train(tiny(tmp_path / "run", **COMMON))


def test_without_leave_to_go_back_the_run_ends(tmp_path):
    folder = tmp_path / "run"
    with poison(5), pytest.raises(NonFiniteError, match="gradient of the discriminator"):
        train(tiny(folder, **COMMON | {"run__on_divergence": "stop"}))
    assert kinds(folder) == ["error"]
    assert read_faults(folder)[0]["error"] == "NonFiniteError"
    # The tick that shows it is in the log.
    assert [line["step"] for line in logged(folder)] == [2, 4, 6, 8]


def signs(patch, kind, at):
    """The detector gives one sign, at a step, the first time."""
    left = [at]

    def look(self, step, values):
        self._last = step
        if left and step == left[0]:
            left.clear()
            return Sign(kind, 4, "D/r1 is 1e+09, and was 0.5 before")
        return None

    patch.setattr(Detector, "look", look)


@pytest.mark.parametrize("kind", ["grown", "won"])
def test_a_heuristic_does_not_end_a_run(tmp_path, monkeypatch, capsys, kind):
    signs(monkeypatch, kind, at=8)
    cfg = tiny(tmp_path / "run", **COMMON | {"run__on_divergence": "stop"})
    assert trainer.train(cfg, device="cpu").finished
    said = capsys.readouterr().out
    assert "Since step 4 D/r1 is 1e+09, and was 0.5 before. Training goes on" in said
    assert kinds(tmp_path / "run") == ["sign"]


def test_a_heuristic_takes_a_run_back(tmp_path, monkeypatch):
    signs(monkeypatch, "grown", at=8)
    told = []
    monkeypatch.setattr(Detector, "go_back", lambda self, step: told.append(step))
    train(tiny(tmp_path / "run", **COMMON))
    assert told == [4]
    state = final_state(tmp_path / "run")
    assert state["step"] == 12 and state["returns"] == {"count": 1, "ahead": 4, "last": 4}


def test_losses_that_are_no_numbers_end_a_run(tmp_path, monkeypatch):
    signs(monkeypatch, "not_finite", at=8)
    with pytest.raises(NonFiniteError, match=r"since step 4 D/r1 .* optim.lr_g"):
        train(tiny(tmp_path / "run", **COMMON | {"run__on_divergence": "stop"}))


def test_skipped_steps_and_failed_saves_are_faults(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    real, calls = writer.save_state, []

    def full(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise CheckpointError("the disk is full")
        return real(*arguments, **options)

    monkeypatch.setattr(writer, "save_state", full)
    train(tiny(folder, **COMMON))
    (fault,) = read_faults(folder)
    assert fault["kind"] == "save" and fault["step"] in (4, 6)  # it is told when it is known
    assert "the disk is full (the newest state is that of step 2)" in fault["sentence"]


def test_an_undisturbed_run_has_no_faults(tmp_path):
    folder = tmp_path / "run"
    train(tiny(folder, **COMMON))
    assert read_faults(folder) == [] and "returns" not in final_state(folder)
    train(tiny(folder, **COMMON))
    assert read_faults(folder) == []
    train(tiny(folder, **COMMON | {"run__steps": 14}))
    assert [f["sentence"] for f in read_faults(folder)] == [
        "Going on from step 12. It ended as planned, after step 12."
    ]


def test_statistics_by_timestep(tmp_path):
    train(tiny(tmp_path / "run", run__steps=2))
    (line,) = logged(tmp_path / "run")
    for name in ("D/real", "D/fake", "D/real_acc", "D/fake_acc", "D/r1", "D/r1_norm", "G/loss"):
        assert name in line and any(f"{name}/t{t}" in line for t in range(4)), name
    for name in ("D/real_acc", "D/fake_acc"):
        assert 0 <= line[name] <= 1
    assert line["G/ema_distance"] > 0


def test_only_losses_count_as_losses_of_an_update(tmp_path, monkeypatch):
    update, check, seen = Engine.update, FiniteGuard.check, []

    def watched(engine, name, stats, t):
        seen.append((name, stats))
        update(engine, name, stats, t)

    def checked(guard, step, name, grads, losses, *rest, **options):
        seen.append((name, losses))
        return check(guard, step, name, grads, losses, *rest, **options)

    monkeypatch.setattr(Engine, "update", watched)
    monkeypatch.setattr(FiniteGuard, "check", checked)
    train(tiny(tmp_path / "run", run__steps=1))
    (_, d), (_, d_losses), (_, g), (_, g_losses) = seen
    assert torch.equal(d_losses, d["D/real"] + d["D/fake"])
    assert torch.equal(g_losses, g["G/loss"])


def test_accuracy_and_penalty_of_each_sample():
    class Logits(nn.Module):
        def forward(self, x_t, t, x_next):
            return (x_t * x_next).sum((1, 2, 3))[:, None]

    real = torch.tensor([2.0, -1.0, 3.0]).reshape(3, 1, 1, 1).requires_grad_()
    fake = torch.tensor([-2.0, -1.0, 3.0]).reshape(3, 1, 1, 1)
    t = torch.zeros(3, dtype=torch.int64)
    x_next = torch.tensor([1.0, 2.0, 0.5]).reshape(3, 1, 1, 1)
    _, stats = DiscriminatorLoss(Logits(), 1.0)(real, x_next, t, fake, True)
    assert stats["D/real_acc"].tolist() == [1, 0, 1]
    assert stats["D/fake_acc"].tolist() == [1, 1, 0]
    assert stats["D/r1"].tolist() == [1, 4, 0.25] and stats["D/r1_norm"].tolist() == [1, 2, 0.5]
    assert not any(value.requires_grad for value in stats.values())
