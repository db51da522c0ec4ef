"""Dotted options of nested dataclasses: their names, types, conversion of values, and YAML."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    NoneType: "null",
    tuple[bool, ...]: "a list such as [true, false]",
    tuple[int, ...]: "a list of whole numbers such as [1, 2]",
    tuple[float, ...]: "a list of numbers such as [1, 2]",
    dict[str, float]: "a mapping of names to numbers such as {l1: 0.5}",
}


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"'{key.value}' is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes lists on one line, and quotes text that ``_Loader`` would take for a number."""


_Dumper.add_representer(
    list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True)
)
for _dialect in (_Loader, _Dumper):
    _dialect.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file; ValueError when the file holds anything else."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not valid YAML{_problem(error)}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no options: it needs sections such as model: and run:.")
    return values


def _problem(error: Exception) -> str:
    """Where a file stops being YAML, and why."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f": {' '.join(str(error).split())}"
    mark = error.problem_mark
    return f" at line {mark.line + 1}, column {mark.column + 1}: {error.problem}"


def to_yaml(values: dict[str, Any]) -> str:
    """A mapping of plain types as YAML that ``read_yaml`` gives back."""
    return yaml.dump(values, None, _Dumper, sort_keys=False, allow_unicode=True, width=100)


def set_options(config: Any, values: Mapping[Any, Any], where: str = "") -> None:
    """Sets options of a dataclass of dataclasses in place.

    Args:
        config: the dataclass instance.
        values: dotted names, or nested mappings, to values; strings are read as YAML where the
            option may be more than text.
        where: a phrase for messages that says where the values stand.

    Raises:
        ValueError: an unknown option or a value of the wrong type.
    """
    known = _types(type(config))
    for name, value in _dotted(values, known):
        if name not in known:
            raise ValueError(_unknown_option(name, list(known), where))
        section, _, option = name.rpartition(".")
        target = getattr(config, section) if section else config
        setattr(target, option, _convert(value, known[name], name, where))


def unknown(what: str, name: object, known: Collection[str], listed: str, where: str = "") -> str:
    """The sentence for a name that does not exist: the closest that do, then ``listed``."""
    namesakes = [item for item in known if item.rpartition(".")[2] == name]
    close = namesakes or difflib.get_close_matches(str(name), known, 2)
    hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
    return f"unknown {what} {str(name)!r}{where}{hint}: {listed}."


def _types(cls: Any) -> dict[str, Any]:
    """Dotted name of every option of the dataclass -> its type."""
    types: dict[str, Any] = {}
    hints = get_type_hints(cls)
    for item in fields(cls):
        hint = hints[item.name]
        if is_dataclass(hint):
            types |= {f"{item.name}.{name}": kind for name, kind in _types(hint).items()}
        else:
            types[item.name] = hint
    return types


def _dotted(values: Mapping[Any, Any], known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and key not in known:
            yield from ((f"{key}.{name}", item) for name, item in value.items())
        else:
            yield str(key), value


def _unknown_option(name: str, known: list[str], where: str) -> str:
    inside = [item for item in known if item.startswith(f"{name}.")]
    if inside:
        return f"{name}{where} is a section: name one of its options, such as {inside[0]}."
    section, _, option = name.rpartition(".")
    siblings = [item.rpartition(".")[2] for item in known if item.startswith(f"{section}.")]
    sections = dict.fromkeys(item.partition(".")[0] for item in known if "." in item)
    exist = f"{section} has" if siblings else "sections are"
    exist += f" {', '.join(siblings or sections)}"
    namesakes = [item for item in known if item.rpartition(".")[2] == option]
    return unknown("option", name, namesakes or known, exist, where)


def _convert(value: Any, hint: Any, name: str, where: str) -> Any:
    """``value`` as the annotated type, or a ValueError that names the option."""
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    read = value
    plain = set(kinds) <= {str, NoneType}
    if isinstance(value, str) and (not plain or (NoneType in kinds and value == "null")):
        try:
            read = yaml.load(value, _Loader)
        except (yaml.YAMLError, ValueError):
            read = value
    for kind in kinds:
        converted = _as(read, kind)
        if converted is not None or (read is None and kind is NoneType):
            return converted
    expected = " or ".join(_EXPECTED[kind] for kind in kinds)
    raise ValueError(f"{name} is {value!r}{where}: it must be {expected}.")


def _as(value: Any, kind: Any) -> Any:
    """``value`` as ``kind`` without loss; None when it is not of that kind."""
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            return None
        items = tuple(_as(item, get_args(kind)[0]) for item in value)
        return None if None in items else items
    if get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            return None
        pairs = {_as(name, str): _as(item, get_args(kind)[1]) for name, item in value.items()}
        return None if None in pairs or None in pairs.values() else pairs
    if kind is str:
        return os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    if kind is int and isinstance(value, int | float):
        return int(value) if isinstance(value, int) or value.is_integer() else None
    if kind is float and isinstance(value, int | float):
        return float(value) if abs(value) <= sys.float_info.max else None
    return None
