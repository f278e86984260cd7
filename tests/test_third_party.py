"""A package of someone else's: installed by pip, its attention trains, decodes and exports as a built-in one does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from texts import write_texts

Command = Callable[..., subprocess.CompletedProcess[str]]

SPEC = """
name: outside
model:
  topology: decoder
  d_model: 16
  max_seq_len: 60
  embedding: {kind: token, vocab_size: 270}
  position: rope
  layer:
    norm: rms
    attention: {kind: acme/sigmoid, n_heads: 4, n_kv_heads: 2}
    feedforward: {kind: mlp, d_ff: 24}
  layers: [{}]
  norm: rms
  head: lm
objective: causal_lm
data: {kind: text, path: text, seq_len: 19, hold_out: 0.25, tokenizer: {kind: bpe, vocab_size: 270}}
train: {steps: 3, batch_size: 2, lr: 4.0e-3, eval_every: 3, checkpoint_every: 3, threads: 1}
"""
# Whether it is imported when packages are listed and a spec without it is composed, and when one names it; then, that
# decoding in parts, two rows at once, gives what one pass gives.
IMPORTS = """
import sys
import torch
from transom.registry.compose import compose
from transom.registry.manager import installed
from transom.registry.spec import load_spec

assert "acme" in [package.name for package in installed()]
compose(load_spec("tiny_gpt"))
print("acme_ring" in sys.modules)
model = compose(load_spec("spec.yaml")).double().eval()
print("acme_ring" in sys.modules)
ids = torch.randint(270, (2, 23))
with torch.inference_mode():
    whole, state, steps = model(input_ids=ids).logits, model.empty_state(2), []
    for part in ids.split([7, 1, 15], dim=1):
        out = model(input_ids=part, state=state)
        state = out.state
        steps.append(out.logits)
torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-12, atol=1e-12)
"""
# Command lines, one after the other in a process that imports torch once; a line of two dashes ends what each prints.
COMMANDS = """
import json, sys
from transom.cli import main

for args in json.loads(sys.argv[1]):
    try:
        main(args)
    except SystemExit as ended:
        if ended.code:
            raise
    print("--", flush=True)
"""


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the package by pip, from its folder alone, and return where it is."""
    folder = tmp_path_factory.mktemp("third_party")
    source = shutil.copytree(root / "tests" / "third_party" / "acme_ring", folder / "source")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    target = ["--no-build-isolation", "--target", str(folder / "site"), str(source)]
    done = subprocess.run([*pip, *target], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def spec(tmp_path: Path) -> str:
    """Write a spec that names the attention, and its data, into the folder that commands run in."""
    write_texts(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC)
    return "spec.yaml"


def child(code: str, site: Path, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a folder, as a process that has the package."""
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_written_in_under_forty_lines(root: Path) -> None:
    lines = (root / "tests" / "third_party" / "acme_ring" / "acme_ring.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) < 40


def test_it_is_imported_where_it_is_named_and_decodes(site: Path, spec: str, tmp_path: Path) -> None:
    done = child(IMPORTS, site, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\nTrue\n", "")


def test_it_trains_exports_and_writes(site: Path, spec: str, tmp_path: Path) -> None:
    prompt = ["3 and", "--max-new-tokens", "12"]
    lines = [["train", spec, "-o", "run"], ["generate", "run", *prompt], ["export", "run", "-o", "out"]]
    done = child(COMMANDS, site, tmp_path, json.dumps([*lines, ["generate", "out", *prompt]]))
    assert done.returncode == 0, done.stderr
    trained, written, exported, again = done.stdout.split("--\n")[:-1]
    assert (trained, exported.splitlines()[-1], again) == ("run\n", "out", written)
    assert "kind: acme/sigmoid\n" in (tmp_path / "run" / "spec.yaml").read_text()


def test_it_is_refused_where_only_others_are_allowed(site: Path, spec: str, command: Command, tmp_path: Path) -> None:
    done = command("train", spec, "-o", "run", PYTHONPATH=str(site), TRANSOM_PLUGINS="emca")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("spec.yaml:11:23: model.layer.attention.kind: package 'acme' is installed, but")
    assert "TRANSOM_PLUGINS does not allow it" in done.stderr
    assert not (tmp_path / "run").exists()
