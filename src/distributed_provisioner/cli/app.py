"""What all our commands have in common: they take no argument in silence, and a refusal is one sentence and exit code 1."""

# ruff: noqa: RUF012 -- traitlets declares flags, aliases and classes so
from __future__ import annotations

import re
from typing import Any, NoReturn

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.application import JupyterApp, base_aliases, base_flags
from traitlets import Instance, default
from traitlets.config import Configurable
from traitlets.config.application import catch_config_error
from traitlets.config.loader import ArgumentError, KVArgParseConfigLoader

from distributed_provisioner import __version__
from distributed_provisioner.errors import ProvisionerError


class StrictApp(JupyterApp):
    """A Jupyter application that refuses options and arguments that it does not know.

    traitlets warns about the former and keeps the latter to itself, with exit code 0: a misspelt --remote-host would install a
    specification for localhost.
    """

    name = "jupyter-ssh-spec"
    version = __version__
    classes = [KernelSpecManager]
    aliases: dict[str, Any] = dict(base_aliases)
    flags: dict[Any, Any] = {"debug": base_flags["debug"]}
    spellings: dict[str, str] = {}
    """Other spellings of options."""

    kernel_spec_manager = Instance(KernelSpecManager)

    @default("kernel_spec_manager")
    def _default_kernel_spec_manager(self) -> KernelSpecManager:
        # The kernel of this environment is none of ours; without ipykernel, asking for it is a warning.
        return KernelSpecManager(parent=self, ensure_native_kernel=False)

    @default("log_format")
    def _default_log_format(self) -> str:
        return "[%(levelname)1.1s %(asctime)s.%(msecs)03d %(name)s] %(message)s"

    @catch_config_error
    def parse_command_line(self, argv: list[str] | None = None) -> None:
        super().parse_command_line(None if argv is None else [self._respelled(item) for item in argv])
        if self.subapp is not None:
            return
        for section, values in getattr(self, "cli_config", {}).items():
            for name in values:
                if name not in self._configurable(section):
                    raise ArgumentError(f"There is no option --{section}.{name}: see {self.name} --help-all.")
        self.take_arguments(list(self.extra_args))

    def take_arguments(self, arguments: list[str]) -> None:
        """Use the arguments that belong to no option; refuse them, unless a command knows better."""
        if arguments:
            raise ArgumentError(f"There is no use for the argument '{arguments[0]}' here: see --help.")

    def start(self) -> None:
        super().start()
        try:
            self.run()
        except ProvisionerError as error:
            self.fail(str(error))

    def run(self) -> None:
        """What the command does."""

    def fail(self, sentence: str) -> NoReturn:
        self.log.error(sentence)
        self.exit(1)
        raise SystemExit(1)

    def migrate_config(self) -> None:
        """Nothing of ours is as old as IPython 3, so nothing is written into the user's home."""

    def _find_subcommand(self, name: str) -> str:
        """jupyter_core would run any program called `jupyter-ssh-spec-ARGUMENT`."""
        return ""

    def _create_loader(self, argv: Any, aliases: Any, flags: Any, classes: Any) -> KVArgParseConfigLoader:
        return _StrictLoader(
            argv, aliases, flags, classes=classes, log=self.log, subcommands=self.subcommands
        )

    def _configurable(self, section: str) -> set[str]:
        return {
            name
            for cls in self._classes_with_config_traits()
            if cls.__name__ == section and issubclass(cls, Configurable)
            for name in cls.class_traits(config=True)
        }

    def _respelled(self, argument: str) -> str:
        option, equals, value = argument.partition("=")
        return self.spellings.get(option, option) + equals + value


class _StrictLoader(KVArgParseConfigLoader):
    """Raises where traitlets warns, where argparse exits with 2, and where argparse guesses at an abbreviation."""

    def _create_parser(self) -> None:
        self.parser_kw["allow_abbrev"] = False  # type: ignore[assignment]
        super()._create_parser()
        self.parser.error = self._refuse  # type: ignore[method-assign]

    def _handle_unrecognized_alias(self, arg: str) -> None:
        raise ArgumentError(f"There is no option {'-' if len(arg) == 1 else '--'}{arg}: see --help.")

    def _refuse(self, message: str) -> NoReturn:
        """argparse's words name the trait, and call every unknown option one that lacks a value."""
        named = {f"--{target}": f"--{alias}" for alias, target in self.aliases.items()}
        match = re.match(r"(?:argument|unrecognized arguments:) (-[^\s:=]+)", message)
        if match is None:
            raise ArgumentError(f"{message}: see --help.")
        option = named.get(match[1], match[1])
        if option in named.values() or "." in option:
            raise ArgumentError(
                f"The option {option} cannot be used so ({message.partition(': ')[2]}): see --help."
            )
        raise ArgumentError(f"There is no option {option}: see --help.")
