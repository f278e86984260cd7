"""Run the tests of the families, and write what they measured as docs/families.md."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
KEPT = HERE.parents[1] / "build" / "families"
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


def measure(file: Path, into: Path) -> int:
    """Run the tests of one file, and write the largest errors that they found; return pytest's exit code."""
    # First of all: pytest wants to see a package that brings it a plugin before anyone imports it.
    failed = pytest.main([str(file), "-q", "-p", "no:cacheprovider", "-m", ""])
    if failed:
        return int(failed)
    from peers import MEASURED

    into.parent.mkdir(parents=True, exist_ok=True)
    into.write_text(json.dumps(MEASURED), encoding="utf-8")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Measure file by file, each in a process of its own, and write the page; return the exit code.

    `--file FILE` measures one. With `--go-on`, files that were measured before are left out, whatever has changed
    since. `--only NAME...`, which comes last, writes the rows of these families anew and leaves the others as they are.
    """
    if arguments and arguments[0] == "--file":
        return measure(HERE / arguments[1], KEPT / f"{arguments[1]}.json")
    only = arguments[arguments.index("--only") + 1 :] if "--only" in arguments else ()
    if "--go-on" not in arguments and not only:
        shutil.rmtree(KEPT, ignore_errors=True)
    for file in due(types_of(only), "--go-on" in arguments):
        if failed := subprocess.call([sys.executable, __file__, "--file", file.name]):
            return failed
    write(only)
    return 0


def measured() -> dict[str, dict[str, float]]:
    """Return the largest errors that files of tests have found, by `model_type`, of those that were run."""
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in KEPT.glob("*.json")}


def types_of(names: Sequence[str]) -> set[str]:
    """Return what `config.json` calls some families."""
    from transom.registry.sources import families
    from transom.registry.spec import load_spec

    known = families()
    if odd := sorted(set(names) - known.keys()):
        raise SystemExit(f"{odd[0]} is no family; {', '.join(known)} are")
    specs: list[Any] = [load_spec(known[name]) for name in names]
    return {spec.hf.config.type for spec in specs}


def due(types: set[str], go_on: bool) -> list[Path]:
    """Return the files to run: those that were not yet, and those that measure one of some types, unless to go on.

    None where to go on, and all of these types were measured.
    """
    found = measured()
    if go_on and types and types <= {kind for errors in found.values() for kind in errors}:
        return []
    files = sorted(HERE.glob("test_*.py"))
    return [file for file in files if file.name not in found or (not go_on and types & found[file.name].keys())]


def write(only: Sequence[str]) -> None:
    """Write the page, all rows of it or some."""
    import transformers
    from published import NAMES

    from transom.registry.sources import families

    page, worst = HERE.parents[1] / "docs" / "families.md", dict[str, float]()
    for errors in measured().values():
        for kind, error in errors.items():
            worst[kind] = max(error, worst.get(kind, 0.0))
    lines = page.read_text(encoding="utf-8").splitlines(keepends=True)
    there = {line.split(" ")[1]: line for line in lines if line.startswith("| ")}
    rows = [there[name] if only and name not in only else row(name, path, worst) for name, path in families().items()]
    text = HEAD.format(version=transformers.__version__, published=len(NAMES)) + "".join(rows)
    page.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
