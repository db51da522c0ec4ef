"""``ddgan-fast convert``: published checkpoints and training states to ours, and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import Parser
from .arguments import add_weights

_EPILOG = """\
examples:
  ddgan-fast convert netG_1200.pth cifar10.safetensors --recipe cifar10
  ddgan-fast convert content.pth raw.safetensors --weights raw
  ddgan-fast convert runs/cifar10 netG_0.pth
  ddgan-fast convert content.pth runs/imported       a run that train goes on with:
  ddgan-fast train runs/imported/config.yaml --data PATH
  ddgan-fast convert runs/imported out/content.pth   and back
"""


def main(argv: Sequence[str]) -> int:
    """Read any checkpoint and write it in the format that the output's suffix names."""
    parser = Parser(
        "convert",
        "Write a generator as a snapshot of ddgan_fast (.safetensors, with its configuration\n"
        "inside) or in the published format (.pth, like netG_*.pth); or a whole training state:\n"
        "content.pth to a run directory, and a run to content*.pth. Tensors keep every bit.",
        _EPILOG,
    )
    parser.add_argument(
        "input",
        help="published netG_*.pth or content.pth, or our ema-*.safetensors, state-*.pt or run "
        "directory",
    )
    parser.add_argument(
        "output", help="file ending in .safetensors or .pth, or a new folder for a run"
    )
    add_weights(parser)
    arguments = parser.parse_args(argv)
    output = Path(arguments.output)
    to_run = not output.suffix or output.is_dir()
    if to_run or (output.suffix == ".pth" and output.name.startswith("content")):
        if arguments.recipe or arguments.weights == "raw":
            raise ValueError(
                "--recipe and --weights raw are for a single generator, and a training state holds "
                "its configuration and both kinds of weights: leave them out."
            )
        return _convert_run(arguments.input, output, to_run)
    from ..export import check_target, save_generator
    from ..sampling import load_generator

    check_target(arguments.output)
    model = load_generator(arguments.input, weights=arguments.weights, config=arguments.recipe)
    save_generator(model, arguments.output)
    count = sum(parameter.numel() for parameter in model.network.parameters())
    size = Path(arguments.output).stat().st_size / 1e6
    print(f"{model.source} -> {arguments.output}: {count:,} parameters, {size:,.1f} MB.")
    return 0


def _convert_run(source: str, output: Path, to_run: bool) -> int:
    """A whole training state: published to ours, or ours to published."""
    from ..resume_published import export_run, import_run

    done = (import_run if to_run else export_run)(source, output)
    print(f"{source} -> {done.path}: the training state of step {done.step:,}.")
    for note in done.notes:
        print(note)
    if to_run:
        print(f"Go on with it: ddgan-fast train {output / 'config.yaml'} --data PATH")
    return 0
