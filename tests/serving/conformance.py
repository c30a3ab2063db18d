"""What every engine must keep, whatever runs it: each picture is to the byte the one painted alone; none lost, none twice.

    cases = random_cases(60, seed=1)
    outcomes = play(engine, cases)          # anything with submit(asks) -> tickets, and drain(timeout)
    check(pipe, cases, outcomes)            # against `pipe`, one request at a time

Requests arrive at random times, some together, with random neighbours, settings, policies, priorities and clients; some are
taken back, some have deadlines, and some can't be painted: `broken` ones raise in their batch, `nan` ones give no numbers.
"""

import math
import random
import threading
import time
from dataclasses import dataclass, field

import torch
from toys import SETTINGS, Grey, Toy

from allaprima.cascade.policy import AlwaysPolicy, Decision, ThresholdPolicy
from allaprima.cascade.request import GenerationRequest
from allaprima.cascade.sequential import EarlyStop, SequentialPolicy
from allaprima.core.errors import DeadlinePassedError, PictureFailedError, QueueFullError
from allaprima.pipeline import AdaptivePipeline
from allaprima.serving.handle import LAST, Cancelled, Draft, EngineRequest, Failed, Finished, Started

OTHERS = (
    SETTINGS,
    SETTINGS.changed(student_steps=3, teacher_steps=5),
    SETTINGS.changed(strategy="regenerate", teacher_guidance=1, batch_size=3),
)
POLICIES = (
    ThresholdPolicy(0.5),
    ThresholdPolicy(0.4, Decision.REGENERATE),
    SequentialPolicy(0.6, regenerate_below=0.3, margin=math.inf),
    SequentialPolicy(0.55, 3, margin=math.inf),
    SequentialPolicy(0.7),
    SequentialPolicy(
        0.6,
        3,
        2,
        Decision.REGENERATE,
        teacher_threshold=0.8,
        noise="fresh",
        draft_stops=(EarlyStop(1, 0.3),),
        teacher_stops=(EarlyStop(2, 0.4),),
    ),
    AlwaysPolicy(Decision.ACCEPT),
    AlwaysPolicy(Decision.REGENERATE),
)
BROKEN, NOT_A_NUMBER = "broken", "nan"


def toy_pipe(**more):
    """A pair that raises for `broken` and paints nan for `nan`: a float of the prompt is what it paints."""
    return AdaptivePipeline(Toy(pinch=0.2), Toy(0.3, pinch=0.2), Grey(), SETTINGS, **more)


@dataclass
class Case:
    """Requests that arrive together."""

    at: float
    """Seconds after the first."""
    requests: list
    leave: list
    """Seconds after arrival at which each is taken back; None: never."""
    deadlines: list
    """Seconds after arrival; None: none."""


@dataclass
class Outcome:
    request: EngineRequest
    leaves: bool
    deadline: float | None
    events: list = field(default_factory=list)


def random_cases(n, seed, seconds=0.6, trouble=0.06, settings=OTHERS, policies=POLICIES, prompts=None):
    """`n` requests within `seconds`; a share `trouble` each is taken back, late, broken or not a number."""
    dice, cases, total = random.Random(seed), [], 0
    while total < n:
        requests = []
        for _ in range(min(dice.choice((1, 1, 1, 2, 4)), n - total)):
            odd, prompt = dice.random(), dice.choice(prompts or [f"{k / 20}" for k in range(21)])
            if prompts is None:
                prompt = BROKEN if odd < trouble else NOT_A_NUMBER if odd < 2 * trouble else prompt
            request = GenerationRequest(prompt, dice.randrange(2**40), index=total, attempt=dice.choice((0, 0, 0, 1)))
            more = {"priority": dice.choice((0, 0, 1)), "client": dice.choice("abc")}
            requests.append(EngineRequest(request, dice.choice(settings), dice.choice(policies), **more))
            total += 1
        leave = [dice.uniform(0, 0.1) if dice.random() < trouble else None for _ in requests]
        deadlines = [dice.choice((-1.0, 0.02, 600.0)) if dice.random() < 2 * trouble else None for _ in requests]
        cases.append(Case(dice.uniform(0, seconds), requests, leave, deadlines))
    return sorted(cases, key=lambda c: c.at)


