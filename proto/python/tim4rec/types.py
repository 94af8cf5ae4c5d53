"""What goes into calls and comes out of them. Times are unix milliseconds; ids are UTF-8 of 1 to 256 bytes."""
from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from tim4rec.errors import CallError


@dataclass(frozen=True, slots=True)
class Interaction:
    """One event of a user.

    Without `event_id` the pair (timestamp_ms, item_id) is what identifies it: sending the same one again changes
    nothing. Give an `event_id` (at most 256 bytes) where the same item may come twice in one millisecond.
    """

    item_id: str
    timestamp_ms: int
    event_id: str = ""


class _Wire(enum.IntEnum):
    """An enum of the contract: a value that a newer server may send and this client does not know is UNSPECIFIED."""

    @classmethod
    def _missing_(cls, value: object) -> _Wire | None:
        return cls(0) if isinstance(value, int) and value != 0 else None


class Outcome(_Wire):
    """What became of an interaction."""

    UNSPECIFIED = 0
    APPLIED = 1
    DUPLICATE = 2  # it was stored before; nothing changed
    LATE_REFOLDED = 3  # stored in its place before later ones
    UNKNOWN_ITEM = 4  # stored; the model does not know the item
    REJECTED = 5  # not stored, `reason` says why; do not retry unchanged
    EXPIRED = 6  # not stored: maybe a repeat of one that retention has removed since; success for who retries


class Tier(_Wire):
    """Where the state behind an answer came from."""

    UNSPECIFIED = 0
    HOT = 1
    STORED = 2
    REBUILT = 3
    COLD_START = 4  # nothing is known of the user: the most popular items


@dataclass(frozen=True, slots=True)
class InteractionResult:
    outcome: Outcome
    reason: str = ""  # for REJECTED and EXPIRED: the field, its value and its limit


@dataclass(frozen=True, slots=True)
class Recorded:
    """The answer to `record`."""

    results: tuple[InteractionResult, ...]  # one per interaction, in order
    state_version: int  # for Query.min_state_version: read your own writes

    @property
    def rejected(self) -> list[tuple[int, str]]:
        """(index, reason) of the interactions that were not stored."""
        return [(i, r.reason) for i, r in enumerate(self.results) if r.outcome is Outcome.REJECTED]


@dataclass(frozen=True, slots=True)
class Query:
    """What to recommend.

    k: 1 to 1000 items. as_of_ms: the time the answer is for; 0 is now, later than the user's last event is what the
    state gives after that gap, earlier is the state as it was then. candidate_item_ids: rank only these, if any.
    min_state_version: wait until the user's state has it (read your own writes). model: "name@fingerprint", empty
    for the one that serves.
    """

    k: int = 10
    as_of_ms: int = 0
    exclude_seen: bool = True
    exclude_item_ids: Sequence[str] = ()
    candidate_item_ids: Sequence[str] = ()
    category_any_of: Sequence[str] = ()
    category_none_of: Sequence[str] = ()
    min_state_version: int = 0
    model: str = ""


@dataclass(frozen=True, slots=True)
class ScoredItem:
    item_id: str
    score: float  # comparable within one answer only


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an answer comes from."""

    model: str  # "name@fingerprint"
    state_version: int
    event_count: int  # events behind the answer, those of unknown items left out
    last_event_ms: int  # 0 if there is none
    tier: Tier
    backend: str
    as_of_ms: int


@dataclass(frozen=True, slots=True)
class Recommendation:
    items: tuple[ScoredItem, ...]  # best first
    provenance: Provenance

    @property
    def item_ids(self) -> list[str]:
        return [item.item_id for item in self.items]


@dataclass(frozen=True, slots=True)
class UserRecommendation:
    """One user's answer of a batch: a recommendation, or what went wrong for this user."""

    user_id: str
    recommendation: Recommendation | None
    error: CallError | None


@dataclass(frozen=True, slots=True)
class User:
    """What the server holds of a user; `event_count` 0 for an unknown one."""

    event_count: int
    state_version: int
    first_event_ms: int
    last_event_ms: int
    tier: Tier
    lineage_hash: str  # 32 hex digits over all events in order
    log_truncated: bool
    events: tuple[Interaction, ...]  # the newest, oldest first, if asked for
    removed_events: int = 0  # of event_count, those that retention has removed


@dataclass(frozen=True, slots=True)
class Deleted:
    events_removed: int
    states_removed: int


@dataclass(frozen=True, slots=True)
class BatchAck:
    """The answer to one batch of a stream: it is stored, and will be there after any crash of the server."""

    sequence: int
    applied: int
    duplicates: int
    late_refolded: int
    unknown_items: int
    rejected: tuple[tuple[str, Interaction, str], ...]  # user id, interaction, reason
    expired: int = 0  # Outcome.EXPIRED
