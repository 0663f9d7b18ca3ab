"""The I/O thread serves any number of loops and threads, and is neither shared with nor harmed by a forked child."""

from __future__ import annotations

import ast
import asyncio
import concurrent.futures
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from distributed_provisioner import io_thread
from distributed_provisioner.io_thread import IOThread


async def where() -> tuple[int, asyncio.AbstractEventLoop]:
    await asyncio.sleep(0)
    return threading.get_ident(), asyncio.get_running_loop()


def test_one_thread_serves_several_loops_one_after_the_other() -> None:
    """nbclient and papermill make a new loop for each notebook; each must find the same connections."""
    first = asyncio.run(IOThread.current().run(where()))
    second = asyncio.run(IOThread.current().run(where()))
    assert first == second
    assert first[0] != threading.get_ident()


def test_several_threads_with_loops_of_their_own_share_it() -> None:
    """A server with managers in several threads has one connection to a host, not one for each."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: asyncio.run(IOThread.current().run(where())), range(8)))
    assert len(found) == 1


async def test_work_goes_on_while_the_caller_is_busy() -> None:
    """A synchronous KernelManager turns its loop only inside its calls; the kernels' messages must travel nevertheless."""
    done = IOThread.current().submit(asyncio.sleep(0.05, "done"))
    time.sleep(0.3)  # noqa: ASYNC251 # the caller's loop stands still on purpose
    assert done.result(0) == "done"


async def test_calling_from_the_io_loop_itself_runs_directly() -> None:
    """Otherwise whoever calls a public method from an event callback waits for itself for ever."""

    async def outer() -> tuple[int, asyncio.AbstractEventLoop]:
        return await IOThread.current().run(where())

    assert (await asyncio.wait_for(IOThread.current().run(outer()), 5))[1] is IOThread.current().loop


async def test_an_exception_arrives_with_its_type_and_text() -> None:
    """Errors are the interface: what a host said must reach the user."""

    async def fail() -> None:
        raise LookupError("as it was said")

    with pytest.raises(LookupError, match="as it was said"):
        await IOThread.current().run(fail())


async def test_cancelling_the_caller_cancels_the_work_and_waits_for_its_cleanup() -> None:
    """A launch that is cancelled must have left nothing when the caller goes on."""
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.2)
            seen.append("clean")

    task = asyncio.ensure_future(IOThread.current().run(work()))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["clean"]


async def test_cleanup_that_hangs_does_not_keep_a_cancelled_caller_for_ever() -> None:
    """Ctrl-C in a console must work while a host is silent."""
    stuck = threading.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            while not stuck.is_set():  # noqa: ASYNC110 # it must not be told to end
                await asyncio.sleep(0.05)

    task = asyncio.ensure_future(IOThread.current().run(work()))
    await asyncio.sleep(0.05)
    start = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 1.5 < time.monotonic() - start < 4
    stuck.set()


async def test_work_cancelled_on_the_io_loop_is_not_taken_for_the_callers_own_cancellation() -> None:
    """A caller that was not cancelled must see an ordinary exception, or its `except Exception` clean-up is passed over."""

    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    with pytest.raises(concurrent.futures.CancelledError):
        await IOThread.current().run(cancels_itself())


def test_a_callers_loop_that_is_closed_meanwhile_harms_nobody() -> None:
    """A synchronous caller may give up and close its loop while a host is being asked."""

    async def give_up() -> None:
        asyncio.ensure_future(IOThread.current().run(asyncio.sleep(0.2)))  # noqa: RUF006
        await asyncio.sleep(0.05)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(give_up())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined] # it is left pending on purpose
    loop.close()
    time.sleep(0.4)
    assert asyncio.run(IOThread.current().run(where()))[1] is IOThread.current().loop


@pytest.mark.skipif(not hasattr(os, "fork"), reason="other platform: no fork")
def test_a_forked_child_gets_a_thread_of_its_own_and_the_parents_goes_on() -> None:
    """Servers fork (multiprocessing, daemons): a child that used its parent's connections would break them."""
    run(
        """
        thread = IOThread.current()
        where = asyncio.run(thread.run(loop_id()))
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            fresh = IOThread.current()
            assert fresh is not thread and fresh.pid == os.getpid()
            assert asyncio.run(fresh.run(loop_id())) != where
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert asyncio.run(thread.run(loop_id())) == where and IOThread.current() is thread
        """
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="other platform: no fork")
def test_a_forked_childs_end_closes_nothing_of_its_parents() -> None:
    """The child's atexit and garbage collection must not kill the parent's bridges or close its sockets."""
    run(
        """
        async def start():
            process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
            return process

        async def echo(process):
            process.stdin.write(b"still here\\n")
            return await process.stdout.readline()

        thread = IOThread.current()
        process = asyncio.run(thread.run(start()))
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            asyncio.run(IOThread.current().run(loop_id()))
            del thread, process
            gc.collect()
            sys.exit(0)  # runs atexit, unlike os._exit
        assert os.waitpid(child, 0)[1] == 0
        assert asyncio.run(thread.run(echo(process))) == b"still here\\n"
        process.kill()
        asyncio.run(thread.run(process.wait()))
        """
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="other platform: no fork")
def test_a_fork_while_another_thread_starts_it_does_not_lock_the_child() -> None:
    """The child of a multi-threaded server must not wait for a lock that nobody in it holds."""
    run(
        """
        with IOThread._lock:
            child = os.fork()
            if child == 0:
                signal.alarm(10)
                asyncio.run(IOThread.current().run(loop_id()))
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """
    )


def test_what_is_to_be_closed_is_closed_when_the_process_ends() -> None:
    """Hosts are told goodbye, and clean-up under way gets up to two seconds."""
    said = run(
        """
        async def close():
            await asyncio.sleep(0.3)
            print("closed", flush=True)

        IOThread.current().on_close(close)
        """
    )
    assert said == "closed\n"


def test_closing_that_hangs_does_not_keep_the_process_alive() -> None:
    """A server must end although a host is silent."""
    start = time.monotonic()
    run("IOThread.current().on_close(lambda: asyncio.sleep(60))")
    assert time.monotonic() - start < 6


def test_a_closed_thread_is_replaced() -> None:
    """Who closes it, in a test or a long-lived host application, can go on afterwards."""
    run(
        """
        IOThread.current().close()
        asyncio.run(IOThread.current().run(loop_id()))
        """
    )


def test_nothing_posix_is_needed_to_import_it() -> None:
    """On Windows the provisioner refuses with a sentence, not with an ImportError."""
    tree = ast.parse(Path(io_thread.__file__).read_text(encoding="utf-8"))
    imported = {
        (name.name if isinstance(node, ast.Import) else str(node.module)).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in node.names
    }
    assert imported.isdisjoint(
        {"fcntl", "grp", "pwd", "resource", "termios", "asyncssh", "distributed_provisioner"}
    )


PREFIX = """
import asyncio, gc, os, signal, sys
from distributed_provisioner.io_thread import IOThread

async def loop_id():
    return id(asyncio.get_running_loop()), os.getpid()

"""


def run(code: str) -> str:
    """Run code in a process of its own; what it says on stderr (warnings, tracebacks) is a failure."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREFIX + textwrap.dedent(code)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.returncode != -signal.SIGALRM
    return done.stdout
