"""The refusals that validation is made of: one sentence with the field, value and rule."""

from __future__ import annotations

from typing import Any


def require(holds: bool, name: str, value: Any, rule: str) -> None:
    """Refuse a value that breaks a rule, in one sentence."""
    if not holds:
        raise ValueError(f"{name} is {show(value)}: {rule}.")


def one_of(name: str, value: Any, allowed: tuple[Any, ...], reason: str = "") -> None:
    """Refuse a value that is not in the list."""
    *others, last = (show(item) for item in allowed)
    listed = f"{', '.join(others)} or {last}" if others else last
    rule = f"it must be {listed}" + (f", because {reason}" if reason else "")
    require(value in allowed, name, value, rule)


def at_least(name: str, value: float, least: int) -> None:
    """Refuse a smaller value."""
    require(value >= least, name, value, f"it must be at least {least}")


def positive(name: str, value: float) -> None:
    """Refuse 0 and less."""
    require(value > 0, name, value, "it must be above 0")


def fraction(name: str, value: float) -> None:
    """Refuse what is not in [0, 1)."""
    require(0 <= value < 1, name, value, "it must be at least 0 and below 1")


def positive_list(name: str, values: tuple[int, ...]) -> None:
    """Refuse an empty list and numbers below 1."""
    require(
        len(values) > 0 and min(values) >= 1,
        name,
        values,
        "it must be a list of at least one number, each at least 1",
    )


def show(value: Any) -> str:
    """The value as YAML writes it."""
    if isinstance(value, bool | None):
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(show(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {show(item)}' for name, item in value.items())}}}"
    return f'"{value}"' if isinstance(value, str) else str(value)
