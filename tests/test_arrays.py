"""An exported folder runs without torch, gives the tokens that PyTorch gives, and refuses what does not fit it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from transom.core.topology import Topology
from transom.data import Tokenizer
from transom.deploy import ArrayRuntime, arrays, bench, export, generate, timing
from transom.errors import ExportError, InputError, TransomError
from transom.generation import Sampling
from transom.generation import generate as write
from transom.registry.compose import compose
from transom.registry.spec import dump_spec, parse_spec
from transom.registry.weights import WEIGHTS, digest

LAYER = "layer: {norm: rms, attention: {kind: full, n_heads: 2}, feedforward: {kind: mlp, d_ff: 24}}"
DECODER = f"""
model:
  topology: decoder
  d_model: 16
  max_seq_len: 40
  embedding: {{kind: token, vocab_size: 300}}
  position: alibi
  {LAYER}
  layers: [{{pattern: [{{attention: {{kind: local, window: 7}}}}]}}]
  norm: none
  head: lm
"""
PAIR = f"""
model:
  topology: encoder_decoder
  d_model: 12
  max_seq_len: 19
  embedding: {{kind: token, vocab_size: 31}}
  position: sinusoidal
  {LAYER}
  encoder: {{layers: [{{}}]}}
  decoder: {{layer: {{cross_attention: {{kind: full, n_heads: 2}}}}, layers: [{{}}]}}
  norm: rms
  head: lm
"""
ENCODER = f"""
model:
  topology: encoder
  d_model: 12
  max_seq_len: 23
  embedding: {{kind: token, vocab_size: 31}}
  position: learned
  {LAYER}
  layers: [{{}}]
  norm: rms
  head: {{kind: classifier, n_classes: 5, pool: last}}
"""
PARTS = ("prefill", "first", "decode")
PROMPTS = [[5, 90, 17, 2, 211], [40], [7, 7, 100, 30, 250, 9, 14, 83, 61, 22, 191]]


class InTorch:
    """Step a model in PyTorch, without padding: a batch of rows, each with a state of its own."""

    def __init__(self, model: Topology, vocab_size: int, begin: Callable[[int], Any], prefix: str = "") -> None:
        self.model, self.vocab_size, self.begin, self.prefix = model, vocab_size, begin, prefix
        self.max_seq_len = model.spec.model.max_seq_len

    def start(self, batch: int) -> list[Any]:
        return [self.begin(row) for row in range(batch)]

    @torch.inference_mode()
    def step(self, input_ids: Any, attention_mask: Any, states: list[Any]) -> Any:
        logits = np.zeros((len(states), self.vocab_size), dtype=np.float32)
        after = list(states)
        for row, state in enumerate(states):
            count = input_ids.shape[1] if attention_mask is None else int(attention_mask[row].sum())
            if count:
                ids = torch.from_numpy(input_ids[row : row + 1, :count])
                out = self.model(**{f"{self.prefix}input_ids": ids}, state=state)
                logits[row], after[row] = out.logits[0, -1, : self.vocab_size].numpy(), out.state
        return logits, after


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run's folder by hand, whose tokenizer knows fewer tokens than the model has rows."""
    folder = tmp_path_factory.mktemp("run")
    spec = parse_spec(DECODER, ["train.seed=3"])
    (folder / "spec.yaml").write_text(dump_spec(spec))
    (folder / "model").mkdir()
    weights = compose(parse_spec(DECODER, ["train.seed=8"])).state_dict()
    weights = {name: tensor * 2 for name, tensor in weights.items()}
    save_file(weights, folder / WEIGHTS, {"sha256": digest(weights)})
    Tokenizer.train(["one two three"], 262).save(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def decoder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    export(run, folder)
    return folder


@pytest.fixture
def in_torch(run: Path) -> InTorch:
    model = compose(parse_spec(DECODER, ["train.seed=8"])).eval()
    for weight in model.parameters():
        weight.data *= 2
    return InTorch(model, Tokenizer.load(run / "tokenizer.json").vocabulary.size, lambda row: model.empty_state(1))


@pytest.mark.parametrize(
    "sampling",
    [Sampling(max_new_tokens=50), Sampling(max_new_tokens=9, temperature=3.0, top_k=200, seed=4)],
    ids=["greedy", "drawn"],
)
def test_the_tokens_are_those_of_pytorch(decoder: Path, in_torch: InTorch, sampling: Sampling) -> None:
    assert generate(decoder, PROMPTS, sampling) == write(in_torch, PROMPTS, sampling)


def test_a_long_prompt_is_read_in_pieces(decoder: Path, in_torch: InTorch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "PIECE", 6)
    monkeypatch.setattr(arrays, "ROOM", 5)
    runtime, draw = ArrayRuntime(decoder), np.random.default_rng(31)
    ids = draw.integers(in_torch.vocab_size, size=(2, 1, 40))
    mask = np.ones_like(ids[0])
    mask[0, 3:9] = mask[0, -4:] = 0
    states = [runtime.start(1), runtime.start(1)]
    wanted = [in_torch.start(1), in_torch.start(1)]
    for part in (slice(0, 23), slice(23, 33), slice(33, 34), slice(34, 35)):
        for text in (0, 1):  # two texts in turns: each has a state of its own
            got, states[text] = runtime.step(ids[text][:, part], mask[:, part], states[text])
            real = ids[text][:, part][mask[:, part] == 1][None]
            want, wanted[text] = in_torch.step(real, None, wanted[text])
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-4)


