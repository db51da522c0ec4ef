"""The README's table of memory per preset says what the code computes."""

from pathlib import Path

import pytest

from benchmarks import memory_table
from ddgan_fast.config import list_presets, load_config

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def rows():
    part = README.split(memory_table.BEGIN)[1].split(memory_table.END)[0]
    return {
        line.split("|")[1].strip(): [cell.strip() for cell in line.strip("| ").split("|")]
        for line in part.splitlines()[3:]
        if line.startswith("|") and "---" not in line
    }


@pytest.mark.parametrize("preset", ["digits", "gaussians25"])
def test_a_row_is_up_to_date(preset):
    assert rows()[preset] == memory_table.row(preset), "run: python -m benchmarks.memory_table"


@pytest.mark.slow
def test_the_readme_is_up_to_date():
    written = memory_table.table(list(memory_table.PUBLISHED))
    wanted = memory_table.renewed(README, written)
    assert wanted == README, "run: python -m benchmarks.memory_table"


def test_every_network_has_a_row():
    known = [load_config(preset) for preset in memory_table.PUBLISHED]
    for preset in list_presets():
        if not preset.endswith("_paper"):
            cfg = load_config(preset)
            assert any(
                (cfg.model, cfg.discriminator) == (other.model, other.discriminator)
                for other in known
            ), preset
    assert list(rows()) == list(memory_table.PUBLISHED)


def test_a_text_without_markers():
    with pytest.raises(ValueError, match=r"README\.md must have the lines"):
        memory_table.renewed("no table here", "")
