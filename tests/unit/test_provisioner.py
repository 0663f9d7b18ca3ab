"""What is settled before anything is contacted: requests, environments, ids, errors, transports, encryption."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import tornado.web
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager

from distributed_provisioner import errors
from distributed_provisioner.http_errors import as_http_error
from distributed_provisioner.jupyter_manager import JupyterManager
from distributed_provisioner.launch_request import (
    build_request,
    check_kernel_id,
    kernel_environment,
    kernel_transport,
)
from distributed_provisioner.models import HostAddress, LaunchRequest, PortRange
from distributed_provisioner.provisioner import DistributedProvisioner
from distributed_provisioner.settings import Settings, resolve

LAUNCHER = ["python", "/elsewhere/scripts/launch_ipykernel.py", "--kernel-id", "{kernel_id}"]
SENTENCE = "100 % of 'it' failed: %s %d. Try %(x)s."


def settings(**spec: Any) -> Settings:
    general = {name: spec.pop(name) for name in ("load_balancing_algorithm",) if name in spec}
    return resolve({"remote_hosts": "host1,host2", **spec}, {"unauthorized_users": [], **general}, {})


def build(
    spec: dict[str, Any] | None = None, *, argv: list[str] | None = None, **changes: Any
) -> LaunchRequest:
    arguments: dict[str, Any] = {
        "kernel_id": "k1",
        "kernel_name": "python_ssh",
        "kernel_spec": KernelSpec(
            argv=argv or LAUNCHER, env={"A": "${HOME}"}, language="python", resource_dir="/specs/x"
        ),
        "env": {},
        "cwd": "/data",
        "extra_arguments": (),
        "key": "sesame",
        "encryption": None,
        **changes,
    }
    return build_request(settings(**(spec or {})), **arguments)


# --- kernel ids -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("good", ["a", "0f1e-22.x_Y", "k" * 200])
def test_usual_kernel_ids_pass(good: str) -> None:
    """If it fails: kernels of other applications cannot be started."""
    assert check_kernel_id(good) == good


@pytest.mark.parametrize(
    "bad", ["", None, "a b;touch x;$(id)", "../x", ".", "-rf", "a/b", "a\n", "ä", "k" * 201, "`id`", "a\0b"]
)
def test_hostile_kernel_ids_are_refused(bad: Any) -> None:
    """If it fails: a REST client writes into paths and commands on a host."""
    with pytest.raises(errors.ConfigurationError, match="cannot be used"):
        check_kernel_id(bad)


# --- environment ------------------------------------------------------------------------------------------------------------------


SERVER = {"PATH": "/bin", "HOME": "/root", "LANG": "C", "SECRET": "s", "KERNEL_ABC": "server"}


def env(request: dict[str, str] | None, server: dict[str, str] | None = None) -> dict[str, str]:
    return kernel_environment(request, SERVER if server is None else server, "k1", "R")


def test_the_servers_own_environment_stays_at_home() -> None:
    """If it fails: JupyterLab, which sends its whole environment, spreads the server's secrets over hosts."""
    got = env({**SERVER, "JPY_SESSION_NAME": "nb.ipynb", "LANG": "de_DE"})
    assert got.pop("KERNEL_USERNAME")
    assert got == {
        "KERNEL_ABC": "server", "JPY_SESSION_NAME": "nb.ipynb", "LANG": "de_DE", "KERNEL_ID": "k1", "KERNEL_LANGUAGE": "R",
    }  # fmt: skip


def test_what_belongs_to_a_machine_or_login_is_not_sent() -> None:
    """If it fails: a kernel looks for programs where they are on the server."""
    names = [
        "PATH",
        "HOME",
        "USER",
        "SHELL",
        "PWD",
        "TMPDIR",
        "LD_PRELOAD",
        "XDG_RUNTIME_DIR",
        "SSH_AUTH_SOCK",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
    ]
    got = env(dict.fromkeys([*names, "JPY_PARENT_PID", "GP_REMOTE_PWD", "MINE"], "x"))
    assert set(got) == {"MINE", "KERNEL_ID", "KERNEL_LANGUAGE", "KERNEL_USERNAME"}


def test_a_request_cannot_forge_the_kernels_id() -> None:
    """If it fails: a request changes what the host thinks a kernel is."""
    assert env({"KERNEL_ID": "other", "KERNEL_LANGUAGE": "x"})["KERNEL_ID"] == "k1"


def test_without_a_requests_environment_the_servers_counts() -> None:
    """If it fails: KERNEL_* that were set for a script that starts kernels are lost."""
    assert env(None)["KERNEL_ABC"] == "server"
    assert "SECRET" not in env(None)
    assert "KERNEL_ABC" not in env({})


