"""A made-up run for tests of the report: invented models whose answers are real procedures, some of them spoiled.

Nothing here was measured. The scores are the checker's, of answers that no model gave. Run as a script, it writes the
page to look at: `python tests/evaluation/made_up_run.py report.html`.
"""

from __future__ import annotations

import math
import random
import sys
from dataclasses import asdict
from pathlib import Path

from data_processing.procedures.checker import check
from data_processing.procedures.corruptions import CORRUPTIONS, corrupt
from data_processing.procedures.faults import procedure_faults
from data_processing.procedures.optimal import optimal_procedure, render
from data_processing.procedures.policy import Policy, draw_policy, prompt_text
from data_processing.schemas import content_id
from evaluation.comparison_artifact import write_comparison
from evaluation.config import CompareConfig
from evaluation.evaluation_artifact import write_json, write_predictions, write_scores
from evaluation.report.data import LineageEntry, ReportData, Timing, assemble
from evaluation.report.page import write_report
from evaluation.scores import Measure, Score
from rlhf_core.events import EventLog
from rlhf_core.rewards.facts import part_facts

SOURCES = ("procedures", "my-prompts")
SHARES = ("score", "valid", "accuracy", "soundness", "efficiency")
PROCEDURES = {name: Measure(f"procedures.{name}", f"Procedures {name} (0 to 1)", lowest=0.0, highest=1.0) for name in SHARES}
REWARD = Measure("reward", "Reward model score")
KL = Measure("kl", "KL to the base (nats a response)", better="neither", digits=1)
LENGTH = Measure("length", "Length (tokens)", better="neither", digits=0)
PERPLEXITY = Measure("perplexity", "Perplexity of held-out answers", better="lower", geometric=True)

# How often each invented model spoils an answer, and its invented reward, KL and perplexity.
MODELS = {
    "base": (1.0, -3.1, 0.0, 9.4),
    "sft": (0.65, 0.4, 21.0, 1.31),
    "preference": (0.45, 1.6, 34.0, 1.38),
    "online": (0.15, 2.2, 39.0, 1.36),
}
SUMMARY = {
    "read": {"sft": 1203, "prompts": 260},
    "rows": {"sft": {"train": 1080, "validation": 60, "test": 60}, "prompts": {"train": 256}},
    "bad_rows": {"count": 2, "listed": []},
    "duplicates": {"count": 5, "listed": []},
    "contradictions": {"count": 0, "listed": []},
    "leaks": {"count": 0, "listed": []},
    "profile": {
        "sft": {
            "rows": {"looked_at": 1200, "of": 1200},
            "characters": {"median": 412, "p95": 1733, "longest": 20411},
            "scripts": {"Latin": 0.91, "Han": 0.06, "Cyrillic": 0.03},
            "near_duplicates": {
                "count": 14,
                "across_splits": 1,
                "listed": ["test id <7> is close to train id 12 (94% in common)"],
            },
        }
    },
}


CONVERSATIONS = [
    {
        "prompt": [{"role": "user", "content": "What is 17 * 23?"}],
        "messages": [
            {"role": "assistant", "content": "I compute <calc>17 * 23</calc>"},
            {"role": "user", "content": "17 * 23 = 391"},
            {"role": "assistant", "content": "It is 391."},
        ],
        "rewards": [-0.1, 1.0],
        "turn_ends": [8, 20],
        "metrics": {"calls": 1.0},
        "ended_by": "done",
        "failure": None,
    },
    {
        "prompt": [{"role": "user", "content": "What is 4 / 0?"}],
        "messages": [{"role": "assistant", "content": "<script>alert(1)</script>"}],
        "rewards": [None],
        "turn_ends": [5],
        "metrics": {},
        "ended_by": "failed",
        "failure": "KeyError: 'no such tool'",
    },
]
SEGMENTS = {
    "threshold_nats": 1.5,
    "positions": {
        "mean": {"0.250": -0.6, "0.333": -0.3, "0.500": 0.1, "0.667": 0.3, "0.750": 0.4, "1.000": 0.8},
        "std": dict.fromkeys(("0.250", "0.333", "0.500", "0.667", "0.750", "1.000"), 0.5),
        "count": dict.fromkeys(("0.250", "0.333", "0.500", "0.667", "0.750", "1.000"), 20),
    },
    "lines": {"mean": {"w": 1.0, "b": 0.8, "scale": 0.1, "r2": 0.93}, "std": {"w": 0.0, "b": 0.5, "scale": 0.1, "r2": -0.02}},
}
CREDIT = [
    {
        "prompt": [{"role": "user", "content": "Rule 1: lamps are refused."}],
        "reward": 0.75,
        "parts": [
            {"text": "Plan:\n", "credit": None},
            {"text": "A. Is it a lamp?", "credit": 0.5},
            {"text": "\n", "credit": None},
            {"text": "B. <b>Approve</b>.", "credit": -0.25},
            {"text": "C. Stop.", "credit": -0.0004},
        ],
    }
]


