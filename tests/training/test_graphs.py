"""Steps that are recorded once and replayed: equal to steps taken one by one."""

import copy

import pytest
import torch
from replay import ReplayRecorder
from tiny_runs import tiny

from ddgan_fast.data import build_dataset
from ddgan_fast.data.plan import Plan
from ddgan_fast.data.torch_loader import Batch
from ddgan_fast.training.engine import Engine
from ddgan_fast.training.parallel import Ranks
from ddgan_fast.training.rollback import Returns

CPU = torch.device("cpu")


def engine_and_batches(tmp_path, count, **overrides):
    cfg = tiny(tmp_path, run__engine="graph", **overrides)
    dataset = build_dataset(cfg)
    plan = Plan(len(dataset), cfg.run.seed, cfg.run.batch_size, cfg.data.mode, True)
    index = torch.from_numpy(plan.positions(0, 0, 1))
    batches = []
    for step in range(count):
        indices, flip = plan.batch(step)
        images = torch.from_numpy(dataset.fetch(indices))
        batches.append(Batch(images, torch.from_numpy(flip), 0))
    return Engine(cfg, Ranks(0, 1, CPU), index), batches


def everything(engine):
    state = engine.payload("")
    flat = {f"G.{k}": v for k, v in state["generator"].items()}
    flat |= {f"D.{k}": v for k, v in state["discriminator"].items()}
    flat |= {f"ema.{k}": v for k, v in state["ema"].items()}
    for name, optimizer in state["optimizers"].items():
        for number, entry in optimizer["state"].items():
            flat |= {f"{name}.{number}.{k}": v for k, v in entry.items()}
    for name, values in state.get("loss_scales", {}).items():
        flat |= {f"{name}.scale{i}": v for i, v in enumerate(values)}
    return {key: value.clone() for key, value in flat.items()}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"run__micro_batch": 4, "model__dropout": 0.1},
        {"run__precision": "bf16", "optim__ema_warmup": True},
        {"run__precision": "fp16"},
        {"loss__lazy_reg": 1, "run__channels_last": False},
    ],
    ids=["plain", "micro-batches", "bf16", "fp16", "R1 always, NCHW"],
)
def test_replayed_steps_are_the_steps(tmp_path, overrides):
    """Eight steps with changing batches, rates, seeds and step counts, to the last bit."""
    eager, batches = engine_and_batches(tmp_path, 8, **overrides)
    replayed, _ = engine_and_batches(tmp_path, 0, **overrides)
    recorder = ReplayRecorder()
    replayed.switch("graph", batches[3], recorder)
    assert recorder.recorded == len(replayed.kinds)
    for batch in batches:
        eager.take_step(batch)
        replayed.take_step(batch)
    want, got = everything(eager), everything(replayed)
    assert want.keys() == got.keys()
    for name, value in want.items():
        assert torch.equal(got[name], value), name
    for one, other in ((eager.stats.read(), replayed.stats.read()),):
        assert one == pytest.approx(other, rel=1e-12)
    assert replayed.guard.at_tick() == eager.guard.at_tick()


def test_recording_in_the_middle_of_a_run_leaves_no_trace(tmp_path):
    engine, batches = engine_and_batches(tmp_path, 3)
    engine.take_step(batches[0])
    before, stats = everything(engine), engine.stats.tensors()
    sums = [value.clone() for value in stats]
    engine.switch("graph", batches[1], ReplayRecorder())
    after = everything(engine)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(torch.equal(a, b) for a, b in zip(engine.stats.tensors(), sums, strict=True))
    assert engine.step == 1 and engine.step_on_device.item() == 1


def test_a_step_that_reads_back_is_refused(tmp_path):
    """Else a capture would fail on a GPU only."""
    engine, batches = engine_and_batches(tmp_path, 1)
    update = engine.update
    engine.update = lambda name, stats, t: (update(name, stats, t), t.sum().item())
    with pytest.raises(RuntimeError, match="waits for the device"):
        engine.switch("graph", batches[0], ReplayRecorder())


def test_recorded_steps_go_back_like_others(tmp_path):
    """What a return restores is what the recording reads: weights, moments, average, draws."""
    eager, batches = engine_and_batches(tmp_path, 8)
    replayed, _ = engine_and_batches(tmp_path, 0)
    replayed.switch("graph", batches[0], ReplayRecorder())
    for engine in (eager, replayed):
        for batch in batches[:2]:
            engine.take_step(batch)
        saved = copy.deepcopy(engine.payload("")) | {"step": engine.step}
        for batch in batches[2:5]:
            engine.take_step(batch)
        engine.go_back(saved, Returns().after(diverged=5, target=2))
        for batch in batches[5:]:
            engine.take_step(batch)
    want, got = everything(eager), everything(replayed)
    assert [name for name, value in want.items() if not torch.equal(got[name], value)] == []
    assert eager.step == replayed.step == 5 and replayed.payload("")["returns"]["ahead"] == 3
