"""The one exception of calls."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2


class CallError(Exception):
    """A call failed, after `attempts` tries.

    code          when                                                        what to do
    INVALID_ARGUMENT     a field is faulty: `violations`                      fix the request
    NOT_FOUND            `model` is not loaded                                ask for a loaded one
    FAILED_PRECONDITION  min_state_version was not reached in time            try later
    RESOURCE_EXHAUSTED   the server is full (was retried), or a request too large
    UNAVAILABLE          no connection, draining, the disk refuses (was retried)
    DEADLINE_EXCEEDED    `timeout_s` is over, all tries together
    DATA_LOSS            the user's log is damaged on disk                    restore a backup
    UNAUTHENTICATED      the token is missing or wrong
    PERMISSION_DENIED    the token is for other roles (read, write)
    """

    def __init__(self, code: grpc.StatusCode, message: str, attempts: int,
                 violations: Sequence[tuple[str, str]] = (), retry_after_s: float | None = None) -> None:
        super().__init__(f"{code.name}: {message}" + (f" (after {attempts} attempts)" if attempts > 1 else ""))
        self.code = code
        self.message = message
        self.attempts = attempts
        self.violations = tuple(violations)  # (field, what is wrong with it)
        self.retry_after_s = retry_after_s  # the server's advice, if it gave any


def details_of(trailers: Iterable[Any] | None) -> tuple[list[tuple[str, str]], float | None]:
    """Field violations and retry advice out of a call's trailing metadata (google.rpc.Status)."""
    violations: list[tuple[str, str]] = []
    retry_after_s: float | None = None
    for key, value in trailers or ():
        if key != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        for detail in status_pb2.Status.FromString(value).details:
            bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
            if detail.Unpack(bad):
                violations += [(v.field, v.description) for v in bad.field_violations]
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    return violations, retry_after_s
