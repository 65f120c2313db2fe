"""The store in a bucket: whole or not found, fetched once a node, verified, and a cache that keeps to its size."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_processing.errors import ConfigError
from tasks.runtime.contract.home import Home
from tasks.runtime.contract.request import StageRequest
from tasks.runtime.execution.start import Runtime, run_stage
from tasks.runtime.store import remote
from tasks.runtime.store.artifacts import Store
from tasks.runtime.store.base import ArtifactStore
from tasks.runtime.store.manifest import StoreError
from tasks.runtime.store.places import open_store, store_of
from tasks.runtime.store.remote import RemoteStore
from tests.runtime.published import KEY, KIND, manifest_of, publish, staged
from tests.runtime.s3_server import BUCKET, bucket, s3_server
from tests.runtime.stages import JoinConfig

ADDRESS = f"s3://{BUCKET}/a prefix/100%"
PLACE = f"{BUCKET}/a prefix/100%"
pytestmark = [pytest.mark.seconds, pytest.mark.timeout(120)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    with s3_server(monkeypatch) as server:
        yield server


def _node(tmp_path: Path, name: str = "here", cache_bytes: int = 1 << 30) -> RemoteStore:
    """The store as one machine sees it."""
    return RemoteStore(ADDRESS, tmp_path / name, cache_bytes)


@pytest.fixture
def store(server: object, tmp_path: Path) -> RemoteStore:
    return _node(tmp_path)


def _objects() -> set[str]:
    return {path.removeprefix(f"{PLACE}/{KIND}/{KEY}/") for path in bucket().find(f"{PLACE}/{KIND}")}


def test_what_one_machine_publishes_another_finds_and_fetches_whole(store: RemoteStore, tmp_path: Path) -> None:
    assert store.lookup(KIND, KEY) is None
    assert store.fetch(KIND, KEY) is None
    manifest = publish(store)
    other = _node(tmp_path, "there")
    assert other.lookup(KIND, KEY) == manifest
    assert list(other.manifests()) == [manifest]
    folder = other.fetch(KIND, KEY)
    assert folder == tmp_path / "there" / KIND / KEY
    assert (folder / "a.txt").read_text() == "hello"
    assert (folder / "sub" / "b.bin").read_bytes() == b"\0" * 1000


def test_the_address_of_an_artifact_is_a_folder_with_its_files_under_their_names(store: RemoteStore) -> None:
    uri = store.uri(publish(store))
    assert uri.startswith(f"{ADDRESS}/{KIND}/{KEY}/")
    place = uri.rpartition("/")[2]
    assert _objects() == {"manifest.json", f"{place}/a.txt", f"{place}/sub/b.bin"}
    assert bucket().cat_file(f"{PLACE}/{KIND}/{KEY}/{place}/a.txt") == b"hello"


def test_who_published_it_fetches_nothing(store: RemoteStore) -> None:
    publish(store)
    bucket().rm(f"{PLACE}/{KIND}/{KEY}/{store.uri(store.lookup(KIND, KEY)).rpartition('/')[2]}", recursive=True)  # type: ignore[arg-type]
    assert store.fetch(KIND, KEY) is not None


def test_one_file_is_fetched_without_the_others(store: RemoteStore, tmp_path: Path) -> None:
    publish(store)
    other = _node(tmp_path, "there")
    found = other.fetch_file(KIND, KEY, "a.txt")
    assert found is not None and found.read_text() == "hello"
    assert other.fetch_file(KIND, KEY, "c.txt") is None
    found.write_text("HELLO")
    again = other.fetch_file(KIND, KEY, "a.txt")
    assert again is not None and again.read_text() == "hello"
    assert not (tmp_path / "there" / KIND).exists()


def test_a_replaced_artifact_is_fetched_anew_and_its_old_files_are_gone(store: RemoteStore, tmp_path: Path) -> None:
    publish(store, "old")
    other = _node(tmp_path, "there")
    assert other.fetch(KIND, KEY)
    publish(store, "new", attempt=2)
    folder = other.fetch(KIND, KEY)
    assert folder is not None and (folder / "a.txt").read_text() == "new"
    assert len(_objects()) == 3
    publish(store, "new", attempt=3)
    assert len(_objects()) == 3, "the same files are not old ones"


def test_what_another_machine_publishes_is_listed_at_once(store: RemoteStore, tmp_path: Path) -> None:
    publish(store)
    other = _node(tmp_path, "there")
    assert len(list(other.manifests())) == 1
    elsewhere = bucket()  # knows nothing of what the store's own client has listed
    elsewhere.copy(f"{PLACE}/{KIND}/{KEY}/manifest.json", f"{PLACE}/{KIND}/{'m' * 64}/manifest.json")
    assert len(list(other.manifests())) == 2


def test_files_that_are_not_what_was_uploaded_are_never_handed_out(store: RemoteStore, tmp_path: Path) -> None:
    place = store.uri(publish(store)).rpartition("/")[2]
    bucket().pipe_file(f"{PLACE}/{KIND}/{KEY}/{place}/a.txt", b"HELLO")
    other = _node(tmp_path, "there")
    assert other.fetch(KIND, KEY) is None
    assert other.lookup(KIND, KEY) is None, "it is set aside, so that it is made again"
    assert list(other.manifests()) == []
    [reason] = [path for path in bucket().find(f"{PLACE}/.corrupt") if path.endswith("reason.txt")]
    assert b"content changed: a.txt" in bucket().cat_file(reason)
    assert publish(other, attempt=2)
    assert _node(tmp_path, "third").fetch(KIND, KEY)


def test_a_damaged_copy_on_this_disk_is_fetched_again(store: RemoteStore) -> None:
    publish(store)
    victim = store.root / KIND / KEY / "a.txt"
    victim.write_text("HELLO")
    folder = store.fetch(KIND, KEY)
    assert folder is not None and (folder / "a.txt").read_text() == "hello"
    assert not (store.root / ".corrupt").exists(), "what can be fetched again is not kept"
    assert store.lookup(KIND, KEY)


def _publish_in_child(root: Path, kill_at: int) -> None:
    """SIGKILL itself at the n-th thing it asks of the bucket."""
    store, left = RemoteStore(ADDRESS, root, 1 << 30), [kill_at]
    staging = staged(store, attempt=kill_at)
    manifest = manifest_of(store, staging, kill_at)
    ask = store._ask

    def counted(failed: str, call: Callable[[], object]) -> object:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return ask(failed, call)

    store._ask = counted  # type: ignore[assignment,method-assign]
    store.publish(staging, manifest)


@pytest.mark.slow
def test_killed_at_any_point_of_uploading_leaves_all_or_nothing(store: RemoteStore, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    found = []
    for kill_at in range(1, 12):
        child = context.Process(target=_publish_in_child, args=(tmp_path / "child", kill_at))
        child.start()
        child.join(60)
        other = _node(tmp_path, f"node{kill_at}")
        found.append(other.lookup(KIND, KEY) is not None)
        assert (other.fetch(KIND, KEY) is not None) is found[-1], f"half an artifact was found after {kill_at}"
        if child.exitcode == 0:
            break
    else:
        pytest.fail("the child never got through")
    assert found[:3] == [False, False, False]
    assert found[-1]


def test_many_who_want_the_same_fetch_it_once(store: RemoteStore, tmp_path: Path) -> None:
    publish(store)
    fetched: list[str] = []

    def fetch() -> Path | None:
        node = _node(tmp_path, "there")
        download = node._download

        def counted(manifest: object) -> str:
            fetched.append("once")
            return download(manifest)  # type: ignore[arg-type]

        node._download = counted  # type: ignore[method-assign,assignment]
        return node.fetch(KIND, KEY)

    with ThreadPoolExecutor(6) as pool:
        folders = [future.result() for future in [pool.submit(fetch) for _ in range(6)]]
    assert folders == [tmp_path / "there" / KIND / KEY] * 6
    assert fetched == ["once"]


def _keys(n: int) -> list[str]:
    return [str(number) * 64 for number in range(n)]


def _copies(root: Path) -> set[str]:
    return {folder.name[0] for folder in (root / KIND).glob("*")}


def test_the_cache_keeps_to_its_size_and_loses_what_was_used_longest_ago(store: RemoteStore, tmp_path: Path) -> None:
    keys = _keys(4)
    for key in keys:
        publish(store, key=key)  # 1005 bytes each
    for key in (*keys[:3], keys[0], keys[3]):  # a node object each: nothing stays in use
        time.sleep(0.01)
        assert _node(tmp_path, "there", cache_bytes=3100).fetch(KIND, key)
    assert _copies(tmp_path / "there") == {"0", "2", "3"}
    assert [place.name for place in (tmp_path / "there").iterdir() if not place.name.startswith(".")] == [KIND]
    assert list((tmp_path / "there" / ".staging").iterdir()) == []


def test_what_is_in_use_stays_however_small_the_cache_is(store: RemoteStore, tmp_path: Path) -> None:
    keys = _keys(3)
    for key in keys:
        publish(store, key=key)
    user = _node(tmp_path, "there", cache_bytes=0)
    folder = user.fetch(KIND, keys[0])
    assert _node(tmp_path, "there", cache_bytes=0).fetch(KIND, keys[1])
    assert _node(tmp_path, "there", cache_bytes=0).fetch(KIND, keys[2])
    assert folder is not None and (folder / "a.txt").read_text() == "hello"
    assert _copies(tmp_path / "there") == {"0", "2"}
    del user
    assert _node(tmp_path, "there", cache_bytes=0).fetch(KIND, keys[1])
    assert _copies(tmp_path / "there") == {"1"}


def test_room_is_made_of_others_where_what_was_used_longest_ago_is_in_use(store: RemoteStore, tmp_path: Path) -> None:
    keys = _keys(3)
    user = _node(tmp_path, "there", cache_bytes=2100)
    for key in keys:
        publish(store, key=key)
    assert user.fetch(KIND, keys[0])
    for key in keys[1:]:
        time.sleep(0.01)
        assert _node(tmp_path, "there", cache_bytes=2100).fetch(KIND, key)
    assert _copies(tmp_path / "there") == {"0", "2"}


def test_a_bucket_that_does_not_answer_is_an_error_and_not_an_absence(store: RemoteStore, server: object) -> None:
    publish(store)
    server.stop()  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match=r"ALIGNFLOW_STORE: s3://artifacts/a prefix/100% does not answer"):
        store.lookup(KIND, KEY)


def test_a_bucket_that_is_not_there_is_found_out_before_the_work(server: object, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written to"):
        RemoteStore("s3://no-such-bucket/x", tmp_path, 0).staging(KIND, KEY, 1)


def test_an_upload_is_tried_again(store: RemoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_UPLOAD_WAITS_S", (0.0, 0.0))
    upload, left = store._upload, [2]

    def fail_twice(staging: Path, manifest: object, there: object) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise StoreError("the network is away")
        upload(staging, manifest, there)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "_upload", fail_twice)
    publish(store)
    assert store.lookup(KIND, KEY)


def test_what_is_prepared_is_uploaded_once(store: RemoteStore) -> None:
    staging = staged(store)
    manifest = manifest_of(store, staging)
    store.prepare(staging, manifest)
    assert store.lookup(KIND, KEY) is None
    sent = {path: bucket().info(path)["LastModified"] for path in bucket().find(f"{PLACE}/{KIND}")}
    time.sleep(1.1)
    store.publish(staging, manifest, prepared=True)
    assert {path: bucket().info(path)["LastModified"] for path in sent} == sent


@pytest.mark.parametrize(
    ("given", "said"),
    [("nope://x/y", "nope.*not known"), ("s3://artifacts", None)],
)
def test_an_address_that_cannot_be_is_named(home: Home, monkeypatch: pytest.MonkeyPatch, given: str, said: str | None) -> None:
    monkeypatch.setenv("ALIGNFLOW_STORE", given)
    if said is None:
        assert isinstance(store_of(home), RemoteStore)
        monkeypatch.setenv("ALIGNFLOW_CACHE_GIB", "-1")
        said = "ALIGNFLOW_CACHE_GIB: got '-1'"
    with pytest.raises(ConfigError, match=said):
        store_of(home)


def test_a_folder_may_be_the_store_and_none_is_the_homes(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def root(store: ArtifactStore) -> Path:
        assert isinstance(store, Store) and store.address is None
        return store.root

    assert root(store_of(home)) == home.store
    for given in (str(tmp_path / "my store"), (tmp_path / "my store").as_uri()):
        monkeypatch.setenv("ALIGNFLOW_STORE", given)
        assert root(store_of(home)) == tmp_path / "my store"
    assert root(open_store(tmp_path / "x", None)) == tmp_path / "x"


def test_copies_may_lie_elsewhere_than_in_the_home(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIGNFLOW_STORE", ADDRESS)
    assert (store_of(home).address, store_of(home).root) == (ADDRESS, home.cache)
    monkeypatch.setenv("ALIGNFLOW_CACHE_GIB", "0")  # only what is in use
    monkeypatch.setenv("ALIGNFLOW_CACHE", str(tmp_path / "copies"))
    assert store_of(home).root == tmp_path / "copies"


def test_stages_run_from_one_machine_to_another_through_the_bucket(
    server: object, runtime: Runtime, count_request: Callable[..., StageRequest], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Count here, join there: what joins has only the bucket; and a third home finds both cached."""
    monkeypatch.setenv("ALIGNFLOW_STORE", ADDRESS)
    counted = asyncio.run(run_stage(count_request(label="x"), runtime))
    assert counted.ref.uri.startswith(f"{ADDRESS}/numbers/")
    join = StageRequest("tests.runtime.stages:JOIN", "join", JoinConfig(), "run", inputs={"counted": counted.ref})
    there = Runtime(Home.open(tmp_path / "there"), runtime.executor, runtime.settings)
    joined = asyncio.run(run_stage(join, there))
    assert not joined.cached
    folder = there.store.fetch(joined.ref.kind, joined.ref.key)
    assert folder is not None and (folder / "joined.txt").read_text() == "x-x"
    third = Runtime(Home.open(tmp_path / "third"), runtime.executor, runtime.settings)
    assert asyncio.run(run_stage(join, third)).cached
    assert not any(third.home.store.iterdir()) and not any(third.home.cache.iterdir())
    manifest = third.store.manifest(joined.ref.kind, joined.ref.key)
    assert manifest is not None and manifest.inputs == {"counted": counted.ref}
    assert json.loads((there.home.cache / "text" / joined.ref.key / "manifest.json").read_text())["key"] == joined.ref.key
