"""What one of several ranks does for test_evaluate_idx.py."""

import json

from ddgan_fast import cli


def main(arguments: str) -> int:
    """Evaluate."""
    return cli.main(["evaluate", *json.loads(arguments)])
