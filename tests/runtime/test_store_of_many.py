"""Many readers and publishers, of several people, at one store."""

from __future__ import annotations

import multiprocessing
import os
import stat
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from tasks.runtime.contract.home import Home
from tasks.runtime.execution.attempts import WorkFolder
from tasks.runtime.store.artifacts import Store
from tests.runtime.published import KEY, KIND, manifest_of, publish, staged

ALICE, BOB, GROUP = 61001, 61002, 61000
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes other users' names")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _look_up_together(store: Store, readers: int) -> list[object]:
    start = threading.Barrier(readers)

    def look() -> object:
        start.wait()
        return Store(store.root).lookup(KIND, KEY)

    with ThreadPoolExecutor(readers) as pool:
        return [future.result() for future in [pool.submit(look) for _ in range(readers)]]


def test_readers_of_a_corrupt_artifact_all_find_nothing_and_set_it_aside_once(store: Store) -> None:
    for round_ in range(10):
        publish(store, attempt=round_)
        (store.folder(KIND, KEY) / "a.txt").write_text("HELLO")
        assert _look_up_together(store, 8) == [None] * 8
        assert len(list((store.root / ".corrupt").glob("*.reason.txt"))) == round_ + 1


def _publish_until(root: Path, done: Event) -> None:
    store = Store(root)
    attempt = 2
    while not done.is_set():
        publish(store, text=f"{attempt % 10}" * 5, attempt=attempt)
        attempt += 1


def test_a_lookup_while_a_forced_publish_replaces_the_artifact_finds_one_of_them(store: Store) -> None:
    publish(store)
    context = multiprocessing.get_context("spawn")
    done = context.Event()
    publisher = context.Process(target=_publish_until, args=(store.root, done))
    publisher.start()
    try:
        attempts: set[int] = set()
        deadline = time.monotonic() + 60
        while len(attempts) < 30 and time.monotonic() < deadline:
            found = store.lookup(KIND, KEY)
            assert found is not None
            attempts.add(found.producer.attempt)
    finally:
        done.set()
        publisher.join(30)
    assert publisher.exitcode == 0
    assert len(attempts) == 30, "nothing was replaced while this looked"
    assert not (store.root / ".corrupt").exists()


@pytest.mark.parametrize(("umask", "root_mode", "folder", "file"), [(0o077, 0o2775, 0o2775, 0o664), (0o022, 0o700, 0o700, 0o600)])
def test_what_is_published_is_as_open_as_the_store(store: Store, umask: int, root_mode: int, folder: int, file: int) -> None:
    store.root.mkdir()
    store.root.chmod(root_mode)
    before = os.umask(umask)
    try:
        staging = staged(store)
        (staging / "a.txt").chmod(0o600)  # as libraries leave what they wrote under a temporary name
        store.publish(staging, manifest_of(store, staging))
        assert store.lookup(KIND, KEY)
    finally:
        os.umask(before)
    made = store.folder(KIND, KEY)
    for path in (store.root / ".locks", store.root / ".hashes", made.parent, made, made / "sub"):
        assert stat.S_IMODE(path.stat().st_mode) == folder, path
    for path in (made / "a.txt", made / "sub" / "b.bin", made / "manifest.json"):
        assert stat.S_IMODE(path.stat().st_mode) == file, path


def _as(user: int, work: Callable[[], object]) -> str:
    """What stopped `work` when another member of the group did it, with the umask most systems have; empty when nothing did."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.umask(0o022)
            os.setgroups([GROUP])
            os.setgid(GROUP)
            os.setuid(user)
            work()
        except BaseException:
            os.write(writer, traceback.format_exc()[-4000:].encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as stream:
        return stream.read()


@pytest.fixture
def group_folder(tmp_path: Path) -> Path:
    """A folder for two members of a group, that both can come to."""
    for place in (tmp_path, *tmp_path.parents):
        if place == Path("/tmp"):
            break
        place.chmod(0o755)
    folder = tmp_path / "group"
    folder.mkdir()
    os.chown(folder, ALICE, GROUP)
    folder.chmod(0o2775)
    return folder


@as_root
def test_two_people_share_a_home(group_folder: Path) -> None:
    """Alice publishes, Bob uses it, sets it aside when it is corrupt, and makes it again; then Alice uses his."""

    def store() -> Store:
        return Store(Home.open(group_folder).store)

    def attempt() -> None:
        work = WorkFolder.of(Home.open(group_folder).work, "count", KEY)
        with work.locked():
            work.begin("count", KEY, "subprocess", {}, fresh=False)

    def find() -> None:
        assert store().lookup(KIND, KEY)

    def find_corrupt() -> None:
        assert not store().lookup(KIND, KEY)

    for user, work in ((ALICE, lambda: publish(store())), (ALICE, attempt), (BOB, find), (BOB, attempt)):
        assert _as(user, work) == ""
    (store().folder(KIND, KEY) / "a.txt").write_text("other")
    for user, work in ((BOB, find_corrupt), (BOB, lambda: publish(store())), (ALICE, find), (ALICE, lambda: publish(store()))):
        assert _as(user, work) == ""
    newest = WorkFolder.of(Home.open(group_folder).work, "count", KEY).newest()
    assert newest is not None and newest.number == 2


@as_root
def test_a_home_that_one_may_only_read_is_read(group_folder: Path) -> None:
    home = Home.open(group_folder / "home")
    publish(Store(home.store))

    def find(expected: bool) -> None:
        seen = Home.open(home.root, to_read=True)
        assert (Store(seen.store).lookup(KIND, KEY) is not None) is expected
        assert not Store(seen.store).lookup(KIND, "m" * 64)
        assert not seen.presets.exists()

    assert _as(BOB, lambda: find(True)) == ""
    assert "cannot be written to; name a folder you may write to" in _as(BOB, lambda: Home.open(home.root))
    victim = Store(home.store).folder(KIND, KEY) / "a.txt"
    victim.write_text("other")
    assert _as(BOB, lambda: find(False)) == ""
    assert victim.exists(), "who may only read moves nothing"
