"""Loaders and the device's part: same batches everywhere, errors forwarded, no thread left."""

import gc
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ddgan_fast.data import torch_loader
from ddgan_fast.data.dataset import Dataset
from ddgan_fast.data.decoded import Decoded
from ddgan_fast.data.device import to_model_input
from ddgan_fast.data.plan import Plan
from ddgan_fast.data.records_folder import FolderRecords
from ddgan_fast.data.sources import Synthetic, digits, gaussians25
from ddgan_fast.data.torch_loader import Loader


class Scripted(Dataset):
    """Record i is a 2x2 image of value i; fetching calls a hook first."""

    def __init__(self, n=50, workers=1, hook=lambda indices: None):
        self.shape, self.dtype, self.flips, self.digest = (2, 2, 1), np.dtype(np.uint8), True, "x"
        self.workers, self.n, self.hook = workers, n, hook

    def __len__(self):
        return self.n

    def fetch(self, indices):
        self.hook(indices)
        return np.repeat(indices.astype(np.uint8), 4).reshape(-1, 2, 2, 1)

    def describe(self):
        return "scripted"


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("ddgan-loader")]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert threads() == []


def take(loader, count):
    return [next(loader) for _ in range(count)]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(11):
        pixels = rng.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    return tmp_path


def test_batches_are_what_the_plan_says():
    dataset, plan = Synthetic(8, 3, 103), Plan(103, 5, 32)
    with Loader(dataset, plan, "cpu", start_step=4) as loader:
        for step, batch in zip(range(4, 12), loader, strict=False):
            indices, flips = plan.batch(step)
            assert batch.step == step
            assert batch.images.dtype == torch.uint8 and batch.flip.dtype == torch.bool
            np.testing.assert_array_equal(batch.images.numpy(), dataset.fetch(indices))
            np.testing.assert_array_equal(batch.flip.numpy(), flips)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_ranks_and_workers_share_out_the_same_batches(world, workers):
    plan = Plan(50, 1, 8)
    with Loader(Scripted(), plan) as single:
        whole = take(single, 12)
    parts = []
    for rank in range(world):
        with Loader(Scripted(workers=workers), plan, "cpu", rank, world) as loader:
            parts.append(take(loader, 12))
    for step in range(12):
        for rank in range(world):
            torch.testing.assert_close(whole[step].images[rank::world], parts[rank][step].images)
            torch.testing.assert_close(whole[step].flip[rank::world], parts[rank][step].flip)


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_folder_through_the_loader(folder, cache):
    dataset, plan = Decoded(FolderRecords(folder), 8, 3, cache=cache), Plan(11, 0, 4)
    with Loader(dataset, plan) as loader:
        assert bool(threads()) is False
        for batch in take(loader, 8):
            expected = Decoded(FolderRecords(folder), 8, 3, cache="none").fetch(
                plan.batch(batch.step)[0]
            )
            np.testing.assert_array_equal(batch.images.numpy(), expected)
        assert len(threads()) == (0 if cache == "ram" else 2)


@pytest.mark.parametrize("dataset", [digits(8, 1), gaussians25(500)], ids=["digits", "points"])
def test_sets_without_mirror_images_have_no_flips(dataset):
    plan = Plan(len(dataset), 0, 16)
    with Loader(dataset, plan, start_step=3) as loader:
        batch = next(loader)
    assert batch.flip is None and threads() == []
    np.testing.assert_array_equal(batch.images.numpy(), dataset.fetch(plan.batch(3)[0]))


def test_resident_and_threads_are_equal(monkeypatch, folder):
    dataset, plan = Decoded(FolderRecords(folder), 8, 3, cache="ram"), Plan(11, 0, 4)
    with Loader(dataset, plan) as loader:
        resident = take(loader, 6)
    monkeypatch.setattr(torch_loader, "fits", lambda *of: False)
    with Loader(dataset, plan) as loader:
        threaded = take(loader, 6)
        assert threads()
    for one, other in zip(resident, threaded, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.flip, other.flip)


