"""Kernels that are forked from a template: when, when not, and what becomes of templates."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from .driver import REMOTE, Bridge, ListenerError, changed_listener, lives, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other platform: only Linux forks kernels")

ARGV = [
    sys.executable,
    str(REMOTE / "launch_ipykernel.py"),
    "--kernel-id",
    "{kernel_id}",
    "--response-address",
    "{response_address}",
]
NO_TEMPLATE = "there is no process yet that could fork it"


class Launches:
    """Launches real kernels with one set of parameters, each under an id of its own."""

    def __init__(self, bridge: Bridge, **parameters: Any) -> None:
        self.bridge, self.parameters, self.number = bridge, parameters, 0

    def __call__(self, **more: Any) -> dict[str, Any]:
        self.number += 1
        values = {"prefork": True, **self.parameters, **more}
        argv = values.pop("argv", ARGV)
        kernel_id = values.pop("kernel_id", f"k{id(self):x}-{self.number}")
        return dict(self.bridge.launch(argv, kernel_id, **values), kernel_id=kernel_id)

    def why(self, **more: Any) -> str:
        """Why a launch was cold; "" for a fork."""
        told = self(**more)["prefork"]
        assert told["used"] == (not told["why"])
        return str(told["why"])

    def end(self, reply: dict[str, Any]) -> dict[str, Any]:
        return self.bridge.request("end", kernel_id=reply["kernel_id"], generation=1, grace=0)


@pytest.fixture
def launches(bridge: Bridge) -> Launches:
    return Launches(bridge)


def templates(bridge: Bridge) -> list[int]:
    """Pids of the listener's templates."""
    return [pid for pid in forkers(bridge) if not is_spare(pid)]


def spares(bridge: Bridge) -> list[int]:
    """Pids of the forks that wait for an order."""
    return [pid for pid in forkers(bridge) if is_spare(pid)]


def forkers(bridge: Bridge) -> list[int]:
    listener = bridge.welcome["pid"]
    children = Path(f"/proc/{listener}/task/{listener}/children").read_text().split()
    return [int(pid) for pid in children if lives(int(pid)) and "prefork_template" in command(int(pid))]


