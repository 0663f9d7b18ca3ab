"""A Jupyter kernel provisioner: kernels run on a set of hosts, reached over SSH."""

__version__ = "0.1.0"
