"""A process that has a kernel and is killed: `python script_server.py KERNELSPEC WHAT [seconds by which its clock is wrong]`.

It says one JSON object a line: what another process needs to go on with the kernel, then that it is about to do WHAT.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

if len(sys.argv) > 3:
    right, wrong = time.time, float(sys.argv[3])
    time.time = lambda: right() + wrong

from jupyter_client.manager import AsyncKernelManager  # after the clock is wrong


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


async def main(spec: str, what: str) -> None:
    manager = AsyncKernelManager(kernel_name=spec)
    if what == "launch":
        say(about_to=what)
    await manager.start_kernel()
    assert manager.provisioner is not None
    info = await manager.provisioner.get_provisioner_info()
    connection = {**manager.get_connection_info(), "key": manager.session.key.decode()}
    say(info=info, connection=connection, kernel_id=manager.kernel_id)
    if what == "interrupt":
        client = manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=40)
        client.execute("import time\nx = 5\nwhile True: time.sleep(0.05)")
        while (await client.get_iopub_msg(timeout=20))["msg_type"] != "execute_input":
            pass
        say(about_to=what)
        await manager.interrupt_kernel()
    elif what in ("restart", "restart now"):
        say(about_to=what)
        await manager.restart_kernel(now=what == "restart now")
    await asyncio.sleep(300)


asyncio.run(main(sys.argv[1], sys.argv[2]))
