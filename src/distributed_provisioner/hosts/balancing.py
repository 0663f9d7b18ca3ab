"""The balancing policies as plain functions: from hosts, loads and health to an order in which to ask the hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from distributed_provisioner.models import HostAddress, Policy


def choose(
    policy: Policy,
    hosts: Sequence[HostAddress],
    index: int,
    loads: Mapping[HostAddress, int],
    badness: Callable[[HostAddress], int],
) -> Iterator[int]:
    """All positions in `hosts`, the best first.

    Round-robin starts at `index` and goes once around. Least-connection goes by `loads` (kernels of this process on the
    host; a host that is not in it has none), ties in the order of the list. Hosts that are not well come last in either case, the
    least bad of them (the lowest number, 0 is well) first, so that a launch never fails without having asked every host.
    `badness` is asked for a host when its turn has come, and not before: nearly always the first one will do, of however many.
    """
    size = len(hosts)
    if policy == "round-robin":
        order: Sequence[int] = [(index + step) % size for step in range(size)]
    else:
        order = sorted(range(size), key=[loads.get(host, 0) for host in hosts].__getitem__)
    unwell: list[tuple[int, int]] = []
    for position in order:
        if bad := badness(hosts[position]):
            unwell.append((bad, position))
        else:
            yield position
    for _, position in sorted(unwell, key=lambda one: one[0]):
        yield position


def index_after(size: int, position: int) -> int:
    """The round-robin index once the host at `position` has been taken. Hosts between the old index and it count as taken."""
    return (position + 1) % size
