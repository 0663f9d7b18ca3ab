"""The Python launcher: below a listener as the page has it, and by hand."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient

from .driver import Bridge, ListenerError, until

LAUNCHER = Path(__file__).parents[3] / "src/distributed_provisioner/remote/launch_ipykernel.py"
PAGE_ARGV = [
    "python", str(LAUNCHER), "--kernel-id", "{kernel_id}", "--port-range", "{port_range}", "--response-address", "{response_address}",
    "--public-key", "{public_key}", "--kernel-class-name", "ipykernel.ipkernel.IPythonKernel",
]  # fmt: skip


def client_of(info: dict[str, Any]) -> BlockingKernelClient:
    client = BlockingKernelClient()
    client.load_connection_info(info)  # type: ignore[arg-type]
    client.start_channels()
    client.wait_for_ready(timeout=30)
    return client


def connection_info(kernel: dict[str, Any]) -> dict[str, Any]:
    ports = {f"{channel}_port": port for channel, port in kernel["ports"].items()}
    transport = "ipc" if kernel["transport"] == "ipc" else "tcp"
    return {
        **ports,
        "transport": transport,
        "ip": kernel["ip"],
        "key": kernel["key"],
        "signature_scheme": "hmac-sha256",
    }


def value_of(client: BlockingKernelClient, expression: str) -> Any:
    """The value of an expression in the kernel."""
    reply = client.execute(
        "", user_expressions={"v": f"__import__('json').dumps({expression})"}, reply=True, timeout=30
    )
    shown = reply["content"]["user_expressions"]["v"]
    assert shown["status"] == "ok", shown
    found: str = json.loads(shown["data"]["text/plain"][1:-1].replace("\\'", "'").replace("\\\\", "\\"))
    return found


@pytest.mark.parametrize(
    "parameters", [{"transport": "ipc"}, {"transport": "tcp", "port_range": [44000, 45000]}]
)
def test_documented_argv_gives_a_kernel(bridge: Bridge, parameters: dict[str, Any]) -> None:
    """The page's kernel.json works, over Unix sockets and on TCP inside the port range."""
    kernel = bridge.launch(PAGE_ARGV, public_key="AAAA", **parameters)
    assert kernel["transport"] == parameters["transport"]
    client = client_of(connection_info(kernel))
    assert value_of(client, "__import__('os').getpid()") == kernel["kernel_pid"]
    if "port_range" in parameters:
        assert all(44000 <= port <= 45000 for port in kernel["ports"].values())
    assert not [
        path
        for path in value_of(client, "__import__('sys').path")
        if "distributed_provisioner/remote" in path
    ]
    assert value_of(client, "'JPY_PARENT_PID' in __import__('os').environ") is False
    client.stop_channels()


def test_subclass_of_the_ipython_kernel(bridge: Bridge, tmp_path: Path) -> None:
    """--kernel-class-name takes a subclass from a package on the host."""
    (tmp_path / "mine.py").write_text(
        "from ipykernel.ipkernel import IPythonKernel\nclass Mine(IPythonKernel):\n    implementation = 'mine'\n"
    )
    kernel = bridge.launch([*PAGE_ARGV[:-1], "mine.Mine"], spec_env={"PYTHONPATH": str(tmp_path)})
    client = client_of(connection_info(kernel))
    assert client.kernel_info(reply=True, timeout=30)["content"]["implementation"] == "mine"
    client.stop_channels()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nosuch.Kernel", "No module named 'nosuch'"),
        ("json.JSONDecoder", "must be a subclass"),
        ("json", "cannot be loaded"),
    ],
)
def test_wrong_kernel_class_is_told(bridge: Bridge, name: str, words: str) -> None:
    """One sentence, not a traceback, says what is wrong with --kernel-class-name."""
    with pytest.raises(ListenerError) as caught:
        bridge.launch([*PAGE_ARGV[:-1], name])
    assert words in caught.value.fields["log_tail"]
    assert "Traceback" not in caught.value.fields["log_tail"]


