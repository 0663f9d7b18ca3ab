"""The kernels that a server has, written down for its next start: enough to have them in its list while their hosts are away.

The hosts are the source of truth, and what they say wins. This is read for kernels whose host does not answer when the server starts.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import ConfigurationError
from .finding import Found, identity_of
from .io_thread import IOThread
from .owner import new_client, presence
from .persistence import login_from_json, login_to_json, process_from_json, process_to_json
from .server_files import ServerFile

FLUSH_TIMEOUT = 1.0
"""Seconds that the end of the process waits for what is not written yet."""


class KnownKernels:
    """One file for a server. As in Jupyter's connection files, the kernels' keys are in it; passwords are not.

    Two servers that were started with the same directories share it: each keeps the other's kernels in it, while that one lives.
    """

    def __init__(self, path: Path) -> None:
        self._file = ServerFile(path)
        self._lock = threading.Lock()
        self._kernels: dict[str, dict[str, Any]] = {}
        """By id: their records, without the client."""

    @cached_property
    def _client(self) -> str:
        return new_client()

    def earlier(self, password: str | None) -> list[Found]:
        """The kernels of earlier runs that no living process has. They are this one's from now on, until they are dropped."""
        kernels = []
        for record in self._records():
            with suppress(KeyError, TypeError, ValueError, AttributeError, ConfigurationError):
                if presence(str(record["client"]), connected=False) != "alive":
                    kernel = found_from_json(record, password)
                    kernels.append(kernel)
                    self._kernels[kernel.kernel_id] = found_to_json(kernel)
        if kernels:
            self._file.write(self._content)
        return kernels

    def put(self, kernel: Found) -> None:
        """There is such a kernel now. Callable on any thread; does not wait."""
        with suppress(RuntimeError):  # the process is ending
            IOThread.current().submit(self._put(kernel))

    def drop(self, kernel_id: str) -> None:
        """It is no more. Callable on any thread; does not wait."""
        try:
            IOThread.current().submit(self._drop(kernel_id))
        except RuntimeError:
            self._change(kernel_id, None)

    def flush(self) -> None:
        self._file.flush(FLUSH_TIMEOUT)

    async def _put(self, kernel: Found) -> None:
        before = self._kernels.get(kernel.kernel_id) or {}
        same = before.get("process") == process_to_json(kernel.process)
        identity = kernel.identity or (before["identity"] if same else "") or identity_of(kernel)
        self._change(kernel.kernel_id, found_to_json(replace(kernel, identity=identity)))

    async def _drop(self, kernel_id: str) -> None:
        self._change(kernel_id, None)

    def _change(self, kernel_id: str, record: dict[str, Any] | None) -> None:
        with self._lock:
            if self._kernels.get(kernel_id) == record:
                return
            if record is None:
                del self._kernels[kernel_id]
            else:
                self._kernels[kernel_id] = record
        self._file.write(self._content)

    def _content(self) -> Any:
        with self._lock:
            own = dict(self._kernels)
        others = [record for record in self._records() if self._is_anothers(record, own)]
        return {"kernels": [*others, *({**record, "client": self._client} for record in own.values())]}

    def _is_anothers(self, record: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
        client = str(record.get("client") or "")
        return (
            client != self._client
            and record.get("kernel_id") not in own
            and presence(client, connected=False) == "alive"
        )

    def _records(self) -> list[Mapping[str, Any]]:
        content = self._file.read()
        records = content.get("kernels") if isinstance(content, dict) else None
        return [each for each in records if isinstance(each, dict)] if isinstance(records, list) else []


def found_to_json(kernel: Found) -> dict[str, Any]:
    """Plain JSON for `found_from_json`, without the password."""
    return {
        "kernel_id": kernel.kernel_id,
        "kernel_name": kernel.kernel_name,
        "process": process_to_json(kernel.process),
        "login": login_to_json(kernel.login),
        "key": kernel.key,
        "signature_scheme": kernel.signature_scheme,
        "encryption": None if kernel.encryption is None else dict(kernel.encryption),
        "annotations": dict(kernel.annotations),
        "execution_state": kernel.execution_state,
        "identity": kernel.identity,
    }


def found_from_json(record: Mapping[str, Any], password: str | None) -> Found:
    """The inverse of `found_to_json`. Raises what the parts of a damaged record raise."""
    encryption = record["encryption"]
    return Found(
        kernel_id=str(record["kernel_id"]),
        kernel_name=str(record["kernel_name"]),
        process=process_from_json(record["process"]),
        login=login_from_json(record["login"], password),
        key=str(record["key"]),
        signature_scheme=str(record["signature_scheme"]),
        encryption=None if encryption is None else dict(encryption),
        annotations=dict(record["annotations"]),
        execution_state=str(record["execution_state"]),
        identity=str(record["identity"]),
    )


_known: list[KnownKernels] = []


def use_known(known: KnownKernels) -> None:
    """Have this process's kernels written there."""
    _known[:] = [known]
    atexit.register(known.flush)


def remember_kernel(kernel: Found) -> None:
    """It runs, or is awaited. Does nothing in processes whose kernels nobody will look for."""
    for known in _known:
        known.put(kernel)


def forget_kernel(kernel_id: str) -> None:
    """It is no more."""
    for known in _known:
        known.drop(kernel_id)
