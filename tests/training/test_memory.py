"""The largest micro-batch that fits: how it is searched, tried, estimated and agreed upon."""

import weakref

import pytest
import torch
import torch.distributed as dist
from tiny_runs import record, tiny
from torch.nn.parallel import DistributedDataParallel

from ddgan_fast.config import load_config
from ddgan_fast.training import memory
from ddgan_fast.training.engine import Engine
from ddgan_fast.training.footprint import Memory
from ddgan_fast.training.memory import (
    available_bytes,
    estimated_micro_batch,
    fit_micro_batch,
    largest_micro_batch,
)
from ddgan_fast.training.parallel import Ranks

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("local", "limit", "tried"),
    [
        (12, 12, [12]),
        (12, 11, [12, 4]),
        (12, 3, [12, 4, 3]),
        (32, 9, [32, 16, 8]),
        (6, 5, [6, 3]),
        (6, 2, [6, 3, 2]),
        (2, 1, [2, 1]),
        (7, 1, [7, 1]),
        (1, 1, [1]),
    ],
)
def test_sizes_are_tried_from_the_largest(local, limit, tried):
    seen = []

    def attempt(size):
        seen.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    assert largest_micro_batch(attempt, local) == tried[-1]
    assert seen == tried


def test_nothing_fits():
    def attempt(size):
        raise MemoryError

    with pytest.raises(RuntimeError, match=r"not even one image at a time fits .*run\.recompute"):
        largest_micro_batch(attempt, 8)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_counts_as_want_of_memory(error, is_memory):
    def attempt(size):
        if size > 4:
            raise error

    if is_memory:
        assert largest_micro_batch(attempt, 8) == 4
    else:
        with pytest.raises(type(error), match=str(error)):
            largest_micro_batch(attempt, 8)


def test_what_failed_is_freed_before_the_next_attempt():
    held = []

    def attempt(size):
        assert all(reference() is None for reference in held), "the last attempt's tensors live"
        tensor = torch.empty(size)
        tensor.cycle = [tensor]
        held.append(weakref.ref(tensor))
        if size > 1:
            raise MemoryError

    assert largest_micro_batch(attempt, 8) == 1
    assert len(held) == 4


# What the host has


def host(root, available=None, groups="", **files):
    """A root with these contents; ``files`` are paths below the control groups' folder."""
    (root / "proc/self").mkdir(parents=True)
    if available is not None:
        (root / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:  {available} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_hosts_memory(tmp_path, monkeypatch):
    assert available_bytes(CPU, host(tmp_path / "none")) is None
    free = host(tmp_path / "free", 1000)
    assert available_bytes(CPU, free) == int(0.9 * 1024000)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert available_bytes(CPU, free) == int(0.9 * 1024000) // 4


@pytest.mark.parametrize(
    ("groups", "files", "left"),
    [
        ("0::/a/b\n", {}, 1024000),
        ("0::/\n", {"memory.max": "500000", "memory.current": "400000"}, 100000),
        ("0::/a/b\n", {"a/memory.max": "500000", "a/memory.current": "400000"}, 100000),
        (
            "0::/a/b\n",
            {
                "a/memory.max": "500000",
                "a/memory.current": "400000",
                "a/memory.stat": "anon 7\ninactive_file 50000\n",
                "a/b/memory.max": "max",
                "a/b/memory.current": "1",
            },
            150000,
        ),
        (
            "3:cpu,memory:/a\n",
            {"memory/a/memory.limit_in_bytes": "300", "memory/a/memory.usage_in_bytes": "200"},
            100,
        ),
    ],
)
def test_the_limits_of_control_groups(tmp_path, groups, files, left):
    for name in list(files):
        folder = name.rpartition("/")[0]
        files.setdefault(f"{folder}/memory.stat".lstrip("/"), "anon 7\n")
    assert available_bytes(CPU, host(tmp_path / "host", 1000, groups, **files)) == int(0.9 * left)


def test_this_host_tells():
    assert available_bytes(CPU) > 0


# Engines


def engine_of(cfg, ranks=None):
    return Engine(cfg, ranks or Ranks(0, 1, CPU), torch.arange(cfg.run.batch_size))


def batch(engine):
    return torch.zeros(len(engine.index), 8, 8, 3, dtype=torch.uint8), None


@pytest.fixture
def limit(monkeypatch):
    """Sets how many images fit, by an estimate that costs no time."""

    def estimate(cfg, size, precision, micros):
        assert (precision, size * micros) == ("fp32", cfg.run.batch_size)
        return Memory(0, 0, 0, 0, 1000 * size)

    monkeypatch.setattr(memory, "estimate_memory", estimate)
    return lambda images: monkeypatch.setattr(
        memory, "available_bytes", lambda device: None if images is None else 1000 * images
    )


def test_a_run_with_the_largest_that_fits(tmp_path, limit):
    """The run is that of the same micro-batch asked for by its number."""
    limit(15)
    got = record(tiny(tmp_path / "auto", run__micro_batch="auto", run__batch_size=16))
    want = record(tiny(tmp_path / "eight", run__micro_batch=8, run__batch_size=16))
    whole = record(tiny(tmp_path / "whole", run__batch_size=16, run__steps=1))
    assert got["digests"] == want["digests"]
    assert got["digests"][0] != whole["digests"][0], "or the sizes make no difference here"


def test_what_is_said(tmp_path, limit):
    engine = engine_of(tiny(tmp_path, run__micro_batch="auto"))
    limit(None)
    assert fit_micro_batch(engine) == (
        "Micro-batches: 8 of 8 images at once, the largest that fits (by an estimate)."
    )
    assert engine.micros == 1
    limit(2)
    assert "2 of 8 images at once" in (said := fit_micro_batch(engine))
    assert "is not that of the whole batch" in said
    assert engine.micros == 4
    limit(0)
    with pytest.raises(RuntimeError, match="not even one image"):
        fit_micro_batch(engine)


def test_what_else_goes_wrong_is_not_taken_for_want_of_memory(tmp_path, limit, monkeypatch):
    engine = engine_of(tiny(tmp_path, run__micro_batch="auto"))
    limit(2)

    def broken(*arguments):
        raise RuntimeError("the estimate is broken")

    monkeypatch.setattr(memory, "estimate_memory", broken)
    with pytest.raises(RuntimeError, match="the estimate is broken"):
        fit_micro_batch(engine)


class Peer(Ranks):
    """Rank 0 of two, whose peer found another size."""

    other = 0

    def gather(self, values):
        return [values, torch.tensor([self.other])]

    def share(self, value):
        return value


def test_ranks_take_the_smallest_answer(tmp_path, monkeypatch, limit):
    limit(None)
    engine = engine_of(tiny(tmp_path, run__micro_batch="auto"))
    engine.ranks = Peer(0, 2, CPU)
    monkeypatch.setattr(Peer, "other", 4)
    assert "4 of 8 images" in fit_micro_batch(engine)
    monkeypatch.setattr(Peer, "other", 0)
    with pytest.raises(RuntimeError, match="not even one image"):
        fit_micro_batch(engine)


def everything(engine):
    return [tensor.clone() for tensor in engine._changing()]


def assert_as_before(engine, before):
    now = everything(engine)
    assert len(now) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(now, before, strict=True))
    networks = (engine.generator, engine.discriminator)
    assert all(p.grad is None for network in networks for p in network.parameters())


