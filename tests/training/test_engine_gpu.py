"""Training on a GPU: recorded, compiled, distributed and saved steps are those taken one by one.

Some kernels add in any order. What two plain runs agree on to the last bit, the others must, too;
where they do not, the others may be ten times as far apart.
"""

import dataclasses
import gc
import shutil

import pytest
import torch
import torch.distributed as dist
from test_graphs import everything
from tiny_runs import final_state, record, run_ranks, tensors_of, tiny

from ddgan_fast.config import load_config
from ddgan_fast.data import build_dataset
from ddgan_fast.data.plan import Plan
from ddgan_fast.data.torch_loader import Batch
from ddgan_fast.drawing import Drawer
from ddgan_fast.kernels import philox
from ddgan_fast.models import build_generator
from ddgan_fast.sampling import LoadedGenerator
from ddgan_fast.training import choosing, compiling
from ddgan_fast.training.checkpoint import list_states, save_state
from ddgan_fast.training.engine import Engine
from ddgan_fast.training.graphs import CudaRecorder
from ddgan_fast.training.parallel import Ranks
from ddgan_fast.training.writer import CheckpointWriter, Stage

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)
# One level without attention: a quarter of the code to compile.
FLAT = {"model__ch_mult": [1], "model__attn_resolutions": [1]}


@pytest.fixture(autouse=True)
def same_algorithms(monkeypatch):
    """So that runs can agree to the last bit."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark_limit", 1)


class Forced(Ranks):
    """One rank whose gradients are exchanged all the same."""

    def wrap(self, module):
        return Ranks.wrap(dataclasses.replace(self, world=2), module)


def engine_of(cfg, kind=Ranks):
    index = torch.arange(cfg.run.batch_size, device=GPU)
    return Engine(cfg, kind(0, 1, GPU), index)


def batches_of(cfg, count):
    dataset = build_dataset(cfg)
    plan = Plan(len(dataset), cfg.run.seed, cfg.run.batch_size, cfg.data.mode, True)
    found = []
    for step in range(count):
        indices, flip = plan.batch(step)
        images = torch.from_numpy(dataset.fetch(indices)).to(GPU)
        found.append(Batch(images, torch.from_numpy(flip).to(GPU), step))
    return found


def run(cfg, mode, kind=Ranks, count=8):
    """State and statistics after some steps, and the engine."""
    engine, batches = engine_of(cfg, kind), batches_of(cfg, count)
    with engine.precision.settings():
        engine.switch(mode, batches[-1])
        for batch in batches:
            engine.take_step(batch)
    assert engine.mode == mode and engine.step == count
    return everything(engine), engine.stats.read(), engine


def apart(one, other):
    """The largest relative distance of two states' tensors."""
    assert one.keys() == other.keys()
    found = []
    for name, want in one.items():
        error, size = (other[name].double() - want.double()).norm(), want.double().norm()
        assert torch.isfinite(error), name
        found.append(error / size.clamp(min=1e-30))
    return float(torch.stack(found).max())


def assert_as_close(state, plain, again):
    assert apart(plain, state) <= 10 * apart(plain, again)


