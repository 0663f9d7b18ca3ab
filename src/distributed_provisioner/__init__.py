"""A Jupyter kernel provisioner: kernels run on a set of hosts, reached over SSH."""

__version__ = "0.1.0"


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """Where Jupyter Server finds the extension that goes on with its kernels after a restart."""
    return [{"module": "distributed_provisioner.extension"}]
