"""The memory of a step: computed without memory, it is what a real step takes."""

import json

import pytest
import torch
from tiny_runs import tiny

from ddgan_fast.training import footprint
from ddgan_fast.training.footprint import LiveBytes, estimate_memory


def test_live_bytes():
    with LiveBytes() as live:
        x = torch.zeros(100)
        view = x[10:]
        assert live.now == 400
        del x
        assert live.now == 400, "the view keeps it"
        y = view + 1
        assert (live.now, live.peak) == (760, 760)
        del view
        assert (live.now, live.peak) == (360, 760)
        y.mul_(2)
        assert live.peak == 760
        del y
    assert (live.now, live.peak) == (0, 760)


def real_step(cfg, images, precision):
    """Peaks of a step on real tensors beyond the weights: by operators, by torch's allocator."""
    torch.manual_seed(0)
    step, micro, networks = footprint._step(cfg, images, precision)
    micro.images.normal_(), micro.draws.z.normal_()

    def run():
        for p in step.generator.parameters():
            p.grad = torch.empty_like(p)
        step.discriminator_gradients([micro], penalize=True)
        if step.judge is not None:
            step.judge_gradients([micro], penalize=True)
        step.generator_gradients([micro])
        for network in networks.values():
            network.zero_grad(set_to_none=True)

    with LiveBytes() as live:
        run()
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    return live.peak, profile


def allocated(profile, path):
    """The allocator's peak in a profile, from its first event on."""
    profile.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e["name"] == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    totals = [event["args"]["Total Allocated"] for event in events]
    return max(totals) - (totals[0] - events[0]["args"]["Bytes"])


@pytest.mark.parametrize(
    ("precision", "batch", "changes", "least"),
    [
        ("fp32", 4, {}, 0.9),
        ("bf16", 4, {}, None),
        # What operators need inside counts for more where little is kept, and at batch 4 it depends
        # on the version of torch.
        ("fp32", 16, {"run__recompute": [16, 8]}, 0.8),
    ],
    ids=["fp32", "bf16", "recompute"],
)
def test_the_estimate_is_a_real_steps_peak(tmp_path, precision, batch, changes, least):
    cfg = tiny(tmp_path, model__image_size=16, run__batch_size=batch, **changes)
    got = estimate_memory(cfg, batch, precision)
    peak, profile = real_step(cfg, batch, precision)
    assert got.activations == peak - got.weights
    if least is not None:
        # The allocator also sees what operators need inside; on a CPU ours compute bf16 in fp32.
        seen = allocated(profile, tmp_path / "trace")
        assert least < (got.activations + got.weights) / seen < 1.05


def test_its_parts(tmp_path):
    cfg = tiny(tmp_path, model__image_size=16, model__attn_resolutions=[], run__batch_size=8)
    step, _, _ = footprint._step(cfg, 1, "fp32")
    g, d = (
        sum(p.numel() for p in network.parameters())
        for network in (step.generator, step.discriminator)
    )
    whole = estimate_memory(cfg, 8, "fp32")
    assert whole.weights == whole.gradients == 4 * (g + d) and whole.ema == 4 * g
    assert whole.adam == 8 * (g + d)
    assert whole.total == 4 * (5 * g + 4 * d) + whole.activations
    parts = estimate_memory(cfg, 4, "fp32", micros=2)
    assert 0.5 * whole.activations < parts.activations < 0.75 * whole.activations
    half = estimate_memory(cfg, 8, "bf16")
    assert half.weights == whole.weights
    assert 0.4 * whole.activations < half.activations < 0.8 * whole.activations
    double = estimate_memory(cfg, 8, "fp64")
    assert double.weights == 2 * whole.weights
    assert double.activations == pytest.approx(2 * whole.activations, rel=0.02)


def test_what_runs_again_is_not_kept(tmp_path):
    cfg = tiny(tmp_path, model__image_size=32, run__batch_size=8)
    plain = estimate_memory(cfg, 8, "fp32").activations
    cfg.run.recompute = (32, 16)
    assert estimate_memory(cfg, 8, "fp32").activations < 0.6 * plain
