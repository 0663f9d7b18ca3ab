"""Kernels that are forked from a template: when, and when not."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .driver import REMOTE, Bridge, ListenerError, changed_listener, lives, until
from .forks import (
    ARGV,
    NO_TEMPLATE,
    Launches,
    command,
    connected,
    kernels,
    listener_log,
    printed,
    template_is_ready,
    templates,
    warm,
    write,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other platform: only Linux forks kernels")

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


# --- never a wrong kernel -----------------------------------------------------------------------------------------------------------------


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
