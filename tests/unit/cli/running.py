"""Runs `jupyter ssh-spec …` and `jupyter ssh-cluster …` in this process, as the console scripts do."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from types import ModuleType

import pytest
from traitlets.config import SingletonConfigurable

from distributed_provisioner.cli import ssh_spec


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    @property
    def sentences(self) -> list[str]:
        """The log's lines without their heads."""
        return [line.partition("] ")[2] for line in self.err.splitlines()]


class Runner:
    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        module: ModuleType = ssh_spec,
    ) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self._module = module

    def __call__(self, *argv: str, answer: str | None = None) -> Finished:
        self._monkeypatch.setattr(
            "sys.argv", [f"jupyter-{self._module.__name__.rpartition('.')[2].replace('_', '-')}", *argv]
        )
        if answer is not None:
            self._monkeypatch.setattr("builtins.input", lambda prompt="": answer)
        self._capsys.readouterr()
        code: object = 0
        try:
            self._module.main()
        except SystemExit as stop:
            code = stop.code
        finally:
            self._forget()
        assert isinstance(code, int | None)
        captured = self._capsys.readouterr()
        return Finished(code or 0, captured.out, captured.err)

    def _forget(self) -> None:
        """Each run of the command is a process of its own; here the applications are singletons."""
        for cls in vars(self._module).values():
            if isinstance(cls, type) and issubclass(cls, SingletonConfigurable):
                cls.clear_instance()
                logging.getLogger(cls.__name__).handlers.clear()
