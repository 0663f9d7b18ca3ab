"""The cluster of real sshd hosts that all other cluster tests stand on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distributed_provisioner.testing.errors import ClusterError, Unsupported
from distributed_provisioner.testing.namespaces import Cluster, Host

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def shared() -> Iterator[Cluster]:
    try:
        cluster = Cluster(3).start()
    except Unsupported as reason:
        pytest.skip(str(reason))
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """The shared cluster, in order again after a test."""
    yield shared
    for host in shared.hosts:
        if not host.is_on:
            host.boot()
        for process in host.processes():
            os.kill(process.outer_pid, signal.SIGKILL)
        host.delay(0)
        host.heal()
        host.resume_sshd()
        host.start_sshd()


def ssh(cluster: Cluster, host: str, command: str, *options: str, timeout: float = 20) -> str:
    argv = [*cluster.ssh(host, *options), command]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise OSError(done.stderr)
    return done.stdout.strip()


def connects(host: Host, seconds: float = 0.5) -> bool:
    """Whether sshd at the host says who it is."""
    try:
        with socket.create_connection((host.address, host.port), seconds) as connection:
            connection.settimeout(seconds)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def start_background(cluster: Cluster, host: str, command: str = "sleep 4321") -> None:
    ssh(cluster, host, f"setsid {command} </dev/null >/dev/null 2>&1 &")
    assert eventually(lambda: [process.args for process in cluster[host].processes()] == [command.split()])


def open_session(cluster: Cluster, host: str) -> subprocess.Popen[bytes]:
    """An ssh connection with a command that echoes lines."""
    session = subprocess.Popen([*cluster.ssh(host), "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert echoes(session)
    return session


def echoes(session: subprocess.Popen[bytes], seconds: float = 10) -> bool:
    assert session.stdin is not None
    assert session.stdout is not None
    session.stdin.write(b"x\n")
    session.stdin.flush()
    import select

    ready, _, _ = select.select([session.stdout], [], [], seconds)
    return bool(ready) and session.stdout.readline() == b"x\n"


def close_session(session: subprocess.Popen[bytes]) -> None:
    session.kill()
    session.communicate()


# -- what a host is ----------------------------------------------------------------------------------------


def test_openssh_logs_in_to_every_host_by_name(cluster: Cluster) -> None:
    """Else no test of the cluster can run at all."""
    for host in cluster.hosts:
        assert ssh(cluster, host.name, "hostname; id -un; pwd").split() == [
            host.name,
            cluster.user,
            f"/home/{cluster.user}",
        ]


def test_hosts_can_be_reached_by_ipv6(cluster: Cluster) -> None:
    """Else IPv6 goes untested."""
    for host in cluster.hosts:
        if not host.address6:
            pytest.skip("other platform: this machine has no IPv6")
        assert ssh(cluster, host.address6, "hostname") == host.name


def test_hosts_reach_each_other_by_name(cluster: Cluster) -> None:
    """Else jump hosts cannot be tested."""
    jump = [
        *cluster.ssh("host2", "-o", f"ProxyCommand={' '.join(cluster.ssh('host1'))} -W host2:22"),
        "hostname",
    ]
    assert subprocess.run(jump, capture_output=True, text=True, timeout=20, check=False).stdout == "host2\n"


def test_hosts_share_no_files(cluster: Cluster) -> None:
    """Else a test would find on one host what another one was sent."""
    before = {host.name: host.files("/tmp", f"/home/{cluster.user}", "/var/tmp") for host in cluster.hosts}
    ssh(cluster, "host1", "touch /tmp/one /var/tmp/two ~/three")
    added = {f"/home/{cluster.user}/three", "/tmp/one", "/var/tmp/two"}
    after = {host.name: host.files("/tmp", f"/home/{cluster.user}", "/var/tmp") for host in cluster.hosts}
    assert after == before | {"host1": before["host1"] | added}
    assert not any(Path(path).exists() for path in added)
    ssh(cluster, "host1", "rm /tmp/one /var/tmp/two ~/three")


def test_client_home_is_not_on_the_hosts(cluster: Cluster) -> None:
    """Else a shipped file could be missing and no test would notice."""
    with pytest.raises(ClusterError):
        cluster["host1"].run("ls", str(cluster.home))


def test_each_host_has_a_host_key_of_its_own(cluster: Cluster) -> None:
    """Else a connection to the wrong host would go unseen."""
    keys = {host.name: host.host_key for host in cluster.hosts}
    assert len(set(keys.values())) == len(cluster.hosts)
    for name, key in keys.items():
        scanned = subprocess.run(
            ["ssh-keyscan", "-t", "ed25519", cluster[name].address],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        ).stdout
        assert scanned.split(" ", 1)[1].strip() == key


def test_this_interpreter_runs_on_hosts(cluster: Cluster) -> None:
    """Else kernels of the environment under test cannot be started there."""
    code = "import sys; print(sys.prefix); import asyncssh, distributed_provisioner"
    done = cluster["host1"].run(sys.executable, "-c", code, env={"PYTHONPATH": ":".join(sys.path)})
    assert done.stdout.strip() == sys.prefix


def test_user_cannot_read_what_is_roots(cluster: Cluster) -> None:
    """Else isolation of users cannot be tested."""
    if cluster.rootless:
        pytest.skip("other platform: rootless hosts have one user")
    host = cluster["host1"]
    host.run("sh", "-c", "umask 077; echo secret >/root/secret", user="root")
    for user in ("jovyan", "mallory"):
        assert host.run("cat", "/root/secret", user=user, check=False).returncode == 1
    host.run("sh", "-c", "umask 077; echo mine >~/mine", user="jovyan")
    assert host.run("cat", "/home/jovyan/mine", user="mallory", check=False).returncode == 1
    assert ssh(cluster, "mallory@host1", "id -un") == "mallory"
    assert ssh(cluster, "root@host1", "cat secret") == "secret"


def test_process_list_shows_the_hosts_own_processes(cluster: Cluster) -> None:
    """Else a leaked kernel would not be found."""
    start_background(cluster, "host1")
    (process,) = cluster["host1"].processes()
    assert (process.args, process.user, process.ppid) == (["sleep", "4321"], cluster.user, 1)
    assert cluster["host2"].processes() == []
    assert cluster["host1"].processes("root") == []
    cluster["host1"].run("kill", "-KILL", str(process.pid))
    assert eventually(lambda: not cluster["host1"].processes())


def test_run_passes_input_environment_and_time_limit(cluster: Cluster) -> None:
    """Else helpers of other tests hang or lie."""
    host = cluster["host1"]
    assert host.run("cat", input=b"abc").stdout == "abc"
    assert host.run("sh", "-c", "echo $X $HOME", env={"X": "1"}).stdout == f"1 /home/{cluster.user}\n"
    assert host.run("false", check=False).returncode == 1
    with pytest.raises(subprocess.TimeoutExpired):
        host.run("sleep", "100", timeout=0.2)
    assert eventually(lambda: not host.processes())


def test_terminal_works(cluster: Cluster) -> None:
    """Else `ssh -t` and everything that needs a terminal cannot be tested."""
    assert ssh(cluster, "host1", "tty", "-tt") == "/dev/pts/0"


# -- faults -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["cut", "blackhole"])
def test_open_session_survives_a_short_silence(cluster: Cluster, fault: str) -> None:
    """Else a partition could not be told from a death."""
    session = open_session(cluster, "host1")
    getattr(cluster["host1"], fault)()
    try:
        assert not echoes(session, 0.5)
        assert not connects(cluster["host1"])
        assert connects(cluster["host2"])
        assert cluster["host1"].run("cat", "/sys/class/net/eth0/carrier", check=False).returncode == 0
        cluster["host1"].heal()
        assert session.stdout is not None
        assert session.stdout.readline() == b"x\n"
        assert echoes(session)
        assert connects(cluster["host1"])
    finally:
        close_session(session)


def test_cut_takes_the_carrier_and_blackhole_leaves_it(cluster: Cluster) -> None:
    """They are two different faults; a test of one must not be a test of the other."""
    host = cluster["host1"]
    host.cut()
    assert "NO-CARRIER" in host.run("ip", "link", "show", "eth0").stdout
    host.heal()
    host.blackhole()
    assert "NO-CARRIER" not in host.run("ip", "link", "show", "eth0").stdout


def test_delay_is_added_to_the_round_trip(cluster: Cluster) -> None:
    """Else a slow line cannot be tested."""
    session = open_session(cluster, "host1")
    try:
        for milliseconds in (100, 0):
            cluster["host1"].delay(milliseconds)
            started = time.monotonic()
            assert echoes(session)
            took = (time.monotonic() - started) * 1000
            assert milliseconds <= took < milliseconds + 80
    finally:
        close_session(session)


def test_delayed_line_carries_megabytes(cluster: Cluster) -> None:
    """Frames of any size, checksummed or not, must come through the relay."""
    cluster["host1"].delay(2)
    argv = [*cluster.ssh("host1"), "sha256sum; head -c 3000000 /dev/zero"]
    done = subprocess.run(argv, input=b"y" * 5_000_000, capture_output=True, timeout=60, check=False)
    assert len(done.stdout) > 3_000_000
    assert connects(cluster["host1"])


def test_faults_work_on_a_delayed_line(cluster: Cluster) -> None:
    """Faults come together in real life."""
    host = cluster["host1"]
    host.delay(1)
    for fault in (host.cut, host.blackhole):
        fault()
        assert not connects(host)
        host.heal()
        assert eventually(lambda: connects(host))


def test_power_cut_is_silent_and_keeps_the_disk(cluster: Cluster) -> None:
    """A host that lost power sends no goodbye, and comes back with its files and without its processes."""
    host = cluster["host3"]
    start_background(cluster, "host3")
    ssh(cluster, "host3", "touch /tmp/volatile ~/kept")
    identity = "stat -c %Y /proc/1; readlink /proc/self/ns/pid"
    before = ssh(cluster, "host3", identity)
    session = open_session(cluster, "host3")
    try:
        host.power_off()
        time.sleep(0.3)
        assert session.poll() is None
        assert not connects(host)
        with pytest.raises(ClusterError, match="host3 is off"):
            host.run("true")
        host.boot()
        assert host.processes() == []
        assert ssh(cluster, "host3", "ls ~; test ! -e /tmp/volatile") == "kept"
        assert ssh(cluster, "host3", identity) != before
    finally:
        close_session(session)


def test_killed_sshd_leaves_processes_alone(cluster: Cluster) -> None:
    """A kernel does not die with sshd, so the cluster must not kill it either."""
    host = cluster["host1"]
    start_background(cluster, "host1")
    session = open_session(cluster, "host1")
    host.kill_sshd(sessions=False)
    assert not connects(host)
    assert echoes(session)
    host.kill_sshd()
    assert session.wait(10) != 0
    close_session(session)
    assert [process.args for process in host.processes()] == [["sleep", "4321"]]
    host.start_sshd()
    assert ssh(cluster, "host1", "pkill sleep; hostname") == "host1"


def test_killed_sshd_can_be_started_at_once(cluster: Cluster) -> None:
    """If the dying sshd counts as one that runs, a test goes on without any and fails later."""
    host = cluster["host1"]
    for _ in range(5):
        host.kill_sshd()
        assert not connects(host)
        host.start_sshd()
        assert connects(host)


def test_paused_sshd_accepts_and_says_nothing(cluster: Cluster) -> None:
    """The third kind of silence: the kernel accepts, and nobody speaks."""
    host = cluster["host1"]
    host.pause_sshd()
    with socket.create_connection((host.address, 22), 2) as connection:
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(4)
        host.resume_sshd()
        connection.settimeout(10)
        assert connection.recv(4) == b"SSH-"


def test_full_disk_is_full_and_can_be_freed(cluster: Cluster) -> None:
    """Else "no space left" on a host cannot be tested."""
    host = cluster["host2"]
    for place in ("/tmp", f"/home/{cluster.user}"):
        host.fill_disk(place)
        done = host.run("sh", "-c", f"head -c 1000000 /dev/zero >{place}/big", check=False)
        assert "No space left" in done.stderr
        host.free_disk(place)
        host.run("sh", "-c", f"head -c 1000000 /dev/zero >{place}/big; rm {place}/big")


# -- sshd's configuration -----------------------------------------------------------------------------------


def test_sshd_options_change_for_new_connections_only(cluster: Cluster) -> None:
    """Else a site's sshd_config cannot be imitated."""
    host = cluster["host2"]
    session = open_session(cluster, "host2")
    try:
        host.configure_sshd(ForceCommand="echo forced", AllowTcpForwarding="no")
        assert ssh(cluster, "host2", "hostname") == "forced"
        assert echoes(session)
        host.configure_sshd(ForceCommand=None, AllowTcpForwarding=None)
        assert ssh(cluster, "host2", "hostname") == "host2"
    finally:
        close_session(session)


