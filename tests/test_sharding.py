"""Two processes that have shares of each weight learn what one does, and leave the same files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from texts import write_texts

from transom.errors import SpecError
from transom.registry.show import describe
from transom.registry.spec import Spec, dump_spec, parse_spec
from transom.training import load, train
from transom.training.metrics import read_metrics
from transom.training.processes import World
from transom.training.setup import check_settings

DECODER = """
name: tiny
model:
  topology: decoder
  d_model: 18
  max_seq_len: 25
  embedding: {kind: token, vocab_size: 271}
  position: rope
  layer: {norm: rms, attention: {kind: full, n_heads: 3}, feedforward: {kind: glu, d_ff: 23}}
  layers: [{repeat: 3}]
  norm: rms
  head: {kind: lm, tied: true}
objective: causal_lm
data: {kind: text, path: text, seq_len: 21, hold_out: 0.25, tokenizer: {kind: bpe, vocab_size: 270}}
train: {steps: 5, batch_size: 4, accumulate: 3, lr: 4.0e-3, grad_clip: 0.5, eval_every: 0, checkpoint_every: 2,
        log_every: 1, threads: 1, freeze: [decoder.norm.*]}
"""
BOTH = DECODER.replace("topology: decoder", "topology: {kind: encoder_decoder, share_embedding: true}")
CROSS = "  decoder: {layer: {cross_attention: {kind: full, n_heads: 3}}}\n"
WRITER = (
    BOTH.replace("  norm: rms\n  head: {kind: lm, tied: true}\n", "  norm: rms\n" + CROSS + "  head: lm\n")
    .replace("position: rope", "position: t5_bias")
    .replace("objective: causal_lm", "objective: seq2seq_lm")
    .replace("kind: text, path: text", "kind: pairs, path: pairs.jsonl")
)
ENCODER = "topology: {kind: encoder_with_generator, generator_width: 12}"
WORDS = "{kind: lm, tied: true, bias: true, transform: gelu, norm: layer}"
JUDGE = (
    DECODER.replace("topology: decoder", ENCODER)
    .replace("causal_lm", "{kind: generated_token, weight: 5.0}")
    .replace("  head: {kind: lm, tied: true}\n", "  generator: {layers: [{repeat: 1}]}\n"
             f"  head: {{generated: {WORDS}, replaced: {{kind: lm, vocab_size: 1, bias: true}}}}\n")
)  # fmt: skip
FREE = ["train.freeze=[]"]
SPECS = {
    "decoder": (DECODER, []),
    # So few held-out rows that one process has none; a bias of scores that all layers read.
    "writer": (WRITER, [*FREE, "train.checkpoint_activations=true", "train.eval_every=5"]),
    "judge": (JUDGE, FREE),
    "noisy": (DECODER, ["model.layer.dropout=0.2", "train.precision=bf16"]),
    "compiled": (DECODER, ["train.compile=true"]),
}
HOW = {"whole": False, "shared": True}

# Two forks of one process, which has done once what takes seconds: importing. Each line is a job of both: the spec, the
# run folder, and before which step it stops.
DRIVER = """
import contextlib, functools, os, socket, sys, traceback
from pathlib import Path
import torch
import torch.distributed as dist
import torch.distributed.fsdp
from torch.distributed.tensor import DTensor
from transom.registry.spec import load_spec
from transom.training import train
from transom.training.update import Updater

class Stopped(Exception):
    pass

update, held = Updater.update, []

def stopping(self, step):
    if step == at:
        raise Stopped
    figures = update(self, step)
    kept = [*self.learned, *(tensor for state in self.optimizer.state.values() for tensor in state.values())]
    held[:] = [sum((each.to_local() if isinstance(each, DTensor) else each).numel() for each in kept)]
    return figures

Updater.update = stopping
torch.compile = functools.partial(torch.compile, backend="aot_eager")
jobs = [line.split() for line in sys.stdin]
with socket.socket() as free:
    free.bind(("localhost", 0))
    place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}

def work():
    dist.init_process_group("gloo")
    for spec, out, before in jobs:
        global at
        at = int(before)
        with contextlib.suppress(Stopped):
            train(load_spec(Path(spec)), out)
        Path(f"{out}.{dist.get_rank()}").write_text(str(held[0]))

children = []
for rank in (0, 1):
    children.append(os.fork())
    if children[-1] == 0:
        os.environ.update(place, RANK=str(rank))
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


JOBS = [  # of two processes: the spec, the run, whether sharded, and before which step it stops
    ("decoder", "decoder", True, 0),
    ("writer", "writer", True, 0),
    *((name, f"{name} {how}", sharded, 0) for name in ("judge", "noisy") for how, sharded in HOW.items()),
    ("compiled", "compiled", True, 0),
    ("decoder", "again", True, 4),
    ("decoder", "again", True, 0),
    ("decoder", "to both", True, 4),
    ("decoder", "to both", False, 0),
    ("decoder", "to shares", False, 4),
    ("decoder", "to shares", True, 0),
    ("decoder", "to one", True, 4),
]


