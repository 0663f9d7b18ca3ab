"""`jupyter ssh-spec`, as people type it."""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distributed_provisioner import __version__
from distributed_provisioner.rivals import rival_claims
from tests.unit.kernelspec.toree_stand_in import toree_jar

from .running import Runner

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parent / "golden"
BAD_CONFIG = "Bad config encountered during initialization: "


def kernels(prefix: Path) -> Path:
    return prefix / "share/jupyter/kernels"


def config_of(prefix: Path, name: str = "ssh_python") -> dict[str, Any]:
    content = json.loads((kernels(prefix) / name / "kernel.json").read_text())
    config = content["metadata"]["kernel_provisioner"]["config"]
    assert isinstance(config, dict)
    return config


# --- install -------------------------------------------------------------------------------------------------------------------


def test_help_is_the_pages(run: Runner) -> None:
    """An option would have another name, default or meaning than the page says."""
    expected = (
        (GOLDEN / "help-install.txt").read_text().replace("/opt/miniconda3/envs/provisioners", sys.prefix)
    )
    finished = run("install", "--help")
    assert finished.code == 0
    assert finished.out.rstrip() == expected.rstrip()


def test_help_differs_from_the_page_only_where_the_reference_says_so() -> None:
    """The golden file could drift away from the page, correction by correction."""
    page, ours = (
        (GOLDEN / name).read_text().splitlines() for name in ("help-on-the-page.txt", "help-install.txt")
    )
    assert [line for line in difflib.ndiff(page, ours) if line[:2] in ("- ", "+ ")] == [
        "+ --replace",
        "+     Replace an existing kernel specification; it stays if the new one fails.",
        "+     Equivalent to: [--BaseSpecApp.replace=True]",
        "+ --toree-jar=<Unicode>",
        "+     For Scala kernels, the assembly of Apache Toree, toree-assembly-VERSION.jar.",
        "+     Without it, that of the installed package 'toree' is taken.",
        "+     Default: ''",
        "+     Equivalent to: [--BaseSpecApp.toree_jar]",
        "-     Number of ports to try if the specified port is not available",
        "+     Number of seconds to wait for the kernel's connection information. It is",
        "+     always written into kernel.json, where it wins over the environment.",
    ]


