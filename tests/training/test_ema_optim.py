"""The average of the weights, the learning rate, and Adam."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from ddgan_fast import convert
from ddgan_fast.training.ema import WeightAverage
from ddgan_fast.training.optim import (
    adam_state,
    cosine_rate,
    load_adam_state,
    make_adam,
    set_rate,
)

CONTENT = Path(__file__).parents[1] / "data" / "golden" / "checkpoint_ref" / "content.pth"


def network(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 5))
    net[1].bias.requires_grad_(False)
    net.register_parameter("scalar", nn.Parameter(torch.tensor(1.5)))
    return net


def move(net, seed):
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=random))


# Average


def test_the_average_starts_after_the_first_update():
    net = network()
    average = WeightAverage(net, 0.9)
    raw = average.weights()
    assert list(raw) == [name for name, _ in net.named_parameters()]
    assert all(torch.equal(raw[name], p) for name, p in net.named_parameters())
    move(net, 1)
    average.update(0)
    first = {name: p.detach().clone() for name, p in net.named_parameters()}
    assert all(torch.equal(average.weights()[name], first[name]) for name in first)
    move(net, 2)
    assert all(torch.equal(average.weights()[name], first[name]) for name in first)


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.3, 0.0])
def test_the_average_is_the_formula(decay):
    net = network().double()
    average = WeightAverage(net, decay)
    want = None
    for step in range(6):
        move(net, step)
        now = {name: p.detach().clone() for name, p in net.named_parameters()}
        want = {k: decay * want[k] + (1 - decay) * now[k] for k in now} if want is not None else now
        average.update(step)
    for name, value in average.weights().items():
        torch.testing.assert_close(value, want[name], rtol=1e-12, atol=1e-12)
        assert not value.requires_grad


def test_a_constant_weight_stays_itself():
    """A weight that never moves must not drift by rounding."""
    net = network()
    average = WeightAverage(net, 0.9999)
    for step in range(1000):
        average.update(step)
    for name, p in net.named_parameters():
        assert torch.equal(average.weights()[name], p)


def test_warm_up_shortens_the_average_at_first():
    net = network().double()
    average = WeightAverage(net, 0.5, warmup=True)
    want, used = None, []
    for step in range(12):
        move(net, step)
        now = {name: p.detach().clone() for name, p in net.named_parameters()}
        decay = min(0.5, (1 + step) / (10 + step))
        used.append(decay)
        want = {k: decay * want[k] + (1 - decay) * now[k] for k in now} if want is not None else now
        average.update(step)
    assert used[1] < 0.2 and used[-1] == 0.5
    for name, value in average.weights().items():
        torch.testing.assert_close(value, want[name], rtol=1e-12, atol=1e-12)


def test_going_on_from_saved_averages():
    one, other = network(), network()
    average = WeightAverage(one, 0.9)
    for step in range(3):
        move(one, step)
        average.update(step)
    saved = {name: value.clone() for name, value in average.weights().items()}
    other.load_state_dict(one.state_dict())
    resumed = WeightAverage(other, 0.9)
    resumed.load(saved)
    for step in range(3, 6):
        for net, kept in ((one, average), (other, resumed)):
            move(net, step)
            kept.update(step)
    for name, value in average.weights().items():
        assert torch.equal(value, resumed.weights()[name])
    # What was handed in is a copy: it did not move along.
    assert any(not torch.equal(saved[name], resumed.weights()[name]) for name in saved)


def test_loading_converts_the_type():
    net = network().double()
    average = WeightAverage(net, 0.9)
    average.load({name: p.detach().float() for name, p in net.named_parameters()})
    assert {v.dtype for v in average.weights().values()} == {torch.float64}
    average.update(5)


def test_loading_takes_the_parameters_memory_order():
    net = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    average = WeightAverage(net, 0.9)
    average.load({name: p.detach().contiguous() for name, p in net.named_parameters()})
    assert average.weights()["weight"].stride() == net.weight.stride()


def test_reading_the_average_does_not_change_the_weights():
    net = network()
    average = WeightAverage(net, 0.9)
    move(net, 1)
    average.update(0)
    before = [p.detach().clone() for p in net.parameters()]
    for value in average.weights().values():
        value.mul_(0.0)
    assert all(torch.equal(a, p) for a, p in zip(before, net.parameters(), strict=True))


# Learning rate


def test_cosine_is_the_closed_form():
    start, end, total = 1.6e-4, 1e-5, 1000
    for step in (0, 1, 250, 500, 999, 1000, 1001, 5000):
        e = min(step, total)
        want = end + (start - end) * (1 + math.cos(math.pi * e / total)) / 2
        assert cosine_rate(step, start, end, total) == pytest.approx(want, rel=1e-12)
    assert cosine_rate(0, start, end, total) == start
    assert cosine_rate(1000, start, end, total) == pytest.approx(end, rel=1e-12)


def test_cosine_equals_torch_epoch_by_epoch():
    epochs, per_epoch = 9, 7
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=1e-5)
    for epoch in range(epochs + 1):
        want = optimizer.param_groups[0]["lr"]
        for step in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            got = cosine_rate(step, 2e-3, 1e-5, epochs * per_epoch, per_epoch)
            assert got == pytest.approx(want, rel=1e-9), (epoch, step)
        optimizer.step()
        schedule.step()


def test_cosine_equals_a_published_run():
    state = convert.read_published(CONTENT)["schedulerG"]
    got = cosine_rate(state["last_epoch"], state["base_lrs"][0], state["eta_min"], state["T_max"])
    assert got == pytest.approx(state["_last_lr"][0], rel=1e-12)


def test_an_interval_longer_than_the_run_keeps_the_first_rate():
    assert cosine_rate(3, 1e-3, 1e-5, 10, 100) == 1e-3


# Adam


def parameters(dtype):
    random = torch.Generator().manual_seed(0)
    shapes = ((3, 4), (5,), (2, 3, 3, 3), ())
    values = [nn.Parameter(torch.randn(s, generator=random).to(dtype)) for s in shapes]
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    return [*values[:2], frozen, *values[2:]]


def train(backend, dtype=torch.float64, steps=5):
    values = parameters(dtype)
    optimizer = make_adam(values, 3e-2, (0.5, 0.9), 1e-8, backend)
    random = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in values:
            gradient = torch.randn(p.shape, generator=random).to(dtype)
            p.grad = gradient if p.requires_grad else None
        optimizer.step()
    return values


def textbook(dtype=torch.float64, steps=5):
    values = [p.detach().clone() for p in parameters(dtype)]
    moments = [(torch.zeros_like(v), torch.zeros_like(v)) for v in values]
    random = torch.Generator().manual_seed(1)
    for step in range(1, steps + 1):
        for i, v in enumerate(values):
            g = torch.randn(v.shape, generator=random).to(dtype)
            if i == 2:
                continue
            m, s = moments[i]
            m.mul_(0.5).add_(0.5 * g)
            s.mul_(0.9).add_(0.1 * g * g)
            v.sub_(3e-2 * (m / (1 - 0.5**step)) / ((s / (1 - 0.9**step)).sqrt() + 1e-8))
    return values


@pytest.mark.parametrize("backend", ["auto", "torch", "foreach", "loop"])
def test_adam_is_the_textbook(backend):
    for got, want in zip(train(backend), textbook(), strict=True):
        torch.testing.assert_close(got.detach(), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["auto", "torch", "foreach"])
def test_backends_agree_in_float32(backend):
    for got, want in zip(train(backend, torch.float32), train("loop", torch.float32), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_the_backend_asked_for_is_used_and_frozen_parameters_are_left_out():
    values = parameters(torch.float32)
    options = {
        backend: make_adam(values, 1e-3, (0.5, 0.9), 1e-8, backend).param_groups[0]
        for backend in ("auto", "torch", "foreach", "loop")
    }
    assert options["torch"]["fused"] and options["auto"]["fused"]
    assert options["foreach"]["foreach"] and not options["foreach"]["fused"]
    assert options["loop"]["foreach"] is False and not options["loop"]["fused"]
    for group in options.values():
        assert len(group["params"]) == 4 and all(p.requires_grad for p in group["params"])
        assert group["weight_decay"] == 0 and not group["amsgrad"]


# The rate on the device, and the state


def steps(optimizer, values, rates):
    for number, rate in enumerate(rates):
        random = torch.Generator().manual_seed(number)
        for p in values:
            p.grad = torch.randn(p.shape, generator=random).to(p) if p.requires_grad else None
        set_rate(optimizer, rate)
        optimizer.step()


RATES = [3e-3 * (1 - i / 40) for i in range(20)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rate_on_the_device_changes_no_bit(dtype):
    results = []
    for on_device in (False, True):
        values = parameters(dtype)
        optimizer = make_adam(values, 1e-3, (0.5, 0.9), 1e-8, rate_on_device=on_device)
        rate = optimizer.param_groups[0]["lr"]
        assert isinstance(rate, torch.Tensor) == on_device
        steps(optimizer, values, RATES)
        assert not on_device or optimizer.param_groups[0]["lr"] is rate
        results.append(values)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("backend", ["foreach", "loop"])
def test_a_rate_on_the_device_needs_a_fused_adam(backend):
    with pytest.raises(ValueError, match=f'"{backend}", which cannot run inside a CUDA graph'):
        make_adam(parameters(torch.float32), 1e-3, (0.5, 0.9), 1e-8, backend, rate_on_device=True)


@pytest.mark.parametrize("saved_on_device", [False, True])
@pytest.mark.parametrize("backend", ["torch", "foreach", "loop"])
def test_the_state_loads_into_every_adam(backend, saved_on_device):
    one = parameters(torch.float32)
    first = make_adam(one, 1e-3, (0.5, 0.9), 1e-8, rate_on_device=saved_on_device)
    steps(first, one, RATES)
    saved = copy.deepcopy(adam_state(first))
    assert type(saved["param_groups"][0]["lr"]) is float
    others = [
        nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad) for p in one
    ]
    on_device = backend == "torch" and not saved_on_device
    # Another epsilon: the option is this run's, the moments are the saved ones.
    second = make_adam(others, 1e-3, (0.5, 0.9), 1e-7, backend, rate_on_device=on_device)
    load_adam_state(second, saved)
    assert second.param_groups[0]["eps"] == 1e-7
    for p, q in zip(others, one, strict=True):
        if p.requires_grad:
            assert set(second.state[p]) == set(first.state[q])
            assert all(torch.equal(second.state[p][k], first.state[q][k]) for k in first.state[q])
    second.param_groups[0]["eps"] = 1e-8
    for optimizer, values in ((first, one), (second, others)):
        steps(optimizer, values, RATES)
    for p, q in zip(others, one, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_torchs_own_state_dict_loads():
    one, other = parameters(torch.float64), parameters(torch.float64)
    plain = torch.optim.Adam([p for p in one if p.requires_grad], 1e-3, betas=(0.5, 0.9))
    steps(plain, one, RATES)
    optimizer = make_adam(other, 1e-3, (0.5, 0.9), 1e-8)
    load_adam_state(optimizer, plain.state_dict())
    assert {float(state["step"]) for state in optimizer.state.values()} == {len(RATES)}


def test_loading_fills_what_exists_in_place():
    """Otherwise a CUDA graph would go on with tensors that nobody looks at any more."""
    values = parameters(torch.float32)
    optimizer = make_adam(values, 1e-3, (0.5, 0.9), 1e-8, rate_on_device=True)
    empty = copy.deepcopy(adam_state(optimizer))
    steps(optimizer, values, RATES)
    before = {p: dict(state) for p, state in optimizer.state.items()}
    saved = copy.deepcopy(adam_state(optimizer))
    steps(optimizer, values, RATES)
    load_adam_state(optimizer, saved)
    numbers = saved["param_groups"][0]["params"]
    for number, (p, state) in zip(numbers, before.items(), strict=True):
        for name, tensor in state.items():
            assert optimizer.state[p][name] is tensor
            assert torch.equal(tensor, saved["state"][number][name])
    # A state from before the first step takes everything back to zero.
    load_adam_state(optimizer, empty)
    assert all(not t.any() for state in before.values() for t in state.values())


def test_an_unknown_optimiser_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"optim\.backend is 'lion': choose one of .*\"apex\""):
        make_adam(parameters(torch.float32), 1e-3, (0.5, 0.9), 1e-8, "lion")


def test_a_state_from_before_the_first_step_leaves_a_new_optimiser_new():
    values = parameters(torch.float32)
    one, other = (make_adam(values, 1e-3, (0.5, 0.9), 1e-8, "foreach") for _ in range(2))
    saved = {"state": {}, "param_groups": one.state_dict()["param_groups"]}
    load_adam_state(other, saved)
    assert not other.state
    steps(other, values, RATES)
    assert {float(state["step"]) for state in other.state.values()} == {len(RATES)}


def test_the_state_of_another_network_is_refused():
    values = parameters(torch.float32)
    small = make_adam(values[:2], 1e-3, (0.5, 0.9), 1e-8)
    with pytest.raises(ValueError, match="2 parameters, this one 4"):
        load_adam_state(make_adam(values, 1e-3, (0.5, 0.9), 1e-8), adam_state(small))


def test_loading_averages_fills_what_exists_in_place():
    net = network()
    average = WeightAverage(net, 0.9)
    average.update(0)
    tensors = list(average.average)
    average.load({name: torch.ones_like(p) for name, p in net.named_parameters()})
    assert all(a is b and (a == 1).all() for a, b in zip(average.average, tensors, strict=True))


def test_the_distance_of_the_average():
    net = network().double()
    average = WeightAverage(net, 0.9)
    assert average.distance() == 0
    average.update(0)
    move(net, 1)
    apart = torch.cat([(average.weights()[n] - p).flatten() for n, p in net.named_parameters()])
    norm = torch.cat([p.flatten() for p in net.parameters()]).norm()
    torch.testing.assert_close(average.distance(), (apart.norm() / norm).detach())
