"""EMA snapshots: tensors, configuration and step come back, or a sentence says why not."""

import pytest
import torch

from ddgan_fast.training.checkpoint import (
    CheckpointError,
    check_snapshot,
    list_emas,
    load_ema,
    save_ema,
    step_of,
)


def assert_equal(loaded, tensors):
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def test_ema_round_trip(tmp_path):
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    tensors = {
        "a": torch.randn(3, dtype=torch.float64),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "weight": torch.nn.Parameter(weight),
        "view": weight[1:],
        "half": torch.randn(5).bfloat16(),
    }
    config = {"model": {"ch_mult": [1, 2], "tanh": True, "beta": 0.1}}
    path = save_ema(tmp_path / "run", 12, tensors, config)
    assert path.name == "ema-000000012.safetensors"
    loaded, config_again, step = load_ema(path)
    assert (config_again, step) == (config, 12)
    assert_equal(loaded, tensors)
    assert check_snapshot(path)["format"] == "ddgan_fast"

    exact = save_ema(tmp_path / "G.safetensors", 12, tensors, config)
    assert exact == tmp_path / "G.safetensors" and load_ema(exact)[2] == 12


def test_ema_keeps_at_least_three(tmp_path):
    for step in range(1, 6):
        save_ema(tmp_path, step, {"w": torch.ones(1)}, {}, keep=1)
    assert [step_of(p) for p in list_emas(tmp_path)] == [3, 4, 5]


def test_every_byte_of_a_small_snapshot_is_covered(tmp_path):
    tensors, config = {"w": torch.tensor([1.5, -2.0])}, {"nz": 100}
    path = save_ema(tmp_path, 1, tensors, config)
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1
        path.write_bytes(bad)
        try:
            loaded, config_again, step = load_ema(path)
        except CheckpointError as error:
            assert str(path) in str(error)
        else:  # padding of the header, say, carries nothing
            assert (config_again, step) == (config, 1)
            assert_equal(loaded, tensors)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a ddgan_fast snapshot, or it is cut short"),
        (b"\x80\x02}q\x00." * 9, "not a ddgan_fast snapshot, or it is cut short"),
        ("plain", "not a ddgan_fast snapshot: it is a safetensors file without our metadata"),
        ("newer", "has format version 2, and this ddgan_fast reads version 1"),
        ("cut", "is cut short"),
    ],
)
def test_what_is_no_snapshot(tmp_path, content, words):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    if content == "plain":
        save_file({"w": torch.ones(2)}, path)
    elif content == "newer":
        keys = {"format": "ddgan_fast", "format_version": "2", "step": "1", "config": "{}"}
        save_file({"w": torch.ones(2)}, path, metadata=keys)
    elif content == "cut":
        truncate(save_ema(path, 1, {"w": torch.ones(200)}, {}))
    else:
        path.write_bytes(content)
    for function in (check_snapshot, load_ema):
        with pytest.raises(CheckpointError, match=words) as caught:
            function(path)
        assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="there is no snapshot"):
        load_ema(tmp_path / "absent.safetensors")
