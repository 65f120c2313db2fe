"""Prompts that the chat template refuses are left out, counted and named up to a share."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_processing.errors import DataError
from data_processing.schemas import to_table, write_table
from rlhf_core.batching.templates import Renderer
from rlhf_core.recipes.prompts import Limits, read_prompts
from tests.online.runs import events, online_job
from tests.tiny_models import CHATML, tiny_model, tiny_tokenizer

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHATML


def test_prompts_that_the_template_refuses_are_left_out_up_to_the_allowed_share(tmp_path: Path) -> None:
    turns = [[{"role": role, "content": "what is the answer?"}] for role in ("user", "system", "user", "user")]
    rows = [{"id": f"p{i}", "prompt": turn, "label": None, "source": "test"} for i, turn in enumerate(turns)]
    write_table("prompts", to_table("prompts", rows), tmp_path / "data" / "prompts" / "train.parquet")
    renderer = Renderer(tiny_tokenizer("llama"), NO_SYSTEM)
    model = tiny_model(tmp_path)
    allowed = online_job(tmp_path / "allowed", model, tmp_path / "data", max_dropped_fraction=0.25)
    assert [
        prompt.id
        for prompt in read_prompts(allowed.data, Limits.of(allowed.config, allowed.config.rollout), allowed.events, renderer)
    ] == ["p0", "p2", "p3"]
    assert [event["message"] for event in events(allowed, "warning")] == [
        "1 prompts were left out: table 'prompts', row 1 (id p1): the chat template refuses a conversation with roles system: "
        "no system turn; change the row, or give another template in model.chat_template"
    ]
    with pytest.raises(DataError, match=r"1 of the first 2 of 4 rows.*max_dropped_fraction=0\.2 .*\(id p1\).*no system turn"):
        refused = online_job(tmp_path / "refused", model, tmp_path / "data", max_dropped_fraction=0.2)
        read_prompts(refused.data, Limits.of(refused.config, refused.config.rollout), refused.events, renderer)
