"""From the bytes a loader delivers to what the networks take, on the device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_model_input(
    images: Tensor,
    flip: Tensor | None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = True,
) -> Tensor:
    """Mirrors, scales to [-1, 1] and lays out a batch.

    Args:
        images: uint8 [N, H, W, C], or floating-point points [N, D], which only change their type.
        flip: bool [N], true where an image is mirrored left to right, or None.
        dtype: Type of the result; the scaling itself is done in float32.
        channels_last: Memory order of the result.

    Returns:
        [N, C, H, W] (points: [N, D]).

    Raises:
        ValueError: If ``images`` is neither.
    """
    if images.ndim == 2 and images.is_floating_point():
        return images.to(dtype)
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ValueError(
            f"Expected uint8 images [N, H, W, C] or points [N, D], "
            f"got {images.dtype} of shape {list(images.shape)}."
        )
    if flip is not None:  # while a value is one byte
        images = torch.where(flip[:, None, None, None], images.flip(2), images)
    x = images.permute(0, 3, 1, 2).to(torch.float32).mul_(1 / 127.5).sub_(1).to(dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return x.contiguous(memory_format=layout)
