"""Published training states become runs of ours that go on exactly, and go back."""

import argparse
import types

import golden_adapter
import numpy as np
import pytest
import torch
from PIL import Image
from test_golden import FOLDER, load
from training.tiny_runs import final_state, tiny

from ddgan_fast import convert
from ddgan_fast.cli import main
from ddgan_fast.config import from_dict, load_config, to_dict
from ddgan_fast.data.torch_loader import Batch
from ddgan_fast.resume_published import export_run, import_run
from ddgan_fast.training import trainer
from ddgan_fast.training.checkpoint import CheckpointError, load_ema, load_state, save_state
from ddgan_fast.training.draws import MicroBatch
from ddgan_fast.training.engine import Engine
from ddgan_fast.training.parallel import Ranks

CONTENT = FOLDER / "checkpoint_ref" / "content.pth"


def read(path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def assert_same(a, b, where=""):
    """Nested values are equal, tensors bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    else:
        assert a == b, where


@pytest.fixture
def changed(tmp_path):
    """Writes the golden state with changes made by a function."""

    def write(change):
        content = read(CONTENT)
        change(content)
        path = tmp_path / "changed.pth"
        torch.save(content, path)
        return path

    return write


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The golden state as a run; not to be written to."""
    return import_run(CONTENT, tmp_path_factory.mktemp("imported") / "run")


class GoldenEngine(Engine):
    """The training step of a run, on the golden draws and images."""

    def network_input(self, batch):
        return batch.images, None

    def micro_batches(self, images, flip, seeds):
        return [MicroBatch(images, None, self.draws())]


def resume_by_import(folder):
    """The golden adapter's ``resume`` through the commands and the engine of a run."""

    def resume(args, content, run):
        assert main(["convert", str(content), str(folder)]) == 0
        cfg = load_config(folder / "config.yaml")
        cfg.run.channels_last = False
        engine = GoldenEngine(cfg, Ranks(0, 1, torch.device("cpu")), torch.arange(4))
        engine.restore(load_state(next(folder.glob("state-*.pt"))))
        preview = golden_adapter.Run.skip_preview_draws
        stand_in = types.SimpleNamespace(cfg=args)
        engine.draws = lambda: golden_adapter.Run.draws(stand_in, run.tape)
        seen = {}
        update = engine.update
        engine.update = lambda name, stats, t: (seen.update(stats), update(name, stats, t))
        iters, snaps = [], {}
        for _ in run.epochs:
            for i in range(run.batches_per_epoch):
                seen.clear()
                engine.take_step(Batch(run.real(i), None, engine.step))
                losses = {key: values.mean().item() for key, values in seen.items()}
                iters.append(
                    {
                        "errD_real": losses["D/real"],
                        "errD_fake": losses["D/fake"],
                        "errG": losses["G/loss"],
                        "r1": losses.get("D/r1"),
                    }
                )
                if len(iters) in run.snapshot_at:
                    snaps[len(iters)] = snapshot(engine)
            preview(stand_in, run.tape)
        return {"iters": iters, "snaps": snaps}

    return resume


def snapshot(engine):
    def copy(values, names):
        return {names[key]: value.detach().clone() for key, value in values.items()}

    names = convert.generator_names(engine.cfg)
    return {
        "G": copy(engine.generator.state_dict(), names),
        "D": copy(engine.discriminator.state_dict(), convert.discriminator_names(engine.cfg)),
        "ema": copy(engine.ema.weights(), names),
    }


def test_an_imported_run_goes_on_as_published(tmp_path):
    adapter = types.SimpleNamespace(resume=resume_by_import(tmp_path / "run"))
    check_golden = load(FOLDER / "check_golden.py")
    rows, skipped = check_golden.run(adapter, [FOLDER], ["checkpoint_ref"], verbose=False)
    assert not skipped and len(rows) == 44
    failed = [f"{row['what']}: {row['err']:.2e}" for row in rows if not row["ok"]]
    assert not failed


def test_the_run_directory(imported):
    run = imported.path.parent
    assert imported.path.name == "state-000000002.pt" and imported.step == 2
    assert imported.notes == []
    assert sorted(path.name for path in run.iterdir()) == [
        "config.yaml",
        "ema-000000002.safetensors",
        "state-000000002.pt",
    ]
    cfg, state = load_config(run / "config.yaml"), load_state(imported.path)
    assert to_dict(from_dict(state["config"])) == {**to_dict(cfg), "preset": "published"}
    assert (cfg.run.steps, cfg.optim.lr_interval, cfg.run.batch_size) == (4, 2, 4)
    assert (cfg.optim.lr_g, cfg.optim.lr_min, cfg.optim.beta2) == (0.0016, 1e-5, 0.9)
    content = convert.read_published(CONTENT)
    average = convert.ema_of_content(content, cfg)
    for stored in (state["ema"], load_ema(run / "ema-000000002.safetensors")[0]):
        assert all(torch.equal(stored[name], value) for name, value in average.items())
    assert all(v.untyped_storage().nbytes() == v.nbytes for v in state["ema"].values())


def test_train_goes_on_with_it(tmp_path, capsys):
    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(data / f"{i}.png")
    import_run(CONTENT, run)
    command = ["train", str(run / "config.yaml"), "--data", str(data), "--run.tensorboard", "false"]
    command += ["--device", "cpu", "--run.threads", "1", "--run.sample_every", "0"]
    assert main([*command, "--run.steps", "3"]) == 0
    said = capsys.readouterr().out
    assert "Going on from" in said and "It ended" not in said
    assert final_state(run)["optimizers"]["generator"]["state"][0]["step"].item() == 3
    assert main([*command, "--run.steps", "4"]) == 0
    assert "It ended as planned, after step 3" in capsys.readouterr().out
    state = final_state(run)
    assert state["step"] == 4 and state["data_digest"]
    # From now on the run knows its data.
    Image.fromarray(pixels[0]).save(data / "another.png")
    assert main([*command, "--run.steps", "5"]) == 2
    assert "was trained on other data" in capsys.readouterr().err


def test_there_and_back(tmp_path, imported):
    done = export_run(imported.path.parent, tmp_path / "out" / "content.pth")
    assert done.step == 2 and done.notes == []
    ours, theirs = read(done.path), read(CONTENT)
    args, original = vars(ours.pop("args")), vars(theirs.pop("args"))
    assert {key: args[key] for key in original if key != "exp"} == {
        key: value for key, value in original.items() if key != "exp"
    } | {"ch_mult": [1, 2], "fir_kernel": [1, 3, 3, 1]}
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert_same(ours[key], value, key)


def test_torch_resumes_from_the_export(tmp_path):
    """Moments and rates arrive in torch's own Adam and scheduler, by published number."""
    cfg = tiny(
        tmp_path / "run",
        discriminator__kind="small",
        discriminator__block_mults=[],
        discriminator__block_downs=[],
        model__num_res_blocks=2,
        optim__lr_interval=2,
        run__steps=8,
        run__checkpoint_every=3,
    )
    trainer.train(cfg, device="cpu", quiet=True)
    path = tmp_path / "run" / "state-000000006.pt"
    state = load_state(path)
    content = read(export_run(path, tmp_path / "content.pth").path)
    generator = golden_adapter.make_generator(content["args"])
    generator.load_state_dict({k[7:]: v for k, v in content["netG_dict"].items()})
    adam = torch.optim.Adam(generator.parameters(), 1.0)
    adam.load_state_dict(content["optimizerG"])
    names = convert.generator_names(cfg)
    own = state["optimizers"]["generator"]["state"]
    order = {name: i for i, name in enumerate(state["generator"])}
    inverse = {theirs: ours for ours, theirs in names.items()}
    assert [order[name] for name in names] != sorted(order.values()), "the orders differ"
    for theirs, parameter in generator.named_parameters():
        name = inverse[theirs]
        assert torch.equal(parameter, state["generator"][name])
        entry = adam.state[parameter]
        assert torch.equal(entry["exp_avg_sq"], own[order[name]]["exp_avg_sq"])
        assert torch.equal(entry["ema"], state["ema"][name]) and entry["step"] == 6
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 99)
    scheduler.load_state_dict(content["schedulerG"])
    assert content["epoch"] == scheduler.last_epoch == 3 and scheduler.T_max == 4
    before = adam.param_groups[0]["lr"]
    scheduler.step()
    assert adam.param_groups[0]["lr"] == pytest.approx(1e-5) and before > 1e-4
    again = load_state(import_run(tmp_path / "content.pth", tmp_path / "again").path)
    for part in ("generator", "discriminator", "ema"):
        assert all(torch.equal(again[part][name], value) for name, value in state[part].items())
    for network, adam in again["optimizers"].items():
        assert_same(adam["state"], state["optimizers"][network]["state"])


