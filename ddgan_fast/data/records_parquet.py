"""Parquet files as records: data sets in the layout of the Hugging Face hub."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddgan_fast.data.records import Records, fingerprint_of

_IMAGES = ("image", "img", "png", "jpg")
_LABELS = ("label", "labels", "fine_label", "class")
_PREFIXES = {"train": ("train",), "validation": ("validation", "val", "test")}
_PARTS = {"train": ("train",), "validation": ("validation",), "both": ("train", "validation")}
_GROUPS_KEPT = 4


class ParquetRecords(Records):
    """The images of a parquet file, or of a folder of such, in the order of names and rows.

    The column "image" holds encoded files, as bytes or as a struct whose field "bytes" they are;
    the column "label" holds class numbers. Files whose names begin with a split (train-00000…,
    test-00000…) are chosen by it. A record is read with all of its row group, and the last few
    groups are kept: in random order that is slow, unless the set is prepared or fits the memory.

    Args:
        path: A file, or a folder with files in it or in its data/.
        split: "train", "validation" (files named validation, val or test) or "both".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If one is damaged, or has no column of images.
        RuntimeError: If the package pyarrow is missing.
    """

    kind = "parquet"

    def __init__(self, path: str | os.PathLike[str], split: str = "train") -> None:
        self.path = Path(path)
        self._files = _choose(self.path, split)
        self._state()
        groups: list[_Group] = []
        facts: list[tuple[str, object]] = []
        labels: list[NDArray[np.int64] | None] = []
        for number, file in enumerate(self._files):
            opened = self._open(number)
            column = _column(opened.schema_arrow, _IMAGES)
            if column is None:
                raise ValueError(
                    f"{file} has no column of images: expected one of {', '.join(_IMAGES)}, found "
                    f"{', '.join(opened.schema_arrow.names)}."
                )
            for g in range(opened.num_row_groups):
                rows = opened.metadata.row_group(g)
                groups.append(_Group(number, g, rows.num_rows, column))
                facts.append((f"{file.name} {g}", f"{rows.num_rows} {rows.total_byte_size}"))
            labels.append(_labels(opened))
            self.class_names = self.class_names or _class_names(opened.schema_arrow)
        self._groups = groups
        self._starts = np.cumsum([0, *(group.rows for group in groups)])
        if not self._starts[-1]:
            raise ValueError(f"{self.path} holds no images: check the data's path.")
        known = [part for part in labels if part is not None]
        self.labels = np.concatenate(known) if len(known) == len(labels) else None
        self.fingerprint = fingerprint_of(self.kind, facts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, i: int) -> str:
        number, row = self._locate(i)
        group = self._groups[number]
        before = sum(g.rows for g in self._groups[:number] if g.file == group.file)
        return f"{self._files[group.file]}, row {before + row}"

    def read(self, i: int) -> bytes:
        number, row = self._locate(i)
        value = self._column_of(number)[row].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise ValueError(
                f"{self.name(i)} holds no encoded image, but {type(data).__name__}: "
                "take it out of the data."
            )
        return data

    def _locate(self, i: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._starts, i, side="right")) - 1
        return number, i - int(self._starts[number])

    def _column_of(self, number: int) -> Any:
        """The images of a row group."""
        group = self._groups[number]
        # Under the lock, because a reader of the package serves one thread at a time.
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            file = self._files[group.file]
            try:
                table = self._open(group.file).read_row_group(group.number, [group.column])
            except (OSError, ValueError) as error:
                raise OSError(
                    f"{file}, row group {group.number} cannot be read ({error}): copy it again."
                ) from error
            self._kept[number] = table.column(0).combine_chunks()
            while len(self._kept) > _GROUPS_KEPT:
                self._kept.popitem(last=False)
            return self._kept[number]

    def _open(self, number: int) -> Any:
        if number not in self._readers:
            file = self._files[number]
            try:
                self._readers[number] = _package(file).ParquetFile(file)
            except (OSError, ValueError) as error:  # the package's errors are among these
                raise ValueError(
                    f"{file} is no parquet file or a damaged one ({error}): copy it again."
                ) from error
        return self._readers[number]

    def _state(self) -> None:
        self._readers: dict[int, Any] = {}
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_readers", "_kept", "_lock")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._state()


class _Group(NamedTuple):
    file: int
    number: int
    rows: int
    column: str


def is_parquet(path: Path) -> bool:
    """Whether a path is a parquet file or a folder of such."""
    return bool(_files(path))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    return sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))


def _choose(path: Path, split: str) -> list[Path]:
    if split not in _PARTS:
        raise ValueError(f'data.split is "{split}"; allowed are {", ".join(_PARTS)}.')
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: check the spelling of the data's path.")
    files = _files(path)
    if not files:
        raise ValueError(f"{path} is no parquet file and holds none.")
    if path.is_file() or not any(_belongs(file, part) for file in files for part in _PREFIXES):
        return files
    chosen = [file for part in _PARTS[split] for file in files if _belongs(file, part)]
    if not chosen:
        raise FileNotFoundError(f'{path} has no files of the split "{split}".')
    return chosen


def _belongs(file: Path, part: str) -> bool:
    return file.name.split("-")[0].split(".")[0] in _PREFIXES[part]


def _column(schema: Any, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in schema.names), None)


def _labels(opened: Any) -> NDArray[np.int64] | None:
    column = _column(opened.schema_arrow, _LABELS)
    if column is None:
        return None
    values = opened.read([column]).column(0).to_pylist()
    if not all(isinstance(value, int) and value >= 0 for value in values):
        return None
    return np.array(values, np.int64)


def _class_names(schema: Any) -> tuple[str, ...]:
    """Names that the hub's library writes into the file."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[_column(schema, _LABELS)]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()


def _package(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise RuntimeError(
            f"{path} is in parquet files, and the package that reads them is missing: "
            'pip install "ddgan_fast[parquet]".'
        ) from error
    return pyarrow.parquet