def test_limits_of_sshd_are_its_defaults(cluster: Cluster) -> None:
    """A pool that only works with raised limits would pass here and fail at the user's site."""
    host = cluster["host1"]
    text = host.path("/etc/ssh/sshd_config.host").read_text().lower()
    assert "maxsessions" not in text
    assert "maxstartups" not in text


def test_password_login(cluster: Cluster, tmp_path: Path) -> None:
    """Else GP_REMOTE_PWD cannot be tested."""
    host = cluster["host2"]
    host.set_password(cluster.user, "pass word 1")
    askpass = tmp_path / "askpass"
    askpass.write_text("#!/bin/sh\necho 'pass word 1'\n")
    askpass.chmod(0o700)
    options = ["-o", "BatchMode=no", "-o", "PreferredAuthentications=password"]
    argv = [*cluster.ssh("host2", *options), "hostname"]
    env = {**os.environ, "SSH_ASKPASS": str(askpass), "SSH_ASKPASS_REQUIRE": "force"}
    assert subprocess.run(argv, env=env, capture_output=True, timeout=20, check=False).returncode == 255
    host.configure_sshd(PasswordAuthentication="yes")
    try:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=20, check=False)
        assert done.stdout == "host2\n", done.stderr
    finally:
        host.configure_sshd(PasswordAuthentication=None)


