"""The key of a stage: what is in it, what is not, and what two keys say about each other."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_processing.config import DataConfig
from data_processing.errors import ConfigError
from rlhf_core.settings.online import OnlineConfig
from tasks.runtime.keys import closure
from tasks.runtime.keys.closure import Code
from tasks.runtime.keys.stage_key import canonical_json, explain_difference, flatten, stage_key
from tests.runtime.stages import CountConfig, JoinConfig

COUNT = "tests.runtime.stages:COUNT"
JOIN = "tests.runtime.stages:JOIN"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=5))
def test_the_order_of_fields_does_not_matter(value: dict[str, object]) -> None:
    backwards = dict(reversed(list(value.items())))
    assert canonical_json(value) == canonical_json(backwards)


@given(JSON, JSON)
def test_different_values_have_different_canonical_texts(a: object, b: object) -> None:
    assert (canonical_json(a) == canonical_json(b)) == (repr(_sorted(a)) == repr(_sorted(b)))


def _sorted(value: object) -> object:
    if isinstance(value, dict):
        return {k: _sorted(value[k]) for k in sorted(value)}
    return [_sorted(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("value", [{1, 2}, Path("x"), b"x", float("nan"), float("inf"), {1: "x"}, object()])
def test_what_json_cannot_say_is_an_error_that_names_the_place(value: object) -> None:
    with pytest.raises(ConfigError, match=r"\$\.outer\.inner"):
        canonical_json({"outer": {"inner": value}})


def test_the_place_of_what_json_cannot_say_is_named_in_a_list_too() -> None:
    with pytest.raises(ConfigError, match=r"\$\.outer\[1\]: cannot fingerprint a set"):
        canonical_json({"outer": [1, {1}]})


def test_the_canonical_text_of_a_value_never_changes() -> None:
    """Every key ever made is a hash of one."""
    assert canonical_json({"b": "größe", "a": [1, None, True, 1.5]}) == '{"a":[1,null,true,1.5],"b":"größe"}'


@given(
    st.fixed_dictionaries(
        {"step_s": st.floats(0, 10), "kill_at": st.integers(0, 9), "stall_after_s": st.floats(1, 99), "started_log": st.text()}
    )
)
def test_operational_fields_do_not_change_the_key(operational: dict[str, object]) -> None:
    assert stage_key(COUNT, CountConfig(**operational), {}, 0).key == stage_key(COUNT, CountConfig(), {}, 0).key


def test_everything_that_can_change_the_result_changes_the_key() -> None:
    keys = {
        stage_key(COUNT, CountConfig(), {}, 0).key,
        stage_key(COUNT, CountConfig(to=4), {}, 0).key,
        stage_key(COUNT, CountConfig(label="other"), {}, 0).key,
        stage_key(COUNT, CountConfig(), {}, 1).key,
        stage_key(JOIN, JoinConfig(), {"counted": "a"}, 0).key,
        stage_key(JOIN, JoinConfig(), {"counted": "b"}, 0).key,
        stage_key(JOIN, JoinConfig(), {"counted": "b", "extra": "c"}, 0).key,
    }
    assert len(keys) == 7


def test_the_difference_of_two_keys_is_told_by_field() -> None:
    old = stage_key(JOIN, JoinConfig(separator="-"), {"counted": "a"}, 0).description
    new = stage_key(JOIN, JoinConfig(separator="+"), {"counted": "b"}, 0).description
    assert explain_difference(old, new) == ['config.separator: "-" -> "+"', 'inputs.counted: "a" -> "b"']
    assert explain_difference(old, old) == []
    assert explain_difference({"a": 1}, {"a": 1.0, "b": None}) == ["a: 1 -> 1.0", "b: (absent) -> null"]


def test_a_long_value_is_told_by_its_beginning() -> None:
    [line] = explain_difference({"a": "x" * 200}, {"a": "x" * 78})
    assert line == f'a: "{"x" * 76}... -> "{"x" * 78}"'


def test_the_fields_of_a_description_keep_their_names() -> None:
    """They are hashed, and read in the manifests of other versions."""
    description = stage_key(COUNT, CountConfig(), {}, 7).description
    assert description.pop("code").keys() >= {"tests.runtime.stages"}
    assert description.pop("libraries").keys() == {"python"}
    assert description == {
        "stage": "count",
        "schema_version": 1,
        "config": {"to": 3, "label": "plain"},
        "inputs": {},
        "seed": 7,
        "user_code": {},
        "fingerprint": {"label_length": 5},
    }


def test_a_cluster_has_versions_of_its_own_by_any_spelling_of_a_name() -> None:
    there = Code(libraries={"python": "3.12", "Some_Thing": "1.0"})
    assert there.versions(("some-thing", "other")) == {"python": "3.12", "some-thing": "1.0", "other": "absent"}


def test_library_versions_are_in_the_description() -> None:
    description = stage_key(JOIN, JoinConfig(), {"counted": "a"}, 0).description
    assert set(description["libraries"]) == {"python", "pydantic"}


def test_inputs_and_config_are_checked_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"needs inputs \['counted'\]"):
        stage_key(JOIN, JoinConfig(), {}, 0)
    with pytest.raises(ConfigError, match=r"was given inputs \['other'\]"):
        stage_key(JOIN, JoinConfig(), {"counted": "a", "other": "b"}, 0)
    with pytest.raises(ConfigError, match="config is a CountConfig, expected JoinConfig"):
        stage_key(JOIN, CountConfig(), {"counted": "a"}, 0)


@pytest.mark.parametrize(
    ("name", "hint"), [("sfft", "did you mean 'sft'"), ("tests.runtime.stages:NOPE", "NOPE"), ("no.such:X", "no")]
)
def test_an_unknown_stage_is_an_error_with_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        stage_key(name, CountConfig(), {}, 0)


def test_flatten_keeps_lists_and_empty_mappings_as_values() -> None:
    assert flatten({"a": {"b": [1], "c": {}}, "d": 2}) == {"a.b": [1], "a.c": {}, "d": 2}


MODULES = {
    "__init__": "",
    "adapter": '''
        """Doc."""
        from tasks.runtime.contract.context import Stage
        from data_processing.settings import Settings

        class Nothing(Settings):
            """Doc."""

        def run(context):
            from closure_case.lazy import work  # imported late, as torch is
            work("closure_case.named:thing")

        STAGE = Stage(name="case", kind="case", config=Nothing, run=run)
    ''',
    "lazy": "from . import helper\ndef work(name):\n    return helper.VALUE\n",
    "helper": "VALUE = 1\n",
    "named": "def thing():\n    return 1\n",
    "stranger": "VALUE = 1\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with a stage whose code lies in several files."""
    import textwrap

    folder = tmp_path / "closure_case"
    folder.mkdir()
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    for name in [n for n in sys.modules if n.startswith("closure_case")]:
        del sys.modules[name]


