"""The listener as the server meets it: over the bridge, with real processes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import stat
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from .driver import Bridge, ListenerError, changed_listener, launch_parameters, lives, stub_argv, until

SAY = "import json, os, sys; print('<<' + json.dumps({}) + '>>', flush=True)"


def said(bridge: Bridge, kernel_id: str = "k") -> Any:
    """What the stub kernel printed between << and >>, from its log."""
    text = until(lambda: (t := bridge.request("log", kernel_id=kernel_id)["text"]) and ">>" in t and t)
    return json.loads(text.rpartition("<<")[2].partition(">>")[0])


def test_launch_answers_when_all_sockets_accept(bridge: Bridge) -> None:
    """Else the first cell of a notebook waits for ZMQ's reconnection."""
    kernel = bridge.launch(stub_argv())
    for number in kernel["ports"].values():
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(f"{kernel['ip']}-{number}")
    assert lives(kernel["pid"])
    assert set(kernel["phases"]) == {"turn", "environment", "spawn", "ready"}


def test_kernel_outlives_its_bridge_and_is_found_again(home: Path, bridge: Bridge) -> None:
    """A lost connection costs no kernel, and the next connection knows it."""
    kernel = bridge.launch(stub_argv())
    bridge.close()
    again = Bridge(home)
    assert lives(kernel["pid"])
    [status] = again.request("attach", kernels=[{"kernel_id": "k", "generation": 1}])["kernels"]
    assert (status["state"], status["pid"]) == ("running", kernel["pid"])
    os.kill(kernel["pid"], signal.SIGTERM)
    event = again.event()
    assert (event["event"], event["code"], event["detail"]) == ("exited", -15, "killed by SIGTERM")
    again.close()


def test_kernel_outlives_a_killed_listener(home: Path, bridge: Bridge) -> None:
    """kill -9 of the listener costs no kernel; a new listener watches it and still notices its end."""
    kernel = bridge.launch(stub_argv())
    os.kill(bridge.welcome["pid"], signal.SIGKILL)
    again = Bridge(home)
    assert again.welcome["pid"] != bridge.welcome["pid"]
    [status] = again.request("attach", kernels=[{"kernel_id": "k", "generation": 1}])["kernels"]
    assert (status["state"], status["ip"], status["pid"]) == ("running", kernel["ip"], kernel["pid"])
    again.request("signal", kernel_id="k", generation=1, signal=signal.SIGTERM)
    event = again.event()
    assert (event["event"], event["code"], event["reason"]) == ("exited", None, "unknown")
    again.close()


