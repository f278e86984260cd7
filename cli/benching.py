"""The command `transom bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def benching(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An exported folder.")],
    length: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Tokens of a prompt; may be given several times.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Rows.")] = 1,
    tokens: Annotated[int, typer.Option(help="Steps that are measured behind each prompt.")] = 16,
    rounds: Annotated[int, typer.Option(help="How often each length is measured.")] = 7,
    threads: Annotated[int | None, typer.Option(help="For each operator; all cores unless given.")] = None,
    provider: Annotated[str | None, typer.Option(metavar="NAME", help="ONNX Runtime's; the fastest one here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: seconds, bytes.")] = False,
) -> None:
    """Measure an exported folder on this machine: prefill, first token, decoding, memory.

    Beside it stands how long the machine takes to read the weights once, which a step of one row can hardly beat.
    """
    import json
    from dataclasses import asdict

    from ..deploy import bench

    found = bench(
        folder,
        lengths=length or (),
        batch=batch,
        tokens=tokens,
        rounds=rounds,
        threads=threads,
        provider=provider,
    )
    print(json.dumps({**asdict(found), "floor": found.floor}, indent=2) if as_json else found)
