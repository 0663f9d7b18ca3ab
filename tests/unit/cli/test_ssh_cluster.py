"""`jupyter ssh-cluster`, as people type it, with kernels on this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distributed_provisioner.cli import ssh_cluster
from distributed_provisioner.errors import HostDrainedError
from distributed_provisioner.io_thread import IOThread
from distributed_provisioner.operating import cluster
from distributed_provisioner.ssh import Connections

from .cluster_kernels import ask, forget_all, launch, launch_by_another_server, signal_to, status_of
from .running import Finished, Runner

GOLDEN = Path(__file__).parent / "golden"
NOWHERE = "nowhere.invalid"


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], isolated: Path
) -> Iterator[Runner]:
    """The command; all kernels are ended afterwards, and localhost takes new ones."""
    yield Runner(monkeypatch, capsys, ssh_cluster)
    forget_all()
    ask("drain", on=False, reason="")


def rows(finished: Finished) -> list[dict[str, str]]:
    """The lines of a table, by the names in its head."""
    head, *lines = finished.out.splitlines()
    starts = [match.start() for match in re.finditer(r"(?<!\S)[A-Z]+", head)]
    return [
        {
            head[start:end].strip(): line[start:end].strip()
            for start, end in zip(starts, [*starts[1:], None], strict=True)
        }
        for line in lines
    ]


# --- kernels ------------------------------------------------------------------------------------------------------------------------


def test_kernels_shows_those_of_every_server(run: Runner) -> None:
    """Kernels of a server that crashed would hold memory for a day, and nobody could see them."""
    own, orphan = launch(), launch_by_another_server(name="left alone")
    finished = run("kernels")
    found = {row["KERNEL"]: row for row in rows(finished)}
    assert finished.code == 0
    assert found[own[:8]]["SERVER"] == "here"
    assert found[orphan[:8]]["SERVER"] == "orphaned"
    assert found[orphan[:8]]["NAME"] == "left alone"
    status = status_of(own)
    assert status is not None
    row = found[own[:8]]
    assert (row["HOST"], row["PID"], row["STATE"]) == ("localhost", str(status["kernel_pid"]), "running")
    assert re.fullmatch(r"\d+s", row["AGE"])
    assert re.fullmatch(r"\d+M", row["MEMORY"])
    assert re.fullmatch(r"\d+s", row["CPU"])


def test_a_server_that_lives_has_no_orphans_though_its_line_is_down(run: Runner) -> None:
    """`stop --orphans` would end the kernels of a server whose line is down for a minute."""
    kernel_id = launch()

    async def cut() -> None:
        await Connections.current().close()

    IOThread.current().submit(cut()).result(10)
    assert [row["SERVER"] for row in rows(run("kernels"))] == ["here, away"]
    assert run("stop", "--orphans", "--yes").out == "Stopped no kernels.\n"
    assert (status_of(kernel_id) or {})["state"] == "running"


def test_kernels_as_json_has_all_that_the_table_has(run: Runner) -> None:
    """Scripts would have to take the table apart."""
    kernel_id = launch()
    [kernel] = json.loads(run("kernels", "--json").out)["kernels"]
    assert kernel["kernel_id"] == kernel_id
    assert kernel["host"] == "localhost"
    assert kernel["server"] == "connected"
    assert kernel["memory_bytes"] > 1 << 20
    assert kernel["age"] < 60
    assert "key" not in kernel


def test_the_environment_of_a_kernel_is_never_shown(run: Runner) -> None:
    """Its host keeps what a kernel was started with, for restarts by a later server: there may be tokens in it."""
    kernel_id, token = launch(), "t0ken-nobody-shall-see"
    ask("annotate", kernel_id=kernel_id, generation=1, annotations={"launch": {"env": {"TOKEN": token}}})
    for command in (["kernels"], ["hosts"], ["logs", kernel_id], ["stop", "--all", "--yes"]):
        for more in ([], ["--json"], ["--debug"]):
            finished = run(*command, *more)
            assert token not in finished.out + finished.err


def test_short_ids_grow_until_they_differ(run: Runner) -> None:
    """Two kernels would have the same name in the table, and neither could be stopped by it."""
    launch("aaaaaaaa-1111"), launch("aaaaaaaa-1222")
    assert [row["KERNEL"] for row in rows(run("kernels"))] == ["aaaaaaaa-11", "aaaaaaaa-12"]


def test_no_kernels_is_a_sentence(run: Runner) -> None:
    """An empty table looks like a failure."""
    assert run("kernels") == Finished(0, "No kernel runs on localhost.\n", "")


def test_a_host_that_fails_is_told_and_the_others_are_shown(run: Runner) -> None:
    """One host that is down would hide all the others, or nobody would notice that it is missing."""
    kernel_id = launch()
    finished = run("kernels", "--remote-hosts", f"localhost,{NOWHERE}")
    assert finished.code == 1
    assert rows(finished)[0]["KERNEL"] == kernel_id[:8]
    assert finished.sentences[0].startswith(f"{NOWHERE} cannot be reached: its name {NOWHERE} is unknown")
    answer = json.loads(run("kernels", "--json", "--remote-hosts", f"localhost,{NOWHERE}").out)
    assert list(answer["failed"]) == [NOWHERE]


# --- hosts --------------------------------------------------------------------------------------------------------------------------


def test_hosts_shows_load_memory_kernels_and_those_that_are_down(run: Runner) -> None:
    """An operator would have to log in to each host to see which has room."""
    launch()
    finished = run("hosts", "--remote-hosts", f"localhost,{NOWHERE}")
    assert finished.code == 1
    here, nowhere = rows(finished)
    assert (here["HOST"], here["STATE"], here["KERNELS"]) == ("localhost", "ok", "1")
    assert re.fullmatch(r"\d+\.\d\d", here["LOAD"])
    assert here["CORES"] == str(len(os.sched_getaffinity(0)))
    assert re.fullmatch(r"[\d.]+[MG] of [\d.]+[MG]", here["MEMORY"])
    assert re.fullmatch(r"[0-9a-f]{8}", here["LISTENER"])
    assert (nowhere["HOST"], nowhere["STATE"]) == (NOWHERE, "unreachable")
    answer = json.loads(run("hosts", "--json", "--remote-hosts", f"localhost,{NOWHERE}").out)
    assert [host["reachable"] for host in answer["hosts"]] == [True, False]


# --- stop ---------------------------------------------------------------------------------------------------------------------------


def test_stop_ends_the_kernel_that_is_named_and_no_other(run: Runner) -> None:
    """The wrong kernel would be gone."""
    launch("aaaa-1"), launch("bbbb-2")
    finished = run("stop", "aa", "--yes")
    assert (finished.code, finished.out) == (0, "Stopped 1 kernel: aaaa-1.\n")
    assert "may start it again" in finished.err
    states = {name: (status_of(name) or {}).get("state") for name in ("aaaa-1", "bbbb-2")}
    assert states == {"aaaa-1": "exited", "bbbb-2": "running"}


def test_stop_orphans_leaves_those_of_living_servers(run: Runner) -> None:
    """Clearing up would end a colleague's day."""
    own, orphan = launch(), launch_by_another_server()
    finished = run("stop", "--orphans", "--yes", "--json")
    assert finished.code == 0
    assert [kernel["kernel_id"] for kernel in json.loads(finished.out)["stopped"]] == [orphan]
    assert status_of(orphan) is None
    assert (status_of(own) or {})["state"] == "running"
    assert run("stop", "--orphans", "--yes").out == "Stopped no kernels.\n"