def test_many_connections_at_once_share_one_listener(home: Path) -> None:
    """A burst of servers after a reboot of a host must not start a listener each."""
    bridges: list[Bridge] = []
    threads = [threading.Thread(target=lambda: bridges.append(Bridge(home))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(bridges) == 5
    assert len({each.welcome["pid"] for each in bridges}) == 1
    for each in bridges:
        each.close()


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("import sys; print('no such thing', file=sys.stderr); sys.exit(3)", 3, "exited with status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, "killed by SIGKILL"),
    ],
)
def test_launcher_that_exits_is_told_with_status_and_last_words(
    bridge: Bridge, code: str, status: int, words: str
) -> None:
    """A program that has exited is never waited for, and its own words reach the user."""
    began = time.monotonic()
    with pytest.raises(ListenerError) as caught:
        bridge.launch(["python", "-c", code])
    assert time.monotonic() - began < 5
    assert caught.value.kind == "launcher-exited"
    assert caught.value.fields["exit_status"] == status
    assert words in str(caught.value)
    assert ("no such thing" in caught.value.fields["log_tail"]) == (status == 3)
    assert nothing_left(bridge)


def nothing_left(bridge: Bridge) -> bool:
    """No kernel, and no file of one, is left on the host."""
    directory = Path(bridge.welcome["directory"])
    logs = list(Path(bridge.welcome["home"]).glob(".local/state/distributed-provisioner/*/logs/*"))
    return (
        not bridge.request("list")["kernels"] and [p.name for p in directory.iterdir()] == ["s"] and not logs
    )


def test_missing_interpreter_is_told_with_the_path(bridge: Bridge) -> None:
    """The user must learn which program is missing and where it was looked for."""
    with pytest.raises(ListenerError, match=r"'nosuch-python' is not in the PATH of .*: /") as caught:
        bridge.launch(stub_argv(), remote_python="nosuch-python")
    assert caught.value.kind == "interpreter-not-found"
    with pytest.raises(ListenerError, match="/nowhere/python: No such file or directory"):
        bridge.launch(["/nowhere/python"])
    assert nothing_left(bridge)


def test_launch_that_takes_too_long_leaves_nothing(bridge: Bridge) -> None:
    """A time-out ends the launcher and its children, and shows what they said."""
    code = (
        "import subprocess; print('still busy', flush=True); p = subprocess.Popen(['sleep', '300']); p.wait()"
    )
    with pytest.raises(ListenerError) as caught:
        bridge.launch(["python", "-c", code], launch_timeout=1)
    assert (caught.value.kind, caught.value.fields["log_tail"]) == ("timeout", "still busy")
    assert nothing_left(bridge)


def test_cancelled_launch_leaves_nothing(bridge: Bridge) -> None:
    """Stopping a start in JupyterLab must not leave a process."""
    number = bridge.send("launch", **launch_parameters(["python", "-c", "import time; time.sleep(300)"]))
    pid = until(lambda: [k["pid"] for k in bridge.request("list")["kernels"] if k["pid"]])[0]
    bridge.request("cancel", kernel_id="k", generation=1)
    with pytest.raises(ListenerError) as caught:
        bridge.reply(number)
    assert caught.value.kind == "cancelled"
    assert not lives(pid)
    assert nothing_left(bridge)


def test_restart_that_is_cancelled_while_the_old_process_ends_does_not_start(bridge: Bridge) -> None:
    """A cancellation that arrives early must not be lost: the new process would run with nobody who knows it."""
    slow_to_die = "import os; [os.fork() for _ in range(4)]"
    bridge.launch(stub_argv(slow_to_die))
    number = bridge.send("launch", **launch_parameters(stub_argv(), generation=2))
    bridge.request("cancel", kernel_id="k", generation=2)
    with pytest.raises(ListenerError) as caught:
        bridge.reply(number)
    assert caught.value.kind == "cancelled"
    assert nothing_left(bridge)


def test_placeholders_are_substituted_as_jupyter_has_them(bridge: Bridge) -> None:
    """Specifications with {prefix} or {kernel_id} work as with a local kernel; unknown braces stay."""
    code = SAY.replace("{}", "sys.argv[3:]")
    bridge.launch(
        stub_argv(code, "{prefix}/x", "{kernel_id}", "{port_range}", "{other} {}"), prefix="/opt/there"
    )
    assert said(bridge) == ["/opt/there/x", "k", "0..0", "{other} {}"]


def test_launch_ends_with_its_connection(home: Path, bridge: Bridge) -> None:
    """A server that is killed while it launches leaves no half-started kernel."""
    other = Bridge(home)
    other.send("launch", **launch_parameters(["python", "-c", "import time; time.sleep(300)"]))
    pid = until(lambda: [k["pid"] for k in bridge.request("list")["kernels"] if k["pid"]])[0]
    other.close()
    until(lambda: not lives(pid) and nothing_left(bridge))


HOSTILE = "a 'b' \"c\" $HOME ${HOME} $(touch /tmp/pwned) `id` ; | & \\ \n\t é 漢 💥 %s {kernel_id} ${"


def test_values_arrive_byte_for_byte(bridge: Bridge, tmp_path: Path) -> None:
    """Nothing that a user writes is run or changed on its way to the kernel."""
    code = SAY.replace("{}", "[os.environ['KERNEL_X'], os.environ['Y'], sys.argv[3:]]")
    spec = HOSTILE.replace("${HOME}", "").replace("touch /tmp/pwned", f"touch {tmp_path}/pwned")
    bridge.launch(
        stub_argv(code, HOSTILE.replace("{kernel_id}", "")),
        request_env={"KERNEL_X": HOSTILE},
        spec_env={"Y": spec},
    )
    assert said(bridge) == [HOSTILE, spec, [HOSTILE.replace("{kernel_id}", "")]]
    assert not (tmp_path / "pwned").exists()


def test_stanza_is_expanded_on_the_host(bridge: Bridge) -> None:
    """`${NAME}` and `${NAME:-default}` take the host's values and this launch's KERNEL_*, in one pass."""
    spec = {
        "A": "${HOME}/x:${NOT_SET}:${NOT_SET:-a b}:${KERNEL_ID:-none}:$HOME",
        "B": "${KERNEL_OPTS} ${A}",
        "KERNEL_OPTS": "overridden",
    }
    code = SAY.replace("{}", "[os.environ[n] for n in ('A', 'B', 'KERNEL_OPTS', 'KERNEL_ID')]")
    bridge.launch(stub_argv(code), spec_env=spec, request_env={"KERNEL_OPTS": "${HOME}"})
    home = bridge.welcome["home"]
    assert said(bridge) == [f"{home}/x::a b:k:$HOME", "${HOME} ", "${HOME}", "k"]


def test_missing_directory_is_noted_and_home_is_used(bridge: Bridge, tmp_path: Path) -> None:
    """A notebook whose directory exists on the server only still gets a kernel, and is told where it runs."""
    code = SAY.replace("{}", "os.getcwd()")
    kernel = bridge.launch(stub_argv(code), directories=["/not/here"])
    assert said(bridge) == bridge.welcome["home"] == kernel["directory"]
    assert any("/not/here" in note for note in kernel["notes"])
    assert bridge.launch(stub_argv(code), "k2", directories=["/not/here", str(tmp_path)])["directory"] == str(
        tmp_path
    )


def test_login_environment_is_read_again_when_a_startup_file_changes(home: Path, bridge: Bridge) -> None:
    """A user who edits .profile gets what it says with the next kernel, not after a reboot."""
    code = SAY.replace("{}", "os.environ.get('FROM_RC')")
    bridge.launch(stub_argv(code))
    assert said(bridge) is None
    (home / ".profile").write_text("export FROM_RC=now\n")
    bridge.launch(stub_argv(code), "k2")
    assert said(bridge, "k2") == "now"


def test_login_shell_that_hangs_costs_only_its_time_limit(home: Path) -> None:
    """A startup file that never ends must not keep the user from a kernel."""
    (home / ".profile").write_text("sleep 300\n")
    with changed_listener(home, "login.TIMEOUT = 0.5"):
        bridge = Bridge(home)
        kernel = bridge.launch(stub_argv())
        assert any("took over 0.5 s" in note for note in kernel["notes"])
        bridge.close()


def test_interrupt_reaches_the_group_or_the_kernel_alone(bridge: Bridge) -> None:
    """An interrupt ends what a cell has started, unless the spec's config says that the kernel alone shall get it."""
    code = (
        "import signal, subprocess; signal.signal(signal.SIGINT, lambda *a: print('INT', flush=True))\n"
        "child = subprocess.Popen(['sleep', '300']); " + SAY.replace("{}", "child.pid")
    )
    for target, dies in (("kernel", False), ("group", True)):
        bridge.launch(stub_argv(code), target, interrupt_target=target)
        child = said(bridge, target)
        bridge.request("signal", kernel_id=target, generation=1, signal=signal.SIGINT)
        until(lambda: "INT" in bridge.request("log", kernel_id=target)["text"])  # noqa: B023
        if dies:
            until(lambda: not lives(child))  # noqa: B023
        else:
            assert lives(child)


def test_end_takes_the_whole_descent(bridge: Bridge) -> None:
    """Nothing of a kernel stays: neither what ignores SIGTERM, nor what has left its process group."""
    code = (
        "import subprocess, sys, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "stubborn = 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(300)'\n"
        "a = subprocess.Popen([sys.executable, '-c', stubborn]); b = subprocess.Popen(['sleep', '300'], start_new_session=True)\n"
        + SAY.replace("{}", "[a.pid, b.pid]")
    )
    kernel = bridge.launch(stub_argv(code))
    children = said(bridge)
    result = bridge.request("end", kernel_id="k", generation=1, grace=0.3)
    assert result["code"] == -9
    assert not any(lives(pid) for pid in (kernel["pid"], *children))
    bridge.request("forget", kernel_id="k", generation=1)
    assert nothing_left(bridge)


def test_restart_keeps_endpoints_and_supersedes(bridge: Bridge) -> None:
    """Clients stay connected over a restart, and the old process is gone."""
    first = bridge.launch(stub_argv())
    second = bridge.launch(stub_argv(), generation=2, ip=first["ip"], ports=first["ports"])
    assert (second["ip"], second["ports"]) == (first["ip"], first["ports"])
    assert not lives(first["pid"])
    with pytest.raises(ListenerError, match="generation 2") as caught:
        bridge.launch(stub_argv(), generation=2)
    assert caught.value.kind == "superseded"
    tcp = bridge.launch(stub_argv(), "t", transport="tcp")
    bridge.request("end", kernel_id="t", generation=1, grace=0)
    assert bridge.launch(stub_argv(), "t", 2, transport="tcp", ports=tcp["ports"])["ports"] == tcp["ports"]


def test_ports_lie_in_the_range_and_run_out(bridge: Bridge) -> None:
    """A firewall's rule is kept, and a range without five free ports has its own error."""
    kernel = bridge.launch(stub_argv(), transport="tcp", port_range=[42000, 43000])
    assert all(42000 <= port <= 43000 for port in kernel["ports"].values())
    with pytest.raises(ListenerError, match=r"free ports in 43500\.\.43503") as caught:
        bridge.launch(stub_argv(), "k2", transport="tcp", port_range=[43500, 43503])
    assert caught.value.kind == "ports-exhausted"


def test_log_is_private_and_bounded(bridge: Bridge) -> None:
    """Megabytes on the real standard error neither hang the kernel nor fill the disk; the last lines can be read."""
    code = "import os\nfor i in range(200): os.write(2, (b'%07d ' % i) * 12500)\n" + SAY.replace(
        "{}", "'written'"
    )
    kernel = bridge.launch(stub_argv(code))
    assert said(bridge) == "written"
    log = Path(kernel["log"])
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    until(lambda: log.stat().st_size < 5 << 20, 20)
    assert "0000199" in bridge.request("log", kernel_id="k", limit=1 << 20)["text"]


def test_log_directory_of_the_operator_is_kept(bridge: Bridge, tmp_path: Path) -> None:
    """Logs that an operator asked for stay after the kernel."""
    bridge.launch(stub_argv("print('hello', flush=True)"), log_dir=str(tmp_path / "logs"))
    until(lambda: (tmp_path / "logs" / "k.log").read_text() == "hello\n")
    bridge.request("forget", kernel_id="k", generation=1)
    assert (tmp_path / "logs" / "k.log").read_text() == "hello\n"


@pytest.mark.parametrize(
    "kernel_id", ["", "a b;touch x;$(id)", "../../x", ".hidden", "x" * 201, "a/b", "-rf"]
)
def test_hostile_kernel_ids_are_refused(bridge: Bridge, kernel_id: str) -> None:
    """A kernel id may be chosen by a REST client and becomes part of a path."""
    with pytest.raises(ListenerError) as caught:
        bridge.launch(stub_argv(), kernel_id)
    assert caught.value.kind == "bad-request"
    assert nothing_left(bridge)


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\0\1\2\n",
        b"[]\n",
        b"{}\n",
        b'{"id": 1, "op": "list"}\n',
        b'{"id": 1, "op": "__init__"}\n',
        b'{"op": {}}\n',
        b"GET / HTTP/1.1\r\n\r\n",
        b"x" * 100_000,
    ],
)
def test_rubbish_on_the_socket_harms_nobody(bridge: Bridge, rubbish: bytes) -> None:
    """A stray program must not take the kernels of a user with it, nor learn of them without a hello."""
    kernel = bridge.launch(stub_argv())
    with socket.socket(socket.AF_UNIX) as stray:
        stray.settimeout(10)
        stray.connect(bridge.welcome["socket"])
        stray.sendall(rubbish)
        stray.shutdown(socket.SHUT_WR)
        answer = stray.makefile("rb").read()
    assert b"kernels" not in answer
    assert bridge.request("ping") == {}
    assert lives(kernel["pid"])


