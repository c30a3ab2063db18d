"""How long pictures wait: formulas, what they are from, and where they are approximations.

- `erlang_c`: the M/M/c queue's probability of waiting (Erlang 1917), by the recursion of its Erlang B.
- `waiting`: Allen and Cunneen's G/G/c approximation, `Wq = C(c, a) / (c mu - lambda) * (Ca^2 + Cs^2) / 2` (A. O. Allen,
  Probability, Statistics, and Queueing Theory, 2nd ed. 1990, section 5.3; compared by Whitt 1993, "Approximations for the
  GI/G/m queue", Production and Operations Management 2(2)). It is exact for M/M/c, and Pollaczek and Khinchine's formula
  for M/G/1. Those who wait are taken to wait an exponential time, which is exact for M/M/c and else the queue's usual tail.
- `split`: variability of a stream of which a share is taken at random (Whitt 1983, "The Queueing Network Analyzer").
- `Executor`: our own approximation of one machine that works at several stages, each with a batch of fixed shape whose
  places are filled again after every call. A machine is not one server but `batch` of them, and a step of one stage takes
  longer by the steps of the others that run in between: a fixed point, since those run the more often the slower the round.

How far off all of it is was measured against `fleet.simulator`; docs/planning.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


def erlang_c(servers: int, offered: float) -> float:
    """Probability that an arrival waits in M/M/c, for `offered = lambda / mu` in [0, servers); 1 from there on."""
    if offered >= servers:
        return 1.0
    blocked = 1.0
    for c in range(1, servers + 1):
        blocked = offered * blocked / (c + offered * blocked)
    return servers * blocked / (servers - offered * (1 - blocked))


@dataclass(frozen=True)
class Wait:
    """A waiting time: nothing with probability `1 - probability`, else exponential. Seconds."""

    probability: float
    mean: float
    """Over all, those who don't wait too."""

    def quantile(self, level: float) -> float:
        """`W` with `P(wait <= W) = level`: `E[W | W > 0] ln(P(W > 0) / (1 - level))`, or 0."""
        if self.probability <= 1 - level or self.mean == 0:
            return 0.0
        return self.mean / self.probability * math.log(self.probability / (1 - level))


def waiting(servers: int, rate: float, service: float, arrival_cv2: float, service_cv2: float) -> Wait:
    """Allen-Cunneen: `servers` that each take `service` seconds, `rate` arrivals a second. Infinite when overloaded."""
    offered = rate * service
    if offered >= servers:
        return Wait(1.0, math.inf)
    if offered == 0:
        return Wait(0.0, 0.0)
    waits = erlang_c(servers, offered)
    return Wait(waits, waits * service / (servers - offered) * (arrival_cv2 + service_cv2) / 2)


def split(cv2: float, share: float) -> float:
    """Squared variation of the times between the arrivals of which a share is kept, each by a coin of its own."""
    return share * cv2 + 1 - share


@dataclass(frozen=True)
class StageWork:
    """One stage on a machine."""

    rate: float
    """Pictures a second that come to this stage, on this machine."""
    steps: int
    seconds: float
    """Of one call."""