@pytest.mark.parametrize(
    "overrides",
    [
        {"run__precision": "fp32"},
        {"run__precision": "bf16"},
        {"run__precision": "fp16"},
        {"run__precision": "bf16", "run__micro_batch": 4, "model__dropout": 0.1},
        {"run__precision": "tf32", "loss__lazy_reg": 1, "run__channels_last": False},
    ],
    ids=["fp32", "bf16", "fp16", "micro-batches, dropout", "R1 always, NCHW"],
)
def test_recorded_steps_are_the_steps(tmp_path, overrides):
    cfg = tiny(tmp_path, run__engine="graph", **overrides)
    plain, stats, _ = run(cfg, "eager")
    again, _, _ = run(cfg, "eager")
    state, replayed, engine = run(cfg, "graph")
    assert_as_close(state, plain, again)
    assert replayed == pytest.approx(stats, rel=1e-2, abs=1e-3)
    assert engine.guard.at_tick() is None or cfg.run.precision == "fp16"
    moved = engine.generator.state_dict()
    start = engine_of(cfg).generator.state_dict()
    assert any(not torch.equal(moved[name], start[name]) for name in start)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_samples_of_graphs_are_the_samples(precision):
    cfg = tiny("unused")
    torch.manual_seed(0)
    model = LoadedGenerator(cfg, build_generator(cfg).state_dict(), 1, "memory").to(GPU)
    key = philox.seed_tensor(3, -1, 0, GPU)
    eager = Drawer(model, key, precision=precision)
    graphs = Drawer(model, key, graphs=True, precision=precision)
    for first, count in ((0, 8), (8, 8), (16, 4), (20, 8), (28, 4)):
        index = torch.arange(first, first + count, device=GPU)
        assert torch.equal(eager.draw(index), graphs.draw(index)), (first, count)


def test_one_rank_of_nccl_is_no_rank(tmp_path):
    cfg = tiny(tmp_path, run__engine="graph", run__precision="fp32")
    plain, _, _ = run(cfg, "eager")
    again, _, _ = run(cfg, "eager")
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/peers", rank=0, world_size=1)
    try:
        for mode in ("eager", "graph"):
            state, _, engine = run(cfg, mode, Forced)
            assert_as_close(state, plain, again)
            engine.drop_graphs()
    finally:
        dist.destroy_process_group()


def test_two_ranks_on_one_gpu_are_one_rank(tmp_path):
    common = {"run__precision": "fp64", "run__engine": "eager", "run__checkpoint_every": 6}
    record(tiny(tmp_path / "one", **common), "cuda:0")
    ranks = run_ranks(tiny(tmp_path / "two", **common), 2, tmp_path / "ranks", 200, "cuda:0")
    want, got = (tensors_of(final_state(tmp_path / name)) for name in ("one", "two"))
    assert max(float((got[key] - want[key]).abs().max()) for key in want) < 1e-8
    assert ranks[0]["digests"] == ranks[1]["digests"]


@pytest.mark.parametrize("room", [True, False])
def test_what_is_saved_beside_training_is_what_was_there(tmp_path, monkeypatch, room):
    """The weights change at once, while 512 MiB are on their way."""
    monkeypatch.setattr(Stage, "_has_room", lambda *_: room)
    torch.manual_seed(0)
    weights = {str(i): torch.randn(1 << 24, device=GPU) for i in range(8)}
    content = {"config": {}, "generator": weights, "ema": {"w": weights["0"] + 1}, "step": 3}
    host = {**content, "generator": {k: v.to("cpu", copy=True) for k, v in weights.items()}}
    host["ema"] = {"w": content["ema"]["w"].cpu()}
    save_state(tmp_path / "plain", 3, host, 3)
    with CheckpointWriter(tmp_path / "beside", 3, 0, GPU) as writer:
        writer.reserve(content)
        for name, value in weights.items():
            value.zero_().copy_(host["generator"][name])
        writer.save(3, content)
        for value in weights.values():
            value.zero_()
        assert writer.finish() is None
    [want], [got] = (list_states(tmp_path / name) for name in ("plain", "beside"))
    assert got.read_bytes() == want.read_bytes()


def test_a_failed_recording_costs_nothing_afterwards():
    recorder = CudaRecorder(GPU)
    x = torch.ones(1 << 20, device=GPU)
    with pytest.raises(RuntimeError, match="captur") as caught:
        recorder.record(lambda: x.sum().item())
    assert "previous error" not in str(caught.value)
    assert torch.cuda.current_stream(GPU) == torch.cuda.default_stream(GPU)
    torch.randn(4, device=GPU)  # else "Offset increment outside graph capture"
    side = torch.cuda.Stream(GPU)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(GPU)
    for _ in range(4):
        # What another stream has used comes back only when no recording is thought to go on.
        y = torch.empty(64 << 20, dtype=torch.uint8, device=GPU)
        y.record_stream(side)
        del y
        torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated(GPU) == before
    again = CudaRecorder(GPU)
    again.warm_up(lambda: x.mul_(2), 1)
    again.record(lambda: x.mul_(2))()
    assert x[0].item() == 4.0


