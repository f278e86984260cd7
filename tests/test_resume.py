"""A training that is killed at any moment, and started again, ends as one that was never interrupted."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from transom.errors import DataError
from transom.registry.spec import Spec, load_spec
from transom.training import Event, load, train
from transom.training.events import Resumed
from transom.training.metrics import read_metrics

SPEC = """
name: tiny
model:
  topology: decoder
  d_model: 16
  max_seq_len: 22
  embedding: {kind: token, vocab_size: 270}
  position: alibi
  layer:
    norm: rms
    dropout: 0.1
    attention: {kind: full, n_heads: 2}
    feedforward: {kind: mlp, d_ff: 24}
  layers: [{repeat: 2}]
  norm: rms
  head: lm
objective: causal_lm
data: {kind: text, path: text, seq_len: 19, hold_out: 0.25, tokenizer: {kind: bpe, vocab_size: 270}}
train: {steps: 7, batch_size: 3, accumulate: 2, lr: 4.0e-3, warmup: 2, eval_every: 3, checkpoint_every: 2, log_every: 1,
        threads: 1}
"""

# Each line read is a run folder and the number of the disk operation before which its training is killed; 0 for none.
# Every training is a fork of its own of this process, which has done once what takes seconds: importing.
DRIVER = """
import io, itertools, os, signal, sys
from pathlib import Path
import torch
from matplotlib.figure import Figure
from transom.registry.spec import load_spec
from transom.training import train

layer = torch.nn.Linear(1, 1, device="meta").to_empty(device="cpu")
torch.optim.AdamW(layer.parameters(), fused=True)
Figure().savefig(io.BytesIO())

def counted(operation, count, at):
    def run(*args, **kwargs):
        if next(count) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return operation(*args, **kwargs)
    return run

for line in sys.stdin:
    out, at = line.split()
    child = os.fork()
    if child == 0:
        count = itertools.count(1)
        os.fsync = counted(os.fsync, count, int(at))
        Path.replace = counted(Path.replace, count, int(at))
        Path.rename = counted(Path.rename, count, int(at))
        Path.mkdir = counted(Path.mkdir, count, int(at))
        os.unlink = counted(os.unlink, count, int(at))
        train(load_spec(Path("spec.yaml")), out)
        print(next(count) - 1, flush=True)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        print("killed" if os.WTERMSIG(status) == signal.SIGKILL else "broken", flush=True)
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spec:
    """Return a spec whose data lies in the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    Path("text").mkdir()
    for number in range(16):
        Path("text", f"{number}.txt").write_text(f"{number} and {number + 1} make {2 * number + 1}. " * 4)
    Path("spec.yaml").write_text(SPEC)
    return load_spec(Path("spec.yaml"))


class Driver:
    """Run trainings that may be killed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def train(self, out: str, at: int = 0) -> str:
        """Train in `out`, killed before disk operation `at`; return "killed", or how many operations there were."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{out} {at}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@pytest.fixture
def driver(spec: Spec) -> Iterator[Driver]:
    """Give a driver that ends with the test."""
    driver = Driver()
    yield driver
    driver.process.communicate()


def contents(run: Path) -> dict[str, object]:
    """Return all that a run has learned and recorded; times aside, which differ."""
    lines = [{name: value for name, value in line.items() if "second" not in name} for line in read_metrics(run)]
    found: dict[str, object] = {"metrics": lines, "spec": (run / "spec.yaml").read_text()}
    for path in sorted((run / "checkpoints").rglob("*")):
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            found |= {f"{path.relative_to(run)} {name}": tensor.numpy().tobytes() for name, tensor in tensors.items()}
        elif path.name == "trainer.json":
            found[str(path.relative_to(run))] = json.loads(path.read_text())
    found |= {name: tensor.numpy().tobytes() for name, tensor in load(run).state_dict().items()}
    found["files"] = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
    return found


def test_killed_at_any_moment_it_goes_on_exactly(driver: Driver) -> None:
    """The moments lie in the first checkpoint, a later one, and the last; each run is killed twice."""
    operations = int(driver.train("whole"))
    whole = contents(Path("whole"))
    for moment in (operations // 3, operations // 2, operations - 4):
        out = f"killed-{moment}"
        for at in (moment, 9):
            assert driver.train(out, at) == "killed"
            if Path(out, "model", "model.safetensors").exists():
                assert load(out).state_dict()
        assert driver.train(out).isdecimal()
        assert contents(Path(out)) == whole, moment
    assert list(Path().glob(".*")) == []


def test_killed_before_there_was_a_run_it_begins_anew(driver: Driver) -> None:
    assert driver.train("whole").isdecimal()
    for at in (1, 4, 8):
        assert driver.train("early", at) == "killed"
        assert not Path("early", "checkpoints").exists()
    assert driver.train("early").isdecimal()
    assert contents(Path("early")) == contents(Path("whole"))


def test_lines_beyond_the_checkpoint_are_dropped(spec: Spec) -> None:
    train(spec, "run")
    lines = Path("run", "metrics.jsonl").read_text()
    shutil.rmtree("run/checkpoints/step-00000007")
    Path("run", "metrics.jsonl").write_text(lines + '{"step": 8, "lo')
    events = list[Event]()
    train(spec, "run", report=events.append)
    assert Resumed(6, 7) in events
    steps = [line["step"] for line in read_metrics(Path("run"))]
    assert steps == [json.loads(line)["step"] for line in lines.splitlines()]


def test_other_data_is_noticed(spec: Spec) -> None:
    train(spec, "run")
    Path("text", "3.txt").write_text("something else")
    with pytest.raises(DataError, match="the data is not what this run began with"):
        train(spec, "run")