def test_an_unconditional_generator_without_an_average(tmp_path, changed):
    """Its time projections have no moments, neither there nor here, so that the numbers differ."""

    def change(content):
        content["args"].conditional = False
        content["args"].use_ema = False
        cfg = convert.config_of_args(vars(content["args"]))
        full = content["netG_dict"]
        names = [f"module.{name}" for name in convert.generator_names(cfg).values()]
        # Without the first two layers all modules have other numbers.
        first = ("module.all_modules.0.", "module.all_modules.1.")
        old = [name for name in full if not name.startswith(first)]
        numbers = [list(full).index(name) for name in old]
        content["netG_dict"] = {new: full[name] for new, name in zip(names, old, strict=True)}
        state = content["optimizerG"]["state"]
        kept = {i: state[n] for i, n in enumerate(numbers) if "Dense_0" not in old[i]}
        for entry in kept.values():
            del entry["ema"]
        group = content["optimizerG"]["param_groups"][0]
        group["params"] = list(range(len(names)))
        content["optimizerG"] = {"state": kept, "param_groups": [group]}

    path = changed(change)
    done = import_run(path, tmp_path / "run")
    cfg = load_config(tmp_path / "run" / "config.yaml")
    engine = Engine(cfg, Ranks(0, 1, torch.device("cpu")), torch.arange(4))
    engine.restore(load_state(done.path))
    content, names = read(path), convert.generator_names(cfg)
    by_name = dict(engine.generator.named_parameters())
    published = content["optimizerG"]["state"]
    trained = 0
    for i, ours in enumerate(names):
        entry = engine.optimizers["generator"].state.get(by_name[ours])
        assert (entry is None) == (i not in published)
        if entry is not None:
            trained += 1
            assert torch.equal(entry["exp_avg"], published[i]["exp_avg"])
    assert 0 < trained < len(names)
    back = read(export_run(tmp_path / "run", tmp_path / "content.pth").path)
    assert_same(back["optimizerG"]["state"], published)


