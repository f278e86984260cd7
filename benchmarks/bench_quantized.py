"""What quantized graphs cost in size, truth and time, against the exact graph and onnxruntime-genai's builder.

    python benchmarks/bench_quantized.py --genai VENV/bin/python

The peer is optional and wants an environment of its own, because it brings another onnxruntime; torch, transformers and
onnx-ir, which its builder needs, may come from the one that runs this:

    python -m venv VENV
    VENV/bin/pip install --no-deps onnxruntime-genai onnxruntime
    echo SITE_PACKAGES_OF_THIS_ONE > VENV/lib/pythonX.Y/site-packages/zz_shared.pth

Weights are random: a llama of 110M parameters, made by transformers, that both read from one folder. The peer is built
with the head of the last token alone (`prune_lm_head`) and else by its defaults. Engines run in processes of their own,
in turns, two threads each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PREFILL, DECODE, ROUNDS, TEXTS, LENGTH = 512, 16, 7, 24, 48
SHAPE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
OURS: Mapping[str, Mapping[str, Any] | None] = {
    "fp32": None,
    "int8": {"method": "int8"},
    "int8_weights": {"method": "int8_weights"},
    "int8_weights, embedding": {"method": "int8_weights", "embedding": True},
    "int4": {"method": "int4"},
    "int4, embedding": {"method": "int4", "embedding": True},
    "int4, long blocks": {"method": "int4", "block_size": 256, "embedding": True, "wide": ("*.attention.out",)},
}
THEIRS: Mapping[str, Sequence[str]] = {
    "fp32": ("-p", "fp32"),
    "int8": ("-p", "int8"),
    "int4": ("-p", "int4"),
    "int4 k_quant": ("-p", "int4", "--extra_options", "algo_config=k_quant"),
    "int4 long blocks": ("-p", "int4", "--extra_options", "block_size=256"),
}

# What a process does that holds one engine: it answers lines of JSON with lines of JSON.
CHILD = """
import json, sys, time
import numpy as np
kind, folder = sys.argv[1:]
if kind == "transom":
    from transom.deploy.arrays import ArrayRuntime
    runtime = ArrayRuntime(folder)
    def prefill(ids):
        begun = time.perf_counter()
        logits, state = runtime.step(np.array([ids]), None, runtime.start(1))
        return time.perf_counter() - begun, logits[0], state
    def decode(ids, count):
        _, logits, state = prefill(ids)
        logits, state = runtime.step(logits.reshape(1, -1).argmax(-1)[:, None], None, state)  # there is room now
        begun = time.perf_counter()
        for _ in range(count):
            logits, state = runtime.step(logits.reshape(1, -1).argmax(-1)[:, None], None, state)
        return (time.perf_counter() - begun) / count
else:
    import onnxruntime_genai as og
    model = og.Model(folder)
    def prefill(ids):
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(ids) + 64, do_sample=False, min_length=len(ids) + 64)
        generator = og.Generator(model, params)
        begun = time.perf_counter()
        generator.append_tokens(np.array([ids], dtype=np.int32))
        logits = generator.get_logits()
        return time.perf_counter() - begun, np.asarray(logits, dtype=np.float32).reshape(-1), generator
    def decode(ids, count):
        generator = prefill(ids)[2]
        generator.generate_next_token()  # of the logits that are there
        begun = time.perf_counter()
        for _ in range(count):
            generator.generate_next_token()
        return (time.perf_counter() - begun) / count
for line in sys.stdin:
    asked = json.loads(line)
    if "logits" in asked:
        np.save(asked["logits"], np.stack([prefill(ids)[1] for ids in asked["texts"]]))
        answer = None
    else:
        answer = prefill(asked["ids"])[0] if asked["what"] == "prefill" else decode(asked["ids"], asked["count"])
    print(json.dumps(answer), flush=True)
"""


@dataclass
class Engine:
    """Hold an engine in a process of its own."""

    title: str
    folder: Path
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, kind: str, name: str, python: str, folder: Path) -> Engine:
        """Start a process that loads a folder."""
        command = [python, "-c", CHILD, kind, str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return cls(f"{kind} {name}", folder, process)

    def ask(self, **question: Any) -> Any:
        """Return the answer to a question."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    @property
    def megabytes(self) -> float:
        """Return the size of graph and weights."""
        return sum(path.stat().st_size for path in self.folder.iterdir() if ".onnx" in path.name) / 1e6


