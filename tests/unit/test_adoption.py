"""Whose kernel is it, where may kernels be, and what a kernel's host keeps for the next server: decided without any host."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_server.gateway.managers import GatewayMappingKernelManager
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager, MappingKernelManager
from traitlets.config import Config

from distributed_provisioner import owner
from distributed_provisioner.adopted_kernels import is_served_here
from distributed_provisioner.adoption import all_specs, configured_places, with_password
from distributed_provisioner.annotations import MAX_BYTES, Annotations, difference, fitting
from distributed_provisioner.finding import Answer, Found, Place, judge, newest
from distributed_provisioner.models import HostAddress, LaunchRequest, Login, RemoteProcess
from distributed_provisioner.operating.reports import kernel_from_status
from distributed_provisioner.persistence import (
    launch_arguments_from_json,
    launch_to_json,
    process_from_status,
)
from distributed_provisioner.server_files import ServerFile
from distributed_provisioner.server_hosts import HostHints
from distributed_provisioner.server_kernels import KnownKernels, found_to_json
from distributed_provisioner.server_sessions import annotations_of, sessions_in
from distributed_provisioner.settings import ServerSettings
from tests.conftest import wait_until

OURS = "me@here.0:abc"


class Log:
    """Collects lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def debug(self, message: str, /, *args: object) -> None:
        self.lines.append(message % args)

    info = warning = debug


def status(**values: Any) -> dict[str, Any]:
    return {"kernel_id": "k", "generation": 1, "owner": OURS, "client": "c", "state": "running", **values}


def found(kernel_id: str = "k", generation: int = 1, host: str = "host1") -> Found:
    process = RemoteProcess(HostAddress(host), 1, 1, 1, generation, "ipc", "/tmp/x", {}, "")
    return Found(kernel_id, "python", process, Login(), "key", "hmac-sha256", None, {}, "idle")


# --- whose kernel it is ---------------------------------------------------------------------------------------------------------


def fate(values: Mapping[str, Any], presence: owner.Presence) -> str:
    verdict = judge([status(**values)], OURS, lambda client, connected: presence)
    return (
        ("adopt" if verdict.adopt else "")
        + ("unclear" if verdict.unclear else "")
        + ("ended" if verdict.ended else "")
    )


@pytest.mark.parametrize(
    ("values", "presence", "expected"),
    [
        ({}, "gone", "adopt"),
        ({}, "alive", ""),
        ({}, "connected", "unclear"),
        ({"owner": "me@here.0:other"}, "gone", ""),
        ({"owner": "you@here.0:abc"}, "gone", ""),
        ({"owner": "me@there.0:abc"}, "gone", ""),
        ({"state": "starting"}, "gone", "unclear"),
        ({"state": "starting"}, "alive", ""),
        ({"state": "exited"}, "gone", "ended"),
        ({"state": "exited"}, "alive", ""),
        ({"state": "unknown"}, "gone", ""),
    ],
)
def test_only_kernels_of_this_very_server_whose_process_is_gone_are_adopted(
    values: dict[str, Any], presence: owner.Presence, expected: str
) -> None:
    """If it fails: a server takes kernels from under another one, or shows dead ones."""
    assert fate(values, presence) == expected


def test_a_process_without_a_name_adopts_nothing() -> None:
    """If it fails: kernels of scripts, which all have the same owner, become those of some server."""
    nameless = "me@here.0:"
    verdict = judge([status(owner=nameless)], nameless, lambda client, connected: "gone")
    assert (verdict.adopt, verdict.unclear, verdict.ended) == ([], [], [])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), max_size=12))
def test_of_several_launches_of_a_kernel_the_last_one_is_kept(launches: list[tuple[str, int]]) -> None:
    """If it fails: a notebook goes on with the kernel that was restarted away from it."""
    kept, superseded = newest([found(kernel_id, generation) for kernel_id, generation in launches])
    latest = {kernel_id: max(g for k, g in launches if k == kernel_id) for kernel_id, _ in launches}
    assert {each.kernel_id: each.process.generation for each in kept} == latest
    assert all(each.process.generation < latest[each.kernel_id] for each in superseded)


# --- processes of a server --------------------------------------------------------------------------------------------------------


