"""Edits images with any image model: noise and denoise, strokes, inpainting, interpolation, sizes.

As in sampling, all noise follows from (seed, sample number): result k is the same, up to rounding,
in any batch split, and where nothing of an image is kept it is sample k of
``ddgan_fast.sampling.generate``.
"""

from .edits import (
    inpaint,
    interpolate,
    noise_then_denoise,
    sample_at,
    strokes_to_image,
    trajectories,
)
from .loop import check_size
from .noise import MOVES, slerp

__all__ = [
    "MOVES",
    "check_size",
    "inpaint",
    "interpolate",
    "noise_then_denoise",
    "sample_at",
    "slerp",
    "strokes_to_image",
    "trajectories",
]
