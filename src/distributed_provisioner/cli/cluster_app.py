"""What the commands of `jupyter ssh-cluster` have in common: their hosts, exit codes, and how they end early."""

# ruff: noqa: RUF012 -- traitlets declares flags, aliases and classes so
from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from jupyter_client.kernelspec import KernelSpecManager
from traitlets import Bool, Unicode
from traitlets.config import Config
from traitlets.config.loader import ArgumentError

from distributed_provisioner.errors import ConfigurationError, ProvisionerError
from distributed_provisioner.operating import Ambiguous, Answers, Cluster, FoundKernel, NoSuchKernel, Place

from .app import StrictApp
from .base_spec import List
from .cluster_hosts import SERVER_CONFIGURATIONS, DistributedProvisioner, places

SOME_HOST_FAILED, USAGE, NOT_FOUND = 1, 2, 3
INTERRUPTED = 130


class ClusterApp(StrictApp):
    """Exit codes: 0, 1 where a host or kernel failed, 2 for a command line or option that is wrong, 3 for what is not there."""

    name = "jupyter-ssh-cluster"
    classes = [DistributedProvisioner, KernelSpecManager]
    flags: dict[Any, Any] = dict(StrictApp.flags)

    def load_config_file(self, suppress_errors: bool = True) -> None:  # type: ignore[override] # as JupyterApp has it
        """The provisioner is configured where the host applications are."""
        for base in SERVER_CONFIGURATIONS:
            for config, _ in self._load_config_files(base, path=self.config_file_paths, log=self.log):
                if "DistributedProvisioner" in config:
                    self.update_config(Config({"DistributedProvisioner": config["DistributedProvisioner"]}))
        super().load_config_file(suppress_errors)

    def parse_command_line(self, argv: list[str] | None = None) -> None:
        try:
            super().parse_command_line(argv)
        except SystemExit as end:  # traitlets has said why
            raise SystemExit(USAGE if end.code == 1 else end.code) from None

    def start(self) -> None:
        try:
            super().start()
        except KeyboardInterrupt:
            self.exit(INTERRUPTED)
        except BrokenPipeError as error:
            if isinstance(error, ProvisionerError):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head`: nothing more is wanted
            self.exit(0)

    def fail(self, sentence: str, code: int = SOME_HOST_FAILED) -> NoReturn:
        self.log.error(sentence)
        self.exit(code)
        raise SystemExit(code)


class HostsCommand(ClusterApp):
    """A command that asks hosts."""

    remote_hosts = List(
        help="""The only hosts to ask. Several are separated by commas, or given as options of
their own. Without it: the hosts of the configuration, of GP_REMOTE_HOSTS and of
all kernel specifications that use the distributed provisioner."""
    ).tag(config=True)
    user = Unicode(
        help="""Whose kernels to look at, with impersonation or where remote_hosts has
{username}: this user's, by sudo on the hosts. Without it: those of the user who
logs in."""
    ).tag(config=True)
    json_output = Bool(False, help="Print JSON.").tag(config=True)
    flags = {"json": ({"HostsCommand": {"json_output": True}}, json_output.help), **StrictApp.flags}
    aliases = {
        "remote-hosts": "HostsCommand.remote_hosts",
        "as": "HostsCommand.user",
        **StrictApp.aliases,
    }

    failed = False
    """Whether something was told on standard error, and the exit code is 1."""

    def take_arguments(self, arguments: list[str]) -> None:
        if arguments:
            raise ArgumentError(
                f"There is no use for the argument '{arguments[0]}' here: lists take an option for each item, or commas, as in"
                " --remote-hosts host1 --remote-hosts host2 or --remote-hosts host1,host2."
            )

    def run(self) -> None:
        try:
            self.known = places(self, self.remote_hosts or None, self.user)
            self.cluster = Cluster(self.known)
            self.work()
        except ConfigurationError as error:
            self.fail(str(error), USAGE)
        except Ambiguous as error:
            self.fail(str(error), USAGE)
        except NoSuchKernel as error:
            self.tell_failures(error.failed)
            # A host that cannot be asked may have it.
            self.fail(str(error), SOME_HOST_FAILED if error.failed else NOT_FOUND)
        sys.stdout.flush()
        if self.failed:
            self.exit(SOME_HOST_FAILED)

    def work(self) -> None:
        """What the command does, with `self.cluster`."""

    def tell_failures(self, failed: Mapping[str, ProvisionerError]) -> None:
        """One sentence on standard error for each host or kernel."""
        for name, error in failed.items():
            self.failed = True
            self.log.error("%s", error if name in str(error) else f"{name}: {error}")

    def the_kernel(self, prefix: str) -> FoundKernel:
        """The one whose id begins so; of a kernel that is on two hosts the later one."""
        found: Answers[FoundKernel] = self.cluster.find([prefix])
        return max(found.given, key=lambda kernel: kernel.generation)

    def asked(self, question: str) -> bool:
        """Whether the answer at the terminal is yes. Nothing of it is on standard output."""
        print(question, end=" [y/N] ", file=sys.stderr, flush=True)
        try:
            return input().strip().lower() in ("y", "yes")
        except EOFError:
            print(file=sys.stderr)
            return False


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def failures_to_json(failed: Mapping[str, ProvisionerError]) -> dict[str, str]:
    return {name: str(error) for name, error in failed.items()}


def listed(known: list[Place]) -> str:
    return ", ".join(str(place.address) for place in known)