def test_a_parameter_without_moments_begins_as_in_torch(tmp_path, changed):
    state = load_state(import_run(changed(drop("optimizerG", "state", 3)), tmp_path / "run").path)
    assert 3 not in (found := state["optimizers"]["generator"]["state"]) and {0, 4} <= set(found)


def test_counts_of_older_versions_of_torch(tmp_path, changed):
    def change(content):
        for entry in content["optimizerD"]["state"].values():
            entry["step"] = 2

    state = load_state(import_run(changed(change), tmp_path / "run").path)
    step = state["optimizers"]["discriminator"]["state"][5]["step"]
    assert step.dtype == torch.float32 and step.item() == 2


def test_what_the_formats_do_not_share_is_said(tmp_path, changed, capsys):
    def change(content):
        content["global_step"] = 7
        content["epoch"] = 2
        content["optimizerG"]["param_groups"][0]["lr"] = 5e-4

    path, run = str(changed(change)), str(tmp_path / "run")
    assert main(["convert", path, run]) == 0
    said = capsys.readouterr().out
    assert "7 steps do not divide by 2 epochs" in said
    assert "The learning rate of G was 0.0005 and goes on at " in said
    cfg = load_config(f"{run}/config.yaml")
    assert cfg.optim.lr_interval == 4 and cfg.run.steps == 8
    assert main(["convert", run, str(tmp_path / "content_7.pth")]) == 0
    assert "Step 7 lies within an epoch of 4 steps" in capsys.readouterr().out
    assert read(tmp_path / "content_7.pth")["epoch"] == 1


def drop(*keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def reshape(content):
    entry = content["optimizerG"]["state"][3]
    entry["exp_avg"] = entry["exp_avg"][:1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.update(args=None), "does not hold the arguments"),
        (lambda c: c.update(epoch=0), "2 steps in 0 epochs are no training state"),
        (drop("schedulerD"), "it has no 'schedulerD'"),
        (drop("optimizerG", "state", 3, "exp_avg"), "it has no 'exp_avg'"),
        (drop("netD_dict", "module.start_conv.bias"), "1 missing"),
        (reshape, r"exp_avg of the generator's all_modules.1.bias is \[1\], the parameter \[32\]"),
        (
            lambda c: c["optimizerD"]["param_groups"][0]["params"].pop(),
            "the discriminator's optimiser has 37 parameters, the network 38",
        ),
        (lambda c: setattr(c["args"], "embedding_type", "fourier"), "model.embedding_type"),
    ],
)
def test_states_that_cannot_become_a_run(tmp_path, changed, change, sentence):
    run = tmp_path / "run"
    with pytest.raises(ValueError, match=rf"changed\.pth cannot become a run: .*{sentence}"):
        import_run(changed(change), run)
    assert not run.exists()


def test_refusals(tmp_path, capsys, imported):
    run = tmp_path / "run"
    with pytest.raises(ValueError, match="holds a generator alone, and a run needs"):
        import_run(CONTENT.with_name("netG_0.pth"), run)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        import_run(tmp_path / "content.pth", run)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file"):
        import_run(CONTENT, tmp_path / "file")
    assert not run.exists()
    run = imported.path.parent
    before = (run / "state-000000002.pt").read_bytes()
    assert main(["convert", str(CONTENT), str(run)]) == 2
    assert "is not empty: name a new one for the run." in capsys.readouterr().err
    assert (run / "state-000000002.pt").read_bytes() == before
    target = tmp_path / "content.pth"
    with pytest.raises(ValueError, match=r"no training state of ours, of which content\.pth could"):
        export_run(run / "ema-000000002.safetensors", target)
    for source in (run, imported.path, run / "ema-000000002.safetensors"):
        with pytest.raises(ValueError, match=r"is no published content\.pth, and only such"):
            import_run(source, tmp_path / "again")
    for option in (["--recipe", "cifar10"], ["--weights", "raw"]):
        assert main(["convert", str(CONTENT), str(tmp_path / "again"), *option]) == 2
        assert "are for a single generator" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no training state"):
        export_run(tmp_path / "empty", target)
    state = load_state(run / "state-000000002.pt")
    state["config"]["discriminator"]["kind"] = "dense"
    save_state(tmp_path / "dense", 2, state, keep=3)
    with pytest.raises(ValueError, match='of kind "dense" has no published training format'):
        export_run(tmp_path / "dense", target)
    assert not target.exists()


def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch, imported):

    def fail(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="No space"):
        export_run(imported.path, tmp_path / "out" / "content.pth")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(CheckpointError, match="was not saved"):
        import_run(CONTENT, tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
