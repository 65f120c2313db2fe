"""A service as a reward: every form is asked and read right, and what fails fails alone, for a while or for good."""

from __future__ import annotations

import math
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_processing.errors import ConfigError
from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.rewards.build import Around, build_scorer
from rlhf_core.rewards.compose import Retries
from rlhf_core.rewards.services import exchange
from rlhf_core.rewards.services.exchange import _retry_after_s
from rlhf_core.settings.rewards.services import HttpReward
from rlhf_core.settings.training import EngineSettings
from tests.rewards.scripted_server import Asked, Reply, ScriptedServer


def responses(*texts: str, **columns: Any) -> list[ScoredResponse]:
    prompt = [{"role": "user", "content": "hi"}]
    return [ScoredResponse(f"p{i}", prompt, f"l{i}", [1, 2], [3, 4], text, columns) for i, text in enumerate(texts)]


def scorer(url: str, *, around: dict[str, Any] | None = None, **settings: Any) -> Any:
    given = {"policy_model": Path("unused"), "engine": EngineSettings(), "retries": Retries(2, 0.02), **(around or {})}
    return Asking(build_scorer(HttpReward(url=url, **settings), Around(**given)))


class Asking:
    """A scorer with what it said last."""

    def __init__(self, scorer: Any) -> None:
        self.scorer = scorer

    @property
    def notes(self) -> Any:
        return self.scorer.notes

    def score(self, responses: list[ScoredResponse]) -> Any:
        said = Scores.of(self.scorer.score(responses))
        self.failures, self.metrics, self.tokens = said.failures, said.metrics, said.tokens
        return said.rewards


def lengths(asked: Asked) -> Reply:
    """A service that gives each response its length."""
    return Reply({"rewards": [len(text) for text in asked.body["responses"]]})


def after(count: int, first: Reply, then: Any = lengths) -> Any:
    """Answer `first` that many times, then as `then`."""
    left = iter(range(count))
    return lambda asked: first if next(left, None) is not None else then(asked)


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=9), batch_size=st.integers(1, 5), in_flight=st.integers(1, 3))
@settings(max_examples=15)
def test_order_is_kept_however_requests_are_cut(sizes: list[int], batch_size: int, in_flight: int) -> None:
    with ScriptedServer(lengths) as server:
        reward = scorer(server.url, batch_size=batch_size, in_flight=in_flight)
        assert reward.score(responses(*["x" * size for size in sizes])) == sizes
        assert len(server.asked) == math.ceil(len(sizes) / batch_size)
        assert reward.failures == [None] * len(sizes)


def test_the_own_form_says_all_that_a_function_is_told() -> None:
    with ScriptedServer(lengths) as server:
        reward = scorer(server.url)
        [first] = responses("a", level=3)
        reward.score([first, ScoredResponse("q", first.prompt, None, [1], [2], "bb", finish_reason="length")])
    assert server.asked[0].body == {
        "prompts": [[{"role": "user", "content": "hi"}]] * 2,
        "responses": ["a", "bb"],
        "labels": ["l0", None],
        "columns": {"level": [3, None]},
        "finish_reasons": ["stop", "length"],
    }


def test_entries_are_what_a_python_function_may_return() -> None:
    entries = [1, None, {"score": 2.5, "depth": 4, "token_rewards": [0.5, 0]}, {"reward": None}, math.nan, 3]
    answer = {"rewards": entries, "failures": [None, None, None, None, None, "the grader crashed"]}
    with ScriptedServer(lambda _: Reply(answer)) as server:
        reward = scorer(server.url)
        found = reward.score(responses(*"abcdef"))
    assert found[:4] == [1.0, None, 2.5, None]
    assert all(map(math.isnan, found[4:]))
    assert reward.failures == [None] * 4 + [f"{server.url} gave NaN", "the grader crashed"]
    assert reward.metrics == {"depth": [None, None, 4.0, None, None, None]}
    assert reward.tokens == [None, None, [0.5, 0.0], None, None, None]


def test_openrlhf_is_asked_with_the_text_of_the_very_tokens(tmp_path: Path) -> None:
    from tests.tiny_models import tiny_tokenizer  # brings torch, which nothing else here needs

    tokenizer = tiny_tokenizer("llama")
    tokenizer.save_pretrained(tmp_path)
    prompt, answer = (tokenizer.encode(text, add_special_tokens=False) for text in ("<|im_start|>user\nhi", "yes<|im_end|>"))
    with ScriptedServer(lambda _: Reply({"rewards": [0.25], "extra_logs": {}})) as server:
        reward = scorer(server.url, form="openrlhf", around={"policy_model": tmp_path})
        assert reward.score([ScoredResponse("p", [], "right", prompt, answer, "yes")]) == [0.25]
    text = "<|im_start|>user\nhi"
    assert server.asked[0].body == {"query": [f"{text}yes<|im_end|>"], "prompts": [text], "labels": ["right"]}


