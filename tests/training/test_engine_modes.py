"""Compiled training equals eager training; precisions follow each other; the choice is told."""

import pytest
import torch
import torch.distributed as dist
from replay import ReplayRecorder
from test_graphs import engine_and_batches, everything
from tiny_runs import final_state, record, run_ranks, tensors_of, tiny
from torch.nn.parallel import DistributedDataParallel as DDP

from ddgan_fast.training import choosing, compiling
from ddgan_fast.training import engine as engine_module
from ddgan_fast.training.choosing import refuse, settle, wrong_gradients
from ddgan_fast.training.parallel import Ranks
from ddgan_fast.training.precision import LossScale, Precision
from ddgan_fast.training.steps import DiscriminatorLoss
from ddgan_fast.training.trainer import train

needs_tracing = pytest.mark.skipif(compiling.missing() is not None, reason=str(compiling.missing()))
# One level without attention: a quarter of the code to compile.
FLAT = {"model__ch_mult": [1], "model__attn_resolutions": [1], "run__compiler": "aot_eager"}


@pytest.fixture(autouse=True)
def fresh_compiler(tmp_path, monkeypatch):
    """Caches of its own, on disk and in the process."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def largest_difference(a, b):
    one, other = everything(a), everything(b)
    assert one.keys() == other.keys()
    return max(float((one[k].double() - other[k].double()).abs().max()) for k in one)


@needs_tracing
def test_twenty_compiled_steps_in_float64(tmp_path):
    """With R1, dropout and attention."""
    options = {"run__precision": "fp64", "run__compiler": "aot_eager", "model__dropout": 0.1}
    eager, batches = engine_and_batches(tmp_path, 20, **options)
    compiled, _ = engine_and_batches(tmp_path, 0, **options)
    compiled.switch("compile", batches[0])
    for batch in batches:
        eager.take_step(batch)
        compiled.take_step(batch)
    assert largest_difference(eager, compiled) < 1e-8
    assert torch._dynamo.utils.counters["graph_break"] == {}
    # Fake images, D with R1 and without, G.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4


@needs_tracing
def test_single_compiled_steps_in_float32(tmp_path):
    """From five states along a run: weights, averages, and moments, which are mean gradients."""
    eager, (first, *batches) = engine_and_batches(tmp_path, 6, **FLAT)
    choosing._wake(eager)  # at the start of a run some gradients are nothing but rounding
    eager.take_step(first)
    compiled, _ = engine_and_batches(tmp_path, 0, **FLAT)
    compiled.switch("compile", first)
    for batch in batches:
        compiled.restore({**eager.payload(""), "step": eager.step})
        eager.take_step(batch)
        compiled.take_step(batch)
        want, got = everything(eager), everything(compiled)
        largest = max(float(v.norm()) for k, v in want.items() if k.endswith("exp_avg"))
        for name, value in want.items():
            error = float((got[name] - value).double().norm())
            floor = 1e-3 * largest if "exp_avg" in name else 1e-3
            assert error <= 1e-4 * max(float(value.norm()), floor), (eager.step, name, error)


@needs_tracing
def test_one_process_compiles_for_many_batch_sizes():
    part = compiling.Compilable(torch.nn.Linear(2, 2))
    part.compile_by("eager")
    for size in range(1, 12):
        assert part(torch.ones(size, 2)).shape == (size, 2)


@needs_tracing
def test_a_compiled_step_with_several_buckets_of_gradients(tmp_path, monkeypatch):
    """The compiler would cut the discriminator at the buckets, with R1's gradient in one piece."""
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 1000)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/peers", rank=0, world_size=1)
    try:
        cfg = {**FLAT, "run__precision": "fp64", "loss__lazy_reg": 1}
        eager, batches = engine_and_batches(tmp_path, 2, **cfg)
        monkeypatch.setattr(Ranks, "wrap", lambda _, loss: DDP(loss, bucket_cap_mb=0.002))
        compiled, _ = engine_and_batches(tmp_path, 0, **cfg)
        compiled.switch("compile", batches[0])
        for batch in batches:
            eager.take_step(batch)
            compiled.take_step(batch)
        assert largest_difference(eager, compiled) < 1e-10
    finally:
        dist.destroy_process_group()


