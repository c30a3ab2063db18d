"""The waiting room: priorities that age, fair shares, deadlines; without an engine."""

import pytest
import torch
from toys import SETTINGS

from allaprima.cascade.policy import AlwaysPolicy, Decision
from allaprima.cascade.request import GenerationRequest
from allaprima.conditioning.edit import Edit, ImageInput
from allaprima.core.errors import SettingError
from allaprima.serving.handle import EngineRequest, RequestHandle
from allaprima.serving.in_flight import InFlightRequest, given_bytes, job_bytes, work
from allaprima.serving.queue import EngineLimits, RequestQueue


def who(name, client="a", priority=0, accepted=0.0, deadline=None, cost=1.0, held=0):
    request = EngineRequest(GenerationRequest(name, 0), SETTINGS, AlwaysPolicy(Decision.ACCEPT), priority, deadline, client)
    return InFlightRequest(RequestHandle(request, lambda _: None), None, None, accepted, 0, held, cost)


def name_of(item):
    return item.handle.request.request.prompt


def served(room, n, now=0.0):
    names = []
    for _ in range(n):
        first = room.next(now)
        room.serve(first)
        names.append(name_of(first))
    return names


def test_in_order_of_arrival_within_a_client():
    room = RequestQueue(30)
    room.add([who("1"), who("2", accepted=1), who("3", accepted=2)])
    assert served(room, 3) == ["1", "2", "3"]
    assert room.next(0) is None
    assert len(room) == 0


def test_a_client_that_floods_gets_no_more_than_its_share():
    room = RequestQueue(1e9)
    room.add([who(f"a{i}", "a", accepted=i) for i in range(20)])
    assert served(room, 4) == ["a0", "a1", "a2", "a3"]
    room.add([who(f"b{i}", "b", accepted=50 + i) for i in range(4)])
    order = served(room, 8)
    assert sum(name.startswith("b") for name in order) == 4, order
    assert sum(name.startswith("b") for name in order[:4]) == 2, "who comes later is served at once, in turns"


def test_shares_are_of_work_not_of_requests():
    room = RequestQueue(1e9)
    room.add([who(f"a{i}", "a", cost=3.0) for i in range(9)] + [who(f"b{i}", "b") for i in range(9)])
    order = served(room, 12)
    assert sum(name.startswith("b") for name in order) == 9, "three small ones for each large one"


def test_nobody_saves_up_a_share_while_away():
    room = RequestQueue(1e9)
    room.add([who("b", "b")])
    served(room, 1)
    room.add([who(f"a{i}", "a", accepted=i) for i in range(40)])
    served(room, 20)
    room.add([who(f"b{i}", "b", accepted=50 + i) for i in range(20)])
    order = served(room, 10)
    assert sum(name.startswith("b") for name in order) == 5, order


def test_what_is_known_of_clients_does_not_grow_with_their_number():
    room = RequestQueue(1e9)
    room.add([who("stays", "stays", priority=-1)])
    for i in range(2000):
        room.add([who(str(i), f"client {i}", accepted=i)])
        served(room, 1)
    assert len(room._had) < 20


def test_higher_priorities_go_first_and_lower_ones_age():
    room = RequestQueue(ageing=10)
    room.add([who("low", "a"), who("high", "b", priority=2, accepted=5)])
    assert served(room, 1, now=6) == ["high"]
    room.add([who("high", "b", priority=2, accepted=25)])
    assert name_of(room.next(26)) == "low", "26 s of waiting are two priorities, and its client has had less"
    assert name_of(room.next(15)) == "high"


def test_late_ones_and_leaving():
    room = RequestQueue(30)
    first, second = who("1", deadline=5.0, held=7), who("2", deadline=9.0, held=3)
    room.add([first, second])
    assert (room.bytes, room.late(4.9)) == (10, [])
    assert room.late(5.0) == [first]
    room.remove(first)
    assert (len(room), room.bytes, list(room)) == (1, 3, [second])
    with pytest.raises(ValueError):
        room.remove(first)


def test_bytes_and_work():
    picture = ImageInput.of(torch.zeros(3, 2, 2))
    edit = GenerationRequest("x", 1, edit=Edit(picture, 0.5, ImageInput.of(torch.zeros(1, 2, 2))), controls=(picture,))
    assert given_bytes(GenerationRequest("x", 1), SETTINGS) == 0
    assert given_bytes(edit, SETTINGS) == (3 + 1 + 3) * 4 * 4
    assert job_bytes(edit, SETTINGS) == given_bytes(edit, SETTINGS) + 4 * 3 * 4 * 4
    assert work(SETTINGS) == 4 * 5


@pytest.mark.parametrize("wrong", [{"queue": 0}, {"in_flight": 0}, {"bytes": 0}, {"ageing": 0}, {"patience": -1}])
def test_limits_that_nothing_fits_in(wrong):
    with pytest.raises(SettingError, match=next(iter(wrong))):
        EngineLimits(**wrong)
