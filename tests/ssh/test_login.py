"""SSH as people have it: their configuration, keys, agent, jump hosts; and a sentence for everything that can go wrong."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from distributed_provisioner.errors import (
    AuthenticationError,
    HostError,
    HostKeyError,
    HostSetupError,
    HostUnreachableError,
)

from .conftest import Get, Run

if TYPE_CHECKING:
    from distributed_provisioner.testing.namespaces import Cluster, Host

pytestmark = pytest.mark.cluster


def refused(run: Run, get: Get, entry: str, **login: object) -> HostError:
    """The error that connecting gives."""
    with pytest.raises(HostError) as caught:
        run(get(entry, **login).connect())
    print(caught.value)
    return caught.value


def address_of(ssh_config: Path, name: str) -> str:
    """HostName of a host of the cluster."""
    found = re.search(rf"Host {name}\n(?:\s+\w+ .*\n)*?\s+HostName (\S+)", ssh_config.read_text())
    assert found is not None
    return found[1]


def write(config: Path, text: str) -> None:
    config.write_text(text)
    config.chmod(0o600)


@pytest.fixture
def key(cluster: Cluster, ssh_config: Path) -> str:
    """The key that the hosts accept, at a place that is not a default one."""
    found = re.search(r"IdentityFile (\S+)", ssh_config.read_text())
    if found:
        return str(Path(found[1].replace("~", str(cluster.home))))
    return str(next(path for path in (cluster.home / ".ssh").glob("id_*") if not path.suffix))


# --- configuration -------------------------------------------------------------------------------------------------------------


def test_hostname_user_port_and_identity_come_from_the_users_config(
    cluster: Cluster, ssh_config: Path, key: str, run: Run, get: Get
) -> None:
    """People write aliases in remote_hosts."""
    address = address_of(ssh_config, "host1")
    user = cluster.user if cluster.rootless else "root"
    shutil.copy(key, cluster.home / "elsewhere")
    write(
        ssh_config, f"Host my-alias\n HostName {address}\n User {user}\n Port 22\n IdentityFile ~/elsewhere\n"
    )
    welcome = run(get("my-alias").connect())
    assert (welcome.user, welcome.hostname) == (user, "host1")


def test_the_user_is_the_entrys_then_remote_user_then_the_configs(
    cluster: Cluster, ssh_config: Path, run: Run, get: Get
) -> None:
    """reference.md, section 2."""
    if cluster.rootless:
        pytest.skip("other platform: rootless hosts have one user")
    assert run(get("host1").connect()).user == cluster.user  # the config's
    assert run(get("host1", user="root").connect()).user == "root"
    assert run(get(f"{cluster.user}@host1", user="root").connect()).user == cluster.user


def test_the_port_is_the_entrys_then_the_configs_then_ssh_port(ssh_config: Path, run: Run, get: Get) -> None:
    """reference.md, section 2."""
    assert ":22 refused" not in str(refused(run, get, "host1:2244"))
    assert ":2244 refused" in str(refused(run, get, "host1:2244"))
    original = ssh_config.read_text()
    assert ":2255 refused" in str(refused(run, get, address_of(ssh_config, "host1"), port=2255))
    write(ssh_config, "Host *\n Port 22\n" + original)
    run(get("host1", port=2255).connect())


def test_jump_hosts_and_proxy_commands_are_used_and_their_keys_verified(
    cluster: Cluster, ssh_config: Path, key: str, run: Run, get: Get
) -> None:
    """Clusters often lie behind a gateway."""
    original = ssh_config.read_text()
    inner = address_of(ssh_config, "host2")
    jump = f"Host inner\n HostName {inner}\n User {cluster.user}\n IdentityFile {key}\n ProxyJump host1\n"
    write(ssh_config, jump + original)
    connection = get("inner")
    assert run(connection.connect()).hostname == "host2"
    assert connection.peer_address is None
    command = f"sh -c 'echo noise >&2; exec ssh -F {ssh_config} -W %h:%p host1'"
    identity = f"HostName {inner}\n User {cluster.user}\n IdentityFile {key}"
    proxy = f"Host proxied\n {identity}\n ProxyCommand {command}\n"
    write(ssh_config, proxy + original)
    known = cluster.home / ".ssh" / "known_hosts"
    assert run(get("proxied").connect()).hostname == "host2"
    write(ssh_config, jump + original)
    outer = address_of(ssh_config, "host1")
    known.write_text(
        "".join(
            line for line in known.read_text().splitlines(True) if outer not in line and "host1" not in line
        )
    )
    error = refused(run, get, "inner", connect_timeout=9)
    assert isinstance(error, HostKeyError)
    assert "host1 is unknown" in str(error)


def test_a_jump_host_to_which_its_own_rule_applies_is_reached_directly(
    cluster: Cluster, ssh_config: Path, run: Run, get: Get
) -> None:
    """`Host *` with a ProxyJump is common; the gateway itself must not be sought behind itself."""
    write(ssh_config, ssh_config.read_text() + "\nHost *\n ProxyJump host1\n")
    assert run(get("host2").connect()).hostname == "host2"
    assert run(get("host1").connect()).hostname == "host1"


def test_a_proxy_command_that_fails_is_told_with_its_words(ssh_config: Path, run: Run, get: Get) -> None:
    """Only the command itself knows why."""
    write(
        ssh_config,
        "Host broken\n ProxyCommand echo no way to the gateway >&2; exit 1\nHost hangs\n ProxyCommand sleep 60\n",
    )
    error = refused(run, get, "broken", connect_timeout=4)
    assert isinstance(error, HostUnreachableError)
    assert "the proxy command ended before the SSH banner came and said: no way to the gateway" in str(error)
    start = time.monotonic()
    assert "the proxy command has not brought an SSH banner within 1.5 s" in str(
        refused(run, get, "hangs", connect_timeout=1.5)
    )
    assert time.monotonic() - start < 3.5
    assert not subprocess.run(["pgrep", "-f", "^sleep 60$"], check=False, capture_output=True).stdout


def test_a_configuration_that_makes_no_sense_is_named(ssh_config: Path, run: Run, get: Get) -> None:
    """With file and line, or nobody finds it."""
    write(ssh_config, "Host host1\n Port many\n")
    assert "config line 2: Invalid Port integer value: many" in str(refused(run, get, "host1"))


@pytest.mark.parametrize(
    "name", ["-oProxyCommand=touch x", "a;touch x", "$(touch x)", "a`touch x`", "a'b", "a\nb", "a|b"]
)
def test_hostile_names_never_reach_a_shell(
    name: str, ssh_config: Path, run: Run, get: Get, tmp_path: Path
) -> None:
    """Names may come from a start request; a ProxyCommand is a shell's."""
    from distributed_provisioner.models import HostAddress, Login
    from distributed_provisioner.ssh.config import find_target

    write(ssh_config, f"Host *\n ProxyCommand cd {tmp_path}; echo %h %r %n\n")
    for address in (HostAddress(name), HostAddress("host1", user=name)):
        with pytest.raises(HostUnreachableError, match="is not the name of"):
            find_target(address, Login())
    assert not list(tmp_path.iterdir())


