"""A burst of launches and the caller's loop."""

from __future__ import annotations

import asyncio

from distributed_provisioner.turns import take_turn


async def test_others_have_their_turn_between_those_who_ask() -> None:
    """If it fails: thirty launches at once make a server's other users wait for all thirty."""
    order: list[str] = []

    async def launch(name: str) -> None:
        await take_turn()
        order.append(name)

    async def other() -> None:
        for _ in range(12):
            order.append("other")
            await asyncio.sleep(0)

    await asyncio.gather(other(), *(launch(name) for name in "abc"))
    turns = "".join("." if name == "other" else name for name in order)
    assert ".a" in turns
    for first, second in ("ab", "bc"):
        assert "." in turns[turns.index(first) : turns.index(second)]


def test_each_loop_has_turns_of_its_own() -> None:
    """If it fails: a second event loop of the process cannot launch (each nbclient run makes one)."""

    async def many() -> None:
        await asyncio.gather(*(take_turn() for _ in range(5)))

    for _ in range(3):
        asyncio.run(many())


async def test_one_who_is_cancelled_while_waiting_holds_nobody_up() -> None:
    """If it fails: one cancelled launch makes all later ones hang."""
    waiting = [asyncio.ensure_future(take_turn()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.wait_for(asyncio.gather(waiting[0], waiting[2], take_turn()), 5)