def spec_of(name: str, folder: Path, *more: str) -> Spec:
    """Return one of the specs, with the texts in a folder."""
    text, overrides = SPECS[name]
    path = "pairs.jsonl" if name == "writer" else "text"
    return parse_spec(text, [*overrides, f"data.path={folder / path}", *more])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the runs of all jobs."""
    folder = tmp_path_factory.mktemp("runs")
    write_texts(folder)
    pairs = ({"source": f"{number} and {number + 1}", "target": f"it is {2 * number + 1}"} for number in range(41))
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    lines = []
    for number, (name, run, sharded, before) in enumerate(JOBS):
        spec = spec_of(name, folder, f"train.shard={str(sharded).lower()}")
        (folder / f"{number}.yaml").write_text(dump_spec(spec))
        lines.append(f"{number}.yaml {run.replace(' ', '_')} {before}\n")
    (folder / "driver.py").write_text(DRIVER)
    ended = subprocess.run(
        [sys.executable, "driver.py"], cwd=folder, input="".join(lines), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return folder


def assert_alike(one: Path, other: Path, rel: float = 1e-6) -> None:
    """Hold the figures of a run, and the files of its newest checkpoint, against those of another."""
    alone, together = read_metrics(one), read_metrics(other)
    assert [line["step"] for line in together] == [line["step"] for line in alone]
    for mine, theirs in zip(alone, together, strict=True):
        for name in mine.keys() - {"tokens_per_second"}:
            close = pytest.approx(mine[name], rel=rel if "loss" in name else 100 * rel)
            assert theirs[name] == close, (name, mine["step"])
    step = sorted((one / "checkpoints").iterdir())[-1].name
    for file in ("model.safetensors", "optimizer.safetensors"):
        mine, theirs = (load_file(run / "checkpoints" / step / file) for run in (one, other))
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=1e3 * rel, atol=10 * rel, msg=name)


@pytest.mark.parametrize("name", ["decoder", "writer", "compiled"])
def test_shares_learn_what_one_process_does(name: str, runs: Path) -> None:
    alone = runs / f"{name} alone"
    train(spec_of(name, runs, "train.compile=false", "train.shard=true"), alone)
    assert_alike(alone, runs / name)
    torch.testing.assert_close(load(runs / name).state_dict(), load(alone).state_dict(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("name", "rel"), [("judge", 1e-6), ("noisy", 1e-6)])
def test_shares_learn_what_whole_models_do(name: str, rel: float, runs: Path) -> None:
    """What each process draws for itself is another in one process: two of either kind draw the same."""
    assert_alike(runs / f"{name}_whole", runs / f"{name}_shared", rel)


def test_each_process_keeps_its_share_alone(runs: Path) -> None:
    whole, *shares = (int((runs / run).read_text()) for run in ("judge_whole.0", "judge_shared.0", "judge_shared.1"))
    steps = len(load_file(next((runs / "judge_whole" / "checkpoints").iterdir()) / "optimizer.safetensors")) // 3
    assert sum(shares) == whole + steps  # the number of steps that each parameter has had is no share of anything
    assert max(shares) < 0.56 * whole


def test_a_run_goes_on_with_the_same_bits(runs: Path) -> None:
    expected, found = (load_file(runs / run / "model" / "model.safetensors") for run in ("decoder", "again"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("run", ["to both", "to shares", "to one"])
def test_a_run_goes_on_however_it_is_shared(run: str, runs: Path) -> None:
    place = runs / run.replace(" ", "_")
    if run == "to one":
        assert train(spec_of("decoder", runs), place).step == 5
    assert_alike(runs / "decoder", place)


def test_what_cannot_be_shared_is_refused() -> None:
    two = World(torch.device("cpu"), 0, 2)
    for precision, why in {"fp16": "overflows of its own share", "float8": "hold their weights themselves"}.items():
        spec = parse_spec(DECODER, [f"train.precision={precision}", "train.shard=true"])
        with pytest.raises(SpecError, match=rf"train\.precision: .*{why}"):
            check_settings(spec, two)


def test_memory_is_that_of_a_share() -> None:
    """The layers hold nearly all, and a process an eighth of that, with two layers and what is around them whole."""
    large = ["model.d_model=96", "model.layers=[{repeat: 40}]", "train.batch_size=8"]
    spec, shares = parse_spec(DECODER, large), parse_spec(DECODER, [*large, "train.shard=true"])
    one, whole, share = (describe(s, n).estimate.training for s, n in ((spec, 1), (spec, 8), (shares, 8)))
    assert one is not None
    assert whole is not None
    assert share is not None
    assert (whole.rows, whole.held, share.held) == (1, one.held, pytest.approx(one.held / 8, rel=1e-3))
    assert share.held < share.peak < whole.peak / 2
    lines = describe(shares, 8).notes
    assert any("a share of weights, gradients and moments" in line for line in lines), lines
    with pytest.raises(SpecError, match=r"8 rows can't be shared evenly by 3 processes"):
        describe(shares, 3)
