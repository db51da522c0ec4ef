"""The documentation tells the truth: links, names, options, commands and code."""

import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from dataclasses import fields
from io import StringIO

import docs_commands
import pytest
from docs_commands import Run, choose, shortened
from docs_pages import PAGES, ROOT, anchors, blocks, code, commands, links, text_of

import ddgan_fast
from ddgan_fast import cli
from ddgan_fast.config import Config, load_config
from ddgan_fast.flops import training_flops
from ddgan_fast.training.trainer import train

SOURCES = "docs/data-sources.md"
FOLDERS = "ddgan_fast|kernels|benchmarks|tests|docs|examples|tools|csrc"
# Of programs that are not ours.
OTHERS = {"--no-build-isolation"}
SUFFIXES = {"json", "mdb", "pt", "safetensors", "yaml"}
IMAGINED = {"ddgan_fast/data/records_npy.py"}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(file.resolve().relative_to(ROOT).as_posix()), target


def test_every_page_is_in_the_index():
    listed = {
        (ROOT / "docs" / target.split("#")[0]).resolve() for target in links("docs/README.md")
    }
    pages = {path.resolve() for path in (ROOT / "docs").glob("*.md")} - {ROOT / "docs/README.md"}
    assert not pages - listed


@pytest.mark.parametrize("page", PAGES)
def test_files_in_code_exist(page):
    for part in code(page):
        for word in part.split():
            if re.fullmatch(rf"(\.\./)?({FOLDERS})/[\w./*-]*", word):
                found = any(ROOT.glob(word.removeprefix("../").rstrip("/")))
                assert found or word in IMAGINED, f"{page} names {word}"


@pytest.mark.parametrize("page", PAGES)
def test_settings_in_code_exist(page):
    known = {
        s.name: set(vars(getattr(Config(), s.name))) for s in fields(Config) if s.name != "preset"
    }
    for part in code(page):
        for section, name in re.findall(
            r"(?<![\w./-])(?:--)?([a-z]+)\.([a-z]\w*)(?![\w.(/-])", part
        ):
            if section in known and name not in SUFFIXES:
                assert name in known[section], f"{page} names {section}.{name}"


@pytest.fixture(scope="module")
def options():
    """Every option of our commands, of the scripts beside them, and of torchrun."""
    from torch.distributed.run import get_args_parser

    from ddgan_fast.commands.edit import _KINDS

    calls = [[name] for name in cli.COMMANDS]
    calls += [["edit", kind] for kind in _KINDS]
    calls += [["bench", case] for case in ("kernels", "loader", "scaling")]
    with redirect_stdout(StringIO()) as out:
        for call in calls:
            assert cli.main([*call, "--help"]) == 0
    named = set(re.findall(r"--[a-z][\w.-]*[a-z0-9]", out.getvalue()))
    for pattern in ("benchmarks/*.py", "examples/*.py", "tests/data/golden/*.py"):
        for script in ROOT.glob(pattern):
            named |= set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', script.read_text()))
    return named | set(get_args_parser()._option_string_actions) | OTHERS


@pytest.mark.parametrize("page", PAGES)
def test_options_in_code_exist(page, options):
    for part in code(page):
        for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*[a-z0-9]", part):
            assert option in options, f"{page} names {option}"


def costs():
    """Rows of the table of costs: preset, steps, batch, GFLOP per image, EFLOP."""
    row = r"^\| `(\w+)` \| ([\d,]+) \| (\d+) \| ([\d,.]+) \| ([\d.]+) \|"
    found = re.findall(row, text_of("docs/reproduce.md"), re.M)
    return {name: [float(cell.replace(",", "")) for cell in cells] for name, *cells in found}


def test_the_table_of_costs_adds_up():
    rows = costs()
    assert len(rows) == 8
    for name, (steps, batch, gflop, exaflop) in rows.items():
        cfg = load_config(name)
        assert (steps, batch) == (cfg.run.steps, cfg.run.batch_size), name
        assert exaflop == pytest.approx(steps * batch * gflop / 1e9, rel=5e-3), name
        # The paper's recipes are of the same sizes.
        assert gflop == rows.get(name.removesuffix("_paper"), [0, 0, gflop])[2]
    assert rows["cifar10"][2] == rows["stacked_mnist"][2]
    assert rows["celebahq256"][2] == rows["lsun_church256"][2]


