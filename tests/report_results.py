"""Results and a run as the programs write them, invented, for tests of the report."""

import json
import math

import numpy as np
from PIL import Image

MACHINE = {"cpu": "Some Xeon", "cores": 96, "threads": 8, "gpu": "NVIDIA H200", "load": [1.0]}
VERSIONS = {"python": "3.12.3", "torch": "2.13.0+cu130", "ddgan_fast": "0.1.0", "commit": "abc"}
TIMES = {"dtype": "bf16", "rounds": 8, "agrees": True, "device": "cuda", "peak_gib": 21.04}
ANCHOR = "bf16 channels_last, torch"
EVIL = "<script>alert('x')</script> & \"quoted\" https://example.org/a.js"


def timed(case, provider, ms, batch=32, **more):
    row = {"part": case, "unit": "u", "case": case, "provider": provider, "preset": "celebahq256",
           "batch": batch, "ms_p20": 0.97 * ms, "ms_p50": ms, "ms_p80": 1.04 * ms,
           "img_s": 1e3 * batch / ms, "tflop_s": 40_000 / ms}
    return row | TIMES | more


def kernel(variant, which, provider, us, megabytes=64.0):
    size = megabytes * 1e6
    return {"part": "kernels", "unit": "u", "case": "kernels", "op": variant.split("_")[0],
            "variant": variant, "preset": "celebahq256", "shape": [32, 128, 128, 128],
            "dtype": "bf16", "channels_last": True, "pass": which, "provider": provider,
            "us_p20": us, "us_p50": us, "us_p80": us, "bytes_min": size, "gb_s": size / us / 1e3,
            "share_of_copy": size / us / 1e3 / 4000, "agrees": True, "status": "ok",
            "speedup": {"eager": 300 / us}}


def suite_rows():
    rows = [kernel(f"{op}_{i}", which, provider, us * (1 + i), 16.0 * (1 + i))
            for op in ("fir_down", "ada_norm", "bias_act")
            for i in range(3)
            for which in ("forward", "backward")
            for provider, us in (("cuda", 21.0), ("triton", 24.0), ("torch", 90.0), ("eager", 120))]
    rows[0] |= {"agrees": False, "status": "disagrees"}
    rows += [timed("step", "eager, torch", 200), timed("step", "graph, cuda", 160),
             timed("step", "recipe", 640, dtype="tf32"),
             timed("step_compiled", "compile+graph, inductor", 100, chain="inductor"),
             timed("step_compiled", "recipe", 500, dtype="tf32", chain="inductor"),
             timed("step", "graph, triton", 1.0, agrees=False, disagreement="D differs")]
    rows += [timed("sample", "ddgan_fast_bf16_graph", 90, batch=100),
             timed("sample", "reference", 400, batch=100)]
    rows += [timed("ablation", ANCHOR, 200, chain="torch"),
             timed("ablation", "recipe", 600, chain="torch", dtype="tf32"),
             timed("ablation", ANCHOR, 210, chain="cuda"),
             timed("ablation", "cuda, graph", 100, chain="cuda"),
             {"part": "ablation", "case": "ablation", "provider": "cuda, compile", "chain": "cuda",
              "status": "failed", "error_text": EVIL}]
    at = list(range(10, 510, 10))
    for provider in ("tf32, seed 1", "tf32, seed 2", "tf32, seed 3", "fast"):
        curve = [1 + math.sin(i / 50) / 3 + len(provider) / 100 for i in at]
        rows.append({"part": "band", "case": "band", "provider": provider, "preset": "celebahq256",
                     "at": at, "curves": dict.fromkeys(("D/real", "D/fake", "G/loss"), curve)})
    return rows


def suite():
    return {
        "command": "python -m benchmarks.gpu_suite --out results", "began": "2030-01-01T00:00:00",
        "device": "cuda", "tiny": False,
        "environment": {"machine": MACHINE, "versions": VERSIONS, "copy_gb_s": 4000.0,
                        "matrix_tflop_s": 780.0},
        "parts": [
            {"name": "kernels", "status": "ok", "seconds": 200.0, "units": {"fir_down": "ok"}},
            {"name": "step", "status": "failed", "seconds": 90.0,
             "units": {"celebahq256 32": "ok", "cifar10 64": "failed"},
             "errors": {"cifar10 64": ["Traceback", f"RuntimeError: {EVIL}"]}},
        ],
        "rows": suite_rows(),
    }


