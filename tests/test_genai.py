"""Folders say how onnxruntime-genai runs them: a graph whose state begins as zeros and is written where it stands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from transom.deploy import ArrayRuntime, export, generate
from transom.deploy.genai import write_genai
from transom.deploy.manifest import GraphFacts, Manifest, StateFacts, TensorFacts
from transom.generation import Sampling
from transom.registry.compose import compose
from transom.registry.spec import parse_spec

MIX = """
model:
  topology: decoder
  d_model: 32
  max_seq_len: 64
  embedding: {kind: token, vocab_size: 53}
  position: none
  layer: {norm: rms, attention: {kind: full, n_heads: 4, n_kv_heads: 2}, feedforward: {kind: mlp, d_ff: 24}}
  layers:
    - pattern: [{attention: {kind: local, window: 5}}, {attention: {kind: latent}}, {}, {attention: {kind: rwkv}}]
  norm: rms
  head: lm
"""


def greedy(folder: Path, prompts: np.ndarray[Any, Any], steps: int) -> list[list[int]]:
    """Write as onnxruntime-genai does: by its config, all state in buffers of zeros that a step reads and writes."""
    config = json.loads((folder / "genai_config.json").read_text())
    decoder, room = config["model"]["decoder"], config["search"]["max_length"]
    session = ort.InferenceSession(folder / decoder["filename"], providers=["CPUExecutionProvider"])
    (past, _), (present, _) = (
        decoder[side][f"{name}_key_names"].split("%d") for side, name in (("inputs", "past"), ("outputs", "present"))
    )
    buffers = {}
    for put in session.get_inputs():
        if put.name.startswith(past):
            shape = [d if isinstance(d, int) else {"batch": len(prompts), "past": room}[d] for d in put.shape]
            assert len(shape) == (3 if put.name.endswith("conv_state") else 4)
            buffers[put.name] = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype=np.float32))
    written: list[np.ndarray[Any, Any]] = []
    ids = prompts
    for step in range(steps):
        binding = session.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", np.ones((len(ids), prompts.shape[1] + step), dtype=np.int64))
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(present + name.removeprefix(past), buffer)
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        ids = binding.copy_outputs_to_cpu()[-1][:, -1].argmax(-1)[:, None].astype(np.int64)
        written.append(ids)
    return np.concatenate(written, axis=1).tolist()  # type: ignore[no-any-return]


def test_every_kind_of_state_is_held_in_its_buffers(tmp_path: Path) -> None:
    model = compose(parse_spec(MIX))
    for weight in model.parameters():
        weight.data *= 1.5
    export(model, tmp_path / "out")
    runtime = ArrayRuntime(tmp_path / "out")
    assert runtime.manifest.runners == {"onnxruntime-genai": ""}
    assert {
        "genai.onnx",
        "genai_config.json",
        "model.onnx",
        "model.onnx.data",
        "folder.schema.json",
        "reference.safetensors",
    } == set(runtime.manifest.files)
    graphs = [
        onnx.load(tmp_path / "out" / name, load_external_data=False).graph for name in ("model.onnx", "genai.onnx")
    ]
    outside = [{each.name for each in graph.initializer if each.external_data} for graph in graphs]
    assert outside[0] == outside[1]
    assert len(outside[0]) > 20
    prompts = np.random.default_rng(6).integers(53, size=(3, 11))
    wanted = [row.ids for row in generate(runtime, prompts.tolist(), Sampling(max_new_tokens=40))]
    assert len({tuple(row[5:]) for row in wanted}) == 3
    assert greedy(tmp_path / "out", prompts, 40) == wanted
    assert greedy(tmp_path / "out", prompts[1:2], 40) == wanted[1:2]


def keys(name: str, *dims: str | int, grows: str = "slots", dtype: str = "float32") -> dict[str, StateFacts]:
    return {name: StateFacts(f"past.{name}", f"present.{name}", ("batch", *dims), dtype, grows, 0.0)}


def manifest(*state: dict[str, StateFacts], **changed: Any) -> Manifest:
    """Describe a decoder that keeps this."""
    all_state = {name: facts for each in state for name, facts in each.items()}
    inputs = {
        "input_ids": TensorFacts(("batch", "sequence"), "int64", 70),
        "attention_mask": TensorFacts(("batch", "total"), "int64", 2),
    }
    logits = {"logits": TensorFacts(("batch", 1, 70), "float32")}
    graph = GraphFacts("model.onnx", inputs, logits, tuple(all_state), tuple(all_state))
    made = Manifest(max_seq_len=90, vocab_size=70, opset=24, precision="fp32", graphs={"model": graph}, state=all_state)
    return replace(made, **changed)


KV = [keys(f"layers.{i}.attention.{k}", 3, "past", 8) for i in range(4) for k in "kv"]


def test_keys_and_values_are_named_as_they_stand(tmp_path: Path) -> None:
    said = manifest(*KV, special_ids={"bos": 1, "eos": 2}, stop_ids=(5,), edges=(33, 60))
    assert write_genai(tmp_path, said) == ""
    config = json.loads((tmp_path / "genai_config.json").read_text())
    decoder = config["model"].pop("decoder")
    assert [path.name for path in tmp_path.iterdir()] == ["genai_config.json"]
    assert decoder["filename"] == "model.onnx"
    assert decoder["inputs"]["past_key_names"] == "past.layers.%d.attention.k"
    assert decoder["outputs"]["present_value_names"] == "present.layers.%d.attention.v"
    assert (decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]) == (4, 3, 8)
    assert config["model"] == {
        "type": "decoder", "context_length": 33, "vocab_size": 70, "bos_token_id": 1, "eos_token_id": [2, 5],
        "pad_token_id": 2,
    }  # fmt: skip
    assert config["search"] == {"max_length": 33, "do_sample": False, "past_present_share_buffer": True}


GRAPH = manifest(*KV).graphs["model"]
CLASSES = {"logits": TensorFacts(("batch", 4), "float32")}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (manifest(*KV, generates=False), "models of one graph"),
        (manifest(*KV, graphs={"encoder": GRAPH, "decoder": GRAPH}), "models of one graph"),
        (manifest(*KV, graphs={"model": replace(GRAPH, outputs=CLASSES)}), "answers once a text"),
        (manifest(*KV, graphs={"model": replace(GRAPH, inputs={"pixel_values": GRAPH.inputs["input_ids"]})}),
         "takes pixel_values"),
        (manifest(*KV, keys("seen", grows="fixed", dtype="int64")), "keeps seen, which is no layer's"),
        (manifest(*KV, keys("layers.4.x.at", 2, grows="ring", dtype="int64")), "keeps layers.4.x.at as int64"),
        (manifest(*KV, keys("layers.0.attention.more", 3, "past", 8)), "layer 0 keeps layers.0.attention.k, "),
        (manifest(keys("layers.0.a.k", 3, "past", 8), keys("layers.0.a.v", 3, "past", 9)), "two tensors of one shape"),
    ],
)  # fmt: skip
def test_what_it_can_t_hold_is_said(said: Manifest, why: str, tmp_path: Path) -> None:
    assert why in write_genai(tmp_path, said)
    assert not list(tmp_path.iterdir())
