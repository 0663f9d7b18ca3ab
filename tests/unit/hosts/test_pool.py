"""Reservations, counts, indexes and the health of hosts."""

from __future__ import annotations

import os

import pytest

from distributed_provisioner.hosts import HostPool, Reservation
from distributed_provisioner.models import HostAddress, LaunchRequest

from .launches import A, B, C, Clock, request


@pytest.fixture
def pool(clock: Clock) -> HostPool:
    return HostPool(clock=clock, jitter=lambda: 0.0)


def take(pool: HostPool, wanted: LaunchRequest, not_these: tuple[HostAddress, ...] = ()) -> str:
    reservation = pool.reserve(wanted, not_these)
    assert reservation is not None
    return reservation.address.host


def test_each_list_of_hosts_has_one_index_whichever_spec_it_came_from(pool: HostPool) -> None:
    """If it fails: two kernelspecs over the same hosts both begin with the first one."""
    assert [take(pool, request()) for _ in range(2)] == ["a", "b"]
    assert take(pool, request(B, A)) == "b"
    assert take(pool, request()) == "c"
    assert take(pool, request(B, A)) == "a"


def test_a_pin_gets_its_host_moves_no_index_and_counts(pool: HostPool) -> None:
    """If it fails: pinned kernels shift everybody else's, or are invisible to least-connection."""
    assert take(pool, request()) == "a"
    assert take(pool, request(pin=C)) == "c"
    assert take(pool, request(pin=C)) == "c"
    assert take(pool, request()) == "b"
    assert pool.load(C) == 2


def test_a_pin_has_no_second_choice(pool: HostPool) -> None:
    """If it fails: a kernel that was pinned runs somewhere else."""
    assert pool.reserve(request(pin=B), not_these={B}) is None


def test_least_connection_counts_kernels_of_every_spec(pool: HostPool) -> None:
    """If it fails: the balance is kept within a spec only."""
    held = [pool.reserve(request(A, B)), pool.reserve(request(B, C))]
    assert take(pool, request(policy="least-connection")) == "c"
    first = held[0]
    assert first is not None
    first.release()
    assert take(pool, request(A, C, policy="least-connection")) == "a"


def test_least_connection_ties_go_in_the_order_of_the_list(pool: HostPool) -> None:
    """If it fails: an idle cluster is not filled from its first host."""
    assert [take(pool, request(C, A, B, policy="least-connection")) for _ in range(4)] == ["c", "a", "b", "c"]


def test_two_users_on_a_machine_load_one_host_and_two_ports_are_two(pool: HostPool) -> None:
    """If it fails: a machine behind several users gets more than its share."""
    pool.reserve_at(HostAddress("a", "ann"))
    assert pool.load(HostAddress("A", "bob")) == 1
    assert pool.load(HostAddress("a", None, 2222)) == 0


def test_a_reservation_comes_back_unless_it_was_committed(pool: HostPool) -> None:
    """If it fails: failed launches stay in the counts for ever."""
    with Reservation(pool, A):
        assert pool.load(A) == 1
    assert pool.load(A) == 0
    with pytest.raises(RuntimeError), Reservation(pool, A):
        raise RuntimeError
    assert pool.load(A) == 0
    with Reservation(pool, A) as kept:
        kept.commit()
    assert pool.load(A) == 1
    kept.release()
    kept.release()
    assert pool.load(A) == 0
    assert "kernels=0" in repr(pool)


def test_a_failed_host_is_passed_over_and_tried_again_later(pool: HostPool, clock: Clock) -> None:
    """If it fails: a host that is down delays every launch, or one that is back is never used again."""
    pool.report_failure(B)
    assert [take(pool, request()) for _ in range(3)] == ["a", "c", "a"]
    clock.now += 1.1
    assert take(pool, request()) == "b"


def test_back_off_doubles_up_to_a_minute_and_success_ends_it(pool: HostPool, clock: Clock) -> None:
    """If it fails: a dead host is asked all the time, or a mended one waits for an hour."""
    delays = []
    for _ in range(9):
        pool.report_failure(B)
        start = clock.now
        while pool.is_unwell(B):
            clock.now += 0.5
        delays.append(clock.now - start)
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    pool.report_failure(B)
    pool.report_success(B)
    assert not pool.is_unwell(B)
    pool.report_failure(B)
    clock.now += 1.0
    assert not pool.is_unwell(B)


def test_all_unwell_hosts_are_asked_all_the_same(pool: HostPool) -> None:
    """If it fails: a launch fails at once after an outage of the whole cluster, though the hosts are back."""
    for host in (A, B, C):
        pool.report_failure(host)
    tried: tuple[HostAddress, ...] = ()
    while (reservation := pool.reserve(request(), tried)) is not None:
        tried += (reservation.address,)
    assert set(tried) == {A, B, C}


def test_jitter_only_shortens() -> None:
    """If it fails: all servers of a site ask a host that comes back in the same moment."""
    clock = Clock()
    pool = HostPool(clock=clock, jitter=lambda: 1.0)
    pool.report_failure(A)
    clock.now += 0.74
    assert pool.is_unwell(A)
    clock.now += 0.02
    assert not pool.is_unwell(A)


def test_a_forked_child_starts_with_an_empty_pool() -> None:
    """If it fails: a worker process counts its parent's kernels, and releases them."""
    reservation = HostPool.current().reserve_at(A)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, str(HostPool.current().load(A)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"0"
    os.close(reader)
    os.close(writer)
    assert HostPool.current().load(A) == 1
    reservation.release()
