"""What a host answers to a launch: the kernel's process, and what Jupyter needs to talk to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..envelope import open_envelope
from ..errors import ProtocolError
from ..models import CHANNELS, HostAddress, LaunchRequest, RemoteProcess


def read_reply(
    reply: Mapping[str, Any], address: HostAddress, generation: int, request: LaunchRequest
) -> tuple[RemoteProcess, dict[str, Any]]:
    """The process, and the secrets that belong into its connection info. Raises ProtocolError."""
    host = str(address)
    try:
        where = dict(reply)
        if reply.get("envelope"):
            where.update(_from_envelope(open_envelope(reply["envelope"])))
        process = RemoteProcess(
            host=address,
            pid=int(where["pid"]),
            kernel_pid=int(where["kernel_pid"] or where["pid"]),
            pgid=int(where["pgid"]),
            generation=generation,
            kernel_transport=where["transport"],
            ip=str(where["ip"]),
            ports={channel: int(where["ports"][channel]) for channel in CHANNELS},
            directory=str(where.get("directory") or ""),
            notes=tuple(map(str, where.get("notes") or ())),
            relay=str(where.get("relay") or ""),
            details={
                "log": where.get("log"),
                "start": where.get("start"),
                "phases": dict(where.get("phases") or {}),
                "prefork": dict(where.get("prefork") or {}),
            },
        )
        info = {
            "key": str(where["key"]),
            "signature_scheme": str(where.get("signature_scheme") or "hmac-sha256"),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ProtocolError(
            f"The listener on {host} reported a launch that makes no sense ({type(error).__name__}: {error}). "
            "Is an older version of this package in use there?",
            host=host,
            kernel_id=request.kernel_id,
        ) from error
    if request.encryption and (process.kernel_transport != "ipc" or request.encrypt_ipc):
        info.update(request.encryption)
    return process, info


def _from_envelope(info: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        "ip": info["ip"],
        "key": info["key"],
        "ports": {channel: info[f"{channel}_port"] for channel in CHANNELS},
    }
    for name in ("transport", "signature_scheme"):
        if info.get(name):
            found[name] = info[name]
    return found