def test_openrlhf_may_be_tried_before_there_is_a_policy() -> None:
    with ScriptedServer(lambda _: Reply({"rewards": [1]})) as server:
        assert scorer(server.url, form="openrlhf", around={"policy_model": Path()}).score(responses("a")) == [1.0]
    assert server.asked[0].body == {"query": ["hi\na"], "prompts": ["hi"], "labels": ["l0"]}


def test_openrlhf_without_a_tokenizer_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"form 'openrlhf' needs .*tokenizer\.json"):
        scorer("http://127.0.0.1:1/", form="openrlhf", around={"policy_model": tmp_path})


def test_vllm_scores_pairs_of_texts_before_any_activation() -> None:
    data = [{"index": 1, "object": "score", "score": -2.0}, {"index": 0, "object": "score", "score": 7.5}]
    with ScriptedServer(lambda _: Reply({"object": "list", "data": data})) as server:
        assert scorer(server.url, form="vllm_score", model="rm").score(responses("a", "b")) == [7.5, -2.0]
    assert server.asked[0].body == {"model": "rm", "text_1": ["hi", "hi"], "text_2": ["a", "b"], "use_activation": False}


def test_several_turns_stand_under_their_roles() -> None:
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    with ScriptedServer(lambda _: Reply({"data": [{"index": 0, "score": 1}]})) as server:
        scorer(server.url, form="vllm_score").score([ScoredResponse("p", turns, None, [1], [2], "a")])
    assert server.asked[0].body["text_1"] == ["System:\nbe brief\n\nUser:\nhi"]


def test_vllm_classifies_the_tokens_themselves() -> None:
    with ScriptedServer(lambda _: Reply({"data": [{"index": 0, "probs": [1.5], "num_classes": 1}]})) as server:
        assert scorer(server.url, form="vllm_classify").score(responses("a")) == [1.5]
    assert server.asked[0].body == {"input": [[1, 2, 3, 4]], "use_activation": False}


@pytest.mark.parametrize(
    ("form", "answer", "said"),
    [
        ("alignflow", b"<html>busy</html>", "no JSON"),
        ("alignflow", b"[" * 100_000, "no JSON"),
        ("alignflow", b"\xff\xfe\x00", "no JSON"),
        ("alignflow", [1.0], "has no 'rewards'"),
        ("alignflow", {"scores": [1.0]}, "has no 'rewards'"),
        ("alignflow", {"rewards": [1.0, 2.0]}, "returned 2 numbers for 1 responses"),
        ("alignflow", {"rewards": ["1.0"]}, "is a text"),
        ("alignflow", {"rewards": 1.0}, "must return a list"),
        ("alignflow", {"rewards": [[1.0]]}, "must return a list"),
        ("alignflow", {"rewards": [{"score": 1, "token_rewards": [1.0]}]}, "1 values for 2 tokens"),
        ("alignflow", {"rewards": [1.0], "failures": []}, "not one a response"),
        ("vllm_score", {"data": {"score": 1}}, "no list"),
        ("vllm_score", {"data": [{"index": 5, "score": 1}]}, "indices"),
        ("vllm_score", {"data": [{"index": 0}]}, "has no 'score'"),
        ("vllm_classify", {"data": [{"index": 0, "probs": [0.5, 0.5]}]}, "not classes"),
    ],
)
def test_an_answer_of_another_form_makes_its_responses_invalid_and_is_not_asked_again(form: str, answer: Any, said: str) -> None:
    with ScriptedServer(lambda _: Reply(answer)) as server:
        reward = scorer(server.url, form=form)
        assert [math.isnan(value) for value in reward.score(responses("a"))] == [True]
    assert said in reward.failures[0] and server.url in reward.failures[0]
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 408, 409, 425, 429])
def test_what_fails_for_a_while_is_asked_again(status: int) -> None:
    with ScriptedServer(after(2, Reply("busy", status))) as server:
        assert scorer(server.url).score(responses("abc")) == [3.0]
    assert len(server.asked) == 3


