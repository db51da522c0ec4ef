"""The subcommands of ``ddgan-fast``: each reads its arguments, calls the package and prints."""

from __future__ import annotations

import argparse
import itertools
import textwrap
from typing import NoReturn


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Fills paragraphs to the terminal's width, and leaves indented lines as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = []
        for plain, lines in itertools.groupby(text.splitlines(), _is_plain):
            block = "\n".join(lines)
            parts.append(textwrap.fill(block, width) if plain else block)
        return textwrap.indent("\n".join(parts), indent)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are sentences raised as ValueError."""

    def __init__(self, command: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=f"ddgan-fast {command}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_Formatter,
        )

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise ValueError(f"{message}; see {self.prog} --help.")


def _is_plain(line: str) -> bool:
    return bool(line) and not line[0].isspace()
