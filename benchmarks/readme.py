"""Tables inside README.md and other pages that programs write, each between two marker lines.

``python -m benchmarks.readme`` writes all of them anew, from ``results/`` and from the code.
"""

from __future__ import annotations

from pathlib import Path

from ddgan_fast.files import atomic_open

README = Path(__file__).resolve().parent.parent / "README.md"


def renewed(text: str, begin: str, end: str, written: str, page: str = "README.md") -> str:
    """A text with what lies between two markers replaced.

    Raises:
        ValueError: it has no such markers.
    """
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not (first and last):
        raise ValueError(f"{page} must have the lines {begin} and {end} around the table.")
    return f"{before}{begin}\n\n{written}\n{end}{after}"


def write(begin: str, end: str, written: str, page: Path = README) -> None:
    """Replace what lies between two markers in README.md or another page."""
    text = renewed(page.read_text(), begin, end, written, page.name)
    with atomic_open(page) as file:
        file.write(text.encode())


def main() -> None:
    """Write every table."""
    from . import (
        cpu_tables,
        memory_table,
        objectives,
        op_table,
        planted,
        step_table,
        trilemma_table,
    )

    write(*cpu_tables.STEP, cpu_tables.step())
    write(*cpu_tables.LOADERS, cpu_tables.loaders())
    for module in (memory_table, op_table, step_table, trilemma_table):
        module.main()
    objectives.main([])
    planted.main([])


if __name__ == "__main__":
    main()
