"""What can be said of a kernel without any host: envelopes, what is kept, endpoints on this side, replies, poll()."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from distributed_provisioner import envelope, local_endpoints, persistence
from distributed_provisioner.errors import ConfigurationError, ProtocolError
from distributed_provisioner.kernel import RemoteKernel, life
from distributed_provisioner.kernel.reply import read_reply
from distributed_provisioner.models import (
    CHANNELS,
    ExitReason,
    HostAddress,
    KernelState,
    LaunchRequest,
    Login,
    RemoteProcess,
)

HOST = HostAddress("host1", "ann", 2222)
PROCESS = RemoteProcess(
    HOST, 10, 11, 10, 7, "ipc", "/tmp/x/k", {c: n for n, c in enumerate(CHANNELS, 1)}, "/home/ann"
)


# --- envelopes ------------------------------------------------------------------------------------------------------------------


def seal(info: object, public: str, **changes: Any) -> str:
    """What a launcher does that encrypts by itself, as the module documents it."""
    theirs = serialization.load_der_public_key(base64.b64decode(public))
    assert isinstance(theirs, X25519PublicKey)
    mine = X25519PrivateKey.generate()
    der = mine.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    nonce = os.urandom(12)
    data = AESGCM(envelope.derive(mine, theirs)).encrypt(nonce, json.dumps(info).encode(), None)
    fields = {"version": 1, "epk": der, "nonce": nonce, "data": data, **changes}
    return json.dumps(
        {k: base64.b64encode(v).decode() if isinstance(v, bytes) else v for k, v in fields.items()}
    )


def test_an_envelope_for_our_key_opens() -> None:
    """If it fails: launchers that encrypt by themselves cannot be used."""
    assert envelope.open_envelope(seal({"key": "%ä"}, envelope.public_key())) == {"key": "%ä"}


@pytest.mark.parametrize(
    "changes", [{"data": b"x" * 40}, {"nonce": b"y" * 12}, {"epk": b"z"}, {"version": 2}, {"nonce": b""}]
)
def test_a_damaged_envelope_is_refused_in_our_words(changes: dict[str, Any]) -> None:
    """If it fails: a broken launcher gives a stack trace of a cryptography library."""
    with pytest.raises(ProtocolError):
        envelope.open_envelope(seal({}, envelope.public_key(), **changes))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 1}', "null"])
def test_rubbish_is_no_envelope(text: str) -> None:
    """If it fails: rubbish from a launcher ends in a stack trace."""
    with pytest.raises(ProtocolError):
        envelope.open_envelope(text)


def test_the_public_key_is_made_once_per_process() -> None:
    """If it fails: a launcher's answer cannot be opened; or two processes share a key."""
    assert envelope.public_key() == envelope.public_key()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, envelope.public_key().encode())
        os._exit(0)
    os.wait()
    assert os.read(reader, 1000).decode() != envelope.public_key()
    os.close(reader)
    os.close(writer)


# --- what is kept -----------------------------------------------------------------------------------------------------------------


def test_a_process_survives_json() -> None:
    """If it fails: a server that was restarted cannot find its kernels."""
    data = json.loads(json.dumps(persistence.process_to_json(PROCESS)))
    assert persistence.process_from_json(data) == PROCESS


@pytest.mark.parametrize("damage", [{"version": 99}, {"pid": "x"}, {"host": ""}, {"ports": None}])
def test_damaged_records_are_refused_in_our_words(damage: dict[str, Any]) -> None:
    """If it fails: a damaged session database is a stack trace."""
    with pytest.raises(ConfigurationError):
        persistence.process_from_json({**persistence.process_to_json(PROCESS), **damage})


def test_no_password_is_kept() -> None:
    """If it fails: a password lies in a file."""
    login = Login("ann", "hunter2", True, 2222, 3.0)
    data = json.dumps(persistence.login_to_json(login))
    assert "hunter2" not in data
    assert persistence.login_from_json(json.loads(data), "hunter2") == login


# --- endpoints on this side --------------------------------------------------------------------------------------------------------


