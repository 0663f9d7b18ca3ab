"""The cables of a cluster: a bridge in a network namespace of its own, which ends with its last process.

    owner ── uplink ── bridge ── v-host1 ── eth0 of host1
                          └───── v-host2 ── eth0 of host2

With a delay, host1's cable is in two pieces that a process joins: bridge ── d-host1 ─ x-host1 ── relay ── v-host1.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from typing import NoReturn

from distributed_provisioner.testing import syscalls as sys_
from distributed_provisioner.testing.plan import HostPlan, Plan
from distributed_provisioner.testing.relay import packet_socket, relay


def ip(*commands: str, netns: str = "") -> None:
    """Run commands of ip(8), in this network namespace or in the one at the path `netns`."""
    argv = ["nsenter", f"--net={netns}", "--"] if netns else []
    done = subprocess.run(
        [*argv, "ip", "-batch", "-"],
        input="\n".join(commands) + "\n",
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise OSError(f"ip -batch, {'; '.join(commands)}: {done.stderr.strip()}")


class Switch:
    """The bridge that all hosts and the owner are plugged into; lives in the keeper's network namespace."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._relays: dict[str, int] = {}
        self._owner = f"/proc/{plan.owner}/ns/net"
        sys_.loopback_up()
        ip(
            "link add bridge type bridge forward_delay 0 mcast_snooping 0",
            "link set bridge addrgenmode none up",
            f"link add uplink type veth peer name {plan.uplink} netns {plan.owner}",
            "link set uplink addrgenmode none master bridge up",
        )
        ip(
            f"addr add {plan.primary}/24 dev {plan.uplink}",
            *([f"addr add {plan.primary6}/64 dev {plan.uplink} nodad"] if plan.primary6 else []),
            f"link set {plan.uplink} up",
            netns=self._owner,
        )

    def plug_in(self, host: HostPlan, pid: int) -> None:
        """Lay the cable to the network namespace of the process `pid`."""
        ip(
            f"link add v-{host.name} type veth peer name eth0 address {host.mac} netns {pid}",
            f"link set v-{host.name} addrgenmode none master bridge up",
        )

    def unplug(self, host: HostPlan) -> None:
        """Take the cable away, as when a host is switched off."""
        self._end_relay(host)
        with contextlib.suppress(OSError):  # the kernel is taking it away already
            ip(f"link del v-{host.name}")
        self._forget_neighbor(host)

    def cut(self, host: HostPlan) -> None:
        """No carrier."""
        ip(f"link set v-{host.name} down")

    def blackhole(self, host: HostPlan) -> None:
        """A carrier, and nothing comes through: the owner believes to know where the host is."""
        plan = self.plan
        ip(f"link set {self._port(host)} nomaster")
        neighbor = f"lladdr {host.mac} nud permanent dev {plan.uplink}"
        ip(
            *[f"neigh replace {address} {neighbor}" for address in (host.address, host.address6) if address],
            netns=self._owner,
        )

    def heal(self, host: HostPlan) -> None:
        """End `cut` and `blackhole`."""
        ip(f"link set v-{host.name} up", f"link set {self._port(host)} master bridge")
        self._forget_neighbor(host)

    def delay(self, host: HostPlan, milliseconds: float) -> None:
        """Add to the round trip of every frame to and from the host; 0 ends it."""
        self._end_relay(host)
        name = host.name
        if milliseconds <= 0:
            ip(f"link set v-{name} master bridge")
            return
        ip(
            f"link set v-{name} nomaster",
            f"link add d-{name} type veth peer name x-{name}",
            f"link set d-{name} addrgenmode none master bridge up",
            f"link set x-{name} addrgenmode none up",
        )
        ends = packet_socket(f"v-{name}"), packet_socket(f"x-{name}")
        pid = os.fork()
        if pid == 0:
            _relay_for_ever(*ends, milliseconds / 2000)
        self._relays[name] = pid
        for end in ends:
            end.close()

    def _port(self, host: HostPlan) -> str:
        return f"{'d' if host.name in self._relays else 'v'}-{host.name}"

    def _end_relay(self, host: HostPlan) -> None:
        pid = self._relays.pop(host.name, None)
        if pid is not None:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            ip(f"link del d-{host.name}")

    def _forget_neighbor(self, host: HostPlan) -> None:
        ip(
            *[f"neigh flush to {address}" for address in (host.address, host.address6) if address],
            netns=self._owner,
        )

    def close(self) -> None:
        """Take the owner's end away at once; the rest goes with the network namespace."""
        ip("link del uplink")


def _relay_for_ever(left: socket.socket, right: socket.socket, seconds: float) -> NoReturn:
    try:
        sys_.die_with_parent()
        relay(left, right, seconds)
    finally:
        os._exit(1)
