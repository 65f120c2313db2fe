"""Credit below the response, measured on the procedures task; writes benchmarks/results/credit_NAME.json and the tables of docs/credit.md.

    python benchmarks/credit.py localisation   does the faulty step earn least, by reward models of answers and of segments?
    python benchmarks/credit.py cost           what the counterfactuals of a round cost, beside scoring its responses
    python benchmarks/credit.py curves         score on held-out prompts by round, for each way to give credit, from several seeds

Each runs a pipeline, credit.yaml or credit_curves.yaml; what an earlier run has done is taken from the store.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, get_args

import numpy as np
import plots
import torch
from compare import machine
from credit_model import small_model
from methods import ROOT, run_preset

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
COUNTERFACTUALS: tuple[Counterfactual, ...] = get_args(Counterfactual)
RESAMPLING = Resampling(resamples=2000, confidence=0.95, seed=0)
SHARES = Bounds(0.0, 1.0)
REPEATS = 4
PROMPTS, SAMPLES = 6, 4
ARMS = ("outcome", "drca", "segment", "token", "checker_outcome", "checker_drca")
SCORE = "eval_reward/procedures"
# Tokens in one pass of a reward model: those of the preset's online runs.
MICRO_BATCH_TOKENS = 400

Artifacts = Mapping[str, Path]
Figures = list[dict[str, Any]]


def main() -> None:
    """Run what it takes, measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figure", choices=list(FIGURES))
    asked = parser.parse_args()
    measure, table = FIGURES[asked.figure]
    facts = machine.facts(None)
    figures = measure()
    path = RESULTS / f"credit_{asked.figure}.json"
    path.write_text(json.dumps({"machine": facts, "figures": figures}, indent=1) + "\n", encoding="utf-8")
    begin, end = f"<!-- measured: python benchmarks/credit.py {asked.figure} -->", f"<!-- end of {asked.figure} -->"
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.partition(begin)[0], page.partition(end)[2]
    PAGE.write_text(f"{before}{begin}\n" + "\n".join(table(figures)) + f"\n{end}{after}", encoding="utf-8")
    print(f"wrote {path} and {PAGE}")


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
    large, small = _large("convert"), _small("convert_tokens")
    asked = [("135M", large, name) for name in ("reward_model", "segments")]
    asked += [("0.2M", small, name) for name in ("reward_model", "segments", "tokens")]
    return [figure for model, found, name in asked for figure in _localisation_of(model, found, name)]


def _localisation_of(model: str, found: Artifacts, name: str) -> Iterator[dict[str, Any]]:
    folder = found[f"convert_{name}"]
    scorer = _scorer(found, folder)
    is_of_segments = isinstance(scorer, SegmentScorer)
    accuracy = _interval(_pairs_judged_right(found, scorer))
    for way in COUNTERFACTUALS[:1] if is_of_segments else COUNTERFACTUALS:
        told = {
            "model": model,
            "reward_model": name,
            "counterfactual": None if is_of_segments else way,
            "pairs_judged_right": accuracy,
            **_localised(_job(found, folder, way), scorer),
        }
        print(json.dumps(told), flush=True)
        yield told


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
    return {
        "faulty_earns_least": _interval(list(hits.values())),
        "chance": fmean(chances.values()),
        "beyond_chance": _interval([hits[a] - chances[a] for a in hits], Bounds(-1.0, 1.0)),
        "by_corruption": {
            name: {"n": len(ids), "faulty_earns_least": fmean(hits[a] for a in ids), "chance": fmean(chances[a] for a in ids)}
            for name, ids in sorted(by_corruption.items())
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
        yield (
            f"| {own['model']} | `{own['reward_model']}` | {_shown(own['pairs_judged_right'])} | {f'`{way}`' if way else 'its segments'} | {_shown(least)} | "
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
        plain: list[tuple[float, int]] = []
        extra: list[tuple[float, int]] = []
        without, with_units = partial(scorer.score, given.responses), partial(drca, given)
        for turn in range(REPEATS):
            for call in (without, with_units) if turn % 2 == 0 else (with_units, without):
                (plain if call is without else extra).append(_taken(call, computed))
        told = drca(given).metrics
        ratios = [e / p for (p, _), (e, _) in zip(plain, extra, strict=True)]
        figures.append(
            {
                "counterfactual": way,
                "responses": len(given.responses),
                "units": told["units"],
                "extra_token_ratio": told["extra_token_ratio"],
                "computed_token_ratio": extra[0][1] / plain[0][1],
                "cpu_ratio": median(ratios),
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


def _taken(call: Callable[[], Any], computed: list[int]) -> tuple[float, int]:
    """CPU-seconds of a call, and the tokens that went through the model."""
    computed.clear()
    started = time.process_time()
    call()
    return time.process_time() - started, sum(computed)


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
    yield "| counterfactual | N, units a response | CPU-seconds: counterfactuals / round | of N | tokens computed: the same | `credit/extra_token_ratio` |"
    yield "|---|---|---|---|---|---|"
    for own in figures:
        units, ratio = own["units"], own["cpu_ratio"]
        yield (
            f"| `{own['counterfactual']}` | {units:.2f} | {ratio:.2f} ({min(own['cpu_ratios']):.2f} to {max(own['cpu_ratios']):.2f}) | "
            f"{ratio / units:.2f} N | {own['computed_token_ratio']:.2f} | {own['extra_token_ratio']:.2f} |"
        )


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
    lines = {own["credit"]: [list(scores.items()) for scores in own["scores"].values()] for own in figures}
    plots.curves(ROOT / "docs" / "images" / "credit_curves.svg", lines, "rounds of 64 responses", "score, held-out prompts")
    rounds = list(next(iter(figures[0]["scores"].values())))
    yield "| credit | seeds | " + " | ".join(f"round {number}" for number in rounds) + " |"
    yield "|---|---|" + "---|" * len(rounds)
    for own in figures:
        values = [[scores[number] for scores in own["scores"].values()] for number in rounds]
        shown = [f"{fmean(each):.2f}" + (f" ± {stdev(each):.2f}" if len(set(each)) > 1 else "") for each in values]
        yield f"| `{own['credit']}` | {len(own['scores'])} | " + " | ".join(shown) + " |"


FIGURES: Mapping[str, tuple[Callable[[], Figures], Callable[[Figures], Iterator[str]]]] = {
    "localisation": (localisation, localisation_table),
    "cost": (cost, cost_table),
    "curves": (curves, curves_table),
}


if __name__ == "__main__":
    main()
