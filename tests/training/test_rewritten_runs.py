"""Runs with every exact rewrite, with none, and with blocks that run again: the same run."""

import pytest
import torch
from tiny_runs import final_state, record, tensors_of, tiny

from ddgan_fast.config import Config, DiscriminatorConfig, ModelConfig
from ddgan_fast.models import build_discriminator
from ddgan_fast.training.engine import Engine
from ddgan_fast.training.parallel import Ranks
from ddgan_fast.training.steps import DiscriminatorLoss


def run(folder, **options):
    """States after 6 float64 steps with and without R1, on micro-batches of 4."""
    common = {"run__precision": "fp64", "run__checkpoint_every": 6, "run__micro_batch": 4}
    record(tiny(folder, **common, **options))
    return tensors_of(final_state(folder))


def test_a_run_stays_the_same(tmp_path):
    want = run(tmp_path / "none", run__rewrites="none")
    for name, options in {
        "all": {"run__rewrites": "all"},
        "recompute": {"run__rewrites": "all", "run__recompute": [8, 4]},
    }.items():
        got = run(tmp_path / name, **options)
        assert got.keys() == want.keys()
        errors = {key: float((got[key] - want[key]).abs().max()) for key in want}
        worst = max(errors, key=errors.get)
        assert errors[worst] < 1e-8, (name, worst, errors[worst])


@pytest.mark.parametrize(("words", "joint"), [("auto", False), ("joint_d", True)])
def test_the_option_reaches_the_loss(tmp_path, words, joint):
    cfg = tiny(tmp_path, run__rewrites=words)
    engine = Engine(cfg, Ranks(0, 1, torch.device("cpu")), torch.arange(8))
    assert engine.train_step.d_loss.inner.joint == joint


def discriminator():
    torch.manual_seed(0)
    kind = {"kind": "custom", "block_mults": (2,), "block_downs": (True,)}
    cfg = Config(
        model=ModelConfig(num_channels=3),
        discriminator=DiscriminatorConfig(ngf=4, t_emb_dim=4, **kind),
    )
    return build_discriminator(cfg)


def loss_of(network, joint, penalize, compiler=lambda module: module):
    def randn(seed):
        return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))

    network.zero_grad()
    x_t, x_next, fake = map(randn, range(3))
    calls = []
    hook = network.register_forward_hook(lambda *_: calls.append(1))
    loss = compiler(DiscriminatorLoss(network, 2.0, joint))
    value, stats = loss(x_t.requires_grad_(penalize), x_next, torch.arange(4) % 2, fake, penalize)
    value.backward()
    hook.remove()
    gradients = {f"gradient of {n}": p.grad.clone() for n, p in network.named_parameters()}
    return {"loss": value.detach()} | stats | gradients, len(calls)


@pytest.mark.parametrize("penalize", [False, True])
def test_the_joint_loss(penalize):
    """One pass without R1, two with; the same loss, statistics and gradients."""
    network = discriminator()
    want, passes = loss_of(network, False, penalize)
    assert passes == 2
    got, passes = loss_of(network, True, penalize)
    assert passes == (2 if penalize else 1)
    assert got.keys() == want.keys() and ("D/r1" in got) == penalize
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)


def test_the_joint_loss_traces():
    network = discriminator()
    want, _ = loss_of(network, False, False)
    torch._dynamo.reset()

    def compiler(module):
        return torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=False)

    got, _ = loss_of(network, True, False, compiler)
    torch._dynamo.reset()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-6)
