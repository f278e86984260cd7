"""Broken, hostile and unfitting Hugging Face folders: each is refused with its place, and nothing is written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from interop_models import Tensors, put
from safetensors.torch import save_file

from transom.core.moves import Concat, Layouts, Take
from transom.errors import CheckpointError, PluginError, SpecError
from transom.interop import export_checkpoint, import_checkpoint, import_run
from transom.plugins.norm.rms import RmsNorm
from transom.registry.spec import parse_spec

SPEC = """name: small
model:
  topology: decoder
  d_model: 6
  max_seq_len: 9
  embedding: {kind: token, vocab_size: 11}
  position: none
  layer: {norm: rms, attention: none, feedforward: {kind: glu, d_ff: 5}}
  layers: [{repeat: 2}]
  norm: rms
  head: {kind: lm, tied: true}
hf:
  modules:
    decoder.embedding: wte
    decoder.layers.{layer}.feedforward: h.{layer}.mlp
    decoder.layers.{layer}.feedforward_norm: h.{layer}.ln
    decoder.norm: ln_f
  ignore: ["*.cache"]
"""
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def weights() -> Tensors:
    shapes = {"wte.weight": (11, 6), "ln_f.weight": (6,)}
    for layer in ("h.0.", "h.1."):
        shapes |= {f"{layer}mlp.{name}_proj.weight": (5, 6) for name in ("gate", "up")}
        shapes |= {f"{layer}mlp.down_proj.weight": (6, 5), f"{layer}ln.weight": (6,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def refused(folder: Path, error: type[Exception] = CheckpointError, spec: str = SPEC) -> str:
    """Return why a folder is refused as a run; nothing is left beside it."""
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(error) as run:
        import_run(folder, parse_spec(spec), folder.parent / "runs" / "run")
    with pytest.raises(error) as model:
        import_checkpoint(folder, parse_spec(spec))
    assert sorted(folder.parent.rglob("*")) == before
    assert str(run.value) == str(model.value)
    return str(run.value)


def reindexed(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def truncate(folder: Path) -> None:
    os.truncate(folder / FIRST, (folder / FIRST).stat().st_size - 1)


def link_out(folder: Path) -> None:
    (folder / FIRST).rename(folder.parent / "elsewhere.safetensors")
    (folder / FIRST).symlink_to("../elsewhere.safetensors")


def twice(folder: Path) -> None:
    save_file({"ln_f.weight": torch.zeros(6)}, folder / "extra.safetensors")
    reindexed(folder, lambda places: places.update({"a": "extra.safetensors"}))


def twice_in_the_index(folder: Path) -> None:
    text = (folder / INDEX).read_text()
    (folder / INDEX).write_text(text.replace('"weight_map": {', f'"weight_map": {{"ln_f.weight": "{SECOND}", '))


def swapped(places: dict[str, object]) -> None:
    places["wte.weight"] = SECOND if places["wte.weight"] == FIRST else FIRST


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "up": (lambda f: reindexed(f, lambda p: p.update({"x": "../../x"})), "'x': names the file '../../x', which is not"),
    "root": (lambda f: reindexed(f, lambda p: p.update({"x": "/etc/passwd"})), "names the file '/etc/passwd', which"),
    "dots": (lambda f: reindexed(f, lambda p: p.update({"x": ".."})), "names the file '..', which is not a plain name"),
    "number": (lambda f: reindexed(f, lambda p: p.update({"x": 7})), "names the file '7', which is not a plain name"),
    "link": (link_out, f"{FIRST} is a link that leads out of the folder"),
    "truncated": (truncate, f"{FIRST}: can't be read as safetensors"),
    "garbage": (lambda f: (f / FIRST).write_bytes(b"\x80garbage" * 9), f"{FIRST}: can't be read as safetensors"),
    "missing": (lambda f: (f / SECOND).unlink(), f"{SECOND} is missing"),
    "folder": (lambda f: ((f / SECOND).unlink(), (f / SECOND).mkdir()), f"{SECOND} is missing"),
    "twice": (twice, "'ln_f.weight' is in extra.safetensors too"),
    "key": (twice_in_the_index, f"{INDEX}: can't be read as JSON: it names 'ln_f.weight' twice"),
    "false": (lambda f: reindexed(f, lambda p: p.update({"ln_g.weight": FIRST})), f"{FIRST}: has no 'ln_g.weight'"),
    "swapped": (lambda f: reindexed(f, swapped), "has 'wte.weight', which model.safetensors.index.json says is in"),
    "unnamed": (lambda f: reindexed(f, lambda p: p.pop("ln_f.weight")), "does not name"),
    "list": (lambda f: (f / INDEX).write_text("[]"), f"{INDEX}: should be a map"),
    "empty": (lambda f: (f / INDEX).write_text("{}"), f"{INDEX}: has no weight_map"),
    "nested": (lambda f: (f / INDEX).write_text("[" * 10**6), f"{INDEX}: can't be read as JSON"),
    "config": (lambda f: (f / "config.json").write_text("{"), "config.json: can't be read as JSON"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_is_not_as_it_says(tmp_path: Path, case: str) -> None:
    spoil, said = FOLDERS[case]
    folder = put(tmp_path / "hf", weights(), 2)
    spoil(folder)
    if case == "config":  # weights alone need none
        with pytest.raises(CheckpointError, match=said):
            import_run(folder, parse_spec(SPEC), tmp_path / "run")
        assert not (tmp_path / "run").exists()
    else:
        assert said in refused(folder)


def test_what_holds_no_safetensors(tmp_path: Path) -> None:
    assert "is no folder" in refused(tmp_path / "nowhere")
    (tmp_path / "hf").mkdir()
    assert "has no *.safetensors" in refused(tmp_path / "hf")
    torch.save(weights(), tmp_path / "hf" / "pytorch_model.bin")
    said = refused(tmp_path / "hf")
    assert "pickles only (pytorch_model.bin), which may run code" in said
    advice = said.partition("first, with ")[2].partition(" from safetensors.torch")[0]
    before = Path.cwd()
    os.chdir(tmp_path / "hf")
    try:
        exec(advice, {"save_file": save_file, "torch": torch})
    finally:
        os.chdir(before)
    import_run(tmp_path / "hf", parse_spec(SPEC), tmp_path / "run")


def test_a_tensor_in_two_files_without_an_index(tmp_path: Path) -> None:
    folder = put(tmp_path / "hf", weights())
    save_file({"ln_f.weight": torch.zeros(6)}, folder / "other.safetensors")
    assert "other.safetensors: 'ln_f.weight' is in model.safetensors too" in refused(folder)


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    theirs = weights()
    theirs["ln_g.weight"] = theirs.pop("ln_f.weight")
    theirs["wte.weight"] = theirs["wte.weight"].mT.contiguous()
    theirs["h.0.ln.weight"] = torch.zeros(6, dtype=torch.int8)
    theirs["h.1.mlp.up_proj.weight"] = theirs["h.1.mlp.up_proj.weight"].half()
    theirs["h.1.\x1b[31m"] = torch.zeros(1)
    theirs["h.1.cache"] = torch.zeros(1)
    said = refused(put(tmp_path / "hf", theirs))
    for line in (
        "'wte.weight' is (6, 11); (11, 6) is wanted for decoder.embedding.weight (11, 6)",
        "'h.0.ln.weight' is of dtype I8; weights are F32, F16, BF16",
        "'h.1.mlp.gate_proj.weight', 'h.1.mlp.up_proj.weight' make one parameter, and are of dtypes F16 and F32",
        "'ln_f.weight' is missing, which decoder.norm.weight is made of (did you mean 'ln_g.weight'?)",
        "'ln_g.weight' is taken by no parameter (did you mean 'ln_f.weight'?)",
        r"'h.1.\x1b[31m' is taken by no parameter",
    ):
        assert f"{tmp_path / 'hf'}: {line}" in said.splitlines()
    assert len(said.splitlines()) == 6


def test_of_many_the_first_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    more = {f"h.0.experts.{number}.weight": torch.zeros(1) for number in range(33)}
    lines = refused(put(tmp_path / "hf", weights() | more)).splitlines()
    assert len(lines) == 21
    assert lines[-1] == f"{tmp_path / 'hf'}: ... and 13 more"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("decoder.norm:", "decoder.nrom:", "17:5: hf.modules.decoder.nrom: the model has no such module (did you mean "
         "'decoder.norm'?)"),
        ("{layer}.feedforward:", "{layer}.feedfoward:", "15:5: hf.modules.decoder.layers.{layer}.feedfoward: the model "
         "has no such module (did you mean 'decoder.layers.{layer}.feedforward'?)"),
        ("ln_f", "{at: ln_f, layout: gama}", "17:5: hf.modules.decoder.norm: RmsNorm has no layout 'gama' (did you "
         "mean 'gamma'?)"),
        ("wte", "{at: wte, layout: gamma}", "hf.modules.decoder.embedding: TokenEmbedding has no layout 'gamma' "
         "(allowed: plain)"),
        ("ln_f", "{at: ln_f, names: {wieght: g}}", "hf.modules.decoder.norm: the layout has no name 'wieght' (did you "
         "mean 'weight'?)"),
        ("    decoder.norm: ln_f\n", "", "hf.modules: names no module that holds decoder.norm.weight"),
        ("ln_f", "h.0.ln", "hf.modules: decoder.layers.0.feedforward_norm.weight and decoder.norm.weight are both "
         "published as h.0.ln.weight"),
        ("decoder.norm: ln_f", "decoder.norm: ln_f\n    decoder.layers.{i}.feedforward: h.{i}.mlp",
         "18:5: hf.modules.decoder.layers.{i}.feedforward: decoder.layers.0.feedforward is named by "
         "'decoder.layers.{layer}.feedforward' too"),
        ("h.{layer}.mlp", "h.{i}.mlp", "hf.modules: {i} must stand in both"),
        ("wte", "[wte]", "14:24: hf.modules.decoder.embedding: should be a map or a text or null, not a list of 1"),
        ("ignore", "ignored", "hf.ignored: unknown option 'ignored' (did you mean 'ignore'?)"),
        (SPEC[SPEC.index("hf:"):], "", "<text>:1:1: hf: is missing: it says where the modules stand"),
    ],
)  # fmt: skip
def test_a_section_that_does_not_fit_its_model(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert SPEC.count(old) == 1
    folder = put(tmp_path / "hf", weights())
    assert said in refused(folder, SpecError, SPEC.replace(old, new))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"wieght": Take("weight")}, "speaks of wieght, which is no parameter (did you mean 'weight'?)"),
        (
            {"weight": Concat((Take("a"), Take("b")), (2, 5))},
            "RmsNorm: the layout of weight does not fit: a tensor of shape",
        ),
    ],
)
def test_a_layout_that_does_not_fit_its_component(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: dict[str, Take], said: str
) -> None:
    layouts: Layouts = {"plain": entries}
    monkeypatch.setattr(RmsNorm, "layouts", lambda self: layouts)
    assert said in refused(put(tmp_path / "hf", weights()), PluginError)


def test_a_place_that_is_taken_and_a_run_that_is_none(tmp_path: Path) -> None:
    folder, spec = put(tmp_path / "hf", weights()), parse_spec(SPEC)
    run = import_run(folder, spec, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    import_run(folder, spec, tmp_path / "empty")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="hf: is there already: choose another folder"):
        import_run(folder, spec, folder)
    with pytest.raises(CheckpointError, match="hf: is there already"):
        export_checkpoint(run, folder)
    with pytest.raises(CheckpointError, match=r"hf: is no run: it has no spec\.yaml"):
        export_checkpoint(folder, tmp_path / "back")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_nobody_can_write_to(tmp_path: Path) -> None:
    folder = put(tmp_path / "hf", weights())
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="file/run: can't be written: "):
        import_run(folder, parse_spec(SPEC), tmp_path / "file" / "run")
    assert sorted(tmp_path.rglob("*")) == before
