"""A row of every format, and what the tables make of it. `python -m tests.data.formats` writes the table of docs/data.md from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **keys}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


Q, A, B, S = "When does the ferry leave?", "At noon, from pier 3.", "No idea.", "You answer for a harbour."
TURNS = [user(Q), assistant(A)]
EARLIER = [user("Hello"), assistant("Ahoy.")]
FUNCTION = {"name": "departures", "description": "Departures of a pier", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"type": "function", "function": {"name": "departures", "arguments": {"pier": 3}}}
CALLED = {"tool_calls": [CALL]}
OPENAI_CALL = {"id": "c1", "type": "function", "function": {"name": "departures", "arguments": '{"pier": 3}'}}
RESULT = {"role": "tool", "content": "12:00"}


@dataclass(frozen=True)
class ShapeCase:
    """A row of a format. `want` has the columns that a table's row must hold; a text is what the reason must say.

    Messages in `want` hold the keys of their turns beside role and content; `extra` and `tools` are what their JSON says.
    """

    family: str
    columns: str
    row: Row
    want: dict[str, Row | str]


def pair(prompt: list[Row], chosen: str = A, rejected: str = B, **columns: Any) -> Row:
    return {"prompt": prompt, "chosen": [assistant(chosen)], "rejected": [assistant(rejected)], **columns}


def judged(desirable: bool) -> Row:
    return {"prompt": [user(Q)], "response": [assistant(A)], "desirable": desirable}


def sharegpt(*turns: tuple[str, str]) -> list[Row]:
    return [{"from": who, "value": said} for who, said in turns]


ASKED: Row = {"prompt": [user(Q)]}
SFT: dict[str, Row | str] = {"sft": {"messages": TURNS}}
WITH_SYSTEM: dict[str, Row | str] = {"sft": {"messages": [system(S), *TURNS]}, "prompts": {"prompt": [system(S), user(Q)]}}
PAIR: dict[str, Row | str] = {"preference": pair([user(Q)]), **SFT, "prompts": ASKED}

CASES = [
    ShapeCase("TRL", "`prompt`, `completion`", {"prompt": Q, "completion": A}, {**SFT, "preference": "has no rejected answer"}),
    ShapeCase(
        "TRL",
        "`prompt`, `completion` as messages",
        {"prompt": [user(Q)], "completion": [assistant(A)]},
        {**SFT, "prompts": {**ASKED, "label": None, "extra": {"completion": [assistant(A)]}}},
    ),
    ShapeCase("TRL", "`messages`", {"messages": TURNS}, {**SFT, "prompts": {**ASKED, "extra": {"response": [assistant(A)]}}}),
    ShapeCase("TRL", "`prompt`, `chosen`, `rejected`", {"prompt": Q, "chosen": A, "rejected": B}, PAIR),
    ShapeCase("TRL", "`chosen`, `rejected` as conversations", {"chosen": TURNS, "rejected": [user(Q), assistant(B)]}, PAIR),
    ShapeCase(
        "TRL",
        "`prompt`, `completion`, `label`",
        {"prompt": Q, "completion": A, "label": False},
        {"unpaired": judged(False), **SFT},
    ),
    ShapeCase(
        "TRL",
        "`prompt`, `completions`, `labels`",
        {"prompt": Q, "completions": ["At noon.", "Or later."], "labels": [True, False]},
        {
            **dict.fromkeys(("sft", "preference", "unpaired"), "judged step by step"),
            "prompts": ASKED,
            "stepwise": {**ASKED, "steps": [assistant("At noon."), assistant("Or later.")], "labels": [True, False]},
        },
    ),
    ShapeCase(
        "TRL",
        "`prompt`, `solution`",
        {"prompt": [user("6 + 6")], "solution": "12", "level": 2},
        {"prompts": {"prompt": [user("6 + 6")], "label": "12", "extra": {"level": 2}}},
    ),
    ShapeCase(
        "TRL",
        "`text`",
        {"text": "The ferry leaves."},
        {
            "sft": {"messages": [{"role": "text", "content": "The ferry leaves."}]},
            "preference": "fit no known shape",
            "prompts": "fit no known shape",
            "unpaired": "only the sft table",
        },
    ),
    ShapeCase(
        "verl",
        "`prompt`, `reward_model.ground_truth`, `data_source`, `extra_info`",
        {
            "data_source": "sums",
            "prompt": [user("6 + 6")],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "12"},
            "extra_info": {"index": 7},
        },
        {
            "prompts": {
                "prompt": [user("6 + 6")],
                "label": "12",
                "extra": {
                    "data_source": "sums",
                    "ability": "math",
                    "reward_model": {"style": "rule", "ground_truth": "12"},
                    "extra_info": {"index": 7},
                },
            },
            "sft": "has no answer",
        },
    ),
    ShapeCase(
        "OpenRLHF",
        "`context_messages`, `label`",
        {"context_messages": [user("6 + 6")], "label": "12"},
        {"prompts": {"prompt": [user("6 + 6")], "label": "12"}},
    ),
    ShapeCase(
        "LLaMA-Factory",
        "`instruction`, `input`, `output`, `system`, `history`",
        {"instruction": Q, "input": "Pier 3.", "output": A, "system": S, "history": [["Hello", "Ahoy."]]},
        {"sft": {"messages": [system(S), *EARLIER, user(f"{Q}\n\nPier 3."), assistant(A)]}},
    ),
    ShapeCase(
        "LLaMA-Factory",
        "`conversations`, `system`, `tools` with calls",
        {
            "conversations": sharegpt(
                ("human", Q),
                ("function_call", '{"name": "departures", "arguments": {"pier": 3}}'),
                ("observation", "12:00"),
                ("gpt", A),
            ),
            "system": S,
            "tools": json.dumps([FUNCTION]),
        },
        {"sft": {"messages": [system(S), user(Q), assistant("", **CALLED), RESULT, assistant(A)], "tools": [TOOL]}},
    ),
    ShapeCase(
        "LLaMA-Factory",
        "`conversations`, `chosen`, `rejected` of one message each",
        {
            "conversations": sharegpt(("human", Q)),
            "chosen": {"from": "gpt", "value": A},
            "rejected": {"from": "gpt", "value": B},
        },
        {"preference": pair([user(Q)])},
    ),
    ShapeCase(
        "LLaMA-Factory",
        "`messages`, `label`",
        {"messages": TURNS, "label": True},
        {"unpaired": judged(True), **SFT},
    ),
    ShapeCase(
        "LLaMA-Factory",
        "`messages` with parts and `loss_weight`",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "value": Q}], "loss_weight": 0.0},
                {"role": "assistant", "content": [{"type": "text", "value": "Soon."}], "loss_weight": 0.0},
                {"role": "user", "content": [{"type": "text", "value": "When?"}], "loss_weight": 0.0},
                {"role": "assistant", "content": [{"type": "text", "value": A}], "loss_weight": 1.0},
            ]
        },
        {"sft": {"messages": [user(Q), assistant("Soon.", weight=0), user("When?"), assistant(A)]}},
    ),
    ShapeCase(
        "OpenAI",
        "`messages` with `tool_calls`, `tools`",
        {
            "messages": [
                user(Q),
                {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
                {**RESULT, "tool_call_id": "c1"},
                assistant(A),
            ],
            "tools": [TOOL],
        },
        {
            "sft": {
                "messages": [
                    user(Q),
                    assistant("", tool_calls=[{"id": "c1", **CALL}]),
                    {**RESULT, "tool_call_id": "c1"},
                    assistant(A),
                ],
                "tools": [TOOL],
            }
        },
    ),
    ShapeCase(
        "OpenAI",
        "`messages` with parts, `developer`, `weight`",
        {
            "messages": [
                {"role": "developer", "content": S},
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "When does the "}, {"type": "text", "text": "ferry leave?"}],
                },
                assistant("Soon.", weight=0),
                user("When?"),
                assistant(A, weight=1),
            ]
        },
        {"sft": {"messages": [system(S), user(Q), assistant("Soon.", weight=0), user("When?"), assistant(A)]}},
    ),
    ShapeCase(
        "OpenAI",
        "`messages` with a picture",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]}, assistant(A)]},
        dict.fromkeys(("sft", "preference", "prompts", "unpaired"), "image, audio or video"),
    ),
    ShapeCase(
        "LLaMA-Factory",
        "`messages`, `images`",
        {"messages": [user("<image>A ferry?"), assistant("Yes.")], "images": ["a.png"]},
        dict.fromkeys(("sft", "preference", "prompts", "unpaired"), "'images' holds an image, audio or video"),
    ),
    ShapeCase(
        "reasoning",
        "`messages` with `reasoning_content`",
        {"messages": [user(Q), assistant(A, reasoning_content="The timetable says so.")]},
        {"sft": {"messages": [user(Q), assistant(A, reasoning_content="The timetable says so.")]}},
    ),
    ShapeCase(
        "reasoning",
        "`problem`, `solution`, `answer`",
        {"problem": "6 + 6", "solution": "Add them: 12", "answer": "12"},
        {
            "prompts": {"prompt": [user("6 + 6")], "label": "12", "extra": {"solution": "Add them: 12"}},
            "sft": {"messages": [user("6 + 6"), assistant("Add them: 12")]},
        },
    ),
    ShapeCase(
        "reasoning",
        "`question`, `answer`",
        {"question": "6 and 6?", "answer": "6 + 6 = 12\n#### 12"},
        {
            "prompts": {"prompt": [user("6 and 6?")], "label": "6 + 6 = 12\n#### 12", "extra": {}},
            "sft": {"messages": [user("6 and 6?"), assistant("6 + 6 = 12\n#### 12")]},
        },
    ),
    ShapeCase(
        "instruction",
        "`instruction`, `context`, `response`",
        {"instruction": Q, "context": "Pier 3.", "response": A, "category": "qa"},
        {"sft": {"messages": [user(f"{Q}\n\nPier 3."), assistant(A)]}},
    ),
    ShapeCase(
        "instruction", "`system_prompt`, `question`, `response`", {"system_prompt": S, "question": Q, "response": A}, WITH_SYSTEM
    ),
    ShapeCase("instruction", "`query`, `response`", {"query": Q, "response": A}, SFT),
    ShapeCase(
        "ShareGPT",
        "`conversations`, `system`",
        {"system": S, "conversations": sharegpt(("user", Q), ("assistant", A))},
        WITH_SYSTEM,
    ),
    ShapeCase(
        "preference",
        "`chosen`, `rejected`, `score_chosen`, `score_rejected`",
        {"prompt": Q, "chosen": TURNS, "rejected": [user(Q), assistant(B)], "score_chosen": 8.5, "score_rejected": 5},
        {"preference": pair([user(Q)], margin=3.5)},
    ),
    ShapeCase(
        "preference",
        "`chosen_messages`, `rejected_messages`",
        {"chosen_messages": TURNS, "rejected_messages": [user(Q), assistant(B)]},
        PAIR,
    ),
    ShapeCase(
        "preference",
        "`system`, `question`, `chosen`, `rejected`",
        {"system": S, "question": Q, "chosen": A, "rejected": B},
        {"preference": pair([system(S), user(Q)]), **WITH_SYSTEM},
    ),
    ShapeCase(
        "preference",
        "`question`, `response_j`, `response_k`",
        {"question": Q, "response_j": A, "response_k": B},
        PAIR,
    ),
    ShapeCase(
        "preference",
        "`chosen`, `rejected` as transcripts",
        {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {B}"},
        PAIR,
    ),
]
