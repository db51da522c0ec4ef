"""Labels of a step: those of the records that the loader brings, whatever loader and rank."""

import numpy as np
import pytest
import torch

from ddgan_fast.data.dataset import ArrayDataset
from ddgan_fast.data.labels import Labels, check_labels
from ddgan_fast.data.loading import make_loader
from ddgan_fast.data.plan import Plan


def numbered(n, labels=True):
    """Images whose pixels are their class."""
    classes = (np.arange(n, dtype=np.int64) * 7) % 11
    images = np.broadcast_to(classes.astype(np.uint8)[:, None, None, None], (n, 4, 4, 1))
    return ArrayDataset(
        images, f"{n} images", labels=classes if labels else None, flips=False, digest="x"
    )


@pytest.mark.parametrize("loader", ["resident", "ring", "workers"])
@pytest.mark.parametrize("mode", ["stream", "epoch"])
@pytest.mark.parametrize("world", [1, 2])
def test_labels_are_those_of_the_images(loader, mode, world):
    """From a step in the middle, over the border of an epoch."""
    data = numbered(50)
    plan = Plan(len(data), 3, 8, mode, flip=False)
    for rank in range(world):
        labels = Labels(data.labels, plan, "cpu", rank, world)
        with make_loader(data, plan, "cpu", rank, world, 4, loader=loader) as batches:
            for _ in range(6):
                batch = next(batches)
                want = batch.images[:, 0, 0, 0].long()
                assert torch.equal(labels.at(batch.step), want), batch.step


def test_a_set_smaller_than_the_batch():
    data = numbered(5)
    plan = Plan(5, 3, 12, "stream", flip=False)
    records, _ = plan.batch(1)
    assert labels_at(data, plan, 1) == data.labels[records].tolist()


def labels_at(data, plan, step):
    return Labels(data.labels, plan).at(step).tolist()


def test_data_that_cannot_teach_classes_is_refused():
    check_labels(numbered(5, labels=False), 0)
    check_labels(numbered(50), 11)
    with pytest.raises(ValueError, match=r"num_classes is 3, but the data \(5 images\) has no cla"):
        check_labels(numbered(5, labels=False), 3)
    with pytest.raises(ValueError, match=r"has a record of class 10: set it to 11\."):
        check_labels(numbered(50), 10)
    data = numbered(5)
    data.labels = data.labels - 1
    with pytest.raises(ValueError, match="record of class -1: number the classes from 0"):
        check_labels(data, 11)
