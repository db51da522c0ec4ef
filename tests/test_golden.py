"""The golden files: numbers of the published implementation, reproduced through the adapter."""

import importlib.util
import json
import sys
from pathlib import Path

import golden_adapter
import numpy as np
import pytest
import torch

from ddgan_fast import convert
from ddgan_fast.config import Config, DiscriminatorConfig
from ddgan_fast.models import build_discriminator, build_generator

FOLDER = Path(__file__).parent / "data" / "golden"

# Every case and how many checks it makes.
CHECKS = {
    "checkpoint_ref": 44,
    "components": 18,
    "diffusion": 144,
    "disc_large": 10,
    "disc_small": 10,
    "disc_small_b2": 10,
    "gen_256_tiny": 7,
    "gen_cifar_tiny": 7,
    "gen_mini": 7,
    "helpers": 24,
    "keys_official": 8,
    "sampling_T2": 1,
    "sampling_T4": 1,
    "train_tiny": 48,
    "upfirdn2d": 75,
}
# The 144 of "diffusion" count 13 tables, as many as the adapter offers, in each of 8 schedules.


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def check_golden():
    return load(FOLDER / "check_golden.py")


def test_no_case_is_forgotten(check_golden):
    assert set(check_golden.cases_in(FOLDER)) | {"keys_official"} == set(CHECKS)
    assert sum(CHECKS.values()) == 414


def run(check_golden, case):
    if case == "keys_official":
        checker = check_golden.Checker(golden_adapter, "cpu", 1.0)
        checker.official(FOLDER / "keys_official.json")
        return checker.R.rows
    rows, skipped = check_golden.run(golden_adapter, [FOLDER], [case], verbose=False)
    assert not skipped
    return rows


@pytest.mark.parametrize("case", CHECKS)
def test_case(check_golden, case):
    rows = run(check_golden, case)
    failed = [
        f"{row['what']}: {row['err']:.2e} > {row['tol']:.2e}" for row in rows if not row["ok"]
    ]
    assert not failed
    assert len(rows) == CHECKS[case]


INITIAL = json.loads((FOLDER / "init_facts.json").read_text())["cases"]


@pytest.mark.parametrize("facts", INITIAL, ids=lambda facts: facts["discriminator"])
def test_initial_weights(facts):
    """One seed gives the published weights bit for bit, and leaves the generator where it was."""
    args = facts["config"]
    model = convert.config_of_args(args).model
    torch.manual_seed(facts["seed"])
    generator = build_generator(model)
    assert torch.rand(4).tolist() == facts["next_four_rand_after_G"]
    cfg = Config(
        model=model,
        discriminator=DiscriminatorConfig(
            kind=facts["discriminator"], ngf=args["ngf"], t_emb_dim=args["t_emb_dim"]
        ),
    )
    torch.manual_seed(facts["seed"])
    discriminator = build_discriminator(cfg)
    compare(facts["netG"], convert.generator_to_published(dict(generator.named_parameters()), cfg))
    compare(
        facts["netD"],
        convert.discriminator_to_published(dict(discriminator.named_parameters()), cfg),
    )


def compare(facts, tensors):
    assert list(tensors) == list(facts)
    for name, fact in facts.items():
        values = tensors[name].detach()
        assert list(values.shape) == fact["shape"], name
        assert values.flatten()[:3].tolist() == fact["first"], name
        assert values.abs().max().item() == fact["absmax"], name
        wide = values.double().numpy()
        np.testing.assert_allclose(wide.std(), fact["std"], rtol=1e-5, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(wide.mean(), fact["mean"], rtol=1e-4, atol=1e-8, err_msg=name)
