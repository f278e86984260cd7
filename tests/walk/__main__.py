"""Walk all combinations, each exported alone, and write `docs/combinations.md`; killed, it goes on where it was."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path

import onnxruntime as ort  # type: ignore[import-untyped]

from transom.registry.spec import dump_spec
from walk.checks import refusal, walk
from walk.combinations import Combination, combinations, spec_of
from walk.table import Outcome, write_table

ROOT = Path(__file__).resolve().parents[2]
KNOWN = ROOT / "build" / "walk.jsonl"
PAGE = ROOT / "docs" / "combinations.md"
EXPORTS_A_PROCESS = 60  # torch keeps something of each


def versions() -> dict[str, str]:
    """Return what the outcomes depend on, by name."""
    libraries = {name: version(name) for name in ("transom", "torch", "onnx", "onnxscript")}
    return {**libraries, "onnxruntime": ort.__version__, "Python": platform.python_version()}


def key_of(row: Combination) -> str:
    """Return what an outcome is known by: the spec and the versions; two rows may be of one spec."""
    text = dump_spec(spec_of(row)) + json.dumps(versions())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def walk_all(rows: Mapping[str, Combination], workers: int) -> list[str]:
    """Walk rows by their keys, noting each that holds in `KNOWN` as it is done; return what failed."""
    failed, started = list[str](), time.monotonic()
    for count, (key, error) in enumerate(_outcomes(rows, workers), 1):
        if isinstance(error, BrokenProcessPool):
            sys.exit("a process was killed, perhaps for its memory: walk again, and it goes on from here")
        if isinstance(error, BaseException):
            failed.append(f"{rows[key]}: {type(error).__name__}: {error}")
        else:
            with KNOWN.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "row": str(rows[key]), "error": error}) + "\n")
        minutes = (time.monotonic() - started) / 60
        text = f"FAILED {failed[-1]}" if isinstance(error, BaseException) else f"{rows[key]}: {error:.1e}"
        print(f"[{count}/{len(rows)}, {minutes:.0f} min] {text}", flush=True)
    return failed


def _outcomes(rows: Mapping[str, Combination], workers: int) -> Iterator[tuple[str, float | BaseException]]:
    """Yield each row's key with its error or what went wrong, as they are done.

    Processes are replaced a batch at a time: with `max_tasks_per_child` the pool of Python 3.11 comes to a standstill.
    """
    spawn, keys = multiprocessing.get_context("spawn"), list(rows)
    for first in range(0, len(keys), EXPORTS_A_PROCESS * workers):
        with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
            batch = keys[first : first + EXPORTS_A_PROCESS * workers]
            running = {pool.submit(walk, rows[key]): key for key in batch}
            for done in as_completed(running):
                yield running[done], done.exception() or done.result()


def known() -> dict[str, float]:
    """Return the errors of earlier walks by key; a last line that a kill cut short is left out."""
    if not KNOWN.exists():
        return {}
    lines = [line for line in KNOWN.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    KNOWN.write_text("".join(lines), encoding="utf-8")
    return {entry["key"]: entry["error"] for entry in map(json.loads, lines)}


def main() -> int:
    """Walk what is not known yet, and write the page once all of it holds."""
    parser = argparse.ArgumentParser(prog="walk", description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    workers = parser.parse_args().workers
    KNOWN.parent.mkdir(exist_ok=True)
    refusals = {row: refusal(row, spec_of(row)) for row in combinations()}
    keys = {row: key_of(row) for row, reason in refusals.items() if reason is None}
    before = known()
    rows = {key: row for row, key in keys.items() if key not in before}
    print(f"{len(refusals)} combinations, {len(refusals) - len(keys)} refused; {len(set(keys.values()))} models, "
          f"{len(rows)} to walk: {KNOWN} has the others (make clean forgets them)", flush=True)  # fmt: skip
    if failed := walk_all(rows, workers):
        print(f"{len(failed)} failed, {PAGE} stays as it was:", *failed, sep="\n", file=sys.stderr)
        return 1
    errors = known()
    outcomes: dict[Combination, Outcome] = {
        row: errors[keys[row]] if reason is None else reason for row, reason in refusals.items()
    }
    PAGE.write_text(write_table(outcomes, versions()), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
