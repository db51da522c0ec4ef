"""Zip archives of images as records, with the labels that StyleGAN's data sets carry."""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddgan_fast.data.images import is_image
from ddgan_fast.data.records import (
    LARGEST_RECORD,
    Records,
    SourceFile,
    fingerprint_of,
    printable,
)

_LABELS = "dataset.json"
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 1
_BAD = "the archive is damaged; copy it again"


class ZipRecords(Records):
    """All images of a zip archive, in the order of their names; nothing is extracted.

    Members are read by their offsets, because a ZipFile that several processes share mixes up
    their reads. Labels come from dataset.json where it has one for every image. Hidden members
    are skipped.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no zip archive, has no image, two of one name, or an encrypted one.
    """

    kind = "zip"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{self.path} is no file: check the spelling of the data's path."
            )
        self._file = SourceFile(self.path)
        members = {member.name: member for member in _members(self.path)}
        labels = members.pop(_LABELS, None)
        self._members = [members[name] for name in sorted(members)]
        if not self._members:
            raise ValueError(f"{self.path} holds no images: check the data's path.")
        if labels is not None:
            self.labels = _labels(self._read(labels), self.path, self._members)
        self.fingerprint = fingerprint_of(
            self.kind,
            ((os.fsencode(m.name), f"{m.size} {m.crc:08x}") for m in self._members),
        )

    def __len__(self) -> int:
        return len(self._members)

    def name(self, i: int) -> str:
        return self._name(self._members[i])

    def read(self, i: int) -> bytes:
        return self._read(self._members[i])

    def _name(self, member: _Member) -> str:
        return f"{self.path}, member {printable(member.name)}"

    def _read(self, member: _Member) -> bytes:
        name = self._name(member)
        for what, size in (("holds", member.size), ("is packed in", member.packed)):
            if size > LARGEST_RECORD:
                raise ValueError(
                    f"{name} {what} {size:,} bytes, more than the {LARGEST_RECORD:,} that an image "
                    "may have: take it out of the data."
                )
        header = self._file.read(_LOCAL_HEADER.size, member.offset, name)
        magic, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        if magic != b"PK\3\4":
            raise ValueError(f"{name} does not begin where the archive says: {_BAD}.")
        start = member.offset + _LOCAL_HEADER.size + name_length + extra_length
        data = self._file.read(member.packed, start, name)
        if member.deflated:
            data = _inflate(data, member.size, name)
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise ValueError(f"{name} does not match its length and checksum: {_BAD}.")
        return data


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    offset: int
    """Of the local header."""
    packed: int
    size: int
    crc: int
    deflated: bool


def _members(path: Path) -> list[_Member]:
    """The images and the labels that the archive's directory lists."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise ValueError(f"{path} is no zip archive or a damaged one ({error}).") from error
    found: dict[str, _Member] = {}
    for info in infos:
        name = info.filename
        parts = name.split("/")
        hidden = any(part.startswith(".") and part not in (".", "..") for part in parts)
        if info.is_dir() or hidden or "__MACOSX" in parts:
            continue
        shown = f"{path}, member {printable(name)}"
        if name != _LABELS and not is_image(name, shown):
            continue
        if name in found:
            raise ValueError(f"{shown} is there twice: make the archive anew.")
        if info.flag_bits & _ENCRYPTED:
            raise ValueError(f"{shown} is encrypted: make an archive without a password.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"{shown} is packed by method {info.compress_type}, which is not read: "
                "make the archive with `zip -0`."
            )
        found[name] = _Member(
            name,
            info.header_offset,
            info.compress_size,
            info.file_size,
            info.CRC,
            info.compress_type == zipfile.ZIP_DEFLATED,
        )
    return list(found.values())


def _inflate(data: bytes, size: int, name: str) -> bytes:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        # Not all of it at once: what claims to be small may unpack to any length.
        result = unpacker.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"{name} cannot be unpacked ({error}): {_BAD}.") from error
    if len(result) > size:
        raise ValueError(f"{name} unpacks to more than the {size:,} bytes it claims: {_BAD}.")
    return result


def _labels(text: bytes, path: Path, members: list[_Member]) -> NDArray[np.int64] | None:
    """Class numbers, where every image has one."""
    try:
        table = json.loads(text).get("labels")
        known = dict(table or ())
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path}, member {_LABELS} is not {{"labels": [[name, class], ...]}} ({error}): '
            "repair it or take it out of the archive."
        ) from error
    labels = [known.get(member.name) for member in members]
    if not all(isinstance(label, int) for label in labels):
        return None
    return np.array(labels, np.int64)