def test_memory_of_graphs_is_told_and_comes_back(tmp_path, capsys):
    cfg = load_config("cifar10", {"run.batch_size": 32, "run.engine": "graph"})
    cfg.data.source, cfg.run.dir = "synthetic", str(tmp_path)
    engine, batches = engine_of(cfg), batches_of(cfg, 1)
    peaks, held = {}, {}
    for turn in ("eager", "graph", "back", "graph again", "back again"):
        mode = "graph" if turn.startswith("graph") else "eager"
        with engine.precision.settings():
            engine.switch(mode, batches[0])
            torch.cuda.reset_peak_memory_stats(GPU)
            for kind in engine.kinds:
                engine.step = 0 if kind else 1
                engine.take_step(batches[0])
        for network in (engine.generator, engine.discriminator):
            network.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        peaks[turn] = torch.cuda.max_memory_reserved(GPU) / 2**30
        held[turn] = torch.cuda.memory_reserved(GPU) / 2**30
    with capsys.disabled():
        for turn, peak in peaks.items():
            print(f"\ncifar10, 32 images, {turn}: peak {peak:.2f} GiB, held {held[turn]:.2f} GiB")
    assert held["back again"] <= held["back"] + 0.1, held
    assert held["back"] <= held["graph"], held


# Compiling takes most of the time, so it comes last.
needs_compiler = pytest.mark.skipif(
    compiling.missing() is not None or not (shutil.which("gcc") or shutil.which("cc")),
    reason="needs a C compiler, and a torch that traces R1",
)


@needs_compiler
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_and_recorded_steps_follow_eager(tmp_path, monkeypatch, precision):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch._dynamo.reset()
    cfg = tiny(tmp_path, run__engine="compile+graph", run__precision=precision, **FLAT)
    losses = {}
    for mode in ("eager", "compile+graph"):
        engine, batches = engine_of(cfg), batches_of(cfg, 8)
        choosing._wake(engine)
        with engine.precision.settings():
            if mode != "eager":
                engine.switch("compile", batches[0])
                assert choosing.wrong_gradients(engine, batches[0]) is None
            engine.switch(mode, batches[0])
            for batch in batches:
                engine.take_step(batch)
        assert engine.guard.at_tick() is None
        losses[mode] = engine.stats.read()
    for key in ("D/real", "D/fake", "D/r1", "G/loss"):
        bound = 1e-3 if precision == "fp32" else 0.05
        assert losses["compile+graph"][key] == pytest.approx(losses["eager"][key], rel=bound), key


@pytest.mark.parametrize(
    "steps_left", [10, pytest.param(10**6, marks=[pytest.mark.slow, needs_compiler])]
)
def test_the_choice_is_told_and_leaves_no_trace(tmp_path, monkeypatch, steps_left):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    cfg = tiny(tmp_path, run__engine="auto", **FLAT)
    engine, batches = engine_of(cfg), batches_of(cfg, 2)
    with engine.precision.settings():
        engine.take_step(batches[0])
        before, sums = everything(engine), [value.clone() for value in engine.stats.tensors()]
        told = []
        choosing.settle(engine, batches[1], steps_left, told.append)
        after = everything(engine)
        assert [name for name in before if not torch.equal(before[name], after[name])] == []
        assert all(torch.equal(a, b) for a, b in zip(engine.stats.tensors(), sums, strict=True))
        engine.take_step(batches[1])
    assert len(told) == 1 and told[0].startswith(f"Engine: {engine.mode}, ")
    assert " ms per step" in told[0] and "does not work" not in told[0], told
    assert ("would not pay" in told[0]) == (steps_left == 10)
    assert engine.step == 2 and engine.guard.at_tick() is None
