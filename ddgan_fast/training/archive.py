"""The two file formats of a checkpoint, written piece by piece.

A ``torch.save`` file that carries its own checksum: such a file is a zip archive, and a zip archive
may end with a comment. Ours holds the SHA-256 of the file as ``torch.save`` wrote it, that is,
before the comment was added. ``torch.load`` and unzip read the file as any other, and one rename
puts content and checksum in place together.

A safetensors file (https://github.com/huggingface/safetensors): its library builds the whole file
in memory and holds Python's lock meanwhile, which would stop training for half a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor

_MARK = b"ddgan_fast sha256 "
_COMMENT_BYTES = len(_MARK) + 64
_LENGTH = struct.pack("<H", _COMMENT_BYTES)
_NO_LENGTH = b"\0\0"
_CHUNK = 1 << 22

_SAFETENSORS_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_archive(content: Any, file: BinaryIO) -> None:
    """Save ``content`` and its checksum.

    Raises:
        OSError: the file could not be written to.
    """
    hashing = _HashingWriter(file)
    try:
        torch.save(content, cast(IO[bytes], hashing))  # it only writes and flushes
    except Exception as error:
        # torch hides the cause, a full disk say, behind an error of its own writer.
        raise hashing.error or error from None
    file.seek(-len(_NO_LENGTH), os.SEEK_END)  # an archive ends with the length of its comment
    file.write(_LENGTH + _MARK + hashing.digest.hexdigest().encode())


def verify_archive(path: Path) -> None:
    """Compare a file with its checksum.

    Raises:
        OSError: the file could not be read.
        ValueError: the file is empty, cut short, changed or has no checksum.
    """
    size = path.stat().st_size
    if size == 0:
        raise ValueError("it is empty (0 bytes)")
    digest = hashlib.sha256()
    remaining = size - _COMMENT_BYTES - len(_LENGTH)
    with open(path, "rb") as file:
        while remaining > 0 and (chunk := file.read(min(_CHUNK, remaining))):
            digest.update(chunk)
            remaining -= len(chunk)
        ending = file.read()
    if not ending.startswith(_LENGTH + _MARK):
        raise ValueError(
            f"it is cut short ({size:,} bytes) or was not written by ddgan_fast (no checksum at "
            "its end)"
        )
    digest.update(_NO_LENGTH)
    if digest.hexdigest().encode() != ending[len(_LENGTH + _MARK) :]:
        raise ValueError("its bytes changed after it was written (wrong checksum)")


def write_safetensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], file: BinaryIO
) -> None:
    """Write contiguous CPU tensors as a safetensors file.

    Raises:
        OSError: the file could not be written to.
        TypeError: the format has no name for a tensor's type.
    """
    # The widest types first, so that each tensor starts at a multiple of its element's size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in ordered:
        kind = _SAFETENSORS_NAMES.get(tensor.dtype)
        if kind is None:
            raise TypeError(f"{name} is {tensor.dtype}, which a safetensors file cannot hold")
        start, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    file.write(struct.pack("<Q", len(head)) + head)
    for _, tensor in ordered:
        file.write(bytes_of(tensor))


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


class _HashingWriter:
    """The part of a file that torch.save uses; hashes on the way and remembers an error."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()
