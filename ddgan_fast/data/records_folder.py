"""A folder of image files as records."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddgan_fast.data.images import EXTENSIONS, is_image
from ddgan_fast.data.records import Records, fingerprint_of


class FolderRecords(Records):
    """All images below a folder, in the order of their relative paths.

    Labels are the names of the first-level sub-folders, where every image lies in one. Hidden
    files and folders are skipped, links are followed.

    Raises:
        FileNotFoundError: If the folder, or the target of a link in it, does not exist.
        NotADirectoryError: If the path is not a folder.
        ValueError: If there is no image, or one of a kind that is not read.
    """

    kind = "folder"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        files = list_images(self.path)
        self.names = [name for name, _ in files]
        self.class_names, self.labels = _classes(self.names)
        # Names and sizes, not contents or times: cheap, and the same for a copy elsewhere.
        self.fingerprint = fingerprint_of(self.kind, files)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return str(self.path / self.names[i])

    def read(self, i: int) -> bytes:
        path = self.path / self.names[i]
        try:
            return path.read_bytes()
        except OSError as error:
            raise type(error)(
                f"{path} cannot be read ({error.strerror}): restore it or take it out of the data."
            ) from error


def list_images(root: Path) -> list[tuple[str, int]]:
    """Relative path (with slashes) and size in bytes of every image below ``root``, sorted."""
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist: check the spelling of the data's path.")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder: give a folder of images.")
    found: list[tuple[str, int]] = []
    try:
        _walk(str(root), "", (), found)
    except OSError as error:
        raise type(error)(
            f"{error.filename} cannot be read ({error.strerror}): "
            "repair it or take it out of the data."
        ) from error
    if not found:
        kinds = ", ".join(extension[1:] for extension in EXTENSIONS)
        raise ValueError(f"{root} holds no images ({kinds}): check the data's path.")
    return sorted(found)


def _walk(
    folder: str, prefix: str, above: tuple[tuple[int, int], ...], found: list[tuple[str, int]]
) -> None:
    status = os.stat(folder)
    here = (status.st_dev, status.st_ino)
    if here in above:  # a link back to a folder we are in
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                _walk(entry.path, f"{prefix}{entry.name}/", (*above, here), found)
            elif is_image(entry.name, entry.path):
                found.append((prefix + entry.name, entry.stat().st_size))


def _classes(names: list[str]) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    if not all("/" in name for name in names):
        return (), None
    tops = [name.split("/", 1)[0] for name in names]
    classes = sorted(set(tops))
    number = {name: i for i, name in enumerate(classes)}
    return tuple(classes), np.array([number[top] for top in tops], np.int64)
