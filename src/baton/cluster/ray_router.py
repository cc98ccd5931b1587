"""Ray Serve's router of a front: each call goes to the engine that it names, also to one that is leaving.

Serve copies this module by value into each process. So it holds no state, and names `desk` as a module.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from ray.serve.exceptions import RayServeException
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from baton.cluster import desk

_MOST_LEFT = 256


class EngineRouter(RequestRouter):
    """`to=` of a call names its engine. The front has chosen it (`cluster/route.py`); nothing is chosen here."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._left: OrderedDict[str, RunningReplica] = OrderedDict()

    @property
    def supports_rejection_protocol(self) -> bool:
        # Fronts hold the limits, so that no engine refuses a call. Asking first costs a message for each.
        return False

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        names = frozenset(replica.replica_id.unique_id for replica in replicas)
        for known in list(self.curr_replicas.values()):
            if known.replica_id.unique_id not in names:
                self._left[known.replica_id.unique_id] = known
        while len(self._left) > _MOST_LEFT:
            self._left.popitem(last=False)
        super().update_replicas(replicas)
        desk.DESK.there(self._deployment_id.app_name, self._deployment_id.name, names)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._left.pop(replica_id.unique_id, None)

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        # Serve's own would ask how long the engine's queue is, let few calls look for their engine at a time, and
        # never give one that leaves.
        name = pending_request.kwargs.get("to")
        if name is None:
            return await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        for replica in self.curr_replicas.values():
            if replica.replica_id.unique_id == name:
                return replica
        if name in self._left:
            return self._left[name]
        raise RayServeException(f"engine {name} is gone")

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """For a call that any engine may answer."""
        return [candidate_replicas]
