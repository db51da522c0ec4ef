"""Stopping early: signals become a flag, non-finite gradients change nothing and are named."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

from ddgan_fast.training import guard
from ddgan_fast.training.guard import FiniteGuard, NonFiniteError, Preemption, step_unless

OPTIMIZERS = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "loop": {"foreach": False},
}


def make(dtype=torch.float32, **options):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(4, 3, dtype=dtype)) for _ in range(3)]
    return params, torch.optim.Adam(params, lr=1e-2, betas=(0.5, 0.9), **options)


def set_grads(params, seed, poison=None):
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)
    if poison is not None:
        params[1].grad[2, 1] = poison
    return [param.grad for param in params]


def snapshot(params, optimizer):
    state = [optimizer.state[p][k] for p in params for k in ("step", "exp_avg", "exp_avg_sq")]
    return [x.detach().clone() for x in [*params, *state]]


def run(kind, dtype, poisons):
    params, optimizer = make(dtype, **OPTIMIZERS[kind])
    finite = FiniteGuard("cpu", max_skipped=10)
    for seed, poison in enumerate(poisons):
        step_unless(optimizer, finite.check(seed, "D", set_grads(params, seed, poison)))
    return snapshot(params, optimizer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_bad_gradient_changes_nothing(kind, poison, dtype):
    params, optimizer = make(dtype, **OPTIMIZERS[kind])
    finite = FiniteGuard("cpu", max_skipped=10)
    step_unless(optimizer, finite.check(0, "D", set_grads(params, 0)))
    before = snapshot(params, optimizer)
    found_inf = finite.check(1, "D", set_grads(params, 1, poison))
    assert found_inf.dtype == torch.float32 and found_inf.item() == 1
    step_unless(optimizer, found_inf)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(params, optimizer), strict=True))

    found_inf = finite.check(2, "D", set_grads(params, 2))
    assert found_inf.item() == 0
    step_unless(optimizer, found_inf)
    after = snapshot(params, optimizer)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not hasattr(optimizer, "found_inf") and not hasattr(optimizer, "grad_scale")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_run_with_a_skipped_step_goes_on_as_if_it_had_not_been(kind):
    params, optimizer = make(**OPTIMIZERS[kind])
    for seed in (1, 2):
        set_grads(params, seed)
        optimizer.step()
    skipping = run(kind, torch.float32, [math.nan, None, None])
    assert all(
        torch.equal(a, b) for a, b in zip(snapshot(params, optimizer), skipping, strict=True)
    )


def test_grad_norm_and_overflow():
    params, _ = make()
    grads = set_grads(params, 0)
    finite = FiniteGuard("cpu", max_skipped=10)
    finite.check(0, "G", grads)
    expected = torch.cat([grad.reshape(-1) for grad in grads]).norm()
    torch.testing.assert_close(finite.grad_norm["G"], expected)
    assert finite.check(0, "G", [torch.full((2,), 3e38)]).item() == 1
    half = [torch.full((4,), 3e4, dtype=torch.float16)]
    assert finite.check(0, "G", half).item() == 0


def skip(finite, step, name="D", loss=None, t=None):
    return finite.check(step, name, [torch.tensor([math.nan])], loss, t)


def test_the_first_bad_step_is_remembered_and_named():
    finite = FiniteGuard("cpu", max_skipped=2)
    ok = [torch.ones(2)]
    finite.check(16_777_217, "D", ok, torch.tensor([1.0, math.nan]), torch.tensor([0, 1]))
    assert finite.at_tick() is None, "only gradients decide"
    loss, t = torch.tensor([1.0, math.inf, math.nan]), torch.tensor([0, 3, 2])
    skip(finite, 16_777_217, "G", loss, t)
    skip(finite, 16_777_218, "D", torch.full((3,), math.nan), t)
    message = finite.at_tick()
    assert message == (
        "Skipped 2 steps: at step 16777217 the gradient of the generator was not finite "
        "(loss inf, at timestep 3)."
    )


def test_finite_losses_have_no_timestep():
    finite = FiniteGuard("cpu", max_skipped=2)
    skip(finite, 5, "D", torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1]))
    assert "step 5 " in (text := finite.at_tick()) and "(loss 1.5, finite for every sample)" in text
    finite = FiniteGuard("cpu", max_skipped=2)
    skip(finite, 5)
    assert "(loss nan, at an unknown timestep)" in finite.at_tick()
    finite = FiniteGuard("cpu", max_skipped=2)
    skip(finite, 5, "G", torch.tensor([1.0, math.inf]))
    assert "(loss inf, at an unknown timestep)" in finite.at_tick()


def test_too_many_skipped_steps_raise_with_what_to_do():
    finite = FiniteGuard("cpu", max_skipped=3)
    for step in range(10, 14):
        skip(finite, step, "D", torch.tensor([math.nan]), torch.tensor([2]))
        skip(finite, step, "G")
    with pytest.raises(NonFiniteError) as caught:
        finite.at_tick()
    message = str(caught.value)
    for words in ("step 10 ", "discriminator", "loss nan", "timestep 2", "4 steps were skipped"):
        assert words in message
    for words in ("last good state is kept", "optim.lr_g", "loss.r1_gamma", "fp32"):
        assert words in message
    assert "\n" not in message


def test_skips_add_up_until_a_good_tick():
    """A tick shorter than max_skipped must not hide that every step is bad."""
    finite = FiniteGuard("cpu", max_skipped=3)
    skip(finite, 1), skip(finite, 2)
    assert "Skipped 2 steps: at step 1 " in finite.at_tick()
    skip(finite, 3)
    assert "Skipped 1 step: at step 1 " in finite.at_tick()
    assert finite.at_tick() is None
    skip(finite, 5), skip(finite, 6), skip(finite, 7)
    assert "Skipped 3 steps: at step 5 " in finite.at_tick()
    skip(finite, 8)
    with pytest.raises(NonFiniteError, match=r"step 5 .*4 steps"):
        finite.at_tick()


def test_a_step_number_may_be_a_tensor():
    finite = FiniteGuard("cpu", max_skipped=3)
    step = torch.tensor(41)
    step.add_(1)
    skip(finite, step)
    assert "step 42 " in finite.at_tick()


def test_after_a_reset_counting_starts_again():
    finite = FiniteGuard("cpu", max_skipped=1)
    for step in (3, 4):
        finite.check(step, "D", [torch.tensor([math.nan])])
    with pytest.raises(NonFiniteError) as caught:
        finite.at_tick()
    assert caught.value.step == 3
    finite.reset()
    finite.check(2, "G", [torch.tensor([math.inf])])
    assert finite.at_tick().startswith("Skipped 1 step: at step 2 the gradient of the generator")


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu():
    params = [torch.nn.Parameter(torch.randn(8, device="cuda")) for _ in range(3)]
    optimizer = torch.optim.Adam(params, fused=True)
    finite = FiniteGuard("cuda", max_skipped=10)
    loss, t = torch.tensor([1.0, math.nan], device="cuda"), torch.tensor([0, 1], device="cuda")
    for param in params:
        param.grad = torch.full_like(param, math.nan)
    before = [param.detach().clone() for param in params]
    torch.cuda.set_sync_debug_mode("error")
    try:
        step_unless(optimizer, finite.check(3, "D", [p.grad for p in params], loss, t))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))
    assert "step 3 " in (text := finite.at_tick()) and "timestep 1" in text


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_only_sets_the_flag_and_handlers_come_back(name):
    number = getattr(signal, name)
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with Preemption() as preemption:
        assert not preemption.requested and preemption.signal_name is None
        signal.raise_signal(number)
        assert preemption.requested and preemption.signal_name == name
        if name == "SIGTERM":
            signal.raise_signal(number)
            assert preemption.signal_name == "SIGTERM"
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_interrupt_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.requested and preemption.signal_name == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread_it_does_nothing():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work():
        with Preemption() as preemption:
            seen.append((signal.getsignal(signal.SIGTERM), preemption.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_graph_cannot_wait(monkeypatch):
    monkeypatch.setattr(guard.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(guard.torch.cuda, "is_current_stream_capturing", lambda: True)
    params, optimizer = make(foreach=True)
    set_grads(params, 0)
    with pytest.raises(RuntimeError, match=r"set optim\.backend to torch"):
        step_unless(optimizer, torch.zeros(()))


RANKS = """
    import math, os, sys
    import torch, torch.distributed as dist
    from ddgan_fast.training.guard import FiniteGuard, NonFiniteError

    torch.set_num_threads(1)
    rank = 0
    for other in (1, 2):
        if os.fork() == 0:
            rank = other
            break
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=3)
    finite = FiniteGuard("cpu", max_skipped=1)
    bad = [torch.tensor([math.nan])]
    losses = torch.tensor([1.0, math.nan if rank == 2 else 1.0])
    finite.check(6, "G", bad, losses, torch.tensor([0, 3]))
    text = finite.at_tick()
    assert "timestep 3" in text, (rank, text)
    finite.check(7, "G", bad)
    try:
        finite.at_tick()
    except NonFiniteError as error:
        assert "step 6 " in str(error) and "timestep 3" in str(error)
        open(f"{sys.argv[1]}.{rank}", "w").close()
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        for _ in range(2):
            os.wait()
    else:
        os._exit(0)
"""


def test_ranks_stop_together_and_say_the_same(tmp_path):
    store = tmp_path / "store"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RANKS), str(store)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("store.*")) == [
        f"store.{r}" for r in range(3)
    ]