def test_pin_and_user_of_the_server_count_where_the_request_is_silent() -> None:
    """If it fails: plain Jupyter Server, which drops a request's env, cannot pin at all."""
    server = {"KERNEL_REMOTE_HOST": "host2", "KERNEL_USERNAME": "ann"}
    assert env({}, server)["KERNEL_REMOTE_HOST"] == "host2"
    got = env({"KERNEL_USERNAME": "bob"}, server)
    assert got["KERNEL_USERNAME"] == "bob"


@given(
    st.dictionaries(
        st.from_regex(r"KERNEL_[A-Z]{1,9}", fullmatch=True), st.text().filter(lambda t: "\0" not in t)
    )
)
def test_kernel_values_are_untouched(values: dict[str, str]) -> None:
    """If it fails: quotes, newlines or dollar signs of a value are changed on their way."""
    own = {"KERNEL_ID", "KERNEL_LANGUAGE", "KERNEL_USERNAME"}
    got = env(values, {})
    assert {name: got[name] for name in values if name not in own} == {
        n: v for n, v in values.items() if n not in own
    }


@pytest.mark.parametrize("bad", [{"KERNEL_X": "a\0b"}, {"A=B": "x"}, {"": "x"}])
def test_what_no_environment_can_hold_is_refused(bad: dict[str, str]) -> None:
    """If it fails: it is refused on the host, by a stack trace."""
    with pytest.raises(errors.ConfigurationError):
        env(bad)


# --- requests ------------------------------------------------------------------------------------------------------------------------


def test_a_request_has_everything_raw() -> None:
    """If it fails: placeholders or ${NAME} are filled in on the wrong machine."""
    request = build(extra_arguments=["--debug"], env={"KERNEL_WORKING_DIR": "/w"})
    assert request.argv == (*LAUNCHER, "--debug")
    assert request.spec_env == {"A": "${HOME}"}
    assert request.directories == ("/w", "/data")
    assert request.hosts == (HostAddress("host1"), HostAddress("host2"))
    assert build(cwd=None).directories == (os.getcwd(),)


def test_secrets_are_in_no_repr() -> None:
    """If it fails: a debug log has the signing key."""
    shown = repr(build({}, env={"KERNEL_TOKEN": "hush"}, encryption={"curve_secretkey": "curved"}))
    assert not any(secret in shown for secret in ("sesame", "hush", "curved"))


def test_who_may_not_learns_that_before_anything_else() -> None:
    """If it fails: users who may not launch can probe the options."""
    with pytest.raises(errors.NotAuthorizedError):
        build(
            {"authorized_users": ["ann"]},
            env={"KERNEL_USERNAME": "bob", "KERNEL_REMOTE_HOST": "elsewhere", "KERNEL_LAUNCH_TIMEOUT": "x"},
        )


def test_options_reach_the_request() -> None:
    """If it fails: an option does nothing."""
    request = build(
        {
            "port_range": "33000..34000",
            "orphan_timeout": 60,
            "interrupt_target": "kernel",
            "remote_python": "/p",
            "kernel_log_dir": "/l",
            "output_limit": 3,
        },
        env={"KERNEL_REMOTE_HOST": "host2", "KERNEL_LAUNCH_TIMEOUT": "7"},
    )
    assert (request.port_range, request.pin, request.launch_timeout) == (
        PortRange(33000, 34000),
        HostAddress("host2"),
        7,
    )
    assert (request.orphan_timeout, request.interrupt_target, request.remote_python) == (60, "kernel", "/p")
    assert (request.kernel_log_dir, request.output_limit) == ("/l", 3 << 20)
    assert build(env={"KERNEL_ORPHAN_TIMEOUT": "0"}).orphan_timeout == 0


def test_a_public_key_is_made_only_when_it_is_asked_for() -> None:
    """If it fails: every launch pays for a key that nobody uses, or a launcher that wants one gets none."""
    assert build().public_key == ""
    assert build(argv=["x", "{public_key}"]).public_key


@pytest.mark.parametrize(
    ("argv", "config", "expected"),
    [
        (LAUNCHER, {}, "ipc"),
        (["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"], {}, "ipc"),
        (["python3", "-Xfrozen_modules=off", "-m", "ipykernel", "-f", "{connection_file}"], {}, "ipc"),
        (["bash", "-m", "bash_kernel"], {}, "tcp"),
        (["python3", "-m"], {}, "tcp"),
        (["ir"], {"kernel_transport": "ipc"}, "ipc"),
        (LAUNCHER, {"kernel_transport": "tcp"}, "tcp"),
        (LAUNCHER, {"transport": "direct"}, "direct"),
    ],
)
def test_unix_sockets_are_for_kernels_that_have_them(
    argv: list[str], config: dict[str, Any], expected: str
) -> None:
    """If it fails: a kernel without Unix sockets never answers, or one with them is open to other users of its host."""
    assert kernel_transport(settings(**config), argv) == expected


