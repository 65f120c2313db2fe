"""What hostile code cannot do: each attempt is made for real, with limits that are low enough for this machine."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from rlhf_core.sandbox import processes
from rlhf_core.sandbox.limits import Ending, Limits, Ran, Within
from rlhf_core.sandbox.processes import run_script, run_tests
from rlhf_core.sandbox.usage import disk_bytes
from tests.rewards.confined import needs_confinement

pytestmark = needs_confinement

WITHIN = Within(Limits(wall_s=5.0, cpu_s=5, memory_mib=256, disk_mib=2, output_kib=64))
BRIEF = Within(Limits(wall_s=1.0, cpu_s=1, memory_mib=256, disk_mib=2, output_kib=64))

CALL = "import ctypes; ctypes.CDLL(None).syscall({})"
FORBIDDEN = {
    "TCP": "import socket; socket.create_connection(('127.0.0.1', 9), 1)",
    "UDP": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
    "a pair of datagram sockets": "import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "a name to look up": "import socket; socket.getaddrinfo('example.org', 80)",
    "a fork": "import os; os.fork()",
    "a fork bomb": "import os\nfor _ in range(20): os.fork()",
    "a daemon": "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        import time; time.sleep(9)",
    "a shell": "import os; os.system('true')",
    "a subprocess": "import subprocess; subprocess.run(['/bin/true'])",
    "another program": "import os; os.execv('/bin/true', ['true'])",
    "a kill of the parent": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
    "a kill of everybody": "import os, signal; os.kill(-1, signal.SIGKILL)",
    "a kill of the group of the parent": "import os, signal; os.killpg(os.getpgid(os.getppid()), signal.SIGTERM)",
    "a user that is somebody else": "import os; os.setuid(1)",
    "a name space of its own": CALL.format("272, 0x10000000"),
    "ptrace": CALL.format("101, 16, 1, 0, 0"),
    "another's memory": CALL.format("310, 1, 0, 0, 0, 0, 0"),
    "bpf": CALL.format("321, 0, 0, 0"),
    "io_uring": CALL.format("425, 8, 0"),
    "keys": CALL.format("250, 0, 0"),
    "a call of 32 bit pointers": CALL.format("0x40000027"),
}

# Each prints "refused" where it raises, in a folder that holds `open.txt`, which may be read, and with `canary` elsewhere.
REFUSED = {
    "reads a file elsewhere": "open(canary).read()",
    "lists a folder elsewhere": "os.listdir(os.path.dirname(canary))",
    "lists the root": "os.listdir('/')",
    "reads the users": "open('/etc/passwd').read()",
    "reads the environment of a process": "open('/proc/self/environ').read()",
    "writes elsewhere": "open(canary + '2', 'w')",
    "writes to what it may read": "open(readable, 'a')",
    "empties what it may read": "os.open(readable, os.O_RDONLY | os.O_TRUNC)",
    "cuts what it may read": "os.truncate(readable, 0)",
    "removes what it may read": "os.unlink(readable)",
    "changes the mode of what it may read": "os.chmod(readable, 0)",
    "changes the mode of an open file": "os.fchmod(os.open(readable, os.O_RDONLY), 0)",
    "changes the time of what it may read": "os.utime(readable, (0, 0))",
    "sets an attribute of what it may read": "os.setxattr(readable, 'user.x', b'x')",
    "sets flags of an open file": "__import__('fcntl').ioctl(os.open(readable, os.O_RDONLY), 0x40086602, bytes(8))",
    "links to a file elsewhere": "os.link(canary, 'here')",
    "makes a symbolic link": "os.symlink(canary, 'here')",
    "makes a folder": "os.mkdir('here')",
    "makes a named pipe": "os.mkfifo('here')",
    "takes memory that is in no limit": "os.memfd_create('x')",
    "raises its limits": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "lifts a limit of the parent": "resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (1, 1))",
    "has signals sent to others": "__import__('fcntl').fcntl(0, 8, os.getppid())",
    "writes a file that is too large": "open('here', 'wb').write(bytes(3 << 20))",
    "reaches a Unix socket": "__import__('socket').socket(1)",
    "opens too many files": "[open('here', 'w') for _ in range(40)].clear()",
}

WORKS = {
    "asyncio": "import asyncio\nasync def two(): return 2\nprint(asyncio.run(two()))",
    "threads": "from concurrent.futures import ThreadPoolExecutor as T\nprint(sum(T(4).map(int, '02')))",
    "a thread with a large stack": "import sys, threading\nsys.setrecursionlimit(10**6); threading.stack_size(64 << 20)\n"
    "def down(n): return 2 if n == 0 else down(n - 1)\nthreading.Thread(target=lambda: print(down(20_000))).start()",
    "files of its own": "open('a.txt', 'w').write('2'); import os; os.rename('a.txt', 'b.txt'); print(open('b.txt').read()); os.remove('b.txt')",
    "the standard library": "import decimal, zoneinfo, sqlite3, random, hashlib, dataclasses, typing, heapq, re, lzma, ssl; print(2)",
    "a temporary file": "import tempfile\nwith tempfile.TemporaryFile('w+') as f:\n    f.write('2'); f.seek(0); print(f.read())",
    "who one is": "import os, pwd, pathlib\ntry: pwd.getpwuid(os.getuid())\nexcept KeyError: pass\nprint(2 * (str(pathlib.Path.home()) == os.getcwd()))",
    "a signal to itself": "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *a: print(2)); os.kill(os.getpid(), signal.SIGUSR1)",
    "data classes that name their types": "from __future__ import annotations\nimport dataclasses, typing\n@dataclasses.dataclass\nclass A:\n"
    "    b: int\nprint(len(typing.get_type_hints(A)) + 1)",
    "what is registered for the end": "import atexit; atexit.register(print, 2)",
}  # fmt: skip


def ended(source: str, within: Within = WITHIN) -> Ran:
    return run_script(source, "", within)


@pytest.mark.parametrize("what", WORKS)
def test_what_ordinary_programs_do_works(what: str) -> None:
    assert ended(WORKS[what]) == Ran(Ending.DONE, b"2\n")


@pytest.mark.parametrize("what", FORBIDDEN)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86_64")
def test_what_is_forbidden_ends_the_program(what: str) -> None:
    assert ended(f"print('before', flush=True)\n{FORBIDDEN[what]}\nprint('after')") == Ran(Ending.FORBIDDEN, b"before\n")


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_raises(what: str, tmp_path: Path) -> None:
    canary, readable = tmp_path / "private" / "canary", tmp_path / "library" / "open.txt"
    for path in (canary, readable):
        path.parent.mkdir()
        path.write_text("as it was")
    within = Within(WITHIN.limits, (str(readable.parent),))
    named = f"import os, resource\ncanary, readable = {str(canary)!r}, {str(readable)!r}\nassert open(readable).read() == 'as it was'\n"
    tried = f"try:\n    {REFUSED[what]}\nexcept OSError:\n    print('refused')\nexcept ValueError:\n    print('refused')"
    assert ended(named + tried, within) == Ran(Ending.DONE, b"refused\n")
    assert canary.read_text() == readable.read_text() == "as it was"
    assert readable.stat().st_mode & 0o777
    assert len(list(tmp_path.rglob("*"))) == 4


@pytest.mark.parametrize("version", range(1, 7))
def test_files_are_confined_with_what_older_kernels_know(version: int, tmp_path: Path) -> None:
    """A newer Landlock takes what an older one was asked; this one is told no more than that."""
    readable, canary = tmp_path / "library", tmp_path / "canary"
    readable.mkdir()
    for path in (canary, readable / "file"):
        path.write_text("as it was")
    source = f"""
