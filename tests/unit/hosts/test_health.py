"""What failures, successes, time and connections make of a host, and which hosts launches then avoid."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from distributed_provisioner.hosts import Health, HostPool, HostState, Reservation
from distributed_provisioner.hosts.health import BREAK_AFTER, LONGEST_DELAY
from distributed_provisioner.models import HostAddress, HostCondition, LaunchRequest, Policy

from .launches import HOSTS, A, B, C, Clock, request


@pytest.fixture
def known() -> dict[HostAddress, HostCondition]:
    """What the connections know."""
    return {}


@pytest.fixture
def pool(clock: Clock, known: dict[HostAddress, HostCondition]) -> HostPool:
    pool = HostPool(clock=clock, jitter=lambda: 0.0)
    pool.ask(lambda address, login: known.get(address, HostCondition()))
    return pool


def take(pool: HostPool, wanted: LaunchRequest | None = None) -> Reservation:
    reservation = pool.reserve(wanted or request())
    assert reservation is not None
    return reservation


def names(pool: HostPool, count: int, wanted: LaunchRequest | None = None) -> str:
    """The hosts of the next launches, each of which works."""
    taken = ""
    for _ in range(count):
        with take(pool, wanted) as reservation:
            taken += reservation.address.host
            reservation.worked()
            reservation.commit()
    return taken


def break_down(pool: HostPool, clock: Clock, address: HostAddress) -> None:
    """Failures in a row until the breaker is open."""
    while pool.state(address) is not HostState.BROKEN:
        pool.report_failure(address)
        if pool.state(address) is HostState.FAILING:
            clock.now += LONGEST_DELAY


# --- the breaker ---------------------------------------------------------------------------------------------------------------------


def test_a_host_that_failed_again_and_again_gets_one_launch_at_a_time(pool: HostPool, clock: Clock) -> None:
    """If it fails: a host that is half dead gets every launch of a burst once its pause is over, and each of them waits for it."""
    break_down(pool, clock, B)
    assert names(pool, 4) == "acac"
    clock.now += LONGEST_DELAY
    assert pool.state(B) is HostState.HALF_OPEN
    trial = take(pool, request(B, A))
    assert trial.address == B
    assert pool.state(B) is HostState.ON_TRIAL
    assert names(pool, 4) == "acac"
    trial.worked()
    trial.commit()
    assert pool.state(B) is HostState.WELL
    assert "b" in names(pool, 3)


def test_a_trial_that_fails_makes_the_next_pause_longer(pool: HostPool, clock: Clock) -> None:
    """If it fails: a dead host costs a launch its connect_timeout every few seconds, for ever."""
    break_down(pool, clock, B)
    pauses = []
    for _ in range(5):
        start = clock.now
        while pool.state(B) is HostState.BROKEN:
            clock.now += 0.5
        pauses.append(clock.now - start)
        with take(pool, request(B)) as trial:
            trial.failed()
        assert pool.state(B) is HostState.BROKEN
    assert pauses == [4, 8, 16, 32, 60]


@pytest.mark.parametrize("end", ["cancelled", "kernel's own fault"])
def test_a_trial_that_says_nothing_about_the_host_lets_the_next_one_try(
    pool: HostPool, clock: Clock, end: str
) -> None:
    """If it fails: a host is never used again after somebody pressed Stop in the wrong moment."""
    break_down(pool, clock, B)
    clock.now += LONGEST_DELAY
    with pytest.raises(RuntimeError), take(pool, request(B)):
        raise RuntimeError(end)
    assert pool.state(B) is HostState.HALF_OPEN
    assert take(pool, request(B)).address == B
    assert pool.state(B) is HostState.ON_TRIAL


def test_a_burst_that_fails_of_one_cause_counts_as_one_failure(pool: HostPool, clock: Clock) -> None:
    """If it fails: an sshd that restarts in the moment of twenty launches sets its host aside for a minute."""
    burst = [take(pool, request(B)) for _ in range(20)]
    clock.now += 5
    for reservation in burst:
        with reservation:
            reservation.failed()
    assert pool.state(B) is HostState.FAILING
    clock.now += 1.1
    assert pool.state(B) is HostState.WELL


def test_a_restart_and_a_kernel_that_is_found_again_are_no_trials(pool: HostPool, clock: Clock) -> None:
    """If it fails: a kernel that stays on a host for days keeps others away from it."""
    break_down(pool, clock, B)
    clock.now += LONGEST_DELAY
    held = pool.reserve_at(B)
    assert pool.state(B) is HostState.HALF_OPEN
    held.release()


def test_of_hosts_that_are_all_unwell_the_least_bad_is_tried(
    pool: HostPool, clock: Clock, known: dict[HostAddress, HostCondition]
) -> None:
    """If it fails: after an outage of the whole cluster a launch is refused, or waits for the host that is surely down."""
    break_down(pool, clock, A)
    known[B] = HostCondition(unreachable=True)
    pool.report_failure(C)
    tried: list[HostAddress] = []
    while (reservation := pool.reserve(request(), tried)) is not None:
        tried.append(reservation.address)
        reservation.release()
    assert tried == [C, A, B]


# --- what connections know ------------------------------------------------------------------------------------------------------------


def test_a_drained_host_is_not_chosen_not_even_when_all_others_are_down(
    pool: HostPool, known: dict[HostAddress, HostCondition]
) -> None:
    """If it fails: kernels start on a host that is about to be switched off."""
    known[B] = HostCondition(drained=True)
    for host in (A, C):
        known[host] = HostCondition(unreachable=True)
    assert "b" not in names(pool, 6)
    known.update(dict.fromkeys((A, C), HostCondition(drained=True)))
    assert pool.reserve(request()) is None
    known.clear()
    assert set(names(pool, 3)) == {"a", "b", "c"}


def test_a_pin_goes_to_its_host_whatever_is_known_of_it(
    pool: HostPool, known: dict[HostAddress, HostCondition]
) -> None:
    """If it fails: a pinned kernel is refused without a word from its host, which may have been undrained since."""
    known[B] = HostCondition(drained=True)
    assert take(pool, request(pin=B)).address == B


def test_a_host_that_a_connection_cannot_reach_waits_until_it_is_back(
    pool: HostPool, known: dict[HostAddress, HostCondition]
) -> None:
    """If it fails: each launch waits for a host that another kernel's connection knows to be down."""
    known[A] = HostCondition(unreachable=True)
    assert names(pool, 4) == "bcbc"
    known.clear()
    assert "a" in names(pool, 3)