# --- host keys -----------------------------------------------------------------------------------------------------------------


def test_an_unknown_key_is_refused_with_its_fingerprint_and_the_command_that_accepts_it(
    cluster: Cluster, ssh_config: Path, host: Host, run: Run, get: Get
) -> None:
    """`ssh` would ask; a server cannot. The command must work as it is shown."""
    known = cluster.home / ".ssh" / "known_hosts"
    known.write_text("")
    error = refused(run, get, host.name)
    assert isinstance(error, HostKeyError)
    assert error.fingerprint is not None
    assert error.fingerprint.startswith("SHA256:")
    assert error.fingerprint in fingerprint(host.host_key)
    address = address_of(ssh_config, host.name)
    assert f"The host key of {host.name} is unknown" in str(error)
    shown = re.search(r"then run: (ssh-keyscan \S+ >> \S+)$", str(error))
    assert shown is not None
    assert address in shown[1]
    subprocess.run(
        ["sh", "-c", shown[1]], check=True, capture_output=True, env={**os.environ, "HOME": str(cluster.home)}
    )
    run(get(host.name).connect())


def test_a_changed_key_is_refused_and_never_accepted_by_itself(
    cluster: Cluster, ssh_config: Path, host: Host, run: Run, get: Get
) -> None:
    """This is what host keys are for."""
    host.new_host_key()
    error = refused(run, get, host.name)
    assert isinstance(error, HostKeyError)
    assert f"The host key of {host.name} has changed: it showed {error.fingerprint}" in str(error)
    assert "ssh-keygen -R" in str(error)
    removal = re.search(r"run: (ssh-keygen -R \S+(?: -f \S+)?)", str(error))
    assert removal is not None
    subprocess.run(
        ["sh", "-c", removal[1]],
        check=True,
        capture_output=True,
        env={**os.environ, "HOME": str(cluster.home)},
    )
    assert "is unknown" in str(refused(run, get, host.name))
    cluster.trust_hosts()
    run(get(host.name).connect())


