"""Compare a folder that `transom export` wrote with the same weights in optimum-onnx and in onnxruntime-genai.

    python benchmarks/bench_onnx.py --optimum PYTHON --genai PYTHON [--work FOLDER] [--rounds 9] [--publish]

A llama-shaped model of 134M weights (12 layers, d_model 768, 12 heads, d_ff 2048, vocabulary 32000), random, fp32, one
row, two threads. Each engine runs in a process of its own, in its own environment, and they take turns: once a round
each reads a prompt of 32 and one of 512 tokens, five times, and writes 12 tokens after each; medians
count. Without the environments it says how
to make them.

Peers are set up as their own pages recommend: optimum's graph in ONNX Runtime with IO binding; the builder's with the
head for the last token alone (`prune_lm_head`) and shared buffers.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

LAYERS, VOCAB, THREADS, STEPS, REPEATS = 12, 32000, 2, 12, 5
PROMPTS = {"first token, 32": 32, "prefill, 512": 512}
# 542M weights
LARGE = """
model:
  topology: decoder
  d_model: 2048
  max_seq_len: 2048
  embedding: {kind: token, vocab_size: 32000}
  position: rope
  layer: {norm: rms, attention: {kind: full, n_heads: 16}, feedforward: {kind: glu, d_ff: 5632}}
  layers: [{repeat: 8}]
  norm: rms
  head: lm
"""
ROOT = Path(__file__).resolve().parent.parent
MAKE = """\
python -m venv optimum
optimum/bin/pip install torch==2.13.0 optimum-onnx==0.1.0 onnxruntime==1.32.0 onnx==1.23.2
python -m venv genai
genai/bin/pip install torch==2.13.0 transformers==5.23.0 onnxruntime==1.32.0 onnx==1.23.2 onnx-ir
genai/bin/pip install --no-deps onnxruntime-genai==0.18.0"""


# -- one engine, in its own process -----------------------------------------------------------------------------------


class Transom:
    """Run the folder as its users do."""

    def __init__(self, folder: str) -> None:
        from transom.deploy import ArrayRuntime

        self._runtime = ArrayRuntime(folder)

    def start(self) -> None:
        self._state = self._runtime.start(1)

    def read(self, ids: Any) -> Any:
        logits, self._state = self._runtime.step(ids, None, self._state)
        return logits


class Optimum:
    """Run the graph by IO binding: keys and values go from one step to the next without a copy to numpy."""

    def __init__(self, folder: str) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        self._session = ort.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
        self._value = ort.OrtValue.ortvalue_from_numpy
        self._past = [put for put in self._session.get_inputs() if put.name.startswith("past_key_values")]
        self._inputs = {put.name for put in self._session.get_inputs()}
        self._outputs = [out.name for out in self._session.get_outputs()]

    def start(self) -> None:
        import numpy as np

        self._seen = 0
        self._kept = {p.name: self._value(np.zeros((1, p.shape[1], 0, p.shape[3]), np.float32)) for p in self._past}

    def read(self, ids: Any) -> Any:
        import numpy as np

        total = self._seen + ids.shape[1]
        places = np.arange(self._seen, total, dtype=np.int64)[None]
        given = {"input_ids": ids, "attention_mask": np.ones((1, total), np.int64), "position_ids": places}
        binding = self._session.io_binding()
        for name in given.keys() & self._inputs:
            binding.bind_ortvalue_input(name, self._value(given[name]))
        for name, value in self._kept.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        found = dict(zip(self._outputs, binding.get_outputs(), strict=True))
        self._seen = total
        self._kept = {name: found[name.replace("past_key_values", "present")] for name in self._kept}
        return found["logits"].numpy()[:, -1]


class Genai:
    """Run the folder as the library's own loop does, without its sampling."""

    def __init__(self, folder: str) -> None:
        import onnxruntime_genai as og

        config = Path(folder, "genai_config.json")
        said = json.loads(config.read_text())
        said["model"]["decoder"]["session_options"]["intra_op_num_threads"] = THREADS
        config.write_text(json.dumps(said))
        self._og, self._model = og, og.Model(folder)

    def start(self) -> None:
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(max_length=1024, do_sample=False)
        self._generator = self._og.Generator(self._model, params)

    def read(self, ids: Any) -> Any:
        self._generator.append_tokens(ids.astype("int32"))
        return self._generator.get_logits()[:, -1]


