"""The bodies of what is kept: files, batches and answers of streams, as the API's description shows them too."""

from __future__ import annotations

from pydantic import BaseModel


class FileObject(BaseModel):
    """A file that is kept."""

    id: str
    object: str = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str = "processed"
    expires_at: None = None


class FileList(BaseModel):
    """A part of all files."""

    object: str = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """What became of a file."""

    id: str
    object: str = "file"
    deleted: bool


class BatchCounts(BaseModel):
    """Lines of a batch, by what came of them so far."""

    total: int
    completed: int
    failed: int


class BatchError(BaseModel):
    """What is wrong with a line of a batch, or with its file."""

    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(BaseModel):
    """The first of all that is wrong."""

    object: str = "list"
    data: list[BatchError]


class BatchObject(BaseModel):
    """A batch. Times are in seconds since 1970. A batch never expires."""

    id: str
    object: str = "batch"
    endpoint: str
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str = "24h"
    status: str
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: BatchCounts
    metadata: dict[str, str] | None = None


class BatchList(BaseModel):
    """A part of all batches."""

    object: str = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class StreamDropped(BaseModel):
    """An answer that is kept no longer."""

    id: str
    deleted: bool
