"""Options that several commands share."""

from __future__ import annotations

import argparse


def add_weights(parser: argparse.ArgumentParser) -> None:
    """Which generator of a checkpoint is meant."""
    parser.add_argument(
        "--weights", choices=("ema", "raw"), default="ema", help="averaged or raw (default: ema)"
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="preset or YAML file that a netG_*.pth was trained with; other files know theirs",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where a command computes."""
    parser.add_argument("--device", help="cpu, cuda or cuda:0 (default: a GPU if there is one)")


def add_sampler(parser: argparse.ArgumentParser) -> None:
    """How a DDPM samples."""
    parser.add_argument(
        "--sampler",
        metavar="NAME",
        help="of a DDPM: ancestral (all T steps, default), ddim, dpmpp (DPM-Solver++), or heun "
        "(of the probability-flow ODE)",
    )
    parser.add_argument("--steps", type=int, help="of a DDPM: steps of the sampler (default: T)")
    parser.add_argument("--eta", type=float, help="of ddim: noise, 0 (default) to 1")