def test_changed_host_key_is_noticed_by_the_client(cluster: Cluster) -> None:
    """Else a test of a changed key tests nothing."""
    host = cluster["host2"]
    old = host.host_key
    new = host.new_host_key()
    assert new not in (old, "")
    with pytest.raises(OSError, match="IDENTIFICATION HAS CHANGED"):
        ssh(cluster, "host2", "true")
    cluster.trust_hosts()
    assert ssh(cluster, "host2", "hostname") == "host2"


# -- the end ------------------------------------------------------------------------------------------------


def traces(primary_address: str) -> list[str]:
    """What is left of a cluster on this machine, where others may be up."""
    uplink = f"dp77-{primary_address.split('.')[2]}"
    interfaces = [name for _, name in socket.if_nameindex() if name == uplink]
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "dp-cluster-" in line]
    return interfaces + mounts


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}/stat").exists() and "Z" not in state(pid)]


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def test_stop_leaves_nothing(shared: Cluster, tmp_path: Path) -> None:
    """A test run must not change the machine that it ran on."""
    with Cluster(2, directory=tmp_path) as cluster:
        start_background(cluster, "host1")
        pids = [host.pid for host in cluster.hosts] + [p.outer_pid for p in cluster["host1"].processes()]
        address = cluster.primary_address
        assert traces(address)
        assert connects(cluster["host2"])
        assert connects(shared["host2"])  # two clusters do not collide
    assert traces(address) == []
    assert alive(pids) == []
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_the_owner_is_killed(shared: Cluster, tmp_path: Path) -> None:
    """A test run that was killed must leave the machine clean, too."""
    code = """
        import subprocess, sys, time, pathlib
        from distributed_provisioner.testing.namespaces import Cluster
        cluster = Cluster(2, directory=pathlib.Path(sys.argv[1])).start()
        command = "setsid sleep 77 </dev/null >/dev/null 2>&1 &"
        subprocess.run([*cluster.ssh("host1"), command], check=True)
        cluster["host2"].delay(5)
        sleepers = [p.outer_pid for p in cluster["host1"].processes() if "77" in p.args]
        print(cluster.primary_address, *[h.pid for h in cluster.hosts], *sleepers, flush=True)
        time.sleep(100)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        address, *numbers = owner.stdout.readline().split()
        pids = [int(pid) for pid in numbers]
        assert len(alive(pids)) == 3
        assert traces(address)
        owner.send_signal(signal.SIGKILL)
    assert eventually(lambda: not alive(pids))
    assert eventually(lambda: not traces(address))
    assert eventually(lambda: list(tmp_path.iterdir()) == [])


def test_nothing_is_left_when_the_keeper_is_killed(tmp_path: Path) -> None:
    """Not even when it is the cluster's own process that ends."""
    cluster = Cluster(1, directory=tmp_path).start()
    pids, address = [cluster["host1"].pid], cluster.primary_address
    os.kill(cluster.keeper_pid, signal.SIGKILL)
    assert eventually(lambda: not alive(pids))
    with pytest.raises(ClusterError, match="keeper"):
        cluster["host1"].cut()
    cluster.stop()
    assert eventually(lambda: not traces(address))
    assert list(tmp_path.iterdir()) == []


def test_what_the_kernel_refuses_is_told_as_the_reason() -> None:
    """A machine that cannot do it must say why, or nobody can mend it."""
    setpriv = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", "--ambient-caps=-all", "--"]
    code = "from distributed_provisioner.testing.namespaces import Cluster; Cluster(1).start()"
    done = subprocess.run([*setpriv, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Unsupported: " in done.stderr
    assert "CAP_SYS_ADMIN" in done.stderr or "enter --" in done.stderr