def test_the_environment_does_not_change_the_help(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults would be those of one machine."""
    for variable in ("GP_REMOTE_HOSTS", "GP_LAUNCH_TIMEOUT", "GP_PORT_RANGE", "SPARK_HOME"):
        monkeypatch.setenv(variable, "12345..23456")
    test_help_is_the_pages(run)


def test_log_lines_are_the_pages(run: Runner, prefix: Path) -> None:
    """The command would say nothing, or something else than the page shows."""
    finished = run("install", "--prefix", str(prefix))
    stamp = r"\[I \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} SshSpecInstaller\] "
    directory = kernels(prefix) / "ssh_python"
    assert re.fullmatch(
        f"{stamp}Installing kernel specification for 'Python SSH'\n"
        f"{stamp}Installed kernelspec ssh_python in {re.escape(str(directory))}\n",
        finished.err,
    )
    assert (finished.code, finished.out) == (0, "")
    argv = json.loads((directory / "kernel.json").read_text())["argv"]
    assert argv[1] == str(directory / "scripts/launch_ipykernel.py")


def test_the_console_script(prefix: Path) -> None:
    """`python -m` and the script would do other things than the tests in this process."""
    command = [sys.executable, "-m", "distributed_provisioner.cli.ssh_spec"]
    done = subprocess.run(
        [*command, "install", "--prefix", str(prefix)], capture_output=True, text=True, check=True
    )
    assert "Installed kernelspec ssh_python in" in done.stderr
    again = subprocess.run(
        [*command, "install", "--prefix", str(prefix)], capture_output=True, text=True, check=False
    )
    assert again.returncode == 1
    assert "Traceback" not in again.stderr


def test_user_and_sys_prefix(run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A specification would go to a place for which one has no permission."""
    assert run("install", "--user").code == 0
    assert Path(os.environ["JUPYTER_DATA_DIR"], "kernels/ssh_python/kernel.json").is_file()
    finished = run("install", "--user", "--sys-prefix")
    assert finished.code == 1
    assert "choose one of --user, --sys-prefix and --prefix" in finished.err


def test_lists_repeated_and_with_commas(run: Runner, prefix: Path) -> None:
    """The second host would be lost without a word."""
    run(
        *(
            "install",
            "--prefix",
            str(prefix),
            "--remote-hosts",
            "a, b",
            "--remote-hosts=[::1]",
            "--remote-hosts",
            "u@c:22",
        ),
        *(
            "--authorized-users",
            "x",
            "--authorized-users",
            "y,z",
            "--unauthorized-users=eve,root",
            "--port-range",
            "2000..4000",
        ),
        *("--launch-timeout=45", "--kernel-name", "My_Kernel", "--display-name", "My Kernel"),
    )
    assert config_of(prefix, "my_kernel") == {
        "remote_hosts": ["a", "b", "[::1]", "u@c:22"],
        "authorized_users": ["x", "y", "z"],
        "unauthorized_users": ["eve", "root"],
        "port_range": "2000..4000",
        "launch_timeout": 45,
    }
    run("install", "--prefix", str(prefix), "--replace", "--remote-hosts", "[::1]")
    assert config_of(prefix)["remote_hosts"] == ["[::1]"]


def test_the_environment_is_not_frozen_in(run: Runner, prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the installer's environment happened to have would hold for all kernels of the specification, for ever."""
    for name, value in (
        ("REMOTE_HOSTS", "e1,e2"),
        ("AUTHORIZED_USERS", "ann"),
        ("UNAUTHORIZED_USERS", "eve"),
        ("PORT_RANGE", "2000..4000"),
    ):
        monkeypatch.setenv(f"GP_{name}", value)
    monkeypatch.setenv("GP_LAUNCH_TIMEOUT", "77")
    finished = run("install", "--prefix", str(prefix))
    assert config_of(prefix) == {"launch_timeout": 30}
    assert (
        "kernel.json gets launch_timeout 30, which wins over GP_LAUNCH_TIMEOUT=77: give --launch-timeout to write another one."
        in finished.sentences
    )


def test_an_option_that_is_given_is_written_even_if_it_is_the_default(run: Runner, prefix: Path) -> None:
    """Whoever asks for localhost would get the server's hosts."""
    run("install", "--prefix", str(prefix), "--remote-hosts", "localhost")
    assert config_of(prefix)["remote_hosts"] == ["localhost"]


def test_a_configuration_file_counts(run: Runner, prefix: Path) -> None:
    """A site's own defaults would be ignored, or win over the command line."""
    file = prefix / "spec_config.py"
    file.write_text("c.SshSpecInstaller.remote_hosts = 'f1,f2'\nc.BaseSpecApp.launch_timeout = 61\n")
    assert run("install", f"--config={file}", "--prefix", str(prefix)).code == 0
    assert config_of(prefix) == {"remote_hosts": ["f1", "f2"], "launch_timeout": 61}
    run("install", f"--config={file}", "--prefix", str(prefix), "--replace", "--launch-timeout", "62")
    assert config_of(prefix)["launch_timeout"] == 62


def test_the_least_port_range_size_is_the_environments(
    run: Runner, prefix: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command would refuse what the server allows."""
    monkeypatch.setenv("GP_MIN_PORT_RANGE_SIZE", "10")
    assert run("install", "--prefix", str(prefix), "--port-range", "2000..2010").code == 0


def test_existing_and_replace(run: Runner, prefix: Path) -> None:
    """A specification that was adjusted by hand would be lost without a question."""
    run("install", "--prefix", str(prefix))
    finished = run("install", "--prefix", str(prefix), "--display-name", "New")
    assert finished.code == 1
    assert finished.sentences[-1] == (
        f"A kernel specification 'ssh_python' exists already in {kernels(prefix)}/ssh_python: give --replace to replace it, or"
        " --kernel-name for another name."
    )
    assert run("install", "--prefix", str(prefix), "--display-name", "New", "--replace").code == 0
    assert '"New"' in (kernels(prefix) / "ssh_python/kernel.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--frob"], BAD_CONFIG + "There is no option --frob: see --help."),
        (["--frob=1"], BAD_CONFIG + "There is no option --frob: see --help."),
        (["--frob-nicate=1"], BAD_CONFIG + "There is no option --frob-nicate: see --help."),
        (["--remote_hosts", "a"], BAD_CONFIG + "There is no option --remote_hosts: see --help."),
        (["--remote", "a"], BAD_CONFIG + "There is no option --remote: see --help."),
        (["--launch-time", "5"], BAD_CONFIG + "There is no option --launch-time: see --help."),
        (
            ["--remote-hosts", "['a']"],
            """remote_hosts has "['a']", which is not a host: write host, user@host, host:port,"""
            " user@host:port, or [IPv6]:port.",
        ),
        (["-x"], BAD_CONFIG + "There is no option -x: see --help."),
        (["--Foo.bar=1"], BAD_CONFIG + "There is no option --Foo.bar: see jupyter-ssh-spec --help-all."),
        (
            ["--SshSpecInstaller.frob=1"],
            BAD_CONFIG + "There is no option --SshSpecInstaller.frob: see jupyter-ssh-spec --help-all.",
        ),
        (
            ["--kernel-name"],
            BAD_CONFIG + "The option --kernel-name cannot be used so (expected one argument): see --help.",
        ),
        (
            ["--remote-hosts", "a", "b"],
            BAD_CONFIG
            + "There is no use for the argument 'b' here: lists take an option for each item, or commas, as in"
            " --remote-hosts host1 --remote-hosts host2 or --remote-hosts host1,host2.",
        ),
        (
            ["--launch-timeout", "soon"],
            BAD_CONFIG + "launch_timeout is 'soon': write a whole number from 1 to 10000000.",
        ),
        (
            ["--launch-timeout=-1"],
            BAD_CONFIG + "launch_timeout is -1: write a whole number from 1 to 10000000.",
        ),
        (
            ["--language", "Scala", "--toree-jar", "/absent/toree.jar"],
            "The assembly of Apache Toree, /absent/toree.jar, cannot be read: No such file or directory.",
        ),
        (
            ["--spark", "--spark-master", "mesos://h:1"],
            "spark_master is 'mesos://h:1': write yarn, spark://HOST:PORT, or local[N] for a Spark without a cluster.",
        ),
        (
            ["--spark-home=spark"],
            "spark_home is 'spark': write the absolute path that Spark has on the hosts.",
        ),
        (["--spark_init_mode=later"], "spark_init_mode is 'later': write lazy or eager or none."),
        (
            ["--port-range", "2000..2100"],
            "port_range is '2000..2100': write a range of at least 1000 ports (this one has 100), or 0..0 for any port.",
        ),
        (
            ["--remote-hosts", "a;b"],
            "remote_hosts has 'a;b', which is not a host: write host, user@host, host:port, user@host:port, or [IPv6]:port.",
        ),
        (["--remote-hosts", ","], "remote_hosts is empty: name at least one host, for example localhost."),
        (
            ["--kernel-name", "a b"],
            "kernel_name is 'a b': write ASCII letters, digits, '-', '.' and '_' only, and a letter, digit or '_' first.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(run: Runner, prefix: Path, arguments: list[str], sentence: str) -> None:
    """A mistake would be a warning with exit code 0, and the specification not what was asked for."""
    finished = run("install", "--prefix", str(prefix), *arguments)
    assert finished.code == 1
    assert finished.sentences[-1] == sentence
    assert "Traceback" not in finished.err
    assert not kernels(prefix).exists()


def test_the_pages_examples(run: Runner, prefix: Path, tmp_path: Path) -> None:
    """What people copy from the help would be refused, or give something else than it says."""
    where = ["--prefix", str(prefix)]
    line = "--language R --spark --spark-master spark://192.168.2.5:7077 --spark-home=/usr/local/spark"
    finished = run("install", *where, *line.split())
    assert (finished.code, finished.sentences[0]) == (
        0,
        "Installing kernel specification for 'R SSH (with Spark Standalone)'",
    )
    directory = kernels(prefix) / "ssh_r_spark_standalone"
    spec = json.loads((directory / "kernel.json").read_text())
    assert spec["argv"][0] == str(directory / "bin/run.sh")
    assert os.access(directory / "bin/run.sh", os.X_OK)
    assert spec["env"]["SPARK_HOME"] == "/usr/local/spark"
    assert spec["env"]["SPARK_OPTS"].startswith("--master spark://192.168.2.5:7077 --name ")
    jar = str(toree_jar(tmp_path))
    arguments = ["--language", "Scala", "--spark", "--spark_init_mode", "eager", "--toree-jar", jar]
    finished = run("install", *where, *arguments, "--extra-spark-opts", "--conf spark.x=1")
    if not (ROOT / "src/distributed_provisioner/kernelspec/resources/toree-launcher.jar").exists():
        pytest.skip("other platform: the launcher's jar is not built yet")
    assert finished.code == 0
    spec = json.loads((kernels(prefix) / "ssh_scala_spark/kernel.json").read_text())
    assert spec["argv"][-2:] == ["--spark-context-initialization-mode", "eager"]
    assert " --conf spark.x=1 " in spec["env"]["SPARK_OPTS"]
    assert (kernels(prefix) / "ssh_scala_spark/lib/toree-assembly-0.5.0.jar").read_bytes() == Path(
        jar
    ).read_bytes()


def test_both_spellings_of_spark_init_mode(run: Runner, prefix: Path) -> None:
    """The page's own example would fail at its spelling."""
    for option in ("--spark-init-mode", "--spark_init_mode"):
        finished = run("install", "--prefix", str(prefix), option, "eager", "--replace")
        assert finished.code == 0
        assert "--spark-init-mode has no effect without --spark." in finished.sentences


def test_a_place_where_jupyter_does_not_look(run: Runner, tmp_path: Path, prefix: Path) -> None:
    """The specification would be installed and yet in no launcher, and nobody would know why."""
    finished = run("install", "--prefix", str(tmp_path / "elsewhere"))
    assert finished.code == 0
    assert finished.sentences[-1].startswith("Jupyter does not look for kernelspecs there: it looks in ")
    run("install", "--prefix", str(prefix))
    finished = run("install", "--user")
    assert (
        finished.sentences[-1]
        == f"Jupyter will not use it, since the one in {kernels(prefix)}/ssh_python comes first."
    )


# --- list and remove -----------------------------------------------------------------------------------------------------------


def test_list(run: Runner, prefix: Path) -> None:
    """Nobody could see which kernels run where."""
    assert (
        run("list").out
        == "No kernel specification uses the distributed provisioner: jupyter ssh-spec install makes one.\n"
    )
    assert json.loads(run("list", "--json").out) == []
    run("install", "--prefix", str(prefix))
    run(
        "install",
        "--prefix",
        str(prefix),
        "--kernel-name",
        "gpu",
        "--display-name",
        "GPU",
        "--remote-hosts",
        "g1,g2",
    )
    where = kernels(prefix)
    assert run("list").out == (
        "Name        Display name  Hosts         Directory\n"
        f"gpu         GPU           g1, g2        {where}/gpu\n"
        f"ssh_python  Python SSH    the server's  {where}/ssh_python\n"
    )
    assert json.loads(run("list", "--json").out) == [
        {"name": "gpu", "display_name": "GPU", "directory": f"{where}/gpu", "remote_hosts": ["g1", "g2"]},
        {
            "name": "ssh_python",
            "display_name": "Python SSH",
            "directory": f"{where}/ssh_python",
            "remote_hosts": None,
        },
    ]


@pytest.mark.parametrize("flag", ["--yes", "-y", "-f", "--force"])
def test_remove_without_a_question(run: Runner, prefix: Path, flag: str) -> None:
    """A script would hang at the question."""
    run("install", "--prefix", str(prefix))
    finished = run("remove", "SSH_Python", flag)
    assert (finished.code, finished.sentences) == (
        0,
        [f"Removed kernelspec ssh_python from {kernels(prefix)}/ssh_python"],
    )
    assert not (kernels(prefix) / "ssh_python").exists()


def test_remove_asks(run: Runner, prefix: Path) -> None:
    """A slip of the hand would cost a specification."""
    run("install", "--prefix", str(prefix))
    for answer in ("", "n", "what"):
        finished = run("remove", "ssh_python", answer=answer)
        assert (finished.code, finished.sentences) == (1, ["Nothing was removed."])
        assert f"  ssh_python  {kernels(prefix)}/ssh_python" in finished.out
    assert (kernels(prefix) / "ssh_python").exists()
    assert run("remove", "ssh_python", answer="y").code == 0
    assert not (kernels(prefix) / "ssh_python").exists()


def test_remove_only_ours_and_all_or_none(run: Runner, prefix: Path) -> None:
    """Kernels of others would be removed, or half of what was asked for."""
    run("install", "--prefix", str(prefix))
    other = kernels(prefix) / "other"
    other.mkdir()
    (other / "kernel.json").write_text('{"argv": ["x"], "display_name": "x", "language": "x"}')
    for name, sentence in {
        "other": f"The kernel specification 'other' in {other} does not use the distributed provisioner, so it is not removed: use"
        " jupyter kernelspec remove.",
        "absent": "There is no kernel specification 'absent': jupyter ssh-spec list shows those that there are.",
    }.items():
        finished = run("remove", "ssh_python", name, "--yes")
        assert (finished.code, finished.sentences) == (1, [sentence])
    assert sorted(os.listdir(kernels(prefix))) == ["other", "ssh_python"]
    assert run("remove", "--yes").sentences == [
        BAD_CONFIG + "Name at least one kernel specification to remove: jupyter ssh-spec list shows them."
    ]


# --- the command itself --------------------------------------------------------------------------------------------------------


def test_alone_it_prints_its_help(run: Runner) -> None:
    """Somebody who does not know the command would be told nothing."""
    finished = run()
    assert finished.code == 0
    for command in ("install", "list", "remove"):
        assert f"\n{command}\n" in finished.out
    assert run("frob").sentences == [
        BAD_CONFIG + "There is no command 'frob': write one of install, list, remove."
    ]
    assert run("--version").out == run("list", "--version").out == f"{__version__}\n"


def test_no_other_program_is_run(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file on the PATH that is called jupyter-ssh-spec-… would be run in place of the command."""
    program = tmp_path / "jupyter-ssh-spec-list"
    program.write_text("#!/bin/sh\nexit 77\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert run("list").code == 0


def test_a_package_with_the_same_names_is_told(
    run: Runner, prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside gateway-provisioners, chance decides whose provisioner starts the kernels."""
    assert rival_claims() == ()
    for name in ("gateway_provisioners-0.5.0", "distributed_provisioner-0.1.0"):
        info = tmp_path / "site" / f"{name}.dist-info"
        info.mkdir(parents=True)
        project, _, version = name.rpartition("-")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(
            "[console_scripts]\njupyter-ssh-spec = x:main\n\n"
            "[jupyter_client.kernel_provisioners]\ndistributed-provisioner = x:DistributedProvisioner\n"
        )
    monkeypatch.syspath_prepend(tmp_path / "site")
    sentence = (
        "The package gateway-provisioners is installed as well and claims the provisioner 'distributed-provisioner' and the command"
        " 'jupyter-ssh-spec', too, so chance decides which one is used: uninstall gateway-provisioners, or keep the two in"
        " environments of their own."
    )
    assert rival_claims() == (sentence,)
    finished = run("install", "--prefix", str(prefix))
    assert finished.code == 0
    assert finished.sentences[0] == sentence
    assert sentence in run("list").sentences
