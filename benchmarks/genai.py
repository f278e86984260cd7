"""Run exported folders in onnxruntime-genai, and compare the tokens that it writes with those of our own runtime.

    make genai

The folders hold small random decoders of every kind of state, and a Llama that was imported. onnxruntime-genai runs in
a process of its own, in an environment of its own, build/genai: it would bring another onnxruntime over ours. Greedy
tokens of one row and of two must be equal until the row ends; the exit code says whether they are.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VOCAB, READ, WRITTEN = 101, 23, 60
BASE = """
model:
  topology: decoder
  d_model: 32
  max_seq_len: 96
  embedding: {{kind: token, vocab_size: {vocab}}}
  position: {position}
  layer: {{norm: rms, attention: {{kind: full, n_heads: 4, n_kv_heads: 2}}, feedforward: {{kind: mlp, d_ff: 48}}}}
  layers: [{{pattern: [{layers}]}}]
  norm: rms
  head: lm
"""
CASES = {  # position and layers
    "full": ("rope", "{}, {}"),
    "local": ("rope", "{attention: {kind: local, window: 9}}, {attention: {kind: local, window: 9}}"),
    "linear": ("rope", "{attention: {kind: linear}}, {attention: {kind: linear}}"),
    "lstm": ("none", "{attention: {kind: lstm}}, {attention: {kind: lstm}}"),
    "sparse": ("rope", "{attention: {kind: sparse, block: 8, n_window: 2, n_global: 1, n_random: 1}}, {}"),
    "latent": ("rope", "{attention: {kind: latent}}, {attention: {kind: latent}}"),
    "mix": (
        "none",
        "{attention: {kind: rwkv}}, {attention: {kind: local, window: 9}}, {attention: {kind: linear}}, {}",
    ),
}


def llama(folder: Path) -> Path:
    """Save a small random Llama as transformers does, and import it as a run."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import transom

    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=96, initializer_range=0.2, bos_token_id=1, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "hf")
    return transom.import_run(folder / "hf", None, folder / "run")


def wanted(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Return what our runtime writes; token 0 ends a text, as it does there where no tokenizer says otherwise."""
    from transom.deploy import generate
    from transom.generation import Sampling

    return [row.ids for row in generate(folder, prompts, Sampling(max_new_tokens=WRITTEN, eos_id=0))]


def found(folder: str, prompts: list[list[int]]) -> list[list[int]]:
    """Return what onnxruntime-genai writes, up to token 0."""
    import numpy as np
    import onnxruntime_genai as og

    model = og.Model(folder)
    options = og.GeneratorParams(model)
    options.set_search_options(max_length=READ + WRITTEN, batch_size=len(prompts))
    generator = og.Generator(model, options)
    generator.append_tokens(np.array(prompts, dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    rows = [[int(token) for token in generator.get_sequence(row)][READ:] for row in range(len(prompts))]
    return [row[: row.index(0)] if 0 in row else row for row in rows]


def compare(python: str, folder: Path, prompts: list[list[int]]) -> bool:
    """Print and return whether both write the same after one prompt, and after two."""
    same = True
    for rows in (prompts[:1], prompts):
        asked = json.dumps([str(folder), rows])
        done = subprocess.run([python, __file__, "--write", asked], capture_output=True, text=True, check=False)
        there = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr.strip()[-300:]
        here = wanted(folder, rows)
        same &= there == here
        said = f"{sum(map(len, here))} tokens equal" if there == here else f"{there} is not {here}"
        print(f"{folder.name}, {len(rows)} row{'s' * (len(rows) > 1)}: {said}", flush=True)
    return same


def main(python: str) -> int:
    """Export every case, run it in both, and return the exit code."""
    import numpy as np

    import transom
    from transom.deploy import ArrayRuntime
    from transom.registry.compose import compose
    from transom.registry.spec import parse_spec

    prompts = np.random.default_rng(3).integers(1, VOCAB, size=(2, READ)).tolist()
    same = True
    with tempfile.TemporaryDirectory() as work:
        models: Mapping[str, Any] = {
            name: compose(parse_spec(BASE.format(vocab=VOCAB, position=position, layers=layers)))
            for name, (position, layers) in CASES.items()
        } | {"llama": llama(Path(work))}
        for name, model in models.items():
            out = Path(work, name)
            transom.export(model, out)
            why = ArrayRuntime(out).manifest.runners["onnxruntime-genai"]
            if why:
                print(f"{name}: {why}")
            same &= not why and compare(python, out, prompts)
    return 0 if same else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        print(json.dumps(found(*json.loads(sys.argv[2]))))
    else:
        sys.exit(main(sys.argv[1]))