def test_rubbish_on_the_response_socket_does_not_fail_the_launch(bridge: Bridge) -> None:
    """Only a report that makes sense is taken for the launcher's."""
    code = """
import json, socket, sys, time
for text in (b"", b"nonsense\\n"):
    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(9999); s.sendall(text); s.close()
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); info = json.loads(s.makefile().readline()); held = []
for channel in ("shell", "iopub", "stdin", "control", "hb"):
    b = socket.socket(socket.AF_UNIX); b.bind(f"{info['ip']}-{info[channel + '_port']}"); b.listen(); held.append(b)
import os; s.sendall(json.dumps({"connection_info": info, "pid": os.getpid(), "pgid": os.getpgid(0)}).encode() + b"\\n"); time.sleep(300)
"""
    kernel = bridge.launch(["python", "-c", code, "{response_address}"])
    assert lives(kernel["pid"])


def test_orphan_ends_after_its_time_out(home: Path, bridge: Bridge) -> None:
    """A kernel whose server never comes back does not hold a GPU for ever; one whose server is there stays."""
    mine = Bridge(home, owner="other")
    orphan = mine.launch(stub_argv(), "orphan", orphan_timeout=1)
    kept = bridge.launch(stub_argv(), "kept", orphan_timeout=1)
    mine.close()
    time.sleep(0.5)
    assert lives(orphan["pid"])
    until(lambda: not lives(orphan["pid"]))
    assert lives(kept["pid"])
    until(lambda: [k["kernel_id"] for k in bridge.request("list")["kernels"]] == ["kept"])