def write_evaluations(folder: Path, prompts: int = 64) -> dict[str, Path]:
    """Evaluation artifacts of the invented models, by name."""
    for name in MODELS:
        _write_evaluation(folder / f"evaluate_{name}", name, prompts)
    return {name: folder / f"evaluate_{name}" for name in MODELS}


def write_events(folder: Path) -> dict[str, Path]:
    """Event logs of invented training stages, by node."""
    paths = {stage: folder / stage / "events.jsonl" for stage in ("sft", "reward_model", "preference", "online")}
    rng = random.Random(5)
    for stage, path in paths.items():
        log = EventLog(path)
        for step in range(1, 31):
            fall = math.exp(-step / 9) + rng.gauss(0, 0.03)
            values = {"loss": 0.1 + fall, "grad_norm": 0.5 + abs(rng.gauss(0, 0.2)), "learning_rate": 5e-4 * step / 30}
            if stage == "online":
                values |= {
                    "reward": 2 - 2 * fall,
                    "kl": 6 - 6 * fall,
                    "entropy": 0.4 + 0.3 * fall,
                    "response_length": 80 - 9 * fall,
                }
                values |= {f"seconds/{phase}": 3 + rng.random() for phase in ("rollout", "score", "update", "sync")}
                values |= {"reward/mean": 2 - 2 * fall, "kl/sequence": 6 - 6 * fall, "sampled_entropy": 0.4 + 0.3 * fall}
                values |= {"response_tokens/mean": 80 - 9 * fall, "mismatch_kl": 2e-4, "seconds/round": 12 + rng.random()}
                values |= {"memory_mib/policy": 1000.0 + step, "memory_mib/reward": 500.0, "cpu_seconds": 12.0}
                values |= {"truncated_share": 0.0, "ratio": 1.0, "value_loss": fall}
            if stage == "preference":
                values |= {
                    "margin": 1 - fall,
                    "accuracy": 1 - fall / 2,
                    "seconds": 4 + rng.random(),
                    "memory_mib": 1400.0,
                    "cpu_seconds": 5.0,
                }
            log.metrics(step, values)
    EventLog(paths["preference"]).warn("2 pairs were longer than max_length_tokens and are left out")
    return paths


def made_up_report(folder: Path) -> ReportData:
    """Everything a report can show."""
    comparison = folder / "compare"
    comparison.mkdir()
    inputs = write_evaluations(folder)
    write_comparison(
        inputs,
        CompareConfig(baseline="sft", candidates=["preference", "online"], samples_shown=6),
        comparison,
        seed=3,
        events=EventLog(folder / "events.jsonl"),
    )
    nodes = [
        "base_model",
        "prepare_data",
        "sft",
        "convert_sft",
        "reward_model",
        "preference",
        "online",
        "evaluate_online",
        "compare",
    ]
    kinds = ["model", "data", "checkpoint", "model", "checkpoint", "checkpoint", "checkpoint", "evaluation", "comparison"]
    lineage = [
        LineageEntry(node, kind, content_id(node) * 4, f"{node}-{content_id(node)[:12]}-a1", tuple(nodes[max(0, i - 2) : i]))
        for i, (node, kind) in enumerate(zip(nodes, kinds, strict=True))
    ]
    seconds = [2.1, 1.4, 74.0, 6.2, 61.5, 148.0, 312.4, 41.7, 1.9]
    timings = [Timing(node, s, cached=node in ("base_model", "prepare_data")) for node, s in zip(nodes, seconds, strict=True)]
    config = "run:\n  name: made-up\n  seed: 17\nonline:\n  method: ppo\n  kl_coef: 0.02\n  steps: 30\n"
    return assemble(
        comparison,
        write_events(folder),
        config,
        lineage,
        timings,
        title="A made-up run",
        data={"prepare_data": SUMMARY},
        rewards={"online": _reward_facts()},
        conversations={"online": CONVERSATIONS},
        credit={"online": CREDIT},
        segments={"reward_model": SEGMENTS},
    )


