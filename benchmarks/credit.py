"""Credit below the response, measured on the procedures task; writes benchmarks/results/credit_NAME.json and the tables of docs/credit.md.

    python benchmarks/credit.py localisation   does the faulty step earn least, by reward models of answers and of segments?
    python benchmarks/credit.py cost           what the counterfactuals of a round cost, beside scoring its responses
    python benchmarks/credit.py curves         score on held-out prompts by round, for each way to give credit, from several seeds

Each runs a pipeline, credit.yaml or credit_curves.yaml; what an earlier run has done is taken from the store.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, get_args

import numpy as np
import plots
import torch
from compare import machine
from credit_model import small_model
from methods import ROOT, run_preset

from data_processing.procedures.checker import check
from data_processing.procedures.corruptions import CORRUPTIONS, corrupt
from data_processing.procedures.optimal import optimal_procedure, render
from data_processing.procedures.policy import draw_policy
from data_processing.schemas import read_table
from data_processing.turns import messages_of
from data_processing.wording import path_of
from evaluation.bootstrap import Bounds, Resampling, mean_interval
from evaluation.config import EvaluateConfig
from evaluation.evaluation_artifact import read_json
from evaluation.job import EvaluationJob
from evaluation.localisation import CHANCE, LOCALISATION, localised, spoiled_rows
from rlhf_core.batching.templates import Renderer
from rlhf_core.credit.base import Round
from rlhf_core.credit.drca import Drca
from rlhf_core.credit.reward_model_folder import reward_model_scorer
from rlhf_core.credit.segment_reward_model import SegmentScorer
from rlhf_core.events import EventLog
from rlhf_core.models.load import load_lm, load_scorer, load_tokenizer
from rlhf_core.rewards.base import ScoredResponse
from rlhf_core.rewards.compose import Rewards
from rlhf_core.rewards.reward_model import RewardModelScorer
from rlhf_core.settings.credit import Counterfactual, DrcaCredit
from rlhf_core.settings.training import Packing
from tasks.runtime.contract.home import Home

PAGE, RESULTS = ROOT / "docs" / "credit.md", ROOT / "benchmarks" / "results"
MODELS, CURVES = ROOT / "benchmarks" / "credit.yaml", ROOT / "benchmarks" / "credit_curves.yaml"
OF_MODELS: tuple[Counterfactual, ...] = get_args(Counterfactual)
# In a text, as the checker reads it, nothing can be hidden.
COUNTERFACTUALS = tuple(way for way in OF_MODELS if way != "mask_attention")
RESAMPLING = Resampling(resamples=2000, confidence=0.95, seed=0)
SHARES = Bounds(0.0, 1.0)
# Spoiled procedures that the checker itself is tried on.
CHECKED = 1400
REPEATS = 2
PROMPTS, SAMPLES = 4, 4
LARGE, SMALL = ("reward_model", "segments"), ("reward_model", "long", "segments", "tokens")
ARMS = ("outcome", "drca", "segment", "token", "checker_outcome", "checker_drca", "checker_drca_less")
SCORE = "eval_reward/procedures"
ROUNDS_SHOWN = (0, 8, 12, 16, 20, 28, 40)
# Tokens in one pass of a reward model: those of the preset's online runs.
MICRO_BATCH_TOKENS = 400

Artifacts = Mapping[str, Path]
Figures = list[dict[str, Any]]


def main() -> None:
    """Run what it takes, measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=list(FIGURES))
    parser.add_argument("--table", action="store_true", help="only write the table, from the results that are there")
    asked = parser.parse_args()
    measure, table = FIGURES[asked.figure]
    path = RESULTS / f"credit_{asked.figure}.json"
    if not asked.table:
        result = {"machine": machine.facts(None), "figures": measure()}
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    figures = read_json(path)["figures"]
    begin, end = f"<!-- measured: python benchmarks/credit.py {asked.figure} -->", f"<!-- end of {asked.figure} -->"
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.partition(begin)[0], page.partition(end)[2]
    PAGE.write_text(f"{before}{begin}\n" + "\n".join(table(figures)) + f"\n{end}{after}", encoding="utf-8")
    print(f"wrote {PAGE} from {path}")


def _large(until: str) -> Artifacts:
    return _artifacts(run_preset(MODELS, "--until", until))


def _small(until: str) -> Artifacts:
    model = small_model(Home.open().root / "models" / "procedures-small")
    return _artifacts(run_preset(CURVES, "--until", until, "--set", f"model.path={model}"))


def _artifacts(run: Path) -> Artifacts:
    """The folder of what each node of a run has made."""
    records = [read_json(path) for path in sorted((run / "nodes").glob("*.json"))]
    return {record["node"]: path_of(record["ref"]["uri"]) for record in records if record["ref"]}