def test_the_pool_tells_how_its_hosts_are(
    pool: HostPool, clock: Clock, known: dict[HostAddress, HostCondition]
) -> None:
    """If it fails: nobody can see in a log why a host gets no kernels."""
    names(pool, 3)
    assert repr(pool) == "<HostPool hosts=3 kernels=3 unwell=0>"
    break_down(pool, clock, A)
    known[B] = HostCondition(drained=True)
    known[C] = HostCondition(unreachable=True)
    assert repr(pool) == "<HostPool hosts=3 kernels=3 unwell=3 broken=1 unreachable=1 drained=1>"


# --- everything at once -----------------------------------------------------------------------------------------------------------------


chances = st.floats(0, 1)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100), chances), max_size=30))
def test_no_host_is_set_aside_for_more_than_a_minute_nor_for_ever(
    story: list[tuple[bool, float, float]],
) -> None:
    """If it fails: a host that was mended gets no kernels until the server is restarted."""
    now, health = 0.0, Health()
    for works, pause, chance in story:
        health = health.worked() if works else health.failed(now, chance)
        assert health.until <= now + LONGEST_DELAY
        assert health.state(now + LONGEST_DELAY).is_well
        assert (health.state(now) is HostState.BROKEN) == (health.failures >= BREAK_AFTER)
        now += pause


class Pool(RuleBasedStateMachine):
    """Launches that begin and end in any order, on hosts that fail, are drained, vanish and come back."""

    launches = Bundle("launches")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.known: dict[HostAddress, HostCondition] = {}
        self.pool = HostPool(clock=self.clock, jitter=lambda: 0.5)
        self.pool.ask(lambda address, login: self.known.get(address, HostCondition()))
        self.under_way: list[Reservation] = []

    @rule(target=launches, policy=st.sampled_from(["round-robin", "least-connection"]))
    def begin(self, policy: Policy) -> Reservation | None:
        states = {host: self.pool.state(host) for host in HOSTS}
        reservation = self.pool.reserve(request(policy=policy))
        if reservation is None:
            assert set(states.values()) == {HostState.DRAINED}
            return None
        chosen = states[reservation.address]
        assert chosen is not HostState.DRAINED
        if not chosen.is_well:
            assert chosen == min(states.values())
        self.under_way.append(reservation)
        return reservation

    @rule(launch=consumes(launches), end=st.sampled_from(["worked", "failed", "cancelled"]))
    def end(self, launch: Reservation | None, end: str) -> None:
        if launch is None:
            return
        self.under_way.remove(launch)
        with launch:
            if end != "cancelled":
                getattr(launch, end)()
        if end == "worked" and self.known.get(launch.address) is None:
            assert self.pool.state(launch.address) is HostState.WELL

    @rule(host=st.sampled_from(HOSTS), drained=st.booleans(), unreachable=st.booleans())
    def learn(self, host: HostAddress, drained: bool, unreachable: bool) -> None:
        self.known[host] = HostCondition(drained, "", unreachable)
        if not (drained or unreachable):
            del self.known[host]

    @rule(seconds=st.floats(0.1, 100))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def counts_are_those_of_the_launches_under_way(self) -> None:
        for host in HOSTS:
            assert self.pool.load(host) == sum(launch.address == host for launch in self.under_way)

    @invariant()
    def no_trial_is_left_over(self) -> None:
        idle = set(HOSTS) - {launch.address for launch in self.under_way}
        assert all(self.pool.state(host) is not HostState.ON_TRIAL for host in idle)

    @invariant()
    def it_can_say_how_it_is(self) -> None:
        assert f"kernels={len(self.under_way)} " in repr(self.pool)


TestPool = Pool.TestCase
TestPool.settings = settings(deadline=None)