def test_endpoints_lie_in_a_private_directory_with_short_paths() -> None:
    """If it fails: another user of the server's machine can connect to kernels, or sockets cannot be made."""
    one, other = local_endpoints.new_prefix(), local_endpoints.new_prefix()
    assert one != other
    directory = local_endpoints.private_directory()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert len(os.fsencode(f"{one}-5")) <= local_endpoints.LONGEST_SOCKET_PATH


def test_directory_of_a_killed_server_is_removed_and_a_living_one_stays() -> None:
    """If it fails: a killed server leaves dead sockets in /tmp for ever, or a living one loses its own to another."""
    code = (
        "import sys, time; from distributed_provisioner import local_endpoints\n"
        "print(local_endpoints.private_directory(), flush=True); time.sleep(60)"
    )
    servers, directories = [], []
    try:
        for _ in range(3):
            server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
            servers.append(server)
            assert server.stdout is not None
            directories.append(Path(server.stdout.readline().strip()))
            assert directories[-1].is_dir()
            if len(servers) == 2:
                assert directories[0].is_dir(), "a living server's directory was taken away"
                servers[0].kill()
                servers[0].wait()
        assert [directory.is_dir() for directory in directories] == [False, True, True]
    finally:
        for server in servers:
            server.kill()
            server.communicate()
        for directory in directories:
            shutil.rmtree(directory, ignore_errors=True)


def test_a_long_temporary_directory_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """If it fails: kernels cannot be reached where TMPDIR is a long path."""
    long = tmp_path_factory.mktemp("x" * 90)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(long))
    made = local_endpoints._make()
    try:
        assert not made.is_relative_to(long)
        assert not list(long.iterdir())
    finally:
        made.rmdir()


def test_a_forked_child_has_a_directory_of_its_own_and_leaves_ours() -> None:
    """If it fails: the end of a worker process cuts its parent's kernels off."""
    ours = local_endpoints.private_directory()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, str(local_endpoints.private_directory()).encode())
        local_endpoints._remove(os.getppid())
        local_endpoints._remove(os.getpid())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 1000).decode()
    os.close(reader)
    os.close(writer)
    assert theirs != str(ours)
    assert ours.is_dir()
    assert not os.path.exists(theirs)


# --- a kernel that nothing was done with -------------------------------------------------------------------------------------------


def test_poll_is_a_read_of_memory() -> None:
    """If it fails: asking for a hundred kernels costs a noticeable time."""
    kernel = RemoteKernel("k", logging.getLogger(__name__))
    kernel._life.state = KernelState.UNREACHABLE
    assert kernel.poll() is None
    best = min(_time(kernel.poll) for _ in range(200))
    assert best < 50e-6


