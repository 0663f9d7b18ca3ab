"""Why a kernel ended: killed for want of memory, by a signal, or by itself."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .driver import REMOTE, Bridge, changed_listener, stub_argv

MEMORY = Path("/sys/fs/cgroup/memory")
UNIFIED = Path("/sys/fs/cgroup")
LIMIT = 96 << 20
EAT = "import time; time.sleep(0.3); held = []\nwhile True: held.append(bytearray(b'x') * (8 << 20))"
NOWHERE = "/nowhere/at/all"


@contextlib.contextmanager
def memory_cgroup() -> Iterator[Path]:
    """A cgroup of version 1 or 2 with a memory limit; skips where none can be made."""
    base = MEMORY if MEMORY.is_dir() else UNIFIED
    directory = base / f"dp-test-{os.getpid()}"
    try:
        if base is UNIFIED:
            (base / "cgroup.subtree_control").write_text("+memory")
        directory.mkdir()
        (directory / ("memory.limit_in_bytes" if base is MEMORY else "memory.max")).write_text(str(LIMIT))
        swap = directory / ("memory.memsw.limit_in_bytes" if base is MEMORY else "memory.swap.max")
        with contextlib.suppress(OSError):
            swap.write_text(str(LIMIT if base is MEMORY else 0))
    except OSError as error:
        with contextlib.suppress(OSError):
            directory.rmdir()
        pytest.skip(f"other platform: no memory cgroup can be made ({error})")
    try:
        yield directory
    finally:
        deadline = time.monotonic() + 10
        while directory.exists() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                directory.rmdir()
            time.sleep(0.02)


def ended(bridge: Bridge) -> dict[str, Any]:
    event = bridge.event(30)
    assert event["event"] == "exited"
    return event


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (f"places.Places.KERNEL_LOG = '{NOWHERE}'", "the limit of its cgroup is 96 MB"),
        (f"places.Places.CGROUPS = '{NOWHERE}'", "the cgroup's memory was used up"),
        (
            "places.Places.CGROUPS = places.Places.KERNEL_LOG = '/nowhere'",
            "the host counted",
        ),
    ],
    ids=["cgroup", "kernel-log", "vmstat"],
)
def test_kernel_that_was_killed_for_memory_is_told_so(home: Path, change: str, words: str) -> None:
    """'Kernel died' sends people looking for a bug; that they need more memory is what they must hear."""
    with memory_cgroup() as cgroup, changed_listener(home, change) as pid:
        (cgroup / "cgroup.procs").write_text(str(pid))
        if "CGROUPS" in change and "KERNEL_LOG" not in change and not readable_kernel_log():
            pytest.skip("other platform: the kernel log cannot be read here")
        bridge = Bridge(home)
        bridge.launch(stub_argv(EAT))
        event = ended(bridge)
        assert (event["reason"], event["code"]) == ("oom", -9)
        assert event["detail"].startswith("killed for want of memory: ")
        assert words in event["detail"]
        [status] = bridge.request("list")["kernels"]
        assert status["reason"] == "oom"
        bridge.request("forget", kernel_id="k", generation=1)
        bridge.close()
        (cgroup.parent / "cgroup.procs").write_text(str(pid))


def readable_kernel_log() -> bool:
    return os.access("/dev/kmsg", os.R_OK) and os.readlink("/proc/self/ns/pid") == "pid:[4026531836]"


@pytest.fixture
def counted(home: Path, tmp_path: Path) -> Iterator[tuple[Bridge, Path]]:
    """A listener that sees cgroups of version 2 in a directory of the test's, and the counters of all its kernels."""
    root = tmp_path / "cgroup"
    root.mkdir()
    for base in (root, root / "unified"):
        base.mkdir(exist_ok=True)
        (base / "memory.max").write_text(f"{512 << 20}\n")
        (base / "memory.events").write_text("low 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n")
    change = (
        f"places.Places.CGROUPS = {str(root)!r}; places.Places.KERNEL_LOG = '{NOWHERE}'; reasons.RECENT = 0.5"
    )
    with changed_listener(home, change):
        bridge = Bridge(home)
        yield bridge, root / "memory.events"
        bridge.close()


def test_counter_of_version_2_is_read(counted: tuple[Bridge, Path]) -> None:
    """Most hosts have cgroups of version 2."""
    bridge, events = counted
    kernel = bridge.launch(stub_argv())
    events.write_text("oom 2\noom_kill 2\n")
    os.kill(kernel["pid"], signal.SIGKILL)
    event = ended(bridge)
    assert (event["reason"], event["code"]) == ("oom", -9)
    assert "the limit of its cgroup is 512 MB" in event["detail"]