def test_direct_is_refused_in_plain_text() -> None:
    """If it fails: code and data cross the network where everybody can read and change them."""
    with pytest.raises(errors.ConfigurationError, match="plain text"):
        build({"transport": "direct"})
    assert build({"transport": "direct", "allow_plain_text": True}).encryption is None
    assert build({"transport": "direct"}, encryption={"curve_publickey": "x"}).kernel_transport == "direct"


# --- errors --------------------------------------------------------------------------------------------------------------------------


ERRORS = [
    (errors.NotAuthorizedError(SENTENCE), 403),
    (errors.NoHostAvailableError(SENTENCE, tried={"a": errors.HostError("x")}), 503),
    (errors.HostUnreachableError(SENTENCE, host="a"), 503),
    (errors.ConfigurationError(SENTENCE), 500),
    (errors.LauncherExitedError(SENTENCE, exit_status=3, log_tail="boo", host="a"), 500),
    (errors.InterpreterNotFoundError(SENTENCE), 500),
    (errors.LaunchTimeoutError(SENTENCE), 500),
]


@pytest.mark.parametrize(("error", "status"), ERRORS)
def test_an_error_is_ours_and_tornados_and_its_text_is_our_sentence(
    error: errors.ProvisionerError, status: int
) -> None:
    """If it fails: users see 'Unhandled error' instead of what is wrong."""
    twin = as_http_error(error)
    assert isinstance(twin, type(error))
    assert isinstance(twin, tornado.web.HTTPError)
    assert twin.status_code == status
    assert type(twin).__name__ == type(error).__name__
    assert str(twin) == twin.log_message == SENTENCE
    assert {k: v for k, v in vars(twin).items() if k in vars(error)} == vars(error)
    assert as_http_error(twin) is twin


@pytest.mark.parametrize(("error", "status"), ERRORS)
def test_percent_signs_survive_what_servers_do_with_messages(
    error: errors.ProvisionerError, status: int
) -> None:
    """If it fails: users see doubled percent signs, or the log has a stack trace of a formatting error."""
    twin: Any = as_http_error(error)
    assert (
        json.loads(json.dumps({"message": twin.log_message}))["message"] == SENTENCE
    )  # APIHandler.write_error
    assert twin.log_message % twin.args == SENTENCE  # JupyterHandler.write_error
    assert (
        tornado.web.HTTPError(500, str(twin)).log_message == SENTENCE
    )  # what POST /api/sessions makes of it
    assert ("%d %s: " + twin.log_message) % (
        500,
        "POST",
    ) == "500 POST: " + SENTENCE  # tornado's log before 6.5
    assert twin.get_message() == SENTENCE  # and since


# --- the provisioner -----------------------------------------------------------------------------------------------------------------


class Spec(KernelSpec):  # type: ignore[misc, unused-ignore]
    """A specification that was never installed."""


def make(
    manager: Any = None, metadata: dict[str, Any] | None = None, **config: Any
) -> DistributedProvisioner:
    spec = KernelSpec(argv=LAUNCHER, language="python", display_name="x", metadata=metadata or {})
    return DistributedProvisioner(
        kernel_id="k1", kernel_spec=spec, parent=manager, **{"remote_hosts": ["host1"], **config}
    )


def test_a_failed_construction_is_an_http_error_and_leaves_no_pending_kernel() -> None:
    """If it fails: a server with a wrong option never exits on SIGTERM."""
    many = AsyncMultiKernelManager()
    manager = AsyncKernelManager(parent=many)
    many._pending_kernels["k1"] = object()
    with pytest.raises(errors.ConfigurationError) as caught:
        make(manager, remote_hosts=[])
    assert isinstance(caught.value, tornado.web.HTTPError)
    assert not many._pending_kernels


def test_windows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails: users of Windows get a stack trace of a missing module."""
    with monkeypatch.context() as patch:
        patch.setattr("distributed_provisioner.provisioner.os.name", "nt")
        with pytest.raises(errors.ConfigurationError, match="Windows"):
            make()


async def test_pre_launch_gives_argv_as_it_is_and_knows_nothing_of_templates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If it fails: `python` becomes the server's interpreter, or ${NAME} is filled in from the server."""
    monkeypatch.setenv("GP_UNAUTHORIZED_USERS", "")
    provisioner = make(AsyncKernelManager())
    got = await provisioner.pre_launch(env={"A": "b"}, extra_arguments=["-x"], cwd="/d")
    assert got["cmd"] == [*LAUNCHER, "-x"]
    assert not provisioner.has_process
    assert await provisioner.poll() == 0