def test_this_process_is_alive_and_one_that_has_ended_is_gone() -> None:
    """If it fails: a second server takes the first one's kernels, or none are ever found again."""
    assert owner.presence(owner.new_client(), connected=False) == "alive"
    code = "from distributed_provisioner.owner import new_client; print(new_client())"
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert owner.presence(ended, connected=True) == "gone"


def test_another_process_with_the_same_pid_is_not_the_server() -> None:
    """If it fails: after a reboot or many processes, kernels are kept from their server."""
    name, pid, start = owner.new_client().split(":")
    assert owner.presence(f"{name}:{pid}:{int(start) - 1}", connected=False) == "gone"


def test_a_killed_server_that_nobody_has_reaped_is_gone() -> None:
    """If it fails: in a container without an init process, nothing is found again."""
    code = "from distributed_provisioner.owner import new_client; print(new_client(), flush=True)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        client = process.stdout.readline().strip()
        assert wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0] == "Z")
        assert owner.presence(client, connected=True) == "gone"


@pytest.mark.parametrize("client", ["f" * 32 + ":1:1", "", "abc", "a:b:c", "0123456789abcdef"])
def test_a_server_that_cannot_be_looked_up_counts_as_there_while_it_is_connected(client: str) -> None:
    """If it fails: two containers of one image take kernels from each other."""
    assert owner.presence(client, connected=True) == "connected"
    assert owner.presence(client, connected=False) == "gone"


def test_a_server_is_known_by_its_directories(tmp_path: Path) -> None:
    """If it fails: two servers of one user are one, or a server does not know itself after its restart."""
    code = (
        "import sys; from distributed_provisioner.owner import name_application, owner\n"
        "if sys.argv[1:]: name_application(*sys.argv[1:])\n"
        "print(owner())"
    )

    def named(*directories: str) -> str:
        command = [sys.executable, "-c", code, *directories]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    (tmp_path / "link").symlink_to(tmp_path)
    one = named(str(tmp_path), "/config")
    assert named(str(tmp_path / "link"), "/config") == one
    assert named(str(tmp_path), "/config/other") != one
    assert named(str(tmp_path / "x"), "/config") != one
    assert named().endswith(":")
    assert one.startswith(named())
    machine_id = Path("/etc/machine-id")
    if machine_id.is_file():
        assert machine_id.read_text().strip() not in one


# --- where to ask -------------------------------------------------------------------------------------------------------------------


def specs(**configs: dict[str, Any] | None) -> dict[str, Any]:
    return {
        name: {
            "metadata": {}
            if config is None
            else {"kernel_provisioner": {"provisioner_name": "distributed-provisioner", "config": config}}
        }
        for name, config in configs.items()
    }


def places(config: Config | None = None, **configs: dict[str, Any] | None) -> list[str]:
    return [
        str(place.address)
        for place in configured_places(ServerSettings(config=config or Config()), specs(**configs), Log())
    ]


