"""The one error of this package that a test may want to skip on."""

from __future__ import annotations


class Unsupported(RuntimeError):
    """This machine does not allow what was asked for; the text is the exact reason."""


class ClusterError(RuntimeError):
    """A cluster that could be built here was not: a host did not boot, sshd did not start."""