def _case_key() -> tuple[str, set[str]]:
    from tasks.runtime.contract.registry import load_stage

    config = load_stage("closure_case.adapter:STAGE").config()
    key = stage_key("closure_case.adapter:STAGE", config, {}, 0)
    return key.key, set(key.description["code"])


def test_the_closure_reaches_late_relative_and_named_modules(package: Path) -> None:
    _, modules = _case_key()
    case = {"closure_case", "closure_case.adapter", "closure_case.lazy", "closure_case.helper", "closure_case.named"}
    assert case <= modules
    assert "data_processing.settings" in modules
    assert not any(name.startswith("tasks.runtime") or name == "closure_case.stranger" for name in modules)


def test_what_is_imported_from_several_places_hides_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"crossed_case_{number}" for number in range(5)]
    for number, name in enumerate(names):
        (tmp_path / f"{name}.py").write_text("".join(f"import {other}\n" for other in ("os", *names[number + 1 :])))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Code().digests(names[0]).keys() == set(names)


@pytest.mark.parametrize("name", ["adapter", "lazy", "helper", "named"])
def test_a_change_of_code_in_the_closure_changes_the_key(package: Path, name: str) -> None:
    before, _ = _case_key()
    path = package / f"{name}.py"
    path.write_text(path.read_text() + "\nMORE = 2\n")
    assert _case_key()[0] != before


