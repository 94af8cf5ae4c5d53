"""The blocking client."""
from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc

from tim4rec import _core
from tim4rec._core import Call, Settings, Tls, Unanswered
from tim4rec.retry import Retry
from tim4rec.types import BatchAck, Deleted, Interaction, Query, Recommendation, Recorded, User

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

    def get_user(self, user_id: str, *, at_ms: int = 0, max_events: int = 0, timeout_s: float | None = None) -> User:
        """What the server holds of a user, as it was at `at_ms` (0: now), with the newest events if asked for."""
        return self._run(_core.get_user(user_id, at_ms, max_events), timeout_s)

    def delete_user(self, user_id: str, *, purge: bool = False, timeout_s: float | None = None) -> Deleted:
        """Removes a user's events and states. purge: answer when no file of the store holds a byte of them."""
        return self._run(_core.delete_user(user_id, purge), timeout_s)

    def stream(self, *, durable: bool = False, most_unanswered: int = 8) -> InteractionStream:
        """A stream of batches over many users, for ingestion. Not through a routing proxy: see `tim4rec.Ring`."""
        serialize, parse = _core.serializers("StreamInteractions")
        method = self._channel.stream_stream(_core.method_path("StreamInteractions"), serialize, parse)
        return InteractionStream(method, self._settings, Unanswered(durable, most_unanswered, self._settings.retry))

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


class InteractionStream:
    """Batches in, acknowledgements out, in order; at least once, which the server's idempotence makes exactly once.

    A stream that breaks is opened again and what was not answered is sent again; the retries of the client's `Retry`
    count from the last answer. For one thread. Close it, or use it in a `with` block, which flushes at its end.
    """

    def __init__(self, method: Callable[..., Any], settings: Settings, unanswered: Unanswered) -> None:
        self._method, self._settings, self._unanswered = method, settings, unanswered
        self._call: Any = None
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._opened_s = 0.0

    def send(self, users: Mapping[str, Sequence[Interaction]]) -> list[BatchAck]:
        """Sends one batch (at most 10,000 interactions over all users); returns what was answered meanwhile.

        Waits while `most_unanswered` batches are unanswered. CallError: the oldest unanswered batch failed.
        """
        acks: list[BatchAck] = []
        while self._unanswered.full():
            acks.append(self._read())
        if self._call is not None and time.monotonic() - self._opened_s > _core.STREAM_CALL_S:
            acks += self.flush()
            self._end_call()
        request = self._unanswered.add(users)
        if self._call is None:
            self._open()
        else:
            self._requests.put(request)
        return acks

    def flush(self) -> list[BatchAck]:
        """Waits until every batch is answered; returns the answers that were not returned before."""
        acks: list[BatchAck] = []
        while self._unanswered.requests:
            acks.append(self._read())
        return acks

    def close(self) -> None:
        """Ends the stream. Batches that are not answered may be stored or not: `flush` before."""
        self._end_call()

    def __enter__(self) -> InteractionStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()

    def _open(self) -> None:
        self._requests = queue.SimpleQueue()
        for request in self._unanswered.requests:
            self._requests.put(request)
        requests: Iterator[Any] = iter(self._requests.get, None)
        self._opened_s = time.monotonic()
        self._call = self._method(requests, timeout=_core.STREAM_CALL_S + _core.STREAM_ANSWER_S,
                                  metadata=self._settings.metadata(None))

    def _end_call(self) -> None:
        self._requests.put(None)
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _read(self) -> BatchAck:
        while True:
            try:
                return self._unanswered.answered(next(self._call))
            except StopIteration:
                delay_s = self._unanswered.delay_s(None)
            except grpc.RpcError as error:
                delay_s = self._unanswered.delay_s(error)
            self._end_call()
            time.sleep(delay_s)
            self._open()
