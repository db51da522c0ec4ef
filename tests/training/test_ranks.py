"""The same run on one rank, on two ranks, and in micro-batches."""

import pytest
import torch
from tiny_runs import final_state, record, run_ranks, tensors_of, tiny


def relative_error(got: torch.Tensor, want: torch.Tensor, floor: float) -> float:
    return float((got - want).double().norm() / max(want.double().norm(), floor))


@pytest.mark.parametrize("batch", [8, 16])
def test_run_does_not_depend_on_ranks_or_micro_batches(tmp_path, batch):
    """20 float64 steps, R1 in between, at one global batch: whole, on 2 ranks, in 2 parts."""
    common = {
        "run__batch_size": batch,
        "run__precision": "fp64",
        "run__steps": 20,
        "run__checkpoint_every": 20,
        "model__dropout": 0.1,
    }
    record(tiny(tmp_path / "one", **common))
    first, second = run_ranks(tiny(tmp_path / "two", **common), 2, tmp_path / "ranks")
    record(tiny(tmp_path / "parts", **common, run__micro_batch=batch // 2))
    want = tensors_of(final_state(tmp_path / "one"))
    for other in ("two", "parts"):
        got = tensors_of(final_state(tmp_path / other))
        assert want.keys() == got.keys()
        errors = {key: float((got[key] - want[key]).abs().max()) for key in want}
        worst = max(errors, key=errors.get)
        assert errors[worst] < 1e-8, (other, worst, errors[worst])
    # Ranks hold bit-identical weights after every step, and the weights do move.
    assert first["digests"] == second["digests"]
    assert len(set(first["digests"])) == 20


def test_first_step_agrees_in_float32(tmp_path):
    common = {"run__steps": 1, "run__batch_size": 16}
    one = record(tiny(tmp_path / "one", **common))
    two = run_ranks(tiny(tmp_path / "two", **common), 2, tmp_path / "ranks")
    parts = record(tiny(tmp_path / "parts", **common, run__micro_batch=8))
    largest = max(float(g.norm()) for g in one["gradients"].values())
    for other in (*two, parts):
        assert other["gradients"].keys() == one["gradients"].keys()
        for name, want in one["gradients"].items():
            error = relative_error(other["gradients"][name], want, 1e-3 * largest)
            assert error < 1e-4, (name, error)
    for name, want in one["losses"].items():
        dealt = torch.stack([rank["losses"][name] for rank in two], 1).flatten()
        torch.testing.assert_close(dealt, want, rtol=1e-4, atol=1e-5)


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path):
    common = {"run__precision": "fp64", "optim__lr_decay": "none", "run__checkpoint_every": 4}
    record(tiny(tmp_path / "one", **common, run__steps=8))
    folder = tmp_path / "changed"
    run_ranks(tiny(folder, **common, run__steps=4), 2, tmp_path / "ranks")
    assert final_state(folder)["step"] == 4
    record(tiny(folder, **common, run__steps=8))
    want, got = (tensors_of(final_state(run)) for run in (tmp_path / "one", folder))
    assert max(float((got[key] - want[key]).abs().max()) for key in want) < 1e-8
