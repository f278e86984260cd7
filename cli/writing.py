"""Write text with whatever folder is given: a run through PyTorch, or an export through ONNX Runtime alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import CheckpointError, InputError
from ..generation import Draft, Generation, Sampling, generate

OnText = Callable[[int, str], None]


def write(
    folder: Path,
    prompts: Sequence[str],
    sampling: Sampling,
    on_text: OnText | None = None,
    draft: tuple[Path, int] | None = None,
    *,
    device: str = "cpu",
    compiled: Callable[[str], object] | None = None,
) -> list[Generation]:
    """Continue each prompt with the model of a run or of an export; `on_text(row, piece)` is told as text comes.

    `draft`: the run whose model runs ahead of another run's, and by how many tokens. `device`: where a run's model is.
    `compiled`: has steps compiled, and is told how they are taken.

    Raises:
        CheckpointError: the folder is neither, or has no weights yet, or its tokenizer is not the draft's.
        ExportError: the export is not whole.
        InputError: the export has no tokenizer, or there is a draft for it; what is compiled is an export, or has a
            draft; there is no such device.
    """
    if compiled is not None and draft is not None:
        raise InputError("compile: a draft goes back to states that compiled steps write over: leave one of them out")
    if (folder / "transom.json").is_file():
        if compiled is not None or device != "cpu":
            raise InputError(f"{folder}: is an export, which ONNX Runtime runs: leave compile and device out")
        if draft is not None:
            raise InputError(f"{folder}: is an export, and a draft goes with a run: name the run it was made from")
        return _with_runtime(folder, prompts, sampling, on_text)
    if not (folder / "spec.yaml").is_file():
        raise CheckpointError(f"{folder}: is neither a run (it has no spec.yaml) nor an export (no transom.json)")
    from ..training.text import drafting, writing

    ready = writing(folder, prompts, device=device, compiled=compiled is not None)
    if compiled is not None and ready.stepper.compiled is not None:
        compiled(ready.stepper.compiled.path)
    helper = None if draft is None else Draft(drafting(draft[0], ready), draft[1])
    sampling = replace(sampling, eos_id=ready.eos_id)
    return generate(ready.stepper, ready.prompts, sampling, ready.tokenizer.decode, on_text, helper)


def _with_runtime(folder: Path, prompts: Sequence[str], sampling: Sampling, on_text: OnText | None) -> list[Generation]:
    from ..deploy import Runtime

    found: dict[int, Generation] = {}
    for piece in Runtime(folder).stream(prompts, sampling):
        if on_text is not None and piece.text:
            on_text(piece.row, piece.text)
        if piece.result is not None:
            found[piece.row] = piece.result
    return [found[row] for row in range(len(found))]
