"""The command ``ddgan-fast``: finds the subcommand, and turns errors into one line each."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": ("ddgan_fast.commands.train", "train; the same command again goes on with the run"),
    "sample": ("ddgan_fast.commands.sample", "draw images from a checkpoint, ours or published"),
    "watch": ("ddgan_fast.commands.watch", "follow a run in the terminal"),
    "evaluate": ("ddgan_fast.commands.evaluate", "FID, KID, precision, recall, ..., and speed"),
    "trilemma": ("ddgan_fast.commands.trilemma", "a DDGAN against DDPM and GAN in equal time"),
    "classifier": ("ddgan_fast.commands.classifier", "train what tells modes of images apart"),
    "edit": ("ddgan_fast.commands.edit", "change images, fill them in, walk between samples"),
    "prepare": ("ddgan_fast.commands.prepare", "turn images of any kind into fast shards"),
    "convert": ("ddgan_fast.commands.convert", "published checkpoints to ours, and back"),
    "push": ("ddgan_fast.commands.push", "upload a generator to the Hugging Face Hub"),
    "pull": ("ddgan_fast.commands.pull", "download one from there"),
    "presets": ("ddgan_fast.commands.presets", "list the configurations that come along"),
    "doctor": ("ddgan_fast.commands.doctor", "what this machine can do, and why not more"),
    "demo": ("ddgan_fast.demo", "learn handwritten digits in a few minutes"),
    "profile": ("ddgan_fast.commands.profile", "where a training step's time and memory go"),
    "bench": ("ddgan_fast.benchmarks.cli", "time training steps, sampling, ops and loaders"),
    "report": ("ddgan_fast.benchmarks.report.command", "measurements and runs as one HTML file"),
}
"""Name of each subcommand: the module whose ``main(argv)`` runs it, and what it does."""

_BAD_INPUT = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
)
_SENTENCES = (ValueError, RuntimeError, ImportError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: what follows ``ddgan-fast``; default: this process's arguments.

    Returns:
        Exit code: 0; 1 when the work failed; 2 for bad input; 130 after Ctrl-C. Errors that are
        not the user's propagate, and with DDGAN_FAST_DEBUG=1 all do.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except SystemExit as error:  # from --help
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        _complain("interrupted.")
        return 130
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None or os.environ.get("DDGAN_FAST_DEBUG", "") not in ("", "0"):
            raise
        _complain(sentence)
        return 2 if isinstance(error, _BAD_INPUT) else 1


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0 if arguments else 2
    name, *rest = arguments
    if name in ("-V", "--version"):
        from . import __version__

        print(f"ddgan-fast {__version__}")
        return 0
    if name not in COMMANDS:
        from .options import unknown

        listed = f"commands are {', '.join(COMMANDS)}"
        raise ValueError(unknown("command", name, COMMANDS, listed))
    return importlib.import_module(COMMANDS[name][0]).main(rest) or 0


def _overview() -> str:
    lines = [
        "usage: ddgan-fast COMMAND ...",
        "",
        "Train denoising diffusion GANs and sample from them.",
        "",
        *(f"  {name:<12}{what}" for name, (_, what) in COMMANDS.items()),
        "",
        "ddgan-fast COMMAND --help says more. ddgan-fast --version prints the version.",
    ]
    return "\n".join(lines)


def _sentence(error: Exception) -> str | None:
    """What to tell the user; None for an error that is a bug or not ours to explain."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which may not be imported
        return (
            "the GPU's memory is full: let fewer images pass at once (train: --run.micro_batch, "
            "sample: --batch), or end other programs that use it."
        )
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{os.fspath(error.filename)}: {error.strerror}."
    if isinstance(error, OSError) or (isinstance(error, _SENTENCES) and _is_ours(error)):
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _is_ours(error: Exception) -> bool:
    """Whether code of this package raised it, so that its text is meant for the user."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith(
        "ddgan_fast"
    )


def _complain(sentence: str) -> None:
    rank = os.environ.get("RANK", "0")
    where = "" if rank == "0" else f" [rank {rank}]"
    end = "" if sentence.endswith((".", "!", "?")) else "."
    print(f"ddgan-fast:{where} {sentence}{end}", file=sys.stderr, flush=True)
