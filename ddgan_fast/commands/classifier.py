"""``ddgan-fast classifier``: train what tells the modes of StackedMNIST and other IDX sets."""

from __future__ import annotations

import time
from collections.abc import Sequence

from . import Parser
from .arguments import add_device

_EPILOG = """\
examples:
  ddgan-fast classifier fashion-mnist/ -o classifier.safetensors
  ddgan-fast evaluate runs/stacked_mnist --extractor idx --classifier classifier.safetensors \\
      --metrics modes,fid,pr -n 26000
"""


def main(argv: Sequence[str]) -> int:
    """Train, write, say how good it is."""
    parser = Parser(
        "classifier",
        "Train a small classifier on the labelled grey images of an IDX set (MNIST and the like;\n"
        "a few minutes on a CPU core), and measure it on the set's test split, or on a tenth held\n"
        "out. `evaluate --extractor idx` counts the modes of samples by it.",
        _EPILOG,
    )
    parser.add_argument("path", help="folder of the IDX files, or the file of the images")
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="file ending in .safetensors"
    )
    parser.add_argument("--epochs", type=int, help="passes over the images (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: 0)")
    add_device(parser)
    arguments = parser.parse_args(argv)

    from ..evaluation.idx_classifier import STACKED_CLASSES, check_target, save_classifier
    from ..evaluation.idx_training import EPOCHS, train_classifier
    from ..training.parallel import choose_device

    check_target(arguments.output)
    began = time.perf_counter()
    classifier = train_classifier(
        arguments.path,
        epochs=EPOCHS if arguments.epochs is None else arguments.epochs,
        seed=arguments.seed,
        device=choose_device(arguments.device),
        say=print,
    )
    save_classifier(classifier, arguments.output)
    about = classifier.about
    print(
        f"{arguments.output}: {about.classes} classes of {about.size}x{about.size} images, "
        f"{about.accuracy:.2%} of {about.tested_on}, right, after "
        f"{time.perf_counter() - began:.0f} s. SHA-256 {classifier.sha256[:8]}."
    )
    if about.classes <= STACKED_CLASSES:
        print(
            f"Stacked by threes, twice each, they show {about.stacked_modes:,} of "
            f"{about.classes**3:,} modes, and a KL from even ones of {about.stacked_kl:.4f}."
        )
    return 0
