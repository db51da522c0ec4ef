"""Quality of a generator's samples: metrics on features of images, modes of points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ddgan_fast.data.dataset import Dataset
from ddgan_fast.evaluation import kid, prdc
from ddgan_fast.evaluation.collect import (
    Batches,
    Collected,
    Collector,
    counted,
    evenly,
    gather_rows,
    real_batches,
    through_jpeg,
)
from ddgan_fast.evaluation.features import Extractor
from ddgan_fast.evaluation.frechet import Gaussian, Moments, frechet_distance, sampling_bias
from ddgan_fast.evaluation.statistics import Statistics
from ddgan_fast.guidance import Guidance
from ddgan_fast.sampling import LoadedGenerator, generate
from ddgan_fast.training.parallel import Ranks

METRICS = ("fid", "kid", "is", "pr", "dc", "modes")
ENOUGH = 10_000
"""Samples from which on a Fréchet distance is told without a warning."""
JPEG_QUALITY = 75
"""Of the files through which the published protocol passes the samples, but not the real images."""

_PAIRED = ("kid", "pr", "dc")

Watch = Callable[[str, int, int], None]
"""Told what this process is doing, how many images are done, and out of how many."""


def _silent(what: str, done: int, total: int) -> None:
    """The default ``Watch``."""


@dataclass(frozen=True)
class Plan:
    """What to measure, and on which samples.

    Attributes:
        metrics: some of ``METRICS``.
        n: samples.
        seed: of the samples and of KID's subsets.
        batch: samples drawn at once; default what fits.
        precision: of the generator: "fp32", "tf32", "bf16" or "fp16".
        jpeg75: pass the samples through JPEG of quality 75.
        engine: what draws them: "graph", "eager" or "auto".
        sampler, steps, eta: of a DDPM, as for ``samplers.choose``.
        guidance: of a model with classes, which are drawn uniformly by default.
    """

    metrics: tuple[str, ...] = ("fid",)
    n: int = 50_000
    seed: int = 0
    batch: int | None = None
    precision: str = "fp32"
    jpeg75: bool = False
    engine: str = "auto"
    sampler: str | None = None
    steps: int | None = None
    eta: float | None = None
    guidance: Guidance | None = None

    @property
    def paired(self) -> bool:
        """Whether samples are compared with real images one by one."""
        return any(name in self.metrics for name in _PAIRED)


@dataclass
class Result:
    """Numbers by name, and what their reader must know."""

    metrics: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    counts: list[int] | None = None
    """Samples in each mode or class, where modes were counted."""


def parse_metrics(text: str | None, kind: str, extractor: str) -> tuple[str, ...]:
    """The metrics of a comma-separated list, checked against what is to be judged.

    Args:
        text: the list; None for the default: "modes" of points, "fid" of images.
        kind: ``model.kind``.
        extractor: name of the extractor, for images.

    Raises:
        ValueError: an unknown metric, or one that this model cannot have.
    """
    points = kind == "mlp"
    names = tuple(dict.fromkeys((text or ("modes" if points else "fid")).split(",")))
    for name in names:
        if name not in METRICS:
            raise ValueError(f"the metric {name!r} is unknown: choose among {', '.join(METRICS)}.")
        if points and name != "modes":
            raise ValueError(
                f"the metric {name} judges images, and this model draws points: use modes."
            )
        if name == "modes" and not points and extractor not in ("digits", "idx"):
            raise ValueError(
                "modes of images are counted by a classifier: choose --extractor digits or idx, or "
                "leave modes out."
            )
    return names


def check_sources(metrics: Sequence[str], data: bool, reference: bool) -> None:
    """Refuse metrics that lack what they compare with.

    Raises:
        ValueError: neither real images nor their statistics, or only the latter where the former
            are needed.
    """
    if "fid" in metrics and not (data or reference):
        raise ValueError(
            "fid compares with real images: give --data PATH, or their statistics by --reference."
        )
    missing = [name for name in _PAIRED if name in metrics]
    if missing and not data:
        raise ValueError(
            f"{', '.join(missing)} compare with real images one by one, which statistics do not "
            "hold: give --data PATH."
        )


def evaluate_images(
    model: LoadedGenerator,
    plan: Plan,
    extractor: Extractor,
    ranks: Ranks,
    *,
    real: Collected | None = None,
    reference: Statistics | None = None,
    watch: Watch = _silent,
) -> Result | None:
    """Measure the images that a model draws; all ranks share the drawing and the features.

    Args:
        model: the generator.
        plan: what to measure; ``check_sources`` has found nothing missing.
        extractor: what makes features of the images.
        ranks: who shares the work.
        real: on rank 0, what ``real_features`` found, unless no metric needs it.
        reference: what FID compares with instead of ``real``.
        watch: told about the progress.

    Returns:
        The result on rank 0, None on the others; every rank must call.

    Raises:
        ValueError: too few images, or images that are not finite.
    """
    with_fid = "fid" in plan.metrics
    fakes = Collector(
        extractor,
        splits=(plan.n // 2,),
        moments=with_fid,
        keep=np.ones(plan.n, np.bool_) if plan.paired else None,
        logits="is" in plan.metrics or "modes" in plan.metrics,
    )
    for numbers, images in counted(
        _samples(model, plan, ranks), _share(plan.n, ranks), _named(watch, "sampling", ranks)
    ):
        fakes.add(numbers, images)
    fake = fakes.gather(ranks)
    if fake is None:
        return None
    result = Result()
    if note := extractor.note():
        result.warnings.append(note)
    if with_fid:
        gaussian, count = _reference(reference, real)
        _add_frechet(result, extractor, fake.moments, gaussian, count)
        if reference is not None and reference.provenance is not None:
            _check_size(result, reference.provenance.image_size, model.cfg.model.image_size)
    if plan.paired:
        assert real is not None
        _add_paired(result, plan, extractor, real, fake)
    if fake.logits is not None:
        _add_classes(result, plan, extractor, fake.logits)
    return result


def evaluate_points(
    model: LoadedGenerator, plan: Plan, ranks: Ranks, watch: Watch = _silent
) -> Result | None:
    """Modes of the points that a model draws, on rank 0 (else None); every rank must call."""
    from ddgan_fast.evaluation.modes import judge

    rows, numbers = [], []
    for own, points in counted(
        _samples(model, plan, ranks), _share(plan.n, ranks), _named(watch, "sampling", ranks)
    ):
        rows.append(torch.from_numpy(points))
        numbers.append(torch.from_numpy(own))
    found = gather_rows(ranks, numbers, rows)
    if found is None:
        return None
    scores = judge(found.numpy())
    names = ("modes", "near", "kl", "spread", "bridges")
    metrics = {name: float(scores[name]) for name in names}  # type: ignore[literal-required]
    return Result(metrics, counts=scores["counts"])


def real_features(
    data: Dataset,
    plan: Plan,
    extractor: Extractor,
    ranks: Ranks,
    *,
    moments: bool,
    watch: Watch = _silent,
) -> Collected | None:
    """Features of real images, on rank 0 (else None); every rank must call.

    FID takes all images. KID, precision, recall, density and coverage take as many as there are
    samples, at even distances.

    Args:
        data: the images; unflipped, and as the loaders crop them.
        plan: what is to be measured.
        extractor: what makes features of them.
        ranks: who shares the work.
        moments: accumulate those of all images.
        watch: told about the progress.
    """
    keep = plan.n if plan.paired else 0
    kept = evenly(keep, len(data)) if keep else np.zeros(len(data), np.bool_)
    collector = Collector(extractor, moments=moments, keep=kept if keep else None)
    chosen = np.arange(len(data)) if moments else np.flatnonzero(kept)
    own = chosen[ranks.rank :: ranks.world]
    named = _named(watch, "real images", ranks)
    for numbers, images in counted(real_batches(data, own), len(own), named):
        collector.add(numbers, images)
    return collector.gather(ranks)


def _samples(model: LoadedGenerator, plan: Plan, ranks: Ranks) -> Batches:
    """This rank's samples: k, k + W, ... of rank k."""
    done = ranks.rank
    for images in generate(
        model,
        _share(plan.n, ranks),
        seed=plan.seed,
        batch_size=plan.batch,
        start=ranks.rank,
        stride=ranks.world,
        precision=plan.precision,
        engine=plan.engine,
        sampler=plan.sampler,
        steps=plan.steps,
        eta=plan.eta,
        guidance=plan.guidance,
    ):
        numbers = done + ranks.world * np.arange(len(images))
        done += ranks.world * len(images)
        yield numbers, through_jpeg(images, JPEG_QUALITY) if plan.jpeg75 else images


