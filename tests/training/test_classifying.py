"""A classifier of diffused samples is trained like any other network of a run."""

import json

import pytest
import torch
from test_classes import CLASSES, DENOISING, engine_and_batches, largest_error, weights
from tiny_runs import tiny

from ddgan_fast.classifier import load_classifier
from ddgan_fast.config import validate
from ddgan_fast.data.sources import digits
from ddgan_fast.flops import training_flops
from ddgan_fast.models import build_generator
from ddgan_fast.sampling import load_generator
from ddgan_fast.training.footprint import estimate_memory
from ddgan_fast.training.trainer import train

KIND = CLASSES | DENOISING | {"loss__kind": "classifier"}
DENSE = {"discriminator__kind": "dense", "discriminator__hidden": 64}


def test_a_run_learns_the_digits(tmp_path):
    cfg = tiny(
        tmp_path,
        **(KIND | DENSE),
        run__steps=150,
        run__batch_size=64,
        run__tick=50,
        run__checkpoint_every=150,
        run__sample_every=50,
        data__limit=600,
        model__beta_max=8.0,
        optim__lr_g=3e-3,
    )
    train(cfg, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    first, *_, last = [line for line in lines if "G/accuracy" in line]
    # Least noise first; by the last timestep hardly any signal is left.
    assert last["G/accuracy/t0"] > 0.8 > last["G/accuracy/t3"]
    assert last["G/loss"] < first["G/loss"]
    classifier = load_classifier(tmp_path)
    data = digits(8)
    images = torch.from_numpy(data.array[:200]).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    guess = classifier(images, torch.zeros(200, dtype=torch.int64)).argmax(1)
    assert (guess == torch.from_numpy(data.labels[:200])).float().mean() > 0.9
    assert not list(tmp_path.glob("samples/*"))
    with pytest.raises(ValueError, match="holds a classifier, which draws nothing"):
        load_generator(tmp_path)


@pytest.mark.parametrize("trunk", [{}, DENSE], ids=["conv", "dense"])
def test_samples_do_not_know_of_each_other(tmp_path, trunk):
    """A sample's class has no gradient in another sample; parts of a batch are the batch."""
    whole, batches = engine_and_batches(tmp_path, 2, **(KIND | trunk), run__precision="fp64")
    parts, _ = engine_and_batches(
        tmp_path, 0, **(KIND | trunk), run__precision="fp64", run__micro_batch=2
    )
    for batch in batches:
        whole.take_step(batch)
        parts.take_step(batch)
    assert largest_error(weights(parts), weights(whole))[0] < 1e-10
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    logits = whole.generator(x, torch.tensor([0, 1, 2, 3]))
    assert logits.shape == (4, 10)
    (gradient,) = torch.autograd.grad(logits[1].sum(), x)
    assert gradient[1].abs().max() > 0 and gradient[[0, 2, 3]].abs().max() == 0
    # Classifiers learn from every label.
    assert torch.equal(whole.labels.drawn(whole.position), batches[-1].label)


def test_points_have_classifiers_too(tmp_path):
    cfg = tiny(tmp_path, **KIND)
    cfg.model.kind, cfg.model.num_channels, cfg.data.source = "mlp", 2, "gaussians25"
    cfg.model.num_classes, cfg.discriminator.kind = 25, "mlp"
    cfg.discriminator.point_features = 16
    validate(cfg)
    assert build_generator(cfg)(torch.zeros(3, 2), torch.zeros(3)).shape == (3, 25)


def test_its_cost_is_known(tmp_path):
    cfg = tiny(tmp_path, **KIND)
    assert training_flops(cfg)["training_image"] > 0
    assert estimate_memory(cfg, 4, "fp32").activations > 0


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("model__num_classes", 0, 'at least 2 with loss.kind "classifier"'),
        ("model__centered", False, "sees what a DDPM sees"),
        ("loss__lazy_reg", 2, "there is no R1"),
        ("loss__x0_weight", 1.0, "must stay off"),
        ("run__evaluate_every", 5, "a classifier draws no samples"),
        ("discriminator__kind", "none", "discriminator.kind is"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, field, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        validate(tiny(tmp_path, **(KIND | {field: value})))