def is_spare(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == "dp-spare"
    return False


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    return ""


def kernels(kernel_id: str) -> list[int]:
    """Processes whose command line says that they are this kernel."""
    return [
        int(p.name)
        for p in Path("/proc").glob("[0-9]*")
        if kernel_id in command(int(p.name)) and lives(int(p.name))
    ]


def template_is_ready(bridge: Bridge) -> int:
    """The pid of the last template, once it waits for orders."""

    def waiting() -> int:
        for pid in reversed(templates(bridge)):
            names = Path(f"/proc/{pid}/comm").read_text(), Path(f"/proc/{pid}/wchan").read_text()
            text = Path(f"/proc/{pid}/syscall").read_text().split()[0] if os.getuid() == 0 else ""
            if names[0].strip() == "dp-prefork" and (
                text in ("7", "47") or any(word in names[1] for word in ("poll", "recv", "unix"))
            ):
                return pid
        return 0

    pid: int = until(waiting, 30)
    return pid


def listener_log(home: Path) -> str:
    return "".join(path.read_text() for path in home.rglob("listener.log"))


@contextlib.contextmanager
def connected(reply: dict[str, Any]) -> Iterator[BlockingKernelClient]:
    client = BlockingKernelClient()
    info: Any = {f"{channel}_port": port for channel, port in reply["ports"].items()}
    info.update((name, reply[name]) for name in ("ip", "transport", "key", "signature_scheme"))
    client.load_connection_info(info)
    client.start_channels()
    try:
        client.wait_for_ready(timeout=20)
        yield client
    finally:
        client.stop_channels()


def printed(reply: dict[str, Any], code: str) -> str:
    """What a cell prints in the kernel that was launched."""
    texts: list[str] = []
    with connected(reply) as client:
        client.execute_interactive(
            code,
            timeout=30,
            output_hook=lambda m: texts.append(
                m["content"].get("text") or str(m["content"].get("evalue", ""))
            ),
        )
    return "".join(texts).strip()


def warm(launches: Launches) -> int:
    """One cold launch, and the template that comes of it."""
    assert launches.why() == NO_TEMPLATE
    return template_is_ready(launches.bridge)


NO_SPARE = """
import select
class Poll:
    def register(self, *_): pass
    def poll(self, *_): return [1]
select.poll = Poll
"""
"""Of a module that is preloaded: the template always seems to have something to read, so each kernel is forked when it is asked for."""


def spare_is_ready(bridge: Bridge) -> int:
    """The pid of the fork that waits, once there is one."""
    (pid,) = until(lambda: spares(bridge))
    return int(pid)


# --- the normal way ---------------------------------------------------------------------------------------------------------------------


def test_the_first_launch_is_cold_and_the_next_ones_are_forks(launches: Launches, home: Path) -> None:
    """If it fails: no launch is fast, or the first one waits for what makes the others fast."""
    template = warm(launches)
    assert f"starts cold: {NO_TEMPLATE}" in listener_log(home)
    replies = [launches() for _ in range(3)]
    assert [reply["prefork"] for reply in replies] == [{"used": True, "why": ""}] * 3
    assert templates(launches.bridge) == [template]
    for reply in replies:
        assert (
            os.getsid(reply["pid"])
            == os.getpgid(reply["pid"])
            == reply["pid"]
            == reply["kernel_pid"]
            == reply["pgid"]
        )
        assert printed(reply, "import os; print(os.getpid())") == str(reply["pid"])
        assert f"--kernel-id {reply['kernel_id']}" in command(reply["pid"])


def test_a_forked_kernels_exit_is_seen_with_its_code(launches: Launches) -> None:
    """If it fails: the page says "exited (unknown)" of a kernel that was killed for its memory."""
    warm(launches)
    reply = launches()
    with connected(reply) as client:
        client.execute("import os; os._exit(9)")
        event = launches.bridge.event()
    assert (event["code"], event["reason"], event["kernel_id"]) == (9, "exited", reply["kernel_id"])
    killed = launches()
    os.kill(killed["pid"], signal.SIGKILL)
    assert launches.bridge.event()["code"] == -signal.SIGKILL


def test_many_launches_at_once_are_as_many_kernels(launches: Launches) -> None:
    """If it fails: in a burst two notebooks share a kernel, or one has none."""
    warm(launches)
    bridge = launches.bridge
    from .driver import launch_parameters

    numbers = [bridge.send("launch", **launch_parameters(ARGV, f"burst{n}", prefork=True)) for n in range(8)]
    replies = [bridge.reply(number) for number in numbers]
    assert all(reply["prefork"]["used"] for reply in replies)
    assert len({reply["pid"] for reply in replies}) == 8
    for number, reply in enumerate(replies):
        assert kernels(f"burst{number}") == [reply["pid"]]


def test_without_the_option_there_is_no_template(launches: Launches, home: Path) -> None:
    """If it fails: `prefork: false` leaves processes about."""
    assert launches.why(prefork=False) == "it is switched off"
    time.sleep(1)
    assert templates(launches.bridge) == []
    assert "prefork" not in listener_log(home)


def test_a_template_has_nothing_of_one_launch_alone(launches: Launches) -> None:
    """If it fails: a password in one notebook's start request is shown by `ps e` of the next user of that account."""
    launches(request_env={"KERNEL_TOKEN": "secret1", "PASSWORD": "secret2", "OMP_NUM_THREADS": "2"})
    template = template_is_ready(launches.bridge)
    told = Path(f"/proc/{template}/environ").read_text()
    assert "secret" not in told
    assert "OMP_NUM_THREADS=2" in told
    reply = launches(request_env={"PASSWORD": "other", "OMP_NUM_THREADS": "2"})
    assert reply["prefork"]["used"]
    assert (
        printed(reply, "import os; print(os.environ['PASSWORD'], os.environ.get('KERNEL_TOKEN'))")
        == "other None"
    )


# --- the fork that waits ----------------------------------------------------------------------------------------------------------------


def test_a_launch_takes_the_fork_that_waits_and_another_one_is_made(launches: Launches) -> None:
    """If it fails: each launch waits for a fork, which may take as long as all the rest of it on the host."""
    cold = launches()
    template_is_ready(launches.bridge)
    for _ in range(2):
        spare = spare_is_ready(launches.bridge)
        reply = launches()
        assert (reply["prefork"]["used"], reply["pid"]) == (True, spare)
        assert Path(f"/proc/{spare}/comm").read_text() == Path(f"/proc/{cold['pid']}/comm").read_text()
        code = "import os, sys; print(os.getsid(0) == os.getpid(), sorted(os.listdir('/proc/self/fd'), key=int)[:3])"
        assert printed(reply, code) == "True ['0', '1', '2']"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_fork_that_is_killed_or_stopped_while_it_waits_costs_nothing(
    launches: Launches, number: signal.Signals
) -> None:
    """If it fails: a launch hangs with a process that nobody knows of, or is cold."""
    warm(launches)
    spare = spare_is_ready(launches.bridge)
    os.kill(spare, number)
    reply = launches()
    assert reply["prefork"]["used"]
    assert reply["pid"] != spare
    until(lambda: not lives(spare))
    assert printed(reply, "print(1)") == "1"
    assert spare_is_ready(launches.bridge) not in (spare, reply["pid"])


@pytest.mark.parametrize("who", ["template", "listener"])
def test_the_fork_that_waits_leaves_with_its_template(launches: Launches, who: str) -> None:
    """If it fails: processes pile up on the host."""
    template = warm(launches)
    spare = spare_is_ready(launches.bridge)
    os.kill(template if who == "template" else launches.bridge.welcome["pid"], signal.SIGKILL)
    until(lambda: not lives(template) and not lives(spare))


def test_an_upgrade_after_the_fork_is_seen(launches: Launches, library: Path) -> None:
    """If it fails: the one that waited has the old package."""
    warm(launches)
    spare = spare_is_ready(launches.bridge)
    write(library / "mine.py", "x = 12")
    reply = launches()
    assert reply["prefork"] == {"used": False, "why": f"{library}/mine.py has changed"}
    until(lambda: not lives(spare))
    assert kernels(reply["kernel_id"]) == [reply["pid"]]


def test_limits_of_the_fork_that_waits_count(launches: Launches) -> None:
    """If it fails: a kernel that was forked before has the limits of before."""
    warm(launches)
    spare = spare_is_ready(launches.bridge)
    soft, hard = resource.prlimit(spare, resource.RLIMIT_NOFILE)
    resource.prlimit(spare, resource.RLIMIT_NOFILE, (soft // 2, hard))
    reply = launches()
    assert reply["prefork"]["why"].startswith("limits of the process that was forked for it")
    until(lambda: not lives(spare))
    assert kernels(reply["kernel_id"]) == [reply["pid"]]


def test_a_burst_takes_the_one_that_waits_first(launches: Launches) -> None:
    """If it fails: a second launch waits until another spare is made, or takes the same one."""
    warm(launches)
    spare = spare_is_ready(launches.bridge)
    from .driver import launch_parameters

    numbers = [
        launches.bridge.send("launch", **launch_parameters(ARGV, f"both{n}", prefork=True)) for n in range(3)
    ]
    pids = [launches.bridge.reply(number)["pid"] for number in numbers]
    assert len(set(pids)) == 3
    assert spare in pids


# --- never a wrong kernel -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path, launches: Launches) -> Path:
    """A directory on the kernels' PYTHONPATH, with a module `mine` that is preloaded."""
    directory = tmp_path / "library"
    directory.mkdir()
    write(directory / "mine.py", "x = 1")
    launches.parameters.update(spec_env={"PYTHONPATH": str(directory)}, preload=["mine"])
    return directory


def write(path: Path, text: str) -> None:
    """A file that is older than any template."""
    path.write_text(text + "\n")
    os.utime(path, (time.time() - 60, time.time() - 60))


CHANGES: dict[str, Any] = {
    "a module": lambda d: write(d / "mine.py", "x = 12"),
    "another module of that name before it": lambda d: write(d / "antigravity.py", "x = 1"),
    "a package": lambda d: (d / "new-1.dist-info").mkdir(),
    "a module that is gone": lambda d: (d / "mine.py").rename(d / "other.py"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_upgrade_retires_the_template(launches: Launches, library: Path, change: str) -> None:
    """If it fails: after `pip install -U` kernels go on with the old package for hours, or with a mixture."""
    template = warm(launches)
    assert launches.why() == ""
    CHANGES[change](library)
    why = launches.why()
    assert str(library) in why
    assert why.endswith("has changed")
    until(lambda: not lives(template))


def test_after_an_upgrade_forks_have_the_new_package(launches: Launches, library: Path) -> None:
    """If it fails: an upgrade makes launches slow until the next login."""
    warm(launches)
    write(library / "mine.py", "x = 12")
    assert launches.why()
    template_is_ready(launches.bridge)
    reply = launches()
    assert reply["prefork"]["used"]
    assert (
        printed(reply, "import sys; print('mine' in sys.modules); import mine; print(mine.x)") == "True\n12"
    )


def test_another_shared_library_retires_the_template(launches: Launches, library: Path) -> None:
    """If it fails: after an upgrade of OpenSSL alone kernels go on with the one that had the hole."""
    found = ctypes.util.find_library("z") or pytest.skip("no zlib")
    loaded = ctypes.CDLL(found)
    paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if found in line}
    assert loaded
    mine = library / "libmine.so"
    shutil.copy(os.path.realpath(next(iter(paths))), mine)
    os.utime(mine, (time.time() - 60, time.time() - 60))
    write(library / "mine.py", f"import ctypes\nlib = ctypes.CDLL({str(mine)!r})")
    warm(launches)
    assert launches.why() == ""
    shutil.copy(mine, library / "libmine.new")
    (library / "libmine.new").rename(mine)
    assert launches.why() == f"{mine} has changed"


def test_compiled_files_retire_nothing(launches: Launches, library: Path) -> None:
    """If it fails: each first import of a module costs the next launch its speed."""
    warm(launches)
    shutil.rmtree(library / "__pycache__")
    assert launches.why() == ""


REFUSED = {
    "a thread": (
        "import threading, time; threading.Thread(target=time.sleep, args=(600,), name='busy', daemon=True).start()",
        "thread: busy",
    ),
    "a native thread": (
        "import ctypes; c = ctypes.CDLL(None); c.pthread_create(ctypes.byref(ctypes.c_ulong()), None, c.pause, None)",
        "1 native threads",
    ),
    "a process": ("import subprocess; p = subprocess.Popen(['sleep', '600'])", "has started a process"),
    "a socket": ("import socket; s = socket.socket()", "has opened socket:"),
    "a pipe": ("import os; os.pipe()", "has opened pipe:"),
    "a temporary file": ("import tempfile; f = tempfile.NamedTemporaryFile()", "has made a temporary file"),
    "a ZMQ context": ("import zmq; c = zmq.Context()", "a ZMQ context"),
    "a loop": ("import asyncio; l = asyncio.new_event_loop(); l.close()", "an event loop"),
    "an error": ("1/0", "preload mine: ZeroDivisionError"),
    "an exit": ("raise SystemExit(3)", "SystemExit"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_fork_would_share_or_lose_is_refused(
    launches: Launches, library: Path, home: Path, what: str
) -> None:
    """If it fails: kernels share a connection, wait for a thread that is not there, or delete each other's files."""
    code, why = REFUSED[what]
    write(library / "mine.py", code)
    assert launches.why() == NO_TEMPLATE
    until(lambda: why in listener_log(home), 20)
    assert why in launches.why()
    assert printed(launches(), "print(1)") == "1"
    assert templates(launches.bridge) == []
    assert "Traceback" not in listener_log(home)


def test_threads_of_a_library_that_knows_forks_are_welcome(launches: Launches) -> None:
    """If it fails: `preload: [numpy]` is refused on any machine with several cores, or computes nothing after the fork."""
    launches.parameters.update(preload=["numpy"], spec_env={"OPENBLAS_NUM_THREADS": "3"})
    warm(launches)
    reply = launches()
    assert reply["prefork"]["used"]
    code = "import numpy as n, os; print((n.ones((600, 600)) @ n.ones((600, 600))).sum(), len(os.listdir('/proc/self/task')) > 3)"
    assert printed(reply, code) == "216000000.0 True"


def test_a_variable_that_an_import_has_read_counts(launches: Launches, library: Path) -> None:
    """If it fails: a library that reads its settings when it is imported has those of another notebook."""
    write(library / "mine.py", "import os; mode = os.environ.get('MY_MODE')")
    warm(launches)
    assert launches.why() == ""
    path = {"PYTHONPATH": str(library)}
    reply = launches(spec_env={**path, "MY_MODE": "fast"})
    assert reply["prefork"]["why"] == "its imports depend on the environment variable MY_MODE"
    assert printed(reply, "import mine; print(mine.mode)") == "fast"
    assert launches.why(spec_env={**path, "OTHER": "fast"}) == ""
    until(lambda: len(templates(launches.bridge)) == 2)
    until(lambda: launches.why(spec_env={**path, "MY_MODE": "fast"}) == "", 20)
    assert launches.why() == ""


OTHER_KINDS: dict[str, dict[str, Any]] = {
    "language": {"spec_env": {"LC_ALL": "C"}},
    "libraries": {"spec_env": {"LD_LIBRARY_PATH": "/nowhere"}},
    "threads": {"spec_env": {"OMP_NUM_THREADS": "1"}},
    "rules for TLS": {"spec_env": {"OPENSSL_CONF": "/dev/null"}},
    "interpreter's options": {"spec_env": {"PYTHONUTF8": "1"}},
    "preload": {"preload": ["wave"]},
    "another interpreter": {"argv": [os.path.realpath(sys.executable) + "/../python3", *ARGV[1:]]},
    "kernel class": {"argv": [*ARGV, "--kernel-class-name", "ipykernel.kernelbase.Kernel"]},
}


@pytest.mark.parametrize(
    "kind", [kind for kind in OTHER_KINDS if kind not in ("another interpreter", "kernel class")]
)
def test_what_cannot_be_changed_after_a_fork_has_a_template_of_its_own(launches: Launches, kind: str) -> None:
    """If it fails: a kernel has the locale, the libraries or the number of threads of another kernelspec."""
    warm(launches)
    assert launches.why(**OTHER_KINDS[kind]) == NO_TEMPLATE
    until(lambda: len(templates(launches.bridge)) == 2)


def test_another_interpreter_is_never_forked_from_the_first(launches: Launches, tmp_path: Path) -> None:
    """If it fails: a kernelspec that names another Python gets the first one's packages."""
    warm(launches)
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    try:
        told = launches(argv=[str(link), *ARGV[1:]])["prefork"]
    except ListenerError:
        return  # that Python has no ipykernel: it was not the first one
    assert told == {"used": False, "why": NO_TEMPLATE}


UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "options of Python": (
        {"argv": [ARGV[0], "-B", *ARGV[1:]]},
        "its argv is not an interpreter followed by launch_ipykernel.py",
    ),
    "a relative PYTHONPATH": ({"spec_env": {"PYTHONPATH": "."}}, "relative"),
    "a large environment": ({"request_env": {f"X{n}": "x" * 100_000 for n in range(12)}}, "too large"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_no_fork_can_be_starts_cold(launches: Launches, what: str) -> None:
    """If it fails: a kernel that is forked lacks what its kernelspec says."""
    parameters, why = UNFIT[what]
    assert why in launches.why(**parameters)
    time.sleep(0.5)
    assert templates(launches.bridge) == []


def test_a_kernel_class_may_refuse(launches: Launches, tmp_path: Path, home: Path) -> None:
    """If it fails: a class that cannot live in a fork is forked all the same."""
    write(
        tmp_path / "own.py",
        "from ipykernel.ipkernel import IPythonKernel\nclass Own(IPythonKernel):\n    prefork = False",
    )
    launches.parameters.update(
        argv=[*ARGV, "--kernel-class-name", "own.Own"], spec_env={"PYTHONPATH": str(tmp_path)}
    )
    assert launches.why() == NO_TEMPLATE
    until(lambda: "the kernel class own.Own says so" in listener_log(home), 20)
    assert launches.why() == "the kernel class own.Own says so"


def test_other_limits_or_another_umask_start_cold(launches: Launches, home: Path) -> None:
    """If it fails: an administrator's new limit holds for some kernels and not for others."""
    template = warm(launches)
    pid = launches.bridge.welcome["pid"]
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft // 2, hard))
    assert launches.why().startswith("limits of the process")
    until(lambda: not lives(template))
    template = template_is_ready(launches.bridge)
    reply = launches()
    assert reply["prefork"]["used"]
    assert printed(reply, "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])") == str(
        soft // 2
    )
    (home / ".profile").write_text("umask 027\n")
    assert launches.why().startswith("Umask of the process")


def test_where_memory_is_short_templates_leave(home: Path) -> None:
    """If it fails: on a full host what only saves time takes the memory of what people run."""
    change = "import prefork_kind; limit = prefork_kind.SPARE_MEMORY; import os; prefork_kind.memory = prefork_kind.memory_is_short"
    change += "; import prefork; prefork.memory_is_short = lambda: os.path.exists(os.environ['SHORT']) or prefork_kind.memory()"
    mark = home / "short"
    with changed_listener(home, change, SHORT=str(mark)):
        launches = Launches(Bridge(home))
        template = warm(launches)
        assert launches.why() == ""
        mark.touch()
        assert launches.why() == "memory is short on this host"
        until(lambda: not lives(template))
        time.sleep(0.5)
        assert templates(launches.bridge) == []
        launches.bridge.close()
    with changed_listener(home, "import prefork_kind; prefork_kind.SPARE_MEMORY = 1 << 60"):
        launches = Launches(Bridge(home))
        assert launches.why() == "memory is short on this host"
        launches.bridge.close()


CGROUPS = {
    "version 2": (
        "0::/a/b",
        "a",
        {"memory.max": "900", "memory.current": "800", "memory.stat": "file 9\ninactive_file 300\n"},
    ),
    "version 1": (
        "4:memory:/a/b",
        "memory/a",
        {
            "memory.limit_in_bytes": "900",
            "memory.usage_in_bytes": "800",
            "memory.stat": "inactive_file 1\ntotal_inactive_file 300\n",
        },
    ),
}


@pytest.mark.parametrize("version", CGROUPS)
def test_the_limit_of_a_group_of_processes_counts(tmp_path: Path, home: Path, version: str) -> None:
    """If it fails: in a session with a limit on its memory templates take what kernels are then killed for."""
    own, place, files = CGROUPS[version]
    (tmp_path / "own").write_text(own + "\n")
    (tmp_path / "root" / place / "b").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / "root" / place / name).write_text(text)
        unlimited = {"memory.max": "max", "memory.limit_in_bytes": "9223372036854771712"}
        (tmp_path / "root" / place / "b" / name).write_text(unlimited.get(name, text))
    code = "import sys, prefork_kind; print(prefork_kind.memory_limits(*sys.argv[1:]))"
    argv = [sys.executable, "-c", code, str(tmp_path / "own"), str(tmp_path / "root")]
    told = subprocess.run(
        argv, env={**os.environ, "PYTHONPATH": str(REMOTE)}, check=True, capture_output=True, text=True
    )
    assert told.stdout.strip() == "[(900, 500)]"
    change = "import prefork_kind; prefork_kind.memory_limits = lambda: [(1 << 40, 1 << 40)]"
    with changed_listener(home, change):
        launches = Launches(Bridge(home))
        assert launches.why() == "memory is short on this host"
        launches.bridge.close()


# --- templates that fail -----------------------------------------------------------------------------------------------------------------


def test_a_template_that_is_killed_or_stopped_fails_no_launch(launches: Launches) -> None:
    """If it fails: one bad process makes every launch on the host fail, or wait."""
    template = warm(launches)
    first = launches()
    os.kill(template, signal.SIGKILL)
    second = launches()
    assert not second["prefork"]["used"]
    assert lives(first["pid"])
    template = template_is_ready(launches.bridge)
    os.kill(template, signal.SIGSTOP)
    began = time.monotonic()
    third = launches()
    assert time.monotonic() - began < 5
    assert third["prefork"]["why"] in ("it is stopped", "it does not answer")
    until(lambda: not lives(template))
    for reply in (first, second, third):
        assert kernels(reply["kernel_id"]) == [reply["pid"]]


def test_a_template_that_hangs_costs_two_seconds_once_and_no_kernel_runs_twice(
    launches: Launches, library: Path
) -> None:
    """If it fails: a launch hangs with the template, or the kernel comes twice when the template goes on."""
    write(
        library / "mine.py",
        "import os, time; os.register_at_fork(before=lambda: time.sleep(600) if len(os.listdir('/proc/self/fd')) > 5 else None)",
    )
    template = warm(launches)
    began = time.monotonic()
    reply = launches()
    assert 1.5 < time.monotonic() - began < 5
    assert reply["prefork"] == {"used": False, "why": "it does not answer"}
    assert not lives(template)
    assert kernels(reply["kernel_id"]) == [reply["pid"]]


def test_a_kernel_whose_template_died_at_its_birth_never_wakes(launches: Launches, library: Path) -> None:
    """If it fails: the launch that fell back has two kernels of one id, which answer in turn."""
    hook = "def hook():\n    if os.getppid() != me: os.kill(me, signal.SIGKILL)\nos.register_at_fork(after_in_child=hook)"
    write(library / "mine.py", f"import os, signal\nme = os.getpid()\n{hook}")
    warm(launches)
    reply = launches()
    assert not reply["prefork"]["used"]
    until(lambda: kernels(reply["kernel_id"]) == [reply["pid"]])
    assert printed(reply, "import os; print(os.getpid())") == str(reply["pid"])


def test_a_launch_that_is_cancelled_leaves_no_fork(launches: Launches, library: Path) -> None:
    """If it fails: a closed tab leaves a process that nobody knows of."""
    hook = "import os, time; os.register_at_fork(after_in_child=lambda: time.sleep(0.5))"
    write(library / "mine.py", NO_SPARE + hook)
    warm(launches)
    from .driver import launch_parameters

    number = launches.bridge.send(
        "launch", **launch_parameters(ARGV, "early", prefork=True, **launches.parameters)
    )
    time.sleep(0.3)
    launches.bridge.request("cancel", kernel_id="early", generation=1)
    with pytest.raises(ListenerError):
        launches.bridge.reply(number)
    until(lambda: not kernels("early"))
    assert launches.why() == ""


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_templates_end_with_their_listener_and_kernels_do_not(
    launches: Launches, home: Path, number: signal.Signals, stopped: bool
) -> None:
    """If it fails: processes pile up on the host, or a kernel is lost with a process that it does not need."""
    template = warm(launches)
    reply = launches()
    if stopped:
        os.kill(template, signal.SIGSTOP)
    os.kill(launches.bridge.welcome["pid"], number)
    until(lambda: not lives(template))
    assert printed(reply, "print(1)") == "1"
    successor = Bridge(home)
    (status,) = [s for s in successor.welcome["kernels"] if s["kernel_id"] == reply["kernel_id"]]
    assert (status["state"], status["pid"], status["prefork"]["used"]) == ("running", reply["pid"], True)
    again = Launches(successor)
    assert warm(again) != template
    assert again.why() == ""
    successor.close()


def test_an_unused_template_leaves(home: Path) -> None:
    """If it fails: 60 MB for each environment stay taken on a host where nobody starts anything."""
    with changed_listener(home, "housekeeping.IDLE_EXIT = 1.0"):
        launches = Launches(Bridge(home), prefork_idle=3)
        template = warm(launches)
        assert launches.why() == ""
        began = time.monotonic()
        until(lambda: not lives(template), 15)
        assert time.monotonic() - began > 1.5
        assert launches.why() == NO_TEMPLATE
        launches.bridge.close()


def test_a_user_has_few_templates_and_the_least_used_one_goes(home: Path) -> None:
    """If it fails: whoever varies an option fills the host's memory."""
    with changed_listener(home, "import prefork; prefork.MOST = 2"):
        launches = Launches(Bridge(home))
        found = [warm_kind(launches, "1"), warm_kind(launches, "2")]
        assert launches.why(spec_env={"OMP_NUM_THREADS": "1"}) == ""
        found.append(warm_kind(launches, "3"))
        until(lambda: not lives(found[1]))
        assert sorted(templates(launches.bridge)) == sorted([found[0], found[2]])
        launches.bridge.close()


def warm_kind(launches: Launches, threads: str) -> int:
    before = templates(launches.bridge)
    assert launches.why(spec_env={"OMP_NUM_THREADS": threads}) == NO_TEMPLATE
    (pid,) = until(lambda: set(templates(launches.bridge)) - set(before))
    until(lambda: template_is_ready(launches.bridge) == pid)
    return int(pid)


def test_the_record_of_an_older_listener_is_read(launches: Launches, home: Path) -> None:
    """If it fails: an upgrade of the server loses the kernels that run."""
    reply = launches(prefork=False)
    os.kill(launches.bridge.welcome["pid"], signal.SIGKILL)
    (record,) = Path(launches.bridge.welcome["directory"]).glob("*/record")
    values = json.loads(record.read_text())
    del values["prefork"]
    record.write_text(json.dumps(values))
    successor = Bridge(home)
    assert [status["pid"] for status in successor.welcome["kernels"]] == [reply["pid"]]
    successor.close()
