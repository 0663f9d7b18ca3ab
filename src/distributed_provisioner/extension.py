"""The extension of Jupyter Server: its kernels outlive it.

Enabled on installation (`etc/jupyter/jupyter_server_config.d/distributed_provisioner.json`); `jupyter server extension disable
distributed_provisioner`, or the option `adopt_kernels`, turns it off. Each of its steps is in `adoption.py`.
"""

from __future__ import annotations

from typing import Any

from .errors import ConfigurationError
from .owner import name_application


def _load_jupyter_server_extension(server: Any) -> None:
    """Called by Jupyter Server when its managers are there and before it answers HTTP."""
    from .adopted_kernels import is_served_here
    from .adoption import Adoption
    from .settings import ServerSettings

    if not is_served_here(server.kernel_manager):
        return
    name_application(server.root_dir, server.config_dir)
    try:
        settings = ServerSettings(config=server.config)
    except ConfigurationError as error:
        server.log.warning("No kernels of an earlier run are looked for: %s", error)
        return
    adoption = Adoption(server, settings)
    adoption.watch()
    if settings.settings.adopt_kernels:
        adoption.adopt()
