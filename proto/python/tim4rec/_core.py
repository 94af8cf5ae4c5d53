"""What both clients share: options, requests, answers. No call is made here."""
from __future__ import annotations

import collections
import dataclasses
import ipaddress
import pathlib
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import grpc

from tim4rec.errors import CallError, details_of
from tim4rec.retry import Retry
from tim4rec.types import (BatchAck, Deleted, Interaction, InteractionResult, Outcome, Provenance, Query,
                           Recommendation, Recorded, ScoredItem, Tier, User, UserRecommendation)
from tim4rec.v1 import recommender_pb2 as pb

T = TypeVar("T")
USER_HEADER = "x-tim4rec-user-id"
Metadata = tuple[tuple[str, str], ...]
# Deadlines where the caller names none, in seconds, all tries together.
TIMEOUT_S = 5.0
PURGE_TIMEOUT_S = 120.0
# A stream takes a new call this often, which is then answered in full before the deadline of the old one.
STREAM_CALL_S = 60.0
STREAM_ANSWER_S = 30.0
# Users in a message of RecommendBatch, and sent without an answer; the server takes 1000.
BATCH_USERS = 250
BATCH_USERS_UNANSWERED = 1500
_ANSWER_BYTES = 64 << 20
_METHODS = pb.DESCRIPTOR.services_by_name["Recommender"].methods_by_name


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM bytes: `ca` that signed the server (empty: the system's), and for mutual TLS certificate and key.

    `server_name`: the name in the server's certificate, where it is not the one that is dialled.
    """

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    server_name: str = ""

    @staticmethod
    def from_files(ca: str | pathlib.Path | None = None, certificate: str | pathlib.Path | None = None,
                   key: str | pathlib.Path | None = None, server_name: str = "") -> Tls:
        """The same, read from files. OSError if one cannot be read."""
        def read(path: str | pathlib.Path | None) -> bytes | None:
            return None if path is None else pathlib.Path(path).read_bytes()
        return Tls(read(ca), read(certificate), read(key), server_name)

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("Tls: certificate and key come together")

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One unary call: what to send, whom to route by, how to read the answer."""

    method: str
    request: Any
    decode: Callable[[Any], T]
    user_id: str | None = None
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Settings:
    """What a client was made with, checked."""

    target: str
    token: str | Callable[[], str] | None
    tls: Tls | None
    timeout_s: float | None
    retry: Retry

    def __post_init__(self) -> None:
        if self.token is not None and self.tls is None and not _is_local(self.target):
            raise ValueError(f"a token would go to {self.target} in clear text: give tls=Tls(...)")
        if self.timeout_s is not None and self.timeout_s <= 0:
            raise ValueError(f"timeout_s: {self.timeout_s} is not above 0")

    def channel_options(self) -> list[tuple[str, Any]]:
        options: list[tuple[str, Any]] = [
            ("grpc.primary_user_agent", "tim4rec-python"),
            ("grpc.max_receive_message_length", _ANSWER_BYTES),
            # gRPC alone would look for a server that was restarted after up to two minutes only.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        if self.tls is not None and self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options

    def metadata(self, user_id: str | None) -> Metadata:
        pairs: list[tuple[str, str]] = []
        if user_id is not None:
            pairs.append((USER_HEADER, routing_key(user_id)))
        if self.token is not None:
            pairs.append(("authorization", f"Bearer {self.token() if callable(self.token) else self.token}"))
        return tuple(pairs)

    def attempts(self, call: Call[Any], timeout_s: float | None) -> Attempts:
        """The tries of `call`, within the first deadline given: the call's own, the client's, the default."""
        default_s = call.timeout_s if self.timeout_s is None else self.timeout_s
        return Attempts(default_s if timeout_s is None else timeout_s, self.retry)


def _is_local(target: str) -> bool:
    if target.startswith("unix:"):
        return True
    host = target.split("///")[-1].rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def routing_key(user_id: str) -> str:
    """The user id as the value of `x-tim4rec-user-id`: every byte but letters, digits, '-', '.', '_', '~' as %XX."""
    return urllib.parse.quote(user_id, safe="")


def method_path(name: str) -> str:
    return f"/{pb.DESCRIPTOR.services_by_name['Recommender'].full_name}/{name}"


def serializers(name: str) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    """Of a method's request and of its answer."""
    method = _METHODS[name]
    request: Any = getattr(pb, method.input_type.name)
    response: Any = getattr(pb, method.output_type.name)
    return request.SerializeToString, response.FromString


def unary_methods() -> list[str]:
    return [name for name, m in _METHODS.items() if not (m.client_streaming or m.server_streaming)]


def _retry_code(error: grpc.RpcError) -> grpc.StatusCode:
    """The code by which to decide on another try.

    A call that reaches a gRPC server in its last moment, already drained, is answered CANCELLED with no other word (what
    `Client.close` cancels says more): nobody has begun it, so it is as if the server had gone before.
    """
    lost = error.code() is grpc.StatusCode.CANCELLED and error.details() == "CANCELLED"
    return grpc.StatusCode.UNAVAILABLE if lost else error.code()


class Attempts:
    """The tries of one unary call: when the next one may start, until when it may last."""

    def __init__(self, timeout_s: float, retry: Retry) -> None:
        self._deadline = time.monotonic() + timeout_s
        self._retry = retry
        self._done = 0

    def left_s(self) -> float:
        return max(self._deadline - time.monotonic(), 0.0)

    def delay_s(self, error: grpc.RpcError) -> float:
        """Seconds to wait after `error` before the next try; raises CallError where there shall be none."""
        self._done += 1
        violations, advice_s = details_of(error.trailing_metadata())
        delay_s = self._retry.delay_s(self._done, _retry_code(error), advice_s)
        if delay_s is None or delay_s >= self.left_s():
            raise CallError(error.code(), error.details() or "", self._done, violations, advice_s) from error
        return delay_s


class Unanswered(Generic[T]):
    """What was sent on a stream and not answered, over all the calls that it takes."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._failures = 0  # since the last answer

    def __bool__(self) -> bool:
        """Whether the server owes an answer."""
        raise NotImplementedError

    def full(self) -> bool:
        """Whether an answer has to be read before more is sent."""
        raise NotImplementedError

    def requests(self) -> Iterable[Any]:
        """What a new call begins with: all of it again."""
        raise NotImplementedError

    def take(self, answer: Any) -> T:
        """Takes what `answer` is the answer to off."""
        raise NotImplementedError

    def answered(self, answer: Any) -> T:
        taken = self.take(answer)
        self._failures = 0
        return taken

    def delay_s(self, error: grpc.RpcError | None) -> float:
        """Seconds to wait before a new call that begins with `requests`; raises CallError where there shall be none.

        `error` None: the server ended the stream though it owes answers.
        """
        self._failures += 1
        code, message, trailers = grpc.StatusCode.UNAVAILABLE, "the server ended the stream", None
        if error is not None:
            code, message, trailers = error.code(), error.details() or "", error.trailing_metadata()
        violations, advice_s = details_of(trailers)
        # A call's deadline is only there to notice a server that hangs.
        again = grpc.StatusCode.UNAVAILABLE
        if error is not None and code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            again = _retry_code(error)
        delay_s = self._retry.delay_s(self._failures, again, advice_s)
        if delay_s is None:
            raise CallError(code, message, self._failures, violations, advice_s) from error
        return delay_s


def _out_of_order(what: str) -> CallError:
    return CallError(grpc.StatusCode.INTERNAL, f"{what} was answered out of order", 1)


class UnansweredBatches(Unanswered[BatchAck]):
    """Of StreamInteractions."""

    def __init__(self, durable: bool, most: int, retry: Retry) -> None:
        super().__init__(retry)
        if most < 1:
            raise ValueError(f"most_unanswered: {most} is below 1")
        self._held: collections.deque[pb.StreamInteractionsRequest] = collections.deque()
        self._durable, self._most, self._sequence = durable, most, 0

    def __bool__(self) -> bool:
        return bool(self._held)

    def requests(self) -> Iterable[pb.StreamInteractionsRequest]:
        return list(self._held)

    def add(self, users: Mapping[str, Sequence[Interaction]]) -> pb.StreamInteractionsRequest:
        self._sequence += 1
        self._held.append(stream_request(self._sequence, users, self._durable))
        return self._held[-1]

    def full(self) -> bool:
        return len(self._held) >= self._most

    def take(self, answer: Any) -> BatchAck:
        if not self._held or answer.sequence != self._held[0].sequence:
            raise _out_of_order(f"batch {answer.sequence}")
        return batch_ack(self._held.popleft(), answer)


class UnansweredUsers(Unanswered[list[UserRecommendation]]):
    """Of RecommendBatch."""

    def __init__(self, query: Query, retry: Retry) -> None:
        super().__init__(retry)
        self._query = query
        self._held: collections.deque[str] = collections.deque()

    def __bool__(self) -> bool:
        return bool(self._held)

    def requests(self) -> Iterable[pb.RecommendBatchRequest]:
        first = pb.RecommendBatchRequest(options=_query_request("", self._query))
        users = list(self._held)
        return [first, *(pb.RecommendBatchRequest(user_ids=users[n:n + BATCH_USERS])
                         for n in range(0, len(users), BATCH_USERS))]

    def add(self, user_ids: Sequence[str]) -> pb.RecommendBatchRequest:
        self._held.extend(user_ids)
        return pb.RecommendBatchRequest(user_ids=user_ids)

    def full(self) -> bool:
        return len(self._held) > BATCH_USERS_UNANSWERED - BATCH_USERS

    def take(self, answer: Any) -> list[UserRecommendation]:
        taken = []
        for user in answer.users:
            if not self._held or user.user_id not in ("", self._held[0]):
                raise _out_of_order("a user")
            user_id, error = self._held.popleft(), None
            if user.error_code != 0:
                error = CallError(_code(user.error_code), user.error_message, 1)
            elif not self._query.model:  # a new call goes on with the same model
                self._query = dataclasses.replace(self._query, model=user.provenance.model)
            taken.append(UserRecommendation(user_id, None if error else _recommendation(user), error))
        return taken


def _code(number: int) -> grpc.StatusCode:
    return next((c for c in grpc.StatusCode if c.value[0] == number), grpc.StatusCode.UNKNOWN)


# Requests.

def _interactions(interactions: Sequence[Interaction]) -> list[pb.Interaction]:
    return [pb.Interaction(item_id=i.item_id, timestamp_ms=i.timestamp_ms, event_id=i.event_id) for i in interactions]


def _ack(durable: bool) -> pb.Ack:
    return pb.ACK_DURABLE if durable else pb.ACK_APPLIED


def _record_request(user_id: str, interactions: Sequence[Interaction],
                    durable: bool) -> pb.RecordInteractionsRequest:
    return pb.RecordInteractionsRequest(user_id=user_id, interactions=_interactions(interactions), ack=_ack(durable))


def _query_request(user_id: str, query: Query) -> pb.RecommendRequest:
    return pb.RecommendRequest(
        user_id=user_id, k=query.k, as_of_ms=query.as_of_ms, exclude_seen=query.exclude_seen,
        exclude_item_ids=query.exclude_item_ids, candidate_item_ids=query.candidate_item_ids,
        category_any_of=query.category_any_of, category_none_of=query.category_none_of,
        min_state_version=query.min_state_version, model=query.model)


def record(user_id: str, interactions: Sequence[Interaction], durable: bool) -> Call[Recorded]:
    return Call("RecordInteractions", _record_request(user_id, interactions, durable), _recorded, user_id)


def recommend(user_id: str, query: Query) -> Call[Recommendation]:
    return Call("Recommend", _query_request(user_id, query), _recommendation, user_id)


def record_and_recommend(user_id: str, interactions: Sequence[Interaction], query: Query,
                         durable: bool) -> Call[tuple[Recorded, Recommendation]]:
    request = pb.RecordAndRecommendRequest(record=_record_request(user_id, interactions, durable),
                                           recommend=_query_request(user_id, query))
    return Call("RecordAndRecommend", request,
                lambda answer: (_recorded(answer.record), _recommendation(answer.recommend)), user_id)


def recommend_for_history(interactions: Sequence[Interaction], query: Query) -> Call[Recommendation]:
    request = pb.RecommendForHistoryRequest(interactions=_interactions(interactions),
                                            options=_query_request("", query))
    return Call("RecommendForHistory", request, _recommendation)


def get_user(user_id: str, at_ms: int, max_events: int) -> Call[User]:
    return Call("GetUser", pb.GetUserRequest(user_id=user_id, at_ms=at_ms, max_events=max_events), _user, user_id)


def delete_user(user_id: str, purge: bool) -> Call[Deleted]:
    return Call("DeleteUser", pb.DeleteUserRequest(user_id=user_id, purge=purge),
                lambda answer: Deleted(answer.events_removed, answer.states_removed), user_id,
                PURGE_TIMEOUT_S if purge else TIMEOUT_S)


def stream_request(sequence: int, users: Mapping[str, Sequence[Interaction]],
                   durable: bool) -> pb.StreamInteractionsRequest:
    return pb.StreamInteractionsRequest(
        sequence=sequence, ack=_ack(durable),
        users=[pb.UserInteractions(user_id=user, interactions=_interactions(events)) for user, events in users.items()])


# Answers.

def _recorded(answer: pb.RecordInteractionsResponse) -> Recorded:
    return Recorded(tuple(InteractionResult(Outcome(r.status), r.reason) for r in answer.results),
                    answer.state_version)


def _recommendation(answer: pb.RecommendResponse | pb.RecommendForHistoryResponse | pb.UserRecommendation) -> Recommendation:
    p = answer.provenance
    return Recommendation(tuple(ScoredItem(i.item_id, i.score) for i in answer.items),
                          Provenance(p.model, p.state_version, p.event_count, p.last_event_ms, Tier(p.tier),
                                     p.backend, p.as_of_ms))


def _interaction(event: pb.Interaction) -> Interaction:
    return Interaction(event.item_id, event.timestamp_ms, event.event_id)


def _user(answer: pb.GetUserResponse) -> User:
    return User(answer.event_count, answer.state_version, answer.first_event_ms, answer.last_event_ms,
                Tier(answer.tier), answer.lineage.hash, answer.lineage.log_truncated,
                tuple(_interaction(e) for e in answer.events), answer.removed_events)


def batch_ack(request: pb.StreamInteractionsRequest, answer: pb.StreamInteractionsResponse) -> BatchAck:
    rejected = []
    for r in answer.rejected:
        user = request.users[r.user_index]
        rejected.append((user.user_id, _interaction(user.interactions[r.interaction_index]), r.reason))
    return BatchAck(answer.sequence, answer.applied, answer.duplicates, answer.late_refolded, answer.unknown_items,
                    tuple(rejected), answer.expired)
