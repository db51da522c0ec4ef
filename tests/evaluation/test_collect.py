"""Features brought together: order, halves, chosen records, JPEG."""

import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from ddgan_fast.data.dataset import ArrayDataset
from ddgan_fast.evaluation.collect import Collector, evenly, real_batches, through_jpeg
from ddgan_fast.evaluation.features import Extractor
from ddgan_fast.evaluation.frechet import gaussian_of
from ddgan_fast.training.parallel import Ranks


def extractor() -> Extractor:
    """The corner pixels as features, their negatives as logits."""

    def network(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        corner = x[:, :, 0, 0]
        return corner, -corner

    return Extractor(
        "digits", network, 3, "0", "", at_once=4, device=torch.device("cpu")
    )


def images(n: int, size: int = 8, channels: int = 3) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(0, 256, (n, size, size, channels), np.uint8)


def test_features_come_in_order_and_halves_have_their_own_moments():
    own = images(30)
    collector = Collector(
        extractor(), splits=(10,), keep=evenly(7, 30), logits=True
    )
    for numbers in np.split(np.arange(30), [3, 12, 13]):
        collector.add(numbers, own[numbers])
    found = collector.gather(Ranks(0, 1, torch.device("cpu")))
    corners = torch.from_numpy(own[:, 0, 0]).float()
    assert torch.equal(found.features, corners[torch.from_numpy(evenly(7, 30))])
    assert torch.equal(found.logits, -corners)
    for moments, part in zip(found.moments, (corners[:10], corners[10:]), strict=True):
        want = gaussian_of(part)
        assert moments.count == len(part)
        assert torch.allclose(moments.gaussian().mean, want.mean)
        assert torch.allclose(moments.gaussian().covariance, want.covariance)


def test_chosen_records_are_spread_and_of_the_number_asked_for():
    assert evenly(3, 9).nonzero()[0].tolist() == [0, 3, 6]
    assert evenly(50, 9).all() and len(evenly(50, 9)) == 9
    for n, total in ((1, 1), (7, 50), (999, 1000), (3, 10**6)):
        assert evenly(n, total).sum() == n


def test_records_are_read_unflipped_and_in_order():
    data = ArrayDataset(images(200), "", flips=True)
    wanted = np.arange(1, 200, 2)
    batches = list(real_batches(data, wanted))
    assert np.array_equal(np.concatenate([numbers for numbers, _ in batches]), wanted)
    assert np.array_equal(np.concatenate([part for _, part in batches]), data.array[wanted])


def test_an_unreadable_record_ends_it_and_leaves_no_thread():
    class Broken(ArrayDataset):
        workers = 3

        def fetch(self, indices):
            raise ValueError("image 7 is broken")

    with pytest.raises(ValueError, match="image 7 is broken"):
        list(real_batches(Broken(images(500), "", flips=True), np.arange(500)))
    assert not [t for t in threading.enumerate() if t.name.startswith("ddgan-evaluate") and
                t.is_alive() and not t.join(5) and t.is_alive()]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_jpeg_is_pillows_default(channels):
    own = images(2, 16, channels)
    found = through_jpeg(own, 75)
    for image, got in zip(own, found, strict=True):
        file = io.BytesIO()
        mode = image[..., 0] if channels == 1 else image[..., :3]
        Image.fromarray(np.ascontiguousarray(mode)).save(file, "JPEG")  # quality 75, 4:2:0
        assert np.array_equal(got.squeeze(), np.asarray(Image.open(file)))
    assert found.shape == (2, 16, 16, min(channels, 3))
    assert not np.array_equal(found, own[..., :3])