ENGINES: Mapping[str, Callable[[str], Any]] = {"transom": Transom, "optimum-onnx": Optimum, "genai builder": Genai}


def work(engine: Any) -> None:
    """Run a round for each line that comes in, and print what it took."""
    import numpy as np

    print("ready", flush=True)
    for line in sys.stdin:
        ids = np.random.default_rng(int(line)).integers(3, VOCAB, size=(1, 600))
        found: dict[str, list[float]] = {}
        tokens: list[int] = []

        def step(title: str, columns: slice, ids: Any = ids, found: Any = found, tokens: Any = tokens) -> None:
            begin = time.perf_counter()
            logits = engine.read(ids[:, columns])
            found.setdefault(title, []).append(time.perf_counter() - begin)
            tokens.append(int(np.argmax(logits)))

        for title, length in PROMPTS.items():
            for _ in range(REPEATS):
                engine.start()
                step(title, slice(0, length))
            for place in range(length, length + STEPS):
                step(f"decode at {length}", slice(place, place + 1))
        print(
            json.dumps({"seconds": {title: median(all_) for title, all_ in found.items()}, "tokens": tokens}),
            flush=True,
        )


# -- making the folders -----------------------------------------------------------------------------------------------


def make_weights(folder: str) -> None:
    """Write a Hugging Face folder, with a tokenizer that the builder wants."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=768, intermediate_size=2048, num_hidden_layers=LAYERS, num_attention_heads=12,
        num_key_value_heads=12, max_position_embeddings=2048, rms_norm_eps=1e-6, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2").save_pretrained(folder)


def make_transom(source: str, out: str) -> None:
    """Export by this library."""
    import transom

    _, model = transom.import_checkpoint(source)
    print(json.dumps({"before": peak()}), flush=True)
    with measured("export"):
        transom.export(model, out)


def make_optimum(source: str, out: str) -> None:
    """Export by optimum-onnx."""
    from optimum.exporters.onnx import main_export

    print(json.dumps({"before": peak()}), flush=True)
    with measured("export"):
        main_export(source, out, task="text-generation-with-past")


def make_genai(source: str, out: str) -> None:
    """Build by onnxruntime-genai."""
    command = ["-m", "onnxruntime_genai.models.builder", "-i", source, "-o", out, "-p", "fp32", "-e", "cpu"]
    subprocess.run([sys.executable, *command, "--extra_options", "prune_lm_head=true"], check=True, capture_output=True)


def make_large(out: str) -> None:
    """Export a model of more bytes than a protobuf may have, once."""
    import tempfile

    import transom

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "large.yaml").write_text(LARGE, encoding="utf-8")
        model = transom.compose(transom.load_spec(f"{folder}/large.yaml"))
    weights = sum(weight.nbytes for weight in model.parameters())
    print(json.dumps({"weights": weights, "before": peak()}), flush=True)
    with measured("export"):
        transom.export(model, out)


def peak() -> int:
    """Return the most bytes of memory that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class measured:
    """Print how long a block took, and the most memory that the process has had."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        self.begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        print(json.dumps({self.what: time.perf_counter() - self.begin, "peak": peak()}), flush=True)


MAKERS: Mapping[str, Callable[..., None]] = {
    "weights": make_weights, "transom": make_transom, "optimum-onnx": make_optimum, "genai builder": make_genai,
    "large": make_large,
}  # fmt: skip


# -- taking turns -----------------------------------------------------------------------------------------------------


def make(python: str, name: str, *folders: Path) -> None:
    """Make a folder in an environment, unless it is there."""
    if not folders[-1].exists():
        print(f"making {folders[-1]}", flush=True)
        subprocess.run([python, __file__, "make", name, *map(str, folders)], check=True, stderr=subprocess.DEVNULL)


def compare(pythons: Mapping[str, str], work: Path, rounds: int) -> tuple[dict[str, dict[str, list[float]]], float]:
    """Return seconds by case and engine, a number for each round, and how often the largest logits agree."""
    workers = {}
    for name, python in pythons.items():
        command = [python, __file__, "run", name, str(work / name.replace(" ", "-"))]
        workers[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while (line := workers[name].stdout.readline()).strip() != "ready":  # type: ignore[union-attr]
            if not line:
                raise SystemExit(f"{name}: its engine did not start")
    found: dict[str, dict[str, list[float]]] = {}
    same = []
    for number in range(rounds + 1):
        said = {}
        order = list(workers) if number % 2 else list(workers)[::-1]
        for name in order:
            workers[name].stdin.write(f"{number}\n")  # type: ignore[union-attr]
            workers[name].stdin.flush()  # type: ignore[union-attr]
            said[name] = json.loads(workers[name].stdout.readline())  # type: ignore[union-attr]
            for title, seconds in said[name]["seconds"].items():
                if number:  # the first round warms up
                    found.setdefault(title, {}).setdefault(name, []).append(seconds)
        same += [len(set(tokens)) == 1 for tokens in zip(*(each["tokens"] for each in said.values()), strict=True)]
    for worker in workers.values():
        worker.stdin.close()  # type: ignore[union-attr]
        worker.wait()
    return found, sum(same) / len(same)


def bandwidth() -> float:
    """Return how many bytes a second two threads read from memory (a sum of 512 MB in large pages, the best of 25)."""
    import torch

    from transom.deploy.pages import large_pages

    torch.set_num_threads(THREADS)
    with large_pages():
        numbers, best = torch.ones(1 << 27), float("inf")
    for _ in range(25):
        begin = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - begin)
    return numbers.nbytes / best


def report(found: Mapping[str, Mapping[str, Sequence[float]]], same: float, rounds: int) -> str:
    """Return the page's section."""
    from comparison import table

    names = list(next(iter(found.values())))
    rows = []
    for title, by_engine in found.items():
        cells = [_cell(by_engine[name]) for name in names]
        ours = by_engine["transom"]
        ratios = {n: [b / a for a, b in zip(ours, by_engine[n], strict=True)] for n in names if n != "transom"}
        rows.append((title, *cells, *(_ratio(each) for each in ratios.values())))
    weights = 4 * (LAYERS * (4 * 768**2 + 3 * 768 * 2048) + 768 * VOCAB)
    speed = bandwidth()
    others = [name for name in names if name != "transom"]
    return (
        table(["milliseconds", *names, *(f"{name} / ours" for name in others)], rows)
        + f"\nMedian of {rounds} rounds, in which the engines take turns (range of the ratios). The largest logits "
        f"agree at {same:.1%} of the steps. A step reads {weights / 1e6:.0f} MB of weights; two threads read "
        f"{speed / 1e9:.1f} GB a second here, so that no fp32 step can take less than {weights / speed * 1e3:.1f} ms.\n"
    )


