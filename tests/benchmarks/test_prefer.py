"""The table of preferred backends from made-up results."""

import json

import pytest

from ddgan_fast.benchmarks import prefer
from ddgan_fast.kernels import measured

LARGE = [32, 128, 256, 256]
SMALL = [4, 8, 8, 8]


def rows(times, op="bias_leaky_relu", which="forward", shape=LARGE, variant=None, **others):
    """Rows of one case: {provider: microseconds, or None where it disagreed}."""
    for provider, micros in times.items():
        row = {
            "part": "kernels", "case": "kernels", "op": op, "variant": variant or op,
            "shape": shape, "dtype": "bf16", "channels_last": True, "pass": which,
            "provider": provider, "agrees": micros is not None, "timing": "graph", **others,
        }
        yield row | {"us_p50": micros or 0.1}


def table(*groups):
    return prefer.preferences([row for group in groups for row in group], "made up").table


def key(op="bias_leaky_relu", dtype="bfloat16", layout="channels_last", size="large"):
    return op, dtype, layout, size


def test_fastest_first_up_to_torch():
    got = table(
        rows({"torch": 9.0, "cuda": 2.0, "triton": 3.0, "eager": 1.0, "compile": 1.0}),
        rows({"torch": 5.0, "cuda": 9.0, "triton": 4.0}, shape=SMALL),
    )
    assert got == {
        key(): ("cuda", "triton", "torch"),
        key(size="small"): ("triton", "torch"),
    }


def test_passes_count_for_the_op_that_computes_them():
    down, norm = "bias_leaky_relu_down", "ada_group_norm_silu"
    times = {"torch": 9.0, "cuda": 2.0}
    got = table(
        rows(times, op=down),
        rows(times, op=down, which="backward"),
        rows(times, op=down, which="double_backward"),
        rows(times, op=norm, which="backward"),
        rows(times, op="upfirdn2d", which="backward", variant="fir_up"),
    )
    assert {op for op, *_ in got} == {
        down, f"{down}_grad", f"{down}_tangent", f"{norm}_backward"
    }


def test_wrong_in_one_case_is_out_of_the_entry():
    got = table(
        rows({"torch": 9.0, "cuda": 2.0, "triton": 3.0}),
        rows({"torch": 9.0, "cuda": None, "triton": 3.0}, shape=[32, 512, 128, 128]),
        rows({"torch": 9.0, "cuda": 2.0}, shape=SMALL),
    )
    assert got[key()] == ("triton", "torch"), "the wrong one was the fastest"
    assert got[key(size="small")] == ("cuda", "torch"), "triton was not run there"


def test_cases_weigh_the_same():
    """By ratios: otherwise the largest tensors alone would decide."""
    got = table(
        rows({"torch": 2000.0, "cuda": 1000.0, "triton": 1100.0}),
        rows({"torch": 90.0, "cuda": 50.0, "triton": 25.0}, shape=[8, 256, 256, 256]),
    )
    assert got[key()] == ("triton", "cuda", "torch")


def test_bytes_are_their_own_kind():
    times = {"torch": 9.0, "cuda": 2.0}
    case = {"op": "q_sample_pair", "variant": "q_sample_uint8", "shape": [256, 3, 256, 256]}
    got = table(rows(times, **case, dtype="fp32"))
    assert list(got) == [("q_sample_pair", "uint8", "contiguous", "medium")]


def test_decomposed_where_that_beats_every_kernel():
    found = prefer.preferences(
        [
            *rows({"torch": 9.0, "cuda": 2.0, "inductor": 1.5}),
            *rows({"torch": 9.0, "cuda": 2.0, "inductor": 2.5}, op="upfirdn2d"),
            *rows({"torch": 9.0, "cuda": 2.0, "inductor": None}, op="sample_posterior"),
        ],
        "made up",
    )
    assert found.decomposed == ("bias_leaky_relu",)
    assert found.table[key()] == ("cuda", "torch")


def results(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def environment():
    return {"machine": {"gpu": "Some GPU"}, "versions": {"commit": "abc"}}


def test_writes_a_module_that_says_the_same(tmp_path, monkeypatch, capsys):
    target = tmp_path / "measured.py"
    monkeypatch.setattr(measured, "__file__", str(target))
    found = [
        *rows({"torch": 9.0, "cuda": 2.0, "inductor": 1.0}),
        *rows({"torch": 9.0}, op="upfirdn2d"),
    ]
    path = results(tmp_path, {"rows": found, "environment": environment()})
    assert prefer.main([str(path), "--write"]) == 0
    module: dict = {}
    exec(target.read_text(), module)
    assert module["SOURCE"] == "Some GPU, results.json, abc"
    assert module["TABLE"] == {key(): ("cuda", "torch"), key("upfirdn2d"): ("torch",)}
    assert module["DECOMPOSED"] == ("bias_leaky_relu",)
    assert max(map(len, target.read_text().splitlines())) <= 100
    capsys.readouterr()
    assert prefer.main([str(path)]) == 0
    assert capsys.readouterr().out == target.read_text()


def test_the_installed_module_is_one_that_it_writes():
    with open(measured.__file__) as file:
        assert prefer.Preferences(
            measured.SOURCE, measured.TABLE, measured.DECOMPOSED
        ).module() == file.read()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "results.json: Expecting"),
        ({"parts": []}, "has not the form of results"),
        ([1], "has not the form of results"),
        ({"rows": []}, "no rows of ops timed on a GPU"),
        ({"rows": [{"part": "step", "provider": "ddgan_fast"}]}, "no rows of ops timed"),
        ({"rows": list(rows({"torch": 9.0}, timing="host"))}, "no rows of ops timed on a GPU"),
    ],
)
def test_results_that_tell_nothing(tmp_path, monkeypatch, capsys, content, words):
    target = tmp_path / "measured.py"
    monkeypatch.setattr(measured, "__file__", str(target))
    assert prefer.main([str(results(tmp_path, content)), "--write"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("prefer: ") and words in line
    assert not target.exists()
