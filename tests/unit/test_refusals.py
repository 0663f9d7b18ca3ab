"""What cannot be launched is refused with a sentence that says what to do, and leaves no kernel pending."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager

from distributed_provisioner import errors
from distributed_provisioner.kernel import RemoteKernel
from distributed_provisioner.launch_errors import explained
from distributed_provisioner.launch_request import build_request
from distributed_provisioner.models import HostAddress, KernelState, LaunchRequest
from distributed_provisioner.settings import resolve
from distributed_provisioner.ssh.listener_errors import exception_of
from distributed_provisioner.ssh.watching import event_of
from tests.cluster.real_kernels import write_spec


@pytest.fixture(autouse=True)
def _anyone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GP_UNAUTHORIZED_USERS", "")


async def test_a_failure_that_is_not_ours_leaves_no_pending_kernel_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If it fails: a server that met a bug of ours never exits on SIGTERM."""
    write_spec(remote_hosts=["localhost"])
    monkeypatch.setattr("distributed_provisioner.provisioner.build_request", lambda *args, **kwargs: 1 / 0)
    many = AsyncMultiKernelManager()
    with pytest.raises(ZeroDivisionError):
        await many.start_kernel(kernel_name="remote_python", kernel_id="k1")
    assert not many._pending_kernels


def test_a_working_directory_that_was_removed_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails: a server whose directory was cleaned up starts no kernel any more."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    os.rmdir(tmp_path / "gone")
    assert request_of(["python3", "{connection_file}"]).directories == ()


def test_an_empty_argv_is_refused_before_any_host_is_asked() -> None:
    """If it fails: the host's words are all that the user gets."""
    with pytest.raises(errors.KernelSpecError, match="its argv is empty"):
        request_of([])


def test_a_launcher_that_ended_without_a_word_says_what_to_do() -> None:
    """If it fails: "it wrote nothing to its log" is the end of the road."""
    said = explain(
        {"type": "launcher-exited", "message": "true exited with status 0 before the kernel was ready"}
    )
    assert said == (
        "The kernel did not start on host1: true exited with status 0 before the kernel was ready. It wrote nothing to its log. "
        "Run the argv of its kernel.json by hand on that host to see why, or correct it."
    )


def test_what_is_too_large_for_a_process_is_named() -> None:
    """If it fails: "Argument list too long" of 200 variables."""
    said = explain(
        {
            "type": "too-large",
            "message": "Argument list too long: 210 KB in all, the environment variable BIG has 200 KB of it",
        }
    )
    assert said == (
        "The kernel cannot be started on host1: Argument list too long: 210 KB in all, "
        "the environment variable BIG has 200 KB of it. Shorten that."
    )


@pytest.mark.parametrize("kind", ["bad-request", "unknown-op"])
def test_a_refused_request_says_what_to_do(kind: str) -> None:
    """If it fails: users see the listener's words and no way on."""
    said = str(exception_of({"type": kind, "message": "as the host said it"}, "host1"))
    assert said.startswith("The listener on host1 refused a request: as the host said it. ")
    assert len(said.split(". ")) > 1


async def test_memory_that_ran_out_is_told_in_the_hosts_own_words(caplog: pytest.LogCaptureFixture) -> None:
    """If it fails: users search for a bug in their code where the host's memory was full."""
    event = event_of(
        {
            "event": "exited", "kernel_id": "k1", "generation": 1, "code": -9, "reason": "oom",
            "detail": "killed by the out-of-memory killer of its cgroup (limit 100 MB)", "log_tail": "",
        }
    )  # fmt: skip
    assert event is not None
    kernel = RemoteKernel("k1", logging.getLogger("test"))
    kernel._life.state = KernelState.RUNNING
    kernel._life.on_event(event)
    assert kernel.exit_reason is not None
    assert (kernel.exit_reason.reason, kernel.exit_reason.code, kernel.poll()) == ("oom", -9, -9)
    assert (
        "the kernel has ended: killed by the out-of-memory killer of its cgroup (limit 100 MB)" in caplog.text
    )


async def test_an_unreachable_host_is_told_once_before_the_error(caplog: pytest.LogCaptureFixture) -> None:
    """If it fails: three lines for each host that is down, for each launch."""
    caplog.set_level("INFO")
    write_spec(remote_hosts=["me@localhost:9", "me@127.0.0.1:9"])
    with pytest.raises(errors.NoHostAvailableError) as caught:
        await AsyncKernelManager(kernel_name="remote_python").start_kernel()
    told = [record for record in caplog.records if "me@localhost:9" in record.getMessage()]
    assert [record.levelname for record in told if record.levelno < logging.ERROR] == ["INFO"]
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("  me@localhost:9 cannot be reached: ")
    assert lines[2].startswith("  me@127.0.0.1:9 cannot be reached: ")


def request_of(argv: list[str], **env: str) -> LaunchRequest:
    class Spec:
        language = "python"
        resource_dir = ""
        env: dict[str, str] = {}  # noqa: RUF012 # as in jupyter_client

    spec: Any = Spec()
    spec.argv = argv
    settings = resolve({"remote_hosts": "host1"}, {"unauthorized_users": []}, {})
    return build_request(
        settings, kernel_id="k1", kernel_name="x", kernel_spec=spec, env=env, cwd=None, extra_arguments=(),
        key="sesame", encryption=None,
    )  # fmt: skip


def explain(error: dict[str, str]) -> str:
    made = exception_of(error, "host1")
    assert isinstance(made, errors.LaunchError)
    return str(explained(made, request_of(["true"]), HostAddress("host1")))
