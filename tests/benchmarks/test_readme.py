"""What README.md says of committed results is what they hold."""

import pytest

from benchmarks import cpu_tables, planted, readme, trilemma_table

TABLES = {
    "step": (cpu_tables.STEP, cpu_tables.step, readme.README),
    "loaders": (cpu_tables.LOADERS, cpu_tables.loaders, readme.README),
    "trilemma": (
        (trilemma_table.BEGIN, trilemma_table.END), trilemma_table.written, readme.README
    ),
    "planted": ((planted.BEGIN, planted.END), planted.written, planted.DOC),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_up_to_date(name):
    markers, written, page = TABLES[name]
    text = page.read_text()

    assert readme.renewed(text, *markers, written()) == text, "run: python -m benchmarks.readme"