@pytest.mark.parametrize(
    "option",
    [
        "UserKnownHostsFile none",
        "UserKnownHostsFile /dev/null",
        "StrictHostKeyChecking no\n UserKnownHostsFile /dev/null",
    ],
)
def test_no_option_switches_the_verification_off(
    option: str, cluster: Cluster, ssh_config: Path, run: Run, get: Get
) -> None:
    """Copied from the web into many configurations; a signing key goes over this line."""
    write(ssh_config, f"Host *\n {option}\n" + ssh_config.read_text().replace("UserKnownHostsFile", "# "))
    assert isinstance(refused(run, get, "host1"), HostKeyError)


def test_files_of_known_hosts_with_tokens_and_several_of_them_count(
    cluster: Cluster, ssh_config: Path, run: Run, get: Get
) -> None:
    """`UserKnownHostsFile ~/.ssh/known_hosts.d/%k` is how some people keep one file a host."""
    known = cluster.home / ".ssh" / "known_hosts"
    special = cluster.home / ".ssh" / "known.host1"
    known.rename(special)
    known.write_text("this line makes no sense\n@odd-marker x y z\n")
    try:
        assert isinstance(refused(run, get, "host1"), HostKeyError)
        text = ssh_config.read_text().replace("UserKnownHostsFile", "# ")
        write(
            ssh_config,
            "Host *\n UserKnownHostsFile ~/.ssh/missing %d/.ssh/known.%n ~/.ssh/known_hosts\n" + text,
        )
        run(get("host1", connect_timeout=9).connect())
    finally:
        special.unlink()


def test_a_key_that_is_known_for_the_address_alone_is_not_taken_for_the_name(
    cluster: Cluster, ssh_config: Path, run: Run, get: Get
) -> None:
    """A forged name server must not be able to send us to another host that we know."""
    address = address_of(ssh_config, "host1")
    known = cluster.home / ".ssh" / "known_hosts"
    keys = [line.split(None, 1)[1] for line in known.read_text().splitlines() if address in line.split()[0]]
    known.write_text("".join(f"{address} {key}\n" for key in keys))
    write(ssh_config, "Host host1\n HostKeyAlias some-name\n" + ssh_config.read_text())
    assert "some-name is in no known_hosts file" in str(refused(run, get, "host1"))
    known.write_text("".join(f"some-name {key}\n" for key in keys))
    run(get("host1").connect())


def fingerprint(key: str) -> str:
    done = subprocess.run(["ssh-keygen", "-lf", "-"], input=key, capture_output=True, text=True, check=True)
    return done.stdout


# --- keys, agent, password ------------------------------------------------------------------------------------------------------


