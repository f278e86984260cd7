"""Write text with whatever folder is given: a run through PyTorch, or an export through ONNX Runtime alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import CheckpointError, ExportError
from ..generation import Generation, Sampling, generate

OnText = Callable[[int, str], None]


def write(folder: Path, prompts: Sequence[str], sampling: Sampling, on_text: OnText | None = None) -> list[Generation]:
    """Continue each prompt with the model of a run or of an export; `on_text(row, piece)` is told as text comes.

    Raises:
        CheckpointError: the folder is neither, or has no weights yet.
        ExportError: the export is not whole, or has no tokenizer.
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
    from ..data import load_tokenizer
    from ..deploy import ArrayRuntime
    from ..deploy import generate as generate_exported

    if not (folder / "tokenizer.json").is_file():
        raise ExportError(f"{folder}: has no tokenizer.json, so text can't be turned into tokens")
    runtime, tokenizer = ArrayRuntime(folder), load_tokenizer(folder)
    vocabulary = tokenizer.vocabulary
    rows = tokenizer.encode_batch(prompts)
    # As in training: a source ends with the closing token, a text begins with the opening one.
    rows = [[*row, vocabulary.eos] if runtime.reads_source else [vocabulary.bos, *row] for row in rows]
    return generate_exported(runtime, rows, replace(sampling, eos_id=vocabulary.ends), tokenizer.decode, on_text)
