"""Write text with whatever folder is given: a run through PyTorch, or an export through ONNX Runtime alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import CheckpointError
from ..generation import Generation, Sampling, generate

OnText = Callable[[int, str], None]


def write(folder: Path, prompts: Sequence[str], sampling: Sampling, on_text: OnText | None = None) -> list[Generation]:
    """Continue each prompt with the model of a run or of an export; `on_text(row, piece)` is told as text comes.

    Raises:
        CheckpointError: the folder is neither, or has no weights yet.
        ExportError: the export is not whole.
        InputError: the export has no tokenizer.
    """
    if (folder / "transom.json").is_file():
        return _with_runtime(folder, prompts, sampling, on_text)
    if not (folder / "spec.yaml").is_file():
        raise CheckpointError(f"{folder}: is neither a run (it has no spec.yaml) nor an export (no transom.json)")
    from ..training.text import writing

    ready = writing(folder, prompts)
    return generate(
        ready.stepper, ready.prompts, replace(sampling, eos_id=ready.eos_id), ready.tokenizer.decode, on_text
    )


def _with_runtime(folder: Path, prompts: Sequence[str], sampling: Sampling, on_text: OnText | None) -> list[Generation]:
    from ..deploy import Runtime

    found: dict[int, Generation] = {}
    for piece in Runtime(folder).stream(prompts, sampling):
        if on_text is not None and piece.text:
            on_text(piece.row, piece.text)
        if piece.result is not None:
            found[piece.row] = piece.result
    return [found[row] for row in range(len(found))]
