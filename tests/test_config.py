"""Reading, overriding, validating and writing configurations."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ddgan_fast import config as config_module
from ddgan_fast.config import Config, from_dict, load_config, save_yaml, to_dict, validate
from ddgan_fast.validation import group_norm_widths


def refusal(name: str, overrides: dict[str, object]) -> str:
    with pytest.raises(ValueError) as caught:
        load_config(name, overrides)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# Types


@pytest.mark.parametrize(
    ("name", "given", "want"),
    [
        ("model.num_timesteps", 2, 2),
        ("model.num_timesteps", "2", 2),
        ("model.num_timesteps", 2.0, 2),
        ("run.steps", "1e3", 1000),
        ("run.steps", "400_000", 400_000),
        ("optim.lr_g", "1e-4", 1e-4),
        ("optim.lr_g", "1.5E-4", 1.5e-4),
        ("model.beta_max", 10, 10.0),
        ("model.fir_kernel", [1, 2, 1], (1.0, 2.0, 1.0)),
        ("model.fir_kernel", "[1, 1e-1]", (1.0, 0.1)),
        ("model.ch_mult", "[1, 2]", (1, 2)),
        ("model.ch_mult", (1, 2), (1, 2)),
        ("model.attn_resolutions", "[]", ()),
        ("discriminator.block_downs", "[true, false]", (True, False)),
        ("model.tanh", "false", False),
        ("run.micro_batch", "null", None),
        ("run.micro_batch", "8", 8),
        ("run.dir", "123", "123"),
        ("run.dir", Path("a/b"), "a/b"),
        ("run.dir", "null", None),
    ],
)
def test_override_becomes_the_type_of_its_field(name: str, given: object, want: object) -> None:
    section, field = name.split(".")
    start = {"discriminator.block_mults": [2, 2], "discriminator.kind": "custom"}
    got = getattr(
        getattr(
            load_config(
                "cifar10", start | {"discriminator.block_downs": [True, True], name: given}
            ),
            section,
        ),
        field,
    )
    assert got == want and type(got) is type(want)
    if isinstance(want, tuple):
        assert [type(item) for item in got] == [type(item) for item in want]


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("model.num_timesteps", 2.5, "it must be a whole number"),
        ("model.num_timesteps", "four", "it must be a whole number"),
        ("model.num_timesteps", True, "it must be a whole number"),
        ("model.num_timesteps", None, "it must be a whole number"),
        ("model.num_timesteps", float("inf"), "it must be a whole number"),
        ("run.micro_batch", "none", "it must be a whole number or null"),
        ("run.micro_batch", 0.5, "it must be a whole number or null"),
        ("optim.lr_g", "fast", "it must be a finite number"),
        ("optim.lr_g", float("nan"), "it must be a finite number"),
        ("optim.lr_g", "1e999", "it must be a finite number"),
        ("optim.lr_g", 10**400, "it must be a finite number"),
        ("optim.lr_g", True, "it must be a finite number"),
        ("optim.lr_g", "2001-13-45", "it must be a finite number"),
        ("model.tanh", 1, "it must be true or false"),
        ("model.tanh", "1", "it must be true or false"),
        ("model.ch_mult", "1 2 2", "it must be a list of whole numbers such as [1, 2]"),
        ("model.ch_mult", "[1, 2", "it must be a list of whole numbers such as [1, 2]"),
        ("model.ch_mult", 2, "it must be a list of whole numbers such as [1, 2]"),
        ("model.ch_mult", [1, 1.5], "it must be a list of whole numbers such as [1, 2]"),
        ("model.ch_mult", [1, None], "it must be a list of whole numbers such as [1, 2]"),
        ("model.kind", 3, "it must be text"),
        ("data.path", 3, "it must be text or null"),
    ],
)
def test_value_of_another_type_is_refused(name: str, given: object, words: str) -> None:
    assert refusal("cifar10", {name: given}) == f"{name} is {given!r}: {words}."


# Names


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "model.num_timestep",
            ["did you mean 'model.num_timesteps'", "model has kind, image_size"],
        ),
        ("num_timesteps", ["did you mean 'model.num_timesteps'", "sections are model, discr"]),
        ("modle.nz", ["did you mean 'model.nz'", "sections are model, discriminator, loss"]),
        ("model", ["model is a section", "such as model.kind"]),
        ("zzz", ["unknown option 'zzz': sections are model"]),
    ],
)
def test_unknown_option_names_the_closest_and_what_exists(name: str, words: list[str]) -> None:
    message = refusal("digits", {name: 3})
    assert all(word in message for word in words), message


def test_unknown_preset_names_the_closest_and_what_exists() -> None:
    message = refusal("cifar01", {})
    assert "unknown preset 'cifar01' (did you mean 'cifar10'" in message
    assert "celebahq256, celebahq256_paper, cifar10" in message


# Files


def test_file_starts_from_its_base_and_keeps_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "base: digits\noptim: {lr_g: 1e-3}\nrun:\n  steps: 7\n")
    got = load_config(path, {"run.tick": 3})
    want = load_config("digits", {"optim.lr_g": 0.001, "run.steps": 7, "run.tick": 3})
    assert got.preset == "mine"  # names runs/mine, apart from runs/digits
    got.preset = "digits"
    assert got == want


def test_file_without_base_starts_from_the_defaults(tmp_path: Path) -> None:
    got = load_config(write(tmp_path / "own.yaml", "run: {steps: 7}\n"))
    want = Config(preset="own")
    want.run.steps = 7
    assert got == want


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: cifar\n", "unknown base preset in"),
        ("base: [cifar10]\n", "unknown base preset in"),
        ("model: {num_timestep: 3}\n", "did you mean 'model.num_timesteps'"),
        ("model: {num_timesteps: four}\n", "model.num_timesteps is 'four' in"),
        ("model:\n  nz: 3\n  nz: 4\n", "'nz' is given twice"),
        ("model: [\n", "is not valid YAML"),
        ("run: {seed: !!python/name:os.system }\n", "is not valid YAML"),
        ("? [1]\n: 2\n", "is not valid YAML"),
        ("", "holds no options"),
        ("- 1\n", "holds no options"),
        ("model:\n", "is a section"),
        ("model: {kind: {a: 1}}\n", "it must be text"),
    ],
)
def test_bad_file_is_refused_and_named(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path / "bad.yaml", text)
    message = refusal(str(path), {})
    assert words in message and str(path) in message


def test_binary_and_absent_files(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    assert "is not valid YAML" in refusal(str(binary), {})
    with pytest.raises(FileNotFoundError, match=r"no configuration file .*absent\.yaml"):
        load_config(tmp_path / "absent.yaml")
    assert "unknown preset" in refusal(str(tmp_path), {})


def test_saved_configuration_is_read_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "config.yaml"
    path.parent.mkdir()
    odd = {
        "run.dir": "1e-4",
        "data.path": "a: b # c ü",
        "optim.lr_g": 1.25e-4,
        "run.seed": 2**63 - 1,
    }
    config = load_config("digits", odd)
    save_yaml(config, path)
    assert load_config(path) == config
    text = path.read_text(encoding="utf-8")
    assert "  ch_mult: [1]\n" in text and text.startswith("preset: digits\nmodel:\n")
    assert [item.name for item in path.parent.iterdir()] == ["config.yaml"]


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "config.yaml", "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_yaml(Config(), path)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["config.yaml"]


def test_dict_is_plain_and_comes_back() -> None:
    config = load_config("cifar10", {"model.attn_resolutions": [8, 16]})
    values = to_dict(config)
    assert yaml.safe_load(yaml.safe_dump(values)) == values
    assert from_dict(values) == config
    assert from_dict({"optim": {"lr_g": "1e-4"}}).optim.lr_g == 1e-4
    with pytest.raises(ValueError, match="unknown option 'run.step'"):
        from_dict({"run": {"step": 3}})


def test_configurations_share_nothing() -> None:
    first = load_config("digits")
    first.model.nz = 99
    assert load_config("digits").model.nz != 99 and Config().model.nz == 100


def test_loading_needs_neither_torch_nor_a_command_line_parser() -> None:
    code = (
        "import sys; from ddgan_fast.config import load_config; load_config('digits');"
        "print([m for m in ('torch', 'jsonargparse', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_field_has_a_docstring_line() -> None:
    tree = ast.parse(inspect.getsource(config_module))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert len(classes) == 7
    for node in classes:
        for place, item in enumerate(node.body):
            if isinstance(item, ast.AnnAssign):
                follows = node.body[place + 1] if place + 1 < len(node.body) else None
                name = f"{node.name}.{ast.unparse(item.target)}"
                assert isinstance(follows, ast.Expr), f"{name} has no docstring"
                text = ast.literal_eval(follows.value)
                assert isinstance(text, str) and "\n" not in text and text.endswith("."), name


# Validation


DDPM = {"model.resblock_type": "ddpm", "model.resamp_with_conv": False}
CUSTOM = {"discriminator.kind": "custom"}
GEOMETRIC = {"model.schedule": "geometric", "model.beta_max": 0.9}

REFUSED = [
    ("cifar10", {"model.kind": "unet"}, 'model.kind is "unet": it must be "ncsnpp" or "mlp"'),
    ("cifar10", {"model.num_channels": 2}, "model.num_channels is 2: it must be 1, 3 or 4"),
    ("cifar10", {"model.image_size": 0}, "model.image_size is 0: it must be at least 1"),
    ("cifar10", {"model.image_size": 36, "model.ch_mult": [1, 1, 1, 1]}, "must be divisible by 8"),
    (
        "cifar10",
        CUSTOM
        | {
            "model.image_size": 30,
            "discriminator.block_mults": [2],
            "discriminator.block_downs": [True],
        },
        "model.image_size is 30: it must be divisible by 8, because ch_mult has 4 resolutions",
    ),
    ("cifar10", {"model.num_timesteps": 0}, "model.num_timesteps is 0: it must be at least 1"),
    ("cifar10", {"model.num_timesteps": 10**7, "model.beta_min": 0.0}, "no noise in float32"),
    ("cifar10", {"model.nz": 0}, "model.nz is 0"),
    ("cifar10", {"model.z_emb_dim": 0}, "model.z_emb_dim is 0"),
    ("cifar10", {"model.n_mlp": -1}, "model.n_mlp is -1: it must be at least 0"),
    ("cifar10", {"model.num_res_blocks": 0}, "model.num_res_blocks is 0"),
    ("cifar10", {"model.ch_mult": []}, "model.ch_mult is []: it must be a list of at least one"),
    ("cifar10", {"model.ch_mult": [1, 0]}, "model.ch_mult is [1, 0]"),
    ("cifar10", {"model.attn_resolutions": [16, 0]}, "model.attn_resolutions is [16, 0]"),
    ("cifar10", {"model.dropout": 1.0}, "model.dropout is 1.0: it must be at least 0 and below 1"),
    ("cifar10", {"model.dropout": -0.1}, "model.dropout is -0.1"),
    ("cifar10", {"model.fir_kernel": [1, -1]}, "model.fir_kernel is [1.0, -1.0]: its taps"),
    ("cifar10", {"model.fir_kernel": []}, "model.fir_kernel is []"),
    (
        "cifar10",
        {"model.num_channels_dae": 2},
        "model.num_channels_dae is 2: it must be at least 4",
    ),
    ("cifar10", {"model.num_channels_dae": 3}, "divides by (width // 2 - 1)"),
    (
        "cifar10",
        {"discriminator.t_emb_dim": 2},
        "discriminator.t_emb_dim is 2: it must be at least",
    ),
    ("cifar10", {"discriminator.t_emb_dim": 3}, "discriminator.t_emb_dim is 3"),
    ("cifar10", {"model.num_channels_dae": 36, "model.ch_mult": [4]}, "144 channels"),
    ("cifar10", {"model.num_channels_dae": 100, "model.ch_mult": [2]}, "200 channels"),
    # 68 is fine alone, 68 + 68 only meets a norm through a skip connection.
    ("cifar10", {"model.num_channels_dae": 68, "model.ch_mult": [1]}, "(with the skip connection)"),
    ("cifar10", {"model.num_channels_dae": 9, "model.ch_mult": [1]}, "2 groups"),
    ("cifar10", {"model.embedding_type": "fourier"}, "log 0 is minus infinity"),
    ("cifar10", {"model.embedding_type": "learned"}, 'it must be "positional"'),
    ("cifar10", {"model.progressive": "residual"}, "nothing says what it should do"),
    ("cifar10", {"model.progressive": "x"}, 'it must be "none" or "output_skip"'),
    ("cifar10", {"model.progressive_input": "x"}, 'it must be "none", "input_skip" or "residual"'),
    ("cifar10", {"model.progressive_combine": "x"}, 'it must be "sum" or "cat"'),
    ("cifar10", {"model.resblock_type": "x"}, 'it must be "biggan", "biggan_oneadagn" or "ddpm"'),
    (
        "cifar10",
        {"model.resblock_type": "ddpm"},
        "model.resamp_with_conv is true: it must be false",
    ),
    ("cifar10", DDPM | {"model.fir": False}, "model.fir is false: it must be true with resblock_t"),
    (
        "cifar10",
        {"model.progressive": "output_skip", "model.fir": False},
        'model.fir is false: it must be true with progressive "output_skip"',
    ),
    ("cifar10", {"model.schedule": "x"}, 'model.schedule is "x": it must be "vp" or "geometric"'),
    (
        "cifar10",
        {"model.schedule": "geometric"},
        "model.beta_max is 20.0: it must lie between 0 and 1",
    ),
    ("cifar10", GEOMETRIC | {"model.beta_min": 0}, "model.beta_min is 0.0: it must lie between"),
    ("cifar10", GEOMETRIC | {"model.beta_max": 1}, "model.beta_max is 1.0: it must lie between"),
    ("cifar10", GEOMETRIC | {"model.beta_min": 0.95}, "model.beta_max is 0.9: it must be above"),
    ("cifar10", {"model.beta_min": -0.1}, "model.beta_min is -0.1: it must be at least 0"),
    ("cifar10", {"model.beta_min": 20}, "must be above model.beta_min, which is 20.0"),
    ("cifar10", {"model.beta_min": 0, "model.beta_max": 1e-9}, "no noise in float32"),
    ("cifar10", {"model.beta_max": 2000}, "model.beta_max is 2000.0: it must be smaller"),
    ("cifar10", {"model.beta_max": 1e300}, "no signal would be left"),
    (
        "gaussians25",
        {"model.num_channels": 3},
        "model.num_channels is 3: it must be 2, because a po",
    ),
    ("gaussians25", {"model.hidden": 0}, "model.hidden is 0"),
    ("gaussians25", {"model.hidden_layers": 0}, "model.hidden_layers is 0"),
    ("gaussians25", {"model.point_features": -1}, "model.point_features is -1"),
    ("gaussians25", {"model.tanh": True}, "model.tanh is true: it must be false for gaussians25"),
    ("gaussians25", {"data.source": "digits"}, 'only "gaussians25" has them'),
    (
        "gaussians25",
        {"discriminator.kind": "small"},
        'it must be "mlp", because model.kind is "mlp"',
    ),
    ("gaussians25", {"discriminator.hidden": 0}, "discriminator.hidden is 0"),
    ("gaussians25", {"discriminator.hidden_layers": 0}, "discriminator.hidden_layers is 0"),
    ("gaussians25", {"discriminator.point_features": -1}, "discriminator.point_features is -1"),
    ("cifar10", {"data.source": "gaussians25"}, "takes images, but gaussians25 has points"),
    ("cifar10", {"discriminator.kind": "mlp"}, 'it must be "small", "large" or "custom", because'),
    ("cifar10", {"discriminator.ngf": 0}, "discriminator.ngf is 0"),
    ("cifar10", {"discriminator.kind": "large"}, "it must be divisible by 64, because the large"),
    (
        "digits",
        {"model.image_size": 28, "discriminator.kind": "small"},
        "divisible by 8, because the s",
    ),
    ("cifar10", CUSTOM, "discriminator.block_mults is []: it must be a list of at least one"),
    ("digits", {"discriminator.block_mults": [2, 0]}, "discriminator.block_mults is [2, 0]"),
    (
        "digits",
        {"discriminator.block_downs": [True]},
        "discriminator.block_downs is [true]: it must h",
    ),
    (
        "digits",
        {"discriminator.block_downs": [True, True], "model.image_size": 6},
        "divisible by 4",
    ),
    ("cifar10", {"loss.r1_gamma": -1}, "loss.r1_gamma is -1.0: it must be at least 0"),
    ("cifar10", {"loss.lazy_reg": 0}, "loss.lazy_reg is 0: it must be at least 1 (every step)"),
    ("cifar10", {"optim.lr_g": 0}, "optim.lr_g is 0.0: it must be above 0"),
    ("cifar10", {"optim.lr_d": -1}, "optim.lr_d is -1.0"),
    ("cifar10", {"optim.eps": 0}, "optim.eps is 0.0"),
    ("cifar10", {"optim.beta1": 1}, "optim.beta1 is 1.0: it must be at least 0 and below 1"),
    ("cifar10", {"optim.beta2": -0.1}, "optim.beta2 is -0.1"),
    ("cifar10", {"optim.ema_decay": 1}, "optim.ema_decay is 1.0"),
    ("cifar10", {"optim.lr_decay": "linear"}, 'it must be "cosine" or "none"'),
    ("cifar10", {"optim.lr_min": -1}, "optim.lr_min is -1.0"),
    (
        "cifar10",
        {"optim.lr_min": 1.3e-4},
        "at most the smaller of optim.lr_g and optim.lr_d, 0.000125",
    ),
    ("cifar10", {"optim.lr_interval": 0}, "optim.lr_interval is 0"),
    ("cifar10", {"optim.backend": "apex"}, 'it must be "auto", "fused", "foreach" or "loop"'),
    ("cifar10", {"data.source": "lmdb"}, 'be "digits", "gaussians25", "folder" or "synthetic"'),
    ("cifar10", {"data.mode": "x"}, 'data.mode is "x": it must be "stream" or "epoch"'),
    ("cifar10", {"data.cache": "gpu"}, 'data.cache is "gpu": it must be "auto", "ram" or "none"'),
    ("cifar10", {"data.workers": -1}, "data.workers is -1"),
    ("cifar10", {"data.limit": 0}, "data.limit is 0"),
    ("lsun256", {"data.lsun_class": "church"}, 'it must be "bedroom", "bridge", "church_outdoor"'),
    ("cifar10", {"run.steps": 0}, "run.steps is 0"),
    ("cifar10", {"run.batch_size": 0}, "run.batch_size is 0"),
    ("cifar10", {"run.micro_batch": 0}, "run.micro_batch is 0: it must divide run.batch_size"),
    ("cifar10", {"run.micro_batch": 48}, "it must divide run.batch_size, which is 256"),
    ("cifar10", {"run.tick": 0}, "run.tick is 0"),
    ("cifar10", {"run.checkpoint_every": 0}, "run.checkpoint_every is 0"),
    ("cifar10", {"run.sample_every": -1}, "run.sample_every is -1"),
    ("cifar10", {"run.sample_count": 0}, "run.sample_count is 0"),
    ("cifar10", {"run.max_skipped": -1}, "run.max_skipped is -1"),
    ("cifar10", {"run.keep": 2}, "run.keep is 2: it must be at least 3"),
    ("cifar10", {"run.seed": -1}, "run.seed is -1: it must lie between 0 and 2**63 - 1"),
    ("cifar10", {"run.seed": 2**63}, "run.seed is 9223372036854775808"),
    ("cifar10", {"run.precision": "fp16"}, 'it must be "auto", "fp32", "bf16" or "fp64"'),
]


@pytest.mark.parametrize(("preset", "overrides", "words"), REFUSED)
def test_what_cannot_work_is_refused(preset: str, overrides: dict[str, object], words: str) -> None:
    assert words in refusal(preset, overrides)


INPUTS = [
    {"model.progressive_input": "none"},
    {"model.progressive_input": "residual"},
    {"model.progressive_input": "input_skip"},
    {"model.progressive_input": "input_skip", "model.progressive_combine": "cat"},
]
BLOCKS = [
    {"model.resblock_type": "biggan"},
    {"model.resblock_type": "biggan_oneadagn"},
    {"model.resblock_type": "biggan", "model.fir": False},
    {"model.resblock_type": "biggan_oneadagn", "model.fir": False},
    DDPM,
]
SMALL = {"model.num_channels_dae": 16, "model.z_emb_dim": 16, "model.nz": 8, "model.n_mlp": 1}
ACCEPTED = [
    blocks | pyramid | {"model.progressive": output}
    for blocks in BLOCKS
    for pyramid in INPUTS
    for output in ("none", "output_skip")
    if output == "none" or blocks.get("model.fir", True)
]
ACCEPTED += [
    {"model.conditional": False},
    {"model.num_channels": 1},
    {"model.num_channels": 4},
    {"model.num_res_blocks": 3},
    {"model.attn_resolutions": []},
    {"model.attn_resolutions": [8, 32, 7]},
    {
        "model.dropout": 0.1,
        "model.tanh": False,
        "model.skip_rescale": False,
        "model.centered": False,
    },
    {"model.fir_kernel": [1, 1]},
    {"model.fir_kernel": [1, 2, 4, 2, 0.5]},
    {"model.num_channels_dae": 36},
    {"model.num_channels_dae": 6, "model.ch_mult": [1]},
    {"model.num_timesteps": 1},
    {"model.num_timesteps": 1000},
    {"model.beta_min": 0.0},
    GEOMETRIC,
    {"model.image_size": 96},
    {"model.ch_mult": [1], "model.resblock_type": "ddpm", "model.fir": False},
    {"model.ch_mult": [1], "model.progressive": "output_skip", "model.fir": False},
]


@pytest.mark.parametrize("overrides", ACCEPTED)
def test_group_norms_are_those_of_the_network(overrides: dict[str, object]) -> None:
    models = pytest.importorskip("ddgan_fast.models")
    layers = pytest.importorskip("ddgan_fast.models.layers")
    config = load_config("cifar10", SMALL | {"model.ch_mult": [1, 2, 3, 3]} | overrides)
    built = {
        module.style.out_features // 2
        if isinstance(module, layers.AdaptiveGroupNorm)
        else module.num_channels
        for module in models.build_generator(config).modules()
        if isinstance(module, layers.AdaptiveGroupNorm | layers.AffineGroupNorm)
    }
    assert {width for width, _ in group_norm_widths(config.model)} == built


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("cifar10", {"run.batch_size": 5, "loss.r1_gamma": 0, "optim.ema_decay": 0}),
        ("cifar10", {"optim.lr_decay": "none", "optim.lr_g": 1e-6}),
        ("cifar10", {"data.source": "synthetic", "data.limit": 10, "data.mode": "epoch"}),
        ("cifar10", {"run.micro_batch": 64, "run.seed": 0, "run.sample_every": 0}),
        ("lsun256", {"data.lsun_class": "bedroom"}),
        ("digits", {"model.image_size": 28, "model.ch_mult": [1, 2, 2]}),
        ("digits", {"discriminator.kind": "small"}),
        ("celebahq256", {"model.image_size": 64, "model.num_timesteps": 4}),
        ("gaussians25", {"model.ch_mult": [], "model.image_size": 31, "model.num_channels_dae": 3}),
    ],
)
def test_what_works_is_accepted(preset: str, overrides: dict[str, object]) -> None:
    validate(load_config(preset, overrides))
