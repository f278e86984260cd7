"""Run the tests of the families, and write what they measured as docs/families.md."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
HEAD = """# Model families

`extends: NAME` in a spec begins with a family at a published size; `transom import HF_DIR -o RUN` reads a folder of any
size ([interop.md](interop.md)). A family is data, `specs/families/NAME.yaml`: its spec, where its weights are, how its
`config.json` is read.

The error is the largest difference from transformers {version}, over the largest magnitude, of logits and last hidden
states in fp32: small random models with the options of their config on, weights so large that scores have a standard
deviation above 2, plain and padded on both sides, and 16 steps with a state against the whole pass where it decodes.
Each goes back to a folder that transformers loads bit-equal. A test of each family exports it to ONNX, decoding
included, within 1e-4 of PyTorch; another composes {published} published checkpoints, whose numbers of parameters are
the peer's to the last digit. `make families` measures it again.

| family | `model_type` | architectures | error | lines | parts |
|---|---|---|---|---|---|
"""


def row(name: str, path: Path, measured: dict[str, float]) -> str:
    """Return the line of one family."""
    from transom.registry.records import parts_in
    from transom.registry.sources import read_file
    from transom.registry.spec import load_spec

    spec: Any = load_spec(path)
    parts = sorted({f"{part.cls.kind} {part.name}" for part in parts_in(spec.model, set())})
    lines = len(path.read_text(encoding="utf-8").splitlines())
    # Its own: what it extends has others.
    there = ", ".join(read_file(path, []).items["hf"].items["config"].items["architectures"].items)
    error = f"{measured[spec.hf.config.type]:.1e}"
    return f"| {name} | {spec.hf.config.type} | {there} | {error} | {lines} | {', '.join(parts)} |\n"


def main() -> int:
    """Measure, and write the page; return the exit code."""
    # First of all: pytest wants to see a package that brings it a plugin before anyone imports it.
    failed = pytest.main([str(HERE), "-q", "-p", "no:cacheprovider", "-m", ""])
    if failed:
        return int(failed)
    import transformers
    from peers import MEASURED
    from published import NAMES

    from transom.registry.sources import families

    rows = [row(name, path, MEASURED) for name, path in families().items()]
    page = HERE.parents[1] / "docs" / "families.md"
    page.write_text(
        HEAD.format(version=transformers.__version__, published=len(NAMES)) + "".join(rows),
        encoding="utf-8",
        newline="\n",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
