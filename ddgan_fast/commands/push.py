"""``ddgan-fast push``: a generator to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence

from . import Parser
from .arguments import add_weights

_EPILOG = """\
example:
  ddgan-fast push runs/digits OWNER/ddgan-digits --private
"""


def main(argv: Sequence[str]) -> int:
    """Load, upload, print the address."""
    parser = Parser(
        "push",
        "Upload a generator to the Hugging Face Hub: model.safetensors, config.yaml and a model\n"
        "card to be completed. Needs ddgan_fast[hub] and a login (hf auth login).",
        _EPILOG,
    )
    parser.add_argument("checkpoint", help="as for ddgan-fast sample")
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="repository; made when absent")
    parser.add_argument("--private", action="store_true", help="let only the owner see it")
    add_weights(parser)
    arguments = parser.parse_args(argv)
    from ..hub import push
    from ..sampling import load_generator

    model = load_generator(
        arguments.checkpoint, weights=arguments.weights, config=arguments.recipe
    )
    address = push(
        model, arguments.repo_id, private=arguments.private, weights=arguments.weights
    )
    print(f"{model.source} -> {address}: complete its model card there.")
    return 0
