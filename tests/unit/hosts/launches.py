"""Launches on three hosts, and a clock that a test sets."""

from __future__ import annotations

from distributed_provisioner.models import HostAddress, LaunchRequest, Policy

A, B, C = HOSTS = tuple(HostAddress(name) for name in "abc")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def request(
    *hosts: HostAddress, policy: Policy = "round-robin", pin: HostAddress | None = None
) -> LaunchRequest:
    return LaunchRequest("k", hosts or HOSTS, ("python",), "key", policy=policy, pin=pin)
