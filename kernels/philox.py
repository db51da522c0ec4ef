"""Counter-based random numbers: Philox4x32-10 in torch integers, normals by Box-Muller.

Every number is a function of (seed, global sample position, element within the sample), so a
draw does not depend on memory layout, batch split, rank or device, and nothing about the
generator's state needs saving. Other backends compute the same integers.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

_MASK32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK64 = 0xFFFFFFFFFFFFFFFF
_GOLDEN = 0x9E3779B97F4A7C15


def _signed(value: int) -> int:
    """A 64-bit pattern as torch's int64 holds it."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _splitmix(x: torch.Tensor) -> torch.Tensor:
    """The splitmix64 finaliser on int64 bit patterns."""
    x = x + _signed(_GOLDEN)
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def step_seeds(run_seed: int, step: torch.Tensor, draws: int) -> torch.Tensor:
    """Seeds of all draws of one training step, computed on the device that holds the step.

    Args:
        run_seed: seed of the run.
        step: int64[1], the step.
        draws: how many independent draws the step makes.

    Returns:
        int64 [draws]; ``seeds[i : i + 1]`` is the Philox key of draw i.
    """
    run = _splitmix(torch.full_like(step, _signed(run_seed)))
    return split(_splitmix(run ^ step), draws)


def split(seed: torch.Tensor, count: int) -> torch.Tensor:
    """Independent seeds int64 [count] from one seed int64[1]."""
    number = torch.arange(count, dtype=torch.int64, device=seed.device)
    return _splitmix(seed + number)


def seed_tensor(
    run_seed: int, step: int, draw: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Seed int64[1] of one draw: equal to ``step_seeds(run_seed, step, ...)[draw]``."""
    at = torch.full((1,), step, dtype=torch.int64, device=device)
    return step_seeds(run_seed, at, draw + 1)[draw:]


def integers4(
    seed: torch.Tensor, index: torch.Tensor, blocks: int, stream: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four 32-bit integers per counter.

    The key is the seed's two halves; the counter is (block, stream, index low, index high).

    Args:
        seed: int64[1].
        index: int64 [N], global sample positions.
        blocks: counters per sample: elements / 4, rounded up.
        stream: separates draws that share a seed.

    Returns:
        Four int64 tensors [N, blocks] of values in [0, 2^32).
    """
    block = torch.arange(blocks, dtype=torch.int64, device=index.device)
    c0 = block[None, :].expand(index.shape[0], -1)
    c1 = torch.full_like(c0, stream)
    c2 = (index & _MASK32)[:, None].expand_as(c0)
    c3 = ((index >> 32) & _MASK32)[:, None].expand_as(c0)
    k0, k1 = seed & _MASK32, (seed >> 32) & _MASK32
    for _ in range(_ROUNDS):
        # The 64-bit product wraps to a negative number, but its bits are right.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK32) ^ c1 ^ k0,
            p1 & _MASK32,
            ((p0 >> 32) & _MASK32) ^ c3 ^ k1,
            p0 & _MASK32,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3


def normal(
    seed: torch.Tensor,
    index: torch.Tensor,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    stream: int = 0,
) -> torch.Tensor:
    """Standard normal numbers, element e of sample n from counter (index[n], e // 4).

    Args:
        seed: int64[1].
        index: int64 [N], global sample positions.
        shape: shape of one sample, in NCHW order.
        dtype: of the result; the numbers are computed in float32.
        stream: separates draws that share a seed.

    Returns:
        [N, *shape].
    """
    elements = math.prod(shape)
    r0, r1, r2, r3 = integers4(seed, index, (elements + 3) // 4, stream)
    pairs = [_box_muller(a, b) for a, b in ((r0, r1), (r2, r3))]
    values = torch.stack([*pairs[0], *pairs[1]], 2).flatten(1)[:, :elements]
    return values.reshape(index.shape[0], *shape).to(dtype)


def _box_muller(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = 2.0**-32
    # In (0, 1]: the logarithm stays finite.
    radius = torch.sqrt(-2.0 * torch.log((a.to(torch.float32) + 1.0) * scale))
    angle = b.to(torch.float32) * (2.0 * math.pi * scale)
    return radius * torch.cos(angle), radius * torch.sin(angle)


def uniform(seed: torch.Tensor, index: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Numbers in [0, 1) in steps of 2^-24, float32 [N, *shape]; counters as in ``normal``."""
    elements = math.prod(shape)
    words = integers4(seed, index, (elements + 3) // 4)
    values = torch.stack(words, 2).flatten(1)[:, :elements]
    return ((values >> 8).to(torch.float32) * 2.0**-24).reshape(index.shape[0], *shape)


def integers(seed: torch.Tensor, index: torch.Tensor, high: int) -> torch.Tensor:
    """int64 [N] in [0, high): one number per sample position."""
    word = integers4(seed, index, 1)[0][:, 0]
    return (word * high) >> 32


def positions(n: int, device: torch.device) -> torch.Tensor:
    """The default sample positions 0..n-1."""
    return torch.arange(n, dtype=torch.int64, device=device)
