"""Runs with a second discriminator and with terms: everything that other runs can do."""

import json
import math
import re

import pytest
import torch
from replay import ReplayRecorder
from test_graphs import engine_and_batches, everything
from tiny_runs import final_state, record, run_ranks, tensors_of, tiny

from ddgan_fast.config import from_dict, load_config, save_yaml, to_dict
from ddgan_fast.flops import training_flops
from ddgan_fast.resume_published import export_run
from ddgan_fast.sampling import generate, load_generator
from ddgan_fast.summary import dry_run
from ddgan_fast.training import choosing, compiling
from ddgan_fast.training.checkpoint import save_state
from ddgan_fast.training.divergence import Detector
from ddgan_fast.training.footprint import estimate_memory
from ddgan_fast.training.trainer import train

JUDGED = {"loss__x0_weight": 0.7, "loss__x0_r1_gamma": 0.5, "loss__terms": {"l1": 0.4}}
needs_tracing = pytest.mark.skipif(compiling.missing() is not None, reason=str(compiling.missing()))


def largest_difference(want, got):
    assert want.keys() == got.keys()
    return max(float((got[key] - value).abs().max()) for key, value in want.items())


def test_a_run_goes_on_exactly_and_says_what_it_does(tmp_path):
    common = {**JUDGED, "optim__lr_decay": "none", "model__dropout": 0.1, "run__precision": "fp16"}
    train(tiny(tmp_path / "whole", **common, run__steps=6), device="cpu", quiet=True)
    for steps in (4, 6):
        train(tiny(tmp_path / "parts", **common, run__steps=steps), device="cpu", quiet=True)
    states = [final_state(tmp_path / name) for name in ("whole", "parts")]
    whole, parts = (tensors_of(state) for state in states)
    assert any(name.startswith("discriminator_x0.adam") for name in whole)
    assert all(torch.equal(parts[key], value) for key, value in whole.items())
    assert states[0]["loss_scales"].keys() == {"D", "D0", "G"}
    lines = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    named = {"D0/real", "D0/fake", "D0/real_acc", "D0/fake_acc", "D0/r1", "D0/r1_norm"}
    named |= {"D0/grad_norm", "D0/loss_scale", "lr/D0", "G/x0", "G/l1", "G/loss"}
    assert named <= lines[0].keys()
    assert any(name.startswith("G/l1/t") for name in lines[0])
    assert "D0/r1" not in lines[2], "R1 is as lazy as that of D"
    images = next(generate(load_generator(tmp_path / "whole"), 3))
    assert images.shape == (3, 8, 8, 3)


def test_a_run_does_not_lose_or_gain_a_discriminator_on_its_way(tmp_path):
    options = {"run__steps": 1, "run__checkpoint_every": 1}
    for name, own, other in (("with", 0.5, 0.0), ("without", 0.0, 0.5)):
        train(tiny(tmp_path / name, **options, loss__x0_weight=own), device="cpu", quiet=True)
        sentence = f"a run {name} a second discriminator, but loss.x0_weight = {other} is asked"
        with pytest.raises(ValueError, match=re.escape(sentence)):
            cfg = tiny(tmp_path / name, **options, loss__x0_weight=other)
            train(cfg, device="cpu", quiet=True)


def test_what_the_published_format_leaves_out_is_said(tmp_path):
    options = {"run__steps": 1, "discriminator__kind": "small", "loss__x0_weight": 1.0}
    train(tiny(tmp_path / "run", **options), device="cpu", quiet=True)
    done = export_run(tmp_path / "run", tmp_path / "content.pth")
    assert "The second discriminator (loss.x0_weight) is left out" in done.notes[-1]


def test_states_from_before_these_options_go_on(tmp_path):
    options = {"run__steps": 2, "run__checkpoint_every": 2}
    train(tiny(tmp_path, **options), device="cpu", quiet=True)
    (path,) = tmp_path.glob("state-*.pt")
    state = torch.load(path, weights_only=True)
    for name in ("terms", "x0_weight", "x0_r1_gamma"):
        del state["config"]["loss"][name]
    step = state.pop("step")
    save_state(tmp_path, step, state, 3)
    result = train(tiny(tmp_path, **options | {"run__steps": 3}), device="cpu", quiet=True)
    assert result.step == 3
    with pytest.raises(ValueError, match="without a second discriminator"):
        cfg = tiny(tmp_path, **options | {"run__steps": 4, "loss__x0_weight": 1.0})
        train(cfg, device="cpu", quiet=True)


