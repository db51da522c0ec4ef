"""Checkpoints written beside training: what is copied, what waits, and where failures go."""

import threading

import pytest
import safetensors.torch
import torch

from ddgan_fast.training import writer
from ddgan_fast.training.archive import _SAFETENSORS_NAMES, write_safetensors
from ddgan_fast.training.checkpoint import CheckpointError, list_emas, list_states, load_state
from ddgan_fast.training.checkpoint import load_ema as read_ema
from ddgan_fast.training.writer import CheckpointWriter, Stage


def content(step=0, device="cpu"):
    weight = torch.full((4, 3, 2, 2), float(step), device=device)
    return {
        "config": {"preset": "x", "rates": [1, 2.5], "none": None},
        "generator": {"w": weight.to(memory_format=torch.channels_last)},
        "ema": {"w": weight + 0.5},
        "optimizers": {"g": {"state": {0: {"step": torch.tensor(3), "m": weight.bfloat16()}}}},
        "pairs": (weight.double(), [weight[1:], "text"]),
    }


@pytest.fixture
def gate(monkeypatch):
    """An event that the writing thread waits for before it writes."""
    event = threading.Event()
    save_ema = writer.save_ema

    def late(*args):
        assert event.wait(30)
        return save_ema(*args)

    monkeypatch.setattr(writer, "save_ema", late)
    yield event
    event.set()


def steps(paths):
    return [int(path.name[-12:-3]) for path in paths]


def test_training_goes_on_while_the_state_of_its_step_is_written(tmp_path, gate):
    state = content(1)
    with CheckpointWriter(tmp_path, 3, 0) as saving:
        assert saving.save(1, state) == []
        assert not list(tmp_path.iterdir()), "saving waited for the disk"
        for part in (state["generator"]["w"], state["ema"]["w"], state["pairs"][0]):
            part.zero_()
        assert saving.news() == [] and saving.newest == 0
        gate.set()
        assert saving.finish() is None and saving.newest == 1
    saved = load_state(tmp_path / "state-000000001.pt")
    want = content(1)
    assert torch.equal(saved["generator"]["w"], want["generator"]["w"])
    assert saved["generator"]["w"].is_contiguous(memory_format=torch.channels_last)
    entry = saved["optimizers"]["g"]["state"][0]
    assert entry["m"].dtype == torch.bfloat16 and entry["step"] == 3
    assert torch.equal(saved["pairs"][0], want["pairs"][0]) and saved["pairs"][1][1] == "text"
    assert saved["config"] == want["config"]
    tensors, config, step = read_ema(tmp_path / "ema-000000001.safetensors")
    assert (float(tensors["w"].mean()), config, step) == (1.5, want["config"], 1)


def test_next_checkpoint_waits_and_none_is_left_out(tmp_path, gate, monkeypatch):
    monkeypatch.setattr(writer, "_WORTH_SAYING_S", 0.05)
    with CheckpointWriter(tmp_path, 5, 0) as saving:
        saving.save(1, content(1))
        threading.Timer(0.3, gate.set).start()
        [said] = saving.save(2, content(2))
        assert said.startswith("Training waited 0.") and "that of step 2 was written" in said
        assert steps(list_states(tmp_path)) == [1]
        saving.save(3, content(3))
    assert steps(list_states(tmp_path)) == [1, 2, 3], "leaving waits for the last"
    for step, path in enumerate(list_states(tmp_path), 1):
        assert load_state(path)["generator"]["w"].unique().tolist() == [step]


@pytest.fixture
def full_at(monkeypatch):
    """Makes the disk full for the states of some steps."""
    full, save_state = set(), writer.save_state

    def save(run_dir, step, payload, keep):
        if step in full:
            raise CheckpointError(f"the training state of step {step} was not saved")
        return save_state(run_dir, step, payload, keep)

    monkeypatch.setattr(writer, "save_state", save)
    return full


def test_failure_is_told_once_and_the_next_one_tries_again(tmp_path, full_at):
    full_at.add(2)
    with CheckpointWriter(tmp_path, 3, 0) as saving:
        for step in (1, 2):
            assert saving.save(step, content(step)) == []
        [said] = saving.save(3, content(3))
        assert said == (
            "Could not save: the training state of step 2 was not saved (the newest state is that "
            "of step 1). Training goes on; the next checkpoint tries again."
        )
        assert saving.finish() is None, "the last one was written"
        assert saving.news() == []
    assert steps(list_states(tmp_path)) == [1, 3]


