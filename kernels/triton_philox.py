"""The random numbers of ``philox.py`` inside Triton kernels.

The integers are equal bit for bit. The logarithm, sine and cosine are written out: Triton's are
approximations on GPUs, and a small radius would lose half its digits to them.
"""

# Of a kernel's parameters only the compile-time ones have a type to write down.
# mypy: allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

_M0 = tl.constexpr(0xD2511F53)
_M1 = tl.constexpr(0xCD9E8D57)
_WEYL0 = tl.constexpr(0x9E3779B9)
_WEYL1 = tl.constexpr(0xBB67AE85)


@triton.jit
def philox4(seed, c0, c1, c2, c3):
    """Philox4x32-10 of the key ``seed`` (int64) and four uint32 counters, of one shape."""
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, _M0), tl.mul(c0, _M0, sanitize_overflow=False)
        high1, low1 = tl.umulhi(c2, _M1), tl.mul(c2, _M1, sanitize_overflow=False)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = tl.add(k0, _WEYL0, sanitize_overflow=False)
        k1 = tl.add(k1, _WEYL1, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def words4(seed_ptr, position, block, STREAM: tl.constexpr):
    """Four integers per element of position [N, 1] (int64) x block [1, B]."""
    zero = position.to(tl.uint32) * 0 + block.to(tl.uint32) * 0
    c0 = zero + block.to(tl.uint32)
    c2 = zero + (position & 0xFFFFFFFF).to(tl.uint32)
    c3 = zero + ((position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return philox4(tl.load(seed_ptr), c0, zero + STREAM, c2, c3)


@triton.jit
def _log(u):
    """Natural logarithm of normal float32 numbers (Cephes' polynomial)."""
    # Mantissa in [sqrt(1/2), sqrt(2)): bits of sqrt(1/2) are 0x3F3504F3.
    bits = u.to(tl.int32, bitcast=True) + (0x3F800000 - 0x3F3504F3)
    e = ((bits >> 23) - 127).to(tl.float32)
    f = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    p = 7.0376836292e-2 * f - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    p = p * f + 3.3333331174e-1
    square = f * f
    # ln 2 in two parts: the first times e is exact.
    small = f * square * p + e * -2.12194440e-4 - 0.5 * square
    return e * 0.693359375 + (f + small)


@triton.jit
def _cos_sin(angle):
    """Cosine and sine of float32 angles in [0, 2 pi]."""
    quarter = tl.floor(angle * 0.6366197723675814 + 0.5)
    r = ((angle - quarter * 1.5703125) - quarter * 4.837512969970703e-4) - quarter * 7.5497899e-8
    r2 = r * r
    sin = r + r * r2 * ((-1.9515295891e-4 * r2 + 8.3321608736e-3) * r2 - 1.6666654611e-1)
    cos = (2.443315711809948e-5 * r2 - 1.388731625493765e-3) * r2 + 4.166664568298827e-2
    cos = 1.0 - 0.5 * r2 + r2 * r2 * cos
    q = quarter.to(tl.int32) & 3
    swap = (q & 1) == 1
    c, s = tl.where(swap, sin, cos), tl.where(swap, cos, sin)
    return tl.where((q == 1) | (q == 2), -c, c), tl.where(q >= 2, -s, s)


@triton.jit
def _box_muller(a, b):
    # 2^-32 and 2 pi 2^-32.
    radius = tl.sqrt_rn(-2.0 * _log((a.to(tl.float32) + 1.0) * 2.3283064365386963e-10))
    cos, sin = _cos_sin(b.to(tl.float32) * 1.4629180792671596e-09)
    return radius * cos, radius * sin


@triton.jit
def normals4(seed_ptr, position, block, STREAM: tl.constexpr):
    """Standard normal numbers for elements 4 block ... 4 block + 3 of the samples."""
    r0, r1, r2, r3 = words4(seed_ptr, position, block, STREAM)
    n0, n1 = _box_muller(r0, r1)
    n2, n3 = _box_muller(r2, r3)
    return n0, n1, n2, n3


@triton.jit
def place(
    N, per_sample, index_ptr, HAS_INDEX: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr
):
    """The program's samples [N, 1] and Philox blocks [1, B], and the samples' global positions."""
    across = (per_sample + 4 * BLOCK_B - 1) // (4 * BLOCK_B)
    pid = tl.program_id(0)
    n = ((pid // across).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
    block = (pid % across) * BLOCK_B + tl.arange(0, BLOCK_B)[None, :]
    position = n
    if HAS_INDEX:
        position = tl.load(index_ptr + n, mask=n < N, other=0)
    return n, block, position


@triton.jit
def split(block, i: tl.constexpr, space, width, ALIGNED: tl.constexpr):
    """Channel, pixel and column of NCHW element 4 block + i.

    ALIGNED: four divides the width, so a block's elements are neighbours in one row.
    """
    first = 4 * block if ALIGNED else 4 * block + i
    channel = first // space
    pixel = first - channel * space
    column = pixel % width
    if ALIGNED:
        pixel += i
        column += i
    return channel, pixel, column


@triton.jit
def offset(n, e, channel, pixel, per_sample, space, LAST: tl.constexpr):
    """Where an element of sample n lies in memory, channels LAST or first."""
    if LAST:
        return n * per_sample + (pixel * (per_sample // space) + channel)
    else:
        return n * per_sample + e


@triton.jit
def coefficient(
    tables_ptr, t, T, column: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr
):
    """tables[t, column]; NaN for a step outside the tables, which no host check sees in time."""
    inside = (t >= 0) & (t < T)
    return tl.load(tables_ptr + t * COLUMNS + column, mask=inside, other=float("nan")).to(ACC)
