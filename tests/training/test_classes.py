"""Class-conditional training: the same run on ranks, in parts, compiled, recorded and resumed."""

import pytest
import torch
from PIL import Image
from replay import ReplayRecorder
from tiny_runs import final_state, record, run_ranks, tensors_of, tiny

from ddgan_fast.config import validate
from ddgan_fast.data import build_dataset
from ddgan_fast.data.labels import Labels
from ddgan_fast.data.plan import Plan
from ddgan_fast.data.torch_loader import Batch
from ddgan_fast.training.choosing import wrong_gradients
from ddgan_fast.training.engine import Engine
from ddgan_fast.training.parallel import Ranks
from ddgan_fast.training.trainer import train

CLASSES = {
    "model__num_classes": 10,
    "model__num_channels": 1,
    "model__label_dropout": 0.3,
    "data__source": "digits",
    "data__flip": False,
    "model__ch_mult": [1],
    "discriminator__block_mults": [2],
    "discriminator__block_downs": [True],
}
DENOISING = {
    "loss__kind": "ddpm",
    "loss__lazy_reg": 1,
    "model__nz": 0,
    "model__tanh": False,
}
CPU = torch.device("cpu")


def engine_and_batches(tmp_path, count, **overrides):
    cfg = tiny(tmp_path, **(CLASSES | overrides))
    dataset = build_dataset(cfg)
    plan = Plan(len(dataset), cfg.run.seed, cfg.run.batch_size, cfg.data.mode, False)
    index = torch.from_numpy(plan.positions(0, 0, 1))
    labels = Labels(dataset.labels, plan)
    batches = []
    for step in range(count):
        records, _ = plan.batch(step)
        images = torch.from_numpy(dataset.fetch(records))
        batches.append(Batch(images, None, step, labels.at(step)))
    return Engine(cfg, Ranks(0, 1, CPU), index), batches


def weights(engine):
    state = engine.payload("") | {"step": 0}
    return {key: value.clone() for key, value in tensors_of(state).items()}


def largest_error(got, want):
    errors = {k: float((got[k] - want[k]).abs().max()) for k in want if want[k].numel()}
    worst = max(errors, key=errors.get)
    return errors[worst], worst


def test_run_does_not_depend_on_ranks_or_micro_batches(tmp_path):
    common = CLASSES | {"run__precision": "fp64", "run__steps": 3, "run__checkpoint_every": 3}
    common |= {"run__rewrites": "joint_d, joint_styles"}
    record(tiny(tmp_path / "one", **common))
    run_ranks(tiny(tmp_path / "two", **common), 2, tmp_path / "ranks")
    record(tiny(tmp_path / "parts", **common, run__micro_batch=4, run__recompute=[8]))
    want = tensors_of(final_state(tmp_path / "one"))
    assert "generator.label_embed.weight" in want and "ema.label_embed.weight" in want
    for other in ("two", "parts"):
        got = tensors_of(final_state(tmp_path / other))
        assert largest_error(got, want)[0] < 1e-8, (other, largest_error(got, want))


def test_denoising_does_not_depend_on_micro_batches(tmp_path):
    overrides = DENOISING | {"run__precision": "fp64"}
    whole, batches = engine_and_batches(tmp_path, 3, **overrides)
    parts, _ = engine_and_batches(tmp_path, 0, **overrides, run__micro_batch=2)
    for batch in batches:
        whole.take_step(batch)
        parts.take_step(batch)
    assert largest_error(weights(parts), weights(whole))[0] < 1e-10


def test_a_run_goes_on_exactly(tmp_path):
    common = CLASSES | {"optim__lr_decay": "none", "run__sample_count": 20}
    train(tiny(tmp_path / "whole", **common, run__steps=4, run__sample_every=4), quiet=True)
    for steps in (2, 4):
        train(tiny(tmp_path / "halves", **common, run__steps=steps), quiet=True)
    want, got = (tensors_of(final_state(tmp_path / name)) for name in ("whole", "halves"))
    assert all(torch.equal(got[key], want[key]) for key in want)
    with Image.open(tmp_path / "whole/samples/step-000000004.png") as picture:
        assert picture.width > 4 * picture.height  # a class in each of ten columns