def _time(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@pytest.mark.parametrize(
    ("reason", "code"),
    [(ExitReason(3, "exited"), 3), (ExitReason(-9, "signal"), -9), (ExitReason(None, "unknown"), 1)],
)
def test_an_exit_is_told_as_subprocess_does(reason: ExitReason, code: int) -> None:
    """If it fails: Jupyter takes a dead kernel for alive."""
    kernel = RemoteKernel("k", logging.getLogger(__name__))
    kernel._life.exit_reason = reason
    assert kernel.poll() == code


def asked_to_end() -> RemoteKernel:
    kernel = RemoteKernel("k", logging.getLogger(__name__))
    kernel._life.state = KernelState.RUNNING
    asyncio.run(kernel.shutdown_requested())
    return kernel


def test_a_poll_waits_for_the_end_that_was_asked_for() -> None:
    """If it fails: each orderly shutdown takes as long as Jupyter sleeps between two questions."""
    kernel = asked_to_end()
    told = threading.Timer(0.2, lambda: kernel._life.exited(ExitReason(0, "exited"), ""))
    told.start()  # as the I/O thread does
    begun = time.monotonic()
    assert asyncio.run(kernel.poll_at_end()) == 0
    assert 0.1 < time.monotonic() - begun < 2
    told.join()


def test_a_poll_does_not_wait_longer_than_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails: a kernel that does not end keeps its server from asking for anything, or from killing it."""
    monkeypatch.setattr(life, "END_EXPECTED", 0.2)
    begun = time.monotonic()
    kernel = asked_to_end()
    assert asyncio.run(kernel.poll_at_end()) is None
    assert 0.15 < time.monotonic() - begun < 2
    assert min(_time(lambda: asyncio.run(kernel.poll_at_end())) for _ in range(3)) < 0.1


def test_a_poll_that_waits_can_be_given_up() -> None:
    """If it fails: `shutdown_wait_time` is not kept."""
    kernel = asked_to_end()

    async def ask() -> None:
        await asyncio.wait_for(kernel.poll_at_end(), 0.1)

    begun = time.monotonic()
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(ask())
    assert time.monotonic() - begun < 0.9
    kernel._life.exited(ExitReason(0, "exited"), "")
    assert asyncio.run(kernel.poll_at_end()) == 0


def test_nobody_waits_for_an_end_that_was_not_asked_for() -> None:
    """If it fails: a restarter, which asks every three seconds, holds up its server; or a restarted kernel counts as about to end."""
    kernel = RemoteKernel("k", logging.getLogger(__name__))
    kernel._life.state = KernelState.RUNNING
    assert _time(lambda: asyncio.run(kernel.poll_at_end())) < 0.5
    kernel = asked_to_end()
    kernel._life.start(Login())
    assert _time(lambda: asyncio.run(kernel.poll_at_end())) < 0.5


def test_its_repr_tells_its_state() -> None:
    """If it fails: logs do not say what a kernel is doing."""
    kernel = RemoteKernel("4f2a77889900", logging.getLogger(__name__))
    kernel._life.process, kernel._life.state = PROCESS, KernelState.RUNNING
    assert repr(kernel) == "<RemoteKernel 4f2a7788 on ann@host1:2222 running pid=10>"


def test_generations_grow_over_processes() -> None:
    """If it fails: a kernel id that was used by an earlier server cannot be launched."""
    its_life = RemoteKernel("k", logging.getLogger(__name__))._life
    first, second = its_life.next_generation(), its_life.next_generation()
    assert second > first > time.time() * 1000 - 60_000
    its_life.generation = first + 10**12
    assert its_life.next_generation() == first + 10**12 + 1


# --- replies ------------------------------------------------------------------------------------------------------------------------

REPLY = {
    "pid": 10, "kernel_pid": None, "pgid": 10, "transport": "ipc", "ip": "/tmp/x/k", "key": "secret", "envelope": None,
    "ports": {c: n for n, c in enumerate(CHANNELS, 1)}, "directory": "/home/ann",
}  # fmt: skip


def test_a_reply_becomes_a_process() -> None:
    """If it fails: nothing can be launched."""
    request = LaunchRequest(
        "k",
        (HOST,),
        ("python",),
        "secret",
        encryption={"curve_publickey": "p", "curve_secretkey": "s"},
        encrypt_ipc=True,
    )
    process, info = read_reply(REPLY, HOST, 7, request)
    assert process == RemoteProcess(**{**PROCESS.__dict__, "kernel_pid": 10, "details": process.details})
    assert info == {
        "key": "secret",
        "signature_scheme": "hmac-sha256",
        "curve_publickey": "p",
        "curve_secretkey": "s",
    }


def test_an_encrypted_reply_is_opened() -> None:
    """If it fails: launchers that encrypt by themselves cannot be used."""
    info = {"transport": "tcp", "ip": "127.0.0.1", "key": "theirs", **{f"{c}_port": 9000 for c in CHANNELS}}
    reply = {**REPLY, "ip": None, "ports": None, "key": None, "envelope": seal(info, envelope.public_key())}
    process, found = read_reply(reply, HOST, 7, LaunchRequest("k", (HOST,), (), "ours"))
    assert (process.ip, process.kernel_transport, process.ports["hb"], found["key"]) == (
        "127.0.0.1",
        "tcp",
        9000,
        "theirs",
    )


@pytest.mark.parametrize("damage", [{"pid": None}, {"ports": {}}, {"ports": dict.fromkeys(CHANNELS, "x")}])
def test_a_reply_without_sense_is_told_without_its_secrets(damage: dict[str, Any]) -> None:
    """If it fails: a listener that is out of date gives a stack trace, or the signing key gets into a log."""
    with pytest.raises(ProtocolError) as caught:
        read_reply({**REPLY, **damage}, HOST, 7, LaunchRequest("k", (HOST,), (), "secret"))
    assert "secret" not in str(caught.value)
