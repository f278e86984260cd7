"""The command that brings weights in from a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def importing(
    hf_dir: Annotated[Path, typer.Argument(metavar="HF_DIR", help="A folder with *.safetensors and config.json.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="RUN", help="The run's folder.")],
    spec: Annotated[
        str | None,
        typer.Option(
            "--spec", metavar="SPEC", help="The model, with a section hf that says where weights are; else config.json."
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="What to change in the spec.")
    ] = None,
) -> None:
    """Make a run of the weights in a Hugging Face folder.

    Every tensor there is taken once, and every parameter is given once, or nothing is written.
    """
    from ..interop import family_spec, import_run
    from ..registry.spec import load_spec

    changes = overrides or ()
    print(import_run(hf_dir, load_spec(spec, changes) if spec else family_spec(hf_dir, changes), out))
