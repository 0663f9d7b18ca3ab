"""Cells that the tests below Spark run."""

from __future__ import annotations

import asyncio
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

from tests.cluster.real_kernels import run, until

EXECUTORS = (
    "print(*set(sc.parallelize(range(2), 2).map(lambda _: __import__('socket').gethostname()).collect()))"
)
"""Prints the hosts on which tasks ran."""
LONG_JOB = (
    "import threading, time\n"
    "def tell():\n"
    "    while not sc.statusTracker().getActiveJobsIds(): time.sleep(0.1)\n"
    "    print('the job runs')\n"
    "threading.Thread(target=tell).start()\n"
    "sc.parallelize(range(2), 2).map(lambda _: __import__('time').sleep(100)).count()\n"
)


async def begin(
    client: AsyncKernelClient, code: str = LONG_JOB, sign: str = "the job runs"
) -> asyncio.Task[Any]:
    """Start a cell; once it has printed `sign`, the task that gets its reply."""
    printed: list[str] = []

    def output(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    task = asyncio.ensure_future(
        client.execute_interactive(code, timeout=200, output_hook=output, allow_stdin=False)
    )
    await until(lambda: sign in "".join(printed) or task.done(), 60)
    assert not task.done(), f"it ended at once: {printed}"
    return task


async def interrupt_a_job(manager: AsyncKernelManager, client: AsyncKernelClient) -> None:
    """It ends, on the executors too, and the session goes on."""
    cell = await begin(client)
    await manager.interrupt_kernel()
    assert (await asyncio.wait_for(cell, 15))["content"]["ename"] == "KeyboardInterrupt"
    left = "print(len(sc.statusTracker().getActiveJobsIds()), spark.range(10).count())"
    assert await run(client, left, 60) == "0 10"
