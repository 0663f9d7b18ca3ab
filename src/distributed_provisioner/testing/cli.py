"""`python -m distributed_provisioner.testing`: run something where clusters can be built, or build one by hand."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys

from distributed_provisioner.testing import enter
from distributed_provisioner.testing.errors import ClusterError, Unsupported
from distributed_provisioner.testing.namespaces import Cluster

_CHECK = [sys.executable, "-m", "distributed_provisioner.testing", "enter", "--"]


def main(argv: list[str] | None = None) -> int:
    """Run one of the commands; the exit status is 0, or 1 with the reason on standard error."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (Unsupported, ClusterError, OSError) as error:
        print(f"{arguments.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m distributed_provisioner.testing", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    entering = commands.add_parser("enter", help="run a command in a network (and user) namespace of its own")
    entering.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    entering.set_defaults(run=_enter)
    up = commands.add_parser("up", help="a cluster until Ctrl-C; prints how to reach it")
    up.add_argument("hosts", nargs="?", type=int, default=3)
    up.set_defaults(run=_up)
    check = commands.add_parser("check", help="whether clusters can be built here, and why not")
    check.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    check.set_defaults(run=_check)
    return parser


def _enter(arguments: argparse.Namespace) -> int:
    argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    enter.run(argv or [os.environ.get("SHELL", "/bin/sh")])


def _up(arguments: argparse.Namespace) -> int:
    with Cluster(arguments.hosts) as cluster:
        ends = {signal.SIGINT, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)
        for host in cluster.hosts:
            print(f"{host.name}  {host.address}  {host.address6}")
        print(f"\n  {' '.join(cluster.ssh('host1'))}\n  HOME={cluster.home} jupyter lab\n")
        if cluster.rootless:
            command = " ".join(cluster.ssh("host1"))
            print(
                f"from another terminal:\n  nsenter -t {os.getpid()} -U -n --preserve-credentials {command}\n"
            )
        print("Ctrl-C ends it.", flush=True)
        signal.sigwait(ends)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    kind = "as root" if os.geteuid() == 0 else "without root"
    if not arguments.inside:
        return subprocess.run([*_CHECK, *_CHECK[:3], "check", "--inside"], check=False).returncode
    with Cluster(1) as cluster:
        cluster["host1"].run("true")
        subprocess.run([*cluster.ssh("host1"), "true"], check=True, stdin=subprocess.DEVNULL)
    print(f"clusters of sshd hosts work here, {kind}")
    return 0