def test_a_batch_may_be_overwritten():
    with Loader(digits(8, 1), Plan(1797, 0, 16)) as loader:
        before = loader._make[0].array.copy()
        next(loader).images.zero_()
        np.testing.assert_array_equal(loader._make[0].array, before)


def test_flips_need_both_the_plan_and_the_data():
    unmirrored = Scripted()
    unmirrored.flips = False
    for dataset, flip in ((Scripted(), False), (unmirrored, True)):
        with Loader(dataset, Plan(50, 1, 8, flip=flip)) as loader:
            assert next(loader).flip is None


def test_state_continues_exactly():
    plan = Plan(50, 1, 8)
    with Loader(Scripted(workers=2), plan) as loader:
        whole = take(loader, 15)
    loader = Loader(Scripted(workers=2), plan)
    take(loader, 6)
    state = loader.state_dict()
    assert state == {"step": 6}
    loader.close()
    with Loader(Scripted(workers=3), plan, start_step=state["step"]) as fresh:
        rest = take(fresh, 9)
        fresh.load_state_dict({"step": 2})
        again = take(fresh, 3)
    for expected, actual in zip(whole[6:] + whole[2:5], rest + again, strict=True):
        assert expected.step == actual.step and torch.equal(expected.images, actual.images)


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_comes_at_its_step_and_names_the_file(folder, workers):
    (folder / "07.png").write_bytes(b"damaged")
    dataset = Decoded(FolderRecords(folder), 8, 3, cache="none", workers=workers)
    plan = Plan(11, 0, 2)
    first_bad = next(step for step in range(20) if 7 in plan.batch(step)[0])
    assert first_bad > 0
    loader = Loader(dataset, plan)
    assert len(take(loader, first_bad)) == first_bad
    with pytest.raises(ValueError, match=r"07\.png cannot be used as an image"):
        next(loader)
    assert threads() == []
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_system_exit_in_a_worker_reaches_the_consumer():
    def leave(indices):
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        next(Loader(Scripted(hook=leave), Plan(50, 1, 8)))


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_early_leaves_no_thread(workers, taken):
    loader = Loader(Scripted(workers=workers), Plan(50, 1, 8))
    take(loader, taken)
    assert len(threads()) == (workers if taken else 0)
    loader.close()
    assert threads() == []
    loader.close()


def test_an_error_in_the_loop_leaves_no_thread():
    with (
        pytest.raises(ZeroDivisionError),
        Loader(Scripted(workers=2), Plan(50, 1, 8)) as loader,
    ):
        for batch in loader:
            1 / (batch.step - 3)
    assert threads() == []


def test_a_forgotten_loader_ends_its_threads():
    loader = Loader(Scripted(workers=2), Plan(50, 1, 8))
    next(loader)
    running = threads()
    assert len(running) == 2
    del loader
    gc.collect()
    for thread in running:
        thread.join(20)
        assert not thread.is_alive()


def test_only_so_many_batches_are_prefetched():
    fetched = []
    for workers in (1, 2, 4):
        fetched.clear()
        loader = Loader(Scripted(workers=workers, hook=fetched.append), Plan(50, 1, 8))
        next(loader)
        previous = -1
        while len(fetched) != previous:
            previous = len(fetched)
            time.sleep(0.1)
        loader.close()
        # One delivered, four waiting, one in the hands of each worker.
        assert 2 <= len(fetched) <= 1 + 4 + workers


def test_waiting_is_counted():
    with Loader(Scripted(hook=lambda indices: time.sleep(0.05)), Plan(50, 1, 8)) as loader:
        assert loader.wait_seconds == 0
        next(loader)
        first = loader.wait_seconds
        assert first >= 0.05
        take(loader, 6)
        assert loader.wait_seconds > first