def test_hosts_of_all_kernelspecs_and_of_the_configuration_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails: kernels on some hosts are not found again."""
    config = Config()
    assert places() == []
    assert places(local=None) == []
    assert places(a={"remote_hosts": ["h1", "h2"]}, b={"remote_hosts": "h2,h3"}, local=None) == [
        "h1",
        "h2",
        "h3",
    ]
    config.DistributedProvisioner.remote_hosts = ["h9"]
    assert places(config) == ["h9"]
    assert places(config, a={}, b={"remote_hosts": "h1"}) == ["h9", "h1"]
    assert places(a={}) == ["localhost"]
    monkeypatch.setenv("GP_REMOTE_HOSTS", "h5")
    assert places() == ["h5"]


def test_a_host_is_logged_in_to_as_its_kernelspec_says() -> None:
    """If it fails: kernels of another account are not found, or each host is connected to twice."""
    configs = specs(
        a={"remote_hosts": ["h1"], "remote_user": "ann"}, b={"remote_hosts": ["h1"]}, c={"remote_hosts": "h1"}
    )
    found = configured_places(ServerSettings(config=Config()), configs, Log())
    assert [place.login.user for place in found] == ["ann", None]


def test_a_wrong_kernelspec_hides_no_others() -> None:
    """If it fails: one typing error in one kernel.json, and nothing is found again."""
    log = Log()
    configs = specs(bad={"remote_hosts": ["a b"]}, good={"remote_hosts": ["h1"]})
    assert [
        str(place.address) for place in configured_places(ServerSettings(config=Config()), configs, log)
    ] == ["h1"]
    assert "'bad'" in log.lines[0]


def test_installed_kernelspecs_are_read(tmp_path: Path) -> None:
    """If it fails: no kernelspec is looked at."""
    directory = tmp_path / "kernels" / "mine"
    directory.mkdir(parents=True)
    spec = {"argv": ["x"], "display_name": "", "language": "", **specs(a={"remote_hosts": ["h7"]})["a"]}
    (directory / "kernel.json").write_text(json.dumps(spec))
    found = all_specs(KernelSpecManager(kernel_dirs=[str(tmp_path / "kernels")], ensure_native_kernel=False))
    assert [str(p.address) for p in configured_places(ServerSettings(config=Config()), found, Log())] == [
        "h7"
    ]


def test_a_server_that_uses_a_gateway_looks_for_nothing() -> None:
    """If it fails: the client of a gateway takes the gateway's kernels for its own."""
    kinds: dict[Any, bool] = {
        AsyncMappingKernelManager: True,
        MappingKernelManager: True,
        GatewayMappingKernelManager: False,
    }
    assert {kind: is_served_here(kind()) for kind in kinds} == kinds
    assert not is_served_here(None)


# --- the hint -----------------------------------------------------------------------------------------------------------------------


def test_hosts_in_use_are_written_down_without_the_password(tmp_path: Path) -> None:
    """If it fails: a start waits for hosts that have nothing, or a password lies on the disk."""
    path = tmp_path / "new" / "hosts.json"
    place = Place(HostAddress.parse("ann@host1:2222"), Login("bob", "hunter2", True, 2200, 7.0))
    hints = HostHints(path)
    hints.add([place, place])
    hints.add([place])
    assert wait_until(path.is_file)
    assert HostHints(path).read("hunter2") == [place]
    assert "hunter2" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", '{"hosts": [1]}', '{"hosts": [{"host": "a b", "login": {}}]}', "\0"]
)
def test_a_damaged_hint_is_no_harm(text: str | None, tmp_path: Path) -> None:
    """If it fails: a broken file keeps the server from finding its kernels, or from starting."""
    path = tmp_path / "hosts.json"
    if text is not None:
        path.write_text(text)
    assert HostHints(path).read(None) == []


def test_a_hint_that_cannot_be_written_is_no_harm(tmp_path: Path) -> None:
    """If it fails: a full or read-only disk keeps kernels from starting."""
    (tmp_path / "file").write_text("")
    HostHints(tmp_path / "file" / "hosts.json").add([Place(HostAddress("h"), Login())])


# --- known kernels ----------------------------------------------------------------------------------------------------------------

KERNEL = dataclasses.replace(
    found(), login=Login("bob", "hunter2"), encryption={"curve_publickey": "p"}, identity="boot1"
)


def written(path: Path, kernel: Found, client: str) -> None:
    path.write_text(json.dumps({"kernels": [{**found_to_json(kernel), "client": client}]}))


def test_a_known_kernel_is_the_same_for_the_next_process(tmp_path: Path) -> None:
    """If it fails: a kernel whose host is away has another key or place, or a password lies on the disk."""
    path = tmp_path / "kernels.json"
    known = KnownKernels(path)
    known.put(KERNEL)
    assert wait_until(path.is_file)
    record = json.loads(path.read_text())["kernels"][0]
    assert "hunter2" not in path.read_text()
    assert (path.stat().st_mode & 0o777, record["client"].split(":")[1]) == (0o600, str(os.getpid()))
    assert KnownKernels(path).earlier("hunter2") == []  # this process is alive
    written(path, KERNEL, "f" * 32 + ":1:1")
    assert KnownKernels(path).earlier("hunter2") == [KERNEL]