def test_failure_arrives_at_the_next_tick(tmp_path, full_at):
    full_at.add(1)
    with CheckpointWriter(tmp_path, 3, 0) as saving:
        saving.save(1, content(1))
        saving._pending.exception()
        assert len(saving.news()) == 1 and saving.news() == []


def test_failure_of_the_last_one_is_returned(tmp_path, full_at):
    full_at.add(7)
    with CheckpointWriter(tmp_path, 3, newest=5) as saving:
        saving.save(7, content(7))
        assert saving.finish().endswith("was not saved (the newest state is that of step 5)")
        assert saving.finish() is None


def test_error_that_is_no_full_disk_is_not_swallowed(tmp_path):
    with CheckpointWriter(tmp_path, 3, 0) as saving:
        saving.save(1, content(1) | {"bad": object()})
        with pytest.raises(TypeError, match=r"payload\['bad'\]"):
            saving.finish()
    assert list_emas(tmp_path) and not list_states(tmp_path)


def test_copies_use_the_same_memory_again():
    stage = Stage(torch.device("cpu"))
    first = stage.copy(content(1))
    where = first["generator"]["w"].data_ptr()
    second = stage.copy(content(2))
    assert second["generator"]["w"].data_ptr() == where
    assert second["generator"]["w"].unique().tolist() == [2.0]
    grown = stage.copy({"generator": {"w": torch.ones(9)}})
    assert grown["generator"]["w"].tolist() == [1.0] * 9


def test_copies_share_no_memory_with_what_they_were_made_from():
    source = content(1)
    copied = Stage(torch.device("cpu")).copy(source)
    assert copied["pairs"][1][0].untyped_storage().nbytes() == source["pairs"][1][0].nbytes
    source["pairs"][1][0].zero_()
    assert copied["pairs"][1][0].unique().tolist() == [1.0]


def written(path, tensors):
    with open(path, "wb") as file:
        write_safetensors(tensors, {"format": "x"}, file)
    return path.read_bytes()


def test_safetensors_file_has_the_bytes_that_the_library_writes(tmp_path):
    plain = {name: torch.randn(2, 3) for name in ("b", "a", 'name with ü and "')}
    plain |= {"a half": torch.ones(1).bfloat16(), "z wide": torch.ones(1).double()}
    plain |= {"empty": torch.zeros(0, 4), "scalar": torch.tensor(1.0)}
    want = safetensors.torch.save(plain, {"format": "x"})
    assert written(tmp_path / "plain", plain) == want


def test_safetensors_file_of_all_types_is_read_by_the_library(tmp_path):
    tensors = {str(kind): torch.arange(3).to(kind) for kind in _SAFETENSORS_NAMES}
    loaded = safetensors.torch.load(written(tmp_path / "mixed", tensors))
    assert loaded.keys() == tensors.keys()
    for name, want in tensors.items():
        assert loaded[name].dtype == want.dtype and torch.equal(loaded[name], want)
    with pytest.raises(TypeError, match=r"odd is torch\.complex64"):
        write_safetensors({"odd": torch.zeros(1, dtype=torch.complex64)}, {}, None)


@pytest.mark.gpu
@pytest.mark.parametrize("room", [True, False])
def test_copy_from_a_gpu_is_of_the_step_that_asked_for_it(room, monkeypatch):
    """The stream that trains goes on at once and overwrites everything."""
    monkeypatch.setattr(Stage, "_has_room", lambda self, tensors: room)
    device = torch.device("cuda")
    source = {"w": torch.full((1 << 26,), 1.0, device=device), "n": torch.tensor(2)}
    stage = Stage(device)
    stage.copy(source)
    stage.wait()
    for value in (3.0, 4.0, 5.0):
        source["w"].fill_(value)
        copied = stage.copy(source)
        source["w"].fill_(-1.0)
        stage.wait()
        assert copied["w"].is_pinned() and bool((copied["w"] == value).all())
