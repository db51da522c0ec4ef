"""``ddgan-fast edit``: change images, fill them in, walk between samples, draw other sizes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import Parser
from .arguments import add_class, add_device, add_weights

if TYPE_CHECKING:
    import numpy as np

    from ..sampling import LoadedGenerator

_OUTPUTS = """\
The output's suffix chooses its form:
  .png   a grid          .gif   an animation       .zip   a zip of PNGs
  .npz   an array        none   a folder of PNGs: 000000.png, 000001.png, ...

An image is resized and cropped to the model's size, as training data are. One seed always gives
the same results, whatever the batch.
"""
_KINDS = {
    "noise": "add noise up to a step, and denoise from there",
    "stroke": "turn a coarse painting, or strokes on a photograph, into an image",
    "inpaint": "fill in what a mask covers; all other pixels stay",
    "interpolate": "walk from sample to sample",
    "resize": "samples of another size than the model was trained for",
    "steps": "what sampling passes through: x_T, then predicted x_0 and x_t of each step",
}
_EXAMPLES = {
    "noise": "runs/digits three.png -o out.png --strength 1,2,3,4 -n 8 --with-input",
    "stroke": "runs/digits strokes.png --on three.png -o out.png --strength 3 -n 8",
    "inpaint": "runs/digits three.png --mask lower.png -o out.png -n 8 --with-input",
    "interpolate": "runs/digits --samples 0,1,2,0 --frames 12 -o walk.gif",
    "resize": "runs/digits --size 8x24 -n 12 -o wide.png",
    "steps": "runs/digits -n 8 -o steps.gif",
}


def main(argv: Sequence[str]) -> int:
    """Edit, write, say what was written."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0 if argv else 2
    kind, *rest = argv
    if kind not in _KINDS:
        from ..options import unknown

        raise ValueError(unknown("edit", kind, _KINDS, f"edits are {', '.join(_KINDS)}"))
    arguments = _parse(kind, rest)
    output = Path(arguments.output)
    from ..images import check_output
    from ..sampling import load_generator
    from ..training.parallel import choose_device

    if output.suffix.lower() != ".gif":
        check_output(output, ".gif for an animation, ")
    elif output.is_dir():
        raise ValueError(f"{output} is a folder: name a file for the animation.")
    model = load_generator(
        arguments.checkpoint,
        weights=arguments.weights,
        config=arguments.recipe,
        device=choose_device(arguments.device),
    )
    model.label = _label(arguments.classes, model)
    rows = _EDITS[kind](model, arguments)
    count = _write(rows, output, arguments, by_column=kind == "steps")
    print(f"{count:,} images in {output} ({model.source.name}, seed {arguments.seed}).")
    return 0


def _overview() -> str:
    lines = ["usage: ddgan-fast edit KIND CHECKPOINT ... -o OUT", ""]
    lines += [f"  {name:<13}{what}" for name, what in _KINDS.items()]
    return "\n".join([*lines, "", "ddgan-fast edit KIND --help says more."])


def _parse(kind: str, argv: Sequence[str]) -> argparse.Namespace:
    example = f"\nexample:\n  ddgan-fast edit {kind} {_EXAMPLES[kind]}\n"
    meaning = _KINDS[kind]
    parser = Parser(f"edit {kind}", f"{meaning[0].upper()}{meaning[1:]}.", _OUTPUTS + example)
    parser.add_argument("checkpoint", help="as for ddgan-fast sample")
    takes_image = kind in ("noise", "stroke", "inpaint")
    if takes_image:
        parser.add_argument("image", help="the painting" if kind == "stroke" else "the image")
        parser.add_argument(
            "--with-input", action="store_true", help="put the input in front of the results"
        )
    if kind in ("noise", "stroke"):
        parser.add_argument(
            "--strength",
            type=_numbers,
            help="noise level, or several (1,2,3): 0 keeps all, T nothing (default: T // 2)",
        )
    if kind == "stroke":
        parser.add_argument("--on", metavar="IMAGE", help="what transparent parts show")
    if kind == "inpaint":
        parser.add_argument(
            "--mask", required=True, help="picture of the image's size; bright: to be filled in"
        )
    if kind == "interpolate":
        parser.add_argument(
            "--samples", type=_numbers, default=[0, 1], help="their numbers (default: 0,1)"
        )
        parser.add_argument("--frames", type=int, default=8, help="on each way (default: 8)")
        parser.add_argument(
            "--move", default="both", help="both, x (the latents z stay) or z (default: both)"
        )
    if kind == "resize":
        parser.add_argument("--size", type=_size, required=True, metavar="HxW", help="in pixels")
    if kind != "interpolate":
        parser.add_argument("-n", type=int, default=8, help="how many (default: 8)")
    _add_common(parser)
    arguments = parser.parse_args(argv)
    for name in ("n", "batch", "columns"):
        value = getattr(arguments, name, None)
        if value is not None and value < 1:
            option = "-n" if name == "n" else f"--{name}"
            raise ValueError(f"{option} is {value}: it must be at least 1.")
    if not 0.01 <= arguments.seconds <= 60:
        raise ValueError(f"--seconds is {arguments.seconds}: it must be from 0.01 to 60.")
    return arguments


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="see below")
    parser.add_argument("--seed", type=int, default=0, help="picks the noise (default: 0)")
    add_weights(parser)
    parser.add_argument("--batch", type=int, help="images at once (default: what fits)")
    add_class(parser, "of what is drawn, for a model with classes (default: any)")
    add_device(parser)
    parser.add_argument("--columns", type=int, help="images per row of a grid")
    parser.add_argument(
        "--seconds", type=float, default=0.2, help="per frame of a .gif (default: 0.2)"
    )


