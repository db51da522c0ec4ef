"""The comparison: train under equal time, draw, measure; what is done already is not done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ddgan_fast.config import Config, to_dict
from ddgan_fast.data import build_dataset
from ddgan_fast.evaluation import evaluate, record
from ddgan_fast.evaluation.collect import Collected
from ddgan_fast.evaluation.features import Extractor
from ddgan_fast.evaluation.timing import time_sampling
from ddgan_fast.machine import device_name, now
from ddgan_fast.run_log import LOG, read_records, seconds_trained
from ddgan_fast.samplers import choose
from ddgan_fast.sampling import LoadedGenerator, load_generator
from ddgan_fast.training.parallel import Ranks
from ddgan_fast.training.trainer import train
from ddgan_fast.trilemma.budget import seconds_per_step
from ddgan_fast.trilemma.methods import Drawing, Method

SNAPSHOTS = 6
"""Checkpoints of a training whose samples are measured."""
SNAPSHOT_SAMPLES = 2000

_TIMING_PASSES = 3
_TIMING_S = 4.0
_PLAN, _MEASURED = "plan.json", "measured.jsonl"


@dataclass(frozen=True)
class Request:
    """What is compared, and how.

    Attributes:
        preset: of the DDGAN.
        methods: see ``methods.build_methods``.
        budget_s: training time of each run, in seconds.
        out: folder of the report and of all runs.
        seeds: every method is trained once for each.
        n: samples of a measurement.
        metrics: as of ``evaluate.parse_metrics``; default the kind's own.
        extractor: of images; None for points.
        device: as of ``train``.
        load: finished runs or checkpoints that stand in for a training, by method.
        batch: samples at once in the timing.
    """

    preset: str
    methods: list[Method]
    budget_s: float
    out: Path
    seeds: tuple[int, ...]
    n: int
    metrics: tuple[str, ...]
    extractor: Extractor | None
    device: str | None = None
    load: Mapping[str, Path] = field(default_factory=dict)
    batch: int = 100


class Comparison:
    """Trains, draws and measures for a report.

    Args:
        request: what is wanted.
        ranks: this process, alone.
        say: told how it goes.

    Raises:
        ValueError: the folder holds another comparison.
    """

    def __init__(self, request: Request, ranks: Ranks, say: Callable[[str], None]) -> None:
        self.request, self.ranks, self.say = request, ranks, say
        request.out.mkdir(parents=True, exist_ok=True)
        self._measured = request.out / _MEASURED
        self._asked: list[dict[str, Any]] = []
        self.steps = self._plan()

    def _plan(self) -> dict[str, int]:
        """Steps of each method's training, found once and kept."""
        request = self.request
        path = request.out / _PLAN
        configs = {m.name: to_dict(m.cfg) for m in self._trained}
        plan: dict[str, Any] = {"preset": request.preset, "budget_s": request.budget_s}
        plan["device"] = self.ranks.device.type
        if path.is_file():
            kept = json.loads(path.read_text())
            # Further methods join a comparison; what it has stays as it is.
            common = configs.keys() & kept["methods"].keys()
            if any(kept[key] != value for key, value in plan.items()) or any(
                kept["methods"][name] != configs[name] for name in common
            ):
                raise ValueError(
                    f"{request.out} holds a comparison of {kept['preset']} under "
                    f"{kept['budget_s']:g} s on {kept['device']} with other options: choose "
                    "another folder by --out, or the options of that one."
                )
            plan = kept
        else:
            plan |= {"methods": {}, "steps": {}, "ms_per_step": {}, "engine": {}}
        new = {m.name: m.cfg for m in self._trained if m.name not in plan["steps"]}
        if new:
            self.say(f"Timing training steps of {', '.join(new)}.")
            found = seconds_per_step(new, request.device, lambda text: None)
            for name, (seconds, engine) in found.items():
                plan["steps"][name] = max(SNAPSHOTS, round(request.budget_s / seconds))
                plan["ms_per_step"][name] = 1e3 * seconds
                plan["engine"][name] = engine
                plan["methods"][name] = configs[name]
            record.write(path, plan)
        self._engines: dict[str, str] = plan["engine"]
        return plan["steps"]

    @property
    def _trained(self) -> list[Method]:
        return [m for m in self.request.methods if m.name not in self.request.load]

    def run(self) -> list[dict[str, Any]]:
        """Do all that is still to be done; returns what was measured."""
        for seed in self.request.seeds:
            for method in self._trained:
                self._train(method, seed)
        for method in self.request.methods:
            for source_seed in self._seeds(method):
                for drawing in method.drawings:
                    self._measure(method, source_seed, drawing)
                self._measure_progress(method, source_seed)
        self._time()
        return self.rows()

    def rows(self) -> list[dict[str, Any]]:
        """What ``run`` asked for; the file may also hold other checkpoints, numbers and judges."""
        return [
            row
            for row in self._all_rows()
            if any(key.items() <= row.items() for key in self._asked)
        ]

    def _all_rows(self) -> list[dict[str, Any]]:
        if not self._measured.is_file():
            return []
        rows = []
        for line in self._measured.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # cut short when the machine went down
                continue
        return rows

    def _seeds(self, method: Method) -> tuple[int | None, ...]:
        return (None,) if method.name in self.request.load else self.request.seeds

    def _source(self, method: Method, seed: int | None) -> Path:
        loaded = self.request.load.get(method.name)
        return loaded or self.request.out / "runs" / f"{method.name}-seed{seed}"

    def shown(self, method: Method) -> Path:
        """The run or checkpoint whose samples stand for a method."""
        return self._source(method, self._seeds(method)[0])

    def config(self, method: Method, seed: int) -> Config:
        """The configuration of a training."""
        steps = self.steps[method.name]
        run = replace(
            method.cfg.run,
            dir=str(self._source(method, seed)),
            seed=seed,
            steps=steps,
            engine=self._engines[method.name],
            checkpoint_every=max(1, steps // SNAPSHOTS),
            keep=SNAPSHOTS + 1,
            sample_every=0,
            evaluate_every=0,
            tensorboard=False,
        )
        return replace(method.cfg, run=run)

    def _train(self, method: Method, seed: int) -> None:
        cfg = self.config(method, seed)
        what = f"{method.title}, seed {seed}"
        self.say(f"Training {what}: {cfg.run.steps:,} steps.")
        result = train(cfg, device=self.request.device, quiet=True)
        if not result.finished:
            raise KeyboardInterrupt
        taken = seconds_trained(read_records(Path(cfg.run.dir or "") / LOG))
        self.say(f"Trained {what}: {taken or 0:.0f} s.")

    def _plan_of(self, drawing: Drawing, n: int, metrics: tuple[str, ...]) -> evaluate.Plan:
        return evaluate.Plan(metrics, n, sampler=drawing.sampler, steps=drawing.steps)

    def _measure(self, method: Method, seed: int | None, drawing: Drawing) -> None:
        model = self._load(self._source(method, seed))
        self._add(method, seed, drawing, model, self.request.n, self.request.metrics, "final")

    def _measure_progress(self, method: Method, seed: int | None) -> None:
        folder = self._source(method, seed)
        if not folder.is_dir():
            return
        # The cheapest drawing that is the method's own: DDIM of a DDPM.
        few = [d for d in method.drawings if d.sampler != "ancestral"]
        drawing = few[0] if few else method.drawings[0]
        metrics = tuple(name for name in self.request.metrics if name in ("fid", "modes"))
        if not metrics:
            return
        n = min(self.request.n, SNAPSHOT_SAMPLES)
        for path in sorted(folder.glob("ema-*.safetensors")):
            self._add(method, seed, drawing, self._load(path), n, metrics, "progress")

    def _load(self, path: Path) -> LoadedGenerator:
        return load_generator(path, device=self.ranks.device)

    def _add(
        self,
        method: Method,
        seed: int | None,
        drawing: Drawing,
        model: LoadedGenerator,
        n: int,
        metrics: tuple[str, ...],
        kind: str,
    ) -> None:
        """Measure the samples of a checkpoint, unless it is known how good they are."""
        digest = record.file_sha256(model.source)
        key: dict[str, Any] = {"kind": kind, "method": method.name, "seed": seed}
        key |= {"drawing": drawing.title, "step": model.step, "checkpoint_sha256": digest}
        extractor = self.request.extractor
        key |= {"n": n, "asked": list(metrics)}
        key["extractor_sha256"] = None if extractor is None else extractor.sha256
        self._asked.append(key)
        if any(key.items() <= row.items() for row in self._all_rows()):
            return
        if kind == "final":
            self.say(f"Drawing {n:,} samples: {drawing.title}.")
        plan = self._plan_of(drawing, n, metrics)
        result = self._judge(model, plan)
        sampler = choose(model.cfg, drawing.sampler, drawing.steps)
        step = model.step or 0
        row = {
            **key,
            "time": now(),
            "nfe": sampler.evaluations if sampler else model.cfg.model.num_timesteps,
            "sampler": asdict(sampler) if sampler else "gan",
            "images": step * model.cfg.run.batch_size,
            "train_s": seconds_trained(read_records(model.source.parent / LOG), step),
            "metrics": result.metrics,
            "counts": result.counts,
            "warnings": result.warnings,
            "device": device_name(self.ranks.device),
            "versions": record.versions(),
        }
        record.append(self._measured, row)

    def _judge(self, model: LoadedGenerator, plan: evaluate.Plan) -> evaluate.Result:
        extractor = self.request.extractor
        if extractor is None:
            result = evaluate.evaluate_points(model, plan, self.ranks)
        else:
            result = evaluate.evaluate_images(
                model, plan, extractor, self.ranks, real=self._real
            )
        assert result is not None  # there is one rank
        return result

    @cached_property
    def _real(self) -> Collected | None:
        """Features of the real images."""
        assert self.request.extractor is not None
        plan = evaluate.Plan(self.request.metrics, self.request.n)
        moments = "fid" in plan.metrics
        if not (plan.paired or moments):
            return None
        cfg = self.request.methods[0].cfg
        data = build_dataset(replace(cfg, data=replace(cfg.data, cache="none")))
        self.say(f"Looking at the real data: {data.describe()}.")
        return evaluate.real_features(
            data, plan, self.request.extractor, self.ranks, moments=moments
        )

    def _time(self) -> None:
        """How long sampling takes, of all drawings in turn, in several passes."""
        wanted: list[tuple[dict[str, Any], Drawing, LoadedGenerator]] = []
        known = self._all_rows()
        for method in self.request.methods:
            model = self._load(self.shown(method))
            digest = record.file_sha256(model.source)
            for drawing in method.drawings:
                key: dict[str, Any] = {"kind": "time", "method": method.name, "seed": None}
                key |= {"drawing": drawing.title, "checkpoint_sha256": digest}
                key["batch"] = self.request.batch
                self._asked.append(key)
                if not any(key.items() <= row.items() for row in known):
                    wanted.append((key, drawing, model))
        passes: list[list[Any]] = []
        threads = torch.get_num_threads()
        try:
            for _ in range(_TIMING_PASSES if wanted else 0):
                self.say("Timing the sampling of all.")
                passes.append([])
                for _, drawing, model in wanted:
                    torch.set_num_threads(model.cfg.run.threads or threads)
                    passes[-1].append(
                        time_sampling(
                            model,
                            self.request.batch,
                            sampler=choose(model.cfg, drawing.sampler, drawing.steps),
                            budget_s=_TIMING_S,
                        )
                    )
        finally:
            torch.set_num_threads(threads)
        for (key, _, _), *times in zip(wanted, *passes, strict=True):
            middle = sorted(times, key=lambda t: t["ms_p50"])[len(times) // 2]
            record.append(self._measured, {**key, **middle})