def make_model(folder: Path) -> None:
    """Write a llama with random weights, and a tokenizer with a word for each id, as transformers saves them."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32000, max_position_embeddings=2048, tie_word_embeddings=True, **SHAPE)
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, 32000)}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="<unk>"))
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def build_ours(work: Path, names: Sequence[str]) -> list[Engine]:
    """Import and export the model, quantize what was exported in each way, and start the engines."""
    from transom.deploy import export
    from transom.interop import import_run

    if not (work / "run").exists():
        import_run(work / "hf", None, work / "run")
    if not (work / "fp32").exists():
        export(work / "run", work / "fp32")
    engines = []
    for name in names:
        out = work / name.replace(", ", "-").replace(" ", "-")
        if not out.exists():
            quantized(work / "fp32", out, OURS[name])
        engines.append(Engine.start("transom", name, sys.executable, out))
    return engines


def quantized(exact: Path, out: Path, options: Any) -> None:
    """Quantize the graph of an exported folder as `export` does, without its report."""
    from transom.deploy.manifest import Manifest, sha256
    from transom.deploy.quantize import quantize
    from transom.registry.settings import QuantizeSettings

    out.mkdir()
    quantize(exact / "model.onnx", out / "model.onnx", QuantizeSettings(**options))
    files = {path.name: sha256(path) for path in sorted(out.iterdir())}
    replace(Manifest.read(exact), precision=options["method"], files=files).write(out)


def build_theirs(work: Path, python: str, names: Sequence[str]) -> list[Engine]:
    """Build the peer's folders, by two threads, and start the engines."""
    engines = []
    for name in names:
        out, options = work / f"genai-{name.replace(' ', '-')}", THEIRS[name]
        if not out.exists():
            extra = [] if "--extra_options" in options else ["--extra_options"]
            command = [python, "-m", "onnxruntime_genai.models.builder", "-i", work / "hf", "-o", out, "-e", "cpu"]
            subprocess.run([*command, *options, *extra, "prune_lm_head=true"], check=True, capture_output=True)
            config = json.loads((out / "genai_config.json").read_text())
            config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = 2
            (out / "genai_config.json").write_text(json.dumps(config))
        engines.append(Engine.start("genai", name, python, out))
    return engines


def logits_of(engines: Sequence[Engine], work: Path) -> dict[str, NDArray[np.float32]]:
    """Return the logits of the token after each of some texts, (texts, V), by engine."""
    random = np.random.default_rng(2)
    texts = [random.integers(3, 32000, size=int(size)).tolist() for size in random.integers(4, LENGTH, size=TEXTS)]
    found = {}
    for engine in engines:
        engine.ask(texts=texts, logits=str(work / "logits.npy"))
        found[engine.title] = np.load(work / "logits.npy")
    return found


def times_of(engines: Sequence[Engine]) -> dict[str, dict[str, list[float]]]:
    """Return seconds of a prefill and of a decoded token, by engine, taken in turns."""
    ids = np.random.default_rng(1).integers(3, 32000, size=PREFILL).tolist()
    asked = {"prefill": {"ids": ids}, "decode at 32": {"ids": ids[:32]}, "decode at 512": {"ids": ids}}
    times: dict[str, dict[str, list[float]]] = {engine.title: {what: [] for what in asked} for engine in engines}
    for turn in range(ROUNDS + 1):
        for what, given in asked.items():
            for engine in engines:
                seconds = engine.ask(what=what.split()[0], count=DECODE, **given)
                if turn:  # the first warms up
                    times[engine.title][what].append(seconds)
    return times


def rows_of(engines: Sequence[Engine], work: Path) -> list[list[str]]:
    """Return a row for each engine; speeds are those of its own exact graph's in the same turns, and of ours."""
    logits, times = logits_of(engines, work), times_of(engines)
    exact = logits["transom fp32"]
    rows = []
    for engine in engines:
        apart = logits[engine.title] - exact
        same = float((logits[engine.title].argmax(-1) == exact.argmax(-1)).mean())
        row = [
            engine.title,
            f"{engine.megabytes:.0f}",
            f"{np.linalg.norm(apart) / np.linalg.norm(exact):.4f}",
            f"{same:.0%}",
        ]
        for what, seconds in times[engine.title].items():
            base = times["transom fp32"][what]
            median = statistics.median(seconds)
            low, high = min(seconds), max(seconds)
            row.append(f"{median * 1e3:.1f} ({low * 1e3:.1f}-{high * 1e3:.1f}), {statistics.median(base) / median:.2f}")
        rows.append(row)
    return rows


def main() -> None:
    """Print the table; keep what was built where `--work` says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--genai", help="the Python of an environment with onnxruntime-genai")
    parser.add_argument("--work", type=Path, help="a folder that keeps what was built; a temporary one unless given")
    parser.add_argument("--ours", nargs="*", default=list(OURS), help="which of our graphs besides fp32")
    parser.add_argument("--theirs", nargs="*", default=list(THEIRS), help="which of the peer's")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if not (work / "hf").exists():
            make_model(work / "hf")
        engines = build_ours(work, list(dict.fromkeys(["fp32", *given.ours])))
        engines += build_theirs(work, given.genai, given.theirs) if given.genai else []
        try:
            titles = ["graph", "MB", "RMS error", "same token"]
            titles += [f"{what}: ms (least-most), speed" for what in ("prefill 512", "decode at 32", "decode at 512")]
            for row in [titles, *rows_of(engines, work)]:
                print(" | ".join(row), flush=True)
        finally:
            for engine in engines:
                engine.process.kill()


if __name__ == "__main__":
    main()
