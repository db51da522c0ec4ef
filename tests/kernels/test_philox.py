"""Counter-based random numbers: the bits, their layout, their distribution and their seeds."""

import itertools
import math

import numpy as np
import pytest
import torch

from ddgan_fast.kernels import philox

M32 = 0xFFFFFFFF


def philox4x32_10(counter, key):
    """Salmon et al. 2011, in Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 1 << 32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 1 << 32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) & M32, (k[1] + 0xBB67AE85) & M32]
    return c


def signed(value):
    return value - (1 << 64) if value >> 63 else value


def seed_of(value):
    return torch.tensor([signed(value)])


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_yardstick_gives_the_known_answers(counter, key, words):
    """Known answers of the Random123 library."""
    counter, key, words = ([int(v, 16) for v in s.split()] for s in (counter, key, words))
    assert philox4x32_10(counter, key) == words


def test_integers_are_philox():
    random = np.random.default_rng(0)
    seeds = [0, 2**64 - 1, 2**63, *(int(v) for v in random.integers(0, 2**64, 12, np.uint64))]
    indices = [0, 1, M32, M32 + 1, 2**62 + 5, *(int(v) for v in random.integers(0, 2**63, 6))]
    for seed in seeds:
        stream = int(random.integers(0, 4))
        words = philox.integers4(seed_of(seed), torch.tensor(indices), 5, stream)
        got = torch.stack(words, 2).tolist()
        for n, index in enumerate(indices):
            for block in range(5):
                counter = (block, stream, index & M32, index >> 32)
                assert got[n][block] == philox4x32_10(counter, (seed & M32, seed >> 32))


def test_normals_are_box_muller_of_consecutive_words():
    seed, index = 0x9ABCDEF012345678, torch.tensor([3, 2**35])
    values = philox.normal(seed_of(seed), index, (3, 7))
    for n, at in enumerate(index.tolist()):
        for e, got in enumerate(values[n].flatten().tolist()):
            words = philox4x32_10((e // 4, 0, at & M32, at >> 32), (seed & M32, seed >> 32))
            a, b = words[:2] if e % 4 < 2 else words[2:]
            radius = math.sqrt(-2 * math.log((a + 1) / 2**32))
            turn = math.cos if e % 2 == 0 else math.sin
            assert abs(got - radius * turn(2 * math.pi * b / 2**32)) < 4e-6


def test_uniforms_are_the_upper_bits_of_consecutive_words():
    seed, index = 0x123456789ABCDEF0, torch.tensor([3, 2**35])
    values = philox.uniform(seed_of(seed), index, (2, 5))
    for n, at in enumerate(index.tolist()):
        for e, got in enumerate(values[n].flatten().tolist()):
            words = philox4x32_10((e // 4, 0, at & M32, at >> 32), (seed & M32, seed >> 32))
            assert got == (words[e % 4] >> 8) / 2**24


def test_extreme_words_stay_finite(monkeypatch):
    """The smallest and largest words: no infinity from the logarithm."""
    words = tuple(torch.tensor([[w]]) for w in (0, 0, M32, M32))
    monkeypatch.setattr(philox, "integers4", lambda *_: words)
    values = philox.normal(seed_of(0), torch.tensor([0]), (4,))
    assert torch.isfinite(values).all()
    assert values[0, 0] == pytest.approx(math.sqrt(64 * math.log(2)), rel=1e-6)
    assert values[0, 2:].abs().max() == 0


SEED, INDEX = seed_of(77), torch.tensor([4, 0, 2**33, 9, 1])


@pytest.mark.parametrize("draw", [philox.normal, philox.uniform])
def test_any_part_of_a_batch_is_the_same(draw):
    whole = draw(SEED, INDEX, (3, 5, 7))
    for rows in ([0], [4, 1], [2, 2, 0], list(range(5))[::-1]):
        assert torch.equal(draw(SEED, INDEX[rows], (3, 5, 7)), whole[rows])
    many = torch.arange(64)
    whole = draw(SEED, many, (3, 4, 4))
    for size in (1, 3, 16):
        parts = [draw(SEED, part, (3, 4, 4)) for part in many.split(size)]
        assert torch.equal(torch.cat(parts), whole)


def test_shorter_samples_are_the_beginning_of_longer_ones():
    long = philox.normal(SEED, INDEX, (23,))
    for elements in (1, 2, 3, 4, 5, 8, 22):
        assert torch.equal(philox.normal(SEED, INDEX, (elements,)), long[:, :elements])
    assert torch.equal(philox.normal(SEED, INDEX, (2, 3, 3)).flatten(1), long[:, :18])
    assert philox.normal(SEED, INDEX[:0], (2, 3)).shape == (0, 2, 3)
    assert philox.normal(SEED, INDEX, ()).shape == (5,)


def test_wider_and_narrower_types_round_the_same_numbers():
    base = philox.normal(SEED, INDEX, (9,))
    assert base.dtype == torch.float32
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert torch.equal(philox.normal(SEED, INDEX, (9,), dtype), base.to(dtype))


def correlation(a, b):
    a, b = a.flatten().double(), b.flatten().double()
    return ((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std())


def test_streams_seeds_and_positions_are_independent():
    index, shape = torch.arange(4000), (10,)
    base = philox.normal(SEED, index, shape)
    others = {
        "stream": philox.normal(SEED, index, shape, stream=1),
        "next seed": philox.normal(SEED + 1, index, shape),
        "seed 2^32 further": philox.normal(SEED + 2**32, index, shape),
        "next position": philox.normal(SEED, index + 1, shape),
        "position 2^32 further": philox.normal(SEED, index + 2**32, shape),
        "next element": base.roll(1, 1),
    }
    for name, other in others.items():
        # 40,000 pairs: five standard deviations are 0.025.
        assert abs(correlation(base, other)) < 0.025, name


def test_a_million_normals():
    x = philox.normal(seed_of(2024), torch.arange(1000), (1000,)).flatten().double()
    n = x.numel()
    assert abs(x.mean()) < 5 / math.sqrt(n)
    assert abs(x.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs(x.pow(3).mean()) < 5 * math.sqrt(15 / n)
    assert abs(x.pow(4).mean() - 3) < 5 * math.sqrt(96 / n)
    # Kolmogorov-Smirnov: the largest distance between the two distribution functions.
    x = x.sort().values
    exact = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((steps[1:] - exact).max(), (exact - steps[:-1]).max())
    assert distance * math.sqrt(n) < 1.95, "p below 0.001"


def test_uniforms_fill_the_unit_interval():
    x = philox.uniform(seed_of(5), torch.arange(500), (1000,)).flatten().double()
    assert x.min() >= 0 and x.max() < 1
    x = x.sort().values
    n = x.numel()
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((steps[1:] - x).max(), (x - steps[:-1]).max())
    assert distance * math.sqrt(n) < 1.95, "p below 0.001"


@pytest.mark.parametrize("high", [1, 2, 3, 4, 7, 1000, 2**31 - 1])
def test_integers_are_uniform(high):
    n = 100_000
    values = philox.integers(seed_of(31337), torch.arange(n), high)
    assert values.shape == (n,) and values.dtype == torch.int64
    assert values.min() >= 0 and values.max() < high
    bins = min(high, 20)
    counts = torch.bincount(values * bins // high, minlength=bins).double()
    edges = [-(-b * high // bins) for b in range(bins + 1)]
    expected = torch.tensor([(b - a) / high * n for a, b in itertools.pairwise(edges)])
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = bins - 1
    assert chi_square <= degrees + 5 * math.sqrt(2 * degrees) + 5 * (degrees > 0)


def test_integers_depend_on_the_position_alone():
    whole = philox.integers(SEED, INDEX, 1000)
    assert torch.equal(philox.integers(SEED, INDEX[[3, 0]], 1000), whole[[3, 0]])


def splitmix64(x):
    """Steele et al. 2014: one step of the generator from state x, in Python integers."""
    mask = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_seeds_are_splitmix64():
    # The first output of the published generator from state 0.
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    for seed in (0, 1, 2**63, 2**64 - 1, 0x0123456789ABCDEF):
        want = [signed(splitmix64((seed + i) % 2**64)) for i in range(5)]
        assert philox.split(seed_of(seed), 5).tolist() == want


@pytest.mark.parametrize("run_seed", [0, 1024, 2**63 - 1])
def test_seeds_of_a_step(run_seed):
    for step in (0, 1, 99_999):
        seeds = philox.step_seeds(run_seed, torch.tensor([step]), 10)
        assert seeds.shape == (10,) and seeds.dtype == torch.int64
        for draw in range(10):
            assert torch.equal(philox.seed_tensor(run_seed, step, draw), seeds[draw : draw + 1])


def test_no_two_draws_of_a_run_share_a_seed():
    """Neither two draws of 100,000 steps, nor those of runs with neighbouring seeds."""
    steps = torch.arange(100_000)[:, None]
    seeds = philox.step_seeds(1024, steps, 10)
    assert seeds.shape == (100_000, 10)
    assert torch.equal(seeds[777], philox.step_seeds(1024, torch.tensor([777]), 10))
    assert seeds.unique().numel() == seeds.numel()
    runs = torch.cat([philox.step_seeds(s, steps[:1000], 10) for s in range(100)])
    assert runs.unique().numel() == runs.numel()
