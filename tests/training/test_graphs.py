"""Steps that are recorded once and replayed: equal to steps taken one by one."""

import contextlib
import copy

import pytest
import torch
from replay import ReplayRecorder
from tiny_runs import tiny

from ddgan_fast.data import build_dataset
from ddgan_fast.data.plan import Plan
from ddgan_fast.data.torch_loader import Batch
from ddgan_fast.training import graphs
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
    for name in ("discriminator", "discriminator_x0"):
        flat |= {f"{name}.{k}": v for k, v in state.get(name, {}).items()}
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


class CudaStub:
    """Streams and captures as torch's: a capture that fails leaves its stream the current one.

    And the generator waits for a capture's end, without which it does not draw.
    """

    def __init__(self, monkeypatch):
        self.current, self.told, self.waiting = "default", [], False
        graphs.capture_stream.cache_clear()
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "Stream", lambda device: "side")
        monkeypatch.setattr(cuda, "stream", self.stream)
        monkeypatch.setattr(cuda, "graph_pool_handle", lambda: (0, 7))
        monkeypatch.setattr(cuda, "CUDAGraph", lambda: Graph(self))
        zeros = torch.zeros
        monkeypatch.setattr(torch, "zeros", lambda *size, device: zeros(*size))
        monkeypatch.setattr(cuda, "graph", self.graph)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            tell = lambda *args, name=name: self.told.append((name, *args))  # noqa: E731
            monkeypatch.setattr(torch._C, name, tell, raising=False)

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        before, self.current = self.current, stream
        graph.capture_begin(capture_error_mode=capture_error_mode)
        try:
            yield
        except Exception:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        graph.capture_end()
        self.current = before


class Graph:
    def __init__(self, cuda):
        self.cuda = cuda

    def capture_begin(self, capture_error_mode):
        assert self.cuda.current == "side" and capture_error_mode == "thread_local"
        self.cuda.waiting = True

    def capture_end(self):
        self.cuda.waiting = False

    def replay(self):
        pass


def test_a_recording_that_fails_says_why_and_is_forgotten(monkeypatch):
    cuda = CudaStub(monkeypatch)
    recorder = graphs.CudaRecorder(torch.device("cuda:1"))

    def work():
        raise ValueError("this waits for the device")

    with pytest.raises(ValueError, match="this waits for the device"):
        recorder.record(work)
    assert cuda.current == "default"
    assert cuda.told == [("_cuda_endAllocateToPool", 1, (0, 7)), ("_cuda_releasePool", 1, (0, 7))]
    assert not cuda.waiting
    recorder.record(lambda: None)()
    assert cuda.current == "default" and len(cuda.told) == 2
    graphs.capture_stream.cache_clear()