@pytest.fixture
def agent(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A running ssh-agent without keys."""
    path = str(cluster.home / "agent")
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    while not os.path.exists(path):
        time.sleep(0.01)
    monkeypatch.setenv("SSH_AUTH_SOCK", path)
    yield path
    process.kill()
    process.wait()
    Path(path).unlink(missing_ok=True)


@pytest.fixture
def encrypted(cluster: Cluster, key: str) -> Iterator[Path]:
    """The accepted key with a passphrase."""
    path = cluster.home / "encrypted"
    shutil.copy(key, path)
    subprocess.run(
        ["ssh-keygen", "-q", "-p", "-f", path, "-P", "", "-N", "secret"], check=True, capture_output=True
    )
    public = subprocess.run(["ssh-keygen", "-y", "-f", key], check=True, capture_output=True).stdout
    (cluster.home / "encrypted.pub").write_bytes(public)
    yield path
    path.unlink()
    (cluster.home / "encrypted.pub").unlink()


def only(config: Path, name: str, text: str) -> None:
    """A configuration for one host with these lines and no other key."""
    original = re.sub(r"(?m)^\s*Identit(yFile|iesOnly).*\n", "", config.read_text())
    write(config, f"Host {name}\n {text}\n" + original)


def test_a_key_with_a_passphrase_is_skipped_and_named_or_used_through_the_agent(
    ssh_config: Path, key: str, encrypted: Path, agent: str, run: Run, get: Get
) -> None:
    """Nobody is there who could type a passphrase; it must neither ask nor crash."""
    only(ssh_config, "host1", f"IdentityFile {encrypted}\n IdentitiesOnly yes")
    error = refused(run, get, "host1")
    assert isinstance(error, AuthenticationError)
    assert f"{encrypted} needs a passphrase" in str(error)
    assert "ssh-add" in str(error)
    subprocess.run(["ssh-add", "-q", key], check=True)
    run(get("host1").connect())  # IdentitiesOnly: the agent's key is the one that is named


def test_of_many_keys_in_the_agent_the_named_one_is_tried_first(
    cluster: Cluster,
    ssh_config: Path,
    key: str,
    encrypted: Path,
    agent: str,
    host: Host,
    run: Run,
    get: Get,
    tmp_path: Path,
) -> None:
    """sshd hangs up after six tries; people have more keys in their agents."""
    for number in range(8):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / f"k{number}"], check=True
        )
        subprocess.run(["ssh-add", "-q", tmp_path / f"k{number}"], check=True)
    subprocess.run(["ssh-add", "-q", key], check=True)
    only(ssh_config, host.name, f"IdentityFile {encrypted}")
    run(get(host.name).connect())
    only(ssh_config, host.name, "IdentityFile /no/such/key")
    error = refused(run, get, host.name, connect_timeout=9)
    assert isinstance(error, AuthenticationError)
    assert "Too many authentication failures" in str(error)


def test_an_agent_that_hangs_or_is_gone_does_not_keep_a_key_file_from_being_used(
    ssh_config: Path, agent: str, run: Run, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSH_AUTH_SOCK of a login that has ended is common in servers that run for weeks."""
    monkeypatch.setenv("SSH_AUTH_SOCK", "/no/such/socket")
    run(get("host1").connect())


def test_a_missing_or_broken_key_file_is_named_in_the_refusal(
    cluster: Cluster, ssh_config: Path, run: Run, get: Get
) -> None:
    """A typing error in IdentityFile is else hard to find."""
    (cluster.home / "rubbish").write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nxx\n")
    only(ssh_config, "host1", "IdentityFile ~/no-such-key\n IdentityFile ~/rubbish\n IdentityAgent none")
    text = str(refused(run, get, "host1"))
    assert f"host1 refused user {cluster.user} (it allows: publickey" in text
    assert "no-such-key: no such file" in text
    assert "rubbish: " in text


def test_a_certificate_is_offered(
    cluster: Cluster, ssh_config: Path, host: Host, run: Run, get: Get, tmp_path: Path
) -> None:
    """Sites that sign user keys have no authorized_keys."""
    for name in ("ca", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name], check=True)
    subprocess.run(
        ["ssh-keygen", "-q", "-s", tmp_path / "ca", "-I", "test", "-n", cluster.user, tmp_path / "user.pub"],
        check=True,
    )
    os.rename(tmp_path / "user-cert.pub", tmp_path / "signed")
    only(ssh_config, host.name, f"IdentityFile {tmp_path}/user\n CertificateFile {tmp_path}/signed")
    assert isinstance(refused(run, get, host.name), AuthenticationError)
    file = host.path("/etc/ssh/test_ca.pub")
    file.write_text((tmp_path / "ca.pub").read_text())
    host.configure_sshd(TrustedUserCAKeys="/etc/ssh/test_ca.pub")
    try:
        run(get(host.name).connect())
    finally:
        host.configure_sshd(TrustedUserCAKeys=None)