@dataclass(frozen=True)
class Executor:
    """One machine that is given `works` and has `batch` places at each: what a step takes with the others' in between."""

    batch: int
    works: Mapping[str, StageWork]
    rounds: Mapping[str, float]
    """By stage: seconds from one of its steps to the next."""

    @classmethod
    def of(cls, batch: int, works: Mapping[str, StageWork]) -> Executor:
        """Solve `c_q = tau_q + sum over r != q of a_r tau_r`, the mean round of stage q.

        `a_r = 1 - exp(-lambda_r k_r c)` is the chance that stage r has anybody (a Poisson number of pictures is there,
        as in M/G/infinity); a stage of one call has somebody if anybody came in the round. Both grow with the round and
        are at most 1, so that the iteration rises to a fixed point.
        """
        rounds = {q: w.seconds for q, w in works.items()}
        for _ in range(200):
            new = {
                q: w.seconds + sum(_present(r, rounds[s], rounds[q]) * r.seconds for s, r in works.items() if s != q)
                for q, w in works.items()
            }
            done = all(math.isclose(new[q], rounds[q], rel_tol=1e-9, abs_tol=1e-12) for q in works)
            rounds = new
            if done:
                break
        return cls(batch, works, rounds)

    def inside(self, stage: str) -> float:
        """Seconds a picture spends at a stage once it has a place."""
        return self.works[stage].steps * self.rounds[stage]

    @property
    def occupied(self) -> float:
        """Mean share of places taken at the fullest stage; the machine keeps up below 1."""
        return max(w.rate * self.inside(q) / self.batch for q, w in self.works.items())

    @property
    def busy(self) -> float:
        """Share of the time that the machine computes, about: a call is made whenever somebody is there."""
        calls = sum(_present(w, self.rounds[q], self.rounds[q]) * w.seconds / self.rounds[q] for q, w in self.works.items())
        return min(1.0, calls)


def _present(work: StageWork, own_round: float, other_round: float) -> float:
    round_ = own_round if work.steps > 1 else other_round
    return -math.expm1(-work.rate * work.steps * round_)


@dataclass(frozen=True)
class QueuedPool:
    """Machines of one kind that share a queue: what the mean and the slow pictures spend there. Seconds."""

    inside: Mapping[str, float]
    """By stage, once there is a place."""
    waits: Mapping[str, Wait]
    """For a place, at the stages where places run out."""
    joining: float
    """At most: for the running call to end, when all machines are in one."""
    joins: float
    """Chance of that."""
    busy: float
    occupied: float
    """Share of places taken at the fullest stage; the pool keeps up below 1."""

    def seconds(self, stages: Sequence[str], level: float) -> float:
        """What a picture that needs `stages` spends here at most, at this level of each of its waits."""
        joining = self.joining * max(0.0, 1 - (1 - level) / self.joins) if self.joins > 0 else 0.0
        waits = sum(self.waits[s].quantile(level) for s in stages if s in self.waits)
        return sum(self.inside[s] for s in stages) + waits + joining

    def mean(self, stages: Sequence[str]) -> float:
        """The same on average."""
        waits = sum(self.waits[s].mean for s in stages if s in self.waits)
        return sum(self.inside[s] for s in stages) + waits + self.joins * self.joining / 2


def pool(machines: int, batch: int, works: Mapping[str, StageWork], arrival_cv2: float, service_cv2: float) -> QueuedPool:
    """A queue in front of machines that take from it whenever they have a place: G/G/c with `machines * batch` servers.

    `works` are all machines' together, in the order pictures go through them. The shared queue is for places at the first
    stage of several calls. At a later one (the teacher's, on a machine that does it all) a picture waits for a place where
    it is, however empty other machines are, but pictures were sent to where few were: something between `batch` servers and
    `machines * batch`. `sqrt(machines) * batch` was the nearest to the simulation; it is a fit, not a theorem.
    """
    executor = Executor.of(batch, {q: StageWork(w.rate / machines, w.steps, w.seconds) for q, w in works.items()})
    stepped = [q for q, w in works.items() if w.steps > 1] or [list(works)[-1]]
    waits: dict[str, Wait] = {}
    for q in stepped:
        servers = machines * batch if q == stepped[0] else round(math.sqrt(machines) * batch)
        rate = works[q].rate * servers / (machines * batch)
        waits[q] = waiting(servers, rate, executor.inside(q), arrival_cv2, service_cv2)
    # An arrival that finds all machines in a call waits for the first of them to end: one of `machines` uniform rests.
    longest = max(w.seconds for w in works.values())
    inside = {q: executor.inside(q) for q in works}
    joining = 2 * longest / (machines + 1)
    return QueuedPool(inside, waits, joining, executor.busy**machines, executor.busy, executor.occupied)
