"""A slow cable: frames between two interfaces, each held back for a time.

Packet sockets on two veth ends do this without a kernel that has netem and without /dev/net/tun. The
virtio header before each frame carries unfinished checksums and large segments along as they are.
"""

from __future__ import annotations

import collections
import os
import select
import socket
import time

_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_ETH_P_ALL = 3


def packet_socket(interface: str) -> socket.socket:
    """A socket that reads and writes whole frames on `interface` of this network namespace."""
    result = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    result.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    result.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    result.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    result.bind((interface, _ETH_P_ALL))
    return result


def relay(left: socket.socket, right: socket.socket, seconds: float) -> None:
    """Carry frames both ways for ever, each after `seconds`."""
    queue: collections.deque[tuple[float, socket.socket, bytes]] = collections.deque()
    poll = select.poll()
    others = {left.fileno(): (left, right), right.fileno(): (right, left)}
    for fd in others:
        poll.register(fd, select.POLLIN)
    while True:
        wait = None if not queue else max(0.0, queue[0][0] - time.monotonic()) * 1000
        for fd, _ in poll.poll(wait):
            source, target = others[fd]
            _drain(source, target, time.monotonic() + seconds, queue)
        now = time.monotonic()
        while queue and queue[0][0] <= now:
            _, target, frame = queue.popleft()
            try:
                os.write(target.fileno(), frame)
            except OSError:  # the cable is cut: the frame is lost
                continue


def _drain(
    source: socket.socket,
    target: socket.socket,
    due: float,
    queue: collections.deque[tuple[float, socket.socket, bytes]],
) -> None:
    for _ in range(256):
        try:
            queue.append((due, target, source.recv(1 << 17)))
        except OSError:
            return