@needs_tracing
@pytest.mark.slow
def test_two_compiled_ranks_are_one(tmp_path):
    common = {**FLAT, "run__precision": "fp64", "run__engine": "compile", "run__steps": 5}
    common["run__checkpoint_every"] = 5
    record(tiny(tmp_path / "one", **common))
    ranks = run_ranks(tiny(tmp_path / "two", **common), 2, tmp_path / "ranks", timeout=600)
    want, got = (tensors_of(final_state(tmp_path / name)) for name in ("one", "two"))
    assert max(float((got[key] - want[key]).abs().max()) for key in want) < 1e-8
    assert ranks[0]["digests"] == ranks[1]["digests"]


@pytest.mark.parametrize(("name", "bound"), [("bf16", 0.03), ("fp16", 0.004)])
def test_low_precision_follows_float32(tmp_path, name, bound):
    """Losses over 12 steps; gradient noise of 2**-8 and 2**-11 per operation is what may show."""
    losses = {}
    for precision in ("fp32", name):
        engine, batches = engine_and_batches(tmp_path, 12, run__precision=precision)
        choosing._wake(engine)
        for scale in filter(None, engine.scales.values()):
            scale.value.fill_(1024.0)  # so that no update is skipped
        for batch in batches:
            engine.take_step(batch)
        assert engine.guard.at_tick() is None
        losses[precision] = engine.stats.read()
    for key in ("D/real", "D/fake", "D/r1", "G/loss"):
        want = losses["fp32"][key]
        assert losses[name][key] == pytest.approx(want, rel=bound), key


def test_the_penalty_is_unscaled_before_it_is_squared(tmp_path):
    """Any loss scale gives the same R1 and, once divided out, the same gradient."""
    engine, batches = engine_and_batches(tmp_path, 1, run__precision="fp32")
    micros = engine.micro_batches(*engine.network_input(batches[0]), engine.seeds()["D"])
    found = []
    for scale in (None, torch.tensor(1024.0)):
        stats = engine.train_step.discriminator_gradients(micros, True, scale)
        found.append((stats["D/r1"], choosing.gradients_of(engine.discriminator, scale)))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-9)


def test_a_float16_run_goes_on_exactly(tmp_path):
    """With the loss scales where they were."""
    common = {"run__precision": "fp16", "optim__lr_decay": "none", "run__checkpoint_every": 2}
    train(tiny(tmp_path / "whole", **common, run__steps=6), device="cpu", quiet=True)
    for steps in (4, 6):
        train(tiny(tmp_path / "parts", **common, run__steps=steps), device="cpu", quiet=True)
    whole, parts = (final_state(tmp_path / name) for name in ("whole", "parts"))
    want, got = tensors_of(whole), tensors_of(parts)
    assert all(torch.equal(got[key], value) for key, value in want.items())
    scales = whole["loss_scales"]
    assert [int(scales[name][1]) for name in ("D", "G")] == [6, 6]  # good updates since a change
    for name, values in scales.items():
        assert all(map(torch.equal, values, parts["loss_scales"][name]))


@pytest.mark.slow
def test_float16_ranks_stay_equal(tmp_path):
    """They skip the same updates, as they look at reduced gradients."""
    cfg = tiny(tmp_path / "two", run__precision="fp16", run__steps=4)
    first, second = run_ranks(cfg, 2, tmp_path / "ranks", timeout=300)
    assert first["digests"] == second["digests"] and len(set(first["digests"])) > 1


