"""`jupyter ssh-spec`: makes, lists and removes kernel specifications for the distributed provisioner."""

# ruff: noqa: RUF012 -- traitlets declares flags, aliases and classes so
from __future__ import annotations

import json
from typing import Any

from traitlets import Bool, Unicode
from traitlets.config.loader import ArgumentError

from distributed_provisioner.kernelspec import (
    InstalledSpec,
    InstallTarget,
    SparkOptions,
    SpecOptions,
    build,
    find_installed,
    install,
    remove,
)
from distributed_provisioner.rivals import rival_claims
from distributed_provisioner.settings import OPTION

from .app import StrictApp
from .base_spec import BaseSpecApp, List

_SPARK_ONLY = ("spark_master", "spark_home", "spark_init_mode", "extra_spark_opts")


class SshSpecInstaller(BaseSpecApp):
    """`jupyter ssh-spec install`"""

    description = "Creates a Jupyter kernel specification for use within a cluster of hosts via SSH."
    examples = """
    jupyter-ssh-spec install --language R --spark --spark-master spark://192.168.2.5:7077 --spark-home=/usr/local/spark

jupyter-ssh-spec install --kernel-name ssh_python --remote-hosts=192.168.2.4 --remote-hosts=192.168.2.5

jupyter-ssh-spec install --language Scala --spark --spark_init_mode 'eager'
    """

    remote_hosts = List(list(OPTION["remote_hosts"].default), help=OPTION["remote_hosts"].cli_help).tag(
        config=True
    )
    spark_master = Unicode(
        "yarn", help="Specify the Spark Master URL (e.g., 'spark://HOST:PORT' or 'yarn'."
    ).tag(config=True)

    aliases = {
        "remote-hosts": "SshSpecInstaller.remote_hosts",
        "spark-master": "SshSpecInstaller.spark_master",
    } | BaseSpecApp.aliases

    def take_arguments(self, arguments: list[str]) -> None:
        if arguments:
            raise ArgumentError(
                f"There is no use for the argument '{arguments[0]}' here: lists take an option for each item, or commas, as in"
                " --remote-hosts host1 --remote-hosts host2 or --remote-hosts host1,host2."
            )

    def run(self) -> None:
        warn_of_rivals(self)
        options = self._options()
        target = InstallTarget(self.user, self.prefix)
        directory = target.directory(options.kernel_name, self.kernel_spec_manager)
        spec = build(options, str(directory))
        self._warn_of_vain_options()
        self.log.info("Installing kernel specification for '%s'", spec.display_name)
        install(spec, directory, replace=self.replace)
        self.log.info("Installed kernelspec %s in %s", spec.kernel_name, directory)
        self._warn_if_hidden(spec.kernel_name, str(directory))

    def _options(self) -> SpecOptions:
        given, spark = self.given(), self._spark_options()
        return SpecOptions(
            language=self.language,
            kernel_name=self.kernel_name,
            display_name=self.display_name,
            remote_hosts=tuple(self.remote_hosts) if "remote_hosts" in given else None,
            authorized_users=frozenset(self.authorized_users) if "authorized_users" in given else None,
            unauthorized_users=frozenset(self.unauthorized_users) if "unauthorized_users" in given else None,
            port_range=self.port_range if "port_range" in given else None,
            launch_timeout=self.launch_timeout,
            kernel_class=self.ipykernel_subclass_name,
            spark=spark if self.spark else None,
            toree_jar=self.toree_jar,
        )

    def _spark_options(self) -> SparkOptions:
        return SparkOptions(
            master=self.spark_master,
            home=self.spark_home if "spark_home" in self.given() else None,
            init_mode=self.spark_init_mode,
            extra_opts=self.extra_spark_opts,
        )

    def _warn_of_vain_options(self) -> None:
        for name in () if self.spark else _SPARK_ONLY:
            if name in self.given():
                self.log.warning("--%s has no effect without --spark.", name.replace("_", "-"))
        found = OPTION["launch_timeout"].from_environment()
        if "launch_timeout" not in self.given() and found and found[1].strip() != str(self.launch_timeout):
            self.log.warning(
                "kernel.json gets launch_timeout %s, which wins over %s=%s: give --launch-timeout to write another one.",
                self.launch_timeout,
                *found,
            )

    def _warn_if_hidden(self, name: str, directory: str) -> None:
        manager = self.kernel_spec_manager
        found = manager.find_kernel_specs().get(name)
        if found is None:
            self.log.warning(
                "Jupyter does not look for kernelspecs there: it looks in %s.", ", ".join(manager.kernel_dirs)
            )
        elif found != directory:
            self.log.warning("Jupyter will not use it, since the one in %s comes first.", found)


