"""The balancing policies as plain functions: from hosts, loads and health to an order in which to ask the hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distributed_provisioner.models import HostAddress, Policy


def choose(
    policy: Policy,
    hosts: Sequence[HostAddress],
    index: int,
    loads: Mapping[HostAddress, int],
    unwell: Mapping[HostAddress, int],
) -> tuple[int, ...]:
    """All positions in `hosts`, the best first.

    Round-robin starts at `index` and goes once around. Least-connection goes by `loads` (kernels of this process on the
    host; a host that is not in it has none), ties in the order of the list. Hosts in `unwell` come last in either case, the
    least bad of them (the lowest number) first, so that a launch never fails without having asked every host.
    """
    size = len(hosts)
    if policy == "round-robin":
        order = [(index + step) % size for step in range(size)]
    else:
        order = sorted(range(size), key=lambda position: loads.get(hosts[position], 0))
    return tuple(sorted(order, key=lambda position: unwell.get(hosts[position], 0)))


def index_after(size: int, position: int) -> int:
    """The round-robin index once the host at `position` has been taken. Hosts between the old index and it count as taken."""
    return (position + 1) % size
