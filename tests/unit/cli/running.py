"""Runs `jupyter ssh-spec …` in this process, as the console script does."""

from __future__ import annotations

import logging
from dataclasses import dataclass

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
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *argv: str, answer: str | None = None) -> Finished:
        self._monkeypatch.setattr("sys.argv", ["jupyter-ssh-spec", *argv])
        if answer is not None:
            self._monkeypatch.setattr("builtins.input", lambda prompt: answer)
        self._capsys.readouterr()
        code: object = 0
        try:
            ssh_spec.main()
        except SystemExit as stop:
            code = stop.code
        finally:
            self._forget()
        assert isinstance(code, int | None)
        captured = self._capsys.readouterr()
        return Finished(code or 0, captured.out, captured.err)

    @staticmethod
    def _forget() -> None:
        """Each run of the command is a process of its own; here the applications are singletons."""
        for cls in vars(ssh_spec).values():
            if isinstance(cls, type) and issubclass(cls, SingletonConfigurable):
                cls.clear_instance()
                logging.getLogger(cls.__name__).handlers.clear()
