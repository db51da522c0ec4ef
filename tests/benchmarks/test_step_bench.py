"""The reference recipe computes what we compute, and the runner tells times only then."""

import contextlib
import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from ddgan_fast.benchmarks import (
    cli,
    reference_filters,
    reference_networks,
    runner,
    step,
)
from ddgan_fast.benchmarks.agreement import wake
from ddgan_fast.benchmarks.reference_recipe import ReferenceRecipe, RestackedAverage
from ddgan_fast.config import from_dict, load_config, save_yaml
from ddgan_fast.data.device import to_model_input
from ddgan_fast.diffusion import Diffusion
from ddgan_fast.models import build_discriminator, build_generator
from ddgan_fast.training.draws import MicroBatch
from ddgan_fast.training.ema import WeightAverage
from ddgan_fast.training.optim import make_adam
from ddgan_fast.training.precision import Precision
from ddgan_fast.training.steps import TrainStep

TINY = {
    "model": {
        "image_size": 16,
        "num_timesteps": 4,
        "nz": 8,
        "z_emb_dim": 16,
        "n_mlp": 2,
        "num_channels_dae": 16,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [8],
    },
    "discriminator": {"kind": "small", "ngf": 8, "t_emb_dim": 16},
    "loss": {"r1_gamma": 2.0, "lazy_reg": 2},
    "data": {"source": "synthetic"},
}


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    save_yaml(from_dict(TINY), path)
    return path


class Ours:
    """Our training step on the recipe's weights, with its draws handed in."""

    def __init__(self, cfg, recipe, dtype):
        self.generator, self.discriminator = (
            build(cfg).to(dtype) for build in (build_generator, build_discriminator)
        )
        self.generator.load_state_dict(recipe.generator.state_dict())
        self.discriminator.load_state_dict(recipe.discriminator.state_dict())
        diffusion = Diffusion.from_config(cfg.model)
        self.step = TrainStep(self.generator, self.discriminator, diffusion, cfg.loss.r1_gamma)
        o = cfg.optim
        betas = (o.beta1, o.beta2)
        self.optimizer_g = make_adam(self.generator.parameters(), o.lr_g, betas, o.eps)
        self.optimizer_d = make_adam(self.discriminator.parameters(), o.lr_d, betas, o.eps)


# The recipe takes the posterior's deviation from its logarithm, in its own precision: 1e-7.
@pytest.mark.parametrize(
    ("dtype", "loss_tolerance", "gradient_tolerance"),
    [(torch.float32, 1e-5, 1e-4), (torch.float64, 1e-6, 1e-6)],
)
def test_three_steps_equal_ours(dtype, loss_tolerance, gradient_tolerance):
    cfg = from_dict(TINY)
    torch.manual_seed(0)
    recipe = ReferenceRecipe(cfg, "cpu", dtype)
    wake(recipe.generator, 0)
    wake(recipe.discriminator, 1)
    ours = Ours(cfg, recipe, dtype)
    for i in range(3):
        real = torch.rand(8, 3, 16, 16, dtype=dtype) * 2 - 1
        penalize = i % cfg.loss.lazy_reg == 0
        draws_d, draws_g = recipe.draw(real), recipe.draw(real)

        theirs = recipe.discriminator_gradients(real, draws_d, penalize)
        mine = ours.step.discriminator_gradients([MicroBatch(real, None, draws_d)], penalize)
        assert theirs.keys() <= mine.keys()
        first = i == 0
        _same(mine, theirs, loss_tolerance)
        if first:
            _same_gradients(ours.discriminator, recipe.discriminator, gradient_tolerance)
        recipe.optimizer_d.step()
        ours.optimizer_d.step()

        theirs = recipe.generator_gradients(real, draws_g)
        mine = ours.step.generator_gradients([MicroBatch(real, None, draws_g)])
        _same(mine, theirs, loss_tolerance)
        if first:
            _same_gradients(ours.generator, recipe.generator, gradient_tolerance)
        recipe.optimizer_g.step()
        ours.optimizer_g.step()


def _same(mine, theirs, tolerance):
    for name, loss in theirs.items():
        assert mine[name].mean().item() == pytest.approx(loss.item(), rel=tolerance), name


