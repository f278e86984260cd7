"""The config.json of published checkpoints, as they lie there, in `published/`: one for each checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transom.interop.config import laid_over
from transom.interop.families import family_of
from transom.registry.sources import families
from transom.registry.spec import Spec, load_spec

FOLDER = Path(__file__).with_name("published")
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


def config_of(name: str) -> dict[str, Any]:
    """Return the config of one checkpoint."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def architecture_of(config: Mapping[str, Any]) -> str:
    """Return the architecture that a config names, or else the first of its family."""
    if "architectures" in config:
        return str(config["architectures"][0])
    hf = load_spec(families()[family_of(config, FOLDER)]).hf
    assert hf is not None
    assert hf.config is not None
    return hf.config.unnamed or next(name for name in hf.config.architectures if name.isidentifier())


def spec_of(config: Mapping[str, Any], source: str) -> Spec:
    """Return the spec that a config comes to, without the checkpoint's weights and tokenizer."""
    place = families()[family_of(config, Path(source))]
    return load_spec(place, laid=laid_over(config, source, load_spec(place)))