def test_comments_docstrings_and_strangers_do_not_change_the_key(package: Path) -> None:
    before, _ = _case_key()
    (package / "helper.py").write_text('"""What this is."""\n\nVALUE = 1  # why\n')
    (package / "stranger.py").write_text("VALUE = 2\n")
    assert _case_key()[0] == before


def test_what_was_parsed_is_kept_for_the_next_process_and_only_what_has_changed_is_parsed(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, parsed = tmp_path / "parsed.json", list[str]()
    parse = closure._parse

    def told(source: bytes, path: Path, *how: Any) -> Any:
        parsed.append(path.stem)
        return parse(source, path, *how)

    def in_another_process() -> dict[str, str]:
        parsed.clear()
        closure._PARSED.clear()
        closure._read.cache_clear()
        return Code(parsed=file).digests("closure_case.adapter")

    monkeypatch.setattr(closure, "_parse", told)
    first = in_another_process()
    assert {"adapter", "lazy", "helper", "named"} < set(parsed)
    assert in_another_process() == first and parsed == []
    (package / "helper.py").write_text("VALUE = 2\n")
    changed = in_another_process()
    assert parsed == ["helper"]
    assert {name for name in first if first[name] != changed[name]} == {"closure_case.helper"}
    for damaged in ("{", "[]", '{"a": 1}', ""):
        file.write_text(damaged)
        assert in_another_process() == changed
    file.unlink()
    file.mkdir()
    assert in_another_process() == changed, "where nothing can be kept, nothing is"


def test_a_reward_function_brings_what_the_user_wrote_and_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "desk_package").mkdir()
    files = {
        "desk_rewards_case.py": "import numpy\nfrom desk_words_case import polite\ndef score(): ...\n",
        "desk_words_case.py": "def polite():\n    from desk_package.deep import depth\n",
        "desk_package/__init__.py": "",
        "desk_package/deep.py": "depth = 1\n",
        "desk_stranger_case.py": "depth = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = OnlineConfig.model_validate({"rewards": [{"kind": "python", "function": "desk_rewards_case:score"}]})
    inputs = {"model": "1" * 64, "data": "2" * 64}
    before = stage_key("online", config, inputs, 0)
    assert set(before.description["user_code"]["desk_rewards_case"]) == files.keys() - {"desk_stranger_case.py"}
    (tmp_path / "desk_package" / "deep.py").write_text("depth = 2\n")
    changed = explain_difference(before.description, stage_key("online", config, inputs, 0).description)
    assert len(changed) == 1 and changed[0].startswith("user_code.desk_rewards_case.desk_package/deep.py: ")


def test_a_reward_function_of_a_library_is_held_by_its_own_package() -> None:
    found = Code().file_digests("packaging.version")
    assert {"packaging/__init__.py", "packaging/version.py"} <= found.keys()
    assert all(name.startswith("packaging/") for name in found)


def test_a_module_that_is_no_python_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_case.py").write_text("def score(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"broken_case\.py is not Python that can be read: invalid syntax"):
        Code().file_digests("broken_case")


def test_where_a_source_lies_is_not_in_the_key_and_is_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = []
    for name in ("here", "there"):
        folder = tmp_path / name / "data"
        folder.mkdir(parents=True)
        (folder / "chat.jsonl").write_text('{"prompt": "2 + 2?", "response": "4"}\n')
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("HOME", str(tmp_path / name))
        for path in ("data/chat.jsonl", "~/data/chat.jsonl", "jsonl@data"):
            config = DataConfig.model_validate({"procedures": None, "sft": [{"path": path}]})
            assert config.sft[0].path == f"{'jsonl@' * path.startswith('jsonl@')}{folder}{'/chat.jsonl' * path.endswith('l')}"
            keys.append(stage_key("prepare_data", config, {}, 0).key)
    assert keys[:3] == keys[3:]
    assert DataConfig.model_validate({"sft": [{"path": "org/name", "kind": "huggingface"}]}).sft[0].path == "org/name"
