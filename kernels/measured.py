"""Which backends were fastest on a GPU. Written by ``python -m benchmarks.prefer``."""

SOURCE = ""
"""The measurement; empty as long as there is none."""

TABLE: dict[tuple[str, str, str, str], tuple[str, ...]] = {}
"""(op, dtype, memory order, size) to backends that agreed, fastest first."""

DECOMPOSED: tuple[str, ...] = ()
"""Ops that torch.compile fuses into faster code than their best kernel."""