def test_kernels_of_a_living_server_stay_in_the_file(tmp_path: Path) -> None:
    """If it fails: of two servers with the same directories one makes the other forget its kernels."""
    path = tmp_path / "kernels.json"
    written(path, KERNEL, owner.new_client())  # as another living process does
    known = KnownKernels(path)
    known.put(found("mine"))
    known.put(found("other"))
    known.drop("other")

    def names() -> list[str]:
        return [record["kernel_id"] for record in json.loads(path.read_text())["kernels"]]

    assert wait_until(lambda: names() == ["k", "mine"])


@pytest.mark.parametrize("text", ["", "[]", '{"kernels": 1}', '{"kernels": [1, {}, {"client": "c"}]}', "\0"])
def test_a_damaged_file_of_kernels_is_no_harm(text: str, tmp_path: Path) -> None:
    """If it fails: a broken file keeps the server from starting."""
    path = tmp_path / "kernels.json"
    path.write_text(text)
    known = KnownKernels(path)
    assert known.earlier(None) == []
    known.put(KERNEL)
    assert wait_until(lambda: "boot1" in path.read_text())


def test_many_changes_are_few_writes(tmp_path: Path) -> None:
    """If it fails: a server with many kernels writes its disk full, or what is written last is not the last."""
    file, made = ServerFile(tmp_path / "file.json"), []

    def content(number: int) -> int:
        time.sleep(0.05)
        made.append(number)
        return number

    for number in range(100):
        file.write(functools.partial(content, number))
    file.flush(5)
    assert (file.read(), len(made) < 5) == (99, True)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"taken": [KERNEL]}, ""),
        ({"unclear": [status()]}, ""),
        ({"others": [status()]}, ""),
        ({"identity": "boot2", "taken": [KERNEL]}, ""),
        ({}, "does not know it"),
        ({"identity": "boot2"}, "restarted"),
        ({"ended": [status(state="exited", reason="oom", detail="out of memory")]}, "out of memory"),
        ({"ended": [status(kernel_id="k2", detail="out of memory")]}, "does not know it"),
    ],
)
def test_what_a_host_says_of_a_known_kernel(answer: dict[str, Any], reason: str) -> None:
    """If it fails: living kernels are started anew, or dead ones are waited for."""
    end = Answer(**{"place": KERNEL.place, "identity": "boot1", **answer}).end_of(KERNEL)
    assert (end is None) == (not reason)
    assert end is None or reason in str(end[0])


def test_a_kernel_whose_adoption_was_not_heard_of_is_asked_for_again() -> None:
    """If it fails: a line that broke at the wrong moment costs the kernel."""
    alive = judge([status()], OURS, lambda client, connected: "alive")
    asked = judge([status()], OURS, lambda client, connected: "alive", is_ours=lambda status: True)
    assert (alive.adopt, alive.others, asked.adopt) == ([], [status()], [status()])


def test_the_password_of_a_configured_host_is_found_again() -> None:
    """If it fails: kernels on hosts with passwords cannot be gone on with."""
    configured = Place(HostAddress("h"), Login("ann", "hunter2"))
    assert with_password(Place(HostAddress("h"), Login("ann")), [configured]) == configured
    other = Place(HostAddress("h"), Login("bob"))
    assert with_password(other, [configured]) == other


# --- what the host keeps --------------------------------------------------------------------------------------------------------------

_json = st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=5)


@given(_json, _json)
def test_what_is_told_makes_of_the_old_annotations_the_new_ones(
    known: dict[str, Any], wanted: dict[str, Any]
) -> None:
    """If it fails: a session that was closed comes back, or one that was opened does not."""
    merged = {**known, **difference(known, wanted)}
    assert {name: value for name, value in merged.items() if value is not None} == wanted


@given(st.dictionaries(st.text(min_size=1, max_size=9), st.integers(0, 60_000), max_size=6))
def test_a_large_environment_is_cut_to_what_a_host_keeps(sizes: dict[str, int]) -> None:
    """If it fails: a kernel with a large environment does not start, or has no session after a restart of the server."""
    env = {name: "x" * size for name, size in sizes.items()}
    values = {
        "launch": {"env": env, "cwd": "/"},
        **annotations_of({"s": {"path": "p", "name": "n", "type": "t"}}),
    }
    kept = fitting(values)
    assert len(json.dumps(kept)) <= MAX_BYTES
    assert sessions_in(kept) == sessions_in(values)
    left = kept["launch"]["env"]
    assert left.items() <= env.items()
    assert (
        left == env or max(map(len, env.values())) > max(map(len, left.values()), default=0) or len(env) > 1
    )


