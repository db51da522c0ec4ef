"""The README's table of memory per preset says what the code computes."""

import re
from pathlib import Path

import pytest

from benchmarks import memory_table, readme
from ddgan_fast.config import list_presets, load_config

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
NUMBER = re.compile(r"[\d.]+")
HINT = "run: python -m benchmarks.memory_table"


def rows():
    part = README.split(memory_table.BEGIN)[1].split(memory_table.END)[0]
    return {
        line.split("|")[1].strip(): [cell.strip() for cell in line.strip("| ").split("|")]
        for line in part.splitlines()[3:]
        if line.startswith("|") and "---" not in line
    }


def numbers(cells):
    return [float(number) for number in NUMBER.findall(" ".join(cells[1:]))]


def assert_up_to_date(preset):
    """But for a few kilobytes of statistics more or less."""
    got, want = rows()[preset], memory_table.row(preset)
    assert [NUMBER.sub("N", cell) for cell in got] == [NUMBER.sub("N", cell) for cell in want], HINT
    assert numbers(got) == pytest.approx(numbers(want), rel=0.03), HINT


@pytest.mark.parametrize("preset", ["digits", "gaussians25"])
def test_a_row_is_up_to_date(preset):
    assert_up_to_date(preset)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["celebahq256", "cifar10"])
def test_a_large_row_is_up_to_date(preset):
    assert_up_to_date(preset)


def test_every_network_has_a_row():
    known = [load_config(preset) for preset in memory_table.PUBLISHED]
    for preset in list_presets():
        # The paper's variants and the baselines of the two toys are of the sizes listed.
        if not preset.endswith("_paper") and not preset.startswith(("digits_", "gaussians25_")):
            cfg = load_config(preset)
            assert any(
                (cfg.model, cfg.discriminator) == (other.model, other.discriminator)
                for other in known
            ), preset
    assert list(rows()) == list(memory_table.PUBLISHED)


def test_the_text_around_the_table_stays():
    text = f"before\n{memory_table.BEGIN}\nold\n{memory_table.END}\nafter\n"
    made = readme.renewed(text, memory_table.BEGIN, memory_table.END, "new\n")
    assert made == text.replace("old", "\nnew\n")
    with pytest.raises(ValueError, match=r"README\.md must have the lines"):
        readme.renewed("no table here", memory_table.BEGIN, memory_table.END, "")
