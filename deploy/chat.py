"""Render a chat as the text that a model was trained on, by the template that came with its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import ExportError, InputError

CHAT = "chat_template.jinja"
Chat = Sequence[Mapping[str, Any]]
"""Messages in their order, each with a `role` and its `content`, and whatever else the template knows."""


class ChatTemplate:
    """Render chats by a template of Jinja, in a sandbox: it can neither reach the machine nor change what it is given.

    `tokens`: how special tokens are spelt, by the names that templates use (`bos_token`, ...).
    """

    def __init__(self, text: str, origin: str, tokens: Mapping[str, str]) -> None:
        """Compile the template; `origin` says where it stands.

        Raises:
            ExportError: it can't be compiled.
        """
        self._origin = origin
        self._tokens = dict(tokens)
        try:
            self._template = _environment().from_string(text)
        except TemplateError as error:
            raise ExportError(f"{origin}: is no chat template: {error}") from None

    @classmethod
    def beside(cls, folder: Path, tokens: Mapping[str, str]) -> ChatTemplate | None:
        """Read the template of an exported folder; None where there is none.

        Raises:
            ExportError: it can't be read, or compiled.
        """
        path = folder / CHAT
        if not path.is_file():
            return None
        try:
            return cls(path.read_text(encoding="utf-8"), str(path), tokens)
        except (OSError, ValueError) as error:
            raise ExportError(f"{path}: can't be read: {error}") from None

    def render(self, messages: Chat, variables: Mapping[str, Any]) -> str:
        """Return the text of a chat up to where the next answer begins.

        `variables`: what else the template takes (`tools`, ...); `add_generation_prompt: False` leaves the answer's
        beginning out.

        Raises:
            InputError: the template refuses the chat, or fails on it.
        """
        given = {**self._tokens, "add_generation_prompt": True, **variables, "messages": [dict(m) for m in messages]}
        try:
            return self._template.render(given)
        except Exception as error:  # whatever the template makes of it
            raise InputError(f"{self._origin}: can't render this chat: {error}") from None


class _Generation(Extension):
    """Let `{% generation %}` mark what an assistant says, as templates do for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return what templates of the field are written for."""
    extensions = ["jinja2.ext.loopcontrols", _Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda shape: datetime.now().strftime(shape)}
    return environment


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """Return a value as JSON, letters as they are: Jinja's own filter escapes what HTML would take for its own."""
    return json.dumps(value, indent=indent, **{"ensure_ascii": False, **options})


def _refuse(message: str) -> None:
    raise TemplateError(message)