def _label(text: str | None, model: LoadedGenerator) -> int | None:
    """The one class that is drawn; None for any."""
    if text is None:
        return None
    from ..guidance import Guidance, bind

    if not text.isdecimal():
        raise ValueError(f"--class is {text!r}: an edit draws one class, named by its number.")
    bind(model.cfg, Guidance((int(text),)), model.device)
    return int(text)


def _numbers(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 0,1,2")
    return [int(part) for part in text.split(",")]


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 256x512")
    return int(found[1]), int(found[2])


def _noise(model: LoadedGenerator, arguments: argparse.Namespace) -> np.ndarray:
    from ..editing.pictures import read_image

    cfg = model.cfg.model
    image = read_image(arguments.image, cfg.image_size, cfg.num_channels)
    return _vary(model, arguments, image, None)


def _stroke(model: LoadedGenerator, arguments: argparse.Namespace) -> np.ndarray:
    from ..editing.pictures import read_strokes

    cfg = model.cfg.model
    strokes, painted = read_strokes(
        arguments.image, arguments.on, cfg.image_size, cfg.num_channels
    )
    return _vary(model, arguments, strokes, painted)


def _vary(
    model: LoadedGenerator,
    arguments: argparse.Namespace,
    image: np.ndarray,
    painted: np.ndarray | None,
) -> np.ndarray:
    """A row for each strength."""
    import numpy as np

    from ..editing import strokes_to_image

    n = arguments.n
    masks = None if painted is None else np.stack([painted] * n)
    strengths = arguments.strength or [max(1, model.cfg.model.num_timesteps // 2)]
    rows = [
        strokes_to_image(
            model,
            np.stack([image] * n),
            strength,
            painted=masks,
            seed=arguments.seed,
            batch_size=arguments.batch,
        )
        for strength in strengths
    ]
    shown = [image] if arguments.with_input else []
    return np.stack([np.stack([*shown, *row]) for row in rows])


def _inpaint(model: LoadedGenerator, arguments: argparse.Namespace) -> np.ndarray:
    import numpy as np

    from ..editing import inpaint
    from ..editing.pictures import read_image, read_mask

    cfg, n = model.cfg.model, arguments.n
    image = read_image(arguments.image, cfg.image_size, cfg.num_channels)
    missing = read_mask(arguments.mask, arguments.image, cfg.image_size)
    filled = inpaint(
        model,
        np.stack([image] * n),
        np.stack([missing] * n),
        seed=arguments.seed,
        batch_size=arguments.batch,
    )
    hole = np.where(missing[..., None], np.uint8(128), image)
    shown = [image, hole] if arguments.with_input else []
    return np.stack([*shown, *filled])[None]


def _interpolate(model: LoadedGenerator, arguments: argparse.Namespace) -> np.ndarray:
    from ..editing import interpolate

    images = interpolate(
        model,
        arguments.samples,
        arguments.frames,
        move=arguments.move,
        seed=arguments.seed,
        batch_size=arguments.batch,
    )
    return images[None]


def _resize(model: LoadedGenerator, arguments: argparse.Namespace) -> np.ndarray:
    from ..editing import sample_at

    images = sample_at(
        model, arguments.n, *arguments.size, seed=arguments.seed, batch_size=arguments.batch
    )
    return images[None]


def _steps(model: LoadedGenerator, arguments: argparse.Namespace) -> np.ndarray:
    from ..editing import trajectories

    return trajectories(model, arguments.n, seed=arguments.seed, batch_size=arguments.batch)


_EDITS: dict[str, Callable[[LoadedGenerator, argparse.Namespace], np.ndarray]] = {
    "noise": _noise,
    "stroke": _stroke,
    "inpaint": _inpaint,
    "interpolate": _interpolate,
    "resize": _resize,
    "steps": _steps,
}


def _write(
    rows: np.ndarray, output: Path, arguments: argparse.Namespace, by_column: bool
) -> int:
    """Write uint8 [R, S, H, W, C]; an animation shows a column at a time, or image after image."""
    import numpy as np

    from ..editing.pictures import write_gif
    from ..images import grid, readable_scale, write_images

    images = rows.reshape(-1, *rows.shape[2:])
    if output.suffix.lower() != ".gif":
        columns = arguments.columns or (rows.shape[1] if len(rows) > 1 or by_column else None)
        return write_images(images, output, columns=columns)
    if by_column and len(rows) > 1:
        scale = readable_scale(min(rows.shape[2:4]))
        stages = rows.swapaxes(0, 1)
        images = np.stack([grid(x, arguments.columns, scale=scale, smooth=True) for x in stages])
    write_gif(images, output, arguments.seconds)
    return rows.shape[0] * rows.shape[1]
