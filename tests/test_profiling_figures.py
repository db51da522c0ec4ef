"""What the profiler's figures are made of: traces, costs, the roofline, phases and gaps."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from ddgan_fast.profiling import ceilings, figures, trace
from ddgan_fast.profiling.ceilings import Ceilings
from ddgan_fast.profiling.costs import Cost, CostCounter
from ddgan_fast.profiling.figures import GAPS, REDUCTION, _gap
from ddgan_fast.profiling.phases import RECORDED, WAIT
from ddgan_fast.profiling.timeline import Step, _Stamp
from ddgan_fast.profiling.trace import Span, Trace, Use


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


def test_gaps_of_a_recorded_step_are_what_its_kernels_leave():
    step = event(f"{trace.RANGE}{RECORDED}", 5, 10, kernels=["k"], gpu_us=30.0)
    spans = [event(name, at, at + 30, DeviceType.CUDA) for name, at in (("a", 50), ("b", 90))]
    read = trace.read([step, *spans], set(), on_gpu=True)
    assert _gap(RECORDED, 100e-6, [read], True) == pytest.approx(40e-6)
    assert _gap(RECORDED, 50e-6, [read], True) == 0.0


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
