"""Settings as they are typed: presets, `--set`, files, entries of a pipeline. Each is planned, or refused by name."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

from flows.commands.actions import Asked, read_request
from flows.graph.plan import make_plan
from flows.running.checks import check_what_runs
from flows.running.code import live_code
from flows.settings.config import PipelineConfig
from flows.settings.layers import dotted_paths
from flows.settings.presets import known_presets
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.registry import STAGES
from tests.fuzz.outcome import outcome
from tests.fuzz.values import damage, text, value

PATHS = tuple(dotted_paths())
YAML = (
    "0", "1", "-1", "2", "0.5", "1e309", ".nan", ".inf", "null", "true", "off", "on", "''", "' '", "auto", "[]", "[1, 2]", "[a]", "{}", "{a: 1}",
    "{1: 2}", "{[1]: 2}", "[", "{a: ", "'", "a: b: c", "&a [*a]", "*a", "!!python/object:os.system x", "!!binary aGk=", "2026-01-01",
    "0x10", "1_000", "99999999999999999999999", "\x00", "💥", "?", "- a\n- b", "{a: 1, a: 2}", "!!set {a}", "<<: 1", "{<<: {a: 1}}", "\t",
    "bf16", "fp32", "kto", "grpo", "ppo", "hf", "vllm", "4096", "/tmp", "~", "/no/such/folder", "{kind: length}", "[{kind: python}]",
    "[{path: /etc/hostname}]", "[{path: x, kind: huggingface}]", "[{kind: procedures}, {kind: reward_model}]", "tiny-random",
    "{stage: sft}", "{stage: online, model: sft, each: {seed: [1, 2]}}", "{stage: dpo}",
)  # fmt: skip
ENTRIES = (
    "sft",
    "reward_model",
    "preference",
    "online",
    "base",
    "data",
    "ppo",
    "a-b",
    "a b",
    "1x",
    "",
    "compare",
    "convert_x",
    "é",
)
STAGE_NAMES = (
    *STAGES,
    "register",
    "dpo",
    "",
    ":",
    "os:path",
    "no.such:STAGE",
    "tests.flows.toy_stages:",
    "json:loads",
    "..x:y",
    3,
    None,
)


def attempt(rng: random.Random, folder: Path) -> None:
    """Plan what somebody might have typed."""
    home = Home.open(folder / "home")
    preset = rng.choice((*known_presets(), *known_presets(), "tiny", "tiny", "quickstrt", "", "/tmp", "no.yaml"))
    assignments = [_assignment(rng) for _ in range(rng.choice((0, 1, 1, 1, 2, 3)))]
    file = _file(rng, folder / "my.yaml") if rng.random() < 0.5 else None
    nodes = (None, None, None, None, "sft", "online", "compare", "nobody", "")
    asked = Asked(
        preset, file, assignments, rng.choice(nodes), rng.choice(nodes), rng.choice(([], [], ["sft"], ["nobody"])), no_check=True
    )
    is_planned = rng.random() < 0.4

    def plan() -> None:
        request = read_request(asked, home)
        if is_planned:
            check_what_runs(
                request.config, make_plan(request.config, request.selection, home, live_code(request.config, home)), home
            )

    outcome(
        plan, ["--set", "--from", "pipeline", "preset", "stage", *PipelineConfig.model_fields, *([str(file)] if file else [])]
    )


def _assignment(rng: random.Random) -> str:
    path = rng.choice(PATHS)
    how = rng.random()
    if how < 0.25:
        field = rng.choice(
            ("stage", "set", "each", "each.seed", "set.learning_rate", "rounds", "seed", "evaluate", "model", "data", "nothing")
        )
        path = f"pipeline.{rng.choice(ENTRIES)}" + (f".{field}" if rng.random() < 0.8 else "")
    elif how < 0.35:
        path = rng.choice(
            (path[:-1], f"{path}.x", f"x.{path}", path.upper(), "", ".", "..", path.replace("_", "-"), "pipeline.", "run.skip")
        )
    return f"{path}{rng.choice(('=', '=', '=', '=', '=', '=', '=', '', '==', ' = '))}{rng.choice(YAML)}"


def _file(rng: random.Random, path: Path) -> Path:
    if rng.random() < 0.05:
        return path
    content: Any = {rng.choice(tuple(PipelineConfig.model_fields)): _section(rng) for _ in range(rng.randint(0, 3))}
    if rng.random() < 0.5:
        content["pipeline"] = {rng.choice(ENTRIES): _entry(rng) for _ in range(rng.randint(0, 4))}
    if rng.random() < 0.1:
        content[rng.choice(("extends", "modle", 3, None, "run"))] = rng.choice(
            ("tiny", "my.yaml", "./my.yaml", "nobody", 3, None, [1])
        )
    path.write_text(
        yaml.safe_dump(content if rng.random() < 0.95 else value(rng), allow_unicode=True), encoding="utf-8", errors="replace"
    )
    if rng.random() < 0.3:
        damage(rng, path)
    return path


def _section(rng: random.Random) -> Any:
    if rng.random() < 0.2:
        return _plain(value(rng))
    section: dict[Any, Any] = {}
    for _ in range(rng.randint(0, 3)):
        _, _, below = rng.choice(PATHS).partition(".")
        *above, last = below.split(".") if below else ["x"]
        inner = section
        for name in above:
            inner = inner.setdefault(name, {}) if isinstance(inner.get(name, {}), dict) else inner
        inner[last] = _plain(rng.choice((value(rng), rng.choice(YAML), rng.randint(-2, 64), rng.random())))
    return section


def _entry(rng: random.Random) -> Any:
    if rng.random() < 0.15:
        return _plain(value(rng))
    entry: dict[Any, Any] = {"stage": rng.choice(STAGE_NAMES)} if rng.random() < 0.9 else {}
    references = (*ENTRIES, "sft@seed=1", "sft@", "sft@x", "online@round=2", "base", "sft@seed=[", None, 3)
    for name in ("model", "data", "reward_model", "checkpoint", "nothing"):
        if rng.random() < 0.3:
            entry[name] = rng.choice(references)
    fields = (
        "seed",
        "learning_rate",
        "optimizer.learning_rate",
        "method",
        "steps",
        "max_steps",
        "",
        ".",
        "lora.rank.x",
        "nothing",
    )
    if rng.random() < 0.4:
        entry["set"] = {rng.choice(fields): _plain(value(rng)) for _ in range(rng.randint(0, 2))}
    if rng.random() < 0.4:
        entry["each"] = {
            rng.choice(fields): [_plain(value(rng)) for _ in range(rng.randint(0, 3))] for _ in range(rng.randint(0, 2))
        }
    for name in ("rounds", "seed", "evaluate"):
        if rng.random() < 0.2:
            entry[name] = rng.choice((0, 1, 2, 3, 100, 101, -1, "two", None, True, 1.5))
    if rng.random() < 0.1:
        entry[text(rng)] = text(rng)
    return entry


def _plain(item: Any) -> Any:
    """Without texts that YAML cannot hold."""
    if isinstance(item, dict):
        return {_plain(key): _plain(inner) for key, inner in item.items()}
    if isinstance(item, list):
        return [_plain(inner) for inner in item]
    return item.encode("utf-8", "replace").decode() if isinstance(item, str) else item
