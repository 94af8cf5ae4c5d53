"""When to try again, and after how long.

Every call of the service may be repeated. Those that read change nothing. RecordInteractions is idempotent: an event
that is in the log already is answered DUPLICATE and changes nothing, so a call whose answer was lost is simply sent
again. That holds because the caller sets `timestamp_ms` (and `event_id`), and a retry sends the same bytes.

So the code decides alone. UNAVAILABLE: the server cannot be reached, drains or cannot write; nothing says that it will
be so in a moment. RESOURCE_EXHAUSTED with retry advice: its queue is full; without advice the request is too large, and
would be again. CANCELLED with no other word is what gRPC answers a call that reaches a server in its last moment: as UNAVAILABLE.
Every other code would come again, or, as DEADLINE_EXCEEDED, leaves no time.
"""
from __future__ import annotations

import random
from dataclasses import dataclass

import grpc


@dataclass(frozen=True, slots=True)
class Retry:
    """At most `attempts` tries within the call's deadline.

    The wait before try n+1 is drawn from 0 to min(most_s, first_s * 2^(n-1)) (full jitter, so that clients which failed
    together do not come back together). Advice of the server is a least wait, to which half as much jitter is added.
    """

    attempts: int = 5
    first_s: float = 0.05
    most_s: float = 2.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"Retry.attempts: {self.attempts} is below 1")
        if not 0 < self.first_s <= self.most_s:
            raise ValueError(f"Retry: needs 0 < first_s <= most_s, got {self.first_s} and {self.most_s}")

    def delay_s(self, attempt: int, code: grpc.StatusCode, advice_s: float | None) -> float | None:
        """Seconds to wait after try `attempt` (from 1) failed with `code`; None: give up."""
        if attempt >= self.attempts:
            return None
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and advice_s is None:
            return None
        if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
            return None
        if advice_s is not None:
            return advice_s * random.uniform(1, 1.5)
        return random.uniform(0, min(self.most_s, self.first_s * 2 ** (attempt - 1)))


NEVER = Retry(attempts=1)
