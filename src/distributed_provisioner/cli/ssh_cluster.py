"""`jupyter ssh-cluster`: shows, stops and reads kernels on the hosts of the distributed provisioner, and drains hosts."""

# ruff: noqa: RUF012 -- traitlets declares flags, aliases and classes so
from __future__ import annotations

from typing import Any

from traitlets import Bool, Unicode
from traitlets.config.loader import ArgumentError

from distributed_provisioner.operating import FoundKernel, HostReport, Place

from .cluster_app import (
    NOT_FOUND,
    ClusterApp,
    HostsCommand,
    failures_to_json,
    listed,
    print_json,
)
from .cluster_hosts import named
from .cluster_read import SshClusterLogs, SshClusterOutput
from .tables import duration, memory, table, terminal_width


class SshClusterKernels(HostsCommand):
    """`jupyter ssh-cluster kernels`"""

    description = "Lists the kernels of this user on every host, whichever server started them."
    examples = """
    jupyter-ssh-cluster kernels

jupyter-ssh-cluster kernels --remote-hosts host1,host2 --json
    """

    def work(self) -> None:
        answers = self.cluster.kernels()
        if self.json_output:
            kernels = [kernel.to_json() for kernel in answers.given]
            print_json({"kernels": kernels, "failed": failures_to_json(answers.failed)})
        elif answers.given:
            print("\n".join(kernels_table(list(answers.given), terminal_width())))
        else:
            print(
                f"No kernel runs on {', '.join(self.answered(answers.failed)) or 'any host that answered'}."
            )
        self.tell_failures(answers.failed)

    def answered(self, failed: Any) -> list[str]:
        return [str(place.address) for place in self.known if str(place.address) not in failed]


class SshClusterHosts(HostsCommand):
    """`jupyter ssh-cluster hosts`"""

    description = (
        "Lists the hosts: whether they can be reached and take kernels, their load, cores and memory."
    )
    examples = """
    jupyter-ssh-cluster hosts

jupyter-ssh-cluster hosts --json
    """

    def work(self) -> None:
        answers = self.cluster.hosts()
        reports = {str(report.host): report for report in answers.given}
        names = [str(place.address) for place in self.known]
        if self.json_output:
            hosts = [
                {"reachable": True, **reports[name].to_json()}
                if name in reports
                else {"reachable": False, "host": name}
                for name in names
            ]
            print_json({"hosts": hosts, "failed": failures_to_json(answers.failed)})
        else:
            rows = [_host_row(name, reports.get(name)) for name in names]
            head = ("HOST", "STATE", "KERNELS", "LOAD", "CORES", "MEMORY", "LISTENER", "NOTE")
            print("\n".join(table(head, rows, flexible=("HOST", "NOTE"), width=terminal_width())))
        self.tell_failures(answers.failed)


class SshClusterStop(HostsCommand):
    """`jupyter ssh-cluster stop`"""

    description = "Ends kernels, by the beginnings of their ids, or all that have no server any more."
    examples = """
    jupyter-ssh-cluster stop 4f2a

jupyter-ssh-cluster stop --orphans --yes
    """

    orphans = Bool(
        False, help="The kernels whose server is not connected and, where that can be told, has ended."
    ).tag(config=True)
    everything = Bool(False, help="All kernels of this user, of living servers, too.").tag(config=True)
    yes = Bool(False, help="Do not ask.").tag(config=True)
    flags = {
        "orphans": ({"SshClusterStop": {"orphans": True}}, orphans.help),
        "all": ({"SshClusterStop": {"everything": True}}, everything.help),
        ("y", "yes"): ({"SshClusterStop": {"yes": True}}, yes.help),
        **HostsCommand.flags,
    }

    def take_arguments(self, arguments: list[str]) -> None:
        if bool(arguments) + self.orphans + self.everything != 1:
            raise ArgumentError(
                "Name kernels by the beginnings of their ids, or give one of --orphans and --all."
            )
        self.prefixes = arguments

    def work(self) -> None:
        answers = self.cluster.find(self.prefixes) if self.prefixes else self.cluster.kernels(usage=False)
        self.tell_failures(answers.failed)
        chosen = [kernel for kernel in answers.given if not self.orphans or kernel.server == "orphaned"]
        if not chosen:
            self._tell([], {})
            return
        if not self.yes and not self._asked(chosen):
            self.fail("Nothing was stopped.")
        done = self.cluster.stop(chosen)
        self._tell(list(done.given), {**answers.failed, **done.failed})
        self.tell_failures(done.failed)
        for kernel in done.given:
            if kernel.server == "connected":
                self.log.warning(
                    "The server of kernel %s is connected and may start it again: shut it down there.",
                    kernel.kernel_id,
                )

    def _asked(self, chosen: list[FoundKernel]) -> bool:
        self.log.info("To be stopped:\n%s", "\n".join(kernels_table(chosen, terminal_width())))
        return self.asked(f"Stop {_count(chosen)}?")

    def _tell(self, stopped: list[FoundKernel], failed: Any) -> None:
        if self.json_output:
            print_json(
                {"stopped": [kernel.to_json() for kernel in stopped], "failed": failures_to_json(failed)}
            )
        elif stopped or not failed:
            print(
                f"Stopped {_count(stopped)}{': ' if stopped else ''}{', '.join(k.kernel_id for k in stopped)}."
            )


