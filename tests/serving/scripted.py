"""An engine whose pictures are finished by the test's own word."""

import time

import torch

from allaprima.cascade.policy import Decision
from allaprima.cascade.result import Result
from allaprima.core.cost import Cost
from allaprima.serving.handle import Cancelled, Draft, Finished, RequestHandle, Started
from allaprima.serving.snapshot import Snapshot

EMPTY = Snapshot(
    0, {}, 0, 0, True, False, 0, 0, 0, 0, 0, 0, {}, None, None, {}, {}, {}, {}, 0.0, 0, 0, 0, None, ()
)  # fmt: skip


class ScriptedEngine:
    def __init__(self):
        self.clock = time.monotonic
        self.handles: list[RequestHandle] = []
        self.refusal: Exception | None = None
        self.account = EMPTY

    def submit(self, requests):
        if self.refusal is not None:
            raise self.refusal
        made = [RequestHandle(request, lambda handle: handle.tell(Cancelled())) for request in requests]
        self.handles += made
        return made

    def snapshot(self):
        return self.account

    def paint(self, handle, score=0.7, decision=Decision.ACCEPT, threshold=0.5):
        image = torch.full((3, 8, 8), 0.25)
        cost = Cost({"student": 4.0, "oracle": 1.0}, {"student": 0.2, "oracle": 0.1})
        if decision is not Decision.ACCEPT:
            cost.add("teacher", 6, 0.3)
        handle.tell(Started())
        handle.tell(Draft(image, score, threshold, decision))
        request = handle.request
        handle.tell(Finished(Result(request.request, image, image, score, threshold, decision, cost, request.settings)))
