"""Every error baton raises on purpose; each says whose fault it is and carries its HTTP or exit status.

BatonError
├── SettingError                what the operator asked for cannot be (exit status 2)
├── LoadError                   the model cannot be loaded or cannot be batched exactly (exit status 1)
├── CheckFailed                 the model gives something else in a batch than alone (exit status 1)
├── RequestError                what a client sent cannot be honoured (HTTP 400)
│   ├── InvalidValue            a field's value is out of its limits
│   ├── Unsupported             a field is known, and not honoured
│   ├── ContextLengthExceeded   prompt (and the tokens asked for) do not fit the context
│   └── ModelNotFound           no such model is served (HTTP 404)
├── QueueFull                   too many are waiting (HTTP 429)
├── SlowReader                  an answer is left unread (HTTP 408)
├── Unavailable                 the engine takes nothing now (HTTP 503)
│   ├── ShuttingDown
│   │   └── HandedOver      the answer goes on in the server's next process
│   ├── Overloaded          what all clients hold together is more than may be
│   └── EngineUnhealthy
├── StorageFull                 the disk has no room for what is to be kept (HTTP 507)
├── QueryFailed                 one query's own trouble: its row is gone, its neighbours are not (HTTP 500)
│   ├── DeadlinePassed          it was not done in time (HTTP 504)
│   └── Infeasible              what was asked for turned out to be impossible: the asker's trouble (HTTP 400)
└── Refused                     a verb of the batch refused and changed nothing (a bug of the caller)
"""

from __future__ import annotations


class BatonError(Exception):
    """Root of all errors raised on purpose. `status` is the HTTP status, `code` and `type` the error body's."""

    status: int = 500
    type: str = "server_error"
    code: str | None = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


def quoted(value: object, most: int = 60) -> str:
    """A value for a message, cut. Python refuses to write whole numbers of thousands of digits."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= most else text[: most - 1] + "…"


class SettingError(BatonError):
    """A setting is unknown, or has a value that cannot be honoured."""

    exit_status = 2


class LoadError(BatonError):
    """The model cannot be loaded, or cannot be batched exactly."""

    exit_status = 1


class CheckFailed(BatonError):
    """`baton check` found a result that differs from what the model gives alone."""

    exit_status = 1


class RequestError(BatonError):
    """What a client sent cannot be honoured."""

    status = 400
    type = "invalid_request_error"
    code: str | None = None


class InvalidValue(RequestError):
    """A field's value is out of its limits."""

    code = "invalid_value"


class Unsupported(RequestError):
    """A field is known, and not honoured."""

    code = "unsupported_parameter"


class ContextLengthExceeded(RequestError):
    """The prompt, with the tokens asked for, does not fit the context."""

    code = "context_length_exceeded"


class ModelNotFound(RequestError):
    """No model of this name is served."""

    status = 404
    code = "model_not_found"


class QueueFull(BatonError):
    """`retry_after_seconds` is what the Retry-After header should say."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"
    retry_after_seconds = 1


class SlowReader(BatonError):
    """Too much of an answer is left unread, or for too long; its query has ended."""

    status = 408
    type = "timeout_error"
    code = "request_timeout"


class Unavailable(BatonError):
    """The engine takes nothing now; `retry_after_seconds` says when to try again."""

    status = 503
    retry_after_seconds = 5


class ShuttingDown(Unavailable):
    """The engine finishes what runs and takes nothing new."""

    code = "shutting_down"


class HandedOver(ShuttingDown):
    """The answer goes on in the server's next process, where its client can fetch the rest."""

    code = "handed_over"


class Overloaded(Unavailable):
    """All clients together hold more than they may."""

    code = "overloaded"
    retry_after_seconds = 1


class EngineUnhealthy(Unavailable):
    """The engine's loop has stopped or hangs."""

    code = "engine_unhealthy"


class StorageFull(BatonError):
    """The disk, or a quota on it, is full."""

    status = 507
    code = "insufficient_storage"


class QueryFailed(BatonError):
    """One query failed by itself (NaN logits, detokeniser); the batch went on."""


class DeadlinePassed(QueryFailed):
    """The time that was given for a query is over; it has left the engine."""

    status = 504
    type = "timeout_error"
    code = "request_timeout"


class Infeasible(QueryFailed):
    """What was asked for is impossible, which showed only while the query ran. The engine has not failed.

    No token is allowed, or the answer's form is too costly to follow.
    """

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class Refused(BatonError):
    """A verb of the batch or the prefiller refused; nothing was changed."""