class SshSpecList(StrictApp):
    """`jupyter ssh-spec list`"""

    description = "Lists the kernel specifications that use the distributed provisioner."
    examples = """
    jupyter-ssh-spec list

jupyter-ssh-spec list --json
    """

    json_output = Bool(False, help="Print the list as JSON.").tag(config=True)
    flags = {
        "json": ({"SshSpecList": {"json_output": True}}, json_output.help),
        **StrictApp.flags,
    }

    def run(self) -> None:
        warn_of_rivals(self)
        specs = find_installed(self.kernel_spec_manager)
        if self.json_output:
            print(json.dumps([_as_json(spec) for spec in specs], indent=2, ensure_ascii=False))
        elif specs:
            print("\n".join(_table(specs)))
        else:
            print(
                "No kernel specification uses the distributed provisioner: jupyter ssh-spec install makes one."
            )


class SshSpecRemove(StrictApp):
    """`jupyter ssh-spec remove`"""

    description = "Removes kernel specifications that use the distributed provisioner, by their names."
    examples = """
    jupyter-ssh-spec remove ssh_python

jupyter-ssh-spec remove ssh_python ssh_python_gpu --yes
    """

    yes = Bool(False, help="Do not ask.").tag(config=True)
    flags = {
        ("y", "yes", "f", "force"): ({"SshSpecRemove": {"yes": True}}, yes.help),
        **StrictApp.flags,
    }

    def take_arguments(self, arguments: list[str]) -> None:
        if not arguments:
            raise ArgumentError(
                "Name at least one kernel specification to remove: jupyter ssh-spec list shows them."
            )
        self.names = list(dict.fromkeys(name.lower() for name in arguments))

    def run(self) -> None:
        manager = self.kernel_spec_manager
        ours = {spec.name: spec for spec in find_installed(manager)}
        for name in self.names:
            if name not in ours:
                self.fail(self._why_not(name))
        chosen = [ours[name] for name in self.names]
        if not self.yes and not self._asked(chosen):
            self.fail("Nothing was removed.")
        for spec in chosen:
            remove(spec, manager)
            self.log.info("Removed kernelspec %s from %s", spec.name, spec.directory)

    def _why_not(self, name: str) -> str:
        directory = self.kernel_spec_manager.find_kernel_specs().get(name)
        if directory is None:
            return f"There is no kernel specification '{name}': jupyter ssh-spec list shows those that there are."
        return (
            f"The kernel specification '{name}' in {directory} does not use the distributed provisioner, so it is not removed:"
            " use jupyter kernelspec remove."
        )

    def _asked(self, specs: list[InstalledSpec]) -> bool:
        print("To be removed:")
        print("\n".join(f"  {spec.name}  {spec.directory}" for spec in specs))
        try:
            return input("Remove? [y/N] ").strip().lower() in ("y", "yes")
        except (EOFError, KeyboardInterrupt):
            print()
            return False


class SshSpecApp(StrictApp):
    """`jupyter ssh-spec`"""

    description = "Makes, lists and removes kernel specifications for kernels on a set of hosts via SSH."
    flags: dict[Any, Any] = {}
    aliases: dict[str, Any] = {}
    subcommands = {
        "install": (SshSpecInstaller, SshSpecInstaller.description),
        "list": (SshSpecList, SshSpecList.description),
        "remove": (SshSpecRemove, SshSpecRemove.description),
    }

    def take_arguments(self, arguments: list[str]) -> None:
        if arguments:
            known = ", ".join(self.subcommands)
            raise ArgumentError(f"There is no command '{arguments[0]}': write one of {known}.")

    def run(self) -> None:
        self.print_help()


def warn_of_rivals(app: StrictApp) -> None:
    for sentence in rival_claims():
        app.log.warning(sentence)


def main() -> None:
    SshSpecApp.launch_instance()


def _as_json(spec: InstalledSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "display_name": spec.display_name,
        "directory": spec.directory,
        "remote_hosts": None if spec.remote_hosts is None else list(spec.remote_hosts),
    }


def _table(specs: list[InstalledSpec]) -> list[str]:
    rows = [("Name", "Display name", "Hosts", "Directory")]
    for spec in specs:
        hosts = "the server's" if spec.remote_hosts is None else ", ".join(spec.remote_hosts)
        rows.append((spec.name, spec.display_name, hosts, spec.directory))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


if __name__ == "__main__":
    main()
