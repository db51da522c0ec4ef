"""The ring of pinned buffers: no buffer is filled again before the copy out of it has ended."""

import threading

import numpy as np
import pytest
import torch
from loader_sets import Pixels, pictures

from ddgan_fast.data import torch_loader
from ddgan_fast.data.plan import Plan
from ddgan_fast.data.ring import CudaCopies, FreshArrays, PinnedRing, read_into
from ddgan_fast.data.sources import gaussians25
from ddgan_fast.data.torch_loader import Loader


class LateCopies:
    """Copies as a busy GPU makes them: only when somebody waits for them."""

    def __init__(self):
        self.buffers = 0

    class Event:
        def __init__(self, pairs):
            self.pairs = pairs
            self.lock = threading.Lock()

        def synchronize(self):
            # The reading thread and the consumer may both wait: the copy is made once.
            with self.lock:
                for target, source in self.pairs:
                    target.copy_(source)
                self.pairs = []

    def buffer(self, shape, dtype):
        self.buffers += 1
        return torch.empty(tuple(shape), dtype=dtype)

    def start(self, *buffers):
        moved = [torch.empty_like(buffer) for buffer in buffers]
        return moved, self.Event(list(zip(moved, buffers, strict=True)))

    def receive(self, tensors, arrived):
        arrived.synchronize()


@pytest.mark.parametrize("flip", [True, False])
def test_late_copies_see_the_batch_they_belong_to(flip):
    copies, dataset, plan = LateCopies(), Pixels(pictures(30, 4)), Plan(30, 0, 8)
    ring = PinnedRing(copies, slots=2)
    steps = [plan.batch(step) for step in range(9)]
    sent = [ring.send(dataset, indices, flips if flip else None) for indices, flips in steps]
    for item, (indices, flips) in zip(sent, steps, strict=True):
        images, mask = ring.receive(item)
        np.testing.assert_array_equal(images.numpy(), dataset.images[indices])
        if flip:
            np.testing.assert_array_equal(mask.numpy(), flips)
        else:
            assert mask is None
    assert copies.buffers == 4


@pytest.mark.parametrize("kind", ["ring", "workers"])
def test_a_loader_through_the_ring(monkeypatch, kind):
    dataset, plan = Pixels(pictures(30, 4)), Plan(30, 0, 8)
    dataset.workers = 3
    monkeypatch.setattr(
        torch_loader, "make_upload", lambda dataset, device: PinnedRing(LateCopies())
    )
    with Loader(dataset, plan, kind=kind) as loader:
        batches = [next(loader) for _ in range(12)]
    for batch in batches:
        indices, flips = plan.batch(batch.step)
        np.testing.assert_array_equal(batch.images.numpy(), dataset.images[indices])
        np.testing.assert_array_equal(batch.flip.numpy(), flips)


def test_a_data_set_may_fill_the_buffer_itself():
    class Direct(Pixels):
        def fetch(self, indices):
            raise AssertionError("copied twice")

        def fetch_into(self, indices, target):
            target[:] = self.images[indices]

    dataset = Direct(pictures(9, 4))
    target = np.empty((3, 4, 4, 3), np.uint8)
    read_into(dataset, np.array([5, 0, 8]), target)
    np.testing.assert_array_equal(target, dataset.images[[5, 0, 8]])
    sent = PinnedRing(LateCopies()).send(dataset, np.array([1, 1]), None)
    sent.arrived.synchronize()
    np.testing.assert_array_equal(sent.images.numpy(), dataset.images[[1, 1]])


def test_points_keep_their_type():
    dataset = gaussians25(50)
    ring = PinnedRing(LateCopies())
    images, flip = ring.receive(ring.send(dataset, np.arange(7), None))
    assert flip is None and images.dtype == torch.float32
    np.testing.assert_array_equal(images.numpy(), dataset.array[:7])


def test_on_the_cpu_a_batch_may_be_kept_and_changed():
    dataset, plan = Pixels(pictures(20, 4)), Plan(20, 0, 5)
    original = dataset.images.copy()
    upload = FreshArrays()
    sent = [upload.send(dataset, *plan.batch(step)) for step in range(8)]
    for item in sent[::2]:
        upload.receive(item)[0].zero_()
    for step in range(1, 8, 2):
        np.testing.assert_array_equal(sent[step].images.numpy(), original[plan.batch(step)[0]])
    np.testing.assert_array_equal(dataset.images, original)


@pytest.mark.gpu
def test_copies_overlap_a_busy_gpu():
    """Batches are used late, behind work that fills the stream."""
    device = torch.device("cuda", torch.cuda.current_device())
    dataset, plan = Pixels(pictures(200, 32)), Plan(200, 0, 64)
    matrix = torch.randn(4096, 4096, device=device)
    sums = []
    with Loader(dataset, plan, device, kind="ring") as loader:
        for _ in range(30):
            matrix = (matrix @ matrix).clamp(-1, 1)
            batch = next(loader)
            sums.append((batch.step, batch.images.clone(), batch.flip.clone()))
            del batch
    for step, images, flip in sums:
        indices, flips = plan.batch(step)
        np.testing.assert_array_equal(images.cpu().numpy(), dataset.images[indices])
        np.testing.assert_array_equal(flip.cpu().numpy(), flips)


@pytest.mark.gpu
def test_pinned_buffers_are_reused():
    device = torch.device("cuda", torch.cuda.current_device())
    copies = CudaCopies(device)
    ring = PinnedRing(copies, slots=2)
    dataset = Pixels(pictures(16, 8))
    for step in range(6):
        indices = np.arange(step, step + 4)
        images, _ = ring.receive(ring.send(dataset, indices, None))
        np.testing.assert_array_equal(images.cpu().numpy(), dataset.images[indices])
    pointers = {slot.images.data_ptr() for slot in ring._slots}
    assert len(pointers) == 2 and all(slot.images.is_pinned() for slot in ring._slots)