@pytest.mark.parametrize("answer", ["", "n", "no", "later"])
def test_stop_asks_first(run: Runner, answer: str) -> None:
    """A slip of the finger would end every kernel."""
    kernel_id = launch()
    finished = run("stop", "--all", answer=answer)
    assert finished.code == 1
    assert finished.out == ""
    assert kernel_id[:8] in finished.err
    assert (status_of(kernel_id) or {})["state"] == "running"
    assert run("stop", "--all", answer="y").code == 0
    assert (status_of(kernel_id) or {})["state"] == "exited"


@pytest.mark.parametrize("argv", [(), ("--orphans", "--all"), ("abc", "--all"), ("abc", "--orphans")])
def test_stop_wants_to_know_what(run: Runner, argv: tuple[str, ...]) -> None:
    """Half of what was meant would be done."""
    finished = run("stop", *argv)
    assert finished.code == 2
    assert "give one of --orphans and --all" in finished.err


def test_a_prefix_of_two_kernels_or_of_none_is_refused(run: Runner) -> None:
    """Chance would decide which kernel is stopped."""
    launch("aaaa-1"), launch("aaaa-2")
    finished = run("stop", "aaaa", "--yes")
    assert finished.code == 2
    assert "aaaa-1, aaaa-2" in finished.err
    assert run("stop", "cccc", "--yes").code == 3
    assert run("logs", "cccc", "--remote-hosts", f"localhost,{NOWHERE}").code == 1  # that host may have it
    assert (status_of("aaaa-1") or {})["state"] == "running"


