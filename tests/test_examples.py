"""The scripts of shell start torchrun with options that it has; those of Python learn and go on.

That each Python example runs as its README says is tested by test_docs.py.
"""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
SHOW = f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"
TOOLS = {
    "torchrun": SHOW,
    "scontrol": "#!/bin/sh\necho node7; sleep 0.2; echo node8\n",
    "srun": '#!/bin/sh\nshift\nexec "$@"\n',
}


@pytest.fixture
def run(tmp_path):
    """Runs an example with stand-ins for the tools; returns what torchrun was given, parsed."""
    for name, text in TOOLS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def call(name, *arguments, **variables):
        from torch.distributed.run import parse_args

        command = ["bash", str(EXAMPLES / name), *arguments]
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"PATH": path} | variables
        )
        assert done.returncode == 0, done.stderr
        return parse_args(json.loads(done.stdout))

    return call


SHELL = sorted([*EXAMPLES.glob("*.sh"), *EXAMPLES.glob("*.sbatch")])


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_script_is_valid_shell(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_slurm(run):
    job = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "41234"}
    options = run("slurm.sbatch", "--run.seed", "3", **job, DATA="my data", RUN_DIR="/shared/a")
    assert (options.nnodes, options.nproc_per_node, options.max_restarts) == ("2", "gpu", 3)
    assert (options.rdzv_backend, options.rdzv_endpoint) == ("c10d", "node7:21234")
    assert options.module and options.training_script == "ddgan_fast"
    assert options.training_script_args == [
        *("train", "celebahq256", "--data", "my data", "--run.dir", "/shared/a"),
        *("--run.seed", "3"),
    ]


def test_two_nodes(run):
    options = run("torchrun-two-nodes.sh", "node1:29400", "cifar10", "--data", "a b")
    assert (options.nnodes, options.rdzv_endpoint) == ("2", "node1:29400")
    assert options.training_script_args == ["train", "cifar10", "--data", "a b"]


def test_two_nodes_without_an_address():
    script = str(EXAMPLES / "torchrun-two-nodes.sh")
    done = subprocess.run(["bash", script, "cifar10"], capture_output=True, text=True)
    assert done.returncode == 2 and "usage:" in done.stderr


def test_the_index_names_every_example():
    listed = (EXAMPLES / "README.md").read_text()
    for path in EXAMPLES.iterdir():
        assert path.name == "README.md" or path.is_dir() or f"]({path.name})" in listed


def test_blocks_of_ops_learn_under_a_gradient_penalty():
    example = runpy.run_path(str(EXAMPLES / "kernels_alone.py"))
    generator, penalties = example["train"](9)
    assert len(penalties) == 3 and all(0 < value < 100 for value in penalties)
    torch.manual_seed(0)
    for name, first in example["Generator"]().named_parameters():
        assert not torch.equal(first, generator.get_parameter(name)), f"{name} was not trained"


def test_a_folder_of_ones_own(tmp_path, monkeypatch, capsys):
    photos, run_dir = tmp_path / "photos", tmp_path / "run"
    photos.mkdir()
    for i in range(3):
        Image.new("RGB", (20, 30), (80 * i, 40, 200)).save(photos / f"{i}.jpg")
    script = str(EXAMPLES / "train_own_folder.py")
    for steps in ("2", "3"):
        words = [script, str(photos), "--run-dir", str(run_dir), "--steps", steps]
        monkeypatch.setattr(sys, "argv", [*words, "--device", "cpu"])
        runpy.run_path(script, run_name="__main__")
        assert "3 images 16x16x3" in capsys.readouterr().out
    assert sorted(path.name for path in run_dir.glob("state-*.pt"))[-1] == "state-000000003.pt"
    with Image.open(run_dir / "drawn.png") as drawn:
        assert drawn.size == (4 * 49 + 1, 4 * 49 + 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "run"]