class DrainingCommand(HostsCommand):
    """Changes hosts that are named."""

    on = True
    reason = Unicode("", help="Why, for those whose kernels go elsewhere.").tag(config=True)

    def take_arguments(self, arguments: list[str]) -> None:
        if not arguments:
            raise ArgumentError("Name at least one host: jupyter ssh-cluster hosts shows them.")
        self.names = arguments

    def work(self) -> None:
        chosen: list[Place] = []
        for name in self.names:
            found = named(self.known, name)
            if not found:
                self.fail(
                    f"There is no host '{name}' among {listed(self.known)}: give --remote-hosts {name}.",
                    NOT_FOUND,
                )
            chosen += [place for place in found if place not in chosen]
        answers = self.cluster.drain(chosen, self.on, self.reason)
        if self.json_output:
            hosts = [{"host": str(place.address), "drained": drained} for place, drained in answers.given]
            print_json({"hosts": hosts, "failed": failures_to_json(answers.failed)})
        for place, drained in answers.given:
            self._tell(str(place.address), drained)
        self.tell_failures(answers.failed)

    def _tell(self, host: str, drained: bool) -> None:
        if drained != self.on:
            self.failed = True
            self.log.error(
                "%s stays drained for all users: root has to remove /etc/distributed-provisioner/drained there.",
                host,
            )
        elif not self.json_output:
            print(
                f"{host} takes no new kernels; those that run stay."
                if drained
                else f"{host} takes kernels again."
            )


class SshClusterDrain(DrainingCommand):
    """`jupyter ssh-cluster drain`"""

    description = "Lets hosts take no new kernels; those that run there stay, and may be restarted."
    examples = """
    jupyter-ssh-cluster drain host2 --reason "new disks on Friday"
    """
    aliases = {"reason": "DrainingCommand.reason", **HostsCommand.aliases}


class SshClusterUndrain(DrainingCommand):
    """`jupyter ssh-cluster undrain`"""

    description = "Lets hosts take kernels again."
    examples = """
    jupyter-ssh-cluster undrain host2
    """
    on = False


class SshClusterApp(ClusterApp):
    """`jupyter ssh-cluster`"""

    description = "Shows and looks after the kernels on a set of hosts via SSH, and the hosts themselves."
    flags: dict[Any, Any] = {}
    aliases: dict[str, Any] = {}
    subcommands = {
        name: (app, app.description)
        for name, app in {
            "kernels": SshClusterKernels,
            "hosts": SshClusterHosts,
            "stop": SshClusterStop,
            "drain": SshClusterDrain,
            "undrain": SshClusterUndrain,
            "output": SshClusterOutput,
            "logs": SshClusterLogs,
        }.items()
    }

    def take_arguments(self, arguments: list[str]) -> None:
        if arguments:
            known = ", ".join(self.subcommands)
            raise ArgumentError(f"There is no command '{arguments[0]}': write one of {known}.")

    def run(self) -> None:
        self.print_help()


def kernels_table(kernels: list[FoundKernel], width: int | None) -> list[str]:
    ids = {kernel.kernel_id for kernel in kernels}
    size = next((n for n in range(8, 64) if len({name[:n] for name in ids}) == len(ids)), 64)
    head = ("KERNEL", "NAME", "HOST", "PID", "AGE", "STATE", "SERVER", "MEMORY", "CPU")
    rows = [
        (
            kernel.kernel_id[:size],
            kernel.name,
            str(kernel.host),
            str(kernel.pid),
            duration(kernel.age),
            kernel.state,
            server_of(kernel),
            memory(kernel.memory_bytes),
            duration(kernel.cpu_seconds),
        )
        for kernel in kernels
    ]
    return table(head, rows, flexible=("NAME", "HOST", "SERVER"), width=width)


def server_of(kernel: FoundKernel) -> str:
    """`here` is one of this machine and user; one that is away lives, and its host has no connection of it."""
    if kernel.server == "orphaned":
        return "orphaned"
    whose = "here" if kernel.is_here else kernel.owner.partition(":")[0]
    return f"{whose}, away" if kernel.server == "away" else whose


def _host_row(name: str, report: HostReport | None) -> tuple[str, ...]:
    if report is None:
        return (name, "unreachable", "", "", "", "", "", "")
    used = None if report.memory_total is None else report.memory_total - (report.memory_available or 0)
    size = "" if used is None else f"{memory(used)} of {memory(report.memory_total)}"
    load = f"{report.load[0]:.2f}" if report.load else ""
    return (
        name,
        "drained" if report.drained else "ok",
        str(report.kernels),
        load,
        str(report.cores or ""),
        size,
        report.listener_version[:8],
        report.drain_reason,
    )


def _count(kernels: list[FoundKernel]) -> str:
    return f"{len(kernels) or 'no'} kernel{'' if len(kernels) == 1 else 's'}"


def main() -> None:
    SshClusterApp.launch_instance()


if __name__ == "__main__":
    main()
