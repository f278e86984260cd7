"""Hold exports of one model against PyTorch: each target, precision and way to quantize, on each provider there is.

    python benchmarks/parity.py [SPEC] [KEY=VALUE ...]

It prints a Markdown table: of each kind of case the largest error of all logits and state tensors at three shapes; then
how many tokens are the same, how many others are in a near tie, and how many are others, each case counting as much.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import transom
from transom.deploy.report import Row
from transom.errors import TransomError
from transom.registry.settings import ExportSettings
from transom.registry.spec import Spec, parse_spec

KINDS = ("whole", "chunks", "steps", "padded", "ragged")
TARGETS, PRECISIONS = ("ort", "onnx"), ("fp32", "fp16", "bf16")
METHODS = ("none", "int8", "int8_weights", "int4")
# Every growth of a state: slots, a ring, sums.
MODEL = """
model:
  topology: decoder
  d_model: 64
  max_seq_len: 160
  embedding: {kind: token, vocab_size: 500}
  position: rope
  layer: {norm: rms, attention: {kind: full, n_heads: 4, n_kv_heads: 2}, feedforward: {kind: glu, d_ff: 96}}
  layers:
    - pattern: [{}, {attention: {kind: local, window: 16}}, {attention: {kind: linear}}]
  norm: rms
  head: lm
"""


def main(args: Sequence[str]) -> None:
    """Export in every way there is, and print a line for each provider; of what is refused, the reason."""
    spec = transom.load_spec(args[0], args[1:]) if args else parse_spec(MODEL)
    torch.manual_seed(0)
    print(f"| target | weights | provider | {' | '.join(KINDS)} | same token | near tie | another |")
    print("|---|---|---|" + "---:|" * (len(KINDS) + 3))
    for target, precision, method in itertools.product(TARGETS, PRECISIONS, METHODS):
        weights = precision if method == "none" else f"{precision} {method}"
        try:
            rows = _rows(spec, {"target": target, "precision": precision, "quantize": method})
        except (TransomError, ValueError) as error:
            print(f"{target}, {weights}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        for provider in dict.fromkeys(row.provider for row in rows):
            print(f"| {target} | {weights} | {provider} | {_line([row for row in rows if row.provider == provider])} |")


def _rows(spec: Spec, settings: Mapping[str, Any]) -> list[Row]:
    """Return the rows of an export's own precision: the exact graph's come first."""
    with tempfile.TemporaryDirectory() as folder:
        report = transom.export(transom.compose(spec), Path(folder, "out"), settings=ExportSettings(**settings))
    last = report.rows[-1].precision
    return [row for row in report.rows if row.precision == last]


def _line(rows: Sequence[Row]) -> str:
    errors = [max((row.error for row in rows if row.case.startswith(kind)), default=None) for kind in KINDS]
    cells = ["" if error is None else f"{error:.1e}" for error in errors]
    known = [(row.agreement, row.ambiguous or 0.0) for row in rows if row.agreement is not None]
    if known:
        same, near = (sum(values) / len(known) for values in zip(*known, strict=True))
        cells += [f"{share:.1%}" for share in (same, near, max(0.0, 1 - same - near))]
    return " | ".join(cells + [""] * (len(KINDS) + 3 - len(cells)))


if __name__ == "__main__":
    main(sys.argv[1:])
