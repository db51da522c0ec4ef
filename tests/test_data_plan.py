"""The stateless sampler: exact, complete, and the same for any number of ranks."""

import threading

import numpy as np
import pytest

from ddgan_fast.data import plan as module
from ddgan_fast.data.plan import Plan, key, permutations, splitmix64

MASK = (1 << 64) - 1


def mix(x):
    """SplitMix64 in plain Python integers."""
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def record_at(p, n, seed):
    """Record and flip at a position of the stream, from the formula alone."""
    epoch_key = mix(mix(seed) ^ (p // n))
    order = sorted(range(n), key=lambda i: mix(i ^ epoch_key))
    return order[p % n], bool(mix(p ^ mix(mix(seed) ^ MASK)) >> 63)


def gather(plan, steps, world=1):
    """Global batches put together from the parts of all ranks."""
    indices, flips = [], []
    for step in steps:
        parts = [plan.batch(step, rank, world) for rank in range(world)]
        indices.append(np.stack([part[0] for part in parts], axis=1).reshape(-1))
        flips.append(np.stack([part[1] for part in parts], axis=1).reshape(-1))
    return np.concatenate(indices), np.concatenate(flips)


def test_splitmix64_is_the_published_generator():
    # First outputs of the generator seeded with 0: states 0 and one golden gamma further.
    states = np.array([0, 0x9E3779B97F4A7C15], np.uint64)
    assert [int(v) for v in splitmix64(states)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_frozen_values():
    """Runs are resumed by later versions: these numbers must never change."""
    assert (key(1024, 0), key(1024, MASK)) == (0xA5CF80833CCC9EA8, 0x7168CE796820D220)
    indices, flips = gather(Plan(7, 1024, 4), range(4))
    assert indices.tolist() == [4, 6, 2, 1, 0, 3, 5, 2, 1, 5, 0, 4, 3, 6, 5, 1]
    assert flips.astype(int).tolist() == [0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0, 0]
    indices, flips = Plan(103, 5, 8).batch(1000, rank=1, world=2)
    assert indices.tolist() == [69, 24, 92, 2]
    assert flips.tolist() == [False, True, False, False]
    assert Plan(103, 5, 8, "epoch").batch(12)[0].tolist() == [29, 14, 87, 4, 55, 79, 100, 101]
    assert Plan(3, 5, 8).batch(2)[0].tolist() == [2, 0, 0, 1, 2, 1, 0, 2]


@pytest.mark.parametrize(("n", "batch"), [(103, 32), (5, 32), (1, 3), (32, 32), (33, 32), (31, 32)])
def test_equals_the_formula(n, batch):
    steps = [0, 1, 3, 7, 12345]
    indices, flips = gather(Plan(n, 77, batch), steps)
    positions = [step * batch + j for step in steps for j in range(batch)]
    assert list(zip(indices.tolist(), flips.tolist(), strict=True)) == [
        record_at(p, n, 77) for p in positions
    ]


@pytest.mark.parametrize("mode", ["stream", "epoch"])
@pytest.mark.parametrize("world", [2, 4, 8])
def test_the_number_of_ranks_does_not_matter(mode, world):
    plan = Plan(103, 3, 32, mode)
    for one, many in zip(gather(plan, range(50)), gather(plan, range(50), world), strict=True):
        np.testing.assert_array_equal(one, many)


def test_positions_are_interleaved():
    assert Plan(50, 0, 8).positions(3, rank=1, world=4).tolist() == [25, 29]


@pytest.mark.parametrize("n", [103, 32, 5, 1])
def test_every_record_once_in_n_positions(n):
    indices, _ = gather(Plan(n, 9, 32), range(n))
    np.testing.assert_array_equal(
        np.sort(indices.reshape(32, n), axis=1), np.tile(np.arange(n), (32, 1))
    )


def test_small_set_counts_are_even():
    indices, _ = Plan(5, 0, 32).batch(0)
    assert sorted(np.bincount(indices, minlength=5).tolist()) == [6, 6, 6, 7, 7]


def test_epoch_mode_drops_the_tail():
    plan = Plan(103, 4, 32, "epoch")
    assert plan.steps_per_epoch == 3
    orders = permutations(103, 4, np.arange(4))
    for epoch in range(4):
        indices, _ = gather(plan, range(3 * epoch, 3 * epoch + 3))
        np.testing.assert_array_equal(indices, orders[epoch][:96])


def test_epoch_mode_flips_follow_the_position():
    stream, epoch = Plan(103, 4, 32), Plan(103, 4, 32, "epoch")
    for step in (0, 5, 40):
        np.testing.assert_array_equal(stream.batch(step)[1], epoch.batch(step)[1])


@pytest.mark.parametrize("start", [1, 3, 4, 29])
def test_resume_at_any_step(start):
    whole = Plan(103, 8, 32)
    before = [whole.batch(step) for step in range(40)]
    resumed = Plan(103, 8, 32)
    for step in range(start, 40):
        np.testing.assert_array_equal(resumed.batch(step)[0], before[step][0])
        np.testing.assert_array_equal(resumed.batch(step)[1], before[step][1])


def test_order_of_the_calls_does_not_matter():
    plan, fresh = Plan(40, 1, 16), Plan(40, 1, 16)
    expected = {step: fresh.batch(step)[0] for step in range(20)}
    for step in (19, 0, 7, 3, 18, 2, 11, 0):
        np.testing.assert_array_equal(plan.batch(step)[0], expected[step])


def test_permutations_are_bijective_and_unrelated():
    orders = permutations(20_000, 1024, np.arange(4))
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(20_000))
    related = np.corrcoef(np.vstack([orders, np.arange(20_000)]))
    assert np.abs(related - np.eye(5)).max() < 0.03
    other_seed = permutations(20_000, 1025, np.arange(4))
    assert np.abs(np.corrcoef(orders, other_seed)[:4, 4:]).max() < 0.03


def test_half_are_flipped_and_independently_of_epoch_and_record():
    indices, flips = gather(Plan(500, 2, 100), range(1000))
    assert abs(flips.mean() - 0.5) < 0.01
    per_record = np.bincount(indices, weights=flips, minlength=500) / 200
    assert per_record.min() > 0.3 and per_record.max() < 0.7
    assert abs(np.corrcoef(flips[:-1], flips[1:])[0, 1]) < 0.02
    assert not Plan(500, 2, 100, flip=False).batch(0)[1].any()


def test_next_epoch_is_prepared_in_the_background(monkeypatch):
    monkeypatch.setattr(Plan, "_BACKGROUND_FROM", 100)
    plan = Plan(100, 1, 10)
    plan.batch(4)
    assert set(plan._cache) == {0}
    plan.batch(5)
    for thread in threading.enumerate():
        if thread.name == "ddgan-plan":
            thread.join()
    assert set(plan._cache) == {0, 1}
    expected, _ = gather(Plan(100, 1, 10, flip=False), range(40))
    actual, _ = gather(plan, range(40))
    np.testing.assert_array_equal(actual, expected)
    assert len(plan._cache) == 2


def test_an_order_that_could_not_be_made_is_made_the_next_time(monkeypatch):
    def full(*arguments):
        raise MemoryError("no room")

    plan = Plan(64, 1, 16)
    with monkeypatch.context() as patch:
        patch.setattr(module, "permutations", full)
        with pytest.raises(MemoryError, match="no room"):
            plan.batch(0)
    np.testing.assert_array_equal(plan.batch(0)[0], Plan(64, 1, 16).batch(0)[0])


def test_threads_agree():
    plan, reference = Plan(64, 1, 16), Plan(64, 1, 16)
    expected = [reference.batch(step)[0] for step in range(200)]
    wrong = []

    def work(first):
        for step in range(first, 200, 4):
            if not np.array_equal(plan.batch(step)[0], expected[step]):
                wrong.append(step)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_large_seeds_and_steps():
    for seed in (0, -1, 2**63, 2**64 - 1):
        indices, _ = Plan(10, seed, 4).batch(10**12)
        assert indices.dtype == np.int64 and indices.min() >= 0 and indices.max() < 10


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Plan(0, 0, 4), "0 records"),
        (lambda: Plan(4, 0, 0), "global batch is 0"),
        (lambda: Plan(4, 0, 2, "random"), '"random"; allowed are "stream" and "epoch"'),
        (lambda: Plan(5, 0, 32, "epoch"), "5 records do not fill one batch of 32"),
        (lambda: Plan(50, 0, 32).batch(0, 0, 3), "32 does not divide by 3 ranks"),
        (lambda: Plan(50, 0, 32).batch(0, 2, 2), "rank 2 of 2"),
        (lambda: Plan(50, 0, 32).batch(-1), "step -1"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
