"""Methods as rows: what they name is there and takes what they say, and a method of somebody's own is one more row."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from flows.commands.actions import methods_of
from flows.graph.build import build_graph
from flows.settings.presets import resolve
from rlhf_core.imported import imported
from rlhf_core.methods.online import ONLINE
from rlhf_core.methods.preference import PREFERENCE
from rlhf_core.methods.row import value_at, without
from rlhf_core.objectives.advantages import Earned
from rlhf_core.settings.online import OnlineConfig
from rlhf_core.settings.preference import PreferenceConfig
from rlhf_core.settings.training import MethodConfig
from tests.objectives.methods_page import BEGIN, END, PAGE, tables

CONFIGS: dict[str, type[MethodConfig[Any]]] = {
    **dict.fromkeys(PREFERENCE, PreferenceConfig),
    **dict.fromkeys(ONLINE, OnlineConfig),
}


def functions(name: str) -> dict[str, Mapping[str, str]]:
    """The import paths of a method's functions, and the settings that their parameters are."""
    if name in PREFERENCE:
        return {PREFERENCE[name].loss: PREFERENCE[name].reads}
    row = ONLINE[name]
    return {row.loss: row.loss_reads, row.advantages: row.advantages_reads}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_row_names_is_there(name: str) -> None:
    config = CONFIGS[name](method=name)
    for path, reads in functions(name).items():
        parameters = inspect.signature(imported(path, "function", "")).parameters.values()
        by_keyword = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        needed = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
        assert needed <= set(reads) <= by_keyword
        assert None not in config.values({p: s for p, s in reads.items() if p in needed}).values(), "every method has its values"
    for setting in (*config.row.settings, *config.row.defaults):
        value_at(config, setting)


EARNED = Earned(
    rewards=torch.tensor([[0.1, 0.0, 1.0], [0.2, 3.0, 0.0], [0.0, 0.0, 2.0], [0.0, 1.0, 0.0]]),
    mask=torch.tensor([[1.0, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 0]]),
    valid=torch.tensor([True, True, True, True]),
    values=torch.tensor([[0.3, 0.1, 0.2], [0.0, 0.5, 9.0], [0.1, 0.1, 0.1], [0.2, 0.2, 9.0]]),
    samples_per_prompt=2,
    logprobs=-torch.tensor([[1.0, 2, 3], [4, 5, 9], [1, 1, 1], [2, 2, 9]]),
    teacher_logprobs=-torch.tensor([[1.5, 1, 3], [4, 5, 9], [2, 1, 1], [2, 3, 9]]),
    scores=torch.tensor([1.1, 3.2, 2.0, 1.0]),
)


def test_a_token_is_worth_what_the_teacher_finds_it_likelier() -> None:
    found = imported(ONLINE["opd"].advantages, "advantages", "")(EARNED).advantages
    assert found.tolist() == [[-0.5, 1, 0], [0, 0, 0], [-1, 0, 0], [0, -1, 0]]


def test_no_two_online_methods_are_the_same() -> None:
    """In advantages, loss, how it becomes one number, where the KL goes, what is clipped or drawn again, or who takes part."""
    found = {}
    for name, row in ONLINE.items():
        config = OnlineConfig(method=name)
        estimate = imported(row.advantages, "advantages", "")(EARNED, **config.values(row.advantages_reads))
        settings = {setting: config.value(setting) for setting in OnlineConfig.otherwise}
        found[name] = (
            *(estimate.advantages.flatten().tolist(), row.whiten, row.loss, row.aggregation),
            *(config.estimate_of_kl, config.kl_in("loss"), settings, row.roles),
        )
    for one, other in combinations(found, 2):
        assert found[one] != found[other], (one, other)


