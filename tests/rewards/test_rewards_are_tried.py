"""`alignflow reward try`: answers of any table are scored by any rewards, and what they say is told."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from data_processing.errors import ConfigError, DataError
from flows.commands.try_reward import Asked, read_scorers, read_sources, try_reward
from rlhf_core.models.load import load_tokenizer
from rlhf_core.rewards.tried import read_answers
from tests.rewards.test_reward_model_scorer import reward_folder
from tests.tiny_models import tiny_model

PAIRS = [
    {"prompt": "2 + 2?", "chosen": "four", "rejected": "it is five, surely", "answer": "four", "level": 1},
    {"prompt": "2 + 3?", "chosen": "it is five", "rejected": "no", "answer": "five", "level": 2},
]


def table(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shown(capsys: pytest.CaptureFixture[str], rewards: str, on: Path, **options: Any) -> str:
    given = {"rows": 16, "scorers": {}, "tokenizer": None, "allowed_hosts": (), **options}
    try_reward(Asked(rewards, on, **given))
    return capsys.readouterr().out


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "tried_here.py").write_text(
        "def right(responses, labels, level):\n"
        "    return [{'score': float(a == b), 'level': n} for a, b, n in zip(responses, labels, level)]\n"
        "def patchy(responses):\n    return [None, float('nan'), 1.0, 2.0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "tried_here"


def test_pairs_are_tried_as_two_answers_with_label_and_columns(
    functions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = shown(capsys, f"{functions}:right", table(tmp_path, PAIRS))
    assert "2 rows of" in said and "4 answers (chosen, rejected); lengths in words" in said
    assert "right/level 1.5" in said
    assert "right: the chosen answer is worth more in 1 of 2 pairs, as much in 1" in said
    assert "it is five, surely" in said


def test_several_rewards_of_a_file_are_told_apart(functions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rewards.yaml"
    sources = [{"kind": "python", "function": f"{functions}:{name}"} for name in ("patchy", "right", "patchy")]
    file.write_text(json.dumps({"online": {"rewards": sources}}))
    said = shown(capsys, str(file), table(tmp_path, PAIRS))
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.startswith(("patchy ", "patchy_2", "right "))}
    assert rows["patchy"][:3] == rows["patchy_2"][:3] == ["1.5", "0.5", "1"]
    assert rows["patchy"][7:9] == ["1", "1"], "one does not apply, one failed"


def test_labels_stand_in_for_answers_that_a_table_lacks(
    functions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "2 + 2?", "label": "four", "level": 3}]
    said = shown(capsys, f"{functions}:right", table(tmp_path, rows))
    assert "1 rows of" in said and "each prompt's label in place of an answer" in said
    assert said.splitlines()[2].split()[:2] == ["right", "1"]


@pytest.mark.seconds
def test_a_reward_model_reads_what_is_sampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_model(tmp_path, "llama")
    folder = reward_folder(tmp_path, base)
    file = tmp_path / "rewards.yaml"
    file.write_text("rewards: [{kind: reward_model}]")
    said = shown(capsys, str(file), table(tmp_path, PAIRS), scorers={"reward_model": folder})
    assert "lengths in tokens" in said and "reward_model: the chosen answer" in said
    [answer, *_] = read_answers(table(tmp_path, PAIRS), 1, tokenizer := load_tokenizer(folder))
    assert tokenizer.decode(answer.response.response_ids, skip_special_tokens=True) == "four"
    with pytest.raises(ConfigError, match=r"--scorer reward_model=DIR"):
        shown(capsys, str(file), table(tmp_path, PAIRS))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("rewards: [{kind: pythn}]", r"rewards\[0\]\.kind: got 'pythn'; did you mean 'python'"),
        ("a: b", "has no list of rewards"),
        ("a: [", "is no YAML"),
    ],
)
def test_a_file_without_rewards_says_so(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(ConfigError, match=said):
        read_sources(str(tmp_path / "r.yaml"))


def test_what_cannot_be_tried_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_sources(str(tmp_path / "none.yaml"))
    with pytest.raises(DataError, match="no row has an answer or a label"):
        read_answers(table(tmp_path, [{"prompt": "hello?"}]), 3)
    with pytest.raises(ConfigError, match="got 'rm'; give an input and the folder"):
        read_scorers(["rm"])


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_what_each_answer_got_is_written(functions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str) -> None:
    file = tmp_path / "rewards.yaml"
    file.write_text(json.dumps([{"kind": "python", "function": f"{functions}:{name}"} for name in ("right", "patchy")]))
    out = tmp_path / f"scores{ending}"
    said = shown(capsys, str(file), table(tmp_path, PAIRS), out=out)
    assert said.endswith(f"{out}: 4 answers\n")
    rows = [json.loads(line) for line in out.read_text().splitlines()] if ending == ".jsonl" else pq.read_table(out).to_pylist()
    assert [(row["as"], row["answer"], row["right"], row["right/level"]) for row in rows] == [
        ("chosen", "four", 1.0, 1.0),
        ("rejected", "it is five, surely", 0.0, 1.0),
        ("chosen", "it is five", 0.0, 2.0),
        ("rejected", "no", 0.0, 2.0),
    ]
    assert [row["patchy"] for row in rows[2:]] == [1.0, 2.0]
    assert rows[0]["patchy"] is None and (rows[1]["patchy"] is None or math.isnan(rows[1]["patchy"]))


@pytest.mark.parametrize("name", ["scores.csv", "nowhere/scores.jsonl"])
def test_a_file_that_cannot_be_written_is_told_before(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(ConfigError, match="--out: got"):
        shown(capsys, "tried_here:right", table(tmp_path, PAIRS), out=tmp_path / name)


def test_plans_are_tried_without_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rewards.yaml"
    file.write_text(json.dumps({"rewards": [{"kind": "vr_cli", "mode": "raw"}]}))
    rows = [{"prompt": "2 + 2?", "response": "In summary: count", "label": "four"}]
    scorers = {"generator": tiny_model(tmp_path)}
    assert "vr_cli/marked 1" in shown(capsys, str(file), table(tmp_path, rows), scorers=scorers)
    with pytest.raises(ConfigError, match="--scorer generator=DIR"):
        shown(capsys, str(file), table(tmp_path, rows))
