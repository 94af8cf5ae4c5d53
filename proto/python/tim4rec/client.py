"""The blocking client."""
from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

import grpc

from tim4rec import _core
from tim4rec._core import Call, Settings, Tls, Unanswered, UnansweredBatches, UnansweredUsers
from tim4rec.retry import Retry
from tim4rec.types import BatchAck, Deleted, Interaction, Query, Recommendation, Recorded, User, UserRecommendation

T = TypeVar("T")


class Client:
    """Calls of `tim4rec.v1.Recommender`, one method each. Thread-safe; make one and share it.

    target: "HOST:PORT". token: bearer token, or a function that returns the one valid now. tls: without it the
    connection is in clear text, and a token is refused unless the target is this machine. timeout_s: deadline of a
    call in seconds, all its tries together; None: 5, and 120 for a purge. Each method takes its own as well.

    Every method raises CallError (its docstring lists the codes), and ValueError for what cannot be put into a request.
    Calls of one user carry the metadata `x-tim4rec-user-id`, by which a proxy finds the user's server.
    """

    def __init__(self, target: str, *, token: str | Callable[[], str] | None = None, tls: Tls | None = None,
                 timeout_s: float | None = None, retry: Retry = Retry()) -> None:
        self._settings = Settings(target, token, tls, timeout_s, retry)
        options = self._settings.channel_options()
        self._channel = (grpc.insecure_channel(target, options=options) if tls is None
                         else grpc.secure_channel(target, tls.credentials(), options=options))
        self._methods: dict[str, Callable[..., Any]] = {}
        for name in _core.unary_methods():
            serialize, parse = _core.serializers(name)
            self._methods[name] = self._channel.unary_unary(_core.method_path(name), serialize, parse)

    def record(self, user_id: str, interactions: Sequence[Interaction], *, durable: bool = False,
               timeout_s: float | None = None) -> Recorded:
        """Stores interactions and folds them into the user's state; answers what became of each.

        durable: answer when they survive a power loss; else they survive the end of the server's process. At most
        10,000 in one call. Safe to repeat: see `tim4rec.retry`.
        """
        return self._run(_core.record(user_id, interactions, durable), timeout_s)

    def recommend(self, user_id: str, query: Query = Query(), *, timeout_s: float | None = None) -> Recommendation:
        """The best items for a user. An unknown user gets the most popular ones, with Tier.COLD_START."""
        return self._run(_core.recommend(user_id, query), timeout_s)

    def record_and_recommend(self, user_id: str, interactions: Sequence[Interaction], query: Query = Query(), *,
                             durable: bool = False,
                             timeout_s: float | None = None) -> tuple[Recorded, Recommendation]:
        """`record`, then `recommend`, in one round trip; the recommendation sees the interactions."""
        return self._run(_core.record_and_recommend(user_id, interactions, query, durable), timeout_s)

    def recommend_for_history(self, interactions: Sequence[Interaction], query: Query = Query(), *,
                              timeout_s: float | None = None) -> Recommendation:
        """`recommend` for a history that the call carries, in any order. Reads and stores nothing."""
        return self._run(_core.recommend_for_history(interactions, query), timeout_s)

    def get_user(self, user_id: str, *, at_ms: int = 0, max_events: int = 0, timeout_s: float | None = None) -> User:
        """What the server holds of a user, as it was at `at_ms` (0: now), with the newest events if asked for."""
        return self._run(_core.get_user(user_id, at_ms, max_events), timeout_s)

    def delete_user(self, user_id: str, *, purge: bool = False, timeout_s: float | None = None) -> Deleted:
        """Removes a user's events and states. purge: answer when no file of the store holds a byte of them."""
        return self._run(_core.delete_user(user_id, purge), timeout_s)

    def stream(self, *, durable: bool = False, most_unanswered: int = 8) -> InteractionStream:
        """A stream of batches over many users, for ingestion. Not through a routing proxy: see `tim4rec.Ring`."""
        unanswered = UnansweredBatches(durable, most_unanswered, self._settings.retry)
        return InteractionStream(self._stream("StreamInteractions", unanswered), unanswered)

    def recommend_batch(self, user_ids: Iterable[str], query: Query = Query()) -> Iterator[UserRecommendation]:
        """`recommend` for many users, in order, at low priority: online calls go first.

        `user_ids` is read as answers come, so it may be as long as you like. A user's error is in the place of the
        answer. A stream that breaks is opened again and goes on with the same model. CallError: it could not be.
        Not through a routing proxy: see `tim4rec.Ring`.
        """
        unanswered = UnansweredUsers(query, self._settings.retry)
        stream, source, ended = self._stream("RecommendBatch", unanswered), iter(user_ids), False
        try:
            while not ended or unanswered:
                while not ended and stream.may_put():
                    users = list(itertools.islice(source, _core.BATCH_USERS))
                    ended = not users
                    if users:
                        stream.put(unanswered.add(users))
                if unanswered:
                    yield from stream.read()
        finally:
            stream.end()

    def _stream(self, name: str, unanswered: Unanswered[T]) -> _Stream[T]:
        serialize, parse = _core.serializers(name)
        method = self._channel.stream_stream(_core.method_path(name), serialize, parse)
        return _Stream(method, self._settings, unanswered)

    def close(self) -> None:
        """Ends the connection; calls that run fail with CANCELLED."""
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _run(self, call: Call[T], timeout_s: float | None) -> T:
        attempts = self._settings.attempts(call, timeout_s)
        while True:
            try:
                return call.decode(self._methods[call.method](
                    call.request, timeout=attempts.left_s(), metadata=self._settings.metadata(call.user_id)))
            except grpc.RpcError as error:
                delay_s = attempts.delay_s(error)
            time.sleep(delay_s)


