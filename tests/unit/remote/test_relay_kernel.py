"""Real kernels behind the relay: ipykernel while its stream is cut, killed and started again; JeroMQ, which JVM kernels speak."""

from __future__ import annotations

import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.session import Session

from .relaying import KEY, PATIENCE, RelayProcess, Server, relay_wire, wait_for

CUTS = 40
CELL = """
n += 1
for i in range(300):
    print("line", i, flush=True)
    if i % 50 == 0:
        data = os.urandom(2_000_000)
        comm.send(data=hashlib.sha256(data).hexdigest(), buffers=[data])
"""


class Kernel:
    """ipykernel on Unix sockets."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="dpk-", dir="/tmp"))
        ports = {f"{name}_port": n for n, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)}
        self.info = {
            "transport": "ipc",
            "ip": str(self.directory / "k"),
            "key": KEY,
            "signature_scheme": "hmac-sha256",
            **ports,
        }
        file = self.directory / "connection.json"
        file.write_text(json.dumps(self.info))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ipykernel_launcher", "-f", str(file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(lambda: all(os.path.exists(f"{self.info['ip']}-{n}") for n in range(1, 6)), 60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


class Client:
    """A notebook's side, with Jupyter's own messages."""

    def __init__(self, server: Server, cuts: int = 0) -> None:
        self.server = server
        self.session = Session(key=KEY.encode(), signature_scheme="hmac-sha256")
        self.identity = secrets.token_hex(8).encode()
        self.seen = 0
        self.cuts, self.made, self.chance = cuts, 0, random.Random(5)
        self.next_cut = 0.0

    def request(self, kind: str, content: dict[str, Any], channel: str = "shell") -> str:
        message = self.session.msg(kind, content)
        frames = [bytes(each) for each in self.session.serialize(message)]
        self.server.send(channel, self.identity, *frames)
        return str(message["header"]["msg_id"])

    def execute(self, code: str, **more: Any) -> str:
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False, **more}
        return self.request("execute_request", {**content, "user_expressions": {}, "stop_on_error": True})

    def read(self) -> None:
        """Read for a little while; now and then the stream is cut."""
        now = time.monotonic()
        if self.made < self.cuts and now > self.next_cut:
            self.made += 1
            self.next_cut = now + self.chance.uniform(0.005, 0.08)
            self.server.connect()
        self.server.read(0.01)

    def run(self, code: str) -> list[dict[str, Any]]:
        """Everything that a cell has published, and its reply as the last one."""
        asked = self.execute(code)
        found: list[dict[str, Any]] = []
        ends: set[str] = set()
        deadline = time.monotonic() + 60
        reply: dict[str, Any] = {}
        while len(ends) < 2:
            assert time.monotonic() < deadline, (len(found), ends)
            self.read()
            while self.seen < len(self.server.messages):
                channel, _, frames = self.server.messages[self.seen]
                self.seen += 1
                message = self.parse(frames)
                if message["parent_header"].get("msg_id") != asked:
                    continue
                if channel == "shell":
                    reply = message
                    ends.add("reply")
                else:
                    found.append(message)
                    if message["content"].get("execution_state") == "idle":
                        ends.add("idle")
        return [*found, reply]

    def parse(self, frames: list[bytes]) -> dict[str, Any]:
        _, rest = self.session.feed_identities(frames)
        return self.session.deserialize(
            rest
        )  # raises for a message that was seen before, and for a wrong signature


def text(messages: list[dict[str, Any]]) -> str:
    return "".join(each["content"]["text"] for each in messages if each["msg_type"] == "stream")


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.stop()


@pytest.fixture
def relay(kernel: Kernel) -> Iterator[RelayProcess]:
    made = RelayProcess()
    assert made.to_kernel(kernel.info) == {"tell": "connected"}
    yield made
    made.stop()


def test_forty_cuts_under_load_lose_and_double_nothing(relay: RelayProcess) -> None:
    """The line breaks again and again while a cell prints and sends plots: each request runs once, each output comes once, in order."""
    client = Client(Server(relay).connect(), cuts=CUTS)
    client.run("import os, hashlib; from comm import create_comm; comm = create_comm('t'); n = 0")
    rounds = 0
    while client.made < CUTS or rounds < 2:
        rounds += 1
        *messages, reply = client.run(CELL)
        assert reply["content"]["status"] == "ok"
        assert text(messages) == "".join(f"line {i}\n" for i in range(300))
        plots = [each for each in messages if each["msg_type"] == "comm_msg"]
        digests = [hashlib.sha256(each["buffers"][0]).hexdigest() for each in plots]
        assert digests == [each["content"]["data"] for each in plots]
        assert len(plots) == 6
    for _ in range(50):
        client.execute("n += 1")
    assert text(client.run("print(n)")) == f"{rounds + 50}\n"
    assert client.server.doubles == 0


def test_a_killed_kernel_and_its_successor(relay: RelayProcess, kernel: Kernel) -> None:
    """kill -9, then a restart: what it had said arrives, and the same connection serves the new kernel."""
    client = Client(Server(relay).connect())
    assert text(client.run("x = 1; print('before')")) == "before\n"
    client.execute(
        "import os, time\nprint('last words', flush=True)\ntime.sleep(0.3)\nos.kill(os.getpid(), 9)"
    )
    kernel.process.wait(PATIENCE)
    client.server.until(lambda: {"tell": "kernel", "state": "gone"} in client.server.told)
    client.server.until(lambda: any(b"last words" in frames[-1] for frames in client.server.on("iopub")))
    successor = Kernel()
    try:
        assert relay.to_kernel(successor.info) == {"tell": "connected"}
        assert text(client.run("print('x' in dir())")) == "False\n"
    finally:
        successor.stop()


def test_input_and_interrupts_find_their_way(relay: RelayProcess, kernel: Kernel) -> None:
    """input() asks the notebook that ran the cell; a busy kernel answers on control."""
    client = Client(Server(relay).connect())
    client.execute("print('hello ' + input('name? '))", allow_stdin=True)
    client.server.until(lambda: bool(client.server.on("stdin")))
    assert ("stdin", client.identity) in [
        (channel, identity) for channel, identity, _ in client.server.messages
    ]
    client.request("input_reply", {"value": "you"}, "stdin")
    client.server.until(lambda: any(b"hello you" in frames[-1] for frames in client.server.on("iopub")))
    client.execute("import time\ntime.sleep(60)")
    time.sleep(0.3)
    client.request("kernel_info_request", {}, "control")
    client.server.until(lambda: bool(client.server.on("control")))
    kernel.process.send_signal(signal.SIGINT)
    client.server.until(
        lambda: any(b"KeyboardInterrupt" in frames[-1] for frames in client.server.on("shell"))
    )


# --- JeroMQ --------------------------------------------------------------------------------------------------------------------

JEROMQ_KERNEL = """
import org.zeromq.ZMQ;
public class Kernel {
    public static void main(String[] args) {
        ZMQ.Context context = ZMQ.context(1);
        ZMQ.Socket[] sockets = new ZMQ.Socket[4];
        StringBuilder ports = new StringBuilder();
        for (int i = 0; i < 4; i++) {
            sockets[i] = context.socket(i == 3 ? ZMQ.PUB : ZMQ.ROUTER);
            sockets[i].setHWM(0);
            ports.append(sockets[i].bindToRandomPort("tcp://127.0.0.1")).append(' ');
        }
        System.out.println(ports);
        while (true) {
            ZMQ.Socket shell = sockets[0];
            byte[] identity = shell.recv(0);
            shell.send(identity, ZMQ.SNDMORE);
            boolean more = true;
            while (more) {
                byte[] frame = shell.recv(0);
                more = shell.hasReceiveMore();
                shell.send(frame, more ? ZMQ.SNDMORE : 0);
                sockets[3].send(frame, more ? ZMQ.SNDMORE : 0);
            }
        }
    }
}
"""


def jeromq() -> str:
    """A jar with the classes of JeroMQ, as Apache Toree brings it."""
    if shutil.which("java") is None:
        pytest.skip("no java on this machine")
    python = os.environ.get("DISTRIBUTED_PROVISIONER_SPARK_PYTHON") or sys.executable
    found = subprocess.run(
        [python, "-c", "import toree; print(toree.__path__[0])"], capture_output=True, text=True, check=False
    )
    jars = sorted(Path(found.stdout.strip(), "lib").glob("toree-assembly*.jar"))
    if found.returncode or not jars:
        pytest.skip(f"no JeroMQ: {python} has no toree")
    return str(jars[0])


@pytest.fixture
def java_kernel(tmp_path: Path) -> Iterator[dict[str, Any]]:
    jar = jeromq()
    source = tmp_path / "Kernel.java"
    source.write_text(JEROMQ_KERNEL)
    process = subprocess.Popen(
        ["java", "-XX:TieredStopAtLevel=1", "-cp", jar, str(source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    ports = process.stdout.readline().split()
    yield {
        "transport": "tcp", "ip": "127.0.0.1", "key": KEY,
        **{f"{name}_port": int(port) for name, port in zip(relay_wire.CHANNELS, ports, strict=True)},
    }  # fmt: skip
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_kernel_on_jeromq_is_served(java_kernel: dict[str, Any]) -> None:
    """Toree and other kernels of the JVM speak ZMTP through another library, of another age."""
    relay = RelayProcess()
    try:
        assert relay.to_kernel(java_kernel) == {"tell": "connected"}
        server = Server(relay).connect()
        for n in range(20):
            frames = [b"%d" % n, b"", b"x" * 255, b"y" * 256, b"z" * 65536, os.urandom(3 << 20), b""]
            server.send("shell", b"client", *frames)
            if n % 5 == 0:
                server.connect()
            server.until(lambda: len(server.messages) == 2)
            assert sorted(server.messages) == [("iopub", b"", frames), ("shell", b"client", frames)]
            server.messages.clear()
        assert server.doubles == 0
    finally:
        relay.stop()
