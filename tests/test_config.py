"""Reading, overriding and writing configurations."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ddgan_fast import config as config_module
from ddgan_fast.config import Config, from_dict, load_config, save_yaml, to_dict


def refusal(name: str, overrides: dict[str, object]) -> str:
    with pytest.raises(ValueError) as caught:
        load_config(name, overrides)
    message = str(caught.value)
    assert message.endswith(".") and "\n" not in message
    return message


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


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
    custom = {"kind": "custom", "block_mults": [2, 2], "block_downs": [True, True]}
    start = {f"discriminator.{key}": value for key, value in custom.items()}
    got = getattr(getattr(load_config("cifar10", start | {name: given}), section), field)
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
        ("run.micro_batch", 0.5, "it must be a whole number or text or null"),
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


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "model.num_timestep",
            ["did you mean 'model.num_timesteps'", "model has kind, image"],
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
        ("base: cifar\n", "unknown base preset 'cifar' in"),
        ("base: [cifar10]\n", "unknown base preset"),
        ("model: {num_timestep: 3}\n", "bad.yaml (did you mean 'model.num_timesteps'"),
        ("model: {num_timesteps: four}\n", "model.num_timesteps is 'four' in"),
        ("model:\n  nz: 3\n  nz: 4\n", "'nz' is given twice"),
        ("model: [\n", "is not valid YAML at line 2, column 1: expected the node content"),
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
    write(tmp_path / "config.yaml", "run: {steps: 7}\n")
    assert refusal(str(tmp_path), {}).endswith(f"name the file in it, {tmp_path / 'config.yaml'}.")


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
    with pytest.raises(ValueError, match=r"unknown option 'run\.step'"):
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
