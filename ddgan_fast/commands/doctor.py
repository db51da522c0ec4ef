"""``ddgan-fast doctor``: what this machine can do, and why not more."""

from __future__ import annotations

import json
from collections.abc import Sequence

from . import Parser


def main(argv: Sequence[str]) -> int:
    """Print the report."""
    parser = Parser("doctor", "Say what this machine can do: software, devices, kernels.")
    parser.add_argument("--json", action="store_true", help="as JSON, for bug reports and scripts")
    arguments = parser.parse_args(argv)
    from .. import doctor

    if arguments.json:
        print(json.dumps(doctor.as_dict(), indent=2))
    else:
        doctor.print_report()
    return 0
