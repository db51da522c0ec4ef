"""``ddgan-fast pull``: a generator from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence

from . import Parser

_EPILOG = """\
example:
  ddgan-fast pull OWNER/ddgan-digits digits.safetensors
"""


def main(argv: Sequence[str]) -> int:
    """Download, check, write."""
    parser = Parser(
        "pull",
        "Download a generator that ddgan-fast push uploaded to the Hugging Face Hub.\n"
        "Needs ddgan_fast[hub]; private ones also a login (hf auth login).",
        _EPILOG,
    )
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="repository")
    parser.add_argument("output", metavar="OUT", help="file ending in .safetensors or .pth")
    parser.add_argument("--revision", help="branch, tag or commit (default: the newest)")
    arguments = parser.parse_args(argv)
    from ..hub import pull

    model = pull(arguments.repo_id, arguments.output, revision=arguments.revision)
    step = "" if not model.step else f", step {model.step:,}"
    print(f"{arguments.repo_id} -> {arguments.output} ({model.cfg.preset}{step}).")
    return 0
