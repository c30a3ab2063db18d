"""How many machines of which kind, and which threshold: the cheapest fleet that keeps its promise, as an integer programme.

For one threshold of the calibration, and with `x[p, k, n, f] = 1` where pool p has n machines of kind k that get the share f
of its pictures:

    minimise    sum cost_k n x[p, k, n, f]
    such that   sum over k, n, f of f x[p, k, n, f] = 1           every pool's pictures go somewhere
                sum over n, f of x[p, k, n, f] <= 1               a kind is in a pool once
                sum over p, n, f of n x[p, k, n, f] <= at_most_k  no more machines than there are
                W_p >= w[p, k, n, f] x[p, k, n, f]                a pool is as slow as its slowest kind
                sum over p of W_p <= p95

`w` is what `fleet.queueing` says a picture spends in that pool at most, at the level that the promise needs. The sum of
quantiles is an upper bound of the sum's for waits that are all long together, and above it for independent ones: on the safe
side. `scipy.optimize.milp` (HiGHS) solves it; one threshold is chosen in the end, so the best over thresholds is the best.

What the formulas say is then simulated, and if the simulation's 95th percentile is another, the plan is made again for an
objective that is moved by as much (`settle`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from allaprima.core.errors import SettingError
from allaprima.fleet.queueing import QueuedPool, StageWork, pool, split
from allaprima.fleet.simulator import EngineRule, MachineGroup, Rule, SimulationReport, simulate
from allaprima.fleet.workload import STEPPED, Choice, Demand, Kind, Layout

PROMISE = 0.95
"""Share of the pictures that the latency is promised to."""
LOWEST_LEVEL = 0.8
"""Below it the sum of quantiles is no upper bound any more."""
WEIGHTS = (0.25, 0.5, 0.75, 1.0)
"""Shares of a pool's pictures that one kind may get."""
NEARLY = 1.01
"""More machines than bring a pool within this of what it takes when nobody waits don't help."""
MANY = 8
"""Times the fewest machines that keep up: more aren't tried."""
FINE, COARSE = 100, 10
"""Counts go up by one, from 100 machines on by one in a hundred, and by a tenth of what is beyond the fewest."""


@dataclass(frozen=True)
class Assigned:
    """Machines of one kind in one pool."""

    pool: str
    kind: Kind
    machines: int
    weight: float
    """Share of the pool's pictures."""
    seconds: float
    """What the slow pictures spend here."""
    busy: float
    occupied: float
    """Share of the places of its fullest stage that are taken."""

    @property
    def cost(self) -> float:
        """An hour."""
        return self.kind.cost * self.machines


@dataclass(frozen=True)
class FleetPlan:
    """A fleet for one threshold."""

    layout: Layout
    choice: Choice
    assigned: tuple[Assigned, ...]
    p95: float
    """By the formulas, in seconds."""
    rate: float
    seen: SimulationReport | None = None
    """What the simulation saw of it."""

    @property
    def cost(self) -> float:
        """An hour."""
        return sum(a.cost for a in self.assigned)

    @property
    def cost_a_picture(self) -> float:
        """At the demand's rate."""
        return self.cost / 3600 / self.rate

    @property
    def machines(self) -> int:
        """All of them."""
        return sum(a.machines for a in self.assigned)

    def groups(self) -> dict[str, list[MachineGroup]]:
        """For the simulator."""
        found: dict[str, list[MachineGroup]] = {p: [] for p in self.layout.pools}
        for a in self.assigned:
            found[a.pool].append(MachineGroup(a.kind, a.machines, a.weight))
        return found


@dataclass(frozen=True)
class Infeasible:
    """Why there is no fleet for a threshold, and what is nearest."""

    layout: Layout
    choice: Choice
    limit: str
    """`latency` or `at_most`."""
    reason: str


@dataclass(frozen=True)
class _Column:
    """One `x`."""

    pool: str
    kind: Kind
    machines: int
    weight: float
    seconds: float
    made: QueuedPool

    @property
    def cost(self) -> float:
        return self.kind.cost * self.machines


@dataclass(frozen=True)
class _Promise:
    """A sufficient condition: pictures that need `stages` are in time at this level of each wait."""

    stages: tuple[str, ...]
    level: float


