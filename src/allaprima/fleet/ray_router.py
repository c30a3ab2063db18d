"""Which replica a job goes to. Ray imports this by name; nothing else may, for it needs Ray to be imported at all."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import FIFOMixin, RequestRouter


class LeastLoaded(FIFOMixin, RequestRouter):
    """Of all replicas the one with the fewest pictures in flight. (Serve's own router looks at two, at random.)"""

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """One rank: the router asks all of it for their load, and takes the least."""
        return [list(candidate_replicas)]
