"""What a page that shows a notebook goes through: its server killed, its host's line cut, its kernel killed.

Lab tries to reach a lost server again by itself: at once, then each time after 10 to 30 seconds, which it picks by chance; nothing that
happens to the page (focus, `online` events) makes it look sooner. One test waits for that; in the others it picks the shortest.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.applications.desk import Desk

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster
    from tests.browser.lab_page import LabPage
    from tests.browser.lab_server import LabServer

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(240)]

LAB_LOOKS_AGAIN = 70.0
"""Seconds in which Lab finds a server that has come back: two of its longest pauses, and some for a slow machine."""
SHOW = "print(x)"


QUIET = 3.0
"""Seconds that the cells of `count(..., quiet_after=n)` are silent."""


def count(start: int, stop: int, quiet_after: int = -1) -> str:
    """A cell that prints five numbers a second, but for a silence after one of them, and then sets `x`."""
    pause = f"{QUIET} if n == {quiet_after} else 0.2"
    return f"import time\nfor n in range({start}, {stop}):\n    print(n, flush=True)\n    time.sleep({pause})\nx = 'kept'"


def until_quiet(page: LabPage, cell: int, last: int | str) -> None:
    """Wait for the last line before a silence, and until the host knows that it was shown."""
    page.wait_for_text(cell, f"{last}\n")
    time.sleep(QUIET / 4)


def kill_in_the_silence(lab: LabServer, page: LabPage, last: int) -> None:
    """Start the first cell, and kill the server when it has printed `last` and is silent."""
    page.start(0)
    until_quiet(page, 0, last)
    page.hurry()
    lab.kill()


def numbers(start: int, stop: int) -> list[str]:
    return [str(n) for n in range(start, stop)]


# --- the server is killed -----------------------------------------------------------------------------------------------------------


def test_an_open_page_goes_on_after_the_server_was_killed(
    open_notebook: Callable[..., LabPage], lab: LabServer
) -> None:
    """If it fails: a crash or an upgrade of the server costs its users what their cells printed, or the kernel itself."""
    page = open_notebook("long.ipynb", count(0, 100), SHOW, "while True: time.sleep(0.05)", "print(2)")
    kernel = page.wait_until_idle().kernel
    page.start(0)
    page.wait_for_text(0, "10\n")
    lab.kill()
    page.wait_for_state(connection="connecting", indicator="connecting")
    lab.start()
    page.wait_for_server(LAB_LOOKS_AGAIN)
    shown = page.wait_until_run(0, 60).split()
    # What the server had handed to the page, and not yet told the host of, when it was killed, is there twice: no more than a line.
    assert list(dict.fromkeys(shown)) == numbers(0, 100)
    assert len(shown) <= 101
    page.wait_until_idle()
    assert page.state().kernel == kernel
    assert page.run(1) == "kept\n"

    page.save()
    page.reload()
    assert page.wait_until_idle().kernel == kernel
    assert page.output(0).split() == shown
    assert page.run(1) == "kept\n"
    page.start(2)
    page.wait_for_state(status="busy")
    page.press("interrupt")
    assert "KeyboardInterrupt" in page.wait_until_run(2)
    page.press("restart")
    page.accept()
    page.wait_until_idle()
    assert "NameError" in page.run(1)
    assert [session["kernel"]["id"] for session in lab.sessions()] == [kernel]
    assert lab.request("DELETE", f"/api/kernels/{kernel}")[0] == 204
    assert lab.sessions() == []


def test_a_cell_that_ended_while_the_server_was_down_is_shown_as_it_ended(
    open_notebook: Callable[..., LabPage], lab: LabServer
) -> None:
    """If it fails: a notebook is busy for ever, or lacks the last lines, when its server was away at the wrong moment."""
    page = open_notebook("ended.ipynb", count(0, 25, 10), SHOW)
    kernel = page.wait_until_idle().kernel
    kill_in_the_silence(lab, page, 10)
    time.sleep(QUIET + 4)  # the rest of the cell takes that long
    lab.start()
    page.wait_for_server()
    assert page.wait_until_run(0).split() == numbers(0, 25)
    assert page.wait_until_idle().kernel == kernel
    assert page.run(1) == "kept\n"


def test_much_that_was_printed_meanwhile_is_not_taken_for_a_flood(
    open_notebook: Callable[..., LabPage], lab: LabServer
) -> None:
    """If it fails: Jupyter Server drops what comes at once after a restart ("IOPub data rate exceeded"), though it was printed slowly."""
    lines = "for n in range(40):\n    print(n, ('x ' * 40 + chr(10)) * 1500, flush=True)\n    time.sleep(0.2)"
    page = open_notebook("much.ipynb", f"import time; print('go', flush=True); time.sleep({QUIET})\n{lines}")
    page.wait_until_idle()
    page.start(0)
    until_quiet(page, 0, "go")
    page.hurry()
    lab.kill()
    time.sleep(QUIET + 8)  # as long as the cell takes: all of it comes from the host's store
    lab.start()
    page.wait_for_server()
    assert page.wait_until_run(0, 60).replace("x", "").split() == ["go", *numbers(0, 40)]


def test_an_open_page_goes_on_after_an_upgrade_of_the_server(
    desk: Desk, open_notebook: Callable[..., LabPage], lab: LabServer
) -> None:
    """If it fails: servers cannot be upgraded while their users compute, though `on_server_stop` says that kernels are kept."""
    desk.install("ssh_keep", "--remote-hosts", "host1", on_server_stop="keep")
    page = open_notebook("upgrade.ipynb", count(0, 40, 5), SHOW, kernel="ssh_keep")
    kernel = page.wait_until_idle().kernel
    page.start(0)
    until_quiet(page, 0, 5)
    page.hurry()
    lab.stop()
    page.wait_for_state(connection="connecting")
    lab.start()
    page.wait_for_server()
    assert page.wait_until_run(0).split() == numbers(0, 40)
    assert page.run(1) == "kept\n"
    assert page.wait_until_idle().kernel == kernel


def test_a_notebook_that_was_closed_meanwhile_is_opened_with_its_kernel(
    open_notebook: Callable[..., LabPage], lab: LabServer
) -> None:
    """If it fails: people who come back in the morning find a fresh kernel, and the old one computes for nobody."""
    page = open_notebook("closed.ipynb", count(0, 40), SHOW)
    kernel = page.wait_until_idle().kernel
    page.start(0)
    page.wait_for_text(0, "5\n")
    page.close()
    lab.kill()
    lab.start()
    again = open_notebook("closed.ipynb")
    assert again.wait_until_idle(60).kernel == kernel
    assert again.run(1) == "kept\n"
    assert [session["kernel"]["id"] for session in lab.sessions()] == [kernel]


def test_two_windows_with_one_notebook_each_get_what_they_asked_for(
    open_notebook: Callable[..., LabPage], lab: LabServer
) -> None:
    """If it fails: after a restart of the server the output of one window is missing, or turns up in the other."""
    first = open_notebook("twice.ipynb", count(0, 30, 5), count(100, 120))
    kernel = first.wait_until_idle().kernel
    second = open_notebook("twice.ipynb")
    assert second.wait_until_idle().kernel == kernel
    first.start(0)
    second.start(1)
    for page in (first, second):
        page.hurry()
    until_quiet(first, 0, 5)
    lab.kill()
    for page in (first, second):
        page.wait_for_state(connection="connecting")
    lab.start()
    for page in (first, second):
        page.wait_for_server()
    assert first.wait_until_run(0).split() == numbers(0, 30)
    assert second.wait_until_run(1).split() == numbers(100, 120)
    assert first.output(1) == second.output(0) == ""
    assert first.state().kernel == second.state().kernel == kernel


def test_a_host_that_is_away_while_the_server_starts_is_waited_for(
    cluster: Cluster, open_notebook: Callable[..., LabPage], lab: LabServer
) -> None:
    """If it fails: after a failure that hit server and network alike, open pages call living kernels dead, and new pages start others."""
    page = open_notebook("away.ipynb", count(0, 25, 5), SHOW)
    kernel = page.wait_until_idle().kernel
    kill_in_the_silence(lab, page, 5)
    page.wait_for_state(connection="connecting")
    cluster["host1"].kill_sshd()
    try:
        lab.start()
        # A kernel that is not in these lists is dead to a page that is open, for good; after 503 it asks again.
        status, kernels = lab.request("GET", "/api/kernels")
        assert status == 503 or [each["id"] for each in kernels] == [kernel]
        status, sessions = lab.request("GET", "/api/sessions")
        assert status == 503 or [each["path"] for each in sessions] == ["away.ipynb"]
        page.dismiss("Server Connection Error")
        time.sleep(12)  # Lab asks for them every ten seconds
        assert page.state().status != "dead"
    finally:
        cluster["host1"].start_sshd()
        page.wait_for(
            lambda: lab.request("GET", f"/api/kernels/{kernel}")[0] == 200, "the kernel is found", 60
        )
    page.wait_for_server()
    assert page.wait_until_run(0, 60).split() == numbers(0, 25)
    assert page.state().kernel == kernel
    assert page.run(1) == "kept\n"


# --- the host is away ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["frames", "connection"])
def test_a_line_that_is_dead_for_five_seconds_loses_nothing(
    fault: str, cluster: Cluster, open_notebook: Callable[..., LabPage]
) -> None:
    """If it fails: a hiccup of the network leaves holes in the output, or lines twice, or a cell that never ends."""
    page = open_notebook(f"{fault}.ipynb", count(0, 50), SHOW)
    kernel = page.wait_until_idle().kernel
    page.start(0)
    page.wait_for_text(0, "5\n")
    host = cluster["host1"]
    cut, mend = (host.blackhole, host.heal) if fault == "frames" else (host.kill_sshd, host.start_sshd)
    cut()
    try:
        time.sleep(5)
    finally:
        mend()
    printed = page.wait_until_run(0, 60).splitlines()
    assert [line for line in printed if not line.startswith("[")] == numbers(0, 50)
    assert len(printed) <= 51  # that the host is away is said once, if it takes so long to reach it again
    assert page.run(1) == "kept\n"
    assert page.wait_until_idle().kernel == kernel


def test_a_host_that_is_lost_is_named_in_the_cell_and_found_again(
    cluster: Cluster, open_notebook: Callable[..., LabPage], lab: LabServer
) -> None:
    """If it fails: an unreachable host looks like a slow cell, or like a dead kernel.

    Lab has no word of its own for it and drops status messages with words that it does not know, so the sentence is what people see.
    """
    page = open_notebook("lost.ipynb", count(0, 30), SHOW)
    kernel = page.wait_until_idle().kernel
    page.start(0)
    page.wait_for_text(0, "5\n")
    cluster["host1"].kill_sshd()
    try:
        page.wait_for_text(0, "host1 cannot be reached", 60)
        assert lab.request("GET", f"/api/kernels/{kernel}")[1]["execution_state"] == "reconnecting"
        assert page.state().status == "busy"
    finally:
        cluster["host1"].start_sshd()
    printed = page.wait_until_run(0, 60).splitlines()
    assert [line for line in printed if not line.startswith("[")] == numbers(0, 30)
    assert len([line for line in printed if line.startswith("[")]) == 1
    assert page.run(1) == "kept\n"
    assert page.wait_until_idle().kernel == kernel


# --- the kernel is killed -----------------------------------------------------------------------------------------------------------


def test_the_notebook_says_what_killed_its_kernel(
    cluster: Cluster, open_notebook: Callable[..., LabPage]
) -> None:
    """If it fails: all that people learn is that their kernel died."""
    page = open_notebook("killed.ipynb", "import os; print(os.getpid())", count(0, 200), SHOW)
    kernel = page.wait_until_idle().kernel
    pid = int(page.run(0))
    page.start(1)
    page.wait_for_text(1, "5\n")
    (process,) = [each for each in cluster["host1"].processes() if each.pid == pid]
    os.kill(process.outer_pid, signal.SIGKILL)
    page.wait_for_text(1, "SIGKILL")
    assert "killed.ipynb" in page.accept()  # Lab's own dialog: it will restart automatically
    page.wait_for_state(connection="connected")
    assert "NameError" in page.run(2)
    assert page.wait_until_idle().kernel == kernel
