"""The demo: trains, judges, draws, says how to go on; a second call only shows the results."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddgan_fast import cli, demo


@pytest.fixture(autouse=True)
def _same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_missing_packages_are_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["demo", "--run.dir", str(tmp_path / "run")]) == 1
    message = capsys.readouterr().err
    assert "the demo needs scikit-learn and matplotlib: pip install" in message
    assert message.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_unknown_option_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--steps", "3"]) == 2
    assert "unrecognized arguments: --steps 3" in capsys.readouterr().err


def test_program_is_named_as_the_shell_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "ddgan-fast"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])
    monkeypatch.setattr(shutil, "which", lambda name: str(program))
    assert demo._program() == "ddgan-fast"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert demo._program() == str(program)
    monkeypatch.setattr(sys, "argv", ["/src/ddgan_fast/__main__.py"])
    monkeypatch.setattr(sys, "executable", "/my python/bin/python3")
    assert demo._program() == "'/my python/bin/python3' -m ddgan_fast"


@pytest.mark.slow
def test_demo_trains_shows_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(demo, "JUDGED", 200)
    run_dir = tmp_path / "a run"
    command = ["demo", "--run.dir", str(run_dir), "--run.steps", "40", "--device", "cpu"]
    assert cli.main(command) == 0
    first = capsys.readouterr().out
    result = re.search(
        r"Fréchet distance ([\d,]+) -> ([\d,]+) \(real digits: \d+\), (\d+) of 10 digits", first
    )
    assert result is not None, first
    before, after = (int(result[i].replace(",", "")) for i in (1, 2))
    assert before > 2000
    assert after < before  # even 40 steps leave the grey of the beginning
    for name, size in (("samples.png", (10 * 65 + 1, 10 * 65 + 1)), ("losses.png", None)):
        assert str(run_dir / name) in first
        with Image.open(run_dir / name) as picture:
            assert size is None or picture.size == size
    assert f"train digits --run.dir '{run_dir}' --run.steps 80" in first
    assert f"sample '{run_dir}' -n 100" in first

    states = sorted((path.name, path.stat().st_mtime_ns) for path in run_dir.glob("state-*.pt"))
    assert cli.main(command) == 0
    again = capsys.readouterr().out
    assert result[0] in again
    assert states == sorted((p.name, p.stat().st_mtime_ns) for p in run_dir.glob("state-*.pt"))
