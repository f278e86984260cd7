"""The JSON Schema: a schema, and of what `load_spec` takes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import jsonschema
import pytest
import yaml

from transom.core.component import KINDS
from transom.deploy.schema import schema as folder_schema
from transom.errors import PluginError
from transom.registry import manager
from transom.registry.schema import schema
from transom.registry.sources import bundled
from transom.registry.spec import load_spec

SPEC = """
extends: tiny_gpt
model:
  position: [rope, {kind: alibi}]
  layer: {norm: rms, attention: {n_heads: 2}, feedforward: none, cross_attention: "${model.layer.attention}"}
  layers: [{repeat: 2, pattern: [{attention: {kind: local, window: 5, qk_norm: rms}}, {}]}]
  encoder: {norm: none, layers: [{repeat: 1}]}
  head: {words: lm, topic: {kind: classifier, n_classes: 2}}
objective: none
train: {lr: 1, steps: "${model.d_model}", threads: null, freeze: [a], betas: [0.5, 0.5]}
"""


@pytest.fixture(scope="module")
def checker() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema())


def test_it_is_a_schema_and_names_everything(checker: jsonschema.Draft202012Validator) -> None:
    jsonschema.Draft202012Validator.check_schema(checker.schema)
    definitions: dict[str, Any] = checker.schema["$defs"]
    assert definitions.keys() == {*KINDS, "reference"}
    for kind in KINDS:
        short, *options = definitions[kind]["anyOf"][:-2]
        assert short["enum"] == manager.names(kind) == [item["properties"]["kind"]["const"] for item in options]
        for item in options:
            fields = {
                field.name
                for field in dataclasses.fields(manager.get(kind, item["properties"]["kind"]["const"]).Config)
            }
            assert item["properties"].keys() == fields | {"kind"}
            assert item["description"]
            assert all("description" in about for name, about in item["properties"].items()), item


def test_what_is_right_passes(checker: jsonschema.Draft202012Validator) -> None:
    checker.validate(yaml.safe_load(SPEC))
    for name in bundled():
        checker.validate(load_spec(name).resolved)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("train:", "trian:"),
        ("n_heads: 2", "n_hads: 2"),
        ("window: 5", "theta: 5"),
        ("kind: local", "kind: locl"),
        ("lr: 1", "lr: fast"),
        ("betas: [0.5, 0.5]", "betas: [0.5]"),
        ("objective: none", "objective: null"),
        ("repeat: 2,", "times: 2,"),
        ("encoder:", "encodr:"),
        ("feedforward: none", "placement: prae"),
    ],
)
def test_what_is_wrong_does_not(checker: jsonschema.Draft202012Validator, old: str, new: str) -> None:
    assert SPEC.count(old) == 1
    assert not checker.is_valid(yaml.safe_load(SPEC.replace(old, new)))


def test_every_file_in_the_repository_passes_as_it_is_written(
    checker: jsonschema.Draft202012Validator, root: Path
) -> None:
    files = [*(root / "specs").glob("*.yaml"), root / "tests" / "good.yaml"]
    assert len(files) > len(bundled())
    for file in files:
        checker.validate(yaml.safe_load(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize("example", ["differential", "recurrence"])
def test_a_spec_of_a_package_passes_where_that_is_installed(
    checker: jsonschema.Draft202012Validator, root: Path, example: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = root / "examples" / example
    spec = yaml.safe_load((folder / "spec.yaml").read_text(encoding="utf-8"))
    assert not checker.is_valid(spec)
    monkeypatch.syspath_prepend(folder / "src")
    package = {"differential": "differential", "recurrence": "griffin"}[example]
    points = [EntryPoint("transom", "transom.plugins", "transom"), EntryPoint(package, f"transom_{example}", "transom")]
    here = jsonschema.Draft202012Validator(schema(manager.Registry(points)))
    here.validate(spec)
    names = [name for name in here.schema["$defs"]["attention"]["anyOf"][0]["enum"] if "/" in name]
    assert [name.partition("/")[0] for name in names] == [package]
    for wrong in ({"kind": names[0], "depht": 1}, {"kind": names[0], "d_hidden": "wide"}, f"{package}/other"):
        spec["model"]["layer"]["attention"] = wrong
        assert not here.is_valid(spec)
    with pytest.raises(PluginError, match="no_such_module"):
        schema(manager.Registry([*points, EntryPoint("acme", "no_such_module", "transom")]))


@pytest.mark.parametrize(("args", "wanted"), [(["schema"], schema), (["schema", "folder"], folder_schema)])
def test_the_command_prints_it(
    args: list[str], wanted: Callable[[], dict[str, Any]], command: Callable[..., CompletedProcess[str]]
) -> None:
    done = command(*args)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == wanted()