def _same_gradients(mine, theirs, tolerance):
    whole = torch.cat([p.grad.flatten() for p in theirs.parameters()]).norm()
    other = dict(theirs.named_parameters())
    for name, parameter in mine.named_parameters():
        expected = other[name].grad
        # Some gradients are zero but for rounding, such as that of the bias of attention's keys.
        size = max(expected.norm(), 1e-3 * whole)
        assert (parameter.grad - expected).norm() < tolerance * size, name


def test_the_restacked_average_is_ours():
    torch.manual_seed(0)
    network = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(3)], torch.nn.Linear(4, 2))
    mine, theirs = WeightAverage(network, 0.9), RestackedAverage(list(network.parameters()), 0.9)
    for i in range(4):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter)
        mine.update(i)
        theirs.update()
    for i, average in enumerate(mine.average):
        torch.testing.assert_close(theirs.average[i], average)


def test_the_recipe_wastes_what_the_published_code_wastes():
    cfg = from_dict(TINY)
    recipe = ReferenceRecipe(cfg, "cpu")
    real = torch.zeros(4, 3, 16, 16)
    recipe.discriminator_gradients(real, recipe.draw(real), penalize=False)
    assert all(p.grad is not None for p in recipe.generator.parameters())


def test_the_recipe_refuses_networks_that_were_not_published():
    with pytest.raises(ValueError, match=r"model\.kind is 'mlp'"):
        ReferenceRecipe(load_config("gaussians25"), "cpu")
    cfg = from_dict(TINY)
    cfg.model.fir = False
    with pytest.raises(ValueError, match=r"model\.fir is False, it must be True"):
        ReferenceRecipe(cfg, "cpu")
    recipe = ReferenceRecipe(from_dict(TINY), "cpu")
    x = torch.zeros(6, 3, 16, 16)
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        recipe.discriminator(x, torch.zeros(6, dtype=torch.int64), x)


def test_step_writes_a_row_per_provider(tiny, tmp_path, capsys):
    out = tmp_path / "step.json"
    arguments = ["step", "--preset", str(tiny), "--batch", "4", "--device", "cpu"]
    arguments += ["--baseline", "reference", "--json", str(out), "--steps", "1", "--warmup", "0"]
    assert cli.main(arguments) == 0
    rows = json.loads(out.read_text())["rows"]
    names = ["ddgan_fast", "reference", "reference_our_filter"]
    assert [row["provider"] for row in rows] == names
    for row in rows:
        assert row["case"] == "step" and row["batch"] == 4 and row["r1_every"] == 2
        assert row["device"] == "cpu" and row["dtype"] == "fp32"
        assert row["ms_p20"] == row["ms_p50"] == row["ms_p80"] > 0
        parts = row["ms_parts"]
        weighted = 0.5 * parts["with_r1"] + 0.5 * parts["without_r1"]
        assert row["ms_p50"] == pytest.approx(weighted, rel=1e-3)
        assert row["img_s"] == pytest.approx(4e3 / row["ms_p50"], rel=1e-3)
        assert row["machine"].keys() >= {"cpu", "cores", "threads", "gpu"}
        assert row["versions"].keys() >= {"python", "torch", "ddgan_fast", "commit"}
        assert row["command"].startswith("ddgan-fast bench step --preset") and row["when"]
    expected = rows[1]["ms_p50"] / rows[0]["ms_p50"]
    assert rows[0]["speedup"]["reference"]["p50"] == pytest.approx(expected, rel=1e-3)
    assert "times as fast as reference" in capsys.readouterr().out


def test_half_precision_may_be_as_far_off_as_plain_torch(tmp_path, capsys):
    path = tmp_path / "half.yaml"
    save_yaml(from_dict(TINY | {"run": {"precision": "bf16"}}), path)
    arguments = ["step", "--preset", str(path), "--batch", "4", "--device", "cpu", "--steps", "1"]
    assert cli.main([*arguments, "--warmup", "0", "--baseline", "reference"]) == 0
    assert "bf16" in capsys.readouterr().out