def test_the_loss_scale_halves_doubles_and_skips():
    scale = LossScale("cpu")
    start = scale.value.item()
    scale.update(torch.tensor(1.0))
    assert scale.value.item() == start / 2
    for _ in range(1999):
        scale.update(torch.tensor(0.0))
    assert scale.value.item() == start / 2
    scale.update(torch.tensor(0.0))
    assert scale.value.item() == start
    gradients = [torch.full((3,), 2.0 * start)]
    scale.unscale(gradients)
    assert gradients[0].tolist() == [2.0, 2.0, 2.0]
    for _ in range(40):
        scale.update(torch.tensor(1.0))
    assert scale.value.item() == 1.0 and not scale.may_overflow()


def test_an_overflow_of_float16_is_skipped_and_not_held_against_the_run(tmp_path):
    engine, batches = engine_and_batches(tmp_path, 2, run__precision="fp16", run__max_skipped=0)
    scale = engine.scales["G"]
    scale.value.fill_(2.0**24)  # some gradient of float16 overflows at this
    engine.train_step.generator_gradients = lambda micros, factor: _overflowing(engine, factor)
    before = [p.clone() for p in engine.generator.parameters()]
    engine.take_step(batches[0])
    now = engine.generator.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))
    assert scale.value.item() == 2.0**23
    assert engine.guard.at_tick() is None


def _overflowing(engine, factor):
    for p in engine.generator.parameters():
        p.grad = torch.full_like(p, 1e20) * factor * 1e20
    return {"G/loss": torch.zeros(8)}


def test_tf32_is_set_for_the_run_only():
    flags = lambda: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)  # noqa: E731
    before = flags()
    for name, expected in (("fp32", False), ("tf32", True), ("bf16", True), ("fp64", False)):
        with Precision(name, "cuda").settings():
            assert flags() == (expected, expected)
    assert flags() == before


@needs_tracing
def test_a_wrong_compiled_gradient_is_noticed(tmp_path, monkeypatch):
    """The check runs at woken weights, so that R1's part is not lost among zeros."""
    engine, batches = engine_and_batches(tmp_path, 1, **FLAT)
    told = []
    state = everything(engine)

    class WrongPenalty(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x_t, x_next, t, fake, penalize, *scale):
            loss, stats = self.inner(x_t, x_next, t, fake, False)
            return (loss + x_t.sum() * 0.0 if penalize else loss), stats

    def compile_wrongly(part, backend):
        penalized = isinstance(part.inner, DiscriminatorLoss)
        compiled = WrongPenalty(part.inner) if penalized else part.inner
        object.__setattr__(part, "_compiled", compiled)

    monkeypatch.setattr(compiling.Compilable, "compile_by", compile_wrongly)
    engine.cfg.run.engine = "compile"
    settle(engine, batches[0], 10, told.append)
    assert len(told) == 1
    assert told[0].startswith("Engine: eager, because compile does not work: the compiled gradient")
    assert "the discriminator with R1 is off by" in told[0]
    assert engine.mode == "eager"
    after = everything(engine)
    assert all(torch.equal(state[key], after[key]) for key in state)


@needs_tracing
def test_a_right_compiled_gradient_passes_and_a_failing_compiler_is_told(tmp_path, monkeypatch):
    engine, batches = engine_and_batches(tmp_path, 1, **FLAT, run__precision="bf16")
    engine.switch("compile", batches[0])
    assert wrong_gradients(engine, batches[0]) is None
    told = []

    def fail(part, backend):
        raise RuntimeError("no C++ compiler\nfound")

    monkeypatch.setattr(compiling.Compilable, "compile_by", fail)
    engine.cfg.run.engine = "compile"
    settle(engine, batches[0], 10, told.append)
    assert told == [
        "Engine: eager, because compile does not work: RuntimeError: no C++ compiler found."
    ]