def _job(found: Artifacts, reward_model: Path, counterfactual: Counterfactual) -> EvaluationJob:
    """What the metric localisation is given: the policy is there for its tokenizer."""
    config = EvaluateConfig(max_prompts=None, localisation=DrcaCredit(counterfactual=counterfactual))
    policy = found["convert_sft"]
    return EvaluationJob(
        config, policy, "sft", found["base"], found["data"], reward_model, reward_model, 0, EventLog(Path("/dev/null"))
    )


def _scorer(found: Artifacts, reward_model: Path) -> RewardModelScorer:
    return reward_model_scorer(
        reward_model,
        found["convert_sft"],
        dtype=EvaluateConfig().precision,
        attention="auto",
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        packing=Packing.auto,
    )


def localisation() -> Figures:
    """Of reward models: pairs judged right, and how often the faulty step earns least by each way to tell."""
    large = _large("convert")
    small = {node: path for name in SMALL for node, path in _small(f"convert_{name}").items()}
    asked = [("135M", large, name) for name in LARGE] + [("0.2M", small, name) for name in SMALL]
    by_models = [figure for model, found, name in asked for figure in _localisation_of(model, found, name)]
    return by_models + [_localisation_of_checker(difficulty, way) for difficulty in (2, 1) for way in COUNTERFACTUALS]


def _localisation_of(model: str, found: Artifacts, name: str) -> Iterator[dict[str, Any]]:
    folder = found[f"convert_{name}"]
    scorer = _scorer(found, folder)
    is_of_segments = isinstance(scorer, SegmentScorer)
    accuracy = _interval(_pairs_judged_right(found, scorer))
    for way in OF_MODELS[:1] if is_of_segments else OF_MODELS:
        told = {
            "model": model,
            "reward_model": name,
            "counterfactual": None if is_of_segments else way,
            "pairs_judged_right": accuracy,
            **_localised(_job(found, folder, way), scorer),
        }
        print(json.dumps(told), flush=True)
        yield told


def _localisation_of_checker(difficulty: int, way: Counterfactual) -> dict[str, Any]:
    """The same with the checker's score in place of a reward model's; a blanked line is one that it skips."""
    rng = random.Random(0)
    hits: dict[str, list[float]] = defaultdict(list)
    chances: dict[str, list[float]] = defaultdict(list)
    names = list(CORRUPTIONS)
    while sum(map(len, hits.values())) < CHECKED:
        policy = draw_policy(rng, difficulty)
        name = rng.choice(names)
        spoiled = corrupt(name, optimal_procedure(policy), policy, rng)
        if spoiled is None or len(lines := render(spoiled[0]).splitlines()) < 2:
            continue
        without = [lines[:i] if way == "mask_truncate" else [*lines[:i], *lines[i + 1 :]] for i in range(len(lines))]
        worth = [check(policy.label(), "\n".join(rest)).score for rest in without]
        # What is worth most without its step has the least difference.
        lowest = [place for place, value in enumerate(worth) if value == max(worth)]
        hits[name].append((spoiled[1] in lowest) / len(lowest))
        chances[name].append(1 / len(lines))
    told = {"model": f"difficulty {difficulty}", "reward_model": "the checker itself", "counterfactual": way}
    return told | {"pairs_judged_right": None} | _summary(hits, chances)


def _localised(job: EvaluationJob, scorer: RewardModelScorer) -> dict[str, Any]:
    rows = spoiled_rows(job)
    corruption = {row["id"]: json.loads(row["detail"])["corruption"] for row in rows}
    values: dict[str, dict[str, float]] = {LOCALISATION.name: {}, CHANCE.name: {}}
    for score in localised(job, rows, scorer):
        values[score.measure.name][score.answer_id] = score.value
    hits, chances = values[LOCALISATION.name], values[CHANCE.name]
    by_corruption: dict[str, list[str]] = defaultdict(list)
    for answer in hits:
        by_corruption[corruption[answer]].append(answer)
    return _summary(
        {name: [hits[answer] for answer in ids] for name, ids in by_corruption.items()},
        {name: [chances[answer] for answer in ids] for name, ids in by_corruption.items()},
    )


def _summary(hits: Mapping[str, list[float]], chances: Mapping[str, list[float]]) -> dict[str, Any]:
    """Of hits and chances by corruption."""
    found, by_chance = [value for own in hits.values() for value in own], [value for own in chances.values() for value in own]
    beyond = [hit - chance for hit, chance in zip(found, by_chance, strict=True)]
    return {
        "faulty_earns_least": _interval(found),
        "chance": fmean(by_chance),
        "beyond_chance": _interval(beyond, Bounds(-1.0, 1.0)),
        "by_corruption": {
            name: {"n": len(hits[name]), "faulty_earns_least": fmean(hits[name]), "chance": fmean(chances[name])}
            for name in sorted(hits)
        },
    }


