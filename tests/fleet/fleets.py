"""Small fleets for tests."""

from allaprima.fleet.simulator import MachineGroup
from allaprima.fleet.workload import STAGES, Kind

ZERO = dict.fromkeys(STAGES, (0.0,))


def kind(name="gpu", cost=2.0, batch=8, at_most=None, **seconds):
    given = {"new": 0.01, "student": 0.05, "score": 0.06, "teacher": 0.08, "decode": 0.05, **seconds}
    return Kind(name, cost, batch, {s: (t,) for s, t in given.items()}, at_most)


def exponential(mean):
    """Draws for a machine whose score takes an exponential time, and all else none."""

    def draws(stage, rng):
        return (lambda: rng.exponential(mean)) if stage == "score" else (lambda: 0.0)

    return draws


def in_front_of(*groups):
    """A plain queue: these are the oracle's pool of layout `apart`, and all before them takes no time."""
    front = MachineGroup(Kind("front", 1.0, 1000, {**ZERO, "score": (1.0,)}), 1)
    return {"student": [front], "oracle": list(groups), "teacher": [front]}


def plain_queue(servers, mean):
    """c servers, one picture at a time, exponential times."""
    return in_front_of(MachineGroup(Kind("server", 1.0, 1, {**ZERO, "score": (mean,)}), servers, draws=exponential(mean)))