def test_sessions_survive_the_way_to_the_host_and_back() -> None:
    """If it fails: notebooks come back under other names."""
    rows: dict[str, dict[str, Any]] = {
        "s1": {"path": "a/b.ipynb", "name": None, "type": "notebook"},
        "s2": {"path": "c", "name": "", "type": "console"},
    }
    again = json.loads(json.dumps({**annotations_of(rows), "launch": {}, "session:odd": 3}))
    assert sessions_in(again) == rows


def test_what_changed_while_the_host_was_away_is_kept() -> None:
    """If it fails: a notebook that was renamed or closed meanwhile has its old name, or is open again."""
    annotations = Annotations(lambda: None, Log())
    annotations.adopted({"renamed": 1, "closed": 1, "same": 1})
    annotations.set({"renamed": 2, "closed": None, "opened": 1})
    annotations.returned({"renamed": 1, "closed": 1, "same": 3, "new": 1})
    assert annotations.values == {"renamed": 2, "opened": 1, "same": 3, "new": 1}


def test_no_credentials_of_the_server_are_kept_with_a_kernel() -> None:
    """If it fails: who can read a host's files, or a server's, can use the server."""
    env = {"KERNEL_TOKEN": "asked for", "COLOR": "green", "JPY_SESSION_NAME": "a.ipynb", "KERNEL_ID": "k"}
    own = {"JUPYTER_TOKEN": "s", "JUPYTERHUB_API_TOKEN": "s", "GP_REMOTE_PWD": "s", "JPY_COOKIE_SECRET": "s"}
    request = LaunchRequest("k", (), (), "key", request_env={**env, **own})
    kept = launch_to_json(request, KernelSpec(), None, ())["env"]
    assert kept == {name: value for name, value in env.items() if name != "KERNEL_ID"}


def test_operators_are_not_shown_what_is_kept_with_a_kernel() -> None:
    """If it fails: `jupyter ssh-cluster kernels --json` prints environments, and they end in logs and tickets."""
    told = status(annotations={"launch": {"env": {"KERNEL_TOKEN": "hush"}}}, key="hush")
    kernel = kernel_from_status(HostAddress("h"), told)
    assert "hush" not in json.dumps(kernel.to_json()) + repr(kernel)


def test_a_restart_has_the_arguments_of_the_start() -> None:
    """If it fails: a kernel that is restarted after the server's crash runs elsewhere, or with another environment."""
    data = {"env": {"A": "1"}, "cwd": "/data", "extra_arguments": ["-v"], "spec": {}}
    arguments = launch_arguments_from_json(data, {"A": "0", "PATH": "/bin"})
    assert arguments == {"env": {"A": "1", "PATH": "/bin"}, "cwd": "/data", "extra_arguments": ["-v"]}
    assert launch_arguments_from_json(None, {"PATH": "/bin"}) == {"env": {"PATH": "/bin"}}


def test_a_status_says_where_a_kernel_runs() -> None:
    """If it fails: kernels that were found again are spoken to at the wrong place."""
    ports = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}
    told = {
        "pid": 7,
        "kernel_pid": 0,
        "pgid": 7,
        "generation": 9,
        "transport": "ipc",
        "ip": "/tmp/x",
        "ports": ports,
    }
    process = process_from_status(HostAddress("h"), told)
    assert (process.pid, process.kernel_pid, process.generation, process.ports) == (7, 7, 9, ports)
    with pytest.raises(KeyError):
        process_from_status(HostAddress("h"), {**told, "ports": {"shell": 1}})


def test_nothing_secret_is_in_a_repr() -> None:
    """If it fails: keys and environments get into logs."""
    shown = repr(
        Found("k", "p", found().process, Login(), "sesame", "s", {"x": "curve"}, {"launch": "hush"}, "")
    )
    assert not [secret for secret in ("sesame", "curve", "hush") if secret in shown]