def by_hand(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    argv = [sys.executable, str(LAUNCHER), *arguments]
    variables = {**os.environ, **environment}
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)


def test_by_hand_prints_where_the_connection_file_is(tmp_path: Path) -> None:
    """An operator can try a host's kernel without any server."""
    launcher = by_hand(
        "--kernel-id", "test", "--port-range", "40000..41000", JUPYTER_RUNTIME_DIR=str(tmp_path)
    )
    try:
        assert launcher.stdout is not None
        path = Path(launcher.stdout.readline().split(" is ")[1].strip())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        info = json.loads(path.read_text())
        assert all(
            40000 <= info[f"{channel}_port"] <= 41000
            for channel in ("shell", "iopub", "stdin", "control", "hb")
        )
        assert re.fullmatch(
            rf"To use the kernel: jupyter console --existing {path}\n", launcher.stdout.readline()
        )
        client = client_of(info)
        assert value_of(client, "__import__('os').environ['KERNEL_ID']") == "test"
        client.shutdown(reply=True, timeout=30)
        client.stop_channels()
        until(lambda: launcher.poll() is not None)
        assert launcher.poll() == 0
    finally:
        launcher.kill()
        launcher.communicate()


@pytest.mark.parametrize("text", ["1..2", "2000", "a..b", "3000..2000", "70000..71000"])
def test_by_hand_refuses_a_bad_port_range(text: str) -> None:
    """A wrong --port-range is a usage error with status 2."""
    launcher = by_hand("--port-range", text)
    _, errors = launcher.communicate(timeout=30)
    assert launcher.returncode == 2
    assert text in errors
    assert "Traceback" not in errors


def test_help_names_every_option_of_the_page() -> None:
    """The page's arguments are documented where they are used."""
    text = subprocess.run(
        [sys.executable, str(LAUNCHER), "--help"], capture_output=True, text=True, check=True
    ).stdout
    for option in (
        "kernel-id",
        "port-range",
        "response-address",
        "public-key",
        "kernel-class-name",
        "spark-context-initialization-mode",
    ):
        assert f"--{option}" in text


ARGUMENTS = """
import json, sys
sys.path.insert(0, sys.argv[1])
import launch_ipykernel
from ipykernel.kernelapp import IPKernelApp
own, all = launch_ipykernel.application_class()(), launch_ipykernel.application_class()()
own.parse_command_line(sys.argv[2:])
IPKernelApp.parse_command_line(all, sys.argv[2:])
names = ("argv", "extra_args", "cli_config", "config", "connection_file", "subapp", "log_level")
print(json.dumps([{name: [type(getattr(each, name)).__name__, repr(getattr(each, name))] for name in names} for each in (own, all)]))
"""


@pytest.mark.parametrize("more", [[], ["--HistoryManager.enabled=False"], ["--debug"], ["--", "x.py"]])
def test_arguments_mean_what_they_mean_to_a_kernel_application(more: list[str]) -> None:
    """If it fails: a kernel of ours has another configuration than Jupyter's own with the same arguments."""
    argv = [sys.executable, "-c", ARGUMENTS, str(LAUNCHER.parent), "-f", "/some/where.json", *more]
    own, everything = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    assert own == everything
    assert own["connection_file"] == ["str", "'/some/where.json'"]


EARLY = """
import gc, sys
sys.path.insert(0, sys.argv[1])
import launch_ipykernel
launch_ipykernel.import_early("ipykernel.ipkernel.IPythonKernel")
from ipykernel.kernelapp import IPKernelApp
from traitlets.config import Application
before = IPKernelApp.__subclasses__()
print(len(before), before == [launch_ipykernel.application_class()], any(isinstance(each, Application) for each in gc.get_objects()))
"""


def test_forked_kernels_find_their_application_made_but_no_instance_of_it() -> None:
    """If it fails: each forked kernel makes a class of a hundred traits anew, or all share one application."""
    argv = [sys.executable, "-c", EARLY, str(LAUNCHER.parent)]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split() == [
        "1",
        "True",
        "False",
    ]
