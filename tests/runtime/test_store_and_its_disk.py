"""Only other bytes are corruption: other versions, disks that are away or ill, and strange paths move nothing."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_processing.errors import ConfigError
from data_processing.wording import path_of
from tasks.runtime.contract.home import Home
from tasks.runtime.store.artifacts import LinkTargetMissingError, Store
from tasks.runtime.store.manifest import MANIFEST_FILE, StoreError
from tests.runtime.conftest import REPOSITORY
from tests.runtime.published import KEY, KIND, manifest_of, publish, staged


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _edit(store: Store, **fields: Any) -> None:
    path = store.folder(KIND, KEY) / MANIFEST_FILE
    values = json.loads(path.read_text())
    for name, value in fields.items():
        place, _, field = name.rpartition("__")
        (values[place] if place else values)[field] = value
    path.write_text(json.dumps(values))


def _nothing_moved(store: Store) -> bool:
    return store.folder(KIND, KEY).is_dir() and not (store.root / ".corrupt").exists()


@pytest.mark.parametrize("field", ["signature", "producer__cluster", "files"])
def test_what_a_newer_version_adds_is_passed_over(store: Store, field: str) -> None:
    manifest = publish(store)
    if field == "files":
        _edit(store, files=[{**entry.model_dump(), "crc32": "0"} for entry in manifest.files])
    else:
        _edit(store, **{field: {"by": "a later version"}})
    assert store.lookup(KIND, KEY) == manifest
    assert _nothing_moved(store)


def test_a_manifest_for_newer_versions_only_is_one_error_and_stays(store: Store) -> None:
    publish(store)
    _edit(store, manifest_version=2, files={"in": "another form"})
    with pytest.raises(ConfigError, match=r"written by a newer alignflow \(manifest_version 2, this one reads up to 1\)"):
        store.lookup(KIND, KEY)
    assert _nothing_moved(store)


def test_the_artifacts_that_can_be_read_are_listed_beside_one_that_cannot(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    publish(store)
    other = publish(store, key="m" * 64)
    _edit(store, manifest_version=2)
    assert list(store.manifests()) == [other]
    assert "newer alignflow" in caplog.text


def test_an_io_error_is_an_error_and_moves_nothing(store: Store) -> None:
    staging = staged(store)
    (staging / "weights.bin").symlink_to("/dev/null")
    store.publish(staging, manifest_of(store, staging))
    assert store.lookup(KIND, KEY)
    link = store.folder(KIND, KEY) / "weights.bin"
    link.unlink()
    link.symlink_to("/proc/self/mem")  # its size is 0 as well, and reading its first byte is EIO
    with pytest.raises(StoreError, match=r"Input/output error.*nothing was moved") as caught:
        store.lookup(KIND, KEY)
    assert caught.type is StoreError, "a stale handle would be read again"
    assert _nothing_moved(store)


def test_a_file_that_links_to_a_disk_that_is_away_is_no_hit_and_stays(store: Store, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "weights.bin").write_bytes(b"w" * 100)
    staging = staged(store)
    (staging / "weights.bin").symlink_to(disk / "weights.bin")
    manifest = manifest_of(store, staging)
    store.publish(staging, manifest)
    disk.rename(tmp_path / "away")
    assert store.lookup(KIND, KEY) is None
    with pytest.raises(
        LinkTargetMissingError, match=r"weights.bin links to .*/disk/weights.bin, which is not there; mount its disk"
    ):
        store.fetch(KIND, KEY)
    assert _nothing_moved(store)
    (tmp_path / "away").rename(disk)
    assert store.lookup(KIND, KEY) == manifest


def test_the_place_of_a_disk_that_is_not_mounted_is_left_alone(store: Store) -> None:
    mount_point = store.folder(KIND, KEY)
    mount_point.mkdir(parents=True)
    assert store.lookup(KIND, KEY) is None
    assert _nothing_moved(store)


def test_a_kind_whose_disk_is_away_is_found_out_before_the_work(store: Store, tmp_path: Path) -> None:
    store.root.mkdir()
    (store.root / KIND).symlink_to(tmp_path / "away")
    assert store.lookup(KIND, KEY) is None
    with pytest.raises(StoreError, match=KIND):
        store.staging(KIND, KEY, 1)


def test_a_home_whose_store_is_away_is_said_in_one_line(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    (home.root / "store").symlink_to(tmp_path / "away")
    with pytest.raises(ConfigError, match=r"store is a link to .*/away, which is not there; mount its disk"):
        _ = home.store


def test_what_another_machine_replaced_while_it_was_read_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system answers ESTALE for a file that is there no more under an open folder."""
    manifest = publish(store)
    read_bytes, stale = Path.read_bytes, [True]

    def read(path: Path) -> bytes:
        if path.name == MANIFEST_FILE and stale.pop():
            stale.append(False)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        stale.append(False)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert store.lookup(KIND, KEY) == manifest
    assert _nothing_moved(store)


# What people and file systems put into names; "/" and NUL are the only characters that cannot be in one.
_NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.lists(_NAMES, min_size=1, max_size=2), file=_NAMES)
def test_any_path_that_a_file_system_takes_will_do(tmp_path: Path, place: list[str], file: str) -> None:
    store = Store(tmp_path.joinpath(*place) / "store")
    staging = staged(store)
    (staging / "sub" / file).write_text("x")
    manifest = manifest_of(store, staging)
    ref = store.publish(staging, manifest)
    assert store.lookup(KIND, KEY, full=True) == manifest
    assert path_of(ref.uri) == store.folder(KIND, KEY)
    assert (path_of(ref.uri) / "sub" / file).read_text() == "x"


@pytest.mark.parametrize("name", ["my home 100%", "größe-模型;b&c=d", 'it\'s "50%-off"'])
def test_a_run_works_in_a_home_of_any_name(tmp_path: Path, name: str) -> None:
    """A worker process, from spec to artifact, and the command line over it."""
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from tasks.runtime.contract.config import RuntimeConfig\n"
        "from tasks.runtime.contract.home import Home\n"
        "from tasks.runtime.contract.request import StageRequest\n"
        "from tasks.runtime.execution.start import Runtime, run_stage\n"
        "from tasks.runtime.execution.subprocess_executor import SubprocessExecutor\n"
        "from tests.runtime.stages import CountConfig\n"
        "runtime = Runtime(Home.open(), SubprocessExecutor(), RuntimeConfig(min_free_disk_gib=0.0))\n"
        "request = StageRequest('tests.runtime.stages:COUNT', 'n', CountConfig(), 'run')\n"
        "print(asyncio.run(run_stage(request, runtime)).ref.uri)\n"
    )
    environment = {**os.environ, "ALIGNFLOW_HOME": str(tmp_path / name), "PYTHONPATH": str(REPOSITORY)}
    made = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 0, made.stderr
    assert (path_of(made.stdout.strip()) / "label.txt").read_text() == "plain"
