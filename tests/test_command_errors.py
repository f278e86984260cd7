"""Broken specs on the command line: exit code 2, the place of what is wrong, no traceback, nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from texts import write_texts

Command = Callable[..., subprocess.CompletedProcess[str]]

SPEC = """name: small
model:
  topology: decoder
  d_model: 12
  max_seq_len: 21
  embedding: {kind: token, vocab_size: 262}
  position: none
  layer:
    norm: rms
    attention: {kind: full, n_heads: 3}
    feedforward: {kind: mlp, d_ff: 20}
  layers: [{repeat: 2}]
  norm: rms
  head: lm
objective: causal_lm
data: {kind: text, path: text, seq_len: 17, hold_out: 0.2, tokenizer: {kind: bpe, vocab_size: 262}}
train: {steps: 2, batch_size: 2}
"""
PLACED = "position: none\n  layer:\n    norm: rms\n    attention: {kind: full,"
# What is changed in SPEC (each text is there once), and how the message then begins after the file's name.
SHOWN = [
    ("kind: full", "kind: ful", "10:23: model.layer.attention.kind: no attention named 'ful' (did you mean 'full'?)"),
    ("n_heads: 3", "n_heads: 3, n_kv_heads: 2", "10:53: model.layer.attention.n_kv_heads: 2 key heads do not divide"),
    ("n_heads: 3", "n_heads: 3, window: 4", "10:41: model.layer.attention.window: unknown option 'window'"),
    (
        PLACED,
        PLACED.replace("none", "alibi").replace("full", "linear"),
        "10:16: model.layer.attention: attention 'linear' does",
    ),
    ("d_model: 12", "d_model: 012", "4:12: model.d_model: 012 without quotes is"),
    ("d_model: 12", "d_model: 12\n  d_model: 12", "5:3: model.d_model: 'd_model' is given twice; first in line 4"),
    ("d_model: 12", "d_model: ${model.d_model}", "4:12: model.d_model: a circle of references"),
    ("d_model: 12", "d_model: ${oc.env:HOME}", "4:12: model.d_model: '${oc.env:HOME}': only ${a.b} is possible"),
    ("norm: rms\n    att", "norm: !!python/name:os.system\n    att", "9:11: model.layer.norm: tags such as"),
    ("{kind: mlp, d_ff: 20}", "{kind: mlp, d_ff: 20", "12:9: not valid YAML"),
    (
        "position: none",
        "position: learnt",
        "7:13: model.position: no position named 'learnt' (did you mean 'learned'?)",
    ),
    ("d_model: 12", "d_model: 99999999", "3:3: model: has 80,000,059,299,999,399 parameters; a spec"),
    ("n_heads: 3", "n_heads: 5", "10:38: model.layer.attention.n_heads: 5 heads do not divide d_model 12"),
    ("name: small", "extends: ../../etc/passwd", "1:10: extends: should be a bundled spec's name or a path that"),
    ("name: small", "extends: spec.yaml", "1:10: extends: 'spec.yaml' extends itself, in a circle"),
    (SPEC, "", "1:1: there is nothing"),
    (SPEC, "- 1\n- 2\n", "1:1: a spec is a map"),
]
TRAINED = [
    ("objective: causal_lm\n", "", "1:1: objective: is missing"),
    ("seq_len: 17", "seq_len: 22", "16:41: data.seq_len: 22 is more than the model's max_seq_len: 21"),
    ("vocab_size: 262}\n  pos", "vocab_size: 261}\n  pos", "6:14: model.embedding: vocab_size: 261 is less than"),
    ("steps: 2", "steps: 2, freeze: [decoder.layer]", "17:27: train.freeze: 'decoder.layer' matches no"),
    ("d_model: 12", "d_model: 600000", "3:3: model: the model with its gradients and moments needs"),
    ("batch_size: 2", "batch_size: 1000000000", "17:31: train.batch_size: a batch of 1,000,000,000 rows has"),
    ("steps: 2", "steps: 0", "17:16: train.steps: must be at least 1, not 0"),
]
# Each line read is a command line, run by a fork of this process, which has imported what takes long; its exit code and
# what it printed are a line each of what is written.
DRIVER = """
import json, os, sys, tempfile
import torch
import transom.training, transom.registry.show
from transom.cli import main

for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(error.fileno(), 2)
            main(json.loads(line))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        out.seek(0), error.seek(0)
        print(json.dumps([code, out.read().decode(), error.read().decode()]), flush=True)
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that commands run in, with texts to train on."""
    folder = tmp_path_factory.mktemp("work")
    write_texts(folder)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Iterator[Run]:
    """Return a function that runs a command line as a process and gives its exit code and what it printed."""
    command: Any = [sys.executable, "-c", DRIVER]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdin is not None
        assert driver.stdout is not None
        stdin, stdout = driver.stdin, driver.stdout

        def send(*args: str) -> tuple[int, str, str]:
            stdin.write(json.dumps(args) + "\n")
            stdin.flush()
            code, out, error = json.loads(stdout.readline())
            return code, out, error

        yield send
        stdin.close()


def tree(folder: Path) -> dict[Path, bytes | None]:
    """Return all that a folder holds, hidden files included."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


CASES = [("show", *case) for case in SHOWN] + [("train", *case) for case in TRAINED]


@pytest.mark.parametrize(("command", "old", "new", "expected"), CASES)
def test_a_broken_spec_is_refused_in_its_place(
    command: str, old: str, new: str, expected: str, run: Run, folder: Path
) -> None:
    assert SPEC.count(old) == 1
    (folder / "spec.yaml").write_text(SPEC.replace(old, new))
    before = tree(folder)
    code, out, error = run(command, "spec.yaml", *(["-o", "runs/new"] if command == "train" else []))
    assert (code, out) == (2, "")
    assert error.startswith(f"spec.yaml:{expected}")
    assert "Traceback" not in error
    assert tree(folder) == before
