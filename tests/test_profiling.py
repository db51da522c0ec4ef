"""A profile adds up, leaves the step as it is, and its hints name what slows a step down."""

import contextlib
import copy
import gzip
import json
import time
from pathlib import Path

import pytest
import torch

from ddgan_fast.benchmarks import planted
from ddgan_fast.config import from_dict, load_config
from ddgan_fast.flops import training_flops
from ddgan_fast.profiling import profiler, trace
from ddgan_fast.profiling.figures import GAPS
from ddgan_fast.profiling.phases import R1, RECORDED, WAIT
from ddgan_fast.profiling.session import Session, prepared
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
    monkeypatch.setattr(planted, "SLEEP_S", 0.3)
    with planted.sleep_in_loader():
        found = quick(tiny(loss={"lazy_reg": 1}), tmp_path)
    wait = next(row for row in found["phases"] if row["phase"] == WAIT)
    assert wait["ms"] > 299 and found["data"]["host_wait_ms"] > 299
    (hint,) = [text for text in found["hints"] if "data wait" in text]
    assert hint.startswith(f"{wait['share']:.0%} data wait ({wait['ms']:.4g} ms a step)")


def test_an_extra_pass_through_d_is_named(tmp_path):
    with planted.extra_pass():
        found = quick(tiny(), tmp_path)
    assert found["images"]["discriminator"] == {"images": 4.0, "needed": 3}
    assert "D, pass 3" in {row["phase"] for row in found["phases"]}
    (hint,) = [text for text in found["hints"] if "too many" in text]
    assert hint.startswith("D sees 4 images") and "1 pass(es) too many" in hint


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("digits_ddpm", {"generator": {"images": 1.0, "needed": 1}}),
        ("digits_classifier", {"generator": {"images": 1.0, "needed": 1}}),
        ("gaussians25", {"generator": {"images": 2.0, "needed": 2}}),
    ],
)
def test_other_kinds_of_training(preset, expected, tmp_path):
    found = quick(load_config(preset, {"run.batch_size": 4}), tmp_path)
    assert expected.items() <= found["images"].items()
    assert "q_sample" in {row["phase"] for row in found["phases"]}
    assert ("D real" in {row["phase"] for row in found["phases"]}) == (preset == "gaussians25")
    assert not [text for text in found["hints"] if "too many" in text]


def test_a_second_discriminator_has_phases_of_its_own(tmp_path):
    cfg = load_config("gaussians25", {"run.batch_size": 4, "loss.x0_weight": 0.5})
    found = quick(cfg, tmp_path)
    assert {row["images"] for row in found["images"].values()} == {2.0, 3.0}
    assert found["images"]["discriminator_x0"] == {"images": 3.0, "needed": 3}
    assert {"D0 losses", "D0 backward"} <= {row["phase"] for row in found["phases"]}
    assert "D0" in {row["name"] for row in found["modules"]}
    assert "weights of D0" in {row["owner"] for row in found["memory"]["operators"]["at_peak"]}


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
