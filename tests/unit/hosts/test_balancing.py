"""The policies, with everything that can be thrown at them."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from distributed_provisioner.hosts import choose, index_after
from distributed_provisioner.models import HostAddress, Policy

policies = st.sampled_from(["round-robin", "least-connection"])
host_lists = st.lists(st.sampled_from([HostAddress(f"host{n}") for n in range(6)]), min_size=1, max_size=8)
loads_of = st.dictionaries(
    st.sampled_from([HostAddress(f"host{n}") for n in range(6)]), st.integers(0, 9), max_size=6
)
unwell_of = st.dictionaries(
    st.sampled_from([HostAddress(f"host{n}") for n in range(6)]), st.integers(1, 5), max_size=6
)


def by(unwell: dict[HostAddress, int]) -> Callable[[HostAddress], int]:
    return lambda host: unwell.get(host, 0)


@given(policies, host_lists, st.integers(0, 7), loads_of, unwell_of)
def test_every_host_is_a_candidate_once(
    policy: Policy,
    hosts: list[HostAddress],
    index: int,
    loads: dict[HostAddress, int],
    unwell: dict[HostAddress, int],
) -> None:
    """If it fails: a launch fails though a host was never asked."""
    order = choose(policy, hosts, index % len(hosts), loads, by(unwell))
    assert sorted(order) == list(range(len(hosts)))


@given(policies, host_lists, st.integers(0, 7), loads_of, unwell_of)
def test_unwell_hosts_come_last_and_the_least_bad_of_them_first(
    policy: Policy,
    hosts: list[HostAddress],
    index: int,
    loads: dict[HostAddress, int],
    unwell: dict[HostAddress, int],
) -> None:
    """If it fails: each launch waits for a host that is known to be down."""
    health = [unwell.get(hosts[p], 0) for p in choose(policy, hosts, index % len(hosts), loads, by(unwell))]
    assert health == sorted(health)


@given(host_lists, loads_of)
def test_least_connection_takes_the_least_loaded_and_ties_in_list_order(
    hosts: list[HostAddress], loads: dict[HostAddress, int]
) -> None:
    """If it fails: kernels pile up on one host."""
    order = choose("least-connection", hosts, 0, loads, by({}))
    keys = [(loads.get(hosts[p], 0), p) for p in order]
    assert keys == sorted(keys)


@given(host_lists, st.integers(0, 40))
def test_round_robin_goes_around_from_the_first(hosts: list[HostAddress], launches: int) -> None:
    """If it fails: the page's description of round-robin is wrong."""
    index, taken = 0, []
    for _ in range(launches):
        position = next(choose("round-robin", hosts, index, {}, by({})))
        taken.append(position)
        index = index_after(len(hosts), position)
    assert taken == [n % len(hosts) for n in range(launches)]


def test_a_host_that_is_passed_over_counts_as_taken() -> None:
    """If it fails: the host after an unwell one gets twice its share."""
    a, b, c = (HostAddress(name) for name in "abc")
    index, taken = 0, []
    for _ in range(4):
        position = next(choose("round-robin", (a, b, c), index, {}, by({b: 2})))
        taken.append(position)
        index = index_after(3, position)
    assert taken == [0, 2, 0, 2]


@given(policies, host_lists, st.integers(0, 7), loads_of)
def test_where_the_first_host_is_well_no_other_is_asked_how_it_is(
    policy: Policy, hosts: list[HostAddress], index: int, loads: dict[HostAddress, int]
) -> None:
    """If it fails: each launch on a large cluster asks every host's connection, and takes longer the more hosts there are."""
    asked: list[HostAddress] = []

    def badness(host: HostAddress) -> int:
        asked.append(host)
        return 0

    next(choose(policy, hosts, index % len(hosts), loads, badness))
    assert len(asked) == 1
