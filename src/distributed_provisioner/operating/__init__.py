"""What an operator asks of hosts: which kernels run where, whose they are, what they wrote; ending them; draining a host.

For programs that are no server: every function blocks its caller, and the work is done on the I/O thread.
"""

from .cluster import Ambiguous, Answers, Cluster, NoSuchKernel, Place
from .reports import FoundKernel, HostReport

__all__ = ["Ambiguous", "Answers", "Cluster", "FoundKernel", "HostReport", "NoSuchKernel", "Place"]