def bundle(files: dict[str, tuple[bytes, bool]]) -> str:
    """The digest of a kernelspec's directory, as the protocol has it."""
    total = hashlib.sha256()
    for name, (content, executable) in sorted(files.items()):
        total.update(
            f"{name}\0{'x' if executable else '-'}\0{hashlib.sha256(content).hexdigest()}\n".encode()
        )
    return total.hexdigest()


def test_shipped_scripts_run_through_their_interpreter(bridge: Bridge, tmp_path: Path) -> None:
    """A specification that the host does not have is shipped, also onto a home that is mounted noexec."""
    script = b'#!/bin/sh\nexec "$1" -c "$2" "$3" "print(\'from\', \'$0\', flush=True)"\n'
    files = {"bin/run.sh": (script, True), "scripts/a b.py": (b"x = 1\n" * 9, False)}
    digest = bundle(files)
    argv = [f"{tmp_path}/spec/bin/run.sh", sys.executable, *stub_argv()[2:4]]
    parameters: dict[str, Any] = {"resource_dir": f"{tmp_path}/spec", "bundle": digest}
    with pytest.raises(ListenerError) as caught:
        bridge.launch(argv, **parameters)
    assert caught.value.kind == "need-bundle"
    pieces = [
        {"name": name, "mode": 0o755 if executable else 0o644, "data": base64.b64encode(part).decode()}
        for name, (content, executable) in files.items()
        for part in (content[:7], content[7:])
    ]
    bridge.request("ship", bundle=digest, files=pieces[:2])
    bridge.request("ship", bundle=digest, files=pieces[2:], commit=True)
    shipped = Path(bridge.welcome["home"], ".cache/distributed-provisioner/bundles", digest)
    (shipped / "bin/run.sh").chmod(0o600)  # as a noexec mount
    (shipped / "bin/run.sh").chmod(0o700)
    bridge.launch(argv, **parameters)
    until(lambda: f"from {shipped}/bin/run.sh" in bridge.request("log", kernel_id="k")["text"])


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", "a//b"])
def test_shipped_names_stay_below_their_directory(bridge: Bridge, name: str) -> None:
    """A specification cannot write anywhere else on a host."""
    with pytest.raises(ListenerError):
        bridge.request("ship", bundle="0" * 64, files=[{"name": name, "mode": 0o644, "data": ""}])


