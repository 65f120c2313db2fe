"""A Hugging Face dataset is at one commit for the whole run, and new data is another key."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from data_processing.config import DataConfig, SourceKind, TableSource
from data_processing.errors import ConfigError
from data_processing.sources.hub import commit_of
from flows.graph.build import pinned
from flows.graph.nodes import Node
from tasks.runtime.keys.stage_key import stage_key

FIRST, SECOND = "1" * 40, "2" * 40


class Hub(ThreadingHTTPServer):
    """Answers as the hub does when asked for a dataset; `commit` is what its main branch is at."""

    commit = FIRST


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        known = self.path == "/api/datasets/team/chat/revision/main"
        body = json.dumps({"id": "team/chat", "sha": self.server.commit} if known else {"error": "not found"}).encode()
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Tests have their own output."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


def _source(**fields: str) -> TableSource:
    return TableSource.model_validate({"path": "team/chat", "kind": "huggingface", **fields})


def test_a_branch_is_resolved_to_its_commit_and_new_data_is_another_key(hub: Hub) -> None:
    graph = {"data": Node("data", "prepare_data", DataConfig(procedures=None, sft=[_source()]), {}, 0)}
    first = pinned(graph)["data"].settings
    assert isinstance(first, DataConfig)
    assert first.sft[0].revision == FIRST
    assert pinned(graph)["data"].settings == first
    hub.commit = SECOND
    assert stage_key("prepare_data", pinned(graph)["data"].settings, {}, 0).key != stage_key("prepare_data", first, {}, 0).key


def test_a_commit_is_taken_as_it_is_and_files_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert commit_of(_source(revision=SECOND), "data.sft[0]") == SECOND
    graph = {"data": Node("data", "prepare_data", DataConfig(procedures=None, sft=[TableSource(path="rows.jsonl")]), {}, 0)}
    assert pinned(graph) == graph


def test_without_a_network_it_is_the_commit_that_was_fetched_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"data\.sft\[0\]: cannot tell which commit .* set revision to a commit"):
        commit_of(_source(), "data.sft[0]")
    refs = tmp_path / "datasets--team--chat" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(FIRST)
    assert commit_of(_source(), "data.sft[0]") == FIRST


def test_a_name_that_the_hub_does_not_know_is_one_line(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="team/other"):
        commit_of(TableSource(path="team/other", kind=SourceKind.huggingface), "data.sft[0]")


def test_a_folder_is_no_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set kind 'file'"):
        commit_of(TableSource(path=str(tmp_path), kind=SourceKind.huggingface), "data.sft[0]")
