"""Compiles the Triton kernels of an op's call to machine code, without a GPU, and counts.

Call it with an architecture (90), a layout (nhwc, nchw) and "all" or "main" (one call per op, its
large kernels), or with "edges". The op's own launch code runs on meta tensors, so tiles and
specialisations are those of a real launch, and nothing can be read from a tensor on the host: a
seed, for one, which a captured graph would repeat for ever. Only the launch itself is left out.
Must run in a process of its own: a stand-in takes the place of Triton's driver.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

_BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SMALL = ("combine_moments", "combine_sums")
"""Kernels that handle a few numbers per group only."""
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);")


class _Driver:
    """What Triton asks of a driver to compile for an architecture that is not here."""

    def __init__(self, arch):
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.target.arch

    def get_current_stream(self, device):
        return 0


def compiled(call, arch, left_out=()):
    """The kernels that ``call()`` would launch: a list of (name, SASS); some only compiled."""
    found = []
    launch = JITFunction.run

    def run(self, *args, grid, warmup, **kwargs):
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        if self.__name__ not in left_out:
            found.append((self.__name__, _disassembled(kernel)))
        return kernel

    triton.runtime.driver.set_active(_Driver(arch))
    JITFunction.run = run
    try:
        call()
    finally:
        JITFunction.run = launch
    return found


def _disassembled(kernel):
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        return _tool("cuobjdump", "-sass", str(cubin))


def _tool(name, *arguments):
    command = [str(_BINARIES / name), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def instructions(sass):
    """(address, text) of every instruction."""
    lines = (_LINE.match(line) for line in sass.splitlines())
    return [(int(m[1], 16), m[2].strip()) for m in lines if m]


def hot_part(sass):
    """The instructions of the loop that moves most data, or all when nothing loops."""
    code = instructions(sass)
    # An endless jump to itself ends every program.
    loops = []
    for at, text in code:
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < at:
            loops.append([t for a, t in code if int(jump[1], 16) <= a <= at])
    moving = [body for body in loops if any(moved(text) for text in body)]
    if moving:
        return max(moving, key=lambda body: (sum(moved(t) for t in body), -len(body)))
    end = max(i for i, (_, text) in enumerate(code) if "EXIT" in text)
    return [text for _, text in code[: end + 1]]


def moved(text):
    """Bytes that one instruction moves between a thread and global memory."""
    operation = next((w for w in text.split() if w.startswith(("LDG", "STG"))), None)
    if operation is None:
        return 0
    width = re.search(r"\.(128|64|U16|S16|U8|S8)", operation)
    return {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}[width[1]] if width else 4


def counts(sass):
    """What a test asserts about one kernel."""
    everything = [text for _, text in instructions(sass)]
    hot = hot_part(sass)

    def amount(texts, operation):
        return sum(any(w.startswith(operation) for w in text.split()[:2]) for text in texts)

    def wide(operation):
        return sum("128" in text and operation in text for text in hot)

    return {
        "instructions": len(everything),
        "spills": amount(everything, "LDL") + amount(everything, "STL"),
        "hot": len(hot),
        "hot_spills": amount(hot, "LDL") + amount(hot, "STL"),
        "loads": amount(hot, "LDG"),
        "wide_loads": wide("LDG"),
        "stores": amount(hot, "STG"),
        "wide_stores": wide("STG"),
        "loaded": sum(moved(t) for t in hot if "LDG" in t),
        "stored": sum(moved(t) for t in hot if "STG" in t),
        "packs": sorted({t.split()[0] for t in hot if t.startswith("F2F")}),
    }


def empty(*shape, dtype=torch.bfloat16, order=torch.channels_last):
    """A meta tensor: a shape, a dtype and strides."""
    if len(shape) != 4:
        order = torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=order)


def cases(order):
    """One call per kernel at the shapes of a 256 x 256 model, bfloat16; an op's main one first."""
    from ddgan_fast.kernels.ada_norm import triton_impl as ada
    from ddgan_fast.kernels.ada_norm_fir import triton_impl as ada_fir
    from ddgan_fast.kernels.bias_act import triton_impl as act
    from ddgan_fast.kernels.posterior import triton_impl as posterior
    from ddgan_fast.kernels.q_sample import triton_impl as q_sample
    from ddgan_fast.kernels.template import triton_impl as template
    from ddgan_fast.kernels.upfirdn import triton_impl as fir

    def image(c, size, n=32, dtype=torch.bfloat16):
        return empty(n, c, size, size, dtype=dtype, order=order)

    big, small = image(256, 128), image(256, 64)
    taps, bias = empty(4, dtype=torch.float32), empty(32, 256)
    x, vector = image(64, 256), empty(32, 64)
    quarter = image(64, 128)
    statistics = empty(32, 16, dtype=torch.float32)
    t, seed = empty(32, dtype=torch.int64), empty(1, dtype=torch.int64)
    flip = empty(32, dtype=torch.bool)
    pixels = image(3, 256, dtype=torch.float32)
    table = empty(5, 4, dtype=torch.float32)
    images = torch.empty((32, 256, 256, 3), dtype=torch.uint8, device="meta")
    one = [1, 1]

    def resampled(up, both):
        return ada_fir.ada_group_norm_silu_resample(
            x, vector, vector, taps, 16, up, both, 1e-6, True
        )

    return {
        "identity": lambda: template.identity(big),
        "upfirdn2d down": lambda: fir.upfirdn2d(big, taps, one, [2, 2], [1] * 4, False, 1.0),
        "upfirdn2d up": lambda: fir.upfirdn2d(small, taps, [2, 2], one, [2, 1] * 2, False, 4.0),
        "upfirdn2d same": lambda: fir.upfirdn2d(big, taps, one, one, [2] * 4, False, 1.0),
        "bias_leaky_relu": lambda: act.bias_leaky_relu(big, bias, 0.2, 1.0),
        "bias_leaky_relu without bias": lambda: act.bias_leaky_relu(big, None, 0.2, 1.0),
        "bias_leaky_relu_grad": lambda: act.bias_leaky_relu_grad(big, big, 0.2, 1.0),
        "bias_leaky_relu_down": lambda: act.bias_leaky_relu_down(big, bias, taps, 0.2),
        "bias_leaky_relu_down_tangent": lambda: act.bias_leaky_relu_down_tangent(
            big, big, bias, taps, 0.2
        ),
        "bias_leaky_relu_down_grad": lambda: act.bias_leaky_relu_down_grad(
            small, big, bias, taps, 0.2
        ),
        "ada_group_norm_silu": lambda: ada.ada_group_norm_silu(x, vector, vector, 16, 1e-6, True),
        "ada_group_norm_silu_backward": lambda: ada.ada_group_norm_silu_backward(
            x, x, vector, vector, statistics, statistics, 16, 1e-6, True
        ),
        "ada_group_norm_silu_resample down": lambda: resampled(False, True),
        "ada_group_norm_silu_resample_backward": lambda: (
            ada_fir.ada_group_norm_silu_resample_backward(
                quarter, quarter, x, vector, vector, taps, statistics, statistics, 16, False,
                1e-6, True,
            )
        ),
        "ada_group_norm_silu_resample up": lambda: resampled(True, False),
        "sample_posterior": lambda: posterior.sample_posterior(
            pixels, pixels, t, table[:, :3], None, seed, t
        ),
        "q_sample_pair": lambda: q_sample.q_sample_pair(
            images, t, table, flip, None, None, seed, t
        ),
    }


