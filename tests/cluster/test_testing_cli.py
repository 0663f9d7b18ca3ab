"""`python -m distributed_provisioner.testing`, as `./run` and people use it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.cluster

COMMAND = [sys.executable, "-m", "distributed_provisioner.testing"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(autouse=True)
def _possible() -> None:
    done = run("check")
    if done.returncode:
        pytest.skip(done.stderr.strip())


def test_check_says_that_clusters_work_here() -> None:
    """People see before a long test run whether it can work."""
    done = run("check")
    assert done.stdout.startswith("clusters of sshd hosts work here, ")


def test_entered_command_has_a_network_of_its_own() -> None:
    """No test reaches the machine's network."""
    code = "import socket, os; print(*[n for _, n in socket.if_nameindex()], os.getuid())"
    done = run("enter", "--", sys.executable, "-c", code)
    assert done.stdout.split() == ["lo", str(os.getuid())]


def test_exit_status_is_the_commands() -> None:
    """A failed test run must fail `./run test`."""
    assert run("enter", "--", "sh", "-c", "exit 5").returncode == 5


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_cluster_by_hand_is_up_until_a_signal(end: signal.Signals) -> None:
    """Ctrl-C ends the hosts and leaves nothing."""
    with subprocess.Popen(
        [*COMMAND, "enter", "--", *COMMAND, "up", "1"], stdout=subprocess.PIPE, text=True
    ) as up:
        assert up.stdout is not None
        lines = []
        while "Ctrl-C" not in (line := up.stdout.readline()):
            assert line
            lines.append(line)
        assert lines[0].startswith("host1  10.77.")
        (home,) = [word[5:] for line in lines for word in line.split() if word.startswith("HOME=")]
        assert os.path.isdir(home)
        up.send_signal(end)
        assert up.wait(20) == 0
    assert not os.path.exists(home)