def test_a_password_is_used_for_passwords_alone_and_appears_nowhere(
    cluster: Cluster,
    ssh_config: Path,
    encrypted: Path,
    host: Host,
    run: Run,
    get: Get,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """GP_REMOTE_PWD must not decrypt keys, nor show up in a log or an error."""
    caplog.set_level("DEBUG")
    host.set_password(cluster.user, "pass-4711")
    only(ssh_config, host.name, f"IdentityFile {encrypted}\n IdentityAgent none")
    host.configure_sshd(PasswordAuthentication="yes")
    run(get(host.name, password="pass-4711").connect())
    error = refused(run, get, host.name, password="wrong-0815")
    assert isinstance(error, AuthenticationError)
    assert "tried: the password" in str(error)
    assert "wrong-0815" not in str(error) + repr(error)
    host.configure_sshd(PasswordAuthentication=None)
    assert isinstance(
        refused(run, get, host.name, password="secret"), AuthenticationError
    )  # encrypted's passphrase
    assert "pass-4711" not in caplog.text
    assert "wrong-0815" not in caplog.text


# --- faults, each with its sentence ---------------------------------------------------------------------------------------------


def test_each_fault_has_its_own_sentence(
    cluster: Cluster, ssh_config: Path, host: Host, run: Run, get: Get
) -> None:
    """`failed to authenticate` for everything is what people hate about such tools."""
    address = address_of(ssh_config, host.name)
    unknown = refused(run, get, "no-such-host.invalid", connect_timeout=5)
    assert isinstance(unknown, HostUnreachableError)
    assert "no-such-host.invalid cannot be reached: " in str(unknown)
    assert "its name no-such-host.invalid is unknown" in str(unknown) or "did not answer" in str(unknown)
    host.kill_sshd()
    assert (
        f"{host.name} cannot be reached: {address}:22 refused the connection. Check that sshd runs there"
        in str(refused(run, get, host.name))
    )
    host.start_sshd()
    host.blackhole()
    start = time.monotonic()
    silent = refused(run, get, host.name, connect_timeout=1.5)
    assert time.monotonic() - start < 3
    assert f"{address}:22 did not answer at all within 1.5 s" in str(silent) or "no route" in str(silent)
    host.heal()


def test_a_stopped_sshd_is_told_from_a_silent_host(host: Host, run: Run, get: Get) -> None:
    """The kernel of the host still answers: it is sshd that hangs."""
    host.pause_sshd()
    error = refused(run, get, host.name, connect_timeout=1.5)
    assert "accepted the connection but sent no SSH banner within 1.5 s" in str(error)
    host.resume_sshd()


def test_connections_dropped_under_load_are_tried_again(host: Host, run: Run, get: Get) -> None:
    """sshd's MaxStartups drops some of a burst; a few tries later there is room."""
    with dropping_server(drops=2) as port:
        text = str(refused(run, get, f"127.0.0.1:{port}", connect_timeout=4))
    # After two drops the server answered with its own greeting, which is not SSH's: the drops were not the end.
    assert "MaxStartups" not in text
    with dropping_server(drops=1000) as port:
        text = str(refused(run, get, f"127.0.0.1:{port}", connect_timeout=1.5))
    assert "ended the connection before its SSH banner" in text
    assert "MaxStartups" in text


class dropping_server:
    """Accepts connections and closes them at once, `drops` times; then talks nonsense."""

    def __init__(self, drops: int) -> None:
        self._drops = drops
        self._socket = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> int:
        threading.Thread(target=self._serve, daemon=True).start()
        return int(self._socket.getsockname()[1])

    def _serve(self) -> None:
        for number in range(self._drops + 1):
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if number == self._drops:
                connection.sendall(b"SSH-1.5-ancient\r\n")
                time.sleep(0.2)
            connection.close()

    def __exit__(self, *error: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("echo Welcome to the gateway; exit 3", "Welcome to the gateway"),
        ("/bin/false", "It said nothing"),
        ("cat", None),
        ("sleep 100", None),
    ],
)
def test_a_forced_command_is_told_with_the_hosts_words(
    command: str, said: str | None, host: Host, run: Run, get: Get
) -> None:
    """The option that stands in the way must be named."""
    host.configure_sshd(ForceCommand=command)
    error = refused(run, get, host.name, connect_timeout=2.5)
    if said is None:
        assert "ForceCommand" in str(error) or "has not started Python within 2.5 s" in str(error)
        return
    assert isinstance(error, HostSetupError)
    assert "ForceCommand" in str(error)
    assert "command= in authorized_keys" in str(error)
    assert said in str(error)