def test_a_tokenizer_travels_and_its_eos_ends_rows(decoder: Path, run: Path) -> None:
    vocabulary = Tokenizer.load(decoder / "tokenizer.json").vocabulary
    manifest = ArrayRuntime(decoder).manifest
    assert (decoder / "tokenizer.json").read_bytes() == (run / "tokenizer.json").read_bytes()
    graphs = {
        "model.onnx",
        "model.onnx.data",
        "genai.onnx",
        "genai_config.json",
        "folder.schema.json",
        "reference.safetensors",
    }
    assert set(manifest.files) == {*graphs, "tokenizer.json"}
    assert manifest.special_ids == {role: getattr(vocabulary, role) for role in ("bos", "eos", "pad", "mask")}
    assert manifest.vocab_size == vocabulary.size == 262
    rows = generate(decoder, [[5]] * 20, Sampling(max_new_tokens=35, temperature=50.0))
    assert {row.ended for row in rows} == {"eos", "length"}
    assert all(vocabulary.eos not in row.ids for row in rows)


def test_it_runs_without_torch(decoder: Path, in_torch: InTorch) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from transom.deploy import ArrayRuntime, arrays, generate\n"
        "from transom.generation import Sampling\n"
        f"rows = generate({str(decoder)!r}, {PROMPTS!r}, Sampling(max_new_tokens=6))\n"
        "print([row.ids for row in rows])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [row.ids for row in write(in_torch, PROMPTS, Sampling(max_new_tokens=6))]


