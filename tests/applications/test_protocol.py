"""The messages that clients send: Jupyter's own test suite for kernels, and its debugger, over our connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import jupyter_kernel_test
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient

from tests.applications.desk import Desk
from tests.cluster.real_kernels import run, running

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def _at_the_desk(desk: Desk) -> Iterator[None]:
    """The kernel of the suite is started once for its class, before the fixtures of a test."""
    with desk.entered():
        yield


class TestKernelOnAHost(jupyter_kernel_test.KernelTests):  # type: ignore[misc] # it has no types
    """If one of them fails: some front end shows no completions, no history, no help, or nothing at all."""

    kernel_name = "ssh_python"
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = (
        {"text": "zi", "matches": {"zip"}},
        {"text": "print('hello'); zi", "matches": {"zip"}},
    )
    complete_code_samples = ("1", "print('hello, world')", "def f(x):\n  return x*2\n\n")
    incomplete_code_samples = ("print('''hello", "def f(x):\n  x*2")
    invalid_code_samples = ("import = 7q",)
    code_page_something = "zip?"
    code_generate_error = "raise"
    code_execute_result = (
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
    )
    code_display_data = (
        {
            "code": "from IPython.display import HTML, display; display(HTML('<b>test</b>'))",
            "mime": "text/html",
        },
    )

    def test_history(self) -> None:
        """The suite's own skips a part that no IPython kernel passes."""
        codes = [sample["code"] for sample in self.code_execute_result]
        reply = self.history_helper(codes, output=False, raw=True, hist_access_type="tail", n=2)
        assert [line for _, _, line in reply["content"]["history"]] == codes
        reply = self.history_helper(
            codes, output=False, raw=True, hist_access_type="search", pattern="1?2*", n=1
        )
        assert [line for _, _, line in reply["content"]["history"]] == ["1+2+3"]

    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"


# --- the debugger ------------------------------------------------------------------------------------------------------------------


class Debugger:
    """What a front end's debugger asks, over the control channel."""

    def __init__(self, client: AsyncKernelClient) -> None:
        self._client, self._sequence = client, 0

    async def request(self, command: str, **arguments: Any) -> Any:
        """The body of the answer."""
        self._sequence += 1
        content = {"type": "request", "seq": self._sequence, "command": command, "arguments": arguments}
        message = self._client.session.msg("debug_request", content)
        self._client.control_channel.send(message)
        while True:
            reply = await self._client.get_control_msg(timeout=15)
            if reply["parent_header"].get("msg_id") == message["header"]["msg_id"]:
                assert reply["content"]["success"], reply["content"]
                return reply["content"].get("body")

    async def event(self, name: str) -> Any:
        """The next event of that name, from iopub."""
        while True:
            message = await self._client.get_iopub_msg(timeout=15)
            if message["msg_type"] == "debug_event" and message["content"]["event"] == name:
                return message["content"].get("body")


async def test_the_debugger_stops_at_a_breakpoint() -> None:
    """If it fails: the bug icon of JupyterLab is there (`debugger: true`) and does nothing."""
    await stop_at_a_breakpoint("ssh_python")


async def stop_at_a_breakpoint(name: str) -> None:
    """Debug a cell of a kernel of this specification."""
    code = "def double(x):\n    y = x * 2\n    return y\nprint(double(21))"
    async with running(name) as (_, client):
        info = await client.kernel_info(reply=True, timeout=15)
        assert "debugger" in info["content"]["supported_features"]
        debugger = Debugger(client)
        assert (await debugger.request("initialize", clientID="test", adapterID="", pathFormat="path"))[
            "supportsSetVariable"
        ]
        await debugger.request("attach")
        path = (await debugger.request("dumpCell", code=code))["sourcePath"]
        reply = await debugger.request("setBreakpoints", source={"path": path}, breakpoints=[{"line": 3}])
        assert reply["breakpoints"][0]["verified"]
        await debugger.request("configurationDone")
        cell = client.execute(code)
        stopped = await debugger.event("stopped")
        assert stopped["reason"] == "breakpoint"
        frames = (await debugger.request("stackTrace", threadId=stopped["threadId"]))["stackFrames"]
        assert frames[0]["line"] == 3
        value = await debugger.request("evaluate", expression="y", frameId=frames[0]["id"])
        assert value["result"] == "42"
        await debugger.request("continue", threadId=stopped["threadId"])
        reply = await asyncio.wait_for(client.get_shell_msg(), 15)
        while reply["parent_header"]["msg_id"] != cell:
            reply = await asyncio.wait_for(client.get_shell_msg(), 15)
        assert reply["content"]["status"] == "ok"
        await debugger.request("disconnect", restart=False, terminateDebuggee=True)
        assert await run(client, "print(1)") == "1"
