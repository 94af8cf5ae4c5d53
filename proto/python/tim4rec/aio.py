"""The asyncio client: `tim4rec.Client` with `await`."""
from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc
import grpc.aio

from tim4rec import _core
from tim4rec._core import Call, Settings, Tls, Unanswered
from tim4rec.retry import Retry
from tim4rec.types import BatchAck, Deleted, Interaction, Query, Recommendation, Recorded, User

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

    async def get_user(self, user_id: str, *, at_ms: int = 0, max_events: int = 0,
                       timeout_s: float | None = None) -> User:
        """As `Client.get_user`."""
        return await self._run(_core.get_user(user_id, at_ms, max_events), timeout_s)

    async def delete_user(self, user_id: str, *, purge: bool = False, timeout_s: float | None = None) -> Deleted:
        """As `Client.delete_user`."""
        return await self._run(_core.delete_user(user_id, purge), timeout_s)

    def stream(self, *, durable: bool = False, most_unanswered: int = 8) -> AsyncInteractionStream:
        """As `Client.stream`."""
        serialize, parse = _core.serializers("StreamInteractions")
        method = self._channel.stream_stream(_core.method_path("StreamInteractions"), serialize, parse)
        return AsyncInteractionStream(method, self._settings,
                                      Unanswered(durable, most_unanswered, self._settings.retry))

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


class AsyncInteractionStream:
    """As `tim4rec.client.InteractionStream`, for one task."""

    def __init__(self, method: Callable[..., Any], settings: Settings, unanswered: Unanswered) -> None:
        self._method, self._settings, self._unanswered = method, settings, unanswered
        self._call: Any = None
        self._answers: Any = None
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._opened_s = 0.0

    async def send(self, users: Mapping[str, Sequence[Interaction]]) -> list[BatchAck]:
        """As `InteractionStream.send`."""
        acks: list[BatchAck] = []
        while self._unanswered.full():
            acks.append(await self._read())
        if self._call is not None and time.monotonic() - self._opened_s > _core.STREAM_CALL_S:
            acks += await self.flush()
            self._end_call()
        request = self._unanswered.add(users)
        if self._call is None:
            self._open()
        else:
            self._requests.put_nowait(request)
        return acks

    async def flush(self) -> list[BatchAck]:
        """As `InteractionStream.flush`."""
        acks: list[BatchAck] = []
        while self._unanswered.requests:
            acks.append(await self._read())
        return acks

    def close(self) -> None:
        """As `InteractionStream.close`."""
        self._end_call()

    async def __aenter__(self) -> AsyncInteractionStream:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        try:
            if kind is None:
                await self.flush()
        finally:
            self.close()

    def _open(self) -> None:
        self._requests = asyncio.Queue()
        for request in self._unanswered.requests:
            self._requests.put_nowait(request)
        self._opened_s = time.monotonic()
        self._call = self._method(_until_none(self._requests),
                                  timeout=_core.STREAM_CALL_S + _core.STREAM_ANSWER_S,
                                  metadata=self._settings.metadata(None))
        self._answers = self._call.__aiter__()

    def _end_call(self) -> None:
        self._requests.put_nowait(None)
        if self._call is not None:
            self._call.cancel()
            self._call = None

    async def _read(self) -> BatchAck:
        while True:
            try:
                return self._unanswered.answered(await self._answers.__anext__())
            except StopAsyncIteration:
                delay_s = self._unanswered.delay_s(None)
            except grpc.aio.AioRpcError as error:
                delay_s = self._unanswered.delay_s(error)
            self._end_call()
            await asyncio.sleep(delay_s)
            self._open()


async def _until_none(requests: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while (request := await requests.get()) is not None:
        yield request
