"""``ddgan-fast convert``: published checkpoints to ours, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import Parser

_EPILOG = """\
examples:
  ddgan-fast convert netG_1200.pth cifar10.safetensors --recipe cifar10
  ddgan-fast convert content.pth raw.safetensors --weights raw
  ddgan-fast convert runs/cifar10 netG_0.pth
"""


def main(argv: Sequence[str]) -> int:
    """Read any checkpoint and write it in the format that the output's suffix names."""
    parser = Parser(
        "convert",
        "Write a generator as a snapshot of ddgan_fast (.safetensors, with its configuration\n"
        "inside) or in the published format (.pth, like netG_*.pth). Tensors keep every bit.",
        _EPILOG,
    )
    parser.add_argument(
        "input",
        help="published netG_*.pth or content.pth, or our ema-*.safetensors, state-*.pt or run "
        "directory",
    )
    parser.add_argument("output", help="file ending in .safetensors or .pth")
    parser.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="preset or YAML file that a netG_*.pth was trained with; other files know theirs",
    )
    parser.add_argument(
        "--weights", choices=("ema", "raw"), default="ema", help="averaged or raw (default: ema)"
    )
    arguments = parser.parse_args(argv)
    from ..export import check_target, save_generator
    from ..sampling import load_generator

    check_target(arguments.output)
    model = load_generator(arguments.input, weights=arguments.weights, config=arguments.recipe)
    save_generator(model, arguments.output)
    count = sum(parameter.numel() for parameter in model.network.parameters())
    size = Path(arguments.output).stat().st_size / 1e6
    print(f"{model.source} -> {arguments.output}: {count:,} parameters, {size:,.1f} MB.")
    return 0
