"""An engine whose pictures are finished by the test's own word."""

import time

import torch

from allaprima.cascade.policy import Decision
from allaprima.cascade.result import Result
from allaprima.core.cost import Cost
from allaprima.serving.snapshot import Snapshot
from allaprima.serving.ticket import Cancelled, Draft, Finished, Started, Ticket

EMPTY = Snapshot(
    0, {}, 0, 0, True, False, 0, 0, 0, 0, 0, 0, {}, None, None, {}, {}, {}, {}, 0.0, 0, 0, 0, None, ()
)  # fmt: skip


class ScriptedEngine:
    def __init__(self):
        self.clock = time.monotonic
        self.tickets: list[Ticket] = []
        self.refusal: Exception | None = None
        self.account = EMPTY

    def submit(self, asks):
        if self.refusal is not None:
            raise self.refusal
        made = [Ticket(ask, lambda ticket: ticket.tell(Cancelled())) for ask in asks]
        self.tickets += made
        return made

    def snapshot(self):
        return self.account

    def paint(self, ticket, score=0.7, decision=Decision.ACCEPT, threshold=0.5):
        image = torch.full((3, 8, 8), 0.25)
        cost = Cost({"student": 4.0, "oracle": 1.0}, {"student": 0.2, "oracle": 0.1})
        if decision is not Decision.ACCEPT:
            cost.add("teacher", 6, 0.3)
        ticket.tell(Started())
        ticket.tell(Draft(image, score, threshold, decision))
        ask = ticket.ask
        ticket.tell(Finished(Result(ask.request, image, image, score, threshold, decision, cost, ask.settings)))
