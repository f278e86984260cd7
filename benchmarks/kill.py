"""Kill trainings with `kill -9` at random moments, start each again, and compare the weights that they end with."""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file

SPEC = """
name: killed
model:
  topology: decoder
  d_model: 32
  max_seq_len: 48
  embedding: {kind: token, vocab_size: 300}
  position: rope
  layer:
    norm: rms
    dropout: 0.1
    attention: {kind: full, n_heads: 4}
    feedforward: {kind: glu}
  layers: [{repeat: 2}]
  norm: rms
  head: lm
objective: causal_lm
data: {kind: text, path: text, seq_len: 40, hold_out: 0.2, tokenizer: {kind: bpe, vocab_size: 300}}
train: {steps: 120, batch_size: 4, accumulate: 2, lr: 3.0e-3, eval_every: 20, checkpoint_every: 8, log_every: 5,
        threads: 1}
"""
COMMAND = [sys.executable, "-c", "from transom.cli import main; main()", "train", "spec.yaml", "-o"]


def start(folder: Path, out: str) -> subprocess.Popen[str]:
    """Start the training; it prints a line an event on standard error."""
    return subprocess.Popen(
        [*COMMAND, out], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def finish(process: subprocess.Popen[str]) -> list[str]:
    """Wait until the training is done, and return its lines; what went wrong ends this program."""
    _, said = process.communicate()
    if process.returncode:
        sys.exit(f"the training ended with {process.returncode}:\n{said}")
    return said.splitlines()


def kill(process: subprocess.Popen[str], line: int, delay: float) -> bool:
    """Kill the training `delay` seconds after its line of this number; say whether it had not ended by itself."""
    assert process.stderr is not None
    for _ in range(line):
        process.stderr.readline()
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def weights(run: Path) -> dict[str, bytes]:
    """Return a run's last good weights, as bytes."""
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(run / "model" / "model.safetensors").items()}


def checkpoint(run: Path) -> str:
    """Return the newest checkpoint's name."""
    return max((path.name for path in (run / "checkpoints").glob("step-*")), default="no checkpoint")


def main() -> None:
    """Print a line for each moment; exit with 1 where weights differ."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--moments", type=int, default=20, help="how many trainings are killed")
    options.add_argument("--seed", type=int, default=0, help="of the moments")
    given = options.parse_args()
    dice, different = random.Random(given.seed), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "spec.yaml").write_text(SPEC)
        (folder / "text").mkdir()
        for number in range(60):
            (folder / "text" / f"{number}.txt").write_text(f"{number} and {number + 1} make {2 * number + 1}. " * 6)
        began = time.monotonic()
        lines = len(finish(start(folder, "whole")))
        pause = (time.monotonic() - began) / lines
        whole = weights(folder / "whole")
        for moment in range(1, given.moments + 1):
            out, line, delay = f"killed-{moment}", dice.randint(1, lines - 2), dice.uniform(0, pause)
            killed = kill(start(folder, out), line, delay)
            found = checkpoint(folder / out)
            finish(start(folder, out))
            equal = weights(folder / out) == whole
            different += not equal
            how = f"killed {delay:.3f} s after line {line} of {lines}" if killed else "done before it could be killed"
            end = "the same weights" if equal else "OTHER WEIGHTS"
            print(f"{moment:2}: {how}, {found}; started again: {end}", flush=True)
    print("all the same" if not different else f"{different} of {given.moments} differ")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