def test_stuck_storage_is_reported(monkeypatch):
    monkeypatch.setattr(torch_loader, "_JOIN_SECONDS", 0)
    gate = threading.Event()
    loader = Loader(Scripted(hook=lambda i: gate.wait(60)), Plan(50, 1, 8), timeout=0.05)
    with pytest.raises(RuntimeError, match=r"No data for step 0 within 0\.05 seconds.*scripted"):
        next(loader)
    stuck = threads()
    gate.set()
    for thread in stuck:
        thread.join(20)


def test_plan_and_data_must_agree():
    with pytest.raises(ValueError, match="deals 49 records, but the data set has 50"):
        Loader(Scripted(), Plan(49, 1, 8))
    with pytest.raises(ValueError, match="does not divide by 3 ranks"):
        Loader(Scripted(), Plan(50, 1, 8), "cpu", 0, 3)


def test_the_interpreter_ends_although_threads_run():
    script = """
from ddgan_fast.data.plan import Plan
from ddgan_fast.data.sources import Synthetic
from ddgan_fast.data.torch_loader import Loader
loader = Loader(Synthetic(64, 3, 1000), Plan(1000, 0, 256))
next(loader)
raise LookupError("training failed")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith("LookupError: training failed")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("resident", [False, True])
def test_cuda_gets_the_same_bytes(folder, resident):
    dataset = Decoded(FolderRecords(folder), 8, 3, cache="ram" if resident else "none")
    plan = Plan(11, 0, 4)
    with Loader(dataset, plan, "cuda") as loader:
        batches = take(loader, 50)
    for batch in batches:
        indices, flips = plan.batch(batch.step)
        assert batch.images.is_cuda and batch.flip.is_cuda
        np.testing.assert_array_equal(batch.images.cpu().numpy(), dataset.fetch(indices))
        np.testing.assert_array_equal(batch.flip.cpu().numpy(), flips)


# The device's part


def ramp():
    return torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)


def test_exact_values():
    x = to_model_input(ramp(), None).reshape(-1)
    assert x[0] == -1 and x[255] == 1
    levels = np.arange(256, dtype=np.float32)
    expected = levels * np.float32(1 / 127.5) - np.float32(1)
    np.testing.assert_array_equal(x.numpy(), expected)
    assert x[127].item() == -0.0039215087890625
    published = (levels.astype(np.float64) / 255 - 0.5) / 0.5
    assert np.abs(x.numpy() - published).max() <= 1.5e-7
    assert (x[1:] > x[:-1]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_are_casts_of_float32(dtype):
    x = to_model_input(ramp(), None, dtype)
    assert x.dtype == dtype
    assert torch.equal(x, to_model_input(ramp(), None).to(dtype))
    assert len(x.unique()) == 256


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_flip_and_layout(channels, channels_last):
    images = torch.randint(0, 256, (5, 4, 6, channels), dtype=torch.uint8)
    original = images.clone()
    flip = torch.tensor([True, False, True, True, False])
    x = to_model_input(images, flip, channels_last=channels_last)
    assert x.shape == (5, channels, 4, 6)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert x.is_contiguous(memory_format=layout)
    plain = to_model_input(images, None).contiguous()
    for i in range(5):
        expected = plain[i].numpy()[..., ::-1] if flip[i] else plain[i].numpy()
        np.testing.assert_array_equal(x[i].numpy(), expected)
    assert torch.equal(images, original)


def test_points_pass_through():
    points = torch.randn(7, 2)
    assert torch.equal(to_model_input(points, None), points)
    assert torch.equal(to_model_input(points, None, torch.float64), points.double())


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 4), torch.zeros(1, 2, 2, 3)])
def test_other_inputs_are_refused(images):
    with pytest.raises(ValueError, match=r"Expected uint8 images .* got torch.float32 of shape"):
        to_model_input(images, None)


def test_an_unknown_kind_of_loader_is_refused():
    with pytest.raises(ValueError, match="kind is 'threads'; allowed are auto, "):
        Loader(Scripted(), Plan(50, 0, 4), kind="threads")
