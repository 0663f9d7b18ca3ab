"""Which host a kernel goes to. Decides, and never touches the network."""

from .balancing import choose, index_after
from .pool import HostPool, Reservation

__all__ = ["HostPool", "Reservation", "choose", "index_after"]
