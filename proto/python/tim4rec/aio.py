"""The asyncio client: `tim4rec.Client` with `await`."""
from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from tim4rec import _core
from tim4rec._core import Call, Settings, Tls, Unanswered, UnansweredBatches, UnansweredUsers
from tim4rec.retry import Retry
from tim4rec.types import BatchAck, Deleted, Interaction, Query, Recommendation, Recorded, User, UserRecommendation

T = TypeVar("T")


class AsyncClient:
    """As `tim4rec.Client`, for one event loop. Make it inside the loop that uses it."""

    def __init__(self, target: str, *, token: str | Callable[[], str] | None = None, tls: Tls | None = None,
                 timeout_s: float | None = None, retry: Retry = Retry()) -> None:
        self._settings = Settings(target, token, tls, timeout_s, retry)
        options = self._settings.channel_options()
        self._channel = (grpc.aio.insecure_channel(target, options=options) if tls is None
                         else grpc.aio.secure_channel(target, tls.credentials(), options=options))
        self._methods: dict[str, Callable[..., Any]] = {}
        for name in _core.unary_methods():
            serialize, parse = _core.serializers(name)
            self._methods[name] = self._channel.unary_unary(_core.method_path(name), serialize, parse)

    async def record(self, user_id: str, interactions: Sequence[Interaction], *, durable: bool = False,
                     timeout_s: float | None = None) -> Recorded:
        """As `Client.record`."""
        return await self._run(_core.record(user_id, interactions, durable), timeout_s)

    async def recommend(self, user_id: str, query: Query = Query(), *,
                        timeout_s: float | None = None) -> Recommendation:
        """As `Client.recommend`."""
        return await self._run(_core.recommend(user_id, query), timeout_s)

    async def record_and_recommend(self, user_id: str, interactions: Sequence[Interaction], query: Query = Query(), *,
                                   durable: bool = False,
                                   timeout_s: float | None = None) -> tuple[Recorded, Recommendation]:
        """As `Client.record_and_recommend`."""
        return await self._run(_core.record_and_recommend(user_id, interactions, query, durable), timeout_s)

    async def recommend_for_history(self, interactions: Sequence[Interaction], query: Query = Query(), *,
                                    timeout_s: float | None = None) -> Recommendation:
        """As `Client.recommend_for_history`."""
        return await self._run(_core.recommend_for_history(interactions, query), timeout_s)

    async def get_user(self, user_id: str, *, at_ms: int = 0, max_events: int = 0,
                       timeout_s: float | None = None) -> User:
        """As `Client.get_user`."""
        return await self._run(_core.get_user(user_id, at_ms, max_events), timeout_s)

    async def delete_user(self, user_id: str, *, purge: bool = False, timeout_s: float | None = None) -> Deleted:
        """As `Client.delete_user`."""
        return await self._run(_core.delete_user(user_id, purge), timeout_s)

    def stream(self, *, durable: bool = False, most_unanswered: int = 8) -> AsyncInteractionStream:
        """As `Client.stream`."""
        unanswered = UnansweredBatches(durable, most_unanswered, self._settings.retry)
        return AsyncInteractionStream(self._stream("StreamInteractions", unanswered), unanswered)

    async def recommend_batch(self, user_ids: Iterable[str],
                              query: Query = Query()) -> AsyncIterator[UserRecommendation]:
        """As `Client.recommend_batch`."""
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
                    for answer in await stream.read():
                        yield answer
        finally:
            stream.end()

    def _stream(self, name: str, unanswered: Unanswered[T]) -> _AsyncStream[T]:
        serialize, parse = _core.serializers(name)
        method = self._channel.stream_stream(_core.method_path(name), serialize, parse)
        return _AsyncStream(method, self._settings, unanswered)

    async def close(self) -> None:
        """Ends the connection; calls that run are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        await self.close()

    async def _run(self, call: Call[T], timeout_s: float | None) -> T:
        attempts = self._settings.attempts(call, timeout_s)
        while True:
            try:
                return call.decode(await self._methods[call.method](
                    call.request, timeout=attempts.left_s(), metadata=self._settings.metadata(call.user_id)))
            except grpc.aio.AioRpcError as error:
                delay_s = attempts.delay_s(error)
            await asyncio.sleep(delay_s)


class _AsyncStream(Generic[T]):
    """A stream over one call after the other. For one task."""

    def __init__(self, method: Callable[..., Any], settings: Settings, unanswered: Unanswered[T]) -> None:
        self._method, self._settings, self._unanswered = method, settings, unanswered
        self._call: Any = None
        self._answers: Any = None
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
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
            self._requests.put_nowait(request)

    async def read(self) -> T:
        while True:
            try:
                return self._unanswered.answered(await self._answers.__anext__())
            except StopAsyncIteration:
                delay_s = self._unanswered.delay_s(None)
            except grpc.aio.AioRpcError as error:
                delay_s = self._unanswered.delay_s(error)
            self.end()
            await asyncio.sleep(delay_s)
            self._open()

    def end(self) -> None:
        self._requests.put_nowait(None)
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _open(self) -> None:
        self._requests = asyncio.Queue()
        for request in self._unanswered.requests():
            self._requests.put_nowait(request)
        self._opened_s = time.monotonic()
        self._call = self._method(_until_none(self._requests),
                                  timeout=_core.STREAM_CALL_S + _core.STREAM_ANSWER_S,
                                  metadata=self._settings.metadata(None))
        self._answers = self._call.__aiter__()


class AsyncInteractionStream:
    """As `tim4rec.client.InteractionStream`, for one task."""

    def __init__(self, stream: _AsyncStream[BatchAck], unanswered: UnansweredBatches) -> None:
        self._stream, self._unanswered = stream, unanswered

    async def send(self, users: Mapping[str, Sequence[Interaction]]) -> list[BatchAck]:
        """As `InteractionStream.send`."""
        acks: list[BatchAck] = []
        while not self._stream.may_put():
            acks.append(await self._stream.read())
        self._stream.put(self._unanswered.add(users))
        return acks

    async def flush(self) -> list[BatchAck]:
        """As `InteractionStream.flush`."""
        acks: list[BatchAck] = []
        while self._unanswered:
            acks.append(await self._stream.read())
        return acks

    def close(self) -> None:
        """As `InteractionStream.close`."""
        self._stream.end()

    async def __aenter__(self) -> AsyncInteractionStream:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        try:
            if kind is None:
                await self.flush()
        finally:
            self.close()


async def _until_none(requests: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while (request := await requests.get()) is not None:
        yield request
