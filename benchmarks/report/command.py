"""``ddgan-fast report``: gathers results and runs into one HTML file."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import ddgan_fast
from ddgan_fast.commands import Parser
from ddgan_fast.files import atomic_open

from . import charts, comparisons, ops, origins, profiles, runs, steps
from .html import Html, join, section, tag
from .sources import Results, read_results
from .style import page

RESULTS = Path(__file__).resolve().parent.parent / "results"

_EPILOG = """\
The file needs nothing beside it: no network, no other files. Chapters without data are left out.
Diagrams need matplotlib (pip install 'ddgan_fast[demo]').

examples:
  ddgan-fast report
  ddgan-fast report --run runs/digits --run runs/cifar10 -o digits.html
  ddgan-fast report --results results/ -o gpu.html
"""

_CHAPTERS = (
    ("headline", "Headline", steps.headline),
    ("steps", "Training steps", steps.steps),
    ("ablation", "What each part is worth", steps.ablation),
    ("kernels", "Ops", ops.kernels),
    ("sampling", "Sampling", steps.sampling),
    ("loaders", "Loaders", ops.loaders),
    ("scaling", "Many GPUs", ops.scaling),
    ("profiles", "Where the time of a step goes", profiles.profiles),
    ("methods", "Against other methods", comparisons.methods),
    ("seeds", "Do the fast ways train alike?", comparisons.seeds),
    ("others", "Other results", ops.others),
)
_LAST = (
    ("suite", "The GPU suite", origins.suites),
    ("environment", "Where the numbers come from", origins.environment),
    ("unmeasured", "Not measured yet", origins.unmeasured),
)


def main(argv: Sequence[str]) -> int:
    """Gather and write."""
    arguments = _parse(argv)
    output = Path(arguments.output)
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output: there is no folder {output.parent}.")
    results = read_results(Path(arguments.results))
    found = [runs.read_run(Path(path)) for path in arguments.run or ()]
    text = report(results, found, shlex.join(["ddgan-fast", "report", *argv]))
    with atomic_open(output) as file:
        file.write(text.encode())
    for problem in results.problems:
        print(problem)
    if not charts.available():
        print(charts.MISSING)
    print(f"Wrote {output}: {len(text) / 1e6:,.2f} MB.")
    return 0


def report(results: Results, found: Sequence[runs.RunFiles], command: str) -> str:
    """The page.

    Args:
        results: measurements.
        found: runs.
        command: that made it, for the page to name.
    """
    contents = [(anchor, title, make(results)) for anchor, title, make in _CHAPTERS]
    contents += [
        (f"run{number}", f"Run {run.name}", runs.run_chapter(run))
        for number, run in enumerate(found, 1)
    ]
    contents += [(anchor, title, make(results)) for anchor, title, make in _LAST]
    chapters = [(a, title, section(a, title, content)) for a, title, content in contents if content]
    return page("ddgan_fast: what it measures", _lead(command), chapters)


def _lead(command: str) -> Html:
    now = datetime.now(UTC).isoformat(timespec="minutes")
    parts = [
        tag("p", "Training and sampling of denoising diffusion GANs. Every number here was read "
            "from a file of results or a run directory, and stands beside its conditions."),
        tag("p", f"ddgan_fast {ddgan_fast.__version__}, {now}, by ", tag("code", command), "."),
    ]
    if not charts.available():
        parts.append(tag("p", charts.MISSING))
    return tag("div", join(parts), class_="lead")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("report", "Put measurements and runs into one HTML file.", _EPILOG)
    add = parser.add_argument
    add("--run", action="append", metavar="RUN", help="a run directory; may be given again")
    add("--results", default=str(RESULTS), metavar="FOLDER",
        help="folder of results (default: those that come along)")
    add("-o", "--output", default="report.html", metavar="FILE", help="default: report.html")
    return parser.parse_args(argv)
