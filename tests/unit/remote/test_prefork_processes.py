"""What becomes of templates and of the forks that wait, and of launches when these fail."""

from __future__ import annotations

import json
import os
import re
import resource
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
    NO_SPARE,
    NO_TEMPLATE,
    Launches,
    kernels,
    printed,
    spare_is_ready,
    spares,
    template_is_ready,
    templates,
    warm,
    write,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other platform: only Linux forks kernels")

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
    until(lambda: state(spare) in "TZX")
    reply = launches()
    assert reply["prefork"]["used"]
    assert reply["pid"] != spare
    until(lambda: not lives(spare))
    assert printed(reply, "print(1)") == "1"
    assert spare_is_ready(launches.bridge) not in (spare, reply["pid"])


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "X"


def test_a_template_that_is_killed_beside_a_stopped_spare_fails_no_launch(launches: Launches) -> None:
    """If it fails: every launch of the kind fails until the spare goes on."""
    template = warm(launches)
    spare = spare_is_ready(launches.bridge)
    sockets = [os.readlink(f"/proc/{spare}/fd/{name}") for name in os.listdir(f"/proc/{spare}/fd")]
    assert len([name for name in sockets if name.startswith("socket:")]) == 1
    os.kill(spare, signal.SIGSTOP)
    until(lambda: state(spare) == "T")
    os.kill(template, signal.SIGKILL)
    for _ in range(2):
        reply = launches()
        assert not reply["prefork"]["used"]
        assert printed(reply, "print(1)") == "1"
    os.kill(spare, signal.SIGCONT)
    until(lambda: not lives(spare))


def test_a_process_that_is_gone_is_no_fit() -> None:
    """If it fails: a launch that finds its template just gone fails, instead of starting cold."""
    code = "import prefork; print(prefork.differences(1 << 22 - 1, 0o22))"
    env = {**os.environ, "PYTHONPATH": str(REMOTE)}
    told = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    assert "Uid" in told.stdout


def test_a_spare_that_does_not_go_on_costs_a_second_and_no_kernel_runs_twice(
    launches: Launches, library: Path
) -> None:
    """If it fails: a spare that was stopped in the wrong moment costs the whole launch_timeout, and the launch fails."""
    hang = "import time, os\nreal = time.tzset\ntime.tzset = lambda: time.sleep(600)"
    write(library / "mine.py", hang)
    warm(launches)
    spare = spare_is_ready(launches.bridge)
    began = time.monotonic()
    reply = launches()
    assert 0.9 < time.monotonic() - began < 5
    assert reply["prefork"] == {"used": False, "why": "the fork that waited does not go on"}
    until(lambda: not lives(spare))
    assert kernels(reply["kernel_id"]) == [reply["pid"]]


def test_where_no_spare_can_be_made_kernels_are_forked_when_they_are_asked_for(
    launches: Launches, library: Path
) -> None:
    """If it fails: where processes are scarce a template ends 0.3 s after each launch, and costs its imports each time."""
    refuse = """
import os
fork, full = os.fork, os.path.dirname(__file__) + ".full"
def refused():
    if os.path.exists(full):
        raise BlockingIOError(11, "no")
    return fork()
os.fork = refused
"""
    write(library / "mine.py", refuse)
    full = library.with_name("library.full")
    full.touch()
    template = warm(launches)
    time.sleep(1)
    assert templates(launches.bridge) == [template]
    assert spares(launches.bridge) == []
    full.unlink()
    assert launches.why() == ""
    assert spare_is_ready(launches.bridge)
    full.touch()
    assert launches.why() == ""
    assert launches.why() == "it cannot fork: no"


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


# --- pages that every kernel copies -------------------------------------------------------------------------------------------------------

COPIES_AHEAD = pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (5, 14),
    reason="other platform: a Linux before 5.14 makes no copies of pages ahead",
)


def own_memory(pid: int) -> int:
    """KB that no other process has."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.findall(r"Private_Dirty:\s*(\d+) kB", text)[0])


@COPIES_AHEAD
def test_a_spare_has_its_own_copies_of_what_every_kernel_writes_to(launches: Launches) -> None:
    """If it fails: each launch waits for thousands of page faults, which are a third of a kernel's start."""
    warm(launches)
    first = own_memory(spare_is_ready(launches.bridge))
    for _ in range(3):  # a kernel that took long to start is looked at only after the next spare was made
        reply = launches()
        assert reply["prefork"]["used"]
        time.sleep(1)
    assert own_memory(spare_is_ready(launches.bridge)) > first + 4096
    assert own_memory(spare_is_ready(launches.bridge)) < own_memory(reply["pid"]) + 2048
    again = launches()
    assert printed(again, "import sys; print(len(sys.modules) > 500)") == "True"


LOOK = """
import ctypes, json, mmap, os, sys, prefork_pages as pages
pages.MOST = int(sys.argv[1])
memory = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
with __import__("contextlib").suppress(OSError):
    memory.madvise(15)  # no huge pages
memory.write(b"x" * (1 << 20))
first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
here, there = os.pipe()

def fork(work):
    pid = os.fork()
    if pid == 0:
        work()
        os.write(there, b"+")
        while True:
            os.read(here, 0) or __import__("signal").pause()
    os.read(here, 1)
    found = [(a - first, b - first) for a, b in pages.own_pages(pid) if first <= a < first + (1 << 20)]
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return found

def write():
    memory[0] = memory[5 * pages.SIZE] = memory[6 * pages.SIZE] = 1

written = fork(write)
ahead = fork(lambda: pages.make_own([(first + a, first + b) for a, b in written]))
print(json.dumps([written, ahead, fork(lambda: None), pages.SIZE, memory[5 * pages.SIZE], pages.own_pages(1 << 30)]))
"""


def looked(most: int) -> list[Any]:
    code = [sys.executable, "-c", LOOK, str(most)]
    told = subprocess.run(
        code, env={**os.environ, "PYTHONPATH": str(REMOTE)}, check=True, capture_output=True, text=True
    )
    found: list[Any] = json.loads(told.stdout)
    return found


@COPIES_AHEAD
def test_copies_are_seen_and_made_page_by_page() -> None:
    """If it fails: spares copy nothing, or all of their template's memory."""
    written, ahead, untouched, size, value, nobody = looked(1 << 30)
    assert written == [[0, size], [5 * size, 7 * size]]
    assert ahead == written
    assert untouched == nobody == []
    assert value == ord("x")


def test_a_kernel_that_has_copied_very_much_is_no_example() -> None:
    """If it fails: one notebook that begins with large data makes each spare as large."""
    assert looked(2 * os.sysconf("SC_PAGE_SIZE"))[:2] == [[], []]


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