def test_a_return_is_compared_with_the_whole_returns_of_the_others() -> None:
    estimator = imported(ONLINE["reinforce"].advantages, "advantages", "")
    found: Tensor = estimator(EARNED, gamma=1.0).advantages
    torch.testing.assert_close(found[0], torch.tensor([1.1, 1.0, 1.0]) - 3.2)
    torch.testing.assert_close(found[1], torch.tensor([3.2 - 1.1, 3.0 - 1.1, 0.0]))
    alone = Earned(EARNED.rewards, EARNED.mask, EARNED.valid, None, samples_per_prompt=1)
    torch.testing.assert_close(estimator(alone, gamma=1.0).advantages[0], torch.tensor([1.1, 1.0, 1.0]))
    # A sample without a reward is nobody's baseline.
    valid = torch.tensor([True, False, True, True])
    missing = Earned(EARNED.rewards * valid[:, None], EARNED.mask * valid[:, None], valid, None, samples_per_prompt=2)
    torch.testing.assert_close(estimator(missing, gamma=1.0).advantages[0], torch.tensor([1.1, 1.0, 1.0]))


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (PreferenceConfig, {"method": "dpp"}, r"'dpp' is no method: did you mean 'dpo'\? known are 'dpo', .*module:NAME"),
        (PreferenceConfig, {"method": "no_such.module:M"}, r"module 'no_such\.module' does not import.*PYTHONPATH"),
        (PreferenceConfig, {"method": "rlhf_core.methods.online:ONLINE"}, "is a dict, expected a PreferenceMethod"),
        (PreferenceConfig, {"method": "cdpo", "label_smoothing": 0.0}, r"label_smoothing=0 with method 'cdpo'.*0.1 is taken"),
        (OnlineConfig, {"method": "rloo", "samples_per_prompt": 1}, r"samples_per_prompt=1 with method 'rloo'.*at least 2"),
        (
            OnlineConfig,
            {"method": "grpo", "prompts_per_step": 2, "mini_batches": 4},
            r"mini_batches=4 with prompts_per_step=2 and method 'grpo', which compares.*cut apart.*divisor",
        ),
        (
            OnlineConfig,
            {"samples_per_prompt": 1, "rewards": [{"kind": "procedures", "normalise": "group"}]},
            r"samples_per_prompt=1 with a reward that is normalised by group",
        ),
        (OnlineConfig, {"max_refills": 2, "samples_per_prompt": 1}, r"max_refills=2 with samples_per_prompt=1"),
        (OnlineConfig, {"rewards": []}, r"rewards=\[\] with method 'ppo', which learns from them"),
        (OnlineConfig, {"kl_place": "loss", "kl_estimate": "k1"}, r"kl_estimate='k1' in the loss: its gradient is 0"),
        (
            OnlineConfig,
            {"method": "dr_grpo", "adaptive_kl": {"target_nats": 1.0}},
            r"target_nats=1.0 with kl_coef 0.*set kl_coef",
        ),
        (
            OnlineConfig,
            {"overlong_penalty": {"buffer_tokens": 300}},
            r"buffer_tokens=300 is more than rollout.max_new_tokens=256",
        ),
    ],
)
def test_what_no_method_can_do_is_refused(config: type[Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**settings)


def test_null_is_the_methods_own_and_a_number_is_the_users() -> None:
    assert [PreferenceConfig(method=name).value("beta") for name in ("dpo", "simpo", "dpo_norm")] == [0.1, 2.0, 5.0]
    assert PreferenceConfig(method="simpo", beta=0.1).value("beta") == 0.1
    assert [OnlineConfig(method=name).value("clip_high") for name in ("ppo", "dapo", "gspo")] == [0.2, 0.28, 4e-4]
    assert OnlineConfig(method="dapo", clip_high=0.3).value("clip_high") == 0.3
    assert [OnlineConfig(method=name).value("kl_coef") for name in ("ppo", "grpo", "dr_grpo", "dapo")] == [0.01, 0.01, 0.0, 0.0]
    free = OnlineConfig(method="grpo", clipping=False)
    assert (free.value("clip_low"), free.value("clip_high")) == (1.0, float("inf"))


def test_what_a_method_does_not_read_is_no_part_of_its_settings() -> None:
    shared = OnlineConfig(method="grpo", critic={"gae_lambda": 0.9}, own={"tau": 0.5})
    assert shared.unread() == {"critic.gae_lambda": 0.9, "own.tau": 0.5}
    assert without(shared, shared.unread()) == OnlineConfig(method="grpo")
    assert OnlineConfig(critic={"gae_lambda": 0.9}).unread() == {}


OWN = """
import torch
from torch import Tensor
from rlhf_core.methods.preference import PreferenceMethod
from rlhf_core.objectives.preference import Pairs

def exponential_loss(pairs: Pairs, *, tau: float) -> Tensor:
    return torch.exp(-tau * pairs.margin)

MINE = PreferenceMethod(about="exponential", loss="my_losses:exponential_loss", reads={"tau": "own.tau"})
"""


def test_a_method_from_outside_is_one_more_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_losses.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = PreferenceConfig(method="my_losses:MINE", own={"tau": 0.3})
    assert config.values(config.row.reads) == {"tau": 0.3}
    assert config.unread() == {}
    with pytest.raises(ValidationError, match=r"method 'my_losses:MINE' reads own.tau: give it a value"):
        PreferenceConfig(method="my_losses:MINE")


def test_the_page_has_every_row() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables().items():
        written = page.partition(BEGIN.format(name=name))[2].partition(END.format(name=name))[0]
        assert written == table, "run python -m tests.objectives.methods_page"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_name_is_all_that_an_entry_needs(name: str) -> None:
    stage = "preference" if name in PREFERENCE else "online"
    entry = {"stage": stage, "model": "sft", "set": {"method": name}, **({"teacher": "base"} if name == "opd" else {})}
    graph = build_graph(resolve("tiny", overrides={"pipeline.mine": entry}))
    settings = graph["mine"].settings
    assert isinstance(settings, MethodConfig)
    assert settings.method == name
    assert all(value_at(settings, path) == value for path, value in settings.row.defaults.items()), "settled, so it is shown"
    assert next(line for line in methods_of(graph) if line.startswith("mine")).startswith(f"mine trains by {name}, ")


def test_the_plan_says_where_no_reference_is_asked() -> None:
    entries = {f"pipeline.{name}": {"stage": "preference", "model": "sft", "set": {"method": name}} for name in ("orpo", "ipo")}
    lines = list(methods_of(build_graph(resolve("tiny", overrides=entries))))
    assert "orpo trains by orpo, no reference pass" in lines
    assert "ipo trains by ipo, reference log-probs in one pass before" in lines
