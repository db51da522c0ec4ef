"""Runs that are stopped, killed, damaged or misled, and go on or say why not."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from tiny_runs import final_state, tensors_of, tiny

from ddgan_fast.config import Config, save_yaml, to_dict
from ddgan_fast.training import checkpoint, run_state, trainer, writer
from ddgan_fast.training.checkpoint import CheckpointError
from ddgan_fast.training.engine import Engine, micro_count
from ddgan_fast.training.guard import NonFiniteError
from ddgan_fast.training.steps import TrainStep


def train(cfg):
    return trainer.train(cfg, device="cpu", quiet=True)


def assert_same_run(a, b):
    want, got = tensors_of(final_state(a)), tensors_of(final_state(b))
    assert want.keys() == got.keys()
    for key, value in want.items():
        assert torch.equal(value, got[key]), key


def start_process(cfg, tmp_path):
    """The run in a process of its own, through the Python API, as ``ddgan-fast train`` does."""
    path = tmp_path / "config.yaml"
    save_yaml(cfg, path)
    program = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from ddgan_fast.config import load_config\n"
        "from ddgan_fast.training.trainer import train\n"
        "train(load_config(sys.argv[1]), device='cpu')\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_run_directory(tmp_path):
    cfg = tiny(tmp_path / "run", run__sample_every=3, run__tensorboard=True)
    result = train(cfg)
    assert (result.step, result.finished, result.run_dir) == (6, True, tmp_path / "run")
    names = {p.name for p in result.run_dir.iterdir()}
    steps = ("000000002", "000000004", "000000006")
    assert names >= {"config.yaml", "log.jsonl", "samples"}
    assert names >= {f"state-{s}.pt" for s in steps} | {f"ema-{s}.safetensors" for s in steps}
    assert any(name.startswith("events.out.tfevents") for name in names)
    samples = sorted(p.name for p in (result.run_dir / "samples").iterdir())
    assert samples == ["step-000000003.png", "step-000000006.png"]
    lines = [json.loads(line) for line in (result.run_dir / "log.jsonl").open()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert {"D/real", "D/fake", "D/r1", "G/loss", "G/grad_norm", "img_s", "wait_share"} <= set(
        lines[0]
    )


def test_weights_average_learning_rate_and_penalty_follow_the_configuration(tmp_path):
    cfg = tiny(tmp_path / "run")
    train(cfg)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    # R1 at steps 0 and 3 only: the tick after step 6 saw steps 4 and 5.
    assert [("D/r1" in line) for line in lines] == [True, True, False]
    assert lines[-1]["lr/G"] == pytest.approx(1e-5)
    state = final_state(tmp_path / "run")
    assert any(not torch.equal(state["ema"][k], v) for k, v in state["generator"].items())


@pytest.mark.parametrize("stopped_at", [2, 4])
def test_resuming_is_exact(tmp_path, stopped_at):
    train(tiny(tmp_path / "whole"))
    interrupted = tiny(tmp_path / "parts")
    run = Engine.take_step

    def stop_late(self, batch):
        if self.step == stopped_at + 1:
            raise KeyboardInterrupt  # one step after the state, which is lost
        run(self, batch)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Engine, "take_step", stop_late)
        train(interrupted)
    assert final_state(tmp_path / "parts")["step"] == stopped_at
    train(interrupted)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resuming_is_exact_after_kill_9_at_any_moment(tmp_path):
    common = {"run__steps": 12, "run__checkpoint_every": 1, "run__tick": 1}
    train(tiny(tmp_path / "whole", **common))
    cfg = tiny(tmp_path / "killed", **common)
    moments = random.Random(0)
    kills = 0
    while not (tmp_path / "killed" / "state-000000012.pt").exists():
        process = start_process(cfg, tmp_path)
        states = len(list((tmp_path / "killed").glob("state-*.pt")))
        if kills < 3:
            newest = states and checkpoint.list_states(tmp_path / "killed")[-1]
            wait_for(
                lambda newest=newest: (
                    (tmp_path / "killed").exists()
                    and checkpoint.list_states(tmp_path / "killed")
                    and checkpoint.list_states(tmp_path / "killed")[-1] != newest
                ),
                process,
            )
            time.sleep(moments.random() * 0.2)
            process.kill()
            kills += 1
        output = process.communicate(timeout=60)[0]
        assert kills <= 3 or process.returncode == 0, output
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    lines = [json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").open()]
    assert [line["step"] for line in lines] == list(range(1, 13))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_exits_with_the_words_how_to_go_on(tmp_path, number):
    cfg = tiny(tmp_path / "run", run__steps=100_000, run__checkpoint_every=100_000)
    process = start_process(cfg, tmp_path)
    wait_for(lambda: (tmp_path / "run" / "log.jsonl").exists()
             and (tmp_path / "run" / "log.jsonl").stat().st_size, process)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert f"Stopped by {number.name} after step" in output
    assert "The same command goes on from here." in output
    assert final_state(tmp_path / "run")["step"] > 0


def test_damaged_newest_state_is_reported_and_the_one_before_is_used(tmp_path, capsys):
    train(tiny(tmp_path / "whole"))
    cfg = tiny(tmp_path / "run")
    train(cfg)
    newest = tmp_path / "run" / "state-000000006.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 0xFF
    newest.write_bytes(data)
    trainer.train(cfg, device="cpu")
    output = capsys.readouterr().out
    assert "Skipped a damaged checkpoint" in output and newest.name in output
    assert "state-000000004.pt" in output
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_run_of_which_no_state_is_whole_does_not_begin_anew(tmp_path):
    cfg = tiny(tmp_path)
    train(cfg)
    for path in tmp_path.glob("state-*.pt"):
        path.write_bytes(b"")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=r"none of the 3 training states .* can be read"):
        train(cfg)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_full_disk_loses_nothing_and_training_goes_on(tmp_path, capsys, monkeypatch):
    cfg = tiny(tmp_path / "run", run__sample_every=0)
    save = writer.save_state

    def full_at_4(run_dir, step, content, keep):
        if step == 4:
            raise CheckpointError("the training state of step 4 was not saved (No space left)")
        return save(run_dir, step, content, keep)

    monkeypatch.setattr(writer, "save_state", full_at_4)
    trainer.train(cfg, device="cpu")
    assert "Could not save: the training state of step 4" in capsys.readouterr().out
    assert [p.name for p in checkpoint.list_states(tmp_path / "run")] == [
        "state-000000002.pt",
        "state-000000006.pt",
    ]


def test_full_disk_at_the_end_is_an_error_that_names_the_newest_state(tmp_path, monkeypatch):
    cfg = tiny(tmp_path / "run")
    save = writer.save_state

    def full_at_6(run_dir, step, content, keep):
        if step == 6:
            raise CheckpointError("the training state of step 6 was not saved (No space left)")
        return save(run_dir, step, content, keep)

    monkeypatch.setattr(writer, "save_state", full_at_6)
    with pytest.raises(CheckpointError, match=r"the newest state is that of step 4"):
        train(cfg)


def test_non_finite_gradients_are_skipped_then_stop_the_run(tmp_path, monkeypatch):
    cfg = tiny(tmp_path / "run", run__max_skipped=3, run__steps=100)
    denoise = TrainStep.discriminator_gradients

    def poisoned(self, micros, penalize, scale=None):
        if poisoned.after <= 0:
            micros[0].images = micros[0].images.to(torch.float32).permute(0, 3, 1, 2) * torch.nan
            micros[0].flip = None
        poisoned.after -= 1
        return denoise(self, micros, penalize, scale)

    poisoned.after = 5
    monkeypatch.setattr(TrainStep, "discriminator_gradients", poisoned)
    with pytest.raises(NonFiniteError) as caught:
        train(cfg)
    message = str(caught.value)
    assert "at step 5" in message and "discriminator" in message and "loss nan" in message
    assert "at timestep" in message and "the last good state is kept" in message
    state = final_state(tmp_path / "run")
    assert all(torch.isfinite(v).all() for v in tensors_of(state).values())


def test_state_of_another_network_is_refused(tmp_path):
    train(tiny(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"holds a run with model\.num_channels_dae = 8, but"):
        train(tiny(tmp_path / "run", model__num_channels_dae=16))
    with pytest.raises(ValueError, match=r"run\.batch_size = 8, but run\.batch_size = 16"):
        train(tiny(tmp_path / "run", run__batch_size=16))


def test_an_option_newer_than_the_state_had_its_default():
    cfg = Config()
    saved = {"config": to_dict(cfg), "data_digest": "a"}
    del saved["config"]["model"]["num_classes"]
    run_state.check(saved, cfg, "a", "run", print)
    cfg.model.num_classes = 10
    with pytest.raises(ValueError, match=r"a run with model\.num_classes = 0, but"):
        run_state.check(saved, cfg, "a", "run", print)


def test_other_data_are_refused_unless_allowed(tmp_path):
    train(tiny(tmp_path / "run"))
    other = {"data__limit": 60, "run__steps": 8}
    with pytest.raises(ValueError, match=r"was trained on other data"):
        train(tiny(tmp_path / "run", **other))
    assert train(tiny(tmp_path / "run", **other, data__allow_change=True)).step == 8


def test_finished_run_says_so_and_changes_nothing(tmp_path, capsys):
    cfg = tiny(tmp_path / "run")
    train(cfg)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("*-*")}
    assert trainer.train(cfg, device="cpu").finished
    assert "The run is finished: 6 steps. Raise --run.steps to go on." in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "run").glob("*-*")}


def test_two_runs_in_one_directory_are_refused(tmp_path):
    cfg = tiny(tmp_path / "run", run__steps=100_000)
    process = start_process(cfg, tmp_path)
    try:
        wait_for(lambda: (tmp_path / "run" / "log.jsonl").exists(), process)
        with pytest.raises(RuntimeError, match="another process is training in"):
            train(cfg)
    finally:
        process.kill()
        process.communicate()


def test_device_that_is_not_there(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="finds no usable GPU"):
        trainer.train(tiny(tmp_path / "run"), device="cuda", quiet=True)
    with pytest.raises(ValueError, match='use "cpu", "cuda" or "cuda:0"'):
        trainer.train(tiny(tmp_path / "run"), device="gpu", quiet=True)
    assert not os.path.exists(tmp_path / "run")


def test_micro_batch_that_does_not_divide(tmp_path):
    with pytest.raises(ValueError, match=r"run\.micro_batch is 3: it must divide"):
        train(tiny(tmp_path / "run", run__micro_batch=3))
    assert micro_count(8, 4) == 2
    with pytest.raises(ValueError, match="each rank has 8 images per step: choose a divisor of it"):
        micro_count(8, 3)


def test_bf16_and_contiguous_runs_work(tmp_path):
    train(tiny(tmp_path / "bf16", run__precision="bf16", run__steps=3))
    train(tiny(tmp_path / "nchw", run__channels_last=False, run__steps=3))
    train(tiny(tmp_path / "nhwc", run__steps=3))
    a, b = (final_state(tmp_path / name)["generator"] for name in ("nchw", "nhwc"))
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 2e-2


def test_threads_are_set_for_the_run_only(tmp_path, monkeypatch):
    seen = []
    step = Engine.take_step
    monkeypatch.setattr(
        Engine,
        "take_step",
        lambda run, batch: (seen.append(torch.get_num_threads()), step(run, batch)),
    )
    before = torch.get_num_threads()
    train(tiny(tmp_path / "run", run__threads=before + 1, run__steps=1))
    assert seen == [before + 1]
    assert torch.get_num_threads() == before
