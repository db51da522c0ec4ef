"""Metrics during training: the averaged generator is measured every so often."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ddgan_fast.evaluation import evaluate, record
from ddgan_fast.evaluation.collect import Collected
from ddgan_fast.evaluation.features import Extractor, build_extractor
from ddgan_fast.machine import now
from ddgan_fast.sampling import LoadedGenerator

if TYPE_CHECKING:
    from ddgan_fast.training.trainer import Run


class Quality:
    """Measures samples of the averaged weights, on all ranks, as ``ddgan-fast evaluate`` does.

    The real images' features are computed once. Results go to metrics.jsonl and TensorBoard.

    Args:
        run: the run whose generator is measured; its ``run.evaluate_*`` options say how.

    Raises:
        ValueError: a metric that this model cannot have, or a classifier that does not fit it.
        FileNotFoundError: no Inception weights, or no classifier.
        RuntimeError: a package is missing.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._extractor: Extractor | None = None
        self._real: Collected | None = None
        self._knows_real = False
        cfg = run.cfg
        if not cfg.run.evaluate_every:
            return
        metrics = cfg.run.evaluate_metrics
        if cfg.model.kind == "mlp" and metrics == "fid":  # the default, which is for images
            metrics = "modes"
        self._plan = evaluate.Plan(
            evaluate.parse_metrics(metrics, cfg.model.kind, cfg.run.evaluate_extractor),
            cfg.run.evaluate_n,
            cfg.run.seed,
            engine="eager",
        )
        if cfg.model.kind != "mlp":
            self._extractor = build_extractor(
                cfg.run.evaluate_extractor,
                weights=cfg.run.evaluate_inception,
                classifier=cfg.run.evaluate_classifier,
                size=cfg.model.image_size,
                channels=cfg.model.num_channels,
                device=run.ranks.device,
            )

    def is_due(self, step: int) -> bool:
        """Whether to measure after this step."""
        every = self.run.cfg.run.evaluate_every
        return every > 0 and step % every == 0

    def measure(self) -> None:
        """Draw, compare and record; every rank must call."""
        run, plan = self.run, self._plan
        result: evaluate.Result | None
        model = self._model()
        if self._extractor is None:
            result = evaluate.evaluate_points(model, plan, run.ranks)
        else:
            if not self._knows_real:
                with_fid = "fid" in plan.metrics
                if plan.paired or with_fid:
                    self._real = evaluate.real_features(
                        run.dataset, plan, self._extractor, run.ranks, moments=with_fid
                    )
                self._knows_real = True
            result = evaluate.evaluate_images(
                model, plan, self._extractor, run.ranks, real=self._real
            )
        if result is None or run.monitor is None:
            return
        reference = record.reference_facts(None, None, run.dataset)
        facts = record.facts(model, plan, result, self._extractor, run.ranks, reference)
        entry = {"time": now(), "command": "training", "weights": "ema", **facts}
        try:
            record.append(run.run_dir / "metrics.jsonl", entry)
        except OSError as error:
            run.say(f"Could not write metrics.jsonl ({error.strerror or error}); going on.")
        named = {f"metrics/{name}": value for name, value in result.metrics.items()}
        run.monitor.scalars(run.step, named)
        told = ", ".join(f"{name} {value:.5g}" for name, value in result.metrics.items())
        run.say(f"Step {run.step:,}, {plan.n:,} samples: {told}.")

    def _model(self) -> LoadedGenerator:
        run = self.run
        weights = {**run.engine.generator.state_dict(), **run.engine.ema.weights()}
        model = LoadedGenerator(run.cfg, weights, run.step, Path(run.run_dir))
        return model.to(run.ranks.device)