class Planner:
    """Fleets for one demand on some kinds of machines."""

    def __init__(self, demand: Demand, kinds: Sequence[Kind], rule: Callable[[], Rule] = EngineRule) -> None:
        if not kinds or len({k.name for k in kinds}) < len(kinds):
            raise SettingError(f"hardware {[k.name for k in kinds]}: one kind or more with names of their own are due.")
        self.demand, self.kinds, self.rule = demand, tuple(kinds), rule
        self._pools: dict[tuple[str, float, str, str, float, int], QueuedPool] = {}

    def plan(self, layout: Layout, choice: Choice, p95: float | None = None) -> FleetPlan | Infeasible:
        """The cheapest fleet for one threshold; `p95` in place of the demand's."""
        wanted = self.demand.p95 if p95 is None else p95
        found: list[FleetPlan] = []
        refused: list[Infeasible] = []
        for promise in promises(layout, choice.share):
            columns = self.columns(layout, choice, promise)
            taken = self._solve(layout, columns, wanted)
            if taken is None:
                refused.append(self._why_not(layout, choice, columns, wanted))
            else:
                found.append(self._planned(layout, choice, taken))
        return min(found, key=lambda p: p.cost) if found else refused[0]

    def settle(
        self, layout: Layout, choice: Choice, count: int = 20_000, seed: int = 0, rounds: int = 4
    ) -> FleetPlan | Infeasible:
        """The cheapest of up to `rounds` plans that keep the promise in the simulation; the last one if none does.

        Each round plans for the objective times how far the simulation was from it in the round before.
        """
        objective, best, last = self.demand.p95, None, None
        for _ in range(rounds):
            made = self.plan(layout, choice, objective)
            if isinstance(made, Infeasible):
                return best or last or made
            if last is not None and made.machines == last.machines and made.assigned == last.assigned:
                break
            last = self.simulated(made, count, seed)
            assert last.seen is not None
            if last.seen.p95 <= self.demand.p95 and (best is None or last.cost < best.cost):
                best = last
            objective *= min(max(self.demand.p95 / last.seen.p95, 0.7), 1.3)
        return best or last or self.plan(layout, choice)

    def simulated(self, plan: FleetPlan, count: int = 20_000, seed: int = 0) -> FleetPlan:
        """The same with what the simulation saw of `count` pictures."""
        rounds = plan.p95 * self.demand.rate
        warm_up = int(max(count / 10, min(3 * rounds, count)))
        seen = simulate(
            self.demand, plan.layout, plan.groups(), plan.choice.share, count, warm_up, seed, self.rule
        )  # fmt: skip
        return FleetPlan(plan.layout, plan.choice, plan.assigned, plan.p95, plan.rate, seen)

    def columns(self, layout: Layout, choice: Choice, promise: _Promise) -> list[_Column]:
        """Every count of every kind in every pool that may be worth it."""
        weights = WEIGHTS if len(self.kinds) > 1 else (1.0,)
        return [
            column
            for name in layout.pools
            for kind in self.kinds
            for weight in weights
            for column in self._counts(layout, choice.share, promise, name, kind, weight)
        ]

    def _counts(
        self, layout: Layout, share: float, promise: _Promise, name: str, kind: Kind, weight: float
    ) -> list[_Column]:
        def column(n: int) -> _Column:
            made = self._pool(layout, share, name, kind, weight, n)
            stages = [s for s in layout.pools[name] if s in promise.stages]
            return _Column(name, kind, n, weight, made.seconds(stages, promise.level) if stages else 0.0, made)

        most = 10**9 if kind.at_most is None else kind.at_most
        if share == 0 and layout.student and not {*layout.pools[name]} - {"teacher", "decode"}:
            return [_Column(name, kind, 0, weight, 0.0, self._pool(layout, share, name, kind, weight, 1))]
        n = fewest = self.fewest(layout, share, name, kind, weight)
        enough = NEARLY * sum(
            self.demand.steps(s, layout.student) * kind.mean(s) for s in layout.pools[name] if s in promise.stages
        )
        found: list[_Column] = []
        while n <= min(most, MANY * fewest + MANY):
            found.append(column(n))
            if found[-1].seconds <= enough:
                break
            n += max(1, n // FINE, (n - fewest) // COARSE)
        return found

    def fewest(self, layout: Layout, share: float, name: str, kind: Kind, weight: float = 1.0) -> int:
        """The least count that keeps up, by doubling and halving."""
        high = 1
        while self._overloaded(layout, share, name, kind, weight, high):
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            if self._overloaded(layout, share, name, kind, weight, middle):
                low = middle
            else:
                high = middle
        return high

    def _overloaded(self, layout: Layout, share: float, name: str, kind: Kind, weight: float, n: int) -> bool:
        made = self._pool(layout, share, name, kind, weight, n)
        most = self.demand.occupied_at_most
        return made.occupied > most or any(math.isinf(w.mean) for w in made.waits.values())

    def _pool(self, layout: Layout, share: float, name: str, kind: Kind, weight: float, n: int) -> QueuedPool:
        key = layout.name, share, name, kind.name, weight, n
        if key not in self._pools:
            self._pools[key] = self._make_pool(layout, share, name, kind, weight, n)
        return self._pools[key]

    def _make_pool(self, layout: Layout, share: float, name: str, kind: Kind, weight: float, n: int) -> QueuedPool:
        stages = layout.pools[name]
        works = {
            s: StageWork(
                self.demand.rate * weight * layout.visits(s, share), self.demand.steps(s, layout.student), kind.mean(s)
            )
            for s in stages
        }
        # What leaves the first pool comes in clumps at least as irregular as Poisson; the teacher gets a share of it.
        first = name == layout.pool_of("new")
        cv2 = self.demand.burstiness if first else max(1.0, self.demand.burstiness)
        cv2 = split(split(cv2, layout.visits(stages[0], share)), weight)
        return pool(n, kind.batch, works, cv2, _variation(kind, stages))

    def _solve(self, layout: Layout, columns: Sequence[_Column], p95: float | None) -> list[_Column] | None:
        """The cheapest columns; with `p95=None` the quickest instead. None if there are none."""
        pools = list(layout.pools)
        if any(not any(c.pool == p for c in columns) for p in pools):
            return None
        n, size = len(columns), len(columns) + len(pools)
        rows: list[tuple[Mapping[int, float], float, float]] = []
        for p in pools:
            rows.append(({i: c.weight for i, c in enumerate(columns) if c.pool == p}, 1, 1))
            for k in self.kinds:
                mine = [i for i, c in enumerate(columns) if c.pool == p and c.kind is k]
                rows.append((dict.fromkeys(mine, 1.0), 0, 1))
                rows.append(({n + pools.index(p): -1.0, **{i: columns[i].seconds for i in mine}}, -np.inf, 0))
        rows += [
            ({i: float(c.machines) for i, c in enumerate(columns) if c.kind is k}, 0, k.at_most)
            for k in self.kinds
            if k.at_most is not None
        ]
        if p95 is not None:
            rows.append(({n + j: 1.0 for j in range(len(pools))}, -np.inf, p95))
        costs = np.zeros(size)
        if p95 is None:
            costs[n:] = 1
        else:
            costs[:n] = [c.cost for c in columns]
        found = milp(
            costs,
            integrality=np.r_[np.ones(n), np.zeros(len(pools))],
            bounds=Bounds(0, np.r_[np.ones(n), np.full(len(pools), np.inf)]),
            constraints=LinearConstraint(*_matrix(rows, size)),
            options={"mip_rel_gap": 1e-6, "time_limit": 60},
        )
        return None if found.x is None else [c for c, x in zip(columns, found.x[:n], strict=True) if x > 0.5]

    def _planned(self, layout: Layout, choice: Choice, taken: Sequence[_Column]) -> FleetPlan:
        slowest = {p: max(c.seconds for c in taken if c.pool == p) for p in layout.pools}
        assigned = tuple(
            Assigned(c.pool, c.kind, c.machines, c.weight, c.seconds, c.made.busy if c.machines else 0.0,
                     c.made.occupied if c.machines else 0.0)
            for c in taken
        )  # fmt: skip
        return FleetPlan(layout, choice, assigned, sum(slowest.values()), self.demand.rate)

    def _why_not(self, layout: Layout, choice: Choice, columns: Sequence[_Column], p95: float) -> Infeasible:
        """Which limit is in the way: with others out of the way, what would be possible."""
        endless = Planner(self.demand, [_endless(k) for k in self.kinds])
        promise = promises(layout, choice.share)[0]
        everything = endless.columns(layout, choice, promise)
        quickest = endless._solve(layout, everything, None)
        assert quickest is not None
        best = endless._planned(layout, choice, quickest).p95
        if best > p95:
            return Infeasible(
                layout, choice, "latency",
                f"p95={p95:.4g} s can't be met at threshold {choice.threshold:.4g}, layout {layout.name}, with any number of"
                f" machines: the steps alone take {best:.4g} s. Nearest: p95 of {_above(best)} s; or fewer steps, a smaller"
                " batch, faster hardware.",
            )  # fmt: skip
        cheapest = endless._solve(layout, everything, p95)
        reason = "the hardware there is (at_most) isn't enough"
        if cheapest is not None:
            need: dict[str, int] = {}
            for c in cheapest:
                need[c.kind.name] = need.get(c.kind.name, 0) + c.machines
            limits = {k.name: k.at_most for k in self.kinds}
            said = ", ".join(f"{m} {k} (at_most={limits[k]})" for k, m in need.items())
            reason += f" at threshold {choice.threshold:.4g}, layout {layout.name}. Nearest: {said}"
        slow = self._solve(layout, columns, None)
        if slow is not None:
            reason += f"; or p95 of {_above(self._planned(layout, choice, slow).p95)} s with what there is"
        else:
            reason += f"; what there is can't keep up with {self.demand.rate:.4g} pictures a second at any latency"
        return Infeasible(layout, choice, "at_most", reason + ".")


def promises(layout: Layout, share: float) -> list[_Promise]:
    """Conditions of which each is enough for 95 of 100 pictures in time.

    Escalated pictures take so much longer that drafts which are accepted are in time whenever those are: `1 - .05 / share`
    of the escalated ones must be. If fewer than 5 in 100 are escalated, they may all be late, and the accepted ones must
    make up for it.
    """
    every = tuple(s for stages in layout.pools.values() for s in stages)
    late = 1 - PROMISE
    if not layout.student:
        return [_Promise(every, PROMISE)]
    found: list[_Promise] = []
    if share < late:
        short = tuple(s for s in every if s not in ("teacher", "decode"))
        found.append(_Promise(short, 1 - (late - share) / (1 - share)))
    if share > 0:
        found.append(_Promise(every, max(LOWEST_LEVEL, 1 - late / share)))
    return found


def best_of(plans: Sequence[FleetPlan], quality: float | None, cost_at_most: float | None) -> FleetPlan | None:
    """The cheapest at least so good, or the best that costs at most so much an hour; None if there is none.

    Where qualities aren't known, more of the teacher counts as better.
    """

    def worth(p: FleetPlan) -> tuple[float, float]:
        known = not math.isnan(p.choice.quality)
        return (p.choice.quality if known else p.choice.share), -p.cost

    if cost_at_most is not None:
        return max((p for p in plans if p.cost <= cost_at_most), key=worth, default=None)
    good = [p for p in plans if quality is None or p.choice.quality >= quality]
    return min(good, key=lambda p: (p.cost, -worth(p)[0]), default=None)


def _variation(kind: Kind, stages: Sequence[str]) -> float:
    """Squared variation of a place's time: of the stage that holds it longest, by its calls' own variation."""
    stage = next((s for s in stages if s in STEPPED), stages[-1])
    times = np.asarray(kind.seconds[stage], dtype=float)
    return float(times.var() / times.mean() ** 2) if len(times) > 1 and times.mean() else 0.0


def _endless(kind: Kind) -> Kind:
    return Kind(kind.name, kind.cost, kind.batch, kind.seconds, None, kind.measured)


def _above(seconds: float) -> str:
    """Rounded up, so that what is said is possible."""
    digits = 10.0 ** (math.floor(math.log10(seconds)) - 2)
    return f"{math.ceil(seconds / digits * 1.001) * digits:.4g}"


def _matrix(rows: Sequence[tuple[Mapping[int, float], float, float]], size: int) -> tuple[csr_array, Any, Any]:
    """Coefficients and both ends of each row: arrays, which scipy takes and its types call numbers."""
    where = [(r, i, v) for r, (coefficients, _, _) in enumerate(rows) for i, v in coefficients.items()]
    r, i, v = (np.array(column) for column in zip(*where, strict=True))
    matrix = csr_array((v, (r, i)), shape=(len(rows), size))
    return matrix, np.array([low for _, low, _ in rows]), np.array([high for _, _, high in rows])