async def test_pre_launch_uses_the_managers_session_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails: after a restart, clients that are connected sign with a key that the kernel does not know."""
    monkeypatch.setenv("GP_UNAUTHORIZED_USERS", "")
    manager = AsyncKernelManager()
    provisioner = make(manager)
    await provisioner.pre_launch()
    assert provisioner._request is not None
    assert provisioner._request.key == manager.session.key.decode()


async def test_two_provisioners_share_nothing() -> None:
    """If it fails: one kernel's connection info is another's."""
    one, other = make(), make()
    one.connection_info["ip"] = "x"
    assert other.connection_info == {}
    assert DistributedProvisioner.connection_info == {}


async def test_a_refusal_is_a_403() -> None:
    """If it fails: the browser shows 500 for somebody who just may not."""
    provisioner = make(AsyncKernelManager(), unauthorized_users=["bob"])
    with pytest.raises(errors.NotAuthorizedError) as caught:
        await provisioner.pre_launch(env={"KERNEL_USERNAME": "bob"})
    assert isinstance(caught.value, tornado.web.HTTPError)
    assert caught.value.status_code == 403


# --- encryption ----------------------------------------------------------------------------------------------------------------------


needs_encryption = pytest.mark.skipif(
    not hasattr(AsyncKernelManager, "transport_encryption"),
    reason="other platform: jupyter_client before 8.9 does not encrypt",
)
CURVE = {"supported_encryption": ["curve"]}


@needs_encryption
@pytest.mark.parametrize(
    ("policy", "metadata", "config", "keys"),
    [
        ("disabled", CURVE, {}, True),
        ("disabled", {}, {}, False),
        ("auto", CURVE, {}, True),
        ("auto", {"supported_encryption": "Curve"}, {}, True),
        ("auto", {}, {}, False),
        ("required", CURVE, {}, True),
        ("disabled", CURVE, {"transport": "direct"}, True),
    ],
)
async def test_curve_keys_are_made_where_they_are_asked_for_and_kept(
    monkeypatch: pytest.MonkeyPatch, policy: str, metadata: dict[str, Any], config: dict[str, Any], keys: bool
) -> None:
    """If it fails: messages that were to be encrypted are not, or a restart locks clients out."""
    monkeypatch.setenv("GP_UNAUTHORIZED_USERS", "")
    provisioner = make(AsyncKernelManager(transport_encryption=policy), metadata, **config)
    found = []
    for _ in range(2):
        await provisioner.pre_launch()
        assert provisioner._request is not None
        found.append(provisioner._request.encryption)
    assert found[0] == found[1]
    assert bool(found[0]) is keys
    assert provisioner._request is not None
    assert provisioner._request.encrypt_ipc is (keys and policy != "disabled")
    if found[0]:
        assert {name: len(key) for name, key in found[0].items()} == {
            "curve_publickey": 40,
            "curve_secretkey": 40,
        }


@needs_encryption
async def test_required_encryption_that_cannot_be_kept_is_refused() -> None:
    """If it fails: an administrator's requirement is ignored in silence."""
    provisioner = make(AsyncKernelManager(transport_encryption="required"))
    with pytest.raises(errors.ConfigurationError, match="required"):
        await provisioner.pre_launch()


def test_a_manager_from_before_curve_gets_none() -> None:
    """If it fails: an older jupyter_client gets connection info that it cannot use."""

    class Old:
        kernel_name = "x"

    manager = JupyterManager(Old())
    spec = KernelSpec(metadata=CURVE)
    assert not manager.can_encrypt(spec)
    assert manager.encryption(spec) == "disabled"
    assert JupyterManager(None).encryption(spec) == "disabled"


# --- what is kept over a restart of the server ----------------------------------------------------------------------------------------


async def test_provisioner_info_is_json_without_password(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails: a kernel cannot be found again, or a password lies in a database."""
    monkeypatch.setenv("GP_REMOTE_PWD", "hunter2")
    provisioner = make()
    info: Any = {"key": b"abc", "ip": "x"}
    provisioner.connection_info = info
    text = json.dumps(await provisioner.get_provisioner_info())
    assert "hunter2" not in text
    other = make()
    await other.load_provisioner_info(json.loads(text))
    loaded: Any = other.connection_info
    assert loaded == info
    assert not other.has_process


async def test_a_signing_key_is_in_no_log(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails: whoever reads the log can run code in the kernel."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("GP_UNAUTHORIZED_USERS", "")
    manager = AsyncKernelManager()
    provisioner = make(manager)
    await provisioner.pre_launch(env={"KERNEL_PASSWORD": "hush"}, cwd=str(tmp_path))
    assert manager.session.key.decode() not in caplog.text
    assert "hush" not in caplog.text
