"""Batches drawn by recorded graphs, and pixels made on the device."""

import numpy as np
import pytest
import torch
from replay import ReplayRecorder
from test_sampling import image_config, loaded, point_config

from ddgan_fast.drawing import Drawer, to_bytes, use_graphs
from ddgan_fast.images import to_uint8
from ddgan_fast.kernels import philox
from ddgan_fast.sampling import generate

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("config", [image_config, point_config])
def test_replayed_batches_are_the_batches(config):
    """Each size is recorded once, and every replay draws its own numbers."""
    model = loaded(config())
    key = philox.seed_tensor(5, -1, 0, CPU)
    eager, recorder = Drawer(model, key), ReplayRecorder()
    graphs = Drawer(model, key, recorder=recorder)
    for first, count in ((0, 4), (4, 4), (8, 3), (11, 4)):
        index = torch.arange(first, first + count)
        assert torch.equal(graphs.draw(index).clone(), eager.draw(index))
    assert recorder.recorded == 2


def test_pixels_are_those_of_the_host():
    x = torch.randn(3, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, :5] = torch.tensor([-1.5, 1.5, 0.0, -1.0, 1.0])
    ladder = torch.arange(256).reshape(1, 1, 16, 16) / 127.5 - 1
    for images in (x, x.to(memory_format=torch.channels_last), x.bfloat16(), ladder, x.double()):
        made, bad = to_bytes(images)
        assert made.dtype == torch.uint8 and not bad
        np.testing.assert_array_equal(made.numpy(), to_uint8(images))


def test_nan_is_noticed():
    model = loaded(image_config())
    with torch.no_grad():
        next(model.network.parameters()).fill_(torch.nan)
    for recorder in (None, ReplayRecorder()):
        drawer = Drawer(model, philox.seed_tensor(0, -1, 0, CPU), recorder=recorder)
        with pytest.raises(ValueError, match="hold NaN: the network that made them has diverged"):
            drawer.draw(torch.arange(2))


def test_low_precision_draws_nearly_the_same():
    model = loaded(image_config())
    full, half = (
        np.concatenate(list(generate(model, 6, seed=1, precision=p))) for p in ("fp32", "bf16")
    )
    difference = np.abs(full.astype(int) - half.astype(int))
    assert difference.max() > 0 and difference.mean() < 4


def test_the_engine_is_chosen_and_refused():
    assert not use_graphs("auto", CPU, 100)
    assert use_graphs("auto", GPU, 4) and not use_graphs("auto", GPU, 3)
    assert use_graphs("graph", GPU, 1) and not use_graphs("eager", GPU, 100)
    with pytest.raises(ValueError, match="CUDA graphs need a GPU and the model is on cpu"):
        use_graphs("graph", CPU, 1)
    with pytest.raises(ValueError, match='the engine is \'fast\': choose "auto", "eager" or "gra'):
        use_graphs("fast", CPU, 1)
    with pytest.raises(ValueError, match="precision is 'fp8': choose one of fp32, tf32, bf16"):
        generate(loaded(image_config()), 1, precision="fp8")