def test_kill_of_long_ago_explains_nothing(counted: tuple[Bridge, Path]) -> None:
    """Another kernel's fate must not be told of one that somebody killed by hand later."""
    bridge, events = counted
    kernels = {name: bridge.launch(stub_argv(), name) for name in ("first", "second")}
    events.write_text("oom_kill 2\n")
    os.kill(kernels["first"]["pid"], signal.SIGKILL)
    assert ended(bridge)["reason"] == "oom"
    time.sleep(0.7)
    os.kill(kernels["second"]["pid"], signal.SIGKILL)
    event = ended(bridge)
    assert (event["reason"], event["detail"]) == ("signal", "killed by SIGKILL")


def test_kernel_that_was_ended_on_request_is_not_told_to_lack_memory(counted: tuple[Bridge, Path]) -> None:
    """Who shuts a kernel down, or kills it in Jupyter, wants no other reason."""
    bridge, events = counted
    bridge.launch(stub_argv(), "a")
    bridge.launch(stub_argv(), "b")
    events.write_text("oom_kill 2\n")
    assert bridge.request("end", kernel_id="a", generation=1, grace=0)["reason"] == "signal"
    bridge.request("signal", kernel_id="b", generation=1, signal=int(signal.SIGKILL))
    assert [ended(bridge)["reason"], ended(bridge)["reason"]] == ["signal", "signal"]


def test_kernel_killed_while_no_listener_was_there_is_explained(
    home: Path, counted: tuple[Bridge, Path]
) -> None:
    """What takes all the memory takes the listener with it: its successor still tells why."""
    bridge, events = counted
    kernel = bridge.launch(stub_argv())
    os.kill(bridge.welcome["pid"], signal.SIGKILL)
    os.kill(kernel["pid"], signal.SIGKILL)
    events.write_text("oom_kill 2\n")
    change = f"places.Places.CGROUPS = {str(events.parent)!r}; places.Places.KERNEL_LOG = '{NOWHERE}'"
    with changed_listener(home, change):
        again = Bridge(home)
        [status] = again.request("adopt", kernels=[{"kernel_id": "k", "generation": 1}])["kernels"]
        assert (status["state"], status["code"], status["reason"]) == ("exited", None, "oom")
        again.close()


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        ("os.write(2, b'slurmstepd: error: Detected 1 oom_kill event in StepId=7.0\\n'); os.kill(os.getpid(), 9)", "oom",
         "its log says 'slurmstepd: error: Detected 1 oom_kill event"),
        ("os.write(2, b'Out of memory: Killed process 7\\n'); os._exit(137)", "oom", "its log says 'Out of memory"),
        ("os.write(2, b'MemoryError\\n'); os._exit(1)", "exited", "exited with status 1"),
        ("os.write(2, b'MemoryError\\n'); os.kill(os.getpid(), 9)", "signal", "killed by SIGKILL"),
        ("os.write(2, b'Out of memory\\n'); os._exit(1)", "exited", "exited with status 1"),
        ("os.kill(os.getpid(), 11)", "signal", "killed by SIGSEGV"),
        ("os.kill(os.getpid(), 15)", "signal", "killed by SIGTERM"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 3)", "signal", "killed by signal 37"),
    ],
)  # fmt: skip
def test_how_it_ended_is_told_in_words(
    counted: tuple[Bridge, Path], code: str, reason: str, words: str
) -> None:
    """A crash in native code, a kill by hand, a batch system's own word: each leads somewhere else."""
    bridge, _ = counted
    bridge.launch(stub_argv(f"import os, signal, time; time.sleep(0.3); {code}"))
    event = ended(bridge)
    assert event["reason"] == reason
    assert words in event["detail"]


def test_kernel_log_names_the_process_and_when(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A line for a process that had the same number long ago is not about this kernel."""
    monkeypatch.syspath_prepend(str(REMOTE))
    import reasons
    from kernels import Kernel

    ticks = os.sysconf("SC_CLK_TCK")
    kernel = Kernel(str(tmp_path), pid=4711, kernel_pid=4712, start=1000 * ticks)
    log = tmp_path / "kmsg"
    monkeypatch.setattr(reasons, "INITIAL_NAMESPACE", os.readlink("/proc/self/ns/pid"))
    found = reasons.Reasons(NOWHERE, str(log))
    line = (
        "3,1,{},-;Out of memory: Killed process {} (python3) total-vm:9000kB, anon-rss:{}kB, file-rss:0kB\n"
    )
    for seconds, pid, expected in ((1200, 4712, True), (900, 4712, False), (1200, 4713, False)):
        log.write_text(line.format(seconds * 1_000_000, pid, 5 << 20))
        why = found.in_kernel_log(kernel)
        assert bool(why) is expected
        assert not expected or ("the host's memory" in why and "5120 MB" in why)