# --- drain --------------------------------------------------------------------------------------------------------------------------


def test_a_drained_host_takes_no_kernels_until_it_is_undrained(run: Runner) -> None:
    """Kernels would start on a host that is about to be switched off."""
    before = launch()
    finished = run("drain", "localhost", "--reason", "new disks")
    assert (finished.code, finished.out) == (0, "localhost takes no new kernels; those that run stay.\n")
    [row] = rows(run("hosts"))
    assert (row["STATE"], row["NOTE"]) == ("drained", "new disks")
    with pytest.raises(
        HostDrainedError, match=r"localhost is drained \(new disks\).*ssh-cluster undrain localhost"
    ):
        launch()
    assert (status_of(before) or {})["state"] == "running"
    assert run("undrain", "localhost").out == "localhost takes kernels again.\n"
    launch()


def test_drain_refuses_hosts_that_are_not_known(run: Runner) -> None:
    """A misspelt host would be drained in silence, and the right one not."""
    finished = run("drain", "host9")
    assert finished.code == 3
    assert finished.sentences == ["There is no host 'host9' among localhost: give --remote-hosts host9."]
    assert run("drain").code == 2


# --- logs ---------------------------------------------------------------------------------------------------------------------------


def test_logs_prints_the_last_lines(run: Runner) -> None:
    """What a program wrote past Jupyter could only be read by logging in."""
    kernel_id = launch()
    assert run("logs", kernel_id[:6]).out.splitlines() == [f"line {n}" for n in range(5)]
    assert run("logs", kernel_id[:6], "--lines", "2").out == "line 3\nline 4\n"
    assert json.loads(run("logs", kernel_id, "--lines=1", "--json").out) == {"line": "line 4"}