def play(engine, cases, clock=time.monotonic, patience=120.0):
    """Submit each case at its time from a thread of its own, and drain; one outcome a request, in order of `index`."""
    outcomes, threads = {}, []

    def one(case):
        time.sleep(case.at)
        now = clock()
        requests = [
            EngineRequest(
                a.request, a.settings, a.policy, a.priority, None if d is None else now + d, a.client, a.adjustable
            )
            for a, d in zip(case.requests, case.deadlines, strict=True)
        ]
        handles = submit_patiently(engine, requests)
        for request, handle, leave, deadline in zip(case.requests, handles, case.leave, case.deadlines, strict=True):
            outcome = outcomes[request.request.index] = Outcome(request, leave is not None, deadline)
            handle.add_listener(outcome.events.append)
            if leave is not None:
                timer = threading.Timer(leave, handle.cancel)
                timer.start()
                threads.append(timer)

    callers = [threading.Thread(target=one, args=(case,)) for case in cases]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert engine.drain(patience), "accepted requests are never lost, so draining ends"
    for timer in threads:
        timer.join()
    return [outcomes[i] for i in sorted(outcomes)]


def submit_patiently(engine, requests):
    """A queue that is full is a reason to come again."""
    for _ in range(2000):
        try:
            return engine.submit(requests)
        except QueueFullError as e:
            assert e.retry_after > 0
            time.sleep(0.005)
    raise AssertionError("the queue stays full")


def alone(pipe, request):
    """The same request with nobody else, offline."""
    (result,) = pipe.stream([request.request], request.settings, request.policy)
    return result


def same(served, offline):
    """Bytes, scores, decisions and evaluations."""
    assert torch.equal(served.image, offline.image), served.request
    assert torch.equal(served.draft, offline.draft) if offline.draft is not None else served.draft is None
    assert served.record() == offline.record()
    assert served.cost.evaluations == offline.cost.evaluations
    assert served.settings == offline.settings


def check(pipe, cases, outcomes):
    """Every promise, for every request; returns how often each ending was seen."""
    assert [o.request.request.index for o in outcomes] == list(range(sum(len(c.requests) for c in cases))), "none is lost"
    seen = {}
    for outcome in outcomes:
        kinds = [type(e) for e in outcome.events]
        assert sum(k in LAST for k in kinds) == 1, f"one end each: {kinds}"
        assert kinds[-1] in LAST
        assert kinds[0] is Started or kinds in ([Failed], [Cancelled])
        assert all(k is Draft for k in kinds[1:-1])
        check_end(pipe, outcome, outcome.events[-1])
        seen[kinds[-1].__name__] = seen.get(kinds[-1].__name__, 0) + 1
    return seen


def check_end(pipe, outcome, last):
    prompt = outcome.request.request.prompt
    late = outcome.deadline is not None and outcome.deadline < 600
    if isinstance(last, Finished):
        assert prompt not in (BROKEN, NOT_A_NUMBER)
        assert outcome.deadline is None or outcome.deadline > 0, "nothing is painted after its deadline"
        same(last.result, alone(pipe, outcome.request))
        drafts = [e for e in outcome.events if isinstance(e, Draft)]
        given_up = sum(p.given_up and p.model == "student" for p in last.result.previews)
        assert len(drafts) == last.result.attempts - given_up
        if drafts:
            assert torch.equal(drafts[-1].image, last.result.draft)
            said = (drafts[-1].score, drafts[-1].threshold)
            assert said == (last.result.score, last.result.threshold)
        if drafts and not given_up:
            assert drafts[-1].decision == last.result.decision
    elif isinstance(last, Cancelled):
        assert outcome.leaves
    elif prompt in (BROKEN, NOT_A_NUMBER) and not late:
        assert isinstance(last.error, PictureFailedError), last.error
    else:
        assert isinstance(last.error, DeadlinePassedError) or prompt in (BROKEN, NOT_A_NUMBER), last.error
        assert late
