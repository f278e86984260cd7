"""Splits a text at its `${a.b}`, by OmegaConf's own grammar."""

from __future__ import annotations

import re
from typing import Any

from omegaconf.errors import GrammarParseError
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse

from .interpolate import Reference


def parts_of(text: str) -> list[str]:
    """Split a text into plain texts and `Reference`s. Raise `ValueError` for whatever else `${` may begin."""
    if re.search(r"\$\{[^}]*\$\{", text):
        raise ValueError("a reference can't hold another one")
    if "\\${" in text:
        raise ValueError("${ always begins a reference here: it can't be escaped")
    try:
        tree: Any = parse(text)
    except (GrammarParseError, RecursionError):
        raise ValueError("a reference is written ${a.b}, with the dotted path of another value") from None
    return [_part(child) for child in tree.text().getChildren()]


def _part(child: Any) -> str:
    if not isinstance(child, OmegaConfGrammarParser.InterpolationContext):
        return str(child.getText())
    node: Any = child.interpolationNode()  # type: ignore[no-untyped-call]
    inner = list(node.getChildren())[1:-1] if node else []
    keys, dots = inner[::2], inner[1::2]
    plain = [key for key in keys if isinstance(key, OmegaConfGrammarParser.ConfigKeyContext)]
    if not plain or len(plain) < len(keys) or any(dot.getText() != "." for dot in dots):
        raise ValueError("only ${a.b} is possible, with the dotted path of another value: no resolver, no brackets")
    return Reference(".".join(key.getText() for key in plain))
