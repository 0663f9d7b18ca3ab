"""How a kernel's messages travel: the server's half of the relay, which speaks ZMTP with clients here and records with the host."""

from .bridge import Bridge
from .link import Opener, Receiver, Writer
from .messages import Author
from .near import NearEnd
from .portions import portioned

__all__ = ["Author", "Bridge", "NearEnd", "Opener", "Receiver", "Writer", "portioned"]
