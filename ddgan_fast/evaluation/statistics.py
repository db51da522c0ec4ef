"""Mean and covariance of real images' features in files: ours, pytorch-fid's, the published ones.

A file of ours says where its numbers come from. Files of others hold ``mu`` and ``sigma`` alone,
in an .npz or as a pickled dictionary in an .npy, and are taken to be of FID's Inception.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ddgan_fast.evaluation.features import Extractor
from ddgan_fast.evaluation.frechet import Gaussian
from ddgan_fast.evaluation.inception import FEATURES
from ddgan_fast.files import atomic_open

_SUFFIXES = (".npz", ".npy")
# All that a pickled array of dictionaries of arrays calls for.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


@dataclass(frozen=True)
class Provenance:
    """Where statistics come from."""

    extractor: str
    """Name of the extractor."""
    extractor_sha256: str
    """Hash of its weights."""
    transform: str
    """What it does to an image first."""
    count: int
    """Number of images."""
    data: str
    """The data in words."""
    data_digest: str
    """Fingerprint of the data."""
    image_size: int
    """Side of the images in pixels."""
    date: str
    """When they were computed (UTC)."""
    version: str
    """Of ddgan_fast."""


@dataclass(frozen=True)
class Statistics:
    """A Gaussian of real features.

    Attributes:
        gaussian: mean and covariance, float64.
        provenance: what the file says of them; None in files of other programs.
        sha256: of the file.
    """

    gaussian: Gaussian
    provenance: Provenance | None
    sha256: str


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse a name that ``write_statistics`` could not write; to be asked before the work.

    Raises:
        ValueError: the suffix is not .npz.
    """
    if Path(path).suffix != ".npz":
        raise ValueError(f"statistics are written as .npz files, and {os.fspath(path)} is none.")


def write_statistics(
    path: str | os.PathLike[str], gaussian: Gaussian, provenance: Provenance
) -> None:
    """Write ``mu``, ``sigma`` and ``provenance`` (JSON) to an .npz, which appears when complete.

    Raises:
        ValueError: another suffix.
        OSError: the file cannot be written.
    """
    check_target(path)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as file:
        np.savez(
            file,
            mu=gaussian.mean.numpy(),
            sigma=gaussian.covariance.numpy(),
            provenance=np.array(json.dumps(asdict(provenance))),
        )


def read_statistics(path: str | os.PathLike[str], extractor: Extractor) -> Statistics:
    """Statistics of this extractor from a file; no code in the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds something else, or is of another extractor.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no statistics file {path}.")
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path} is no statistics file: they are .npz, or the published .npy.")
    try:
        values = _npz(path) if path.suffix == ".npz" else _npy(path)
        mean, covariance = (np.asarray(values[name], np.float64) for name in ("mu", "sigma"))
        provenance = _provenance(values.get("provenance"))
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{path} is no readable statistics file ({reason or type(error).__name__}): it must "
            "hold mu and sigma; get or make it again (ddgan-fast evaluate --make-reference)."
        ) from error
    _check_numbers(path, mean, covariance)
    _check_extractor(path, len(mean), provenance, extractor)
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    gaussian = Gaussian(torch.from_numpy(mean.copy()), torch.from_numpy(covariance.copy()))
    return Statistics(gaussian, provenance, sha256)


def _npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _npy(path: Path) -> dict[str, Any]:
    """The dictionary of an .npy that holds nothing but one, pickled."""
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0}
        shape, _, dtype = read.get(version, np.lib.format.read_array_header_2_0)(file)
        if not dtype.hasobject:
            raise ValueError(f"it is an array of {dtype} {list(shape)}")
        value = _Unpickler(file).load()
    value = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
    if not isinstance(value, dict):
        raise ValueError("it holds no dictionary")
    return value


class _Unpickler(pickle.Unpickler):
    """Makes arrays, and calls nothing else."""

    def __init__(self, file: BinaryIO) -> None:
        # Files of Python 2 hold their arrays' bytes as text in this encoding.
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # what numpy 2 calls it
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}")
        return super().find_class(module, name)


def _provenance(value: Any) -> Provenance | None:
    if value is None:
        return None
    stored = json.loads(str(value))
    known = Provenance.__dataclass_fields__
    return Provenance(**{name: stored[name] for name in known})


def _check_numbers(path: Path, mean: np.ndarray, covariance: np.ndarray) -> None:
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{path} is no statistics file: mu is {list(mean.shape)} and sigma "
            f"{list(covariance.shape)}, instead of [D] and [D, D]."
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{path} holds numbers that are not finite: make it again.")


def _check_extractor(
    path: Path, dim: int, provenance: Provenance | None, extractor: Extractor
) -> None:
    again = "make one for it by ddgan-fast evaluate --make-reference"
    if provenance is None:
        if extractor.name != "inception":
            raise ValueError(
                f"{path} does not say which extractor it is of, so it is taken for Inception's "
                f"and does not fit {extractor.name}: {again}."
            )
    elif provenance.extractor != extractor.name:
        raise ValueError(
            f"{path} is of the extractor {provenance.extractor}, and {extractor.name} is asked "
            f"for: choose --extractor {provenance.extractor}, or {again}."
        )
    elif provenance.extractor_sha256 != extractor.sha256:
        raise ValueError(
            f"{path} is of {extractor.name} with other weights (SHA-256 "
            f"{provenance.extractor_sha256[:8]}, here {extractor.sha256[:8]}): {again}."
        )
    if dim != extractor.dim:
        of = f"Inception's have {FEATURES}" if extractor.name == "inception" else extractor.name
        raise ValueError(
            f"{path} is of features of length {dim}, and those here have {extractor.dim} ({of}): "
            f"{again}."
        )