def _pairs_judged_right(found: Artifacts, scorer: RewardModelScorer) -> list[float]:
    """Of the pairs of the test split, 1 where the better answer is worth more."""
    rows = read_table("preference", found["data"] / "preference" / "test.parquet").to_pylist()
    renderer = Renderer(load_tokenizer(found["convert_sft"]))
    both = [_given(row, side, renderer) for row in rows for side in ("chosen", "rejected")]
    worth = scorer.score(both)
    return [float(chosen > rejected) for chosen, rejected in zip(worth[::2], worth[1::2], strict=True)]


def _given(row: Mapping[str, Any], side: str, renderer: Renderer) -> ScoredResponse:
    prompt, answer = messages_of(row, "prompt"), messages_of(row, side)
    tokens = renderer.conversation([*prompt, *answer], last_only=True)
    start = tokens.prompt_length
    return ScoredResponse(row["id"], prompt, None, tokens.ids[:start], tokens.ids[start:], answer[-1]["content"])


def _interval(values: Sequence[float], bounds: Bounds = SHARES) -> dict[str, float | int]:
    return mean_interval(np.asarray(values), RESAMPLING, bounds=bounds).to_json()


def localisation_table(figures: Figures) -> Iterator[str]:
    """A way to tell what a step earns a row."""
    yield "| model | reward model | pairs judged right [95%] | a step earns by | faulty step earns least [95%] | chance | multiple of chance |"
    yield "|---|---|---|---|---|---|---|"
    for own in figures:
        way = own["counterfactual"]
        least, chance = own["faulty_earns_least"], own["chance"]
        judged = own["pairs_judged_right"]
        yield (
            f"| {own['model']} | {own['reward_model']} | {_shown(judged) if judged else '–'} | {f'`{way}`' if way else 'its segments'} | {_shown(least)} | "
            f"{chance:.2f} | {least['mean'] / chance:.2f} |"
        )


def _shown(own: Mapping[str, float]) -> str:
    return f"{own['mean']:.2f} [{own['low']:.2f}, {own['high']:.2f}]"


def cost() -> Figures:
    """CPU-seconds and tokens of the counterfactuals of a round's responses, and of scoring these; in turns, ABBA.

    Scores are those of a head of zeros, which take as long as others.
    """
    torch.set_num_threads(1)
    found = _large("convert_sft")
    with tempfile.TemporaryDirectory() as folder:
        scorer = _untrained(found["convert_sft"], Path(folder))
    computed: list[int] = []
    scorer._module.register_forward_pre_hook(lambda module, given: computed.append(given[0].input_ids.numel()))
    given = _round(found, scorer)
    figures = []
    for way in COUNTERFACTUALS:
        drca = Drca(DrcaCredit(counterfactual=way), None)
        taken: dict[str, list[tuple[float, int]]] = {"plain": [], "extra": []}
        for turn in range(REPEATS):
            for name in ("plain", "extra") if turn % 2 == 0 else ("extra", "plain"):
                computed.clear()
                started = time.process_time()
                if name == "plain":
                    scorer.score(given.responses)
                else:
                    told = drca(given).metrics
                taken[name].append((time.process_time() - started, sum(computed)))
        plain, extra = taken["plain"], taken["extra"]
        ratios = [e / p for (p, _), (e, _) in zip(plain, extra, strict=True)]
        figures.append(
            {
                "counterfactual": way,
                "responses": len(given.responses),
                "units": told["units"],
                "extra_token_ratio": told["extra_token_ratio"],
                "computed_token_ratio": extra[0][1] / plain[0][1],
                "cpu_ratio": fmean(ratios),
                "cpu_ratios": ratios,
                "plain_cpu_s": [seconds for seconds, _ in plain],
                "extra_cpu_s": [seconds for seconds, _ in extra],
                "plain_tokens": plain[0][1],
                "extra_tokens": extra[0][1],
                "unshared_tokens": sum(len(r.prompt_ids) + len(r.response_ids) for r in given.responses),
            }
        )
        print(json.dumps(figures[-1]), flush=True)
    return figures


def _untrained(model: Path, folder: Path) -> RewardModelScorer:
    load_scorer(model, dtype="bf16", attention="auto", new_head=True).save_pretrained(folder)
    load_tokenizer(model).save_pretrained(folder)
    return _scorer({"convert_sft": model}, folder)


