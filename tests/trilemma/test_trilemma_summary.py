"""From measurements to the lines of the report."""

import pytest

from ddgan_fast.trilemma import pictures
from ddgan_fast.trilemma.methods import build_methods
from ddgan_fast.trilemma.summary import (
    Spread,
    cells,
    headings,
    kind_of,
    quality_of,
    shown,
    summarize,
)

METRICS = ("fd_digits", "kd_digits", "kd_std_digits", "precision_digits", "modes")


def measured(seeds=(1, 2, 3)):
    rows = []
    for seed in seeds:
        metrics = dict(zip(METRICS, (10.0 * seed, 0.1, 0.05, 0.5, 9.0 + seed % 2), strict=True))
        row = {"kind": "final", "method": "ddgan", "seed": seed, "drawing": "DDGAN, T = 4"}
        rows.append({**row, "nfe": 4, "step": 1000, "train_s": 60.0 + seed, "metrics": metrics})
    rows.append({"kind": "time", "drawing": "DDGAN, T = 4", "s_per_100": 0.123})
    return rows


def test_a_line_is_the_median_and_the_range_over_the_seeds():
    (row,) = summarize(build_methods("digits", ["ddgan"]), measured())

    assert row.metrics["fd_digits"] == Spread(20.0, 10.0, 30.0)
    assert (row.nfe, row.seconds_per_100, row.steps) == (4, 0.123, 1000)
    assert headings([row]) == [
        "method", "NFE", "s per 100", "fd_digits", "kd_digits", "precision", "modes", "trained"
    ]
    assert cells(row, shown([row])) == [
        "DDGAN, T = 4", "4", "0.123", "20.0 (10.0 to 30.0)", "0.1000", "0.50", "10 (9 to 10)",
        "1,000 steps, 62 (61 to 63) s",
    ]


def test_a_loaded_model_has_no_time_of_training():
    rows = measured(seeds=(1,))
    rows[0]["train_s"] = None

    (row,) = summarize(build_methods("digits", ["ddgan"]), rows)

    assert cells(row, shown([row]))[-1] == "loaded"


@pytest.mark.parametrize(
    ("metric", "kind"),
    [("fid", "fid"), ("fd_lite0", "fid"), ("cs_digits", "is"), ("recall_lite0", "recall")],
)
def test_metrics_are_known_under_the_extractors_names(metric, kind):
    assert kind_of(metric) == kind


def test_stand_ins_are_never_called_fid():
    name, label, less = quality_of({"fd_lite0": 1.0})

    assert (name, less) == ("fd_lite0", True)
    assert "FID" not in label
    assert quality_of({"near": 0.5})[2] is False


def test_a_metric_that_only_the_end_has_makes_a_picture(tmp_path):
    rows = measured(seeds=(1,))
    rows[0]["metrics"] = {"precision_digits": 0.5}
    rows.append({**rows[0], "kind": "progress", "metrics": {}})

    path = tmp_path / "quality.png"
    pictures.quality(summarize(build_methods("digits", ["ddgan"]), rows), rows, path)

    assert path.stat().st_size > 5000


TITLES = ("DDGAN, T = 4", "DDPM-200", "DDPM-200, DDIM-50", "DDPM-200, DDIM-4")


def coverage_of(monkeypatch, tmp_path, counts, names):
    """The axes of the picture of coverage."""
    found, save = [], pictures.save_figure

    def kept(figure, path):
        found.extend(figure.axes)
        figure.draw_without_rendering()
        save(figure, path)

    monkeypatch.setattr(pictures, "save_figure", kept)
    rows = []
    for number, title in enumerate(TITLES):
        method = "ddpm200" if number else "ddgan"
        metrics = {name: (9 - number + place) / 10 for place, name in enumerate(names)}
        common = {"kind": "final", "method": method, "seed": 1, "drawing": title, "nfe": 4}
        own = {"step": 9, "train_s": 6.0, "n": 100, "counts": counts, "metrics": metrics}
        rows += [common | own, {"kind": "time", "drawing": title, "s_per_100": 0.1}]
    summary = summarize(build_methods("digits", ["ddgan", "ddpm200"]), rows)
    pictures.coverage(summary, rows, tmp_path / "coverage.png")
    assert (tmp_path / "coverage.png").stat().st_size > 3000
    return found


def test_coverage_without_known_modes_is_recall_and_its_like(monkeypatch, tmp_path):
    names = ["precision_lite0", "recall_lite0", "density_lite0", "coverage_lite0"]
    (axes,) = coverage_of(monkeypatch, tmp_path, None, names)

    assert [label.get_text() for label in axes.get_yticklabels()] == list(TITLES)
    ticks = axes.get_yticks()
    assert sorted(ticks, reverse=True) == list(ticks), "the first row is on top"
    bars = {group.get_label(): group for group in axes.containers}
    assert list(bars) == [name for name in names if "density" not in name], "density has no bound"
    for name, group in bars.items():
        place = names.index(name)
        widths = [(9 - number + place) / 10 for number in range(len(TITLES))]
        assert [bar.get_width() for bar in group] == pytest.approx(widths)
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == list(bars)
    assert legend.get_window_extent().y0 >= axes.get_window_extent().y1 - 1, "not on the bars"


def test_a_picture_of_coverage_without_any_says_so(monkeypatch, tmp_path):
    (axes,) = coverage_of(monkeypatch, tmp_path, None, ["fd_lite0"])

    assert [text.get_text() for text in axes.texts] == [
        "neither modes nor recall or coverage were measured"
    ]


def test_many_modes_are_a_falling_curve(monkeypatch, tmp_path):
    counts = [1, 5, 0, *[2] * 47]
    every = coverage_of(monkeypatch, tmp_path, counts, ["modes"])

    assert [axes.get_title() for axes in every] == list(TITLES)
    for axes in every:
        curve = axes.get_lines()[0].get_ydata()
        assert curve == pytest.approx([2.5, *[1.0] * 47, 0.5, 0.0])
        assert axes.get_xlabel() == "modes, sorted" and not axes.patches


def test_a_mode_is_compared_with_its_share_among_the_real_samples():
    even = pictures.relative_shares([50, 50, 0], 100)
    assert even == pytest.approx([1.5, 1.5, 0.0])
    own = pictures.relative_shares([50, 25, 25], 100, [0.5, 0.5, 0.0])
    assert own == pytest.approx([1.0, 0.5, 0.0])
