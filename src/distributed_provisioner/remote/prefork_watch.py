"""What imports depend on: files, directories and variables of the environment, noted while a template imports (see prefork_template.py)."""

from __future__ import annotations

import builtins
import contextlib
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable, Iterator, Optional, Tuple

    Mark = Optional[Tuple[int, int, int]]


class Watched:
    """Files and directories that imports depend on, as they were."""

    def __init__(self) -> None:
        self.marks: dict[str, Mark] = {}
        self.lists: dict[str, tuple[Mark, frozenset[str]]] = {}

    def directories(self, names: Iterable[str]) -> None:
        """What can be imported from there, and `.pth` files. Archives count as files."""
        for name in names:
            path = os.path.abspath(name)
            if os.path.isfile(path):
                self.files([path])
                continue
            self.lists[path] = mark(path), entries(path)
            self.files(os.path.join(path, item) for item in self.lists[path][1] if item.endswith(".pth"))

    def files(self, names: Iterable[str]) -> None:
        for name in names:
            self.marks.setdefault(name, mark(name))

    def modules(self) -> None:
        for module in list(sys.modules.values()):
            path = getattr(module, "__file__", None)
            if isinstance(path, str):
                self.files([path])

    def changed(self) -> str:
        """What is not as it was, or ""."""
        for path, before in self.marks.items():
            if mark(path) != before:
                return path
        for path, (then, items) in self.lists.items():
            now = mark(path)
            if now != then:
                if entries(path) != items:
                    return path
                self.lists[path] = now, items  # a `__pycache__` was made there
        return ""

    def newer(self, when: int) -> str:
        """A file that was written after `when` (ns since the epoch): perhaps after it was read. Or ""."""
        for path, before in self.marks.items():
            if before is not None and before[0] >= when:
                return path
        return ""


def mapped_files() -> set[str]:
    """Shared libraries, which are replaced apart from the modules that use them, and whatever else is in memory as a file is."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        found = {line.rstrip("\n").split(None, 5)[-1] for line in file if "/" in line}
    return {path for path in found if path.startswith("/") and os.path.isfile(path)}


def mark(path: str) -> Mark:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def entries(path: str) -> frozenset[str]:
    try:
        return frozenset(name for name in os.listdir(path) if name != "__pycache__")
    except OSError:
        return frozenset()


@contextlib.contextmanager
def watched_environment() -> Iterator[set[str]]:
    """The names that are looked up in os.environ meanwhile, whether they are there or not."""
    names: set[str] = set()
    kind: Any = type(os.environ)

    class Watching(kind):  # type: ignore[misc]
        def __getitem__(self, name: str) -> Any:
            if isinstance(name, str):
                names.add(name)
            return super().__getitem__(name)

    os.environ.__class__ = Watching
    # As the kernel application sets it, before anybody can import matplotlib.
    backend = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = backend or "module://matplotlib_inline.backend_inline"
    try:
        yield names
    finally:
        os.environ.__class__ = kind
        del os.environ["MPLBACKEND"]
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
        if "matplotlib" not in sys.modules:
            names.discard("MPLBACKEND")


@contextlib.contextmanager
def watched_files() -> Iterator[set[str]]:
    """The absolute paths that are opened for reading by `open` meanwhile."""
    names: set[str] = set()
    real = builtins.open

    def watching(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if isinstance(file, (str, os.PathLike)) and not set(mode) & set("wax+"):
            path = os.path.abspath(os.fspath(file))
            if isinstance(path, str) and not path.startswith(("/proc/", "/sys/", "/dev/")):
                names.add(path)
        return real(file, mode, *arguments, **named)

    builtins.open = watching
    try:
        yield names
    finally:
        builtins.open = real
