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


def test_a_mode_is_compared_with_its_share_among_the_real_samples():
    even = pictures.relative_shares([50, 50, 0], 100)
    assert even == pytest.approx([1.5, 1.5, 0.0])
    own = pictures.relative_shares([50, 25, 25], 100, [0.5, 0.5, 0.0])
    assert own == pytest.approx([1.0, 0.5, 0.0])
