"""Training and generation on one GPU: a 0.6B Qwen3 shape with random weights, in bf16.

    python benchmarks/gpu.py                       writes benchmarks/results/gpu.json
    python benchmarks/gpu.py --toy --out toy.json  the same code at toy size, on a CPU if need be

It runs from a checkout, with torch, transformers, deepspeed, pydantic and safetensors installed and nothing else of the
project. What is measured, each the median of some repeats after one that is not counted:

  matrix       the card's rate: products of two 8,192 x 8,192 bf16 matrices
  sft          optimizer steps over four packed lines of 8,192 tokens (rows of lognormal length, median 256, up to 4,096),
               collation included: tokens a second, share of the matrix rate, peak memory; and the same rows in batches of
               eight, padded to the longest of each batch. The operations are those of the matrix products of forward and
               backward, nothing counted that is done twice
  logprobs     log-probs of 32,768 tokens over 151,936 words with the gradients of hidden states and head, chunk by chunk,
               against the full fp32 logits: time and peak memory. "None" where the full logits do not fit the card
  dpo          steps over 64 pairs, reference log-probs kept from before
  grpo         steps of 16 prompts x 8 responses x 256 tokens: our decoding against transformers' generate; and how long it
               takes to hand the trained weights to the sampler
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "gpu.json"
# Named figures that the project has an aim for; "<" and ">" say which way is good.
TARGETS = {
    "sft_packed_share_of_matrix_rate": (">", 0.4),
    "sft_packed_over_padded": (">", 2.0),
    "logprobs_peak_over_full": ("<", 0.25),
    "logprobs_time_over_full": ("<", 1.05),
    "grpo_step_speedup": (">", 2.0),
    "weight_refresh_s": ("<", 0.3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="a tiny shape, to see that everything runs; its figures mean nothing")
    parser.add_argument("--out", type=Path, help=f"where the figures go; without --toy {RESULT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    if arguments.toy and arguments.out is None:
        parser.error("--toy needs --out: its figures do not belong among the results")
    # Before torch is imported by anything: what is here is found without being installed.
    sys.path.insert(0, str(ROOT))
    import torch

    if not torch.cuda.is_available():
        if not arguments.toy:
            parser.error("torch sees no GPU here; run it where there is one, or try the code with --toy --out FILE")
        os.environ["DS_ACCELERATOR"] = "cpu"
    out = arguments.out or RESULT
    out.parent.mkdir(parents=True, exist_ok=True)
    for rows in measured(arguments.toy):
        # After each subject: what was measured stays, should the next not fit the card.
        result = {"title": "Training and generation on one GPU", **facts(arguments.toy), "rows": rows}
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {out}")


def measured(toy: bool) -> Iterator[list[dict[str, Any]]]:
    """After each subject, all figures so far with their targets; printed as they come."""
    import gpu_measures as measures
    from gpu_workload import FULL, TOY, save_random_model

    size = TOY if toy else FULL
    with tempfile.TemporaryDirectory(prefix="gpu-benchmark-") as folder:
        model = save_random_model(size, Path(folder) / "model")
        figures = shown(measures.matrix_rate(size))
        rate = figures["matrix_tflops_per_s"]
        subjects = (
            lambda: measures.sft(size, model, rate),
            lambda: measures.logprobs(size),
            lambda: measures.dpo(size, model),
            lambda: measures.grpo(size, model),
        )
        for subject in subjects:
            figures |= shown(subject())
            measures.release()
            yield [row(name, value) for name, value in figures.items()]


def shown(figures: dict[str, Any]) -> dict[str, Any]:
    for name, value in figures.items():
        print(f"{name:40s} {'does not fit' if value is None else f'{value:.6g}'}", flush=True)
    return figures


def row(name: str, value: float | None) -> dict[str, Any]:
    if name not in TARGETS:
        return {"figure": name, "value": value, "target": "", "reached": ""}
    better, bound = TARGETS[name]
    reached = "" if value is None else value >= bound if better == ">" else value <= bound
    return {
        "figure": name,
        "value": value,
        "target": f"{'at least' if better == '>' else 'at most'} {bound:g}",
        "reached": reached,
    }


def facts(toy: bool) -> dict[str, Any]:
    import torch

    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else f"CPU ({platform.machine()})"
    libraries = {name: version(name) for name in ("torch", "transformers", "deepspeed")}
    memory_gib = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if on_gpu else None
    return {
        "size": "toy" if toy else "full",
        "device": device,
        "device_memory_gib": memory_gib,
        "cuda": torch.version.cuda,
    } | libraries


if __name__ == "__main__":
    main()