@pytest.mark.parametrize(
    "preset",
    [
        "gaussians25_paper",
        pytest.param("cifar10", marks=pytest.mark.slow),
        pytest.param("celebahq256", marks=pytest.mark.slow),
    ],
)
def test_arithmetic_in_the_table_of_costs(preset):
    computed = training_flops(load_config(preset))["training_image"]
    assert costs()[preset][2] == pytest.approx(computed / 1e9, rel=1e-3)


# Commands and code


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of the preset digits that was stopped after two steps."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    short = {
        "run.steps": 2,
        "run.dir": str(folder),
        "run.sample_every": 0,
        "run.tensorboard": False,
    }
    train(load_config("digits", short), device="cpu", quiet=True)
    return folder


def in_sandbox(page, tmp_path, monkeypatch, digits, slow):
    """Go through a page's blocks in order; slow commands only where they are wanted."""
    docs_commands.quiet_home(tmp_path, monkeypatch)
    for kind, text in blocks(page):
        if kind == "python" and not slow:
            docs_commands.run_python(text, page, monkeypatch)
        for words in commands(text) if kind == "sh" else []:
            row = choose(words)
            if isinstance(row, Run) and row.slow == slow:
                words = shortened(words, row)
                for word in words:
                    docs_commands.make(word, digits)
                docs_commands.run(words)
            elif not slow and not isinstance(row, Run):
                docs_commands.check(words, monkeypatch)


WITH_BLOCKS = [
    page
    for page in PAGES
    if page != SOURCES and any(b.kind in ("sh", "python") for b in blocks(page))
]


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_blocks_run(page, tmp_path, monkeypatch, digits):
    in_sandbox(page, tmp_path, monkeypatch, digits, slow=False)


def is_slow(page):
    for words in (w for b in blocks(page) if b.kind == "sh" for w in commands(b.text)):
        with suppress(AssertionError):  # test_blocks_run says so
            row = choose(words)
            if isinstance(row, Run) and row.slow:
                return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in WITH_BLOCKS if is_slow(page)])
def test_slow_commands_run(page, tmp_path, monkeypatch, digits):
    in_sandbox(page, tmp_path, monkeypatch, digits, slow=True)


def test_a_command_in_no_table_fails():
    with pytest.raises(AssertionError, match="ddgan-fast polish"):
        choose(["ddgan-fast", "polish", "runs/a"])


def test_the_example_of_a_source(tmp_path):
    """A copy of the tree with the page's changes prepares and trains on the new kind of source."""
    for folder in ("ddgan_fast", "kernels", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    module, use = (block.text for block in blocks(SOURCES) if block.kind == "python")
    (diff,) = (block.text for block in blocks(SOURCES) if block.kind == "diff")
    (tmp_path / "ddgan_fast/data/records_npy.py").write_text(module)
    for name, hunk in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", diff, re.M | re.S):
        file, lines = tmp_path / name, hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        after = "".join(line[1:] for line in lines if line[0] != "-")
        assert file.read_text().count(before) == 1, f"{name} has changed: renew {SOURCES}"
        file.write_text(file.read_text().replace(before, after))

    script = [use]
    script.append("from ddgan_fast.cli import main\nimport sys")
    for block in blocks(SOURCES):
        for words in commands(block.text) if block.kind == "sh" else []:
            if words[1] == "train":
                words = [*words[:2], "digits", "--data.source", "auto", *words[3:]]
                words += ["--model.num_channels", "3", *docs_commands.SHORT, "--device", "cpu"]
            else:
                words = [*words, "--workers", "1"]
            script.append(f"assert main({words[1:]!r}) == 0")
    script.append("import ddgan_fast; print(ddgan_fast.__file__)")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "torch.Size([8, 32, 32, 3]) torch.uint8"
    assert lines[-1].startswith(str(tmp_path)), "the copy is what ran"
    assert "npy faces.npy: 50 images 8x8x3" in done.stdout
    assert (tmp_path / "faces-shards/manifest.json").is_file()


# Files around the documentation


def test_the_version_is_the_same_everywhere():
    version = ddgan_fast.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}]" in text_of("CHANGELOG.md")


def test_yaml_files_can_be_read():
    import yaml

    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 2
    for file in (*forms, ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"):
        assert isinstance(yaml.safe_load(file.read_text()), dict), file
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][-1]["hooks"]
    scripts = [hook["entry"].split()[1] for hook in hooks if hook["entry"].startswith("sh ")]
    assert scripts and all((ROOT / script).is_file() for script in scripts)
    for file in forms:
        parts = yaml.safe_load(file.read_text())["body"]
        assert all({"type", "attributes"} <= set(part) for part in parts)
