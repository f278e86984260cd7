"""What the command line costs before it does anything: processes against the imports that they can't do without."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from typing import Any

import pytest

ROUNDS = 7
MAIN = "from transom.cli import main; main()"
# A decoder of 405 billion parameters.
LARGE = [
    "tiny_gpt",
    "model.d_model=16384",
    "model.max_seq_len=8192",
    "model.embedding.vocab_size=128256",
    "model.layer.attention={kind: full, n_heads: 128, n_kv_heads: 8}",
    "model.layer.feedforward.d_ff=53248",
    "model.layers=[{repeat: 126}]",
    "model.head.tied=false",
    "data.tokenizer.vocab_size=128256",
]


def spent(*args: str) -> tuple[float, float]:
    """Run Python and return the processor seconds and the most memory in MB that it took.

    What is installed was compiled to bytecode then; ours is compiled at the first run, whatever the environment says.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    process = subprocess.Popen([sys.executable, *args], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("imports", "command", "allowed", "memory"),
    [
        pytest.param("pluggy, omegaconf", ["import transom"], 0.6, 200, id="import"),
        pytest.param("pluggy, omegaconf", ["from transom import load_spec"], 1.5, 200, id="import-load_spec"),
        pytest.param("pluggy, omegaconf, typer, rich", [MAIN, "--help"], 2.0, 200, id="help"),
        pytest.param("torch", [MAIN, "show", *LARGE], 1.5, 1024, id="show-405B"),
    ],
)
def test_start(benchmark: Any, imports: str, command: list[str], allowed: float, memory: float) -> None:
    """In turns: seconds by the median of their ratios, the memory by its peak."""
    spent("-c", f"import {imports}"), spent("-c", *command)  # what is compiled to bytecode is so now
    ratios, peaks = [], []
    for _ in range(ROUNDS):
        seconds, peak = spent("-c", *command)
        ratios.append(seconds / spent("-c", f"import {imports}")[0])
        peaks.append(peak)
    ratio, peak = statistics.median(ratios), max(peaks)
    benchmark.extra_info |= {"ratio": ratio, "from": min(ratios), "to": max(ratios), "allowed": allowed, "MB": peak}
    benchmark.pedantic(spent, ("-c", *command), rounds=1)
    print(f"\n{benchmark.name}: {ratio:.2f} of importing {imports} ({min(ratios):.2f} to {max(ratios):.2f}), ", end="")
    print(f"allowed {allowed}; {peak:.0f} MB, allowed {memory}")
    assert ratio <= allowed
    assert peak <= memory
