"""What requests for tokens of a text, and for the text of tokens, may say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import FailFast, Field

from baton.core.errors import InvalidValue, RequestError, Unsupported
from baton.core.template_options import TemplateOptions, check_variables
from baton.engine.client import Tokenizer
from baton.server.field_rules import Place
from baton.server.fields import Strict
from baton.server.messages import MESSAGE_PLACE, Messages, turns_of
from baton.server.schema import template_options


class TokenizeRequest(Strict):
    """Either a text or a conversation."""

    inner: ClassVar[Mapping[str, Place]] = {"messages": MESSAGE_PLACE}

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool = Field(True, description="Those that the tokenizer adds to a prompt by itself.")
    messages: Messages = Field(default_factory=list)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="With messages, as in chats.")
    add_generation_prompt: bool | None = Field(None, description="With messages, as in chats.")
    continue_final_message: bool = Field(False, description="With messages, as in chats.")

    def template_options(self, tokenizer: Tokenizer) -> TemplateOptions:
        """How the chat template writes the prompt. Raises InvalidValue or Unsupported."""
        check_variables(self.chat_template_kwargs, tokenizer.template_variables, "chat_template_kwargs")
        return template_options(
            self.messages,
            variables=self.chat_template_kwargs,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
        )

    def turns(self) -> list[dict[str, Any]] | None:
        if (self.prompt is None) == (not self.messages):
            raise RequestError("send either prompt or messages", param="prompt")
        if self.messages and "add_special_tokens" in self.model_fields_set:
            message = "add_special_tokens is not honoured with messages: the chat template has them"
            raise Unsupported(message, param="add_special_tokens")
        for name in ("chat_template_kwargs", "add_generation_prompt", "continue_final_message"):
            if not self.messages and getattr(self, name):
                raise InvalidValue(f"{name} is only for messages", param=name)
        return turns_of(self.messages) if self.messages else None


class DetokenizeRequest(Strict):
    """The body of `/detokenize`."""

    model: str | None = None
    tokens: Annotated[list[int], FailFast()]