@pytest.mark.parametrize(("loss", "gradient", "found"), [
    (1.02, 1.01, []), (1.1, 1.01, ["loss"]), (1.0, 1.03, ["the gradient"]),
])
def test_a_loss_that_plain_torch_gets_right_by_luck_asks_no_more_of_ours(
    monkeypatch, loss, gradient, found
):
    def outcome(loss, gradient):
        return {"loss": torch.tensor(loss), "the gradient": torch.full((4,), gradient)}

    truth, lucky = outcome(1.0, 1.0), outcome(1.0, 1.012)
    turns = itertools.cycle([truth, lucky])
    monkeypatch.setattr(step, "_published", lambda *_: next(turns))
    monkeypatch.setattr(step, "_ours", lambda *_: outcome(loss, gradient))
    monkeypatch.setattr(step, "_draws", lambda *_: (None, None))
    engine = SimpleNamespace(network_input=lambda batch: (None, None),
                             precision=Precision("bf16", "cpu"))
    said = list(step.differences(SimpleNamespace(engine=engine, batch=None), None, torch.zeros(1)))
    assert sorted({text.split(": ")[1].split(" is off")[0] for text in said}) == found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_comparing_compiles_nothing_anew(tiny, precision):
    """The comparison calls compiled code as a step does: same draws, same settings."""
    counter = CompileCounter()
    options = runner.Options(str(tiny), 4, torch.device("cpu"), "reference", precision, "compile")
    with contextlib.ExitStack() as stack:
        stepper = step.Stepper(step._configuration(options), torch.device("cpu"), stack)
        stepper.engine.cfg.run.compiler = counter
        with stepper.engine.precision.settings():
            stepper.engine.switch("compile", stepper.batch)
            for kind in stepper.engine.kinds:
                stepper.step(kind)
        before = counter.frame_count
        recipe = step.woken(step._configuration(options), stepper, torch.device("cpu"))
        real = to_model_input(stepper.batch.images, stepper.batch.flip, channels_last=False)
        assert list(step.differences(stepper, recipe, real)) == []
    assert before >= 4 and counter.frame_count == before


@pytest.mark.parametrize("case", ["step", "sample"])
def test_ours_alone(case, tiny, capsys):
    arguments = [case, "--preset", str(tiny), "--batch", "2", "--device", "cpu"]
    assert cli.main([*arguments, "--steps", "1", "--warmup", "0"]) == 0
    printed = capsys.readouterr().out
    assert "ddgan_fast" in printed and "times as fast" not in printed


def test_points_have_no_baseline():
    with pytest.raises(ValueError, match="leave --baseline away"):
        cli.main(["step", "--preset", "gaussians25", "--device", "cpu", "--baseline", "reference"])


@pytest.mark.parametrize("case", ["step", "sample"])
def test_no_time_is_told_for_different_results(case, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference_networks, "SQRT2", 1.415)
    out = tmp_path / "step.json"
    arguments = [case, "--preset", str(tiny), "--batch", "4", "--device", "cpu"]
    with pytest.raises(RuntimeError, match="do not compute the same, so no time is told"):
        cli.main([*arguments, "--baseline", "reference", "--json", str(out)])
    assert not out.exists()
    assert "ms" not in capsys.readouterr().out


def test_bad_options_are_told(tmp_path):
    with pytest.raises(ValueError, match="--steps is 0: it must be at least 1"):
        cli.main(["step", "--steps", "0"])
    with pytest.raises(ValueError, match="unknown case of bench 'walk'"):
        cli.main(["walk"])
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        cli.main(["step", "--json", str(tmp_path / "none" / "step.json")])


