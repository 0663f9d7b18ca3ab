"""Which host a kernel goes to. Decides, and never touches the network."""

from .balancing import choose, index_after
from .health import Health, HostState
from .pool import HostPool, Reservation

__all__ = ["Health", "HostPool", "HostState", "Reservation", "choose", "index_after"]
