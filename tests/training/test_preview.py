"""Sample grids that cannot be written."""

from tiny_runs import final_state, tiny

from ddgan_fast.training import trainer


def test_a_grid_that_cannot_be_written_is_said_and_the_run_goes_on(tmp_path, capsys):
    (tmp_path / "samples").write_text("a file where the folder of the grids should be")
    cfg = tiny(tmp_path, run__sample_every=3, run__steps=6, run__checkpoint_every=6)
    assert trainer.train(cfg, device="cpu").finished
    said = [line for line in capsys.readouterr().out.splitlines() if "sample grid" in line]
    assert [line.split(" (")[0] for line in said] == [
        f"Could not write the sample grid of step {step}" for step in (3, 6)
    ]
    assert all(line.endswith("); going on.") and str(tmp_path) not in line for line in said)
    assert final_state(tmp_path)["step"] == 6
