"""The fair queue's virtual clock: it advances by the work done divided by the number of clients that wait."""

from dataclasses import dataclass

import pytest

from allaprima.serving.admission import Place, WaitingRoom


@dataclass(eq=False)
class Waiting:
    place: Place


def requests(client, n, work=1.0, since=0.0):
    return [Waiting(Place(client, 0, None, since + i, work, 0)) for i in range(n)]


def serve(room, n):
    """Serve `n` requests; return their clients in order."""
    clients = []
    for _ in range(n):
        first = room.next(now=0.0)
        room.serve(first)
        clients.append(first.place.client)
    return clients


@pytest.mark.parametrize("others", [2, 5])
@pytest.mark.parametrize("work", [1.0, 4096.0])
def test_a_client_that_comes_later_gets_an_even_share_at_once(others, work):
    room = WaitingRoom(ageing=1e9)
    for c in range(others):
        room.add(requests(f"early {c}", 60, work))
    serve(room, others * 20)
    room.add(requests("late", 20, work, since=1000.0))
    clients = serve(room, (others + 1) * 4)
    # A clock that isn't divided by the clients that wait has run ahead of all of them: the newcomer would wait for
    # (others - 1) * 20 rounds.
    assert clients.count("late") in (4, 5), clients
    assert clients[: others + 1].count("late") == 1, clients