def test_a_batch_whose_tries_are_used_up_fails_alone() -> None:
    def script(asked: Asked) -> Reply:
        return Reply("down", 503) if "bb" in asked.body["responses"] else lengths(asked)

    with ScriptedServer(script) as server:
        reward = scorer(server.url, batch_size=1)
        found = reward.score(responses("a", "bb", "ccc"))
    assert found[0] == 1.0 and math.isnan(found[1]) and found[2] == 3.0
    assert 'failed 3 times in a row, at last with: HTTP status 503: "down"' in reward.failures[1]
    assert reward.failures[::2] == [None, None]


def test_a_service_is_given_the_time_it_asks_for() -> None:
    with ScriptedServer(after(1, Reply("slow down", 429, {"Retry-After": "1"}))) as server:
        began = time.monotonic()
        assert scorer(server.url).score(responses("a")) == [1.0]
        assert time.monotonic() - began >= 1.0


@pytest.mark.parametrize("value", [None, "", "soon", "-3", "Wed, 99 Foo 2020"])
def test_a_retry_after_that_says_nothing_is_no_time(value: str | None) -> None:
    assert _retry_after_s(value) == 0.0


def test_a_retry_after_may_be_a_date() -> None:
    assert _retry_after_s("Wed, 01 Jan 2020 00:00:00 GMT") < 0
    assert _retry_after_s("Wed, 01 Jan 2200 00:00:00 GMT") > 1e9


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 413, 422])
def test_what_no_try_can_mend_names_url_status_and_reason(status: int) -> None:
    with ScriptedServer(lambda _: Reply(b"unknown field 'prompts'\nand more", status)) as server:
        reward = scorer(server.url, batch_size=1)
        with pytest.raises(ConfigError, match=f"HTTP status {status}: unknown field 'prompts'") as caught:
            reward.score(responses("a", "b", "c"))
    assert server.url in str(caught.value) and "and more" not in str(caught.value)


def test_a_response_that_a_working_service_refuses_fails_alone() -> None:
    def script(asked: Asked) -> Reply:
        return Reply(b"too long", 400) if asked.body["responses"] == ["bb"] else lengths(asked)

    with ScriptedServer(script) as server:
        reward = scorer(server.url, batch_size=1, in_flight=1)
        assert math.isnan(reward.score(responses("bb", "a"))[0])
        assert "too long" in reward.failures[0]
        assert math.isnan(reward.score(responses("bb"))[0])


def test_a_redirect_is_not_followed() -> None:
    with ScriptedServer(lambda _: Reply("", 307, {"Location": "http://169.254.169.254/"})) as server:
        reward = scorer(server.url)
        with pytest.raises(ConfigError, match=r"redirects to http://169\.254\.169\.254/ .* not followed"):
            reward.score(responses("a"))


def test_a_time_out_is_for_the_whole_answer() -> None:
    release = threading.Event()

    def script(asked: Asked) -> Reply:
        release.wait(5)
        return lengths(asked)

    with ScriptedServer(script) as server:
        reward = scorer(server.url, timeout_s=0.1, around={"retries": Retries(1, 0.01)})
        assert math.isnan(reward.score(responses("a"))[0])
        assert "no answer within 0.1 s" in reward.failures[0]
        release.set()
    assert len(server.asked) == 2