def profile():
    names = ["data wait", "q_sample", "G forward in D step", "D real", "R1", "D fake", "G step"]
    operators = [
        {"operator": f"aten::{name}", "ms": ms, "calls": 10, "share": ms / 100, "gflop_s": rate,
         "gb_s": moved, "of_roofline": 0.5, "bound": bound}
        for name, ms, rate, moved, bound in (
            ("convolution", 60.0, 50_000, 300, "compute"), ("mul", 20.0, 300, 2000, "memory"))
    ]
    found = {
        "preset": "cifar10", "batch": 64, "device": "cuda", "dtype": "bf16", "engine": "eager",
        "step": {"ms_p50": 100.0, "ms_p20": 98.0, "ms_p80": 104.0, "img_s": 640.0},
        "phases": [{"phase": n, "ms": 10.0 + i, "share": 0.1} for i, n in enumerate(names)],
        "operators": operators, "ceilings": {"gflop_s": 780_000, "gb_s": 4000},
        "mfu": 0.31, "sum_over_step": 1.01, "hints": ["31 % host gaps: try --run.engine graph."],
        "machine": MACHINE, "versions": VERSIONS, "command": "ddgan-fast profile cifar10",
    }
    return {"rows": [{"case": "profile", "provider": "ddgan_fast"}], "profile": found}


def comparison():
    return {
        "command": "ddgan-fast trilemma digits --budget 8m", "time": "2030-01-02T00:00:00",
        "preset": "digits", "budget_s": 480.0, "seeds": [1, 2], "n": 5000,
        "extractor": {"name": "digits", "sha256": "0" * 64}, "device": "cpu",
        "machine": "Some Xeon, 2 cores", "versions": VERSIONS,
        "headings": ["method", "NFE", "s per 100", "fd_digits", "trained"],
        "table": [["DDGAN, T = 4", "4", "0.18", "35.1 (30.0 to 41.0)", "2,419 steps, 480 s"],
                  ["DDPM-200", "200", "8.43", "162.2", "9,000 steps, 480 s"]],
        "measured": [{"kind": "final", "warnings": [f"few samples {EVIL}"]}],
    }


def picture(path, side=96):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(values).save(path)


def write_results(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "h200.json").write_text(json.dumps(suite()))
    (folder / "profile-cifar10.json").write_text(json.dumps(profile()))
    own = {"preset": "digits", "objective": "+ D0", "seed": 1, "metrics": {"fd_digits": 20.5}}
    about = {"command": "python -m benchmarks.objectives", "machine": MACHINE}
    (folder / "objectives.json").write_text(json.dumps({**about, "rows": [own]}))
    loader = {"case": "loader", "provider": "ring", "data": "raw shards", "size": 256,
              "cpu_ms_p50": 0.059, "cpu_ms_p20": 0.05, "cpu_ms_p80": 0.06, "img_s": 17_000.0,
              "cores_for_node": 0.2, "machine": {"cpu": "Some Xeon", "gpu": None}}
    rows = [loader, {**loader, "provider": "reference", "cpu_ms_p50": 2.3}]
    (folder / "loader.json").write_text(json.dumps({"rows": rows}))
    trilemma = folder / "trilemma-digits"
    picture(trilemma / "samples.png")
    (trilemma / "report.json").write_text(json.dumps(comparison()))
    return folder


def log_line(step, steps=300):
    part = step / steps
    values = {"D/real": 0.7 - 0.1 * part, "D/fake": 0.6, "G/loss": 0.8, "D/r1": 0.5 + part,
              "D/real_acc": 0.6, "D/fake_acc": 0.7, "D/grad_norm": 1.0, "G/grad_norm": 2.0,
              "G/ema_distance": 0.01}
    by_t = {f"{name}/t{t}": value + 0.05 * t
            for name, value in values.items() if name[-4:] in ("real", "fake", "loss")
            for t in range(4)}
    minutes, seconds = divmod(step // 2, 60)
    return {"step": step, "time": f"2030-01-01T00:{minutes:02}:{seconds:02}+00:00",
            "images": 64 * step, "img_s": 128.0 + step % 30, "sec_per_step": 0.5,
            "wait_share": 0.02, "lr/D": 1e-4, "lr/G": 2e-4, **values, **by_t}


def write_run(folder, upto=300, steps=300):
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(
        f"preset: digits\nmodel: {{num_timesteps: 4, kind: ncsnpp}}\n"
        f"run: {{steps: {steps}, batch_size: 64, seed: 7, tick: 10}}\nnew_option: 1\n"
    )
    lines = [json.dumps(log_line(step, steps)) + "\n" for step in range(10, upto + 1, 10)]
    (folder / "log.jsonl").write_text("".join(lines))
    faults = [{"step": 40, "time": "2030-01-01T00:00:20+00:00", "rank": 0, "kind": "sign",
               "sentence": f"R1 grew {EVIL}"}]
    (folder / "faults.jsonl").write_text("".join(json.dumps(f) + "\n" for f in faults))
    metrics = [{"step": step, "time": "2030-01-01T00:01:00+00:00", "n": 1000, "nfe": 4,
                "metrics": {"fd_digits": 4000.0 / step, "kd_digits": "nan"},
                "extractor": {"name": "digits"}, "warnings": []} for step in (100, 200, 300)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    for step in range(50, upto + 1, 50):
        picture(folder / f"samples/step-{step:09d}.png", 64)
    np.savez(folder / "samples/step-000000010.npz", np.random.default_rng(0).normal(0, 1, (64, 2)))
    return folder
