"""What may go wrong around the listener, and what must not come of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from distributed_provisioner.ssh import bootstrap

from .driver import Bridge, ListenerError, changed_listener, lives, stub_argv, until

REMOTE = Path(__file__).parents[3] / "src/distributed_provisioner/remote"
RECORD = ".local/state/distributed-provisioner/*/listener-1.json"


def resident_kilobytes(pid: int) -> int:
    [line] = [
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")
    ]
    return int(line.split()[1])


def with_client(home: Path, client: str) -> Bridge:
    """A server process of its own, of the same server as `Bridge(home)` is."""
    connection = Bridge(home)
    connection.request("hello", protocol=1, owner="me", client=client)
    return connection


# --- leases ------------------------------------------------------------------------------------------------------------------------


def test_kernel_of_a_crashed_server_ends_though_another_process_of_the_server_is_there(
    home: Path, bridge: Bridge
) -> None:
    """A crashed and restarted server must not keep the kernels that nobody can reach any more alive for ever."""
    crashed, adopted = with_client(home, "first"), with_client(home, "second")
    lost = crashed.launch(stub_argv(), "lost", orphan_timeout=1)
    kept = crashed.launch(stub_argv(), "kept", orphan_timeout=1)
    crashed.close()
    adopted.request("attach", kernels=[{"kernel_id": "kept", "generation": 1}])
    until(lambda: not lives(lost["pid"]))
    time.sleep(1.5)
    assert lives(kept["pid"]), "the process that attached to it holds it now"
    adopted.close()
    until(lambda: not lives(kept["pid"]))


def test_another_server_of_the_user_cannot_take_a_kernels_id(home: Path, bridge: Bridge) -> None:
    """Two servers whose clients choose the same kernel id must not end each other's kernels."""
    kernel = bridge.launch(stub_argv())
    other = Bridge(home, owner="other")
    with pytest.raises(ListenerError, match="another server"):
        other.launch(stub_argv(), generation=2)
    other.close()
    assert lives(kernel["pid"])


def test_listener_leaves_when_it_is_not_used(home: Path) -> None:
    """Nothing of ours stays on a host that nobody uses any more."""
    with changed_listener(home, "housekeeping.IDLE_EXIT = 0.4") as pid:
        [record] = home.glob(RECORD)
        told = json.loads(record.read_text())
        until(lambda: not lives(pid))
        assert not record.exists()
        assert not Path(told["directory"]).exists()


# --- processes ---------------------------------------------------------------------------------------------------------------------

FORKING_LAUNCHER = """
import json, os, socket, sys, time
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); info = json.loads(s.makefile().readline())
if os.fork():
    time.sleep(0.5); os._exit(0)
held = []
for channel in ("shell", "iopub", "stdin", "control", "hb"):
    b = socket.socket(socket.AF_UNIX); b.bind(f"{info['ip']}-{info[channel + '_port']}"); b.listen(); held.append(b)
s.sendall(json.dumps({"connection_info": info, "pid": os.getpid(), "pgid": os.getpgid(0)}).encode() + b"\\n")
time.sleep(600)
"""


def test_kernel_that_outlives_its_launcher_is_watched(bridge: Bridge) -> None:
    """A launcher may start the kernel and end; the kernel's own end is still told with its signal."""
    kernel = bridge.launch(["python", "-c", FORKING_LAUNCHER, "{response_address}"])
    assert kernel["kernel_pid"] != kernel["pid"]
    until(lambda: not lives(kernel["pid"]))
    time.sleep(0.2)
    [status] = bridge.request("attach", kernels=[{"kernel_id": "k", "generation": 1}])["kernels"]
    assert status["state"] == "running"
    os.kill(kernel["kernel_pid"], signal.SIGKILL)
    event = bridge.event()
    assert (event["event"], event["code"]) == ("exited", -9)


def test_kernel_that_outlives_its_launcher_and_its_listener_is_found(home: Path, bridge: Bridge) -> None:
    """A new listener goes by the kernel's own process where the launcher has ended."""
    kernel = bridge.launch(["python", "-c", FORKING_LAUNCHER, "{response_address}"])
    until(lambda: not lives(kernel["pid"]))
    time.sleep(0.2)
    os.kill(bridge.welcome["pid"], signal.SIGKILL)
    again = Bridge(home)
    [status] = again.request("attach", kernels=[{"kernel_id": "k", "generation": 1}])["kernels"]
    assert status["state"] == "running"
    again.request("end", kernel_id="k", generation=1, grace=0)
    assert not lives(kernel["kernel_pid"])
    again.close()


