"""Kernel specifications for the distributed provisioner: what is in one, and how it gets to its place."""

from __future__ import annotations

from .build import BuiltSpec, SpecFile, build
from .install import InstalledSpec, InstallTarget, find_installed, install, remove
from .options import SpecOptions
from .spark import SparkOptions

__all__ = [
    "BuiltSpec",
    "InstallTarget",
    "InstalledSpec",
    "SparkOptions",
    "SpecFile",
    "SpecOptions",
    "build",
    "find_installed",
    "install",
    "remove",
]
