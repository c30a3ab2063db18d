"""The fair queue's virtual clock: it advances by the work done divided by the number of clients that wait."""

import pytest
from toys import SETTINGS

from allaprima.cascade.policy import AlwaysPolicy, Decision
from allaprima.cascade.request import GenerationRequest
from allaprima.serving.handle import EngineRequest, RequestHandle
from allaprima.serving.in_flight import InFlightRequest
from allaprima.serving.queue import RequestQueue


def requests(client, n, work=1.0, since=0.0):
    request = EngineRequest(GenerationRequest("x", 0), SETTINGS, AlwaysPolicy(Decision.ACCEPT), client=client)
    return [InFlightRequest(RequestHandle(request, lambda _: None), None, None, since + i, 0, work=work) for i in range(n)]


def serve(queue, n):
    """Serve `n` requests; return their clients in order."""
    clients = []
    for _ in range(n):
        first = queue.next(now=0.0)
        queue.serve(first)
        clients.append(first.handle.request.client)
    return clients


@pytest.mark.parametrize("others", [2, 5])
@pytest.mark.parametrize("work", [1.0, 4096.0])
def test_a_client_that_comes_later_gets_an_even_share_at_once(others, work):
    queue = RequestQueue(ageing=1e9)
    for c in range(others):
        queue.add(requests(f"early {c}", 60, work))
    serve(queue, others * 20)
    queue.add(requests("late", 20, work, since=1000.0))
    clients = serve(queue, (others + 1) * 4)
    # A clock that isn't divided by the clients that wait has run ahead of all of them: the newcomer would wait for
    # (others - 1) * 20 rounds.
    assert clients.count("late") in (4, 5), clients
    assert clients[: others + 1].count("late") == 1, clients