def test_a_trial_leaves_no_trace(tmp_path, monkeypatch):
    engine = engine_of(tiny(tmp_path))
    engine.update_both(*engine.network_input(memory.Batch(*batch(engine), 0)), True)
    engine.ema.update(0)
    before = everything(engine)
    kinds = []
    update_both = Engine.update_both

    def watched(self, images, flip, penalize):
        kinds.append((self.micros, penalize))
        update_both(self, images, flip, penalize)

    monkeypatch.setattr(Engine, "update_both", watched)
    memory._trial(engine)(4)
    assert kinds == [(2, True), (2, False)]
    assert_as_before(engine, before)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(engine.train_step, "generator_gradients", full)
    with pytest.raises(torch.OutOfMemoryError):
        memory._trial(engine)(8)
    assert_as_before(engine, before)


def test_a_trial_waits_for_no_other_rank(tmp_path):
    """A peer may have run out of memory on the way and never come to the reduction."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/peers", rank=0, world_size=1)
    try:
        reductions = []

        def hook(state, bucket):
            reductions.append(bucket.index())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        class Wrapping(Ranks):
            def wrap(self, module):
                wrapped = DistributedDataParallel(module)
                wrapped.register_comm_hook(None, hook)
                return wrapped

        engine = engine_of(tiny(tmp_path / "run"), Wrapping(0, 1, CPU))
        memory._trial(engine)(4)
        assert not reductions
        engine.update_both(*engine.network_input(memory.Batch(*batch(engine), 0)), True)
        assert reductions
    finally:
        dist.destroy_process_group()


@pytest.mark.gpu
def test_a_gpu_that_is_too_small(tmp_path, monkeypatch):
    """A real search, under a limit of 3 GB."""
    # Timing all of cuDNN's algorithms for every size would take a minute.
    monkeypatch.setattr(torch.backends.cudnn, "benchmark_limit", 1)
    cfg = load_config("cifar10", {"run.micro_batch": "auto", "run.dir": str(tmp_path)})
    device = torch.device("cuda", 0)
    total = torch.cuda.get_device_properties(device).total_memory
    index = torch.arange(cfg.run.batch_size, device=device)
    engine = Engine(cfg, Ranks(0, 1, device), index)
    before = everything(engine)
    torch.cuda.set_per_process_memory_fraction(3e9 / total, device)
    try:
        note = fit_micro_batch(engine)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert "(tried)" in note
    size = len(index) // engine.micros
    assert size < 256 and size % 4 == 0
    now = dict(engine.generator.named_parameters())
    for (name, value), old in zip(now.items(), before, strict=False):
        assert torch.equal(value, old), name


def test_points_fit(tmp_path):
    cfg = tiny(tmp_path, run__batch_size=8)
    cfg.model.kind, cfg.model.num_channels, cfg.discriminator.kind = "mlp", 2, "mlp"
    assert estimated_micro_batch(cfg, 8, "fp32", None) == 8
    engine = engine_of(cfg)
    memory._trial(engine)(8)