class Clock:
    """Time that passes only when a provider works."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def perf_counter(self):
        return self.now

    def provider(self, name, **seconds):
        def work(part):
            self.calls.append((name, part))
            self.now += seconds[part].pop(0)

        return runner.Provider(
            name, "fp32", {part: lambda part=part: work(part) for part in seconds}
        )


def test_providers_take_turns_and_quantiles_are_over_rounds(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(runner, "time", clock)
    # The first number of each is the warm-up's.
    ours = clock.provider("ours", a=[9, 1, 2, 3], b=[9, 10, 20, 30])
    other = clock.provider("other", a=[9, 4, 4, 4], b=[9, 40, 40, 40])
    case = runner.Case("toy", [ours, other], {"a": 0.75, "b": 0.25}, 2, torch.device("cpu"))
    rows = runner.run(case, rounds=3, warmup=1)
    one_round = [("ours", "a"), ("other", "a"), ("ours", "b"), ("other", "b")]
    assert clock.calls == 4 * one_round
    assert [row["ms_p50"] for row in rows] == [6500, 13000]
    assert rows[0]["ms_p20"] == pytest.approx(3250 + 0.4 * 3250)
    assert rows[0]["ms_p80"] == pytest.approx(6500 + 0.6 * 3250)
    assert rows[0]["img_s"] == pytest.approx(2 / 6.5, rel=1e-4)
    ratio = rows[0]["speedup"]["other"]
    assert ratio["p50"] == 2.0
    assert ratio["p20"] == pytest.approx(4 / 3 + 0.4 * (2 - 4 / 3), rel=1e-4)
    assert "speedup" not in rows[1]


def test_nothing_is_called_before_the_providers_agree():
    clock = Clock()
    case = runner.Case(
        "toy",
        [clock.provider("ours", a=[1]), clock.provider("other", a=[1])],
        {"a": 1.0},
        1,
        torch.device("cpu"),
        differences=lambda: ["the sums differ"],
    )
    with pytest.raises(RuntimeError, match="the sums differ"):
        runner.run(case, rounds=1, warmup=0)
    assert not clock.calls


def test_our_precision_and_engine_can_be_chosen(tiny, tmp_path, monkeypatch):
    common = ["--preset", str(tiny), "--batch", "4", "--device", "cpu", "--steps", "1"]
    out = tmp_path / "rows.json"
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    options = ["--precision", "bf16", "--warmup", "0", "--json", str(out), "--threads", "2"]
    assert cli.main(["step", *common, *options, "--baseline", "reference"]) == 0
    ours, recipe, _ = json.loads(out.read_text())["rows"]
    assert (ours["dtype"], ours["engine"], recipe["dtype"]) == ("bf16", "eager", "fp32")
    assert asked == [2, torch.get_num_threads()], "and afterwards as before"
    assert cli.main(["sample", *common, *options]) == 0
    assert json.loads(out.read_text())["rows"][0]["dtype"] == "bf16"
    for case in ("step", "sample"):
        with pytest.raises(ValueError, match="CUDA graphs need a GPU"):
            cli.main([case, *common, "--engine", "graph"])


def test_the_recipe_computes_the_same_with_our_filter():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    found = []
    for filters in (contextlib.nullcontext, reference_filters.our_filter):
        with filters():
            found.append(reference_filters.upsample_2d(x, (1, 3, 3, 1)))
            found.append(reference_filters.downsample_2d(x, (1, 3, 3, 1)))
            found.append(reference_filters.filter_2d(x, torch.rand(3, 3), 1, 1, (1, 1)).shape)
    for published, ours in zip(found[:2], found[3:5], strict=True):
        torch.testing.assert_close(published, ours)
    assert found[2] == found[5]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("step --preset gaussians25 --baseline reference", "for images, and gaussians25 is for"),
        ("step --preset digits_ddpm --baseline reference", "and digits_ddpm is a ddpm"),
        ("step --preset digits --precision fp64", "'fp64', which is for tests: time fp32 or bf16"),
        ("sample --preset digits --precision fp64", "--precision is 'fp64': choose one of"),
    ],
)
def test_what_would_tell_nothing_is_refused(words, sentence):
    with pytest.raises(ValueError, match=sentence):
        cli.main([*words.split(), "--device", "cpu", "--steps", "1"])


def test_the_recipe_with_our_filter_is_compared_too(tiny, monkeypatch):
    own = reference_filters.upfirdn2d
    monkeypatch.setattr(reference_filters, "upfirdn2d", lambda *a, **k: 1.01 * own(*a, **k))
    arguments = ["step", "--preset", str(tiny), "--batch", "4", "--device", "cpu"]
    with pytest.raises(RuntimeError, match="do not compute the same"):
        cli.main([*arguments, "--baseline", "reference"])
