"""The example scripts are valid shell, and start torchrun with options that it has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("script", sorted(EXAMPLES.iterdir()), ids=lambda path: path.name)
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