@torch.inference_mode()
def _round(found: Artifacts, scorer: RewardModelScorer) -> Round:
    """What SFT's model answers to as many prompts and as often as in a round of the preset."""
    renderer = Renderer(load_tokenizer(found["convert_sft"]))
    language_model = load_lm(found["convert_sft"], dtype=EvaluateConfig().precision, attention="auto")
    torch.manual_seed(0)
    responses = []
    for row in read_table("prompts", found["data"] / "prompts" / "test.parquet").to_pylist()[:PROMPTS]:
        prompt = messages_of(row, "prompt")
        prompt_ids = renderer.prompt_ids(prompt)
        drawn = language_model.generate(
            torch.tensor([prompt_ids] * SAMPLES), do_sample=True, top_k=0, max_new_tokens=144, eos_token_id=renderer.stop_ids
        )
        for ids in drawn[:, len(prompt_ids) :].tolist():
            end = next((place + 1 for place, token in enumerate(ids) if token in renderer.stop_ids), len(ids))
            text = renderer.tokenizer.decode(ids[:end], skip_special_tokens=True)
            responses.append(ScoredResponse(row["id"], prompt, row["label"], prompt_ids, ids[:end], text))
    ends = [own.response_ids[-1] if own.response_ids[-1] in renderer.stop_ids else None for own in responses]
    rewards = Rewards(list(scorer.score(responses)), {})
    return Round(responses, rewards, ends, renderer.stop_ids, renderer.tokenizer, None, lambda others: list(scorer.score(others)))


def cost_table(figures: Figures) -> Iterator[str]:
    """A counterfactual a row."""
    yield "| counterfactual | N, units a response | CPU-seconds, counterfactuals / round (ABBA) | tokens computed, the same | and with the round's prompts not shared | `credit/extra_token_ratio` |"
    yield "|---|---|---|---|---|---|"
    for own in figures:
        units, apart = own["units"], own["extra_tokens"] / own["unshared_tokens"]
        ratios = ", ".join(f"{ratio:.2f}" for ratio in own["cpu_ratios"])
        shown = [f"{value:.2f} = {value / units:.2f} N" for value in (own["computed_token_ratio"], apart)]
        mean = f"{own['cpu_ratio']:.2f} = {own['cpu_ratio'] / units:.2f} N ({ratios})"
        yield f"| `{own['counterfactual']}` | {units:.2f} | {mean} | {shown[0]} | {shown[1]} | {own['extra_token_ratio']:.2f} |"


def curves() -> Figures:
    """Of each way to give credit and each seed, the checker's score of sampled answers to held-out prompts, by round."""
    found = _small("online")
    at_first = _scores(found["start"])
    told: dict[str, dict[str, dict[int, float]]] = defaultdict(dict)
    for node, folder in found.items():
        arm, _, seed = node.partition("@seed=")
        if seed:
            told[arm][seed] = {0: at_first[1], **_scores(folder)}
    return [{"credit": arm, "scores": told[arm]} for arm in ARMS if arm in told]


def _scores(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["values"][SCORE] for line in lines if line["type"] == "metrics" and SCORE in line["values"]}


def curves_table(figures: Figures) -> Iterator[str]:
    """A way to give credit a row: mean over the seeds and their standard deviation, by round."""
    lines: dict[str, list[list[tuple[float, float]]]] = {
        own["credit"]: [[(int(number), score) for number, score in scores.items()] for scores in own["scores"].values()]
        for own in figures
    }
    plots.curves(ROOT / "docs" / "images" / "credit_curves.svg", lines, "rounds of 64 responses", "score, held-out prompts")
    yield "| credit | seeds | " + " | ".join(f"round {number}" for number in ROUNDS_SHOWN) + " |"
    yield "|---|---|" + "---|" * len(ROUNDS_SHOWN)
    for name, runs in lines.items():
        shown = [_over_seeds([dict(run)[number] for run in runs if number in dict(run)]) for number in ROUNDS_SHOWN]
        yield f"| `{name}` | {len(runs)} | " + " | ".join(shown) + " |"


def _over_seeds(scores: Sequence[float]) -> str:
    if not scores:
        return "–"
    return f"{fmean(scores):.2f}" + (f" ± {stdev(scores):.2f}" if len(set(scores)) > 1 else "")


FIGURES: Mapping[str, tuple[Callable[[], Figures], Callable[[Figures], Iterator[str]]]] = {
    "localisation": (localisation, localisation_table),
    "cost": (cost, cost_table),
    "curves": (curves, curves_table),
}


if __name__ == "__main__":
    main()
