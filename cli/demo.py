"""Walk a newcomer through everything once: show, train, measure, write, export, compare, write again without torch."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..generation import Sampling
from . import report
from .output import notes, results
from .progress import progress
from .render import tree
from .writing import write

if TYPE_CHECKING:
    from ..training import Run

SPEC, RUN, OUT = "demo", Path("runs/demo"), Path("runs/demo-onnx")
PROMPTS = ("def read(self, size=-1):\n", "class ", "import os\n")


def run(overrides: list[str]) -> None:
    """Run the demo's spec from the first step to the last; `overrides` change it as on the command line."""
    from ..deploy import export
    from ..registry.show import describe
    from ..registry.spec import load_spec
    from ..training import train

    began = time.monotonic()
    spec = load_spec(SPEC, overrides)
    heading(f"1. The model of specs/{SPEC}.yaml (transom show {SPEC})")
    found = describe(spec)
    results().print(tree(found.tree))
    print(*found.notes, sep="\n")

    heading(f"2. Training it (transom train {SPEC} -o {RUN})")
    shutil.rmtree(RUN, ignore_errors=True)
    with progress(notes()) as shown:
        made = train(spec, RUN, report=shown)

    heading(f"3. Bits per byte of the held-out text: less is better (transom eval {RUN})")
    print_bits(made)

    heading(f"4. What it writes with PyTorch (transom generate {RUN} ...)")
    texts = show_texts(RUN)

    heading(f"5. The model as ONNX, compared with PyTorch (transom export {RUN} -o {OUT})")
    print(export(RUN, OUT))

    heading(f"6. The same lines with ONNX Runtime alone (transom generate {OUT} ...)")
    same = show_texts(OUT) == texts
    print("the same text" if same else "NOT the same text")

    heading("7. Where everything lies")
    print(f"{RUN}/spec.yaml      the spec, resolved: it alone rebuilds the model")
    print(f"{RUN}/metrics.jsonl  a line per logged step; drawn in {RUN}/loss.png")
    print(f"{RUN}/model/         the weights; {RUN}/checkpoints/ to go on from")
    print(f"{OUT}/        model.onnx, transom.json, tokenizer.json")
    print(f"{time.monotonic() - began:.0f} seconds in all")
    if not same:
        sys.exit(1)


def heading(text: str) -> None:
    """Print the heading of a step."""
    print(f"\n== {text}", flush=True)


def print_bits(made: Run) -> None:
    """Print the model's bits per byte beside those of n-gram models and compressors on the same text."""
    from ..data.baselines import bits_per_byte
    from ..training import evaluate
    from ..training.setup import prepare_data

    reached = (made.metrics or evaluate(made))["bits_per_byte"]
    others = bits_per_byte(prepare_data(made.spec, made.folder)[0])
    for name, bits in sorted({**others, "this model": reached}.items(), key=lambda one: one[1]):
        print(f"  {name:<12} {bits:.3f}{'  <--' if name == 'this model' else ''}")


def show_texts(folder: Path) -> list[str]:
    """Print and return what a model writes for the demo's prompts."""
    sampling = Sampling(max_new_tokens=48, temperature=0.8, top_k=40, seed=1)
    texts = [generation.text or "" for generation in write(folder, PROMPTS, sampling)]
    for prompt, text in zip(PROMPTS, texts, strict=True):
        print("  | " + (prompt + text).replace("\n", "\n  | "))
        print()
    return texts


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except Exception as error:
        sys.exit(report(error, debug=False))
