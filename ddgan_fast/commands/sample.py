"""``ddgan-fast sample``: images or points from a checkpoint."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import Parser
from .arguments import add_class, add_device, add_guidance, add_sampler, add_weights, guidance_of

if TYPE_CHECKING:
    import numpy as np

    from ..sampling import LoadedGenerator

_EPILOG = """\
The output's suffix chooses its form:
  .png        a grid of images, or a scatter picture of points
  none        a folder of PNGs: 000000.png, 000001.png, ...
  .zip        a zip of such PNGs
  .npz, .npy  an array: uint8 [n, H, W, C] (.npz only) or points [n, 2]; in .npz it is arr_0

One seed always gives the same samples, whatever the batch.

examples:
  ddgan-fast sample runs/digits -n 100 -o digits.png
  ddgan-fast sample runs/digits_ddpm -n 100 -o ddpm.png --sampler dpmpp --steps 20
  ddgan-fast sample runs/digits_classes -n 100 -o classes.png --class all --guidance 2
  ddgan-fast sample netG_1200.pth --recipe cifar10 -n 50000 -o cifar10.npz
"""


def main(argv: Sequence[str]) -> int:
    """Load, draw, write."""
    arguments = _parse(argv)
    from .. import points
    from ..guidance import grid_columns
    from ..images import check_output, write_images
    from ..sampling import generate, load_generator
    from ..training.parallel import choose_device

    output = Path(arguments.output)
    if output.suffix != ".npy":  # points only, and only the checkpoint knows what it makes
        check_output(output)
    device = choose_device(arguments.device)
    model = load_generator(
        arguments.checkpoint,
        weights=arguments.weights,
        config=arguments.recipe,
        device=device,
    )
    makes_points = model.cfg.model.kind == "mlp"
    (points.check_output if makes_points else check_output)(output)
    guidance = guidance_of(arguments, model.cfg, device)
    began = time.perf_counter()
    batches = _with_progress(
        generate(
            model,
            arguments.n,
            seed=arguments.seed,
            batch_size=arguments.batch,
            engine=arguments.engine,
            precision=arguments.precision,
            sampler=arguments.sampler,
            steps=arguments.steps,
            eta=arguments.eta,
            guidance=guidance,
        ),
        arguments.n,
    )
    if makes_points:
        points.write_points(batches, output)
    else:
        classes = len(guidance.labels) if guidance else 0
        columns = arguments.columns or grid_columns(arguments.n, classes)
        write_images(batches, output, columns=columns)
    print(_summary(model, arguments, time.perf_counter() - began))
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("sample", "Draw samples from a checkpoint.", _EPILOG)
    parser.add_argument(
        "checkpoint",
        help="run directory, ema-*.safetensors, state-*.pt, or published netG_*.pth or content.pth",
    )
    parser.add_argument("-n", type=int, default=64, help="how many (default: 64)")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="see below")
    parser.add_argument("--seed", type=int, default=0, help="picks the samples (default: 0)")
    add_weights(parser)
    parser.add_argument("--batch", type=int, help="samples at once (default: what fits)")
    parser.add_argument(
        "--precision", default="fp32", help="fp32, tf32, bf16 or fp16 (default: fp32)"
    )
    parser.add_argument(
        "--engine", default="auto", help="graph (CUDA graphs), eager, or auto (default)"
    )
    add_sampler(parser)
    add_class(
        parser,
        "classes of the samples in turn: 3, or 0,1,2, or all (default: drawn uniformly)",
    )
    add_guidance(parser, "--classifier")
    add_device(parser)
    parser.add_argument("--columns", type=int, help="images per row of a grid")
    arguments = parser.parse_args(argv)
    for name in ("n", "batch", "columns"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            option = "-n" if name == "n" else f"--{name}"
            raise ValueError(f"{option} is {value}: it must be at least 1.")
    return arguments


def _with_progress(batches: Iterator[np.ndarray], n: int) -> Iterator[np.ndarray]:
    """The batches; in a terminal a bar shows how far they are."""
    if not sys.stderr.isatty():
        yield from batches
        return
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True, refresh_per_second=2)
    with bar as progress:
        task = progress.add_task("sampling", total=n)
        for batch in batches:
            progress.advance(task, len(batch))
            yield batch


def _summary(model: LoadedGenerator, arguments: argparse.Namespace, seconds: float) -> str:
    cfg = model.cfg.model
    n = arguments.n
    what = "points" if cfg.kind == "mlp" else f"{cfg.image_size}x{cfg.image_size} images"
    step = "" if model.step is None else f", step {model.step:,}"
    return (
        f"{n:,} {what if n > 1 else what.removesuffix('s')} in {arguments.output} "
        f"({model.source.name}{step}, seed {arguments.seed}, {seconds:.1f} s on {model.device})."
    )
