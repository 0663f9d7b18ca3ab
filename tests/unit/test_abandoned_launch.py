"""Ctrl-C while a kernel is being started: nothing runs on that nobody has, and nobody waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.real_kernels import write_spec
from tests.conftest import own_processes, wait_until

SLOW = ["sh", "-c", "sleep 600; : {connection_file}"]
READY_LATER = ["sh", "-c", f"sleep 1; exec {sys.executable} -m ipykernel_launcher -f {{connection_file}}"]

SYNCHRONOUS = """
manager = KernelManager(kernel_name="slow")
say("starting")
manager.start_kernel()
"""
ASYNCHRONOUS = """
async def start():
    say("starting")
    await AsyncKernelManager(kernel_name="slow").start_kernel()

asyncio.run(start())
"""
CAUGHT = """
manager = KernelManager(kernel_name="slow")
say("starting")
try:
    manager.start_kernel()
except KeyboardInterrupt:
    pass
{then}
say("alive" if manager.is_alive() else "not alive")
time.sleep(0.1)
manager.shutdown_kernel(now=True)
say("shut down")
"""
PREFACE = """
import asyncio, os, sys, time
from jupyter_client.manager import AsyncKernelManager, KernelManager
from distributed_provisioner.ssh import control

def say(what):
    print(what, flush=True)

local_command = control.local_command

def counted(marker, run_as=None):
    say("bridge")
    return local_command(marker, run_as)

control.local_command = counted
"""


PATIENT = "from distributed_provisioner import io_thread\nio_thread.ABANDONED = 60.0\n"
"""That the loop stands still is not noticed."""


class Script:
    """A process that starts a kernel, and gets a Ctrl-C while it does."""

    def __init__(self, code: str) -> None:
        environ = {**os.environ, "GP_UNAUTHORIZED_USERS": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PREFACE + code],
            env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def interrupt(self, after: float) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "starting\n"
        assert self.process.stdout.readline() == "bridge\n"
        assert wait_until(lambda: bool(kernels()), 20)
        time.sleep(after)
        self.interrupted = time.monotonic()
        self.process.send_signal(signal.SIGINT)

    def end(self) -> tuple[list[str], str]:
        """What it printed after the interrupt, and its errors; `took` is how long it went on. An `input()` of its own returns."""
        try:
            output, errors = self.process.communicate("\n", timeout=40)
        finally:
            self.process.kill()
        self.took = time.monotonic() - self.interrupted
        print(errors)
        return output.split("\n")[:-1], errors


def kernels() -> set[int]:
    return own_processes("KERNEL_ID=")


@pytest.fixture(autouse=True)
def _no_cluster(isolated: Path) -> None:
    write_spec("slow", argv=SLOW, remote_hosts=["localhost"])


@pytest.mark.parametrize("code", [SYNCHRONOUS, ASYNCHRONOUS], ids=["synchronous", "asyncio.run"])
@pytest.mark.parametrize("after", [0.0, 0.5])
def test_a_script_that_is_interrupted_ends_at_once_and_leaves_nothing(code: str, after: float) -> None:
    """Ctrl-C that takes five seconds, or leaves a kernel on a host for a day, is none."""
    script = Script(code)
    script.interrupt(after)
    said, errors = script.end()
    assert said == []  # no second bridge
    assert "KeyboardInterrupt" in errors
    assert script.took < 3
    assert wait_until(lambda: not kernels())


@pytest.mark.parametrize("argv", [SLOW, READY_LATER], ids=["never ready", "ready later"])
def test_a_start_that_was_interrupted_is_undone_though_its_loop_stands_still(argv: list[str]) -> None:
    """In a REPL: the kernel that nobody has would run for a day, and `is_alive()` would deny it."""
    write_spec("slow", argv=argv, remote_hosts=["localhost"])
    script = Script(CAUGHT.format(then="input()"))
    script.interrupt(0.5)
    assert wait_until(lambda: not kernels(), 4)
    said, errors = script.end()
    assert said == ["not alive", "shut down"]
    assert "InvalidStateError" not in errors
    assert not kernels()


@pytest.mark.parametrize("then", ["", "time.sleep(0.3)"])
def test_a_shutdown_right_after_an_interrupted_start_ends_it(then: str) -> None:
    """`try: start_kernel() … finally: shutdown_kernel()` is what careful people write."""
    script = Script(PATIENT + CAUGHT.format(then=then) + "time.sleep(2)")
    script.interrupt(0.3)
    assert script.process.stdout is not None
    assert [script.process.stdout.readline() for _ in range(2)] == ["not alive\n", "shut down\n"]
    assert time.monotonic() - script.interrupted < 3
    assert wait_until(lambda: not kernels(), 1)
    said, errors = script.end()
    assert said == []
    assert "InvalidStateError" not in errors


def test_a_kernel_that_is_ready_in_the_moment_of_the_end_is_not_left() -> None:
    """The start was interrupted, the kernel came up nevertheless, and the process ended: nobody would ever end it."""
    write_spec("slow", argv=READY_LATER, remote_hosts=["localhost"])
    script = Script(PATIENT + CAUGHT.format(then="time.sleep(6)\nsys.exit()"))
    script.interrupt(0.5)
    said, _ = script.end()
    assert said == []
    assert script.took < 9
    assert wait_until(lambda: not kernels(), 1)
