"""The bodies of the server's state, its models and tokens, and of errors, as the API's description shows them too."""

from __future__ import annotations

from pydantic import BaseModel, Field


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "baton"
    max_model_len: int
    sampling_defaults: dict[str, float] = Field(
        default_factory=dict, description="Sampling of requests that name nothing else, as the model's author set it."
    )


class ModelList(BaseModel):
    """The models that are served."""

    object: str = "list"
    data: list[ModelCard]


class Tokens(BaseModel):
    """The token ids of a text."""

    count: int
    max_model_len: int
    tokens: list[int]


class Prompt(BaseModel):
    """The text of token ids."""

    prompt: str


class TokenizerInfo(BaseModel):
    """`special_tokens`: ids by name. `chat_template`: its source, null if the model has none."""

    tokenizer_class: str
    vocab_size: int
    max_model_len: int
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    special_tokens: dict[str, int]
    chat_template: str | None


class Status(BaseModel):
    """The server's state, in one word."""

    status: str


class Version(BaseModel):
    """The version of baton."""

    version: str


class Load(BaseModel):
    """The engine's state now, and counts since its start. The page draws rates from the difference of two."""

    server_load: int
    rows: int
    rows_occupied: int
    columns: int
    running: int
    waiting: int
    prefilling: int
    ready: int
    preempted: int
    kv_bytes_used: int
    kv_bytes_budget: int
    iterations: int
    generated_tokens: int
    useful_slots: int
    idle_slots: int


class ErrorDetail(BaseModel):
    """What is wrong, and in which field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every error."""

    error: ErrorDetail
