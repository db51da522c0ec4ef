"""What the kernel tests share: inputs in every memory order, and the tolerance."""

import torch

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("nchw", "channels_last", "sliced", "transposed", "expanded")

# Below this an error against float64 is rounding, whatever plain torch happens to make.
FLOOR = {
    torch.float64: 1e-13,
    torch.float32: 1e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


def randn(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def laid_out(x, layout):
    """The values of x [N, C, H, W] in another memory order ("expanded": rows of equal values)."""
    if layout == "nchw":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        wide = torch.full((*x.shape[:2], x.shape[2] + 2, 2 * x.shape[3]), float("nan")).to(x.dtype)
        view = wide[:, :, 1:-1, ::2]
        return view.copy_(x)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    assert layout == "expanded"
    return x[:1].expand_as(x)


def expected_order(x):
    """The memory order a result must have: channels_last for such inputs, else NCHW."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last and not x.is_contiguous() else torch.contiguous_format


def assert_as_good_as_plain(got, truth, plain, dtype):
    """Errors against float64: at most twice those of plain torch in the same dtype, plus a floor.

    Both the largest error and the l2 norm of all errors count.
    """
    truth = torch.as_tensor(truth)
    assert got.shape == truth.shape
    assert torch.isfinite(got).all()
    scale = truth.abs().max().item() if truth.numel() else 1.0
    error, allowed = got.double() - truth, plain.double() - truth
    if truth.numel():
        limit = 2 * allowed.abs().max().item() + FLOOR[dtype] * scale
        assert error.abs().max().item() <= limit
    assert error.norm() <= 2 * allowed.norm() + FLOOR[dtype] * truth.norm() + 1e-300