def test_shipped_content_is_checked(bridge: Bridge) -> None:
    """What arrived damaged is never run."""
    with pytest.raises(ListenerError, match="not what was announced"):
        bridge.request("ship", bundle="0" * 64, files=[{"name": "x", "mode": 0o644, "data": ""}], commit=True)
    assert list(Path(bridge.welcome["home"], ".cache/distributed-provisioner/bundles").iterdir()) == []


def test_directories_are_private(bridge: Bridge) -> None:
    """Another user of the host can reach neither sockets nor connection files nor state."""
    bridge.launch(stub_argv())
    home = Path(bridge.welcome["home"])
    cache, state = home / ".cache/distributed-provisioner", home / ".local/state/distributed-provisioner"
    for place in (Path(bridge.welcome["directory"]), cache / "bundles", *state.glob("*")):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    for file in Path(bridge.welcome["directory"]).glob("*/connection.json"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_secrets_are_in_no_argv(bridge: Bridge) -> None:
    """`ps` must not show the signing key or what a request brought."""
    stop = threading.Event()
    seen: set[bytes] = set()

    def sample() -> None:
        while not stop.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes())
                except OSError:
                    continue

    thread = threading.Thread(target=sample)
    thread.start()
    bridge.launch(stub_argv(), request_env={"KERNEL_SECRET": "the-secret-value"})
    stop.set()
    thread.join()
    assert not [argv for argv in seen if b"the-signing-key" in argv or b"the-secret-value" in argv]
    log = Path(bridge.welcome["home"]).glob(".local/state/distributed-provisioner/*/listener.log")
    assert not any("the-s" in path.read_text() for path in log)


