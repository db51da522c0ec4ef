"""Do digits show the class they were asked for? ``python -m benchmarks.class_accuracy RUN``.

A small classifier, trained on the real digits on the spot, judges as many samples of every class.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ddgan_fast.classifier import load_classifier
from ddgan_fast.evaluation.digits import CLASSES, digit_judge, to_judged_size
from ddgan_fast.guidance import Guidance, bind
from ddgan_fast.samplers import choose
from ddgan_fast.sampling import LoadedGenerator, generate, load_generator
from ddgan_fast.tables import print_table


@dataclass(frozen=True)
class Row:
    """One way of sampling, judged.

    Attributes:
        accuracy: share of the samples that the judge takes for the class asked for.
        frechet: distance to all real digits on the judge's features.
        evaluations: of the generator, for a sample; and of the classifier.
    """

    accuracy: float
    frechet: float
    evaluations: tuple[int, int]


def judged(
    model: LoadedGenerator,
    guidance: Guidance,
    n: int,
    seed: int,
    sampler: str | None = None,
    steps: int | None = None,
) -> Row:
    """Draw n digits, 0 to 9 in turn, and judge them."""
    chosen = choose(model.cfg, sampler, steps)
    condition = bind(model.cfg, guidance, model.device)
    assert condition is not None
    images = np.concatenate(
        list(
            generate(model, n, seed=seed, sampler=sampler, steps=steps, guidance=guidance)
        )
    )
    samples = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    judge = digit_judge()
    with torch.no_grad():
        guesses = judge.classifier(to_judged_size(samples)).argmax(1)
    asked = torch.arange(n) % CLASSES
    taken = chosen.evaluations if chosen else model.cfg.model.num_timesteps
    return Row(
        float((guesses == asked).float().mean()),
        judge.judge(samples)["frechet"],
        (taken * condition.evaluations, taken if guidance.classifier else 0),
    )


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def main(argv: Sequence[str] | None = None) -> None:
    """Print a row for every guidance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--guidance", type=_numbers, default=[1.0])
    parser.add_argument("--classifier")
    parser.add_argument("--classifier-scale", type=_numbers, default=[1.0])
    parser.add_argument("--sampler")
    parser.add_argument("--steps", type=int)
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(argv)
    model = load_generator(asked.checkpoint)
    classifier = load_classifier(asked.classifier) if asked.classifier else None
    digits = tuple(range(CLASSES))
    rows = []
    for guidance in asked.guidance:
        for scale in asked.classifier_scale:
            wish = Guidance(digits, guidance, classifier, scale)
            row = judged(model, wish, asked.n, asked.seed, asked.sampler, asked.steps)
            shown = f"{scale:g}" if classifier else "-"
            calls = " + ".join(str(count) for count in row.evaluations if count)
            quality = (f"{100 * row.accuracy:.1f} %", f"{row.frechet:.1f}")
            rows.append((f"{guidance:g}", shown, *quality, calls))
    title = (
        f"{model.source}: {asked.n:,} samples, judge right on "
        f"{100 * digit_judge().accuracy:.1f} % of held-out digits"
    )
    columns = ("guidance", "classifier", "asked digit", "fd_digits", "evaluations")
    print_table(title, columns, rows)


if __name__ == "__main__":
    main()
