"""Tables inside README.md that programs write, each between a pair of marker lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ddgan_fast.files import atomic_open

README = Path(__file__).resolve().parent.parent / "README.md"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def renewed(text: str, begin: str, end: str, written: str) -> str:
    """A text with what lies between two markers replaced.

    Raises:
        ValueError: it has no such markers.
    """
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not (first and last):
        raise ValueError(f"README.md must have the lines {begin} and {end} around the table.")
    return f"{before}{begin}\n\n{written}\n{end}{after}"


def write(begin: str, end: str, written: str) -> None:
    """Replace what lies between two markers in README.md."""
    text = renewed(README.read_text(), begin, end, written)
    with atomic_open(README) as file:
        file.write(text.encode())
