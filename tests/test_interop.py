"""Weights of Hugging Face folders: in by names that a spec gives, the same numbers and logits, and back bit for bit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from interop_models import GPT2, LLAMA, Tensors, gpt2, gpt2_weights, llama, llama_weights, put, same
from safetensors.torch import load_file

import transom
from transom.core.component import Component
from transom.core.moves import Take
from transom.interop import export_checkpoint, import_checkpoint, import_run
from transom.interop.mapping import mapping
from transom.registry.compose import compose
from transom.registry.sources import bundled
from transom.registry.spec import Spec, load_spec, parse_spec


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_llama_computes_the_same_and_goes_back(tmp_path: Path, tied: bool, shards: int) -> None:
    theirs = llama_weights(tied)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(5)}
    folder = put(tmp_path / "hf", theirs | extra, shards)
    spec = parse_spec(LLAMA, [f"model.head.tied={str(tied).lower()}"])
    (_, model), ids = import_checkpoint(folder, spec), torch.randint(97, (23,))
    q, k, v = (theirs[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv")
    assert torch.equal(model.decoder.layers[1].attention.qkv.weight, torch.cat([q, k, v]))  # type: ignore[union-attr]
    wanted = llama({name: tensor.double() for name, tensor in theirs.items()}, ids)
    with torch.no_grad():
        torch.testing.assert_close(model.double()(input_ids=ids[None]).logits[0], wanted, rtol=1e-9, atol=1e-9)
    run = import_run(folder, spec, tmp_path / "run")
    same(dict(transom.load(run).state_dict()), dict(model.float().state_dict()))
    back = export_checkpoint(run, tmp_path / "back")
    same(load_file(back / "model.safetensors"), theirs)
    assert (back / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_gpt2_computes_the_same_and_goes_back(tmp_path: Path) -> None:
    theirs = gpt2_weights()
    # A mask that old checkpoints carry has a name like that of a weight.
    folder = put(tmp_path / "hf", theirs | {"h.0.attn.bias": torch.ones(1, 1, 29, 29)})
    (_, model), ids = import_checkpoint(folder, parse_spec(GPT2)), torch.randint(83, (19,))
    wanted = gpt2({name: tensor.double() for name, tensor in theirs.items()}, ids)
    with torch.no_grad():
        torch.testing.assert_close(model.double()(input_ids=ids[None]).logits[0], wanted, rtol=1e-9, atol=1e-9)
    back = export_checkpoint(import_run(folder, parse_spec(GPT2), tmp_path / "run"), tmp_path / "back")
    same(load_file(back / "model.safetensors"), theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_dtype_stays_and_large_folders_are_split(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs = llama_weights(dtype=dtype)
    run = import_run(put(tmp_path / "hf", theirs, 2), parse_spec(LLAMA), tmp_path / "run")
    model = transom.load(run)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    table = model.decoder.embedding.weight  # type: ignore[union-attr]
    assert torch.equal(table, theirs["model.embed_tokens.weight"].float())  # type: ignore[arg-type]
    back = export_checkpoint(run, tmp_path / "back", shard_bytes=20_000)
    files = sorted(back.glob("*.safetensors"))
    assert len(files) > 2
    assert all(sum(t.nbytes for t in load_file(file).values()) <= 20_000 for file in files)
    index = json.loads((back / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in theirs.values())
    assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
    same({name: t for file in files for name, t in load_file(file).items()}, theirs)
    import_checkpoint(back, parse_spec(LLAMA))


# The same model, laid out in every other way that there is: fused, per group of heads, under older and other names.
OTHERWISE = {
    "model.layers.{layer}.self_attn": "{at: 'model.layers.{layer}.attn', layout: per_head, names: {dense: out.dense}}",
    "model.layers.{layer}.input_layernorm": "{at: 'model.layers.{layer}.input_layernorm', layout: gamma}",
    "model.layers.{layer}.post_attention_layernorm": "model.layers.{layer}.post",
    "model.layers.{layer}.mlp": "{at: 'model.layers.{layer}.mlp', layout: fused, names: {down_proj: w2}}",
    "  ignore": "    decoder.layers.1.attention: {at: model.layers.1.own, layout: fused}\n  ignore",
}


def otherwise(plain: Tensors) -> Tensors:
    """Return the same weights as `OTHERWISE` has them."""
    renamed = {"input_layernorm.weight": "input_layernorm.gamma", "post_attention_layernorm": "post", "down_proj": "w2"}
    other = {}
    for name, tensor in plain.items():
        if not re.search("self_attn|gate_proj|up_proj", name):
            other[re.sub("|".join(renamed), lambda found: renamed[found[0]], name)] = tensor
    for number in range(3):
        layer = f"model.layers.{number}."
        q, k, v, o = (plain[f"{layer}self_attn.{name}_proj.weight"] for name in "qkvo")
        gate_up = [plain[f"{layer}mlp.{name}_proj.weight"] for name in ("gate", "up")]
        other[layer + "mlp.gate_up_proj.weight"] = torch.cat(gate_up)
        if number == 1:
            other |= {layer + "own.qkv.weight": torch.cat([q, k, v]), layer + "own.o_proj.weight": o}
        else:
            groups = [torch.cat([q[30 * g :][:30], k[10 * g :][:10], v[10 * g :][:10]]) for g in range(2)]
            other |= {layer + "attn.query_key_value.weight": torch.cat(groups), layer + "attn.out.dense.weight": o}
    return other


def test_other_layouts_other_names_and_a_layer_of_its_own(tmp_path: Path) -> None:
    plain = llama_weights()
    want = import_checkpoint(put(tmp_path / "plain", plain), parse_spec(LLAMA))[1].state_dict()
    text = LLAMA
    for before, after in OTHERWISE.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    other = otherwise(plain)
    run = import_run(put(tmp_path / "other", other), parse_spec(text), tmp_path / "run")
    same(dict(transom.load(run).state_dict()), dict(want))
    same(load_file(export_checkpoint(run, tmp_path / "back") / "model.safetensors"), other)


def test_a_module_around_others_holds_what_they_leave(tmp_path: Path) -> None:
    """The whole model under its own names, but for one part; what is nearest to a parameter says where it is."""
    text = LLAMA[: LLAMA.index("hf:")] + "hf: {modules: {'': us, decoder.layers.2.attention: them, heads: us.out}}"
    model = compose(parse_spec(LLAMA))
    theirs = {}
    for name, tensor in model.state_dict().items():
        there = f"us.{name}".replace("us.heads", "us.out").replace("us.decoder.layers.2.attention.", "them.")
        parts = zip("qkv", tensor.split([60, 20, 20]), strict=True) if there == "them.qkv.weight" else ()
        theirs |= {f"them.{part}_proj.weight": piece.clone() for part, piece in parts} or {there: tensor}
    theirs["them.o_proj.weight"] = theirs.pop("them.out.weight")
    _, found = import_checkpoint(put(tmp_path / "hf", theirs), parse_spec(text))
    same(dict(found.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize(
    "spec",
    [
        *(load_spec(name) for name in bundled()),
        load_spec(
            "tiny_gpt", [f"model.layer.attention.{option}" for option in ("bias=true", "qk_norm=rms", "gate=true")]
        ),
        load_spec("tiny_gpt", ["model.layer.feedforward.bias=true"]),
        load_spec("tiny_gpt", ["model.layer.attention.bias=[q,v,out]"]),
        load_spec("tiny_t5", ["model.layer.attention.bias=[out]", "model.decoder.layer.cross_attention.bias=[q,v]"]),
    ],
    ids=lambda spec: spec.name,
)
def test_every_layout_of_every_bundled_part_is_exact(spec: Spec) -> None:
    """Each parameter of each component comes back from what is published, and no two have one name there."""
    seen = set()
    for module in compose(spec).modules():
        if not isinstance(module, Component) or (key := str(module)) in seen:
            continue
        seen.add(key)
        own = module.state_dict()
        for layout, moves in module.layouts().items():
            assert own.keys() >= moves.keys(), layout
            published: Tensors = {}
            for name, tensor in own.items():
                move = moves.get(name, Take(name))
                theirs = move.save(tensor)
                assert published.keys().isdisjoint(theirs)
                published |= theirs
                assert torch.equal(move.load(theirs.__getitem__), tensor)
            assert sum(tensor.numel() for tensor in published.values()) == sum(
                tensor.numel() for tensor in own.values()
            )
    assert seen


def test_the_example_of_the_documentation(root: Path) -> None:
    """Its spec is whole, and finds its weights where a Llama of two layers has them."""
    page = (root / "docs" / "interop.md").read_text(encoding="utf-8")
    spec = parse_spec(page.partition("```yaml\n")[2].partition("```")[0])
    found = {name for item in mapping(compose(spec, "meta"), spec) for name in item.published}
    assert found == {name for name in llama_weights() if "layers.2." not in name}
    modules = set(dict(compose(spec, "meta").named_modules()))
    for module in re.findall(r"`(decoder\.[a-z0-9_.]+)`", page):
        assert module in modules
