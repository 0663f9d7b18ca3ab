"""One kernel, over all its launches: what is known of it, how it starts, what it is asked to do, and how it is taken over."""

from .remote_kernel import RemoteKernel

__all__ = ["RemoteKernel"]