def _share(n: int, ranks: Ranks) -> int:
    return len(range(ranks.rank, n, ranks.world))


def _named(watch: Watch, what: str, ranks: Ranks) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        ranks.watchdog.enter(what)
        watch(what, done, total)

    return tell


def _reference(
    statistics: Statistics | None, real: Collected | None
) -> tuple[Gaussian, int | None]:
    if statistics is not None:
        source = statistics.provenance
        return statistics.gaussian, None if source is None else source.count
    assert real is not None
    (moments,) = real.moments
    return moments.gaussian(), moments.count


def _add_frechet(
    result: Result,
    extractor: Extractor,
    halves: Sequence[Moments],
    reference: Gaussian,
    real_count: int | None,
) -> None:
    whole = Moments(extractor.dim)
    for half in halves:
        whole.merge(half)
    distance = frechet_distance(reference, whole.gaussian())
    title = extractor.title("fid")
    result.metrics[title] = distance
    if whole.count < max(ENOUGH, extractor.dim + 1):
        result.warnings.append(_bias(title, distance, halves, whole.count, reference))
    if real_count is not None and real_count < max(ENOUGH, extractor.dim + 1):
        result.warnings.append(
            f"the reference is of {real_count:,} images only: {title} says how close the samples "
            "are to these, and compares with references of the same images alone."
        )


