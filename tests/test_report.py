"""``ddgan-fast report``: one file, nothing loaded, all of it escaped; charts, tables, a browser."""

import html.parser
import json
import re

import browser
import pytest
from report_results import EVIL, picture, timed, write_results, write_run

from ddgan_fast import cli
from ddgan_fast.benchmarks.report import charts, sources, steps
from ddgan_fast.benchmarks.report.html import Number, notes, number, table, tag

pytest.importorskip("matplotlib")

VOID = {"meta", "link", "img"}
LOADED = {"src", "href", "xlink:href", "action", "data", "poster", "srcset"}


class Page(html.parser.HTMLParser):
    """The elements of a page; complains about tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.elements.append((name, dict(attributes)))

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.words.append((self.open[-1] if self.open else "", data))

    def named(self, name):
        return [attributes for found, attributes in self.elements if found == name]

    def text(self):
        return " ".join(data for inside, data in self.words if inside not in ("style", "script"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_results(folder / "results")
    runs = [write_run(folder / "one"), write_run(folder / "two & <b>", upto=100)]
    output = folder / "report.html"
    command = ["report", "--results", str(folder / "results"), "-o", str(output)]
    for run in runs:
        command += ["--run", str(run)]
    assert cli.main(command) == 0
    return output


@pytest.fixture(scope="module")
def page(made):
    return Page(made.read_text())


def titles(page):
    return [a["aria-label"] for a in page.named("section")]


def test_every_chapter_is_there(page):
    assert titles(page) == [
        "Headline", "Training steps", "What each part is worth", "Ops", "Sampling", "Loaders",
        "Where the time of a step goes", "Against other methods", "Do the fast ways train alike?",
        "Other results", "Run one", "Run two & <b>", "The GPU suite", "Where the numbers come from",
    ]
    linked = [a["href"] for a in page.named("a")]
    assert linked == [f"#{a['id']}" for a in page.named("section")]


def test_nothing_is_loaded_from_anywhere(made, page):
    for name, attributes in page.elements:
        assert name not in ("iframe", "object", "embed", "base", "form")
        for key, value in attributes.items():
            assert not key.startswith("on")
            assert key not in LOADED or value.startswith(("data:", "#")), (name, key, value)
            if key not in ("alt", "aria-label"):
                assert "//" not in value or value.startswith("data:image/"), (name, key, value)
    assert [name for name, _ in page.elements].count("script") == 1
    assert [name for name, _ in page.elements].count("link") == 1
    text = made.read_text()
    assert not re.search(r"@import|@font-face|fetch\(|XMLHttpRequest|WebSocket", text)
    assert all(inside.startswith("#") for inside in re.findall(r"url\(([^)]*)\)", text))
    (policy,) = (a["content"] for a in page.named("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:;")
    without = text.replace("https://example.org/a.js", "")
    assert "http:" not in without and "https:" not in without


def test_everything_is_escaped(made, page):
    assert page.text().count(EVIL) >= 4, "a failed variant, a unit's error, a warning, a fault"
    assert "<script>alert" not in made.read_text()
    assert str(tag("p", "<&>", title='"')) == '<p title="&quot;">&lt;&amp;&gt;</p>'
    assert "&lt;b&gt;" in table("<i>", ["<b>"], [["<u>"]])
    drawn = charts.lines("a <title>", {"<b> $x$": [(0, 1), (1, 2)], "y": [(0, 1)]})
    assert "<b>" not in drawn and "&lt;b&gt; $x$" in drawn and "<title>" not in drawn


def rows_of(page, caption):
    """The cells of the table with a caption."""
    words, found, current = page.words, [], None
    start = next(i for i, word in enumerate(words) if word == ("caption", caption))
    for inside, data in words[start + 1 :]:
        if inside == "caption":
            break
        if inside in ("td", "th"):
            current = data
            found.append(current)
    return found


def test_the_headline_compares_within_one_run(page):
    cells = rows_of(page, "Fastest of ours against the published recipe")
    assert "bf16, compile+graph, inductor" in cells
    at = cells.index("bf16, compile+graph, inductor")
    assert cells[at + 1 : at + 7] == ["320", "100", "97 - 104", "64", "500", "5.00"]
    assert cells[at + 7] == "recipe in tf32, 8 rounds, h200.json"
    assert "bf16, ddgan_fast_bf16_graph" in cells and "4.44" in cells
    assert "graph, triton" not in " ".join(cells), "its results were wrong"


def test_the_charts_are_text_in_the_page_s_colours(page, made):
    drawn = page.named("svg")
    labels = [a["aria-label"] for a in drawn]
    for title in (
        "celebahq256, batch 32, H200: images per second",
        "Roofline of the fastest steps on H200: TFLOP/s",
        "celebahq256, batch 32, H200, chain cuda: images per second",
        "Roofline of the ops on H200", "Roofline of the operators", "Phases of a mean step: ms",
        "CPU time per image, 256 px, Some Xeon", "Losses", "Gradient norms", "G's loss",
        "fd_digits",
    ):
        assert title in labels
    assert all(a.get("role") == "img" and "width" not in a for a in drawn)
    inside = [data for where, data in page.words if where == "text"]
    assert {"recipe (tf32)", "large copy, 4,000 GB/s", "convolution", "D/real", "t3"} <= set(inside)
    styles = " ".join(a.get("style", "") for _, a in page.elements)
    colours = set(re.findall(r"#[0-9a-f]{6}\b", styles))
    assert not colours, "a colour that light or dark would hide"
    assert "var(--c0)" in styles and "currentColor" in styles
    ids = [a["id"] for _, a in page.elements if "id" in a and not a["id"].startswith("c")]
    assert len(ids) == len(set(ids))
    known = {a["id"] for _, a in page.elements if "id" in a}
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', made.read_text())
    assert used and set(used) <= known


def test_a_run_is_shown(page):
    words = page.text()
    for part in ("300 of 300", "100 of 300", "0:02:25", "step 300", "R1 grew", "fd_digits"):
        assert part in words
    pictures = [a for a in page.named("img") if a["alt"].startswith("step ")]
    told = [a["alt"] for a in pictures]
    assert told == ["step 100", "step 200", "step 300", "step 50", "step 100"]
    assert {"step 10"} < {a["aria-label"] for a in page.named("svg")}, "points in the plane"
    assert all(a["src"].startswith("data:image/png;base64,") for a in pictures)
    assert "samples side by side" in [a["alt"] for a in page.named("img")]


def test_profiles_comparisons_and_strangers(page):
    words = page.text()
    assert "31 % host gaps" in words and "35.1 (30.0 to 41.0)" in words
    assert rows_of(page, "objectives.json") == [
        "preset", "objective", "seed", "fd_digits", "digits", "+ D0", "1", "20.5"
    ]
    sources_ = rows_of(page, "Where the numbers come from")
    assert {"h200.json", "trilemma-digits/report.json", "profile-cifar10.json"} <= set(sources_)


def test_cells():
    assert number(12345.6) == Number(12345.6, "12,346")
    assert number(0.012345) == Number(0.012345, "0.01235")
    assert number(None) == "-" and number("x") == "x" and number(True) == "True"
    assert number(float("nan")).text == "nan"
    made = table("c", ["a", "b"], [["x", "-"], ["y", "-"]])
    assert "<th scope=\"col\">a</th>" in made and ">b<" not in made, "a column without values"
    assert table("c", ["a"], []) == ""


def test_sentences_that_differ_in_numbers_only_are_told_once():
    told = notes(["FD 1,000 of 2.5.", "FD 7 of 8.", "other", "FD 9 of 1."])
    assert told.count("<li>") == 2 and "FD 1,000 of 2.5. (And 2 times alike" in told


def test_an_empty_folder_says_what_is_not_measured(tmp_path, capsys):
    (tmp_path / "results").mkdir()
    output = tmp_path / "report.html"
    command = ["report", "--results", str(tmp_path / "results"), "-o", str(output)]
    assert cli.main(command) == 0
    page = Page(output.read_text())
    assert titles(page) == ["Not measured yet"]
    assert "No result of a GPU is there yet" in page.text()
    assert f"Wrote {output}" in capsys.readouterr().out


def test_the_committed_results(tmp_path):
    assert cli.main(["report", "-o", str(tmp_path / "report.html")]) == 0
    words = Page((tmp_path / "report.html").read_text()).text()
    assert "bench step --preset cifar10" in words and "reference_jpeg" in words


def test_damaged_files_cost_only_themselves(tmp_path, capsys):
    folder = write_results(tmp_path / "results")
    (folder / "a.json").write_text('{"rows": [')
    (folder / "b.json").write_text("[1]")
    (folder / "c.json").write_text('{"x": 1}')
    rows = [{"case": "step"}, "x", {"case": "step", "provider": "p", "ms_p50": None}]
    (folder / "d.json").write_text(json.dumps({"rows": [*rows, {"case": "kernels"}]}))
    (folder / "trilemma-digits/samples.png").write_bytes(b"no picture")
    run = write_run(tmp_path / "run")
    (run / "samples/step-000000300.png").write_bytes(b"no picture")
    (run / "samples/step-000000010.npz").write_bytes(b"no array")
    (run / "config.yaml").write_text("run: [")
    (run / "metrics.jsonl").write_text('{"step": 10, "metrics": 3}\n{"step": 20}\n[]\n')
    with open(run / "log.jsonl", "a") as file:
        file.write('{"step": 310, "D/real": "nan", "G/loss": nu')
    output = tmp_path / "report.html"
    assert cli.main(["report", "--results", str(folder), "--run", str(run), "-o", str(output)]) == 0
    words = Page(output.read_text()).text()
    assert "samples.png cannot be shown" in words
    assert "step-000000300.png cannot be shown" in words and "step-000000010.npz cannot" in words
    out = capsys.readouterr().out
    for name in ("a.json could not be read", "b.json is left out", "c.json is left out"):
        assert name in out and name in words


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--run", "nowhere"], "--run: there is no folder nowhere"),
        (["--run", "."], "is no run directory: it holds no log.jsonl"),
        (["--results", "nowhere"], "--results: there is no folder nowhere"),
        (["-o", "nowhere/report.html"], "--output: there is no folder nowhere"),
    ],
)
def test_what_is_missing_is_one_sentence(tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", *options]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_tables_stay(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(charts.importlib.util, "find_spec", lambda name: None)
    folder = write_results(tmp_path / "results")
    output = tmp_path / "report.html"
    assert cli.main(["report", "--results", str(folder), "-o", str(output)]) == 0
    page = Page(output.read_text())
    assert not page.named("svg") and charts.MISSING in page.text()
    assert charts.MISSING in capsys.readouterr().out
    assert "compile+graph, inductor" in page.text()


def test_a_recipe_of_another_run_is_not_compared(tmp_path):
    rows = [timed("step", "graph, cuda", 100, chain="graph"),
            timed("step", "recipe", 500, chain="eager")]
    (tmp_path / "a.json").write_text(json.dumps({"rows": rows}))
    found = Page(str(steps.headline(sources.read_results(tmp_path))))
    assert "500" not in found.text() and "graph, cuda" in found.text()


def test_toy_sizes_are_told(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"tiny": True, "rows": [timed("step", "x", 1)]}))
    assert sources.read_results(tmp_path).rows[0]["card"] == "unknown machine (toy sizes)"


def test_large_pictures_are_made_smaller(tmp_path):
    from ddgan_fast.benchmarks.report.html import picture as shown

    picture(tmp_path / "large.png", 1600)
    found = shown(tmp_path / "large.png", "a grid")
    assert 'src="data:image/webp;' in found and 'width="1280"' in found
    assert len(found) < 2_000_000


def test_long_curves_are_thinned():
    drawn = charts.lines("x", {"y": [(i, i % 7) for i in range(100_000)]})
    assert len(drawn) < 60_000


@pytest.fixture(scope="module")
def window(made, tmp_path_factory):
    with browser.browser(tmp_path_factory.mktemp("browser"), 1280, 900) as found:
        found.open(made.as_uri())
        yield found


@pytest.mark.slow
@pytest.mark.skipif(bool(browser.MISSING), reason=browser.MISSING or "-")
class TestInABrowser:
    """Opened from the disk by a real Chromium."""

    def test_it_opens_without_a_complaint(self, window):
        assert window.run("return document.title") == "ddgan_fast: what it measures"
        assert window.complaints() == []
        asked = window.run("return performance.getEntriesByType('resource').map(e => e.name)")
        assert [name for name in asked if not name.startswith("data:")] == []

    def test_the_charts_and_pictures_are_visible(self, window):
        sizes = window.run(
            "return [...document.querySelectorAll('figure svg, figure img')].map("
            "e => [e.getBoundingClientRect().width, e.getBoundingClientRect().height])"
        )
        assert len(sizes) > 25 and min(min(size) for size in sizes) > 50
        broken = "return [...document.images].filter(i => !i.naturalWidth).length"
        assert window.run(broken) == 0

    COLUMN = """
        const table = [...document.querySelectorAll("table")].find(
            t => t.caption.textContent === "Ablation");
        const head = [...table.querySelectorAll("th")].find(t => t.textContent === "img/s");
    """
    READ = COLUMN + """
        return [head.getAttribute("aria-sort"),
                [...table.tBodies[0].rows].map(r => r.cells[head.cellIndex].textContent)];
    """

    def test_a_click_sorts_a_table(self, window):
        assert window.run(self.READ) == ["none", ["53.33", "160", "152.4", "320"]]
        window.run(self.COLUMN + "head.querySelector('button').click();")
        assert window.run(self.READ) == ["ascending", ["53.33", "152.4", "160", "320"]]
        window.run(self.COLUMN + "head.querySelector('button').click();")
        assert window.run(self.READ) == ["descending", ["320", "160", "152.4", "53.33"]]

    def test_the_keyboard_sorts_a_table(self, window):
        window.run(self.COLUMN + "head.querySelector('button').focus();")
        before = window.run(self.READ)[0]
        window.press("\ue007")
        assert window.run(self.READ)[0] == ("descending" if before == "ascending" else "ascending")

    @pytest.mark.parametrize("width", [320, 390])
    def test_phones_scroll_tables_not_the_page(self, made, tmp_path, width):
        with browser.browser(tmp_path, width, 800) as window:
            window.open(made.as_uri())
            assert window.run("return innerWidth") == width
            assert window.run("return document.documentElement.scrollWidth") <= width
            wide = "return [...document.querySelectorAll('.scroll')].some("
            assert window.run(wide + "e => e.scrollWidth > e.clientWidth)")

