"""The store: whole or not there, verified before use, never a half artifact whatever dies when."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from data_processing.errors import ConfigError, SupersededError
from tasks.runtime.execution.attempts import WorkFolder
from tasks.runtime.keys.stage_key import StageKey
from tasks.runtime.store.adopt import adopt
from tasks.runtime.store.artifacts import Store
from tasks.runtime.store.manifest import Adoption, Manifest
from tests.runtime.published import KEY, KIND, manifest_of, publish, staged
from tests.runtime.stages import COUNT


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_was_published_is_found_whole(store: Store) -> None:
    assert store.lookup(KIND, KEY) is None
    assert store.fetch(KIND, KEY) is None
    manifest = publish(store)
    assert store.lookup(KIND, KEY) == manifest
    assert {f.path for f in manifest.files} == {"a.txt", "sub/b.bin"}
    assert manifest.size == 1005
    assert store.fetch(KIND, KEY) == store.folder(KIND, KEY)
    assert store.fetch_file(KIND, KEY, "a.txt") == store.folder(KIND, KEY) / "a.txt"
    assert store.fetch_file(KIND, KEY, "c.txt") is None
    assert store.verify(KIND, KEY, full=True) == []


@pytest.mark.parametrize("damage", ["truncate", "change", "remove", "manifest"])
def test_a_corrupt_artifact_is_set_aside_with_the_reason(store: Store, damage: str) -> None:
    publish(store)
    victim = store.folder(KIND, KEY) / ("manifest.json" if damage == "manifest" else "sub/b.bin")
    if damage == "remove":
        victim.unlink()
    elif damage == "truncate":
        os.truncate(victim, 500)
    else:
        victim.write_bytes(b"\1" * victim.stat().st_size)
    assert store.lookup(KIND, KEY) is None
    assert not store.folder(KIND, KEY).exists()
    reasons = list((store.root / ".corrupt").glob("*.reason.txt"))
    assert len(reasons) == 1
    assert ("manifest" if damage == "manifest" else "b.bin") in reasons[0].read_text()


def test_an_unchanged_file_is_not_hashed_again_unless_asked(store: Store) -> None:
    publish(store)
    victim = store.folder(KIND, KEY) / "sub" / "b.bin"
    stat = victim.stat()
    with victim.open("r+b") as stream:
        stream.write(b"\1")
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert store.verify(KIND, KEY) == []
    assert store.verify(KIND, KEY, full=True) == ["sub/b.bin: content changed"]


def test_what_a_stage_made_is_hashed_whatever_is_remembered(store: Store) -> None:
    staging = staged(store)
    path = staging / "a.txt"
    stat, first = path.stat(), manifest_of(store, staging)
    with path.open("r+b") as stream:
        stream.write(b"H")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert manifest_of(store, staging).sha256 != first.sha256


def test_hashes_are_kept_once_and_made_again_where_they_are_lost(store: Store) -> None:
    publish(store)
    [kept] = (store.root / ".hashes").iterdir()
    assert store.lookup(KIND, KEY)
    first = kept.stat().st_mtime_ns, kept.stat().st_ino
    assert store.lookup(KIND, KEY)
    assert (kept.stat().st_mtime_ns, kept.stat().st_ino) == first
    kept.write_text("{")
    assert store.lookup(KIND, KEY)
    kept.unlink()
    assert store.lookup(KIND, KEY)
    assert kept.is_file()


@pytest.mark.parametrize("path", ["../a.txt", "sub/../../a.txt", "/etc/hostname"])
def test_a_manifest_that_names_files_elsewhere_is_damaged(store: Store, path: str) -> None:
    publish(store)
    manifest = store.folder(KIND, KEY) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"sub/b.bin"', f'"{path}"'))
    assert store.manifest(KIND, KEY) is None


def test_the_files_of_a_linked_folder_are_files_of_the_artifact(store: Store, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(b"w" * 100)
    staging = staged(store)
    (staging / "model").symlink_to(tmp_path / "model")
    assert {file.path for file in manifest_of(store, staging).files} == {"a.txt", "model/weights.bin", "sub/b.bin"}


def test_all_of_an_artifact_is_on_the_disk_before_it_can_be_found(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.bin").write_bytes(b"w" * 100)
    staging = staged(store)
    (staging / "weights.bin").symlink_to(tmp_path / "weights.bin")
    manifest = manifest_of(store, staging)
    synced: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(os.fstat(descriptor).st_ino))
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    store.prepare(staging, manifest)
    assert {path.stat().st_ino for path in (staging, *staging.rglob("*")) if path.name != "manifest.json"} - synced == {
        (tmp_path / "weights.bin").stat().st_ino
    }, "what a link leads to is somebody else's"
    store.publish(staging, manifest, prepared=True)
    assert (store.root / KIND).stat().st_ino in synced
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_linked_files_are_verified_where_they_lie(store: Store, tmp_path: Path) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"w" * 100)
    staging = staged(store)
    (staging / "weights.bin").symlink_to(weights)
    store.publish(staging, manifest_of(store, staging))
    assert store.lookup(KIND, KEY) is not None
    weights.write_bytes(b"v" * 100)
    assert store.verify(KIND, KEY) == ["weights.bin: content changed"]


def test_the_same_files_have_the_same_hash_whoever_made_them(store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "other")
    assert publish(store).sha256 == publish(other, attempt=7).sha256
    assert publish(other, text="bye", attempt=8).sha256 != publish(store, attempt=2).sha256


def test_a_stage_may_not_write_themanifest_of(store: Store) -> None:
    staging = staged(store)
    (staging / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"manifest\.json"):
        store.describe_files(KIND, KEY, staging)


def test_a_replaced_artifact_is_whole_and_leaves_nothing_behind(store: Store) -> None:
    publish(store, "old")
    publish(store, "new", attempt=2)
    assert (store.folder(KIND, KEY) / "a.txt").read_text() == "new"
    assert list((store.root / ".staging").iterdir()) == []


def test_killed_at_any_point_of_publishing_leaves_all_or_nothing(store: Store) -> None:
    """A child publishes and is killed at its n-th durable operation, for every n until it survives."""
    seen = []
    for kill_at in range(1, 60):
        survived = _publish_in_child(store, kill_at)
        found = store.lookup(KIND, KEY, full=True)
        seen.append(found is not None)
        assert not (store.root / ".corrupt").exists(), f"half an artifact was visible after operation {kill_at}"
        if survived:
            assert found is not None
            break
    else:
        pytest.fail("the child never got through")
    assert False in seen
    assert len(seen) > 6


def _publish_in_child(store: Store, kill_at: int) -> bool:
    staging = staged(store, attempt=kill_at)
    manifest = manifest_of(store, staging, attempt=kill_at)
    pid = os.fork()
    if pid == 0:
        _die_at(kill_at)
        store.publish(staging, manifest)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


def _die_at(kill_at: int) -> None:
    """In the child: SIGKILL itself before the n-th fsync or rename."""
    left = [kill_at]

    def audit(operation: str, arguments: tuple[Any, ...]) -> None:
        if operation == "os.rename" or (operation == "open" and isinstance(arguments[0], (str, Path))):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    import sys

    sys.addaudithook(audit)


def test_only_the_newest_attempt_may_publish(tmp_path: Path) -> None:
    work = WorkFolder.of(tmp_path, "count", KEY)
    with work.locked():
        first = work.begin("count", KEY, "subprocess", {}, fresh=False)
    with work.owned_by(first.token):
        pass
    with work.locked():
        second = work.begin("count", KEY, "subprocess", {}, fresh=False)
    with pytest.raises(SupersededError, match="attempt 2 owns this key"), work.owned_by(first.token):
        pytest.fail("a superseded attempt came through")
    assert (second.number, second.first_attempt, second.job_id) == (2, 2, f"count-{KEY[:12]}-a2")


def test_attempts_remember_where_they_began_and_forget_it_on_a_fresh_start(tmp_path: Path) -> None:
    work = WorkFolder.of(tmp_path, "count", KEY)
    numbers = []
    for fresh in (False, False, True, False):
        with work.locked():
            attempt = work.begin("count", KEY, "subprocess", {}, fresh=fresh)
        numbers.append((attempt.number, attempt.first_attempt))
        (work.resume / "checkpoint").write_text("x")
    assert numbers == [(1, 1), (2, 1), (3, 3), (4, 3)]


def _made_from(store: Store, data: str) -> tuple[Manifest, StageKey]:
    """A published artifact that was made from the input with key `data`, and the key of the same made from the input "new"."""
    staging = staged(store)
    old = {"config": {"to": 3}, "inputs": {"data": data}}
    manifest = manifest_of(store, staging).model_copy(update={"description": old})
    store.publish(staging, manifest)
    return manifest, StageKey(COUNT, "n" * 64, {**old, "inputs": {"data": "new"}})


def test_what_is_made_from_a_result_that_was_taken_over_is_taken_over_too(store: Store) -> None:
    old, key = _made_from(store, "old")
    data = publish(store, "data", key="d" * 64).model_copy(update={"adopted": Adoption(key="old", changed=["code.x"], at=1.0)})
    ref = adopt(store, key, old, {"data": data})
    made = store.lookup(KIND, key.key, full=True)
    assert made is not None and made.adopted is not None
    assert (ref.key, made.files, made.description) == (key.key, old.files, key.description)
    assert (made.adopted.key, made.adopted.changed) == (old.key, ["inputs.data"])
    assert made.inputs["data"].key == data.key


@pytest.mark.parametrize("adopted", [None, Adoption(key="another", changed=["code.x"], at=1.0)])
def test_what_is_made_from_another_input_is_not_taken_over(store: Store, adopted: Adoption | None) -> None:
    old, key = _made_from(store, "old")
    data = publish(store, "data", key="d" * 64).model_copy(update={"adopted": adopted})
    with pytest.raises(ConfigError, match=r'differs in more than code: inputs.data: "old" -> "new"; only'):
        adopt(store, key, old, {"data": data})
    assert store.lookup(KIND, key.key) is None


def test_what_is_no_longer_there_is_not_taken_over(store: Store) -> None:
    old, key = _made_from(store, "new")
    (store.folder(KIND, KEY) / "a.txt").write_text("HELLO")
    with pytest.raises(ConfigError, match="no longer in the store"):
        adopt(store, key, old, {})
