"""Each hint follows from its figure, and from nothing else."""

import pytest

from ddgan_fast.profiling.hints import hints

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
        (phases(host_gaps=0.31) | {"engine": "compile+graph"}, ["31% host gaps", "at the trace"]),
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
