"""Samples of chosen classes, and guidance: formulas, labels by sample number, closed forms."""

import math
from dataclasses import replace

import pytest
import torch
from replay import ReplayRecorder
from test_sampling import assert_close, drawn, image_config, loaded

from ddgan_fast.diffusion import Diffusion
from ddgan_fast.drawing import Drawer, to_bytes
from ddgan_fast.guidance import (
    Guidance,
    bind,
    by_classifier,
    classifier_free,
    grid_columns,
)
from ddgan_fast.kernels import philox
from ddgan_fast.samplers import Sampler, choose, draw

CPU = torch.device("cpu")
CLASSES = 5


def conditional(kind="gan", **options):
    cfg = image_config(1, num_classes=CLASSES, **options)
    if kind == "ddpm":
        cfg.model = replace(cfg.model, nz=0, tanh=False, num_timesteps=6)
        cfg.loss.kind = "ddpm"
    return cfg


class Recording:
    """A generator that keeps what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, z, *, label):
        self.calls.append(label.tolist())
        return x * (1.0 + label[:, None]) + t[:, None] + z


def test_classifier_free_guidance_is_its_formula():
    x, z = torch.randn(2, 3, 2).unbind()
    t, label = torch.tensor([0, 1, 2]), torch.tensor([0, 4, 2])
    told, untold = (Recording()(x, t, z, label=v) for v in (label, torch.full_like(label, 5)))
    for scale, calls in (
        (0.0, [[5, 5, 5]]),
        (1.0, [[0, 4, 2]]),
        (2.5, [[0, 4, 2, 5, 5, 5]]),
    ):
        generator = Recording()
        got = classifier_free(generator, label, 5, scale)(x, t, z)
        torch.testing.assert_close(got, untold + scale * (told - untold))
        assert generator.calls == calls


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_gan_is_guided_in_its_prediction(scale):
    """The same latent for both predictions, and the samples of the documented key."""
    model = loaded(conditional())
    key = philox.seed_tensor(4, -1, 0, CPU)
    index = torch.arange(6)
    label = torch.tensor([3, 1, 3, 1, 3, 1])

    def by_hand(x, t, z):
        told, untold = model(x, t, z, label), model(x, t, z)
        return untold + scale * (told - untold)

    want = model.diffusion.draw(by_hand, (1, 8, 8), model.cfg.model.nz, key, index)
    condition = bind(model.cfg, Guidance((3, 1), scale), CPU)
    assert condition.evaluations == (1 if scale == 1.0 else 2)
    assert torch.equal(condition.labels(key, index), label)
    got = Drawer(model, key, condition=condition)
    assert_close(got.draw(index).numpy(), to_bytes(want)[0].numpy())


@pytest.mark.parametrize("labels", [(), (2,), (4, 0, 1)])
def test_a_samples_class_follows_from_its_number(labels):
    model = loaded(conditional())
    guidance = Guidance(labels, 2.0)
    whole = drawn(model, 7, seed=3, guidance=guidance)
    parts = drawn(model, 7, seed=3, guidance=guidance, batch_size=3)
    second = drawn(model, 3, seed=3, guidance=guidance, start=1, stride=2)
    assert_close(parts, whole)
    assert_close(second, whole[1::2])


def test_classes_are_drawn_uniformly_by_default():
    model = loaded(conditional())
    condition = bind(model.cfg, None, CPU)
    index = torch.arange(2000)
    labels = condition.labels(philox.seed_tensor(3, -1, 0), index)
    counts = torch.bincount(labels, minlength=CLASSES)
    # Five standard deviations of 2,000 draws.
    assert len(counts) == CLASSES and (counts - 400).abs().max() < 5 * math.sqrt(2000 * 0.2 * 0.8)
    assert not torch.equal(labels, condition.labels(philox.seed_tensor(4, -1, 0), index))
    assert condition.facts() == {"labels": "uniform", "guidance": 1.0}
    assert bind(image_config(), None, CPU) is None
    uniform = drawn(model, 8, seed=1)
    named = Guidance(tuple(condition.labels(philox.seed_tensor(1, -1, 0), index[:8]).tolist()))
    assert_close(drawn(model, 8, seed=1, guidance=named), uniform)


@pytest.mark.parametrize("kind", ["gan", "ddpm"])
def test_recorded_batches_have_the_classes_of_their_numbers(kind):
    model = loaded(conditional(kind))
    key = philox.seed_tensor(5, -1, 0, CPU)
    for guidance in (Guidance((), 2.0), Guidance((4, 0, 1))):
        condition = bind(model.cfg, guidance, CPU)
        eager = Drawer(model, key, condition=condition)
        graphs = Drawer(model, key, condition=condition, recorder=ReplayRecorder())
        for first in (0, 4, 9):
            index = torch.arange(first, first + 4)
            assert torch.equal(graphs.draw(index).clone(), eager.draw(index))


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpmpp", "heun"])
def test_every_sampler_is_guided(sampler):
    model = loaded(conditional("ddpm"))
    key, index = philox.seed_tensor(1, -1, 0), torch.arange(2)
    chosen = choose(model.cfg, sampler)
    first, second, more, *ignored = (
        draw(
            model,
            model.diffusion,
            chosen,
            model.cfg.model,
            key,
            index,
            condition=bind(model.cfg, Guidance((label,), scale), CPU),
        )
        for label, scale in ((0, 1.0), (1, 1.0), (1, 2.0), (1, 0.0), (0, 0.0))
    )
    assert not torch.equal(first, second) and not torch.equal(second, more)
    assert torch.equal(*ignored)


class Mixture:
    """Two Gaussians in the plane, diffused: scores and posterior of the class in closed form."""

    def __init__(self):
        self.diffusion = Diffusion(40, "vp", 0.1, 20.0)
        self.means = torch.tensor([[2.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
        self.std, self.weights = 0.3, torch.tensor([0.25, 0.75], dtype=torch.float64)
        self.levels = torch.from_numpy(self.diffusion.levels()[1:])

    def at(self, x, t):
        """log p(x | y) and its score for both classes, [N, 2] and [N, 2, 2]; noise [N, 1]."""
        signal, noise = (self.levels[t][:, i : i + 1] for i in (0, 1))
        variance = (signal * self.std) ** 2 + noise**2
        off = x[:, None] - signal[:, None] * self.means
        log = -0.5 * off.square().sum(2) / variance - variance.log()
        return log, -off / variance[:, None], noise

    def classifier(self, x, t):
        return self.at(x, t)[0] + self.weights.log()

    def noise(self, x, t, z=None):
        log, scores, noise = self.at(x, t)
        posterior = (log + self.weights.log()).softmax(1)
        return -noise * (posterior[:, :, None] * scores).sum(1)

    def conditional_noise(self, x, t, label):
        _, scores, noise = self.at(x, t)
        return -noise * scores[:, label]


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_classifier_guidance_has_the_known_score(scale):
    """By Bayes, s = 1 gives the noise of the class, and s the line through both."""
    mixture = Mixture()
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(60, 2, generator=generator, dtype=torch.float64)
    t = torch.randint(0, 40, (60,), generator=generator)
    for label in (0, 1):
        labels = torch.full((60,), label)
        noise = mixture.levels[:, 1]
        guided = by_classifier(mixture.noise, mixture.classifier, labels, noise, scale)
        plain, known = mixture.noise(x, t), mixture.conditional_noise(x, t, label)
        with torch.no_grad():  # as samplers call it
            got = guided(x, t, x)
        torch.testing.assert_close(got, plain + scale * (known - plain), rtol=1e-10, atol=1e-10)
        free = classifier_free(
            lambda x, t, z, label: torch.where(
                (label == 2)[:, None], mixture.noise(x, t), mixture.conditional_noise(x, t, 0)
            ),
            torch.zeros_like(t),
            2,
            scale,
        )
        if label == 0:
            torch.testing.assert_close(free(x, t, x), got, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("sampler", "steps"), [("ancestral", 40), ("ddim", 20), ("dpmpp", 20), ("heun", 20)]
)
def test_guided_samplers_draw_the_class(sampler, steps):
    """From the unconditional noise of the mixture to the rarer Gaussian alone, as by its score."""
    mixture = Mixture()
    index = torch.arange(2000)
    noise = mixture.levels[:, 1]
    guided = by_classifier(mixture.noise, mixture.classifier, torch.zeros_like(index), noise, 1.0)
    points, known = (
        Sampler(sampler, steps, clip=False).draw(
            network,
            mixture.diffusion,
            (2,),
            philox.seed_tensor(0, 0, 0),
            index,
            torch.float64,
        )
        for network in (
            lambda x, t: guided(x, t, x),
            lambda x, t: mixture.conditional_noise(x, t, 0),
        )
    )
    torch.testing.assert_close(points, known, rtol=1e-6, atol=1e-6)
    # Standard error of the mean 0.007; the other Gaussian is ten standard deviations away.
    assert (points.mean(0) - mixture.means[0]).abs().max() < 0.05
    assert (points - mixture.means[0]).norm(dim=1).max() < 5 * mixture.std


@pytest.mark.parametrize(
    ("cfg", "guidance", "sentence"),
    [
        (image_config(), Guidance((1,)), "the model knows no classes"),
        (image_config(), Guidance((), 2.0), "the model knows no classes"),
        (conditional(), Guidance((0, 5)), r"the class 5 does not exist: classes are 0 to 4\."),
        (conditional(), Guidance((-1,)), "the class -1 does not exist"),
        (conditional(), Guidance((), -1.0), "the guidance is -1.0: it must be a number of at lea"),
        (conditional(), Guidance((), math.nan), "the guidance is nan"),
        (conditional(), Guidance((), 1.0, None, math.inf), "the classifier scale is inf"),
    ],
)
def test_what_cannot_be_guided_is_refused(cfg, guidance, sentence):
    with pytest.raises(ValueError, match=sentence):
        bind(cfg, guidance, CPU)


def test_a_model_without_classes_needs_no_guidance():
    assert bind(image_config(), None, CPU) is None
    assert bind(image_config(), Guidance(), CPU) is None


def test_a_class_fills_a_column():
    assert [grid_columns(100, k) for k in (0, 1, 3, 10, 25, 100, 101)] == [
        None,
        None,
        9,
        10,
        25,
        100,
        None,
    ]
