"""The average of the weights, the learning rate, and Adam."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from ddgan_fast import convert
from ddgan_fast.training.ema import WeightAverage
from ddgan_fast.training.optim import cosine_rate, make_adam

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
