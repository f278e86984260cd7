"""Small published checkpoints, their specs, and how the published models compute."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]

LLAMA = """
name: tiny-llama
model:
  topology: decoder
  d_model: 48
  max_seq_len: 31
  embedding: {kind: token, vocab_size: 97}
  position: {kind: rope, theta: 500.0}
  layer:
    norm: {kind: rms, eps: 1.0e-6}
    attention: {kind: full, n_heads: 6, n_kv_heads: 2, head_dim: 10}
    feedforward: {kind: glu, d_ff: 37}
  layers: [{repeat: 3}]
  norm: {kind: rms, eps: 1.0e-6}
  head: {kind: lm, tied: false}
hf:
  modules:
    decoder.embedding: model.embed_tokens
    decoder.layers.{layer}.attention: model.layers.{layer}.self_attn
    decoder.layers.{layer}.attention_norm: model.layers.{layer}.input_layernorm
    decoder.layers.{layer}.feedforward_norm: model.layers.{layer}.post_attention_layernorm
    decoder.layers.{layer}.feedforward: model.layers.{layer}.mlp
    decoder.norm: model.norm
    heads.head: lm_head
  ignore: ["*.rotary_emb.inv_freq"]
"""
GPT2 = """
name: tiny-gpt2
model:
  topology: decoder
  d_model: 36
  max_seq_len: 29
  embedding: {kind: token, vocab_size: 83}
  position: learned
  layer:
    norm: layer
    attention: {kind: full, n_heads: 4, bias: true}
    feedforward: {kind: mlp, d_ff: 50, activation: gelu_tanh, bias: true}
  layers: [{repeat: 2}]
  norm: layer
  head: {kind: lm, tied: true}
hf:
  modules:
    decoder.embedding: wte
    decoder.positions.0: wpe
    decoder.layers.{layer}.attention: {at: "h.{layer}.attn", layout: conv1d}
    decoder.layers.{layer}.attention_norm: h.{layer}.ln_1
    decoder.layers.{layer}.feedforward_norm: h.{layer}.ln_2
    decoder.layers.{layer}.feedforward: {at: "h.{layer}.mlp", layout: conv1d}
    decoder.norm: ln_f
  ignore: ["h.*.attn.bias"]
"""


def drawn(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> Tensors:
    """Draw weights large enough that scores differ: with smaller ones a wrong order would hardly show."""
    made = {}
    for name, shape in shapes.items():
        fan_in = shape[0] if ".c_" in name else shape[-1]  # a table's vectors come out long, which a norm undoes
        made[name] = (torch.randn(shape) * (2.0 * fan_in**-0.5 if len(shape) > 1 else 1.0)).to(dtype)
    return made


def llama_weights(tied: bool = False, dtype: torch.dtype = torch.float32) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (97, 48), "model.norm.weight": (48,)}
    if not tied:
        shapes["lm_head.weight"] = (97, 48)
    for layer in (f"model.layers.{number}." for number in range(3)):
        shapes |= {layer + "self_attn.q_proj.weight": (60, 48), layer + "self_attn.o_proj.weight": (48, 60)}
        shapes |= {layer + f"self_attn.{name}_proj.weight": (20, 48) for name in "kv"}
        shapes |= {layer + f"mlp.{name}_proj.weight": (37, 48) for name in ("gate", "up")}
        shapes |= {layer + "mlp.down_proj.weight": (48, 37)}
        shapes |= {layer + f"{name}_layernorm.weight": (48,) for name in ("input", "post_attention")}
    return drawn(shapes, dtype)


def gpt2_weights() -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (83, 36), "wpe.weight": (29, 36)}
    shapes |= {f"ln_f.{kind}": (36,) for kind in ("weight", "bias")}
    for layer in ("h.0.", "h.1."):
        for name, rows, columns in (("attn.c_attn", 36, 108), ("attn.c_proj", 36, 36)):
            shapes |= {f"{layer}{name}.weight": (rows, columns), f"{layer}{name}.bias": (columns,)}
        for name, rows, columns in (("mlp.c_fc", 36, 50), ("mlp.c_proj", 50, 36)):
            shapes |= {f"{layer}{name}.weight": (rows, columns), f"{layer}{name}.bias": (columns,)}
        shapes |= {f"{layer}{name}.{kind}": (36,) for name in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    return drawn(shapes)


def put(folder: Path, tensors: Tensors, shards: int = 1) -> Path:
    """Write tensors as a folder: one file, or several with an index."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "tiny"}\n')
    names = list(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    places = {name: f"model-{number % shards + 1:05}-of-{shards:05}.safetensors" for number, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def llama(t: Tensors, ids: Tensor) -> Tensor:
    """Return the logits (T, V) of ids (T,) as the published model computes them."""

    def norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * t[name]

    def turn(x: Tensor) -> Tensor:
        angle = torch.arange(len(ids))[:, None] * 500.0 ** -(torch.arange(0, 10, 2, dtype=x.dtype) / 10)
        cos, sin = (torch.cat([f(angle)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))
        return x * cos + torch.cat([-x[..., 5:], x[..., :5]], -1) * sin

    x = t["model.embed_tokens.weight"][ids]
    for layer in (f"model.layers.{number}." for number in range(3)):
        y = norm(x, layer + "input_layernorm.weight")
        q, k, v = (
            (y @ t[f"{layer}self_attn.{name}_proj.weight"].T).unflatten(-1, (heads, 10))
            for name, heads in (("q", 6), ("k", 2), ("v", 2))
        )
        q, k, v = turn(q), turn(k).repeat_interleave(3, 1), v.repeat_interleave(3, 1)
        scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(10)
        scores = scores.masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -math.inf)
        assert scores[scores.isfinite()].std() > 1
        mixed = torch.einsum("hts,shd->thd", scores.softmax(-1), v).flatten(1)
        x = x + mixed @ t[layer + "self_attn.o_proj.weight"].T
        y = norm(x, layer + "post_attention_layernorm.weight")
        gate, up = (y @ t[f"{layer}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ t[layer + "mlp.down_proj.weight"].T
    return norm(x, "model.norm.weight") @ t.get("lm_head.weight", t["model.embed_tokens.weight"]).T


def gpt2(t: Tensors, ids: Tensor) -> Tensor:
    """Return the logits (T, V) of ids (T,) as the published model computes them."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (36,), t[name + ".weight"], t[name + ".bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ t[name + ".weight"] + t[name + ".bias"]

    x = t["wte.weight"][ids] + t["wpe.weight"][: len(ids)]
    for layer in ("h.0.", "h.1."):
        q, k, v = (
            part.unflatten(-1, (4, 9)).transpose(0, 1)
            for part in linear(norm(x, layer + "ln_1"), layer + "attn.c_attn").split(36, -1)
        )
        scores = (q @ k.mT / 3.0).masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -math.inf)
        assert scores[scores.isfinite()].std() > 1
        x = x + linear((scores.softmax(-1) @ v).transpose(0, 1).flatten(1), layer + "attn.c_proj")
        inner = F.gelu(linear(norm(x, layer + "ln_2"), layer + "mlp.c_fc"), approximate="tanh")
        x = x + linear(inner, layer + "mlp.c_proj")
    return norm(x, "ln_f") @ t["wte.weight"].T


def same(found: Tensors, wanted: Tensors) -> None:
    """Check that two sets of tensors are equal in names, dtypes, shapes and bits."""
    assert sorted(found) == sorted(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