def _bias(
    title: str, distance: float, halves: Sequence[Moments], n: int, reference: Gaussian
) -> str:
    """The warning of too few samples."""
    text = f"{title} of {n:,} samples is too high, as so few understate their own spread"
    advice = f"take {ENOUGH:,} or more (50,000 to compare with published numbers)."
    bias = sampling_bias(halves, reference, distance)
    if bias is None:
        return f"{text}: {advice}"
    return f"{text}: by about {bias:.3g}, since half as many give {distance + bias:.4g}; {advice}"


def _check_size(result: Result, theirs: int, ours: int) -> None:
    if theirs != ours:
        result.warnings.append(
            f"the reference is of images of {theirs}x{theirs} pixels, and the samples have "
            f"{ours}x{ours}."
        )


def _add_paired(
    result: Result, plan: Plan, extractor: Extractor, real: Collected, fake: Collected
) -> None:
    assert real.features is not None
    assert fake.features is not None
    reals, fakes = (x.to(extractor.device) for x in (real.features, fake.features))
    found: dict[str, float] = {}
    if "kid" in plan.metrics:
        found["kid"], found["kid_std"] = kid.kernel_distance(reals, fakes, seed=plan.seed)
        size = kid.fitting_subset(len(reals), len(fakes))
        if size < kid.SUBSET_SIZE:
            result.warnings.append(
                f"the subsets for {extractor.title('kid')} are of {size} images instead of "
                f"{kid.SUBSET_SIZE:,}: its mean is right, its deviation is larger."
            )
    if "pr" in plan.metrics:
        found["precision"], found["recall"] = prdc.precision_recall(reals, fakes)
    if "dc" in plan.metrics:
        found["density"], found["coverage"] = prdc.density_coverage(reals, fakes)
    result.metrics |= {extractor.title(name): value for name, value in found.items()}
    if ("pr" in plan.metrics or "dc" in plan.metrics) and len(reals) != len(fakes):
        result.warnings.append(
            f"precision, recall, density and coverage compare {len(reals):,} real images with "
            f"{len(fakes):,} samples: with unequal numbers one side's neighbourhoods are larger."
        )


def _add_classes(
    result: Result, plan: Plan, extractor: Extractor, logits: torch.Tensor
) -> None:
    modes = extractor.modes
    if "is" in plan.metrics:
        score, spread = kid.inception_score(modes.joint_logits(logits) if modes else logits)
        result.metrics |= {extractor.title("is"): score, extractor.title("is_std"): spread}
    if "modes" in plan.metrics:
        assert modes is not None
        counts = modes.counts(logits)
        result.counts = counts.tolist()
        result.metrics |= modes.scores(counts)
        if note := modes.note(len(logits)):
            result.warnings.append(note)
