"""Services end with all they started, and nothing else is ever touched."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data_processing.errors import ConfigError
from flows.services import health, processes
from flows.services.health import answers, wait_until_answers
from flows.services.local import Ports, down, status, up
from flows.services.processes import (
    LOOPBACK,
    ProcessRecord,
    Records,
    ServiceError,
    check_port_free,
    free_port,
    start_process,
    stop_process,
)
from flows.services.run_processes import abandoned, serving_this_run
from tasks.runtime.contract.home import Home

pytestmark = pytest.mark.seconds

# A parent, a child in a session of its own, and a grandchild whose parent has gone: what servers do.
FAMILY = """
import subprocess, sys, time
sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleeper!r}], stdout=subprocess.PIPE, start_new_session=True).stdout.readline()"
child = subprocess.Popen([sys.executable, "-c", sleeper], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
subprocess.run([sys.executable, "-c", start])
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def _start(home: Home, code: str, name: str = "service") -> ProcessRecord:
    log = home.root / f"{name}.log"
    return start_process(name, [sys.executable, "-c", code], os.environ, url="http://127.0.0.1:1", log=log, cwd=home.root)


def _family(home: Home) -> tuple[ProcessRecord, list[psutil.Process]]:
    record = _start(home, FAMILY)
    deadline = time.monotonic() + 30
    while "ready" not in record.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    marked = [p for p in psutil.process_iter() if _environment(p).get("ALIGNFLOW_PROCESS_MARK") == record.mark]
    assert len(marked) == 3
    return record, marked


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def _kill(record: ProcessRecord) -> None:
    process = psutil.Process(record.pid)
    process.kill()
    process.wait()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_stopping_a_service_ends_its_children_and_the_orphans_among_them(home: Home) -> None:
    record, family = _family(home)
    killed = stop_process(record, grace_s=0.5)
    assert killed == 2, "those that ignore SIGTERM are killed after the grace"
    assert not any(_lives(process) for process in family)
    assert record.process is None


def test_orphans_are_found_when_the_service_itself_was_killed(home: Home) -> None:
    record, family = _family(home)
    psutil.Process(record.pid).kill()
    stop_process(record, grace_s=0.5)
    assert not any(_lives(process) for process in family)


def test_what_a_dead_service_left_is_seen_by_status_and_ended_by_down(home: Home) -> None:
    record, family = _family(home)
    Records(home.pids).write(record.model_copy(update={"name": "mlflow"}))
    _kill(record)
    (line,) = [line for line in status(home) if line.name == "mlflow"]
    assert line.state.startswith("ended; left 2 processes behind: ")
    said: list[str] = []
    assert down(home, said.append) == 1
    assert said == ["mlflow is gone; ending 2 processes that it left behind"]
    assert not any(_lives(process) for process in family)


def test_up_ends_what_a_dead_service_left_on_its_port(home: Home) -> None:
    port = free_port()
    child = f"import socket, time; s = socket.socket(); s.bind(('127.0.0.1', {port})); s.listen(); print(1, flush=True); time.sleep(600)"
    code = (
        f"import subprocess, sys, time\nchild = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print('ready', flush=True); time.sleep(600)"
    )
    record = _start(home, code, "mlflow")
    while "ready" not in record.log.read_text():
        time.sleep(0.05)
    Records(home.pids).write(record)
    _kill(record)
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        ports = Ports(taken.getsockname()[1], port, free_port(), free_port())
        with pytest.raises(ConfigError, match="--prefect-port"):  # and not --mlflow-port
            up(home, ports, lambda _: None)
    check_port_free(port, "--mlflow-port")


def test_a_child_that_wrote_over_its_environment_is_found_by_its_session(home: Home) -> None:
    child = "import setproctitle, time; setproctitle.setproctitle('x' * 5000); print(1, flush=True); time.sleep(600)"
    code = (
        f"import subprocess, sys, time\nchild = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print('ready', child.pid, flush=True); time.sleep(600)"
    )
    pytest.importorskip("setproctitle")
    record = _start(home, code)
    while "ready" not in record.log.read_text():
        time.sleep(0.05)
    orphan = psutil.Process(int(record.log.read_text().split()[-1]))
    assert "ALIGNFLOW_PROCESS_MARK" not in _environment(orphan)
    _kill(record)
    stop_process(record, 0.5)
    assert not _lives(orphan)


def test_down_ends_what_no_record_names_and_only_in_its_own_home(home: Home, tmp_path: Path) -> None:
    other = Home.open(tmp_path / "other")
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    ours, theirs = (
        start_process(
            "x", command, {**os.environ, "ALIGNFLOW_HOME": str(place.root)}, url="", log=place.root / "x", cwd=place.root
        )
        for place in (home, other)
    )
    try:
        # A process that is just being made has no environment for a moment.
        until = time.monotonic() + 10
        while not (seen := [line.pid for line in status(home) if line.name == "of ours, unrecorded"]):
            assert time.monotonic() < until
        assert seen == [ours.pid]
        down(home, lambda _: None)
        assert ours.process is None
        assert theirs.process is not None
    finally:
        stop_process(theirs, 0.5)


def test_a_log_goes_on_where_the_process_before_ended_and_a_long_one_is_put_aside(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    for word in ("first", "second"):
        record = _start(home, f"print('why the {word} died')")
        while record.process:
            time.sleep(0.02)
    assert record.log.read_text().count("--- service started at ") == 2
    assert "why the first died" in record.log.read_text() and "why the second died" in record.log.read_text()
    monkeypatch.setattr(processes, "_LOG_LIMIT_BYTES", 10)
    stop_process(_start(home, "print('third')"), 0.5)
    assert "why the second died" in (home.root / "service.log.1").read_text()
    assert "second" not in record.log.read_text()


def test_a_slow_start_says_what_it_waits_for(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(health, "_TELL_EVERY_S", 0.1)
    record = _start(home, "import time; time.sleep(600)")
    try:
        with pytest.raises(ServiceError):
            wait_until_answers(record, "/health", timeout_s=0.5)
    finally:
        stop_process(record, 0.5)
    assert f"waiting for service to answer at http://127.0.0.1:1, for 0 s now; its log is {record.log}" in caplog.text


def test_two_runs_never_take_over_one_abandoned_head(home: Home) -> None:
    record = _start(home, "import time; time.sleep(600)", "ray-1-1")
    gone = record.model_copy(update={"owner_pid": 2**22 + 1, "owner_created": 0.0})
    Records(home.pids).write(gone)
    taker = (
        "import sys, time; from pathlib import Path; from flows.services.run_processes import taken_over\n"
        "from tasks.runtime.contract.home import Home\n"
        "found = taken_over(Home.open(Path(sys.argv[1])), 'ray-'); print(found is not None, flush=True); time.sleep(3)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    try:
        takers = [
            subprocess.Popen([sys.executable, "-c", taker, str(home.root)], env=environment, stdout=subprocess.PIPE)
            for _ in range(4)
        ]
        assert sorted(each.communicate()[0].strip() for each in takers) == [b"False"] * 3 + [b"True"]
    finally:
        stop_process(record, 0.5)


def test_down_never_touches_a_process_that_took_over_a_recorded_id(home: Home, bystander: subprocess.Popen[bytes]) -> None:
    stale = ProcessRecord(
        name="ray",
        pid=bystander.pid,
        created=psutil.Process(bystander.pid).create_time() - 100,
        mark="none",
        url="",
        log=home.root / "x",
    )
    Records(home.pids).write(stale)
    said: list[str] = []
    assert down(home, said.append) == 0
    assert bystander.poll() is None
    assert Records(home.pids).all() == []


def test_down_ends_what_is_recorded_and_leaves_a_living_run_its_server(home: Home, bystander: subprocess.Popen[bytes]) -> None:
    recorded, served = (
        _start(home, "import time; time.sleep(600)", "mlflow"),
        _start(home, "import time; time.sleep(600)", "ray-1-1"),
    )
    owner = psutil.Process(bystander.pid)
    served = served.model_copy(update={"owner_pid": owner.pid, "owner_created": owner.create_time()})
    for record in (recorded, served):
        Records(home.pids).write(record)
    try:
        assert down(home, lambda _: None) == 1
        assert recorded.process is None
        assert served.process is not None
        assert abandoned(home, "ray-") is None
        bystander.kill()
        bystander.wait()
        assert abandoned(home, "ray-") == served
        assert down(home, lambda _: None) == 1
        assert served.process is None
    finally:
        stop_process(served, 0.5)


def test_a_process_that_serves_a_run_ends_with_it_also_when_the_run_fails(home: Home) -> None:
    record = _start(home, "import time; time.sleep(600)", "prefect-1-1")
    with pytest.raises(ValueError, match="the run"), serving_this_run(home, record, grace_s=2.0):
        assert Records(home.pids).running("prefect-1-1")
        raise ValueError("the run")
    assert record.process is None
    assert Records(home.pids).all() == []


def test_a_port_in_use_is_named_with_the_process_that_holds_it(home: Home) -> None:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--mlflow-port: port {port} is in use by .*\(process {os.getpid()}\)"):
            check_port_free(port, "--mlflow-port")
        with pytest.raises(ConfigError, match=rf"port {port}"):
            up(home, Ports(free_port(), port, free_port(), free_port()), lambda _: None)
        assert Records(home.pids).all() == [], "nothing was started"
    check_port_free(port, "--mlflow-port")


def test_a_service_that_dies_while_starting_is_reported_with_its_log(home: Home) -> None:
    record = _start(home, "raise SystemExit('no such database')")
    with pytest.raises(ServiceError, match="no such database"):
        wait_until_answers(record, "/health", timeout_s=30)


def test_a_service_that_does_not_answer_in_time_is_reported(home: Home) -> None:
    record = _start(home, "import time; time.sleep(600)")
    try:
        with pytest.raises(ServiceError, match=r"does not answer .* after 0\.3 s"):
            wait_until_answers(record, "/health", timeout_s=0.3)
    finally:
        stop_process(record, 0.5)


def test_what_speaks_no_http_does_not_answer() -> None:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()
        port = listener.getsockname()[1]

        def babble() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"\x00\x00\x12\x04\x00\r\n")

        speaker = threading.Thread(target=babble)
        speaker.start()
        assert not answers(f"http://{LOOPBACK}:{port}/health")
        speaker.join()


def test_a_free_port_is_none_that_the_system_gives_away_by_itself() -> None:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        assert free_port() < listener.getsockname()[1]


def test_status_has_a_line_for_every_service_also_before_any_was_started(home: Home) -> None:
    assert [(line.name, line.state) for line in status(home)] == [
        (name, "not started") for name in ("prefect", "mlflow", "ray", "worker")
    ]