def test_listener_of_another_version_leaves_when_it_has_nothing_to_do(home: Path) -> None:
    """An upgrade takes effect without anybody killing processes; kernels of the older version are still served."""
    old = Bridge(home)
    [record] = home.glob(".local/state/distributed-provisioner/*/listener-1.json")
    older = json.loads(record.read_text())
    record.write_text(json.dumps({**older, "version": "older"}))
    kernel = old.launch(stub_argv())
    new = Bridge(home)
    assert new.welcome["pid"] == old.welcome["pid"]
    assert lives(kernel["pid"])
    new.request("forget", kernel_id="k", generation=1)
    new.close()
    old.close()
    record.write_text(json.dumps({**older, "version": "older"}))
    until(
        lambda: (
            not [
                p
                for p in Path("/proc").glob("[0-9]*/cmdline")
                if b"bridge" in _read(p) and str(home).encode() in _read(p)
            ]
        )
    )
    time.sleep(0.2)
    newest = Bridge(home)
    assert newest.welcome["pid"] != older["pid"]
    newest.close()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_stale_files_are_cleared_and_used_ones_stay(home: Path) -> None:
    """Shipped files and state of long ago do not pile up in home directories."""
    cache = home / ".cache/distributed-provisioner"
    for name, age in (("listener-old", 40), ("listener-new", 1), ("bundles/old", 40), ("bundles/new", 1)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age * 86400,) * 2)
    Bridge(home).close()
    assert sorted(p.name for p in cache.glob("*/") if p.name in ("listener-old", "listener-new")) == [
        "listener-new"
    ]
    assert sorted(p.name for p in (cache / "bundles").iterdir()) == ["new"]


def test_sockets_of_an_earlier_boot_are_cleared(home: Path, tmp_path: Path) -> None:
    """Each reboot leaves a directory of dead sockets in /tmp where that is not emptied; another host's are left alone."""
    for name, hostname in (("mine", socket.gethostname()), ("other", "another-host")):
        state = home / ".local/state/distributed-provisioner" / name
        state.mkdir(parents=True)
        (tmp_path / name).mkdir()
        record = {
            "hostname": hostname,
            "directory": str(tmp_path / name),
            "socket": str(tmp_path / name / "s"),
        }
        (state / "listener-1.json").write_text(json.dumps(record))
    Bridge(home).close()
    assert not (tmp_path / "mine").exists()
    assert (tmp_path / "other").exists()


@pytest.mark.parametrize("version", [f"3.{minor}" for minor in range(8, 15)])
def test_listener_runs_on_each_python(home: Path, version: str) -> None:
    """Hosts have what they have: Python 3.8 is enough."""
    python = find_python(version)
    if python is None:
        pytest.skip(f"other platform: no python{version} on this machine")
    bridge = Bridge(home, python=python)
    assert bridge.welcome["python"].startswith(version)
    kernel = bridge.launch(stub_argv(), remote_python=python)
    os.kill(kernel["pid"], signal.SIGKILL)
    assert bridge.event()["code"] == -9
    bridge.close()


def find_python(version: str) -> str | None:
    candidates = sorted(Path(sys.base_prefix).parent.glob(f"{version}.*/bin/python3"))
    return str(candidates[-1]) if candidates else shutil.which(f"python{version}")