def test_a_host_without_sessions_is_told(host: Host, run: Run, get: Get) -> None:
    """MaxSessions 0 is a way to make forwarding-only accounts."""
    host.configure_sshd(MaxSessions="0")
    error = refused(run, get, host.name)
    assert isinstance(error, HostSetupError)
    assert "MaxSessions" in str(error)


def test_a_host_without_python_is_told_with_what_was_looked_for(
    cluster: Cluster, host: Host, run: Run, get: Get
) -> None:
    """Nothing is needed on a host but sshd and Python."""
    # The command runs as it is, but for the directories that it looks into.
    hide = "s,/usr/bin:/usr/local/bin:/opt/homebrew/bin,/nowhere,"
    host.configure_sshd(
        ForceCommand=f'c=$(printf %s "$SSH_ORIGINAL_COMMAND" | sed {hide}); PATH=/nowhere; eval "$c"'
    )
    error = refused(run, get, host.name)
    assert isinstance(error, HostSetupError)
    assert f"{host.name} has no Python 3.8 or newer (looked for python3, python3.14, python3.13" in str(error)


def test_shell_startup_files_may_print_what_they_like(
    cluster: Cluster, host: Host, run: Run, get: Get
) -> None:
    """They do."""
    bashrc = host.path(f"/home/{cluster.user}/.bashrc")
    before = bashrc.read_bytes() if bashrc.exists() else None
    bashrc.write_text("echo Welcome; printf 'no newline {\"event\": 1}'; echo oops >&2\n")
    try:
        run(get(host.name).connect())
    finally:
        bashrc.unlink() if before is None else bashrc.write_bytes(before)


def test_no_agreement_on_ciphers_is_told(ssh_config: Path, host: Host, run: Run, get: Get) -> None:
    """And the user's own Ciphers are respected."""
    write(ssh_config, "Host *\n Ciphers aes256-ctr\n" + ssh_config.read_text())
    connection = get(host.name)
    run(connection.connect())
    assert connection._lines.transport is not None
    assert connection._lines.transport.connection.get_extra_info("send_cipher") == "aes256-ctr"
    run(connection.close())
    host.configure_sshd(Ciphers="chacha20-poly1305@openssh.com")
    assert "no agreement on how to encrypt" in str(refused(run, get, host.name))


def test_the_quickest_cipher_is_used_and_no_compression(cluster: Cluster, run: Run, get: Get) -> None:
    """Notebooks send megabytes of plots."""
    connection = get("host1")
    run(connection.connect())
    assert connection._lines.transport is not None
    info = connection._lines.transport.connection.get_extra_info
    assert (info("send_cipher"), info("send_compression")) == ("aes128-gcm@openssh.com", "none")


def test_a_login_that_hangs_is_told_as_such(cluster: Cluster, run: Run, get: Get) -> None:
    """A host whose disk or directory service hangs greets, and then nothing happens."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                time.sleep(2)

        threading.Thread(target=greet, daemon=True).start()
        error = refused(run, get, f"127.0.0.1:{server.getsockname()[1]}", connect_timeout=1)
    assert "the log-in did not end within 1 s" in str(error)


def test_a_ticket_that_is_wanted_and_cannot_be_used_is_told(
    cluster: Cluster, ssh_config: Path, run: Run, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GP_REMOTE_GSS_SSH needs a package that is not installed with this one."""
    monkeypatch.setattr("distributed_provisioner.ssh.config.find_spec", lambda name: None)
    only(ssh_config, "host1", "IdentityFile ~/none\n IdentityAgent none")
    assert "the Python package gssapi is not installed here" in str(refused(run, get, "host1", gss=True))
