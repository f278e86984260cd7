"""Two processes under torchrun learn what one does, and only the first one writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transom.errors import SpecError
from transom.registry.spec import load_spec
from transom.training import evaluate, load, train
from transom.training.metrics import read_metrics
from transom.training.processes import World
from transom.training.setup import check_settings

SPEC = """
name: tiny
model:
  topology: decoder
  d_model: 16
  max_seq_len: 25
  embedding: {kind: token, vocab_size: 270}
  position: rope
  layer:
    norm: rms
    attention: {kind: full, n_heads: 2}
    feedforward: {kind: glu, d_ff: 24}
  layers: [{repeat: 2}]
  norm: rms
  head: {kind: lm, tied: true}
objective: causal_lm
data: {kind: text, path: text, seq_len: 21, hold_out: 0.25, tokenizer: {kind: bpe, vocab_size: 270}}
train: {steps: 6, batch_size: 4, accumulate: 3, lr: 4.0e-3, eval_every: 3, checkpoint_every: 2, log_every: 1,
        threads: 1, freeze: [decoder.norm.*]}
"""

WORKER = """
import os
from pathlib import Path
from transom.registry.spec import load_spec
from transom.training import train
events = []
run = train(load_spec(Path("spec.yaml")), "two", report=events.append)
Path("ended" + os.environ["RANK"]).write_text(f"step {run.step}, {len(events)} events")
"""


def test_two_processes_learn_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").mkdir()
    for number in range(19):
        Path("text", f"{number}.txt").write_text(f"{number} and {number + 1} make {2 * number + 1}. " * 4)
    Path("spec.yaml").write_text(SPEC)
    Path("worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "worker.py"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert [Path(f"ended{rank}").read_text() for rank in (0, 1)] == ["step 6, 13 events", "step 6, 0 events"]

    one = train(load_spec(Path("spec.yaml")), "one")
    alone, together = read_metrics(Path("one")), read_metrics(Path("two"))
    assert [line["step"] for line in together] == [line["step"] for line in alone]
    for mine, theirs in zip(alone, together, strict=True):
        for name in mine.keys() - {"tokens_per_second"}:
            assert theirs[name] == pytest.approx(mine[name], rel=1e-6 if "loss" in name else 1e-4), (name, mine["step"])
    other = load("two").state_dict()
    for name, tensor in load("one").state_dict().items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    assert evaluate("two")["loss"] == pytest.approx(one.metrics["loss"], rel=1e-6)
    # What two processes began, one goes on with.
    assert train(load_spec(Path("spec.yaml")), "two").step == 6


def test_rows_that_cannot_be_shared_are_refused(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC)
    with pytest.raises(SpecError, match=r"train\.batch_size: 4 rows can't be shared evenly by 3 processes"):
        check_settings(load_spec(tmp_path / "spec.yaml"), World(torch.device("cpu"), 0, 3))
