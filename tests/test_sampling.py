"""Loading generators from every kind of checkpoint, and drawing from them."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from ddgan_fast import convert
from ddgan_fast.config import Config, ModelConfig, OptimConfig, load_config, save_yaml, to_dict
from ddgan_fast.export import save_generator
from ddgan_fast.kernels import philox
from ddgan_fast.models import build_generator
from ddgan_fast.sampling import (
    LoadedGenerator,
    generate,
    guess_batch,
    load_generator,
    read_checkpoint,
)
from ddgan_fast.training.checkpoint import CheckpointError, save_ema, save_state

GOLDEN = Path(__file__).parent / "data/golden/checkpoint_ref"


def image_config(channels=3, **options):
    model = ModelConfig(
        image_size=8,
        num_channels=channels,
        num_timesteps=2,
        nz=4,
        z_emb_dim=8,
        n_mlp=1,
        num_channels_dae=8,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(),
    )
    for name, value in options.items():
        setattr(model, name, value)
    return Config(preset="tiny", model=model)


def point_config():
    model = ModelConfig(kind="mlp", num_channels=2, num_timesteps=2, nz=2, tanh=False, hidden=8)
    return Config(preset="dots", model=model)


def weights_of(cfg, seed):
    torch.manual_seed(seed)
    network = build_generator(cfg)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    return network.state_dict()


def loaded(cfg, seed=0):
    return LoadedGenerator(cfg, weights_of(cfg, seed), 7, Path("memory"))


def equal(model, weights):
    state = model.network.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(state[k], weights[k]) for k in state)


def drawn(model, n, **options):
    return np.concatenate(list(generate(model, n, **options)))


@pytest.fixture
def run_dir(tmp_path):
    """A run with two checkpoints; averaged and raw weights differ."""
    cfg = image_config()
    for step in (10, 20):
        raw, ema = weights_of(cfg, step), weights_of(cfg, step + 1)
        save_ema(tmp_path, step, ema, to_dict(cfg))
        payload = {"config": to_dict(cfg), "generator": raw, "ema": ema}
        save_state(tmp_path, step, payload, keep=3)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "weights", "seed", "step"),
    [
        ("", "ema", 21, 20),
        ("", "raw", 20, 20),
        ("ema-000000010.safetensors", "ema", 11, 10),
        ("state-000000010.pt", "ema", 11, 10),
        ("state-000000010.pt", "raw", 10, 10),
    ],
)
def test_loads_every_file_of_a_run(run_dir, name, weights, seed, step):
    model = load_generator(run_dir / name, weights=weights)
    assert equal(model, weights_of(model.cfg, seed))
    assert model.step == step
    assert model.source.parent == run_dir and str(step) in model.source.name
    assert to_dict(model.cfg) == to_dict(image_config())
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.diffusion.num_timesteps == 2


def test_predicts_as_the_bare_network_does():
    cfg = image_config()
    network = build_generator(cfg).eval()
    network.load_state_dict(weights_of(cfg, 0))
    x, t, z = torch.randn(2, 3, 8, 8), torch.tensor([0, 1]), torch.randn(2, 4)
    torch.testing.assert_close(loaded(cfg)(x, t, z), network(x, t, z))


def test_published_files_hold_the_same_average():
    content = convert.read_published(GOLDEN / "content.pth")
    averaged = load_generator(GOLDEN / "content.pth")
    assert averaged.step == content["global_step"] == 2
    file = load_generator(GOLDEN / "netG_0.pth", config=averaged.cfg)
    assert equal(file, averaged.network.state_dict())
    raw = load_generator(GOLDEN / "content.pth", weights="raw")
    assert equal(raw, convert.generator_from_published(content["netG_dict"], raw.cfg))
    assert not equal(raw, averaged.network.state_dict())


def test_a_yaml_file_is_a_configuration(tmp_path):
    cfg = load_generator(GOLDEN / "content.pth").cfg
    save_yaml(cfg, tmp_path / "tiny.yaml")
    assert load_generator(GOLDEN / "netG_0.pth", config=tmp_path / "tiny.yaml").step is None


def test_loading_leaves_the_global_random_state_alone(run_dir):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_generator(run_dir)
    assert torch.equal(torch.get_rng_state(), before)


def test_netg_without_a_configuration_names_the_presets_that_fit(tmp_path):
    save_generator(loaded(load_config("digits")), tmp_path / "netG_0.pth")
    with pytest.raises(ValueError, match=r"its tensors fit digits, digits_oneshot\) by --recipe"):
        load_generator(tmp_path / "netG_0.pth")
    with pytest.raises(ValueError, match=r"trained with by --recipe"):
        load_generator(GOLDEN / "netG_0.pth")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"nz": 5}, r"were made with model.nz = 6, and the configuration has 5"),
        ({"n_mlp": 3}, r"were made with model.n_mlp = 1, and the configuration has 3"),
        ({"num_channels_dae": 16}, r"model.num_channels_dae = 8, and the configuration has 16"),
        ({"num_channels": 1}, r"model.num_channels = 3, and the configuration has 1"),
        ({"num_res_blocks": 2}, r"do not fit the configuration: \d+ missing"),
        ({"ch_mult": (2, 2)}, r"do not fit the configuration: \d+ missing"),
        ({"ch_mult": (1, 3)}, r"is \[16, 8, 3, 3\] in the file and \[24, 8, 3, 3\] in the conf"),
        ({"embedding_type": "fourier"}, r"model.embedding_type"),
    ],
)
def test_a_configuration_that_does_not_fit(options, sentence):
    cfg = load_generator(GOLDEN / "content.pth").cfg
    for name, value in options.items():
        setattr(cfg.model, name, value)
    with pytest.raises(ValueError, match=sentence):
        load_generator(GOLDEN / "netG_0.pth", config=cfg)


def test_wrong_weights_in_our_files(tmp_path):
    cfg = image_config()
    weights = weights_of(cfg, 0)
    del weights["conv_in.bias"]
    save_ema(tmp_path, 1, weights, to_dict(cfg))
    with pytest.raises(ValueError, match=r"only the configuration has conv_in\.bias"):
        load_generator(tmp_path)
    weights = weights_of(cfg, 0) | {"extra": torch.zeros(1)}
    save_ema(tmp_path, 2, weights, to_dict(cfg))
    with pytest.raises(ValueError, match="only the file has extra"):
        load_generator(tmp_path)


@pytest.mark.parametrize("name", ["run", "content"])
def test_a_second_opinion_on_the_configuration(run_dir, name):
    path = run_dir if name == "run" else GOLDEN / "content.pth"
    own = load_generator(path).cfg
    assert load_generator(path, config=own).cfg is not None
    own.model.num_timesteps = 3
    with pytest.raises(
        ValueError, match=r"model\.num_timesteps = [24], and the configuration has 3"
    ):
        load_generator(path, config=own)


def test_single_sets_of_weights(tmp_path):
    cfg = image_config()
    save_ema(tmp_path, 1, weights_of(cfg, 0), to_dict(cfg))
    with pytest.raises(ValueError, match="holds averaged weights only"):
        load_generator(tmp_path / "ema-000000001.safetensors", weights="raw")
    golden = load_generator(GOLDEN / "content.pth").cfg
    with pytest.raises(ValueError, match="holds averaged weights only"):
        load_generator(GOLDEN / "netG_0.pth", weights="raw", config=golden)
    cfg.optim = OptimConfig(ema_decay=0.0)  # the run kept no average: its weights are the raw ones
    save_ema(tmp_path, 2, weights_of(cfg, 0), to_dict(cfg))
    assert load_generator(tmp_path / "ema-000000002.safetensors", weights="raw").step == 2


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-was-here"),))


def test_files_that_are_no_checkpoints(run_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*nothing\.pth"):
        load_generator(tmp_path / "nothing.pth")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint ema-\*"):
        load_generator(empty)
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint state-\*"):
        load_generator(empty, weights="raw")
    text = tmp_path / "text.pth"
    text.write_text("hello")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_generator(text)
    with open(tmp_path / "evil.pth", "wb") as file:
        pickle.dump({"netG_dict": Evil(), "netD_dict": {}}, file, 2)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_generator(tmp_path / "evil.pth")
    assert not Path("evil-was-here").exists()
    with pytest.raises(ValueError, match=r"text\.pth is neither ema-\*\.safetensors nor state-\*"):
        read_checkpoint(text)
    for name in ("ema-000000020.safetensors", "state-000000020.pt"):
        data = (run_dir / name).read_bytes()
        (run_dir / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(CheckpointError, match=name):
            load_generator(run_dir / name)


def test_unknown_weights_and_device(run_dir):
    with pytest.raises(ValueError, match="weights is 'best': choose"):
        load_generator(run_dir, weights="best")
    with pytest.raises(ValueError, match="device is 'gpu'"):
        load_generator(run_dir, device="gpu")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_draws_bytes_of_any_channels(channels):
    images = drawn(loaded(image_config(channels)), 5, seed=1)
    assert images.dtype == np.uint8 and images.shape == (5, 8, 8, channels)
    assert images.std() > 10


def test_draws_points():
    points = drawn(loaded(point_config()), 50, seed=1)
    assert points.dtype == np.float32 and points.shape == (50, 2)
    assert np.isfinite(points).all()


def test_samples_follow_from_the_documented_key():
    model = loaded(point_config())
    key = philox.seed_tensor(3, -1, 0)
    index = torch.arange(4)
    expected = model.diffusion.draw(model, (2,), 2, key, index)
    np.testing.assert_array_equal(drawn(model, 4, seed=3), expected.numpy())


@pytest.mark.parametrize("config", [image_config, point_config])
def test_one_seed_one_set_of_samples(config):
    model = loaded(config())
    first = drawn(model, 7, seed=2)
    np.testing.assert_array_equal(drawn(model, 7, seed=2), first)
    assert not np.array_equal(drawn(model, 7, seed=3), first)
    assert not np.array_equal(first[0], first[1])
    # Convolutions of other batch sizes may round differently: at most the last bit of a byte.
    for options in ({"batch_size": 1}, {"batch_size": 3}):
        assert_close(drawn(model, 7, seed=2, **options), first)
    assert_close(drawn(model, 3, seed=2, start=4), first[4:])
    assert [len(b) for b in generate(model, 7, batch_size=3)] == [3, 3, 1]


def assert_close(a, b):
    tolerance = 1 if a.dtype == np.uint8 else 1e-4
    assert a.dtype == b.dtype and a.shape == b.shape
    assert np.abs(a.astype(np.float64) - b).max() <= tolerance


def out_of_memory_above(limit, error):
    """A LoadedGenerator whose memory holds ``limit`` samples."""

    class Small(LoadedGenerator):
        def forward(self, x, t, z):
            if len(x) > limit:
                raise error
            return super().forward(x, t, z)

    cfg = point_config()
    return Small(cfg, weights_of(cfg, 0), None, Path("memory"))


ALLOCATOR = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), MemoryError(), ALLOCATOR])
def test_halves_the_batch_when_memory_runs_out(error):
    said = []
    model = out_of_memory_above(2, error)
    batches = list(generate(model, 11, batch_size=11, seed=4, say=said.append))
    assert [len(batch) for batch in batches] == [2, 2, 2, 2, 2, 1]
    assert said == ["11 samples at once do not fit into memory; going on with 2."]
    assert_close(np.concatenate(batches), drawn(loaded(point_config()), 11, seed=4))


def test_says_so_on_stderr_by_default(capsys):
    drawn(out_of_memory_above(1, torch.OutOfMemoryError("full")), 3, batch_size=3)
    assert capsys.readouterr().err.count("\n") == 1


def test_gives_up_when_not_even_one_sample_fits():
    model = out_of_memory_above(0, torch.OutOfMemoryError("full"))
    with pytest.raises(RuntimeError, match="not even one sample fits into the memory of cpu"):
        drawn(model, 4, batch_size=4)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="a bug"):
        drawn(out_of_memory_above(0, RuntimeError("a bug")), 4)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"n": -1}, "n is -1"),
        ({"n": 1, "seed": -1}, "seed is -1"),
        ({"n": 1, "seed": 2**63}, "below 2"),
        ({"n": 1, "start": -2}, "start is -2"),
        ({"n": 1, "batch_size": 0}, "the batch size is 0"),
        ({"n": 1, "device": "gpu"}, "device is 'gpu'"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        generate(loaded(point_config()), **options)


def test_no_samples_is_fine():
    assert list(generate(loaded(point_config()), 0)) == []


def test_larger_images_come_in_smaller_batches():
    sizes = []
    for size in (8, 64, 512):
        model = loaded(image_config())
        model.cfg.model.image_size = size
        sizes.append(guess_batch(model))
    assert 64 == sizes[0] >= sizes[1] > sizes[2] >= 1
