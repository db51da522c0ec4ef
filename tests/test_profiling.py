"""A profile adds up, leaves the step as it is, and its hints name what slows a step down."""

import contextlib
import copy
import gzip
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from ddgan_fast.config import from_dict, load_config
from ddgan_fast.data.torch_loader import Loader
from ddgan_fast.flops import training_flops
from ddgan_fast.profiling import ceilings, figures, profiler, trace
from ddgan_fast.profiling.ceilings import Ceilings
from ddgan_fast.profiling.costs import Cost, CostCounter
from ddgan_fast.profiling.figures import GAPS, REDUCTION
from ddgan_fast.profiling.hints import hints
from ddgan_fast.profiling.phases import R1, RECORDED, WAIT
from ddgan_fast.profiling.session import Session, prepared
from ddgan_fast.profiling.timeline import Step, _Stamp
from ddgan_fast.profiling.trace import Span, Trace, Use
from ddgan_fast.training.footprint import estimate_memory
from ddgan_fast.training.steps import DiscriminatorLoss

TINY = {
    "preset": "tiny",
    "model": {
        "image_size": 8,
        "num_timesteps": 4,
        "nz": 6,
        "z_emb_dim": 12,
        "n_mlp": 1,
        "num_channels_dae": 8,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [4],
    },
    "discriminator": {
        "kind": "custom",
        "ngf": 4,
        "t_emb_dim": 16,
        "block_mults": [2, 4],
        "block_downs": [False, True],
    },
    "loss": {"r1_gamma": 1.0, "lazy_reg": 3},
    "data": {"source": "synthetic", "limit": 50},
    "run": {"batch_size": 8, "threads": 1},
}
PHASES = [
    "data wait", "copy to device", "draws", "q_sample", "G forward in D step", "D losses", "D real",
    "D fake", "R1 inner gradient", "D backward", "optimiser", "G step: G forward",
    "G step: D forward", "G step: backward", "EMA", "reduction", "host gaps", "unaccounted",
]  # fmt: skip


def tiny(**sections):
    values = copy.deepcopy(TINY)
    for name, options in sections.items():
        values[name] |= options
    return from_dict(values)