def test_the_other_networks_begin_as_without(tmp_path):
    (plain, _), (judged, _) = (
        engine_and_batches(tmp_path, 0, **options, optim__lr_g=2e-3) for options in ({}, JUDGED)
    )
    assert list(judged.networks) == ["D", "D0", "G"]
    for name, module in plain.modules.items():
        other = judged.modules[name].state_dict()
        assert all(torch.equal(other[key], value) for key, value in module.state_dict().items())
    rates = {name: judged.learning_rate(name) for name in judged.networks}
    assert rates == {"D": 1e-3, "D0": 1e-3, "G": 2e-3}
    assert float(judged.optimizers["discriminator_x0"].param_groups[0]["lr"]) == 1e-3


def test_the_second_discriminator_has_a_penalty_of_its_own(tmp_path):
    for gamma, found in ((0.5, 0.5), (0.0, 0.0), (None, 3.0)):
        options = JUDGED | {"loss__x0_r1_gamma": gamma, "loss__r1_gamma": 3.0}
        engine, _ = engine_and_batches(tmp_path, 0, **options)
        step = engine.train_step
        assert step.judge.part.inner.r1_gamma == found
        assert step.d_loss.inner.r1_gamma == 3.0


def test_terms_of_weight_0_only_watch(tmp_path):
    (plain, batches), (watching, _) = (
        engine_and_batches(tmp_path, 2, **options)
        for options in ({}, {"loss__terms": {"l1": 0.0, "l2": 0.0}})
    )
    for batch in batches:
        plain.take_step(batch)
        watching.take_step(batch)
    assert largest_difference(everything(plain), everything(watching)) == 0
    assert {"G/l1", "G/l2"} <= watching.stats.read().keys() - plain.stats.read().keys()


@pytest.mark.parametrize(
    "mode", ["graph", pytest.param("compile", marks=[needs_tracing, pytest.mark.slow])]
)
def test_recorded_and_compiled_steps_are_the_steps(tmp_path, mode):
    options = {**JUDGED, "run__precision": "fp64", "run__compiler": "aot_eager"}
    options |= {"run__micro_batch": 4, "model__ch_mult": [1], "model__attn_resolutions": [1]}
    options |= {"loss__lazy_reg": 2, "model__num_res_blocks": 1}
    eager, batches = engine_and_batches(tmp_path, 4, **options)
    other, _ = engine_and_batches(tmp_path, 0, **options)
    other.switch(mode, batches[0], ReplayRecorder() if mode == "graph" else None)
    if mode == "compile":
        assert choosing.wrong_gradients(other, batches[0]) is None
        assert torch._dynamo.utils.counters["graph_break"] == {}
    for batch in batches:
        eager.take_step(batch)
        other.take_step(batch)
    worst = largest_difference(everything(eager), everything(other))
    assert worst == 0 if mode == "graph" else worst < 1e-8
    torch._dynamo.reset()


def test_wrong_code_of_the_second_discriminator_is_found(tmp_path):
    engine, batches = engine_and_batches(tmp_path, 1, **JUDGED)
    part = engine.train_step.judge.part

    def wrong(*args):
        loss, stats = part.inner(*args)
        return 1.1 * loss, stats

    object.__setattr__(part, "_compiled", wrong)
    found = choosing.wrong_gradients(engine, batches[0])
    assert found.startswith("the compiled gradient of the discriminator_x0 with R1 is off by 1.0e")


def test_parts_of_a_batch_are_the_batch(tmp_path):
    common = {**JUDGED, "run__precision": "fp64", "run__steps": 3, "run__batch_size": 8}
    for name, size in (("one", None), ("parts", 4)):
        train(tiny(tmp_path / name, **common, run__micro_batch=size), device="cpu", quiet=True)
    want, got = (tensors_of(final_state(tmp_path / name)) for name in ("one", "parts"))
    assert largest_difference(want, got) < 1e-10


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path):
    common = {**JUDGED, "run__precision": "fp64", "run__steps": 6, "run__checkpoint_every": 6}
    record(tiny(tmp_path / "one", **common))
    ranks = run_ranks(tiny(tmp_path / "two", **common), 2, tmp_path / "ranks")
    want, got = (tensors_of(final_state(tmp_path / name)) for name in ("one", "two"))
    assert largest_difference(want, got) < 1e-8
    assert ranks[0]["digests"] == ranks[1]["digests"] and len(set(ranks[0]["digests"])) == 6


