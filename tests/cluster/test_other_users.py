"""Another ordinary user of a host, who tries what the system lets an ordinary user try."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.cluster.real_kernels import needs_encryption, provisioner_of, run, running, write_spec

from distributed_provisioner.testing.errors import Unsupported
from distributed_provisioner.testing.namespaces import Cluster

pytestmark = pytest.mark.cluster
INTRUDER = "mallory"


@pytest.fixture(autouse=True)
def _anybody(isolated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GP_UNAUTHORIZED_USERS", "")


TRY = """
import os, signal, socket, sys
from pathlib import Path
got = []
def attempt(what, work):
    try:
        work()
    except PermissionError:
        return
    except OSError as error:
        got.append(f"{what}: {error}")  # another error than "not permitted": a door was open
    else:
        got.append(what)
def connect(path):
    with socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)
pid, directory, log = int(sys.argv[1]), sys.argv[2], sys.argv[3]
attempt("list its sockets", lambda: os.listdir(directory))
attempt("connect to the listener", lambda: connect(os.path.join(os.path.dirname(directory), "s")))
for number in range(1, 6):
    attempt("connect to the kernel", lambda: connect(os.path.join(directory, f"k-{number}")))
attempt("read the connection file", lambda: Path(directory, "connection.json").read_text())
attempt("read the log", lambda: Path(log).read_text())
attempt("read the environment", lambda: Path(f"/proc/{pid}/environ").read_bytes())
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
    attempt("signal", lambda: os.kill(pid, number))
    attempt("signal the group", lambda: os.killpg(pid, number))
print(got)
"""


def as_intruder(cluster: Cluster, host: str, code: str, *arguments: str) -> str:
    try:
        return cluster[host].run(sys.executable, "-c", code, *arguments, user=INTRUDER).stdout.strip()
    except Unsupported as reason:
        pytest.skip(f"no second user on these hosts: {reason}")


async def test_another_user_can_neither_read_nor_signal_nor_stop_a_kernel(cluster: Cluster) -> None:
    """If it fails: whoever has a login on a host reads along, or ends other people's work."""
    async with running(write_spec()) as (manager, client):
        process = provisioner_of(manager).kernel.process
        assert process is not None
        directory = process.ip.rpartition("/")[0]
        log = str(process.details["log"])
        assert as_intruder(cluster, "host1", TRY, str(process.pid), directory, log) == "[]"
        assert await run(client, "print('alive')") == "alive"


async def test_the_attempts_are_real(cluster: Cluster) -> None:
    """If it fails: the test above cannot fail either, since its attempts get nowhere for the owner."""
    async with running(write_spec()) as (manager, _):
        process = provisioner_of(manager).kernel.process
        assert process is not None
        directory, log = process.ip.rpartition("/")[0], str(process.details["log"])
        code = TRY.replace("signal.SIGINT, signal.SIGTERM, signal.SIGKILL", "0,")
        done = cluster["host1"].run(sys.executable, "-c", code, str(process.pid), directory, log)
        for attempt in (
            "list its sockets",
            "connect to the listener",
            "connect to the kernel",
            "read the log",
            "signal the group",
        ):
            assert attempt in done.stdout


LISTEN = """
import sys, time, zmq
context = zmq.Context()
subscriber = context.socket(zmq.SUB)
subscriber.subscribe(b"")
subscriber.connect(f"tcp://127.0.0.1:{sys.argv[1]}")
print(subscriber.poll(3000))
"""


@needs_encryption
async def test_another_user_hears_nothing_of_an_encrypted_tcp_kernel(cluster: Cluster) -> None:
    """If it fails: a kernel on TCP can be read by everybody who has a login on its host."""
    heard = []
    for name, metadata in (("encrypted", {"supported_encryption": ["curve"]}), ("plain", {})):
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = write_spec(name, argv=argv, metadata=metadata, kernel_transport="tcp")
        async with running(spec) as (manager, client):
            process = provisioner_of(manager).kernel.process
            assert process is not None
            client.execute("import time\nfor i in range(300): print(i); time.sleep(0.02)")
            port = str(process.ports["iopub"])
            heard.append(as_intruder(cluster, "host1", LISTEN, port) != "0")
    assert heard == [False, True], "the second one shows that the question is a real one"