def test_a_bench_says_what_took_how_long(decoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a clock go on by the tokens that are read, and one half where a state begins."""
    now = [100.0]
    step, start = ArrayRuntime.step, ArrayRuntime.start

    def stepping(self: ArrayRuntime, ids: Any, mask: Any, state: Any) -> Any:
        now[0] += ids.size
        return step(self, ids, mask, state)

    def starting(self: ArrayRuntime, batch: int) -> Any:
        now[0] += 0.5
        return start(self, batch)

    monkeypatch.setattr(ArrayRuntime, "step", stepping)
    monkeypatch.setattr(ArrayRuntime, "start", starting)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing, "bandwidth", lambda threads: 5e5 * threads)
    found = bench(decoder, lengths=[5, 17, 5], batch=3, tokens=4, rounds=2, threads=2)
    assert [(speed.length, speed.prefill.median, speed.first, speed.decode) for speed in found.speeds] == [
        (length, length * 3, timing.Spread(*[length * 3 + 0.5] * 3), timing.Spread(3, 3, 3)) for length in (5, 17)
    ]
    assert now[0] == 100 + 3 * (2 * (0.5 + 5 * 3) + (5 + 17) * 3)  # one round more than counts, one step more
    state = ArrayRuntime(decoder).start(3)
    assert {speed.state for speed in found.speeds} == {sum(value.numpy().nbytes for value in state.values.values())}
    size = sum((decoder / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    assert (found.weights, found.bandwidth, found.floor) == (size, 1e6, size / 1e6)
    lines = str(found).splitlines()
    assert lines[0].startswith("CPUExecutionProvider, 2 threads, ONNX Runtime ")
    assert re.split("  +", lines[1].strip()) == [*timing.HEADINGS]
    assert lines[3].split()[:8] == ["17", "51000.00", "(51000.00", "to", "51000.00)", "1", "51500.00", "(51500.00"]
    assert lines[4].endswith(" ms to read once, at the 0.0 GB/s of a copy here")


def test_a_bench_stays_within_what_the_model_holds(decoder: Path) -> None:
    assert [speed.length for speed in bench(decoder, tokens=9, rounds=1).speeds] == [30]
    for options, message in (
        ({"lengths": [24, 31], "tokens": 9}, "lengths: 31 and 10 more; this model takes 1 to max_seq_len = 40"),
        ({"lengths": [0]}, "lengths: 0 and 17 more"),
        ({"tokens": 39}, "tokens: 39; this model takes at most max_seq_len = 40"),
        ({"rounds": 0}, "rounds: 0 leaves nothing to measure; at least 1"),
        ({"threads": 0}, "threads: 0 leaves"),
    ):
        with pytest.raises(InputError, match=message):
            bench(decoder, **options)  # type: ignore[arg-type]


def test_the_command_benches_without_torch(decoder: Path) -> None:
    args = [
        "bench",
        str(decoder),
        "--length",
        "11",
        "--length",
        "3",
        "--rounds",
        "2",
        "--tokens",
        "5",
        "--threads",
        "1",
    ]
    code = f"import sys; sys.modules['torch'] = None\nfrom transom.cli import main\nmain({[*args, '--json']!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert (said["threads"], said["rounds"], said["tokens"], said["precision"]) == (1, 2, 5, "fp32")
    assert [speed["length"] for speed in said["speeds"]] == [11, 3]
    for speed in said["speeds"]:
        assert all(0 < part["low"] <= part["median"] <= part["high"] < 9 for part in map(speed.get, PARTS))
        assert speed["prefill"]["low"] < speed["first"]["low"]
    assert said["floor"] == said["weights"] / said["bandwidth"]
    assert 1e8 < said["bandwidth"] < 1e13
    assert 2e7 < said["peak"] < 1e10


def test_what_does_not_fit_a_decoder_is_refused(decoder: Path) -> None:
    runtime = ArrayRuntime(decoder, "CPUExecutionProvider")
    ids = np.full((2, 3), 7)
    refused: Sequence[tuple[str, Callable[[], object]]] = [
        (
            r"input_ids: 7 to 300; values go from 0 to 299",
            lambda: runtime.step(ids + np.array([0, 0, 293]), None, runtime.start(2)),
        ),
        (
            r"input_ids: float64 .* must be int64 of \(batch, sequence\)",
            lambda: runtime.step(ids * 1.0, None, runtime.start(2)),  # type: ignore[arg-type]
        ),
        (r"42 tokens in a row; .* max_seq_len = 40", lambda: runtime.step(ids.repeat(14, 1), None, runtime.start(2))),
        (r"writes tokens step by step", lambda: runtime.encode(input_ids=ids)),
        (r"reads no source", lambda: runtime.read([[1]])),
    ]
    for message, call in refused:
        with pytest.raises(InputError, match=message):
            call()
    with pytest.raises(ExportError, match=r"did you mean CPUExecutionProvider\?"):
        ArrayRuntime(decoder, "CpuExecutionProvider")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.onnx", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), r"model\.onnx: is not the file"),
        ("model.onnx", Path.unlink, r"model\.onnx: is missing"),
        ("tokenizer.json", lambda path: path.write_text("{}"), r"tokenizer\.json: is not the file"),
        ("transom.json", Path.unlink, r"transom\.json: can't be read, so .* is no exported model"),
        ("transom.json", lambda path: path.write_text("[1]"), r"transom\.json: not of format 1"),
        ("transom.json", lambda path: path.write_text('{"format": 1}'), r"transom\.json: is broken \('graphs'\)"),
    ],
)
def test_an_altered_folder_is_refused(
    decoder: Path, tmp_path: Path, name: str, change: Callable[[Path], object], message: str
) -> None:
    shutil.copytree(decoder, tmp_path, dirs_exist_ok=True)
    change(tmp_path / name)
    with pytest.raises(ExportError, match=message):
        ArrayRuntime(tmp_path)


def test_a_source_is_answered_as_in_pytorch(tmp_path: Path) -> None:
    model = compose(parse_spec(PAIR)).eval()
    export(model, tmp_path / "out")
    runtime = ArrayRuntime(tmp_path / "out")
    sources, sampling = [[4, 9, 30], [1], [8, 8, 2, 17, 5, 0, 3]], Sampling(max_new_tokens=30, temperature=0.8)

    @torch.inference_mode()
    def begin(row: int) -> Any:
        return model.start(input_ids=torch.tensor([sources[row]]))  # type: ignore[operator]

    wanted = write(InTorch(model, 31, begin, "decoder_"), [[6], [6], [2, 2]], sampling)
    assert write(runtime.read(sources), [[6], [6], [2, 2]], sampling) == wanted
    one = runtime.read({"input_ids": np.array([[8, 8, 2, 17, 5, 0, 3]])})
    assert write(one, [[2, 2]], sampling) == wanted[2:]
    refused: Sequence[tuple[str, Callable[[], object]]] = [
        ("reads a source first", lambda: runtime.start(3)),
        ("the opening token is unknown", lambda: generate(runtime, sources, sampling)),
        ("3 sources were read, so there are as many rows, not 2", lambda: runtime.read(sources).start(2)),
        ("20 tokens in a row", lambda: runtime.read([[1] * 20])),
    ]
    for message, call in refused:
        with pytest.raises(InputError, match=message):
            call()


def test_an_encoder_classifies_as_in_pytorch(tmp_path: Path) -> None:
    model = compose(parse_spec(ENCODER)).eval()
    export(model, tmp_path / "out")
    runtime = ArrayRuntime(tmp_path / "out")
    ids, mask = torch.randint(31, (4, 13)), torch.ones(4, 13, dtype=torch.int64)
    mask[0, :6] = mask[1, 9:] = mask[2, ::3] = 0
    with torch.no_grad():
        wanted, plain = model(input_ids=ids, attention_mask=mask), model(input_ids=ids)
    arrays = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
    assert np.abs(runtime.classify(**arrays) - wanted.logits.numpy()).max() < 1e-5
    assert np.abs(runtime.encode(**arrays) - wanted.hidden.numpy()).max() < 1e-5
    assert np.abs(runtime.classify(input_ids=ids.numpy()) - plain.logits.numpy()).max() < 1e-5
    with pytest.raises(TransomError, match="this model writes no tokens"):
        runtime.start(1)
    with pytest.raises(InputError, match="takes input_ids, attention_mask; it was given pixel_values"):
        runtime.encode(pixel_values=np.zeros(3))
    with pytest.raises(InputError, match="24 tokens"):
        runtime.encode(input_ids=np.ones((1, 24), dtype=np.int64))