class _Stream(Generic[T]):
    """A stream over one call after the other. Not a context manager, not for several threads."""

    def __init__(self, method: Callable[..., Any], settings: Settings, unanswered: Unanswered[T]) -> None:
        self._method, self._settings, self._unanswered = method, settings, unanswered
        self._call: Any = None
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._opened_s = 0.0

    def may_put(self) -> bool:
        """Whether a request may be put now; else `read`. An old call is followed by a new one once all is answered."""
        if self._call is not None and time.monotonic() - self._opened_s > _core.STREAM_CALL_S:
            if self._unanswered:
                return False
            self.end()
        return not self._unanswered.full()

    def put(self, request: Any) -> None:
        """Sends what was just added to the unanswered."""
        if self._call is None:
            self._open()
        else:
            self._requests.put(request)

    def read(self) -> T:
        """The next answer; repeats what is unanswered on a new call where the old one breaks."""
        while True:
            try:
                return self._unanswered.answered(next(self._call))
            except StopIteration:
                delay_s = self._unanswered.delay_s(None)
            except grpc.RpcError as error:
                delay_s = self._unanswered.delay_s(error)
            self.end()
            time.sleep(delay_s)
            self._open()

    def end(self) -> None:
        self._requests.put(None)
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _open(self) -> None:
        self._requests = queue.SimpleQueue()
        for request in self._unanswered.requests():
            self._requests.put(request)
        requests: Iterator[Any] = iter(self._requests.get, None)
        self._opened_s = time.monotonic()
        self._call = self._method(requests, timeout=_core.STREAM_CALL_S + _core.STREAM_ANSWER_S,
                                  metadata=self._settings.metadata(None))


class InteractionStream:
    """Batches in, acknowledgements out, in order; at least once, which the server's idempotence makes exactly once.

    A stream that breaks is opened again and what was not answered is sent again; the retries of the client's `Retry`
    count from the last answer. For one thread. Close it, or use it in a `with` block, which flushes at its end.
    """

    def __init__(self, stream: _Stream[BatchAck], unanswered: UnansweredBatches) -> None:
        self._stream, self._unanswered = stream, unanswered

    def send(self, users: Mapping[str, Sequence[Interaction]]) -> list[BatchAck]:
        """Sends one batch (at most 10,000 interactions over all users); returns what was answered meanwhile.

        Waits while `most_unanswered` batches are unanswered. CallError: the oldest unanswered batch failed.
        """
        acks: list[BatchAck] = []
        while not self._stream.may_put():
            acks.append(self._stream.read())
        self._stream.put(self._unanswered.add(users))
        return acks

    def flush(self) -> list[BatchAck]:
        """Waits until every batch is answered; returns the answers that were not returned before."""
        acks: list[BatchAck] = []
        while self._unanswered:
            acks.append(self._stream.read())
        return acks

    def close(self) -> None:
        """Ends the stream. Batches that are not answered may be stored or not: `flush` before."""
        self._stream.end()

    def __enter__(self) -> InteractionStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()
