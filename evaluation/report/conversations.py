"""Conversations of the last round of an online run, turn by turn, with what was learnt marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.report.charts import number
from evaluation.report.data import ReportData
from evaluation.report.markup import Markup, join, preformatted, tag
from evaluation.report.tables import node_heading, section

_ENDS = {
    "done": "the environment ended it",
    "turns": "no turns were left",
    "tokens": "no tokens were left",
    "time": "its time was over",
    "cut": "its last turn was cut",
}


def conversations_section(data: ReportData) -> Markup:
    """Some of each online node whose policy was answered; left out where none was."""
    if not data.conversations:
        return join()
    lead = "Of the last round. Only the policy's own turns are learnt from; what the environment said is not. The number is what a turn earned."
    parts = [_node(data, node, told) for node, told in data.conversations.items()]
    return section("conversations", "Conversations", *parts, lead=lead)


def _node(data: ReportData, node: str, told: Sequence[Mapping[str, Any]]) -> Markup:
    return tag("div", node_heading(data, node), *(_conversation(each) for each in told))


def _conversation(told: Mapping[str, Any]) -> Markup:
    rewards = iter(told["rewards"])
    turns = [_turn(message, None, is_learnt=False) for message in told["prompt"]]
    for message in told["messages"]:
        own = message["role"] == "assistant"
        turns.append(_turn(message, next(rewards, None) if own else None, is_learnt=own and not told["failure"]))
    why = told["failure"] or _ENDS[told["ended_by"]]
    end = tag("p", tag("span", why, class_="pill bad" if told["failure"] else "pill"))
    return tag("article", *turns, end, class_="sample")


def _turn(message: Mapping[str, Any], reward: float | None, *, is_learnt: bool) -> Markup:
    learnt = tag("span", "learnt", class_="pill good") if is_learnt else None
    earned = tag("span", number(reward), class_="pill") if reward is not None else None
    calls = [f"{call['function']['name']}({call['function']['arguments']})" for call in message.get("tool_calls") or ()]
    content = "\n".join(filter(None, (message["content"], *calls)))
    return tag("div", tag("span", message["role"], " ", learnt, " ", earned, class_="role"), preformatted(content), class_="turn")
