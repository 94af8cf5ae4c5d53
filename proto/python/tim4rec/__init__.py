"""Client of tim4rec-server.

    from tim4rec import Client, Interaction, Query

    with Client("127.0.0.1:50051") as client:
        client.record("ada", [Interaction("50", timestamp_ms=1_700_000_000_000)], durable=True)
        print(client.recommend("ada", Query(k=5)).item_ids)

`Client` blocks, `AsyncClient` is for asyncio; both have the same methods. The messages of the wire contract are in
`tim4rec.v1`; tables of pandas and pyarrow in `tim4rec.frames`.
"""
from tim4rec._core import Tls, routing_key
from tim4rec.aio import AsyncClient, AsyncInteractionStream
from tim4rec.client import Client, InteractionStream
from tim4rec.errors import CallError
from tim4rec.retry import NEVER, Retry
from tim4rec.ring import Ring
from tim4rec.types import (BatchAck, Deleted, Interaction, InteractionResult, Outcome, Provenance, Query,
                           Recommendation, Recorded, ScoredItem, Tier, User, UserRecommendation)

__all__ = ["AsyncClient", "AsyncInteractionStream", "BatchAck", "CallError", "Client", "Deleted", "Interaction",
           "InteractionResult", "InteractionStream", "NEVER", "Outcome", "Provenance", "Query", "Recommendation",
           "Recorded", "Retry", "Ring", "ScoredItem", "Tier", "Tls", "User",
           "UserRecommendation", "routing_key"]
