"""The README's comparisons with the baselines: ``python -m benchmarks.trilemma_table``.

They are those of the reports in ``benchmarks/results/trilemma-*/report.json``, which ``ddgan-fast
trilemma`` wrote.
"""

from __future__ import annotations

import json
from pathlib import Path

from ddgan_fast import tables

from . import readme

BEGIN = "<!-- written by `python -m benchmarks.trilemma_table` -->"
END = "<!-- end of the comparisons -->"
RESULTS = Path(__file__).parent / "results"


def written(results: Path = RESULTS) -> str:
    """All comparisons in Markdown, each with its conditions and pictures."""
    return "\n".join(_section(path) for path in sorted(results.glob("trilemma-*/report.json")))


def _section(path: Path) -> str:
    report = json.loads(path.read_text())
    folder = f"benchmarks/results/{path.parent.name}"
    seeds = ", ".join(map(str, report["seeds"]))
    conditions = (
        f"**{report['preset']}**, {report['budget_s']:g} s of training each, seeds {seeds} "
        f"(median and range), {report['n']:,} samples; {report['machine']}, {report['device']}. "
        f"Command: `{report['command']}` ([report]({folder}/report.md)).\n"
    )
    pictures = (
        f"![samples side by side]({folder}/samples.png)\n\n"
        f"![quality against the time of sampling and of training]({folder}/quality.png)\n"
    )
    return "\n".join([conditions, tables.markdown(report["headings"], report["table"]), pictures])


def main() -> None:
    """Write them into README.md."""
    readme.write(BEGIN, END, written())


if __name__ == "__main__":
    main()
