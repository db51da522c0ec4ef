"""On a GPU: features, moments, neighbours and scores as on the CPU; sampling timed by events."""

import pytest
import torch
from plain_inception import PlainInception, seeded_weights

from ddgan_fast.config import load_config
from ddgan_fast.evaluation.features import build_extractor
from ddgan_fast.evaluation.frechet import Moments, gaussian_of
from ddgan_fast.evaluation.kid import inception_score, kernel_distance
from ddgan_fast.evaluation.prdc import density_coverage, precision_recall
from ddgan_fast.evaluation.timing import time_sampling
from ddgan_fast.models import build_generator
from ddgan_fast.sampling import LoadedGenerator

pytestmark = pytest.mark.gpu


def test_features_are_the_cpus(tmp_path):
    torch.save(seeded_weights(PlainInception()), tmp_path / "w.pth")
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    on_cpu, on_gpu = (
        build_extractor("inception", weights=tmp_path / "w.pth", device=device)(images)
        for device in ("cpu", "cuda")
    )
    for want, got in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-3, atol=1e-4)


def test_scores_are_the_cpus():
    random = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(500, 32, generator=random) for _ in range(2))
    for score in (kernel_distance, precision_recall, density_coverage):
        assert score(real.cuda(), fake.cuda()) == pytest.approx(score(real, fake), rel=1e-9)
    assert inception_score(real.cuda()) == pytest.approx(inception_score(real), rel=1e-9)
    moments = Moments(32, "cuda")
    for part in real.cuda().split(100):
        moments.update(part)
    want, got = gaussian_of(real), moments.gaussian()
    assert got.covariance.device.type == "cpu"
    torch.testing.assert_close(got.mean, want.mean)
    torch.testing.assert_close(got.covariance, want.covariance)


def test_sampling_is_timed_by_events(tmp_path):
    cfg = load_config("digits")
    weights = build_generator(cfg).state_dict()
    model = LoadedGenerator(cfg, weights, 0, tmp_path).to("cuda")
    row = time_sampling(model, 8, rounds=20)
    assert (row["clock"], row["engine"], row["warm_up"]) == ("cuda events", "graph", 10)
    assert row["ms_p50"] > 0