def test_logs_follow_prints_each_line_once_and_ends_with_the_kernel(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who watches a log would miss lines, or wait for ever."""
    monkeypatch.setattr(cluster, "LOOK_INTERVAL", 0.1)
    monkeypatch.setattr(cluster, "STATE_INTERVAL", 0.5)
    kernel_id = launch()

    def live() -> None:
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGKILL):
            time.sleep(0.6)
            signal_to(kernel_id, number)

    thread = threading.Thread(target=live)
    thread.start()
    finished = run("logs", kernel_id, "--lines", "1", "--follow")
    thread.join()
    assert (finished.code, finished.out) == (0, "line 4\na signal\na half and the rest\n")


def test_ctrl_c_ends_at_once_and_leaves_nothing(run: Runner) -> None:
    """A traceback, or a process that hangs on, for somebody who has seen enough."""
    kernel_id = launch()
    process = start("logs", kernel_id, "--follow")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(5)][-1] == "line 4\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (130, "", "")


def test_a_pipe_that_is_closed_ends_it_quietly(run: Runner) -> None:
    """`jupyter ssh-cluster logs … | head -1` would print a traceback."""
    kernel_id = launch()
    process = start("logs", kernel_id, "--follow")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    signal_to(kernel_id)
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(10) == 0
    process.stderr.close()


def start(*argv: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "distributed_provisioner.cli.ssh_cluster", *argv]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# --- which hosts ----------------------------------------------------------------------------------------------------------------------


def hosts(run: Runner, *argv: str) -> list[str]:
    return [host["host"] for host in json.loads(run("hosts", "--json", *argv).out)["hosts"]]


def write_spec(name: str, **config: Any) -> None:
    directory = Path(os.environ["JUPYTER_DATA_DIR"], "kernels", name)
    directory.mkdir(parents=True)
    stanza = {"provisioner_name": "distributed-provisioner", "config": config}
    spec = {
        "argv": ["x"],
        "display_name": name,
        "language": "python",
        "metadata": {"kernel_provisioner": stanza},
    }
    (directory / "kernel.json").write_text(json.dumps(spec))


def test_hosts_come_from_kernel_specifications_configuration_and_environment(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator would look after other hosts than those on which the kernels run."""
    assert hosts(run) == ["localhost"]
    write_spec("one", remote_hosts=["a.invalid", "b.invalid"])
    write_spec("two", remote_hosts="b.invalid, c.invalid", connect_timeout=5)
    assert hosts(run) == ["a.invalid", "b.invalid", "c.invalid"]
    monkeypatch.setenv("GP_REMOTE_HOSTS", "d.invalid")
    assert hosts(run) == ["d.invalid", "a.invalid", "b.invalid", "c.invalid"]
    configuration = Path(os.environ["JUPYTER_CONFIG_DIR"], "jupyter_server_config.py")
    configuration.parent.mkdir(parents=True)
    configuration.write_text("c.DistributedProvisioner.remote_hosts = ['e.invalid']\nc.NoSuchApp.thing = 1\n")
    assert hosts(run)[0] == "e.invalid"
    assert hosts(run, "--remote-hosts", "localhost") == ["localhost"]
    assert hosts(run, "--DistributedProvisioner.remote_hosts=f.invalid")[0] == "f.invalid"


def test_a_specification_that_leaves_its_hosts_to_the_server_adds_the_servers(run: Runner) -> None:
    """Kernels of the simplest specification would not be found."""
    write_spec("one", remote_hosts=["a.invalid"])
    write_spec("plain")
    assert hosts(run) == ["localhost", "a.invalid"]


def test_a_specification_that_is_wrong_is_left_out_with_a_warning(run: Runner) -> None:
    """One misspelt kernel.json of somebody would take the command away from everybody."""
    write_spec("wrong", remote_host=["a.invalid"])
    finished = run("hosts")
    assert finished.code == 0
    assert "did you mean remote_hosts" in finished.err


# --- the command line -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["kernels", "extra"],
            "There is no use for the argument 'extra' here: lists take an option for each item",
        ),
        (["kernels", "--remote-hosts", "a", "b"], "There is no use for the argument 'b' here"),
        (["kernels", "--remote-host", "a"], "There is no option --remote-host"),
        (["kernels", "--remote-hosts", "a b"], "which is not a host"),
        (["nothing"], "There is no command 'nothing': write one of kernels, hosts, stop"),
        (["logs"], "Name one kernel"),
        (["output", "a", "b"], "Name one kernel"),
        (["logs", "a", "--lines", "-1"], "lines"),
        (["hosts", "--DistributedProvisioner.ssh_port=x"], "ssh_port"),
        (
            ["hosts", "--DistributedProvisioner.nothing=x"],
            "There is no option --DistributedProvisioner.nothing",
        ),
    ],
)
def test_a_command_line_that_is_wrong_is_exit_code_2_and_a_sentence(
    run: Runner, argv: list[str], said: str
) -> None:
    """A script could not tell its own mistake from a host that is down."""
    finished = run(*argv)
    assert finished.code == 2
    assert said in finished.err
    assert finished.out == ""
    assert "Traceback" not in finished.err


@pytest.mark.parametrize("command", ["", "stop", "logs"])
def test_help_is_as_it_was(run: Runner, command: str) -> None:
    """An option would have another name, default or meaning than the reference says."""
    finished = run(*command.split(), "--help")
    assert finished.code == 0
    golden = GOLDEN / f"ssh-cluster{'-' if command else ''}{command}.txt"
    assert finished.out.rstrip() == golden.read_text().rstrip()