import os, platform
from rlhf_core.sandbox import confine, seccomp
filter_ = seccomp.build_filter()
confine.landlock_version = lambda: {version}
confine.give_up_privileges()
confine.confine_files([{str(readable)!r}], [])
confine.confine_calls(filter_, platform.machine())
assert os.read(os.open({str(readable / "file")!r}, os.O_RDONLY), 9) == b"as it was"
for path, flags in (({str(canary)!r}, 0), ({str(readable / "file")!r}, os.O_WRONLY), ({str(readable / "file")!r}, os.O_TRUNC)):
    try:
        os.open(path, flags)
    except PermissionError:
        print("refused", flush=True)
os._exit(0)
"""
    ran = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert ran.stdout == "refused\n" * 3, ran.stderr
    assert canary.read_text() == (readable / "file").read_text() == "as it was"


def test_nothing_of_the_parent_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "secret")
    held = os.open(os.devnull, os.O_RDONLY)
    try:
        source = (
            "import os, sys\nheld = []\nfor fd in range(64):\n    try: os.fstat(fd); held.append(fd)\n    except OSError: pass\n"
        )
        ran = ended(source + "print(held, sorted(os.environ), sys.argv, [p for p in sys.path if 'site-packages' in p])")
    finally:
        os.close(held)
    names = "['HOME', 'LC_CTYPE', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'PYTHONHASHSEED', 'PYTHONUTF8']"
    assert ran.output.decode() == f"[0, 1, 2] {names} [''] []\n"


def test_a_program_does_the_same_each_time() -> None:
    assert ended("print(hash('a'), {'b', 'c', 'd'})") == ended("print(hash('a'), {'b', 'c', 'd'})")


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("source", "ending"),
    [
        ("while True: pass", Ending.TIME),
        ("import time; time.sleep(60)", Ending.TIME),
        ("import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass", Ending.TIME),
        ("import os, time; os.close(1); time.sleep(60)", Ending.TIME),
        ("x = [0] * 10**9", Ending.MEMORY),
        ("x = []\nwhile True: x.append(bytes(1 << 20))", Ending.MEMORY),
        ("while True: print('x' * 1000)", Ending.TOO_MUCH),
        ("n = 0\nwhile True:\n    open(str(n), 'w').close(); n += 1", Ending.TOO_MUCH),
        ("import time\nfor n in range(3): open(str(n), 'wb').write(bytes(1 << 20))\ntime.sleep(60)", Ending.TOO_MUCH),
        ("import os, time\nheld = []\nfor _ in range(9):\n    held.append(open('x', 'wb', 0)); held[-1].write(bytes(1 << 20)); os.unlink('x')\n"
         "time.sleep(60)", Ending.TOO_MUCH),
        ("import threading, time\nthreading.stack_size(1 << 15)\nfor _ in range(200): threading.Thread(target=time.sleep, args=(60,)).start()",
         Ending.TOO_MUCH),
    ],
)  # fmt: skip
def test_what_goes_over_a_limit_is_ended(source: str, ending: Ending) -> None:
    started = time.monotonic()
    ran = ended(source, BRIEF)
    assert ran.ending == ending
    assert len(ran.output) <= BRIEF.limits.output_bytes + 65536
    assert time.monotonic() - started < 10.0


@pytest.mark.seconds
@pytest.mark.parametrize("where", ["def f(): pass", "import time\ndef f(): time.sleep(60)", "import time; time.sleep(60)"])
@pytest.mark.parametrize("tests", ["f()", "while True: f()"])
def test_tests_that_hang_are_ended_whichever_side_hangs(where: str, tests: str) -> None:
    hangs = "sleep" in where or "while" in tests
    ran = run_tests(where, tests, BRIEF)
    assert (ran.ending, ran.output) == ((Ending.TIME, b"") if hangs else (Ending.DONE, b"."))


@pytest.mark.seconds
def test_nothing_is_left_behind() -> None:
    def left() -> tuple[set[str], list[psutil.Process]]:
        return {path.name for path in Path(tempfile.gettempdir()).glob("alignflow-code-*")}, psutil.Process().children()

    before, descriptors = left(), len(list(Path("/proc/self/fd").iterdir()))
    ended("open('x', 'w').write('x')")
    ended("import time; time.sleep(60)", BRIEF)
    run_tests("def f(): return 1", "f()", WITHIN)
    assert left() == before
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_nothing_is_left_where_watching_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> int:
        raise OSError("no disk")

    before = psutil.Process().children()
    monkeypatch.setattr(processes, "disk_bytes", fail)
    with pytest.raises(OSError, match="no disk"):
        run_tests("import time; time.sleep(60)", "", WITHIN)
    assert psutil.Process().children() == before


@pytest.mark.seconds
def test_a_program_ends_with_its_parent_and_cannot_gain_privileges(tmp_path: Path) -> None:
    source = "from rlhf_core.sandbox.processes import *; run_script(up, '', Within(Limits(60)))"
    source = source.replace("; run", "; from rlhf_core.sandbox.limits import *; up = sys.argv[1]; run").replace(
        "from", "import sys; from", 1
    )
    up = "open('up', 'w'); import time; time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", source, up], env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        _wait_for(tmp_path, "alignflow-code-*/up")
        children = psutil.Process(parent.pid).children()
        status = Path(f"/proc/{children[0].pid}/status").read_text().split()
        assert [status[status.index(name) + 1] for name in ("NoNewPrivs:", "Seccomp:")] == ["1", "2"]
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _, alive = psutil.wait_procs(children, timeout=5.0)
    assert not alive


def _wait_for(folder: Path, file: str) -> None:
    """Until the program says that it runs, long after it has tied itself to the parent."""
    until = time.monotonic() + 60.0
    while not any(folder.glob(file)):
        assert time.monotonic() < until, "no program was started"
        time.sleep(0.02)


def test_space_is_counted_by_files_also_empty_and_sparse_ones(tmp_path: Path) -> None:
    before = disk_bytes(str(tmp_path), os.getpid(), 1 << 30)
    for number in range(3):
        (tmp_path / str(number)).touch()
    assert disk_bytes(str(tmp_path), os.getpid(), 1 << 30) - before == 3 * 4096
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 20)
        (tmp_path / "sparse").unlink()
        assert disk_bytes(str(tmp_path), os.getpid(), 1 << 30) - before == 3 * 4096 + (1 << 20)
