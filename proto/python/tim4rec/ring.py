"""Which server holds which user: the same consistent hashing as the proxy's (nginx, `hash KEY consistent`)."""
from __future__ import annotations

import bisect
import zlib
from collections.abc import Sequence

from tim4rec._core import routing_key

_POINTS_PER_SERVER = 160


class Ring:
    """Users spread over servers, for work that goes to the servers themselves: streams and batches over many users.

    servers: the names exactly as they stand in the proxy's `upstream` block, "HOST:PORT", all of weight 1; their order
    does not matter. Adding or removing one of n moves about 1/n of the users.
    """

    def __init__(self, servers: Sequence[str]) -> None:
        if not servers or len(set(servers)) != len(servers):
            raise ValueError(f"Ring: needs one server or more, each once, got {list(servers)}")
        points: dict[int, str] = {}
        for server in servers:
            host, colon, port = server.rpartition(":")
            if not colon or not port.isdigit():
                raise ValueError(f"Ring: {server!r} is not HOST:PORT")
            base, previous = f"{host}\0{port}".encode(), 0
            for _ in range(_POINTS_PER_SERVER):
                previous = zlib.crc32(base + previous.to_bytes(4, "little"))
                points.setdefault(previous, server)
        self._hashes = sorted(points)
        self._servers = [points[h] for h in self._hashes]

    def server_of(self, user_id: str) -> str:
        """The server that holds the user."""
        at = bisect.bisect_left(self._hashes, zlib.crc32(routing_key(user_id).encode()))
        return self._servers[at % len(self._servers)]