@pytest.mark.parametrize(
    ("graph_ms", "chosen"), [(3.0, "graph"), (9.0, "eager"), (None, "eager")],
    ids=["faster", "slower", "failing"],
)
def test_auto_takes_the_fastest_that_works(tmp_path, monkeypatch, graph_ms, chosen):
    """With recorded operators in place of CUDA graphs, and times made up."""
    monkeypatch.setattr(engine_module, "CudaRecorder", lambda device: ReplayRecorder())
    engine, batches = engine_and_batches(tmp_path, 2)
    other, _ = engine_and_batches(tmp_path, 0)
    for one in (engine, other):
        one.take_step(batches[0])
    before, told = everything(engine), []

    def milliseconds(engine, batch, kind):
        engine.run_step(*engine.network_input(batch), kind)  # what timing does to the state
        if engine.mode == "graph" and graph_ms is None:
            raise torch.OutOfMemoryError("no room")
        return 2.0 + 6.0 * kind if engine.mode == "eager" else graph_ms

    monkeypatch.setattr(choosing, "_milliseconds", milliseconds)
    choosing._choose(engine, batches[1], 10, told.append)
    # R1 at every third step: (8 + 2 * 2) / 3.
    first, second, *_ = told[0].split("; ")
    assert engine.mode == chosen and len(told) == 1
    assert first == f"Engine: {chosen}, {graph_ms if chosen == 'graph' else 4.0:.1f} ms per step"
    if graph_ms is None:
        assert "graph does not work: OutOfMemoryError: no room" in told[0]
    else:
        assert second == ("eager 4.0 ms" if chosen == "graph" else "graph 9.0 ms")
    assert "with 10 steps to go compiling would not pay" in told[0]
    after = everything(engine)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    for one in (engine, other):
        one.take_step(batches[1])
    assert largest_difference(engine, other) == 0.0


@pytest.mark.parametrize(("steps_left", "compiles"), [(10, False), (10**9, True)])
def test_where_nothing_works_training_is_eager(tmp_path, monkeypatch, steps_left, compiles):
    engine, batches = engine_and_batches(tmp_path, 1)
    tried, told = [], []

    def failing(engine, mode, batch, timed):
        tried.append(mode)
        return choosing._Trial(mode, f"OutOfMemoryError: no room for {mode}")

    monkeypatch.setattr(choosing, "_try", failing)
    choosing._choose(engine, batches[0], steps_left, told.append)
    assert tried == ["eager", "graph", *(["compile", "compile+graph"] if compiles else [])]
    assert engine.mode == "eager"
    assert told == ["Engine: eager, untimed, because of OutOfMemoryError: no room for eager."]


def test_timing_takes_steps_of_the_kind_and_is_their_median(tmp_path, monkeypatch):
    engine, batches = engine_and_batches(tmp_path, 1)
    now, taken = 0.0, []
    lengths = iter([9.0, 9.0, 0.003, 0.001, 5.0, 0.002, 0.004, *[0.003] * 20])

    def step(images, flip, kind):
        nonlocal now
        taken.append(kind)
        now += next(lengths)

    monkeypatch.setattr(engine, "run_step", step)
    monkeypatch.setattr(choosing.time, "perf_counter", lambda: now)
    assert choosing._milliseconds(engine, batches[0], True) == pytest.approx(3.0)
    assert taken == [True] * (choosing._TIMED_STEPS + 2), "two before the clock counts"


def test_graphs_without_a_gpu_are_refused(tmp_path):
    cfg = tiny(tmp_path / "run", run__engine="compile+graph")
    with pytest.raises(ValueError, match="CUDA graphs need a GPU and this run is on cpu"):
        train(cfg, device="cpu", quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_graphs_of_ranks_that_share_a_gpu_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    with pytest.raises(ValueError, match="by gloo, which CUDA graphs cannot hold"):
        refuse(tiny(tmp_path, run__engine="graph"), torch.device("cuda:0"))
    refuse(tiny(tmp_path, run__engine="compile"), torch.device("cuda:0"))


@pytest.mark.parametrize("missing", ["no such torch", None])
def test_a_run_tells_how_it_took_its_steps(tmp_path, monkeypatch, missing):
    monkeypatch.setattr(compiling, "missing", lambda: missing)
    monkeypatch.setattr(choosing, "wrong_gradients", lambda *_: None)
    cfg = tiny(tmp_path, **FLAT, run__engine="compile", run__steps=1)
    assert train(cfg, device="cpu", quiet=True).engine == ("eager" if missing else "compile")