def test_processes_are_known_by_their_start_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that was given to a stranger's process since then must not be signaled."""
    monkeypatch.syspath_prepend(str(REMOTE))
    import processes
    from server_listener import start_time

    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        start = start_time(child.pid)
        assert start is not None
        assert processes.members(child.pid, start, child.pid) == {child.pid: start}
        assert processes.members(child.pid, start - 1, child.pid) == {}
        assert processes.members(10**7, start, 10**7, {(child.pid, start - 1)}) == {}
        assert processes.members(10**7, start, 10**7, {(child.pid, start)}) == {child.pid: start}
    finally:
        child.kill()
        child.wait()


@pytest.mark.skipif(os.getuid() != 0, reason="other platform: only root can be another user")
def test_other_users_are_turned_away_at_the_socket_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The directory's mode is the first lock; the socket asks who comes as well."""
    monkeypatch.syspath_prepend(str(REMOTE))
    import connections

    path = f"/tmp/dp-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        try:
            os.chmod(path, 0o777)
            server.listen()
            code = (
                f"import socket, time; s = socket.socket(socket.AF_UNIX); s.connect({path!r}); time.sleep(60)"
            )
            seen = []
            for user in (None, 65534):
                client = subprocess.Popen(["/usr/bin/python3", "-I", "-S", "-c", code], user=user)
                accepted, _ = server.accept()
                seen.append(connections.same_user(accepted))
                accepted.close()
                client.kill()
                client.wait()
        finally:
            os.unlink(path)
    assert seen == [True, False]


# --- what cannot be started ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"request_env": {"KERNEL_BIG": "x" * 300_000}}, "the environment variable KERNEL_BIG has 292 KB"),
        ({"argv": ["python", "-c", "x" * 300_000]}, "argument 2 has 292 KB"),
    ],
)
def test_what_is_too_large_for_any_program_is_named(
    bridge: Bridge, parameters: dict[str, Any], words: str
) -> None:
    """Who is told to install Python would look in the wrong place."""
    with pytest.raises(ListenerError, match="Argument list too long") as caught:
        bridge.launch(**{"argv": stub_argv(), **parameters})
    assert caught.value.kind == "too-large"
    assert words in str(caught.value)


def test_what_is_no_program_is_told_as_what_it_is(bridge: Bridge, tmp_path: Path) -> None:
    """A directory, a script without its interpreter, and a file that is no program are three mistakes."""
    (tmp_path / "script").write_text("#!/no/such/interpreter -x\n")
    (tmp_path / "rubbish").write_bytes(b"\0\1\2")
    for name in ("script", "rubbish"):
        (tmp_path / name).chmod(0o755)
    for path, words in (
        (tmp_path, "Is a directory"),
        (tmp_path / "script", "its interpreter /no/such/interpreter -x was not found"),
        (tmp_path / "rubbish", "Exec format error"),
    ):
        with pytest.raises(ListenerError) as caught:
            bridge.launch([str(path)])
        assert caught.value.kind == "interpreter-not-found"
        assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["fifo", "dangling link", "unreadable"])
def test_a_hosts_odd_copy_of_a_specification_neither_hangs_nor_counts(
    bridge: Bridge, tmp_path: Path, kind: str
) -> None:
    """What lies on a host in the place of the specification must not stop all kernels of the user."""
    spec = tmp_path / "spec"
    spec.mkdir()
    odd = spec / "odd"
    if kind == "fifo":
        os.mkfifo(odd)
    elif kind == "dangling link":
        odd.symlink_to("nowhere")
    else:
        odd.write_text("secret")
        odd.chmod(0)
    with pytest.raises(ListenerError) as caught:
        bridge.launch(stub_argv(), resource_dir=str(spec), bundle="0" * 64)
    assert caught.value.kind == "need-bundle"
    assert bridge.request("ping") == {}


# --- directories and memory -----------------------------------------------------------------------------------------------------------


