"""Connection info that a launcher encrypts by itself, for the public key that `{public_key}` in an argv stands for.

Our own launchers need not: nothing of theirs leaves the host except inside SSH. A launcher that wants to writes, instead of plain
connection info, one JSON object

    {"version": 1, "epk": BASE64, "nonce": BASE64, "data": BASE64}

where `epk` is an X25519 public key made for this one report (DER, SubjectPublicKeyInfo, as `{public_key}` is), `nonce` is 12 random
bytes, and `data` is the JSON of the connection info encrypted by AES-256-GCM, without associated data, its 16-byte tag at the end. The
AES key is 32 bytes of HKDF-SHA256 over the X25519 shared secret, without salt, with the info `distributed-provisioner connection info`.
"""

from __future__ import annotations

import base64
import json
import os
from typing import Any

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from .errors import ProtocolError

INFO = b"distributed-provisioner connection info"

_keys: dict[int, X25519PrivateKey] = {}


def public_key() -> str:
    """This process's public key: base64 of DER. Made at first use; a forked child makes its own."""
    der = (
        _private_key()
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return base64.b64encode(der).decode("ascii")


def open_envelope(text: str) -> dict[str, Any]:
    """The connection info in an envelope that was closed for `public_key()`.

    Raises:
        ProtocolError: it is no envelope, or was closed for another key, or was changed on its way.
    """
    try:
        envelope = json.loads(text)
        if envelope["version"] != 1:
            raise ProtocolError(
                f"A launcher sent an envelope of version {envelope['version']!r}. "
                "This server reads version 1: use the launcher that comes with it."
            )
        peer = serialization.load_der_public_key(base64.b64decode(envelope["epk"], validate=True))
        if not isinstance(peer, X25519PublicKey):
            raise TypeError("not an X25519 key")
        key = derive(_private_key(), peer)
        nonce, data = (base64.b64decode(envelope[name], validate=True) for name in ("nonce", "data"))
        info = json.loads(AESGCM(key).decrypt(nonce, data, None))
    except (InvalidTag, KeyError, TypeError, UnsupportedAlgorithm, ValueError) as error:
        raise ProtocolError(
            "A launcher's encrypted connection info cannot be opened. "
            "It has to be encrypted for the key that '{public_key}' in the argv stands for."
        ) from error
    if not isinstance(info, dict):
        raise ProtocolError("A launcher's encrypted connection info is not a JSON object. Mend the launcher.")
    return info


def derive(private: X25519PrivateKey, public: X25519PublicKey) -> bytes:
    """The AES key that both ends have."""
    kdf = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=INFO)
    return kdf.derive(private.exchange(public))


def _private_key() -> X25519PrivateKey:
    pid = os.getpid()
    if pid not in _keys:
        _keys.setdefault(pid, X25519PrivateKey.generate())
    return _keys[pid]