def _reward_facts() -> dict[str, object]:
    """Those of a checker, and of a reward model that pays for length and was away twice."""
    rng = random.Random(2)
    lengths = [rng.uniform(30, 90) for _ in range(200)]
    checked: list[float | None] = [float(rng.random() < 0.7) for _ in lengths]
    scored: list[float | None] = [0.05 * length + rng.gauss(0, 0.3) for length in lengths]
    scored[:2] = [None, None]
    facts = part_facts({"procedures": checked, "reward_model": scored}, lengths)
    return {"responses": len(lengths), "parts": [part.to_json() for part in facts]}


def _write_evaluation(folder: Path, name: str, prompts: int) -> None:
    spoiled, reward, kl, perplexity = MODELS[name]
    rng = random.Random(f"made up {name}")
    shared = random.Random(1)
    predictions, scores = [], []
    for i in range(prompts):
        policy = draw_policy(shared, 2)
        prompt = [{"role": "user", "content": prompt_text(policy, shared, shuffled=True)}]
        text = _answer(policy, rng, spoiled, name)
        for decoding in ("sampled", "greedy"):
            row = _prediction(prompt, policy, decoding, text, name) | {"source": SOURCES[i % 3 == 0]}
            predictions.append(row)
            shares = asdict(check(policy.label(), text))
            faults = procedure_faults(policy.label(), text)
            scores += [Score(row["id"], PROCEDURES[s], shares[s], faults=faults if s == "score" else ()) for s in SHARES]
            scores.append(Score(row["id"], REWARD, reward + 2 * shares["score"] + rng.gauss(0, 0.5)))
            scores.append(Score(row["id"], LENGTH, row["response_tokens"]))
            if decoding == "sampled":
                scores.append(Score(row["id"], KL, 0.0 if name == "base" else kl + rng.gauss(0, 4)))
        scores.append(Score(f"held-out-{len(predictions)}", PERPLEXITY, perplexity * math.exp(rng.gauss(0, 0.05)), weight=90))
    folder.mkdir()
    write_predictions(folder, predictions)
    write_scores(folder, scores)
    own, builtin = len(range(0, prompts, 3)), prompts - len(range(0, prompts, 3))
    sources = {SOURCES[False]: {"measured": builtin, "of": 2 * prompts}, SOURCES[True]: {"measured": own, "of": prompts}}
    long = [{"id": "1b96267f773d6c32", "source": SOURCES[True], "tokens": 5412}]
    held_out = {"measured": prompts, "of": prompts, "sources": {}, "left_out": []}
    counts = {"prompts": {"measured": prompts, "of": 3 * prompts, "sources": sources, "left_out": long}, "sft": held_out}
    write_json(folder / "metrics.json", {"rows": counts})


def _answer(policy: Policy, rng: random.Random, spoiled: float, name: str) -> str:
    if name == "base":
        return "Sure! To review this product, first look at the package & check if it is safe.\n1. Check the <label>.\n2. Decide."
    procedure = optimal_procedure(policy)
    candidate = corrupt(rng.choice(list(CORRUPTIONS)), procedure, policy, rng) if rng.random() < spoiled else None
    return render(candidate[0] if candidate else procedure)


def _prediction(prompt: list[dict[str, str]], policy: Policy, decoding: str, text: str, name: str) -> dict[str, object]:
    prompt_id = content_id(prompt)
    return {
        "id": content_id([prompt_id, decoding, 0]),
        "prompt_id": prompt_id,
        "model": name,
        "decoding": decoding,
        "prompt": prompt,
        "response": text,
        "label": policy.label(),
        "finish_reason": "length" if name == "base" else "stop",
        "prompt_tokens": len(prompt[0]["content"]) // 4,
        "response_tokens": len(text) // 4,
    }


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        write_report(made_up_report(Path(scratch)), Path(sys.argv[1]))