@pytest.mark.parametrize(
    "overrides",
    [{}, {"run__micro_batch": 4}, DENOISING],
    ids=["whole", "micro-batches", "ddpm"],
)
def test_replayed_steps_take_each_batchs_labels(tmp_path, overrides):
    eager, batches = engine_and_batches(tmp_path, 4, **overrides)
    replayed, _ = engine_and_batches(tmp_path, 0, run__engine="graph", **overrides)
    replayed.switch("graph", batches[3], ReplayRecorder())
    for batch in batches:
        eager.take_step(batch)
        replayed.take_step(batch)
    want, got = weights(eager), weights(replayed)
    assert [name for name in want if not torch.equal(got[name], want[name])] == []


def test_compiled_gradients_are_those_of_eager(tmp_path):
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this torch cannot trace R1")
    quick = {"discriminator__kind": "dense", "run__compiler": "aot_eager"}
    engine, (batch,) = engine_and_batches(tmp_path, 1, **quick)
    torch._dynamo.reset()
    engine.switch("compile", batch)
    assert wrong_gradients(engine, batch) is None
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"run__rewrites": "joint_d", "loss__lazy_reg": 2},
        {"loss__x0_weight": 1.0, "loss__terms": {"l1": 1.0}},
        DENOISING,
    ],
    ids=["gan", "joint", "second discriminator", "ddpm"],
)
def test_every_network_is_told_the_same_classes(tmp_path, overrides):
    """Fakes are made and judged, and real images judged, under the labels of the batch."""
    engine, batches = engine_and_batches(tmp_path, 2, **overrides)
    heard = []

    def hear(module, args, kwargs):
        heard.append((type(module).__name__, kwargs["label"]))

    for module in engine.modules.values():
        module.register_forward_pre_hook(hear, with_kwargs=True)
    for batch in batches:
        heard.clear()
        engine.labels.take(batch)
        want = engine.labels.drawn(engine.position).clone()
        engine.take_step(batch)
        names = [name for name, _ in heard]
        joint = "run__rewrites" in overrides and batch.step == 1
        judges = 2 if "loss__x0_weight" in overrides else 1
        judged = ["Discriminator"] * (1 if joint else 2) * judges
        gan = ["Generator", *judged, "Generator", *["Discriminator"] * judges]
        assert names == (["Generator"] if overrides is DENOISING else gan)
        for _, label in heard:
            assert torch.equal(label, want.repeat(len(label) // len(want)))


def test_a_share_of_the_labels_is_dropped_by_step_and_position(tmp_path):
    overrides = {"run__batch_size": 64}
    engine, batches = engine_and_batches(tmp_path, 8, **overrides)
    dropped = []
    for step, batch in enumerate(batches):
        engine.network_input(batch)
        engine.step_on_device.fill_(step)
        found = engine.labels.drawn(engine.position)
        gone = found == 10
        assert torch.equal(found[~gone], batch.label[~gone])
        dropped.append(gone)
        # Both updates and all micro-batches see the same ones.
        engine.micros = 2
        for seeds in engine.seeds().values():
            parts = engine.micro_batches(batch.images, None, seeds)
            assert torch.equal(torch.stack([p.draws.label for p in parts], 1).flatten(), found)
    share = torch.cat(dropped).float().mean()
    assert abs(share - 0.3) < 0.08  # four standard deviations of 512 draws
    assert len({tuple(d.tolist()) for d in dropped}) == 8
    whole, _ = engine_and_batches(tmp_path, 0, **overrides, model__label_dropout=0.0)
    whole.network_input(batches[0])
    assert torch.equal(whole.labels.drawn(whole.position), batches[0].label)


def test_what_cannot_work_is_refused(tmp_path):
    cfg = tiny(tmp_path, model__num_classes=10)
    with pytest.raises(ValueError, match=r"model\.num_classes is 10, but .* has no classes"):
        train(cfg, quiet=True)
    assert not list(tmp_path.iterdir())
    cfg = tiny(tmp_path, **(CLASSES | {"model__num_classes": 9}))
    with pytest.raises(ValueError, match="has a record of class 9: set it to 10"):
        train(cfg, quiet=True)
    for field, value, sentence in (
        ("num_classes", -1, "must be at least 0"),
        ("label_dropout", 1.0, "must be at least 0 and below 1"),
        ("conditional", False, "must be true with model.num_classes 10"),
    ):
        cfg = tiny(tmp_path, **(CLASSES | {f"model__{field}": value}))
        with pytest.raises(ValueError, match=f"model.{field} is .*{sentence}"):
            validate(cfg)
    engine, (batch,) = engine_and_batches(tmp_path, 1)
    batch.label = None
    with pytest.raises(ValueError, match="know 10 classes, but the batch of step 0 has no labels"):
        engine.take_step(batch)
