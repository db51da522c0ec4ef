"""The band of seeds: what lies in it, and the picture."""

import json

import numpy as np
import pytest

from ddgan_fast.benchmarks import band


def rows(offset):
    """Three seeds at 0, 1 and 2, and a fast run at ``offset``; ten steps a tick, 100 steps."""
    at = list(range(10, 110, 10))

    def row(provider, level):
        curves = {name: [float(level)] * len(at) for name in band.NAMES}
        curves["D/real"] = [level + (step > 50) for step in at]
        return {"case": "band", "provider": provider, "at": at, "curves": curves}

    return [*(row(f"tf32, seed {s}", s) for s in range(3)), row("fast", offset)]


@pytest.mark.parametrize(
    ("offset", "inside"), [(0.0, 1.0), (2.9, 1.0), (3.1, 0.0), (-0.9, 1.0), (-1.1, 0.0)]
)
def test_means_are_judged_by_the_band_and_its_margin(offset, inside):
    found = band.judge(rows(offset))
    for name in band.NAMES:
        assert found[name]["inside"] == inside
        assert found[name]["at"].tolist() == [50, 100]
    np.testing.assert_allclose(found["D/real"]["fast"], [offset, offset + 1])
    np.testing.assert_allclose(found["G/loss"]["band"][0], [-1.0, -1.0])


def test_a_missing_run_is_told():
    with pytest.raises(ValueError, match="no fast run with a band"):
        band.judge(rows(0.0)[:3])


def test_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"rows": [{"case": "step"}, *rows(1.0)]}))
    assert band.main([str(results), "-o", str(tmp_path / "band.png")]) == 0
    assert (tmp_path / "band.png").stat().st_size > 5000
    assert "G/loss: 100% of the 50-step means inside the band" in capsys.readouterr().out
