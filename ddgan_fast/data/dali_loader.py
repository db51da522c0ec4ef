"""Decodes a data set's encoded images with NVIDIA DALI instead of Pillow.

DALI is handed the records that the plan names, so it neither shuffles nor shards. Its CPU decoders
give Pillow's pixels; images that would have to be resized, or are of a rare kind, still go through
Pillow first.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ddgan_fast.data.dataset import Dataset
from ddgan_fast.data.images import decode_image, prepare_pixels
from ddgan_fast.data.records import Records
from ddgan_fast.data.ring import CudaCopies, Sent
from ddgan_fast.data.sniff import is_plain

_INSTALL = 'pip install "ddgan_fast[dali]"'


def encoded_records(dataset: Dataset) -> Records | None:
    """The records behind a data set that decodes an image file for each; else None."""
    records = dataset if isinstance(dataset, Records) else getattr(dataset, "records", None)
    if dataset.array is not None or not isinstance(records, Records):
        return None
    return records if isinstance(records.read(0), bytes) else None


def why_not(dataset: Dataset, device: torch.device, dali_device: str) -> str | None:
    """Why DALI cannot decode this data set here, as part of a sentence; None where it can."""
    if encoded_records(dataset) is None:
        return "DALI decodes image files, which this data set does not read"
    if dataset.shape[2] not in (1, 3):
        return f"DALI is used for images of 1 or 3 channels, not {dataset.shape[2]}"
    if dali_device == "mixed" and device.type != "cuda":
        return 'data.dali_device "mixed" needs a GPU'
    try:
        missing = importlib.util.find_spec("nvidia.dali") is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        return f"DALI would decode faster, but is not installed: {_INSTALL}"
    try:
        importlib.import_module("nvidia.dali.fn")
    except Exception as error:  # a library that does not load raises more than ImportError
        return f"nvidia.dali cannot be imported: {' '.join(str(error).split())}"
    return None


def refuse(dataset: Dataset, device: torch.device, dali_device: str = "cpu") -> None:
    """Raise where DALI is asked for and cannot be used.

    Raises:
        RuntimeError: the sentence says why.
    """
    reason = why_not(dataset, device, dali_device)
    if reason is not None:
        raise RuntimeError(f'data.loader "dali" cannot be used ({reason}): set it to "auto".')


def versions() -> dict[str, str | None]:
    """Version of DALI; None where there is none."""
    try:
        return {"dali": str(importlib.import_module("nvidia.dali").__version__)}
    except Exception:  # as above
        return {"dali": None}


class DaliDecoded(Dataset):
    """The same records as ``dataset``, decoded by DALI.

    ``fetch`` is for one thread; the decoding itself is spread over ``dataset.workers``.

    Args:
        dataset: A data set that reads image files.
        device: Where the batches are to go.
        dali_device: "cpu", or "mixed": JPEG is decoded on the GPU, within a few grey levels.

    Raises:
        RuntimeError: DALI cannot be used; the sentence says why.
    """

    workers = 1

    def __init__(self, dataset: Dataset, device: torch.device, dali_device: str = "cpu") -> None:
        refuse(dataset, device, dali_device)
        records = encoded_records(dataset)
        assert records is not None
        self.shape, self.dtype = dataset.shape, dataset.dtype
        self.flips, self.labels, self.digest = dataset.flips, dataset.labels, dataset.digest
        self._dataset, self._records = dataset, records
        self._device, self._mixed = device, dali_device == "mixed"
        self._pipeline: Any = None
        self._most = 0
        if self._mixed:
            self.make_upload = _DeviceDecoding

    def __len__(self) -> int:
        return len(self._dataset)

    def describe(self) -> str:
        return self._dataset.describe()

    def fetch(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        images = self._decode(indices)
        return np.array((images.as_cpu() if self._mixed else images).as_tensor())

    def fetch_into(self, indices: NDArray[np.int64], target: NDArray[Any]) -> None:
        """Like ``fetch``, into an array [len(indices), *shape]."""
        images = self._decode(indices)
        np.copyto(target, np.asarray((images.as_cpu() if self._mixed else images).as_tensor()))

    def fetch_on_device(self, indices: NDArray[np.int64]) -> Tensor:
        """Like ``fetch``, as a tensor on the GPU, ready on torch's current stream."""
        from nvidia.dali.plugin.pytorch import feed_ndarray

        images = self._decode(indices).as_tensor()
        target = torch.empty((len(indices), *self.shape), dtype=torch.uint8, device=self._device)
        feed_ndarray(images, target, cuda_stream=torch.cuda.current_stream(self._device))
        return target

    def _decode(self, indices: NDArray[np.int64]) -> Any:
        """DALI's list of images, valid until the next call."""
        if len(indices) > self._most:
            self._pipeline, self._most = self._build(len(indices)), len(indices)
        encoded = [self._encoded(int(i)) for i in indices]
        self._pipeline.feed_input("encoded", encoded)
        try:
            (images,) = self._pipeline.run()
        except RuntimeError as error:
            self._most = 0  # the pipeline is of no use after an error
            raise self._culprit(indices, str(error)) from error
        return images

    def _encoded(self, i: int) -> NDArray[np.uint8]:
        data = self._records.read(i)
        _, size, channels = self.shape
        if not isinstance(data, bytes) or not is_plain(data, size, channels):
            data = _as_file(data, self._records.name(i), size, channels)
        return np.frombuffer(data, np.uint8)

    def _build(self, batch: int) -> Any:
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline

        gpu = self._device.index or 0 if self._mixed else None
        pipeline = Pipeline(
            batch_size=batch,
            num_threads=max(1, self._dataset.workers),
            device_id=gpu,
            prefetch_queue_depth=1,  # the loader's thread reads ahead
        )
        with pipeline:
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            images = fn.decoders.image(
                encoded,
                device="mixed" if self._mixed else "cpu",
                output_type=types.GRAY if self.shape[2] == 1 else types.RGB,
            )
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline

    def _culprit(self, indices: NDArray[np.int64], message: str) -> Exception:
        """What is wrong with which record: DALI does not always name it."""
        _, size, channels = self.shape
        for i in indices:
            name = self._records.name(int(i))
            try:
                data = self._records.read(int(i))
                if isinstance(data, bytes):
                    decode_image(data, name, size, channels)
            except (OSError, ValueError) as error:
                return error
        names = ", ".join(self._records.name(int(i)) for i in indices)
        return ValueError(
            f'DALI cannot decode one of {names} ({_first_line(message)}), though Pillow can: set '
            'data.loader to "workers".'
        )


class _DeviceDecoding:
    """Batches that are decoded where they are used."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._copies = device, CudaCopies(device)

    def send(
        self, dataset: Dataset, indices: NDArray[np.int64], flips: NDArray[np.bool_] | None
    ) -> Sent:
        assert isinstance(dataset, DaliDecoded)
        with self._copies.issuing() as done:
            images = dataset.fetch_on_device(indices)
            flip = None
            if flips is not None:
                flip = torch.from_numpy(flips).pin_memory().to(self._device, non_blocking=True)
        return Sent(images, flip, done)

    def receive(self, sent: Sent) -> tuple[Tensor, Tensor | None]:
        tensors = [sent.images] if sent.flip is None else [sent.images, sent.flip]
        assert sent.arrived is not None
        self._copies.receive(tensors, sent.arrived)
        return sent.images, sent.flip


def _as_file(data: bytes | NDArray[np.uint8], name: str, size: int, channels: int) -> bytes:
    """A record as Pillow prepares it, in a file that any decoder reads back unchanged."""
    if isinstance(data, bytes):
        pixels = decode_image(data, name, size, channels)
    else:
        pixels = prepare_pixels(data, name, size, channels)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


def _first_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0] if lines else "no reason given"
