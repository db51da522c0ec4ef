"""Edits: what is kept, what does not matter, what follows from the seed, what is refused."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_sampling import assert_close, drawn, image_config, loaded, point_config

from ddgan_fast.editing import (
    MOVES,
    check_size,
    inpaint,
    interpolate,
    noise_then_denoise,
    sample_at,
    slerp,
    strokes_to_image,
    trajectories,
)
from ddgan_fast.editing.loop import noised
from ddgan_fast.editing.noise import Draws
from ddgan_fast.sampling import LoadedGenerator


def model_of(**options):
    return loaded(image_config(**{"num_timesteps": 3, **options}))


def pictures(n, size=8, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def lower_half(n, size=8):
    mask = np.zeros((n, size, size), bool)
    mask[:, size // 2 :] = True
    return mask


class Seeing(LoadedGenerator):
    """Remembers what its network was given."""

    def forward(self, x, t, z):
        self.__dict__.setdefault("seen", []).append((x.clone(), t.clone(), z.clone()))
        return super().forward(x, t, z)


def seeing(**options):
    model = model_of(**options)
    return Seeing(model.cfg, model.network.state_dict(), 1, Path("memory"))


# Noise, then denoise


def test_at_strength_0_the_images_come_back():
    images = np.concatenate([pictures(2), np.arange(192, dtype=np.uint8).reshape(1, 8, 8, 3)])
    assert np.array_equal(noise_then_denoise(model_of(), images, 0), images)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_at_full_strength_the_images_do_not_matter(channels):
    model = model_of(channels=channels)
    expected = drawn(model, 5, seed=3)[2:]
    for seed in (0, 1):
        images = pictures(3, channels=channels, seed=seed)
        edited = noise_then_denoise(model, images, 3, seed=3, start=2)
        np.testing.assert_array_equal(edited, expected)


def test_in_between_the_images_matter_the_more_the_weaker():
    model, images = model_of(), pictures(4)
    for strength in (1, 2):
        a = noise_then_denoise(model, images, strength)
        b = noise_then_denoise(model, images[::-1].copy(), strength)
        assert not np.array_equal(a, b)


def test_denoising_starts_at_the_level_of_the_strength():
    """The first thing the network sees is q(x_2 | x_0) with the noise of x_T."""
    model, images = seeing(), pictures(2)
    noise_then_denoise(model, images, 2, seed=4)
    (x, t, z), (_, last, _) = model.seen
    assert t.tolist() == [1, 1] and last.tolist() == [0, 0]
    x0 = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    draws = Draws(model, 4, torch.arange(2), (3, 8, 8))
    keep = math.sqrt(math.prod(1 - float(b) for b in model.diffusion.tables["betas"][:2]))
    expected = keep * x0 + math.sqrt(1 - keep**2) * draws.first()
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(z, draws.latent(1))


def test_levels_are_those_of_the_forward_process():
    model = model_of(num_timesteps=4)
    x0, noise = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    for t in range(4):
        expected = model.diffusion.q_sample(x0, torch.full((4,), t), noise)
        torch.testing.assert_close(noised(model, x0, t, noise), expected)
    assert torch.equal(noised(model, x0, 0, noise), x0)
    variance = [float(noised(model, x0 * 0, t, noise).var()) for t in range(5)]
    assert variance == sorted(variance) and variance[4] > 0.99


# Strokes


def test_strokes_on_a_photograph_leave_the_rest_of_it():
    model, images = model_of(), pictures(2)
    painted = np.zeros((2, 8, 8), bool)
    painted[0, 2:5, 1:7] = True
    for strength in (1, 2, 3):
        edited = strokes_to_image(model, images, strength, painted=painted)
        assert np.array_equal(edited[~painted], images[~painted])
        assert not np.array_equal(edited[painted], images[painted])
    everywhere = np.ones((2, 8, 8), bool)
    np.testing.assert_array_equal(
        strokes_to_image(model, images, 2, painted=everywhere),
        noise_then_denoise(model, images, 2),
    )


# Inpainting


def test_known_pixels_come_back_exactly():
    model, images, missing = model_of(), pictures(3), lower_half(3)
    filled = inpaint(model, images, missing, seed=2)
    assert np.array_equal(filled[~missing], images[~missing])
    assert not np.array_equal(filled[missing], images[missing])


def test_what_is_missing_does_not_matter_and_what_is_known_does():
    model, images, missing = model_of(), pictures(2), lower_half(2)
    filled = inpaint(model, images, missing)
    other = images.copy()
    other[missing] = 7
    assert np.array_equal(inpaint(model, other, missing), filled)
    other = images.copy()
    other[~missing] = 7
    assert not np.array_equal(inpaint(model, other, missing)[missing], filled[missing])


def test_the_network_sees_the_known_pixels_at_every_level():
    """Black and white pixels, so that what is left of them at T can be told from the noise."""
    model, missing = seeing(beta_max=8.0), lower_half(400)
    images = pictures(400) // 128 * 255
    inpaint(model, images, missing, batch_size=400)
    x0 = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    signals = model.diffusion.tables["a_s_cum"]
    assert signals[3] > 0.1
    known = torch.from_numpy(~missing)[:, None].expand_as(x0)
    noises = []
    for (x, t, _), level in zip(model.seen, (3, 2, 1), strict=True):
        assert int(t[0]) == level - 1
        assert abs((x * x0)[known].mean() - signals[level]) < 0.02
        noises.append((x - signals[level] * x0)[known] / (1 - signals[level] ** 2).sqrt())
        assert noises[-1].mean().abs() < 0.02 and (noises[-1].std() - 1).abs() < 0.02
    correlation = torch.corrcoef(torch.stack(noises)).fill_diagonal_(0)
    assert correlation.abs().max() < 0.02, "each level has its own noise"
    # At T what is missing is noise alone.
    assert abs((model.seen[0][0] * x0)[~known].mean()) < 0.02


def test_everything_missing_is_sampling_and_nothing_missing_is_the_image():
    model, images = model_of(), pictures(3)
    everything = np.ones((3, 8, 8), bool)
    filled = inpaint(model, images, everything, seed=5)
    np.testing.assert_array_equal(filled, drawn(model, 3, seed=5))
    np.testing.assert_array_equal(inpaint(model, images, ~everything), images)


# Interpolation


def test_the_ends_of_a_walk_are_the_samples():
    model = model_of()
    samples = drawn(model, 5, seed=6)
    walk = interpolate(model, [3, 0, 4], 3, seed=6)
    assert len(walk) == 7
    # Another batch size may round the last bit differently.
    assert_close(walk[[0, 3, 6]], samples[[3, 0, 4]])
    assert not np.array_equal(walk[1], walk[0]) and not np.array_equal(walk[2], walk[3])


def test_what_does_not_move_is_the_first_sample_s():
    index = torch.arange(5)
    for move in MOVES:
        model = seeing()
        interpolate(model, [1, 4, 2], 2, move=move, seed=6)
        own = Draws(model, 6, index, (3, 8, 8))
        x, _, z = model.seen[0]
        for frame, sample in ((0, 1), (2, 4), (4, 2)):
            assert torch.equal(x[frame], own.first()[1 if move == "z" else sample])
            assert torch.equal(z[frame], own.latent(2)[1 if move == "x" else sample])


def test_slerp():
    a, b = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)
    zero, one = torch.zeros(4), torch.ones(4)
    assert torch.equal(slerp(a, b, zero), a) and torch.equal(slerp(a, b, one), b)
    middle = slerp(a, b, one / 2)
    # As long as the ends: the straight line's middle would be a factor sqrt 2 shorter.
    ratio = middle.flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1)
    assert (ratio - 1).abs().max() < 0.1
    turned = slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([1 / 3]))
    torch.testing.assert_close(turned, torch.tensor([[math.cos(math.pi / 6), 0.5]]))
    torch.testing.assert_close(slerp(a, a, one / 2), a)
    assert torch.isfinite(slerp(a, -a, one / 2)).all()


# Other sizes, trajectories


def test_the_own_size_is_sampling():
    model = model_of()
    np.testing.assert_array_equal(sample_at(model, 4, 8, 8, seed=1), drawn(model, 4, seed=1))


@pytest.mark.parametrize("size", [(16, 16), (8, 20), (2, 2)])
def test_other_sizes(size):
    model = model_of(attn_resolutions=(4,))
    images = sample_at(model, 3, *size)
    assert images.shape == (3, *size, 3) and images.std() > 10
    assert_close(sample_at(model, 1, *size, start=2, batch_size=1), images[2:])
    wide = pictures(2, 16)
    missing = lower_half(2, 16)
    assert np.array_equal(inpaint(model, wide, missing)[~missing], wide[~missing])


def test_sizes_that_do_not_work():
    model = model_of(attn_resolutions=(4,))
    for size in ((9, 8), (8, 9), (0, 8), (1, 1)):
        with pytest.raises(ValueError, match=r"must be multiples of 2, because .* 2 resolutions"):
            check_size(model, *size)
    check_size(model, 256, 256)
    with pytest.raises(
        ValueError, match=r"compare 16,512 positions .* at most 65,536 pixels"
    ):
        check_size(model, 256, 258)
    finest = model_of(attn_resolutions=(8,))
    check_size(finest, 128, 128)
    with pytest.raises(ValueError, match=r"compare 16,640 .* at most 16,384 pixels"):
        check_size(finest, 128, 130)
    check_size(loaded(image_config()), 256, 256)  # attention in the middle alone


def test_trajectories():
    model = model_of()
    seen = trajectories(model, 3, seed=1)
    assert seen.shape == (3, 6, 8, 8, 3)
    np.testing.assert_array_equal(seen[:, -1], drawn(model, 3, seed=1))
    watched = seeing()
    drawn(watched, 3, seed=1, batch_size=3)
    for stage, (x, _, _) in zip((0, 2, 4), watched.seen, strict=True):
        expected = ((x.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255)
        assert_close(seen[:, stage], expected.numpy().astype(np.uint8))


# All of them

EDITS = {
    "noise": lambda model, **options: noise_then_denoise(model, pictures(5), 2, **options),
    "strokes": lambda model, **options: strokes_to_image(
        model, pictures(5), 2, painted=lower_half(5), **options
    ),
    "inpaint": lambda model, **options: inpaint(model, pictures(5), lower_half(5), **options),
    "interpolate": lambda model, **options: interpolate(model, [0, 3], 4, **options),
    "sizes": lambda model, **options: sample_at(model, 5, 8, 16, **options),
    "trajectories": lambda model, **options: trajectories(model, 5, **options),
}


@pytest.mark.parametrize("name", EDITS)
def test_seeds_repeat_and_the_batch_does_not_matter(name):
    model, edit = model_of(), EDITS[name]
    first = edit(model, seed=3)
    np.testing.assert_array_equal(edit(model, seed=3), first)
    assert not np.array_equal(edit(model, seed=4), first)
    for size in (1, 2):
        assert_close(edit(model, seed=3, batch_size=size), first)


@pytest.mark.parametrize("name", EDITS)
def test_refusals_of_all(name):
    model, edit = model_of(), EDITS[name]
    for options, sentence in (
        ({"seed": -1}, "seed is -1: it must be at least 0"),
        ({"seed": 2**63}, r"it must be below 2\*\*63"),
        ({"batch_size": 0}, "the batch size is 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            edit(model, **options)
    with pytest.raises(ValueError, match="memory makes points, and editing needs a model of image"):
        edit(loaded(point_config()))
    with torch.no_grad():
        model.network.conv_in.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="the images hold NaN: the network in memory has diverged"):
        edit(model)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: noise_then_denoise(m, pictures(1), 4), "strength is 4: .* to 3, the model's"),
        (lambda m: noise_then_denoise(m, pictures(1), -1), "strength is -1"),
        (lambda m: noise_then_denoise(m, pictures(1), 1, start=-1), "start is -1"),
        (lambda m: noise_then_denoise(m, pictures(0), 1), "n is 0: it must be at least 1"),
        (lambda m: noise_then_denoise(m, pictures(1, channels=1), 1), r"\[N, H, W, 3\] for this"),
        (lambda m: noise_then_denoise(m, pictures(1) / 255, 1), "must be uint8 .* not float64"),
        (lambda m: noise_then_denoise(m, pictures(1, size=9), 1), "size 9x9 does not fit"),
        (lambda m: inpaint(m, pictures(2), lower_half(1)), r"bool \[2, 8, 8\] like the images"),
        (lambda m: inpaint(m, pictures(1), lower_half(1) * 1), "not int64"),
        (lambda m: interpolate(m, [1], 4), r"at least two samples.*not \[1\] and 4"),
        (lambda m: interpolate(m, [0, -1], 4), "from 0 on"),
        (lambda m: interpolate(m, [0, 1], 0), "at least one frame"),
        (lambda m: interpolate(m, [0, 1], 2, move="y"), "move is 'y': choose"),
        (lambda m: sample_at(m, 0, 8, 8), "n is 0"),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        call(model_of())
    assert "\n" not in str(raised.value)


def test_the_global_random_state_stays():
    model = model_of()
    before = torch.get_rng_state()
    noise_then_denoise(model, pictures(2), 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
@pytest.mark.parametrize("name", EDITS)
def test_a_gpu_gives_the_same(name):
    expected = EDITS[name](model_of(), seed=3)
    found = EDITS[name](model_of().to("cuda"), seed=3)
    # Convolutions round differently there.
    assert np.abs(found.astype(int) - expected).max() <= 2