def test_a_directory_that_somebody_else_made_in_its_place_is_not_used(
    home: Path, bridge: Bridge, tmp_path: Path
) -> None:
    """Cleaned-up temporary directories can be taken by others: the next listener must neither trust them nor give up."""
    directory = Path(bridge.welcome["directory"])
    os.kill(bridge.welcome["pid"], signal.SIGKILL)
    bridge.process.wait(10)
    shutil.rmtree(directory)
    directory.symlink_to(tmp_path)
    try:
        again = Bridge(home)
        assert again.welcome["directory"] != str(directory)
        again.close()
    finally:
        directory.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_socket_that_was_cleared_away_is_made_again(home: Path) -> None:
    """A cleaner of /tmp must not cut a user off from the kernels."""
    with changed_listener(home, "housekeeping.IDLE_EXIT = 2; housekeeping.TOUCH = 0"):
        [record] = home.glob(RECORD)
        path = Path(json.loads(record.read_text())["socket"])
        with socket.socket(socket.AF_UNIX) as held:  # used, so that it stays
            held.connect(str(path))
            shutil.rmtree(path.parent)
            until(lambda: Path(json.loads(record.read_text())["socket"]).exists())


def test_listener_gives_memory_back_and_refuses_what_nobody_needs(home: Path, bridge: Bridge) -> None:
    """One large request must not make the listener large for the rest of its days."""
    pid = bridge.welcome["pid"]
    with pytest.raises(ListenerError):
        bridge.launch(stub_argv(), request_env={"KERNEL_BIG": "x" * (7 << 20)})
    until(lambda: resident_kilobytes(pid) < 32_000)
    other = Bridge(home)
    with contextlib.suppress(BrokenPipeError):
        other.send("ping", padding="x" * (9 << 20))
    with contextlib.suppress(BrokenPipeError):
        other.close()
    other.output.close()
    assert bridge.request("ping") == {}
    until(lambda: resident_kilobytes(pid) < 32_000)


def test_listener_is_small(home: Path, bridge: Bridge) -> None:
    """The budget is 20 MB of resident memory; measured with the interpreter of these tests, with room for others."""
    for number in range(5):
        bridge.launch(stub_argv(), f"k{number}")
    assert resident_kilobytes(bridge.welcome["pid"]) < 22_000


@pytest.mark.parametrize(
    ("op", "parameters"),
    [
        ("signal", {"kernel_id": "k", "generation": 1, "signal": 10**30}),
        ("signal", {"kernel_id": "k", "generation": 1, "signal": "9;id"}),
        ("log", {"kernel_id": "k", "limit": "many"}),
        ("attach", {"kernels": 7}),
        ("launch", {}),
        ("ship", {"bundle": 3, "files": None}),
        ("end", {"kernel_id": ["k"], "generation": 1}),
    ],
)
def test_each_request_has_an_answer(bridge: Bridge, op: str, parameters: dict[str, Any]) -> None:
    """Who asks nonsense is told, at once, and without the request's text in the answer."""
    kernel = bridge.launch(stub_argv())
    with pytest.raises(ListenerError):
        bridge.reply(bridge.send(op, **parameters), timeout=5)
    assert bridge.request("log", kernel_id="k", limit=-5)["text"] == ""
    assert lives(kernel["pid"])


def test_user_without_an_account(tmp_path: Path) -> None:
    """Containers run as a number that is in no passwd file."""
    if os.getuid() != 0:
        pytest.skip("other platform: only root can become a user without an account")
    home = Path("/tmp") / f"dp-test-{os.getpid()}"
    home.mkdir(mode=0o700)
    os.chown(home, 54321, 54321)
    python = "/usr/bin/python3"
    code = "import os, subprocess, sys; os.setgroups([]); os.setgid(54321); os.setuid(54321); os.execv(sys.argv[1], sys.argv[1:])"
    marker = bootstrap.new_marker()
    argv = [python, "-c", code, python, *bootstrap.local_command(marker)[1:]]
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"HOME": str(home), "PATH": os.defpath}
    )
    assert process.stdin is not None
    assert process.stdout is not None
    told: dict[str, Any] = {}
    try:
        process.stdin.write(
            bootstrap.preface() + b'{"id": 1, "op": "hello", "protocol": 1, "owner": "me", "client": "c"}\n'
        )
        process.stdin.flush()
        while process.stdout.readline().strip() != marker.encode():
            assert process.poll() is None
        told = json.loads(process.stdout.readline())["result"]
        assert told["user"] == "54321"
        request = {
            "id": 2, "op": "launch", "kernel_id": "k", "generation": 1, "key": "", "transport": "ipc", "remote_python": python,
            "argv": stub_argv(), "spec_env": {"SEEN": "${USER}:${HOME}"},
        }  # fmt: skip
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        assert "result" in answer, answer
        os.kill(answer["result"]["pid"], signal.SIGKILL)
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()
        if told:
            os.kill(told["pid"], signal.SIGKILL)
            shutil.rmtree(told["directory"], ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)