def test_costs_and_memory_hold_the_second_discriminator(tmp_path):
    plain, judged = (
        tiny(tmp_path, model__image_size=16, run__batch_size=4, **options)
        for options in ({}, JUDGED)
    )
    got, base = estimate_memory(judged, 4, "fp32"), estimate_memory(plain, 4, "fp32")
    assert got.weights > base.weights and got.ema == base.ema and got.adam == 2 * got.weights
    assert got.activations > base.activations
    ours, theirs = training_flops(judged), training_flops(plain)
    assert ours["training_image"] > theirs["training_image"] and ours["r1"] > theirs["r1"]
    assert ours["generator_forward"] == theirs["generator_forward"]
    text = dry_run(judged, "cpu")
    assert re.search(r"# +discriminator_x0 +[\d,]+\n", text) and "l1: 0.4" in text
    assert "discriminator_x0" not in dry_run(plain, "cpu")


def test_no_gradient_of_a_discriminator_goes_unseen(tmp_path):
    engine, batches = engine_and_batches(tmp_path, 1, **JUDGED, run__max_skipped=0)
    with torch.no_grad():
        next(engine.modules["discriminator_x0"].parameters()).fill_(math.nan)
    engine.take_step(batches[0])
    with pytest.raises(RuntimeError, match="the gradient of the discriminator of x_0 was not"):
        engine.guard.at_tick()


def test_a_second_discriminator_that_has_won_is_told():
    won = {"D0/real": 0.001, "D0/fake": 0.001, "G/x0": 15.0, "G/loss": 0.9}
    won |= {"D0/real_acc": 1.0, "D0/fake_acc": 0.995}
    detector = Detector()
    signs = [detector.look(step, won) for step in range(1, 11)]
    assert signs[:-1] == [None] * 9
    assert "the discriminator of x_0 has won" in signs[-1].sentence
    assert signs[-1].sentence.endswith("G/x0 is 15")
    detector = Detector()
    signs = [detector.look(step, {"D0/fake": math.nan}) for step in range(1, 4)]
    assert signs[-1].sentence == "D0/fake is nan"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"loss.terms": {"l_1": 1.0}},
            "unknown term 'l_1' in loss.terms (did you mean 'l1'?): there are l1, l2.",
        ),
        ({"loss.terms": {"l1": -1}}, "loss.terms.l1 is -1.0: it must be at least 0."),
        (
            {"loss.terms": "[l1]"},
            "loss.terms is '[l1]': it must be a mapping of names to numbers such as {l1: 0.5}.",
        ),
        ({"loss.x0_weight": -0.5}, "loss.x0_weight is -0.5: it must be at least 0."),
        ({"loss.x0_r1_gamma": -1}, "loss.x0_r1_gamma is -1.0: it must be at least 0."),
    ],
)
def test_what_cannot_work_is_refused(options, sentence):
    with pytest.raises(ValueError) as caught:
        load_config("digits", options)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("changes", [{"loss.x0_weight": 1}, {"loss.terms": "{l1: 1}"}])
def test_a_ddpm_has_neither(changes):
    with pytest.raises(ValueError, match=r'must stay off with loss\.kind "ddpm"'):
        load_config("digits_ddpm", changes)


def test_the_mapping_is_an_option_like_others(tmp_path):
    from ddgan_fast.commands.train import parse

    cfg = parse(["digits", "--loss.terms", "{l1: 1, l2: 5e-1}", "--loss.x0_weight", "2"]).config
    assert cfg.loss.terms == {"l1": 1.0, "l2": 0.5} and cfg.loss.x0_weight == 2.0
    save_yaml(cfg, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").loss == cfg.loss
    assert load_config(tmp_path / "config.yaml", {"loss.terms": {}}).loss.terms == {}
    assert from_dict(to_dict(cfg)).loss == cfg.loss
    with pytest.raises(ValueError, match=r"^loss\.terms is 'l1': it must be a mapping of names"):
        parse(["digits", "--loss.terms", "l1"])