def edges():
    """Calls whose sizes of 1, which Triton compiles in, or whose dtypes need care."""
    from ddgan_fast.kernels.ada_norm import triton_impl as ada
    from ddgan_fast.kernels.ada_norm_fir import triton_impl as ada_fir
    from ddgan_fast.kernels.bias_act import triton_impl as act
    from ddgan_fast.kernels.posterior import triton_impl as posterior
    from ddgan_fast.kernels.q_sample import triton_impl as q_sample
    from ddgan_fast.kernels.upfirdn import triton_impl as fir

    def e(*shape, dtype=torch.float32):
        return empty(*shape, dtype=dtype)

    def i(n):
        return e(n, dtype=torch.int64)

    double = torch.float64
    pixel, one = e(1, 1, 1, 1), e(1, 1)
    rows, wide = e(4, 8), e(1, 24, 5, 3, dtype=double)
    vector, statistics = e(1, 24), e(1, 8, dtype=double)
    yield lambda: ada.ada_group_norm_silu(rows, rows, rows, 2, 1e-6, True)
    yield lambda: ada.ada_group_norm_silu(pixel, one, one, 1, 1e-6, False)
    yield lambda: ada.ada_group_norm_silu(wide, vector, vector, 8, 1e-6, True)
    yield lambda: ada.ada_group_norm_silu_backward(
        rows, rows, rows, rows, e(4, 2), e(4, 2), 2, 1e-6, True
    )
    yield lambda: ada.ada_group_norm_silu_backward(
        pixel, pixel, one, one, one, one, 1, 1e-6, True
    )
    yield lambda: ada.ada_group_norm_silu_backward(
        wide, wide, vector, vector, statistics, statistics, 8, 1e-6, True
    )
    for up in (True, False):
        for k in (1, 4, 5):
            for given in ((pixel if up else e(1, 1, 2, 2), one, one, e(k), 1), (
                wide, vector, vector, e(k), 8
            )):
                yield lambda given=given, up=up: ada_fir.ada_group_norm_silu_resample(
                    *given, up, not up, 1e-6, True
                )
    points = e(512, 2)
    yield lambda: posterior.sample_posterior(
        points, points, i(512), e(8, 3), None, i(1), None
    )
    yield lambda: posterior.sample_posterior(one, one, i(1), e(1, 3), one, None, None)
    yield lambda: q_sample.q_sample_pair(
        points, i(512), e(8, 4), None, None, None, i(1), i(512)
    )
    yield lambda: q_sample.q_sample_pair(
        pixel, i(1), e(1, 4), None, pixel, pixel, None, None
    )
    for k, up, down, padding in ((4, 2, 1, 2), (1, 1, 1, 0), (2, 1, 2, 1), (5, 3, 2, 4)):
        for x in (pixel, e(1, 3, 2, 2, dtype=double)):
            for taps in (e(k), e(k, k)):
                yield lambda x=x, taps=taps, up=up, down=down, padding=padding: fir.upfirdn2d(
                    x, taps, [up] * 2, [down] * 2, [padding] * 4, False, 4.0
                )
    yield lambda: act.bias_leaky_relu(e(4, 3), e(4, 3), 1.3, 1.0)
    yield lambda: act.bias_leaky_relu(pixel, e(1), 0.0, 2.0)
    yield lambda: act.bias_leaky_relu_down(e(1, 1, 2, 2), one, e(5), 0.2)


def main(arch, layout, which):
    """Print one JSON row per kernel."""
    order = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    ops = set()
    for case, call in cases(order).items():
        op = case.split()[0]
        if which == "main" and op in ops:
            continue
        ops.add(op)
        for kernel, sass in compiled(call, arch, SMALL if which == "main" else ()):
            row = {"case": case, "kernel": kernel, "small": kernel in SMALL, **counts(sass)}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "edges":
        print(sum(len(compiled(call, 90)) for call in edges()))
    else:
        main(int(sys.argv[1]), *sys.argv[2:])
