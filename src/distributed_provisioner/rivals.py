"""Other installed packages that claim the names of this one. gateway-provisioners does."""

from __future__ import annotations

import re
from importlib.metadata import entry_points

DISTRIBUTION = "distributed-provisioner"
CLAIMS = (
    (
        "jupyter_client.kernel_provisioners",
        "distributed-provisioner",
        "the provisioner 'distributed-provisioner'",
    ),
    ("console_scripts", "jupyter-ssh-spec", "the command 'jupyter-ssh-spec'"),
)


def rival_claims() -> tuple[str, ...]:
    """One sentence for each other package that registers our provisioner or our command; empty where all is well."""
    rivals: dict[str, list[str]] = {}
    for group, name, what in CLAIMS:
        for entry in entry_points(group=group, name=name):
            owner = entry.dist.name if entry.dist is not None else ""
            if owner and _normalized(owner) != DISTRIBUTION:
                claims = rivals.setdefault(_normalized(owner), [])
                claims += [] if what in claims else [what]
    return tuple(
        f"The package {owner} is installed as well and claims {' and '.join(claims)}, too, so chance decides which one is used:"
        f" uninstall {owner}, or keep the two in environments of their own."
        for owner, claims in rivals.items()
    )


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