def _cell(seconds: Sequence[float]) -> str:
    return f"{median(seconds) * 1e3:.1f}"


def _ratio(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    """Make what is missing, compare, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimum", help="Python of an environment with optimum-onnx")
    parser.add_argument("--genai", help="Python of an environment with onnxruntime-genai")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench_onnx", help="where the folders go")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--publish", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--large", action="store_true", help="export a model of 2.2 GB instead, once")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.large:
        make(sys.executable, "large", given.work / "large")
        return
    if not given.optimum or not given.genai:
        raise SystemExit(f"The peers' environments are missing (--optimum, --genai). To make them:\n{MAKE}")
    pythons = {"transom": sys.executable, "optimum-onnx": given.optimum, "genai builder": given.genai}
    make(given.genai, "weights", given.work / "weights")
    for name, python in pythons.items():
        make(python, name, given.work / "weights", given.work / name.replace(" ", "-"))
    found, same = compare(pythons, given.work, given.rounds)
    text = report(found, same, given.rounds)
    print(text)
    if given.publish:
        from comparison import publish

        publish("Exported models against other exporters", text, ROOT / "docs" / "benchmarks.md")


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        MAKERS[sys.argv[2]](*sys.argv[3:])
    elif sys.argv[1:2] == ["run"]:
        work(ENGINES[sys.argv[2]](sys.argv[3]))
    else:
        main()
