"""Tables show their cells as they are, in a terminal and elsewhere."""

import screen

from ddgan_fast import tables

HEADERS = ("case", "ms [p50]")
ROWS = [("[256, 128] of [red]G[/red]", "1.5"), ("at::x::mul :warning:", "[/]"), ("x" * 130, "")]


def test_in_a_terminal_nothing_in_a_cell_is_markup(monkeypatch):
    shown = screen.put(monkeypatch, "stdout")
    tables.print_table("Times [ms] :gear:", HEADERS, ROWS)
    text = shown.text()
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["Times", "[ms]", ":gear:"]
    assert ["case", "ms", "[p50]"] in lines
    assert ["[256,", "128]", "of", "[red]G[/red]", "1.5"] in lines
    assert ["at::x::mul", ":warning:", "[/]"] in lines
    assert text.count("x") == 131, "a cell that is too wide goes on in the next line"
    assert shown.getvalue() != text, "headers and title are set off"


def test_elsewhere_it_is_aligned_text(capsys):
    tables.print_table("Times [ms]", HEADERS, ROWS[:2])
    assert capsys.readouterr().out == (
        "Times [ms]\n"
        "  case                        ms [p50]\n"
        "  [256, 128] of [red]G[/red]  1.5\n"
        "  at::x::mul :warning:        [/]\n"
    )