def test_an_answer_that_comes_in_drops_is_given_up() -> None:
    def drops(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        with suppress(OSError):
            for _ in range(100):
                connection.sendall(b" ")
                time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        answering = threading.Thread(target=lambda: drops(listening.accept()[0]))
        answering.start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        reward = scorer(url, timeout_s=0.3, around={"retries": Retries(0)})
        assert math.isnan(reward.score(responses("a"))[0])
    assert "no answer within 0.3 s" in reward.failures[0]
    answering.join()


def test_an_endless_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_LARGEST_ANSWER_BYTES", 1 << 20)
    with ScriptedServer(lambda _: Reply(b"[" + b" " * (1 << 21))) as server:
        reward = scorer(server.url)
        assert math.isnan(reward.score(responses("a"))[0])
    assert "answered with more than 1 MiB" in reward.failures[0]


def test_what_no_try_can_mend_ends_the_others_that_wait() -> None:
    def script(asked: Asked) -> Reply:
        return Reply("no", 401) if asked.body["responses"] == ["no"] else Reply("busy", 503, {"Retry-After": "30"})

    with ScriptedServer(script) as server:
        reward, began = scorer(server.url, batch_size=1), time.monotonic()
        with pytest.raises(ConfigError, match="HTTP status 401"):
            reward.score(responses("yes", "yes", "no"))
    assert time.monotonic() - began < 10


def test_a_round_ends_within_its_time() -> None:
    with ScriptedServer(lambda _: Reply("busy", 503)) as server:
        reward = scorer(server.url, batch_size=1, in_flight=1, around={"retries": Retries(1000, 30.0), "limit_s": 0.5})
        began = time.monotonic()
        assert all(map(math.isnan, reward.score(responses("a", "b"))))
        assert time.monotonic() - began < 5
    assert "times in a row" in reward.failures[0]


def test_no_more_requests_are_in_flight_than_are_allowed() -> None:
    now, most, lock = 0, 0, threading.Lock()

    def script(asked: Asked) -> Reply:
        nonlocal now, most
        with lock:
            now, most = now + 1, max(most, now + 1)
        time.sleep(0.03)
        with lock:
            now -= 1
        return lengths(asked)

    with ScriptedServer(script) as server:
        reward = scorer(server.url, batch_size=1, in_flight=3)
        calls = [threading.Thread(target=reward.score, args=(responses(*"abcdefghi"),)) for _ in range(3)]
        for call in calls:
            call.start()
        for call in calls:
            call.join()
    assert len(server.asked) == 27
    assert 1 < most <= 3


@pytest.mark.seconds
def test_a_service_that_is_started_again_on_its_port_loses_nothing() -> None:
    with ScriptedServer(lengths) as server:
        reward = scorer(server.url, around={"retries": Retries(8, 0.05)})
        assert reward.score(responses("a")) == [1.0]
    found: list[float] = []
    asking = threading.Thread(target=lambda: found.extend(reward.score(responses("bb"))))
    asking.start()
    time.sleep(0.2)
    with ScriptedServer(lengths, server.port):
        asking.join()
    assert found == [2.0]


def test_nobody_at_the_port_makes_responses_invalid() -> None:
    with ScriptedServer(lengths) as server:
        pass
    reward = scorer(server.url)
    assert math.isnan(reward.score(responses("a"))[0])
    assert "ConnectError" in reward.failures[0]


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RM_KEY", "sk-secret\n")
    with ScriptedServer(lambda asked: Reply(f"wrong key {asked.headers['Authorization']}", 401)) as server:
        reward = scorer(server.url, key_from="RM_KEY")
        with pytest.raises(ConfigError, match=r"401: \"wrong key Bearer \*\*\*\"") as caught:
            reward.score(responses("a"))
    assert server.asked[0].headers["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "said"), [(None, "is not set"), (" ", "is not set"), ("sk\u00e9y", "may"), ("a\nb", "may"), ("a b", "may")]
)
def test_a_key_that_cannot_be_sent_is_named_by_its_variable(
    value: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RM_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("RM_KEY", value)
    with pytest.raises(ConfigError, match=f"key_from='RM_KEY'.*{said}") as caught:
        scorer("http://127.0.0.1:1/", key_from="RM_KEY")
    assert not value or not value.strip() or value not in str(caught.value)


def test_proxies_of_the_environment_are_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(lambda _: Reply({"rewards": [666]})) as proxy, ScriptedServer(lengths) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        assert scorer(server.url).score(responses("a")) == [1.0]
    assert proxy.asked == []


def test_a_host_that_is_not_allowed_is_never_asked() -> None:
    with pytest.raises(ConfigError, match=r"rewards: kind 'http': url: .*'rm\.example\.com' is not allowed"):
        scorer("https://rm.example.com/rewards")


def test_a_key_in_the_open_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RM_KEY", "k")
    allowed = {"allowed_hosts": ("10.9.8.7",)}
    assert "unencrypted" in scorer("http://10.9.8.7/", key_from="RM_KEY", around=allowed).notes[0]
    assert scorer("https://10.9.8.7/", key_from="RM_KEY", around=allowed).notes == ()
    assert scorer("http://127.0.0.1/", key_from="RM_KEY").notes == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "rm.example.com"},
        {"url": "http://me:pw@rm.example.com/"},
        {"in_flight": 0},
        {"timeout_s": 0},
        {"batch_size": 0},
        {"form": "other"},
        {"key_from": "not a name"},
    ],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HttpReward(**{"url": "http://127.0.0.1:8765/rewards", **wrong})


def test_how_a_service_is_asked_changes_no_key() -> None:
    one = HttpReward(url="http://127.0.0.1:1/", key_from="A", in_flight=1, timeout_s=1, batch_size=1)
    other = HttpReward(url="http://127.0.0.1:1/", key_from="B", in_flight=2, timeout_s=2, batch_size=2)
    assert one.result_fields() == other.result_fields()
    assert one.result_fields() != HttpReward(url="http://127.0.0.1:2/").result_fields()
