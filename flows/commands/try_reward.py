"""`alignflow reward try`: rewards on answers that are there already, before a run depends on them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError

from data_processing.errors import ConfigError
from data_processing.settings import Settings
from flows.commands.tables import console, table_with
from flows.settings.messages import validation_message
from flows.settings.yaml_values import parse_yaml
from rlhf_core.rewards.build import Around
from rlhf_core.rewards.facts import PartFacts, part_facts
from rlhf_core.rewards.tried import CHOSEN, LABEL, REJECTED, TriedAnswer, TriedSource, read_answers, try_rewards
from rlhf_core.settings.rewards.base import RewardSettings
from rlhf_core.settings.rewards.functions import PythonReward
from rlhf_core.settings.rewards.kinds import RewardSource, inputs_of
from rlhf_core.settings.rewards.vr_cli import BASELINE
from rlhf_core.settings.training import EngineSettings

_BARS = "▁▂▃▄▅▆▇█"
_BINS = 12
_SHOWN_CHARACTERS = 60
_WRITTEN = (".parquet", ".jsonl")


@dataclass(frozen=True)
class Asked:
    """What is tried on what: `rewards` names a YAML file or a function, `on` a table; `scorers` are reward models by input name.

    What each answer got is written to `out`, where that is given.
    """

    rewards: str
    on: Path
    rows: int
    scorers: Mapping[str, Path]
    tokenizer: Path | None
    allowed_hosts: Sequence[str]
    out: Path | None = None


class _RewardFile(Settings):
    """What a file of rewards holds."""

    rewards: list[RewardSource]


def try_reward(asked: Asked) -> None:
    """Print what each source says of the first rows, how long it takes, and what it goes with."""
    sources = read_sources(asked.rewards)
    _check_out(asked.out)
    tokenizer, engine = _tokenizer(asked, sources), EngineSettings(dtype="fp32")
    answers = read_answers(asked.on, asked.rows, tokenizer)
    policy = next(iter(_models(asked)), Path())
    around = Around(policy, engine, asked.scorers, allowed_hosts=tuple(asked.allowed_hosts))
    tried = list(try_rewards(sources, answers, around))
    by_source = {each.name: each.scores.rewards for each in tried}
    facts = list(part_facts(by_source, [len(answer.response.response_ids) for answer in answers]))
    print(_heading(asked, answers, "words" if tokenizer is None else "tokens"))
    _print_facts(facts, tried, len(answers))
    _print_metrics(tried)
    for line in (*_pairs(answers, by_source), *_together(facts), *_failures(answers, tried)):
        print(line)
    _print_examples(answers, by_source)
    if asked.out is not None:
        _write(asked.out, answers, tried)


def read_sources(text: str) -> list[RewardSettings]:
    """The rewards that a YAML file has under `rewards` or `online.rewards`, or the function `module:name`; else `ConfigError`."""
    if not text.endswith((".yaml", ".yml")):
        return [PythonReward(function=text)]
    try:
        values = parse_yaml(Path(text).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{text}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{text}: is no YAML: {error}") from error
    found = values.get("rewards", (values.get("online") or {}).get("rewards")) if isinstance(values, dict) else values
    if not isinstance(found, list) or not found:
        raise ConfigError(f"{text}: has no list of rewards, neither as 'rewards' nor as 'online.rewards'")
    try:
        return list(_RewardFile.model_validate({"rewards": found}).rewards)
    except ValidationError as error:
        raise ConfigError(validation_message(error, _RewardFile)) from error


def read_scorers(assignments: Sequence[str]) -> dict[str, Path]:
    """Folders by the names of inputs, from texts like `reward_model=DIR`; raises `ConfigError` for one that is none."""
    found = {}
    for text in assignments:
        name, equals, folder = text.partition("=")
        if not equals or not Path(folder).is_dir():
            raise ConfigError(f"--scorer: got '{text}'; give an input and the folder of a reward model, as in reward_model=DIR")
        found[name] = Path(folder)
    return found


def _tokenizer(asked: Asked, sources: Sequence[RewardSettings]) -> Any:
    # What completions are worth without a plan is computed where it is not given.
    if missing := sorted(inputs_of(sources) - asked.scorers.keys() - {BASELINE}):
        raise ConfigError(f"--scorer: the rewards ask the model '{missing[0]}'; give its folder, as in --scorer {missing[0]}=DIR")
    folder = asked.tokenizer or next(iter(_models(asked)), None)
    if folder is None:
        return None
    from rlhf_core.models.load import load_tokenizer

    return load_tokenizer(folder)


def _models(asked: Asked) -> list[Path]:
    return [folder for name, folder in asked.scorers.items() if name != BASELINE]


def _heading(asked: Asked, answers: Sequence[TriedAnswer], unit: str) -> str:
    rows = len({answer.row for answer in answers})
    sides = list(dict.fromkeys(answer.side for answer in answers))
    told = "each prompt's label in place of an answer" if sides == [LABEL] else f"{len(answers)} answers ({', '.join(sides)})"
    return f"{rows} rows of {asked.on}, {told}; lengths in {unit}"


def _print_facts(facts: Sequence[PartFacts], tried: Sequence[TriedSource], count: int) -> None:
    names = ("mean", "sd", "min", "25%", "50%", "75%", "max", "n/a", "failed", "ms each", "with length", "spread")
    table = table_with("reward", *names)
    for found, each in zip(facts, tried, strict=True):
        numbers = (found.mean, found.sd, *(found.quartiles or [None] * 5))
        table.add_row(
            found.name,
            *map(_number, numbers),
            str(found.absent),
            str(found.failed),
            _number(1000 * each.seconds / count),
            _number(found.with_length),
            _histogram([value for value in each.scores.rewards if value is not None and value == value]),  # noqa: PLR0124
        )
    console().print(table)


def _print_metrics(tried: Sequence[TriedSource]) -> None:
    means = {
        f"{each.name}/{name}": [value for value in values if value is not None]
        for each in tried
        for name, values in each.scores.metrics.items()
    }
    if told := [f"{name} {_number(sum(values) / len(values))}" for name, values in means.items() if values]:
        print(f"parts, means: {', '.join(told)}")


def _pairs(answers: Sequence[TriedAnswer], by_source: Mapping[str, Sequence[float | None]]) -> Iterator[str]:
    """How often each source finds the better one of a pair better."""
    places = {(answer.row, answer.side): i for i, answer in enumerate(answers)}
    pairs = [(i, places[row, REJECTED]) for (row, side), i in places.items() if side == CHOSEN and (row, REJECTED) in places]
    for name, values in by_source.items():
        known = [(a, b) for i, j in pairs if (a := values[i]) is not None and (b := values[j]) is not None]
        if known:
            right, ties = sum(a > b for a, b in known), sum(a == b for a, b in known)
            yield f"{name}: the chosen answer is worth more in {right} of {len(known)} pairs, as much in {ties}"


def _together(facts: Sequence[PartFacts]) -> Iterator[str]:
    for i, found in enumerate(facts):
        for other in facts[i + 1 :]:
            if (both := found.with_parts[other.name]) is not None:
                yield f"{found.name} with {other.name}: correlation {both:+.2f}"


def _failures(answers: Sequence[TriedAnswer], tried: Sequence[TriedSource]) -> Iterator[str]:
    for each in tried:
        said = [(answer.row, why) for answer, why in zip(answers, each.scores.failures or (), strict=False) if why]
        for row, why in said[:3]:
            yield f"{each.name} failed on row {row}: {why}"


def _print_examples(answers: Sequence[TriedAnswer], by_source: Mapping[str, Sequence[float | None]]) -> None:
    """A few answers from the best to the worst, by the sum of the sources."""
    sums = [sum(v for values in by_source.values() if (v := values[i]) is not None) for i in range(len(answers))]
    order = sorted(range(len(answers)), key=lambda i: -sums[i])
    places = order if len(order) <= 6 else [*order[:3], *order[-3:]]
    table = table_with("row", "as", *by_source, "answer")
    for i in places:
        text = " ".join(answers[i].response.text.split())
        cut = text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
        table.add_row(answers[i].row, answers[i].side, *(_number(values[i]) for values in by_source.values()), cut)
    console().print(table)


def _check_out(out: Path | None) -> None:
    if out is not None and (out.suffix not in _WRITTEN or not out.absolute().parent.is_dir()):
        raise ConfigError(f"--out: got '{out}'; give a file that ends in {' or '.join(_WRITTEN)}, in a folder that is there")


def _write(out: Path, answers: Sequence[TriedAnswer], tried: Sequence[TriedSource]) -> None:
    """A row an answer: which it is, what each source said of it, what it told beside, and why it failed."""
    rows: list[dict[str, Any]] = [{"id": answer.row, "as": answer.side, "answer": answer.response.text} for answer in answers]
    for each in tried:
        failures = each.scores.failures or [None] * len(rows)
        for i, row in enumerate(rows):
            row[each.name] = each.scores.rewards[i]
            row |= {f"{each.name}/{name}": values[i] for name, values in each.scores.metrics.items()}
            row[f"{each.name}/failure"] = failures[i]
    if out.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), out)
    else:
        # NaN, what a source failed on, has no form in JSON.
        told = [{name: None if value != value else value for name, value in row.items()} for row in rows]  # noqa: PLR0124
        out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in told), encoding="utf-8")
    print(f"{out}: {len(rows)} answers")


def _histogram(values: Sequence[float]) -> str:
    """Bars from the least to the largest value."""
    if not values or min(values) == max(values):
        return ""
    low, width = min(values), (max(values) - min(values)) / _BINS
    counts = [0] * _BINS
    for value in values:
        counts[min(int((value - low) / width), _BINS - 1)] += 1
    return "".join(_BARS[round((len(_BARS) - 1) * count / max(counts))] if count else " " for count in counts)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