def quick(cfg, out):
    """A profile of one round, without traces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiler, "_WARM_UP", 1)
        patch.setattr(profiler, "_TRACED", 0)
        return profiler.profile(cfg, out, device="cpu", steps=1, scale=0.05)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiler, "_TRACED", 1)
        patch.setattr(profiler, "_WARM_UP", 1)
        out = tmp_path_factory.mktemp("profile")
        return profiler.profile(tiny(), out, device="cpu", steps=2, scale=0.05)


def test_every_phase_of_a_step_is_found(found):
    assert sorted(row["phase"] for row in found["phases"]) == sorted(PHASES)
    assert sum(row["share"] for row in found["phases"]) == pytest.approx(1, abs=1e-3)
    assert found["images"] == {
        "generator": {"images": 2.0, "needed": 2},
        "discriminator": {"images": 3.0, "needed": 3},
    }


def test_operators_do_the_work_of_the_step(found):
    gflop = {row["operator"]: row["gflop"] for row in found["operators"] if "gflop" in row}
    # Fused attention computes its scores again on the way back, one of five products.
    again = gflop["aten::_scaled_dot_product_flash_attention_for_cpu_backward"] / 5
    needed = 8 * training_flops(tiny())["training_image"] / 1e9
    assert sum(gflop.values()) - again == pytest.approx(needed, rel=1e-4)
    names = {row["operator"] for row in found["operators"]}
    assert {"aten::convolution", "aten::_fused_adam_", "ddgan_fast::ada_group_norm_silu"} <= names
    assert all(row["ms"] > 0 for row in found["operators"])
    assert not found["kernels"]


def test_modules_add_up_to_their_networks(found):
    rows = {row["name"]: row for row in found["modules"]}
    flops = training_flops(tiny())
    assert rows["G"]["flops"] == 8 * flops["generator_forward"]
    assert rows["D"]["flops"] == 8 * flops["discriminator_forward"]
    assert rows["G"]["parameters"] > rows["G.middle.0"]["parameters"] > 0
    units = [row for row in found["modules"] if row["unit"] and row["name"].startswith("G.")]
    assert "G.middle.0" in {row["name"] for row in units}
    assert not rows["G.middle.0.conv0"]["unit"]
    for column in ("flops", "kept_bytes"):
        assert 0 < sum(row[column] for row in units) <= rows["G"][column]


def test_memory_is_that_of_the_estimate(found):
    own = found["memory"]["operators"]
    assert sum(row["bytes"] for row in own["at_peak"]) == own["peak_bytes"]
    assert max(row["highest_bytes"] for row in own["timeline"]) == own["peak_bytes"]
    estimate = estimate_memory(tiny(), 8, "fp32")
    assert own["peak_bytes"] == pytest.approx(estimate.total, rel=0.1)
    at_peak = {row["owner"]: row["bytes"] for row in own["at_peak"]}
    assert at_peak["Adam's moments"] == pytest.approx(estimate.adam, rel=0.01)


def test_the_trace_names_the_phases(found):
    kept = [json.loads(gzip.decompress(Path(path).read_bytes())) for path in found["files"]]
    assert len(kept) == 2
    names = [{event.get("name") for event in content["traceEvents"]} for content in kept]
    assert f"{trace.RANGE}{R1}" in names[0] and f"{trace.RANGE}{R1}" not in names[1]
    assert all(f"{trace.RANGE}q_sample" in seen for seen in names)


def test_marks_change_nothing_and_phases_are_the_whole_step(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    digests = []
    gradient = torch.autograd.grad
    for mark in (False, True):
        with contextlib.ExitStack() as stack:
            own = Session(tiny(), "cpu", stack, lambda text: None)
            for penalize in (True, False, True):
                own.step(penalize, mark)
            own.timeline.finish()
            weights = [p.detach().clone() for p in own.engine.generator.parameters()]
            digests.append(torch.cat([w.flatten() for w in weights]))
            for step in own.timeline.steps:
                assert step.seconds == sum(step.phases().values()) > 0
                assert (len(step.phases()) > 1) == mark
                assert (R1 in step.phases()) == (mark and step.penalize)
    assert torch.equal(*digests)
    assert torch.autograd.grad is gradient


def test_a_failing_step_leaves_nothing_behind(monkeypatch):
    gradient, forward = torch.autograd.grad, DiscriminatorLoss.forward

    def fail(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr(DiscriminatorLoss, "forward", fail)
    with pytest.raises(RuntimeError, match="planted"), contextlib.ExitStack() as stack:
        Session(tiny(), "cpu", stack, lambda text: None).step(True, True)
    monkeypatch.setattr(DiscriminatorLoss, "forward", forward)
    assert torch.autograd.grad is gradient


def test_a_sleep_in_the_loader_is_named(tmp_path, monkeypatch):
    take = Loader.__next__

    def late(self):
        time.sleep(0.3)
        return take(self)

    monkeypatch.setattr(Loader, "__next__", late)
    found = quick(tiny(loss={"lazy_reg": 1}), tmp_path)
    wait = next(row for row in found["phases"] if row["phase"] == WAIT)
    assert wait["ms"] > 299 and found["data"]["host_wait_ms"] > 299
    (hint,) = [text for text in found["hints"] if "data wait" in text]
    assert hint.startswith(f"{wait['share']:.0%} data wait ({wait['ms']:.4g} ms a step)")


def test_an_extra_pass_through_d_is_named(tmp_path, monkeypatch):
    forward = DiscriminatorLoss.forward

    def wasteful(self, x_t, x_next, t, fake_x_t, *rest):
        result = forward(self, x_t, x_next, t, fake_x_t, *rest)
        with torch.no_grad():
            self.discriminator(fake_x_t, t, x_next)
        return result

    monkeypatch.setattr(DiscriminatorLoss, "forward", wasteful)
    found = quick(tiny(), tmp_path)
    assert found["images"]["discriminator"] == {"images": 4.0, "needed": 3}
    assert "D, pass 3" in {row["phase"] for row in found["phases"]}
    (hint,) = [text for text in found["hints"] if "too many" in text]
    assert hint.startswith("D sees 4 images") and "1 pass(es) too many" in hint


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("digits_ddpm", {"generator": {"images": 1.0, "needed": 1}}),
        ("gaussians25", {"generator": {"images": 2.0, "needed": 2}}),
    ],
)
def test_other_kinds_of_training(preset, expected, tmp_path):
    found = quick(load_config(preset, {"run.batch_size": 4}), tmp_path)
    assert expected.items() <= found["images"].items()
    assert ("D real" in {row["phase"] for row in found["phases"]}) == (preset == "gaussians25")
    assert not [text for text in found["hints"] if "too many" in text]


def test_joint_passes_and_micro_batches_are_no_extra_passes(tmp_path):
    found = quick(tiny(run={"rewrites": "joint_d", "micro_batch": 4}), tmp_path)
    assert found["images"]["discriminator"]["images"] == 3.0
    assert found["micro_batches"] == 2
    assert "D real + fake" in {row["phase"] for row in found["phases"]}


@pytest.mark.slow
def test_compiled_parts_are_left_alone(tmp_path):
    found = quick(tiny(run={"engine": "compile", "compiler": "aot_eager"}), tmp_path)
    assert found["engine"] == "compile" and found["images"] == {}
    phases = {row["phase"]: row["ms"] for row in found["phases"]}
    assert "D losses" in phases and "D real" not in phases and phases[GAPS] == 0


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_on_a_gpu(engine, tmp_path):
    cfg = tiny(run={"engine": engine})
    found = profiler.profile(cfg, tmp_path, device="cuda", steps=3, scale=0.1)
    assert found["engine"] == engine and found["kernels"]
    assert (RECORDED in {row["phase"] for row in found["phases"]}) == (engine == "graph")
    assert (tmp_path / "memory.pickle").stat().st_size > 0
    assert found["memory"]["allocator"]["allocated_peak_bytes"] > 0


def test_precision_for_tests_is_refused():
    with pytest.raises(ValueError, match="fp64"):
        prepared(tiny(run={"precision": "fp64"}), print)


def test_without_data_images_are_synthetic_and_that_is_said():
    said = []
    assert prepared(load_config("cifar10"), said.append).data.source == "synthetic"
    assert "synthetic" in said[0]
    assert prepared(load_config("digits"), said.append).data.source == "digits"
    assert len(said) == 1


def test_traffic_of_operators():
    x = torch.zeros(10, 10)
    with CostCounter() as counter:
        y = x.view(100) + 1
        y.mul_(2)
        torch.empty(1000)
        x[:1].expand(10, 10).sum()
    assert counter.costs["aten::view"].bytes == 0
    assert counter.costs["aten::add"].bytes == 800
    assert counter.costs["aten::mul_"].bytes == 800
    assert counter.costs["aten::empty"].bytes == 0
    assert counter.costs["aten::sum"].bytes == 404, "the row that was expanded is read once"


def test_roofline():
    peak = Ceilings(flops=100.0, bytes=10.0, dtype="fp32")
    assert (peak.seconds(100, 5), peak.bound(100, 5)) == (1.0, "compute")
    assert (peak.seconds(100, 20), peak.bound(100, 20)) == (2.0, "memory")
    traces = {True: [Trace({"aten::mm": Use(4.0, 2)})]}
    costs = {True: {"aten::mm": Cost(2, 100.0, 20.0)}}
    (row,) = figures.operator_figures(traces, costs, {True: 1.0}, peak)
    assert row["of_roofline"] == 0.5 and row["lost_ms"] == 2000 and row["bound"] == "memory"
    measured = ceilings.measure(torch.device("cpu"), "bf16", 0.05)
    assert measured.flops > 0 and measured.bytes > 0


def event(name, begin, end, device=DeviceType.CPU, children=(), kernels=(), gpu_us=0.0):
    own = SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=begin, end=end),
        device_type=device,
        cpu_parent=None,
        cpu_children=list(children),
        kernels=list(kernels),
        device_time_total=gpu_us,
        is_async=False,
        is_user_annotation=name.startswith(trace.RANGE),
    )
    for child in children:
        child.cpu_parent = own
    return own


def test_operators_of_operators_count_once():
    inner = event("aten::copy_", 12, 14)
    outer = event("aten::convolution", 10, 20, children=[inner])
    composite = event("aten::conv2d", 9, 21, children=[outer])
    talk = event("c10d::allreduce_", 22, 29)
    phase = event(f"{trace.RANGE}D real", 5, 30, children=[composite, talk])
    beside = event("aten::convolution", 40, 90)
    events = [phase, composite, outer, inner, talk, beside]
    known = {"aten::convolution", "aten::copy_", "c10d::allreduce_"}
    read = trace.read(events, known, on_gpu=False)
    assert read.talking == pytest.approx(7e-6)
    assert read.operators == {"aten::convolution": Use(pytest.approx(10e-6), 1)}
    assert read.phases() == {"D real": Span("D real", pytest.approx(25e-6), pytest.approx(10e-6))}


def test_time_of_a_gpu_is_that_of_its_kernels():
    gpu = DeviceType.CUDA
    known = event("aten::add", 6, 7, gpu_us=40.0)
    compiled = event("triton_fused", 8, 9, kernels=["k"], gpu_us=30.0)
    phase = event(f"{trace.RANGE}D real", 5, 10, children=[known, compiled])
    kernels = [
        event("add_kernel", 50, 90, gpu),
        event("triton_fused", 90, 120, gpu),
        event("ncclDevKernel_AllReduce", 100, 150, gpu),
        event(f"{trace.RANGE}D real", 50, 120, gpu),
    ]
    read = trace.read([phase, known, compiled, *kernels], {"aten::add"}, on_gpu=True)
    assert read.spans[0].busy == pytest.approx(70e-6)
    assert read.kernels.keys() == {"add_kernel", "triton_fused", "ncclDevKernel_AllReduce"}
    assert read.talking == pytest.approx(30e-6), "what no other kernel covers"


def test_covered():
    assert trace.covered([(0, 2), (1, 3), (5, 6)]) == 4
    assert trace.without([(0, 4), (6, 8)], [(1, 2), (3, 7)]) == 3
    assert trace.without([], [(0, 1)]) == 0


def made(seconds, marked=True, penalize=False):
    """A step of these phases."""
    step, now = Step(penalize, marked), 0.0
    for name, length in seconds.items():
        step._marks.append((name, _Stamp(now, None)))
        now += length
    step._end = _Stamp(now, None)
    return step


def test_gaps_and_reduction_come_out_of_the_phases():
    steps = [made({WAIT: 1.0, "D real": 4.0, "D backward": 5.0}) for _ in range(4)]
    span = [Span(WAIT, 1.0), Span("D real", 8.0, 6.0), Span("D backward", 5.0, 2.0)]
    traces = {False: [Trace(spans=span, talking=1.5)]}
    on_cpu = figures.phase_figures(steps, {False: 1.0}, traces, on_gpu=False)
    ms = {row["phase"]: row["ms"] for row in on_cpu}
    # By shares: the profiler slows a CPU.
    assert ms == {WAIT: 1000, "D real": 3000, "D backward": 2000, REDUCTION: 1500, GAPS: 2500}
    on_gpu = figures.phase_figures(steps, {False: 1.0}, traces, on_gpu=True)
    ms = {row["phase"]: row["ms"] for row in on_gpu}
    # By time: kernels take as long as ever. More kernels than time: they overlap.
    assert ms == {WAIT: 1000, "D real": 4000, "D backward": 2000, REDUCTION: 1500, GAPS: 1500}


def test_kinds_of_step_count_by_their_shares_and_outliers_do_not():
    steps = []
    for length in (1.0, 1.0, 1.0, 9.0):
        for penalize in (True, False):
            steps += [made({"D real": length * (1 + 2 * penalize)}, m, penalize) for m in (0, 1)]
    shares = {True: 0.25, False: 0.75}
    step = figures.step_figures(steps, shares, 3)
    assert step["ms_p50"] == 1500 and step["ms_parts"] == {"with_r1": 3000, "without_r1": 1000}
    assert step["img_s"] == 2 and step["marks_cost"] == {"p20": 0, "p50": 0, "p80": 0}
    traces = {True: [], False: []}
    rows = figures.phase_figures(steps, shares, traces, on_gpu=False)
    assert rows[0]["phase"] == "D real" and rows[0]["ms"] == 1500


BALANCED = {
    "device": "cuda",
    "dtype": "bf16",
    "engine": "eager",
    "batch": 32,
    "micro_batches": 1,
    "r1_every": 10,
    "recompute": [],
    "channels_last": True,
    "step": {"ms_p50": 100.0, "ms_parts": {"with_r1": 150.0, "without_r1": 95.0}},
    "phases": [
        {"phase": name, "ms": 100 * share, "share": share}
        for name, share in (
            ("data wait", 0.01), ("D real", 0.8), ("optimiser", 0.08), ("EMA", 0.01),
            ("host gaps", 0.05), ("reduction", 0.03), ("unaccounted", 0.02),
        )
    ],
    "sum_over_step": 1.01,
    "operators": [
        {"operator": "ddgan_fast::upfirdn2d", "ms": 30.0, "share": 0.3, "calls": 3,
         "of_roofline": 0.9, "lost_ms": 3.0, "bound": "memory"}
    ],
    "kernels": [{"kernel": "big", "ms": 90.0, "calls": 400, "us_each": 225.0}],
    "memory": {"allocator": {"reserved_peak_bytes": 80, "device_bytes": 100}},
    "images": {"discriminator": {"images": 3.0, "needed": 3}},
    "data": {"loader": "workers", "source": "folder", "prepared": False, "workers": 2},
    "backends": [
        {"op": "upfirdn2d", "backend": "cuda", "usable": True, "chosen": True},
        {"op": "upfirdn2d", "backend": "torch", "usable": True, "chosen": False},
    ],
    "bf16_usable": True,
}  # fmt: skip


def test_a_balanced_step_gives_no_hint():
    assert hints(BALANCED) == []


def phases(**shares):
    names = {name.replace("_", " "): share for name, share in shares.items()}
    return {"phases": [{"phase": n, "ms": 100 * s, "share": s} for n, s in names.items()]}


TORCH = [
    {"op": "upfirdn2d", "backend": "cuda", "usable": True, "chosen": False},
    {"op": "upfirdn2d", "backend": "torch", "usable": True, "chosen": True},
]
SLOW = {
    "operator": "aten::mm",
    "ms": 50.0,
    "share": 0.5,
    "calls": 7,
    "of_roofline": 0.2,
    "lost_ms": 40.0,
    "bound": "compute",
}
SPARE = {"memory": {"allocator": {"reserved_peak_bytes": 20, "device_bytes": 100}}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (phases(data_wait=0.31), ["31% data wait", "31 ms", "prepare", "--data.workers above 2"]),
        (phases(host_gaps=0.31), ["31% host gaps", "--run.engine graph"]),
        (phases(host_gaps=0.31) | {"device": "cpu"}, ["31% host gaps", "--run.engine compile"]),
        (phases(reduction=0.2), ["20% waiting for the reduction", "--run.reduction bf16"]),
        (phases(optimiser=0.2, EMA=0.1), ["30% optimiser and EMA", "larger than 32"]),
        (phases(unaccounted=0.1), ["10% of the step"]),
        ({"r1_every": 2}, ["R1 takes 28%", "--loss.lazy_reg 2"]),
        (phases(R1_inner_gradient=0.1) | {"r1_every": 1}, ["10%", "--loss.lazy_reg 10"]),
        ({"dtype": "tf32"}, ["in tf32", "--run.precision bf16"]),
        (SPARE | {"recompute": [256]}, ["Blocks at 256 pixels", "20% of the memory"]),
        (SPARE | {"micro_batches": 4}, ["4 micro-batches", "20% of the memory"]),
        ({"channels_last": False}, ["--run.channels_last true"]),
        ({"backends": TORCH}, ["upfirdn2d takes 30 ms", "cuda kernel is usable"]),
        ({"operators": [SLOW]}, ["aten::mm takes 50%", "reaches 20%", "compute-bound"]),
        (
            {"kernels": [{"kernel": "tiny", "ms": 1.0, "calls": 500.0, "us_each": 2.0}]},
            ["500 of 500 kernels", "--run.engine graph"],
        ),
        (
            {"images": {"generator": {"images": 3.0, "needed": 2}}},
            ["G sees 3 images", "1 pass(es) too many"],
        ),
        ({"sum_over_step": 1.2}, ["add up to 120.0%", "--steps"]),
    ],
)
def test_hints_follow_from_the_figures(change, words):
    told = hints(BALANCED | change)
    assert len(told) == 1, told
    assert all(word in told[0] for word in words), told


def test_the_costliest_hint_comes_first():
    told = hints(BALANCED | phases(data_wait=0.06, host_gaps=0.5))
    assert ["data wait" in text for text in told] == [False, True]
