"""The published command line in a training state, there and back."""

import pytest
from test_resume_published import CONTENT, read

from ddgan_fast import resume_published
from ddgan_fast.config import load_config


@pytest.mark.parametrize(
    ("preset", "dataset"),
    [("stacked_mnist", "stackmnist"), ("cifar10", "cifar10"), ("lsun_church256", "lsun"),
     ("celebahq256", "celeba_256")],
)
def test_the_data_set_goes_there_and_back(preset, dataset):
    cfg = load_config(preset)
    args = resume_published._args(cfg)
    assert args["dataset"] == dataset
    content = read(CONTENT) | {"args": args}
    back = resume_published._config(content, [])
    stacked = dataset == "stackmnist"
    assert (back.data.source == "stacked_mnist") == stacked and back.data.flip != stacked
    assert back.discriminator.kind == cfg.discriminator.kind


def test_rates_that_do_not_decay_are_those_of_the_arguments():
    content = read(CONTENT)
    notes = []
    args = {**vars(content["args"]), "no_lr_decay": True}
    group = content["optimizerG"]["param_groups"][0]
    group["lr"] = content["schedulerG"]["base_lrs"][0]
    content["optimizerD"]["param_groups"][0]["lr"] = 3e-4
    cfg = resume_published._config(content | {"args": args}, notes)
    assert cfg.optim.lr_decay == "none" and cfg.optim.lr_g == group["lr"]
    (note,) = notes
    assert "of D was 0.0003 and goes on at " in note
