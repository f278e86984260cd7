"""An exported folder that was altered is refused with one located error, before anything outside it is opened."""

import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from transom.deploy import ArrayRuntime
from transom.deploy.manifest import MANIFEST, GraphFacts, Manifest, StateFacts, TensorFacts, sha256
from transom.deploy.reaching import ENTRY, MESSAGES, locations
from transom.deploy.schema import schema
from transom.errors import ExportError

OPENED: list[str] | None = None
ELSEWHERE = (
    "../x",
    "/etc/passwd",
    "other.data",
    "./model.onnx.data",
    "*/_ORT_MEM_ADDR_/*",
    "",
    "a\\b",
    "model.onnx/../x",
)
WIDTH = 11
HOSTILE = (None, True, -1, 10**40, 1.5, "", "../x", "/etc/passwd", "a\0b", "\ud800", [], [[]], {}, {"x": 1})


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and OPENED is not None:
        OPENED.append(str(args[0]))


def _graph() -> onnx.ModelProto:
    """Return a graph that gives the mean of its tokens' rows of a table, which lies in a file beside it."""
    table = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=(WIDTH, WIDTH))
    table.data_location = TensorProto.EXTERNAL
    table.external_data.add(key="location", value="model.onnx.data")
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows", "axis"], ["logits"]),
        helper.make_node("Identity", ["past.seen"], ["present.seen"]),
    ]
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    seen = [helper.make_tensor_value_info(f"{when}.seen", TensorProto.INT64, ["batch"]) for when in ("past", "present")]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1, WIDTH])
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "decoder", [ids, seen[0]], [logits, seen[1]], [table, axis])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)


def _whole(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(_graph().SerializeToString())
    (folder / "model.onnx.data").write_bytes(np.arange(WIDTH * WIDTH, dtype=np.float32).tobytes())
    tokens = TensorFacts(("batch", "sequence"), "int64", WIDTH)
    logits = TensorFacts(("batch", 1, WIDTH), "float32")
    state = {
        "seen": StateFacts("past.seen", "present.seen", ("batch",), "int64", "fixed", 0),
        "peak": StateFacts("p", "q", (), "float32", "fixed", -1e38),
    }
    graph = GraphFacts("model.onnx", {"input_ids": tokens}, {"logits": logits}, ("seen",), ("seen",))
    facts = {"max_seq_len": 13, "vocab_size": WIDTH, "opset": 24, "precision": "fp32"}
    Manifest(**facts, graphs={"decoder": graph}, state=state, files=_digests(folder)).write(folder)  # type: ignore[arg-type]


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}


def _list_anew(folder: Path) -> None:
    """Make `transom.json` tell of the files as they are now, as whoever altered them may do."""
    said = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**said, "files": _digests(folder)}))


def _mutate(folder: Path, draw: random.Random, away: Path) -> None:
    path = draw.choice(sorted(folder.iterdir()))
    held = bytearray(path.read_bytes())
    match draw.randrange(7):
        case 0:
            held[draw.randrange(len(held))] ^= 1 << draw.randrange(8)
            path.write_bytes(held)
        case 1:
            path.write_bytes(held[: draw.randrange(len(held))])
        case 2:
            path.rename(folder / f"{path.name}.{draw.randrange(9)}")
        case 3:
            (away / path.name).write_bytes(held)
            path.unlink()
            path.symlink_to(away / path.name)
        case 4:
            stray = folder / draw.choice(["tokenizer.json", "other.data", "chat_template.jinja", "notes.txt"])
            stray.symlink_to(away) if draw.random() < 0.5 else stray.write_text("{}")
        case 5:
            graph = _graph()
            graph.graph.initializer[0].external_data[0].value = draw.choice(ELSEWHERE)
            (folder / "model.onnx").write_bytes(graph.SerializeToString())
            _list_anew(folder)
        case _:
            said = json.loads((folder / MANIFEST).read_text())
            at = said
            while isinstance(at[key := draw.choice(sorted(at))], dict) and at[key] and draw.random() < 0.8:
                at = at[key]
            at[draw.choice([key, "../" + key])] = draw.choice(HOSTILE)
            if draw.random() < 0.3:
                del at[key]
            (folder / MANIFEST).write_text(json.dumps(said))


def test_an_altered_folder_is_refused_and_nothing_outside_it_is_opened(tmp_path: Path) -> None:
    global OPENED
    sys.addaudithook(_watch)
    away = tmp_path / "away"
    away.mkdir()
    refused = 0
    for seed in range(500):
        folder = tmp_path / str(seed)
        _whole(folder)
        Manifest.read(folder).check_files(folder)
        _mutate(folder, random.Random(seed), away)
        OPENED = []
        said = ""
        try:
            Manifest.read(folder).check_files(folder)
        except ExportError as error:
            said = str(error)
        opened, OPENED = OPENED, None
        assert all(Path(name).parent == folder for name in opened), (seed, opened)
        assert not said or (said.startswith(str(folder)) and "\n" not in said), (seed, said)
        refused += bool(said)
    assert refused > 400


def _in_a_subgraph(model: onnx.ModelProto, held: TensorProto) -> None:
    inner = helper.make_graph([], "inner", [], [], [held])
    for _ in range(20):
        inner = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=inner)], "more", [], [])
    model.graph.node.append(inner.node[0])


def _in_a_function(model: onnx.ModelProto, held: TensorProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=held)
    model.functions.append(helper.make_function("d", "F", [], ["c"], [node], [helper.make_opsetid("", 24)]))


def _in_a_sparse_tensor(model: onnx.ModelProto, held: TensorProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(held)


def _in_an_attribute(model: onnx.ModelProto, held: TensorProto) -> None:
    attribute = model.graph.node[0].attribute.add(name="list", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.append(held)


def _in_a_graph_of_training(model: onnx.ModelProto, held: TensorProto) -> None:
    model.training_info.add().algorithm.initializer.append(held)


@pytest.mark.parametrize(
    "put", [_in_a_subgraph, _in_a_function, _in_a_sparse_tensor, _in_an_attribute, _in_a_graph_of_training]
)
def test_weights_elsewhere_are_found_wherever_a_graph_hides_them(
    put: Callable[[onnx.ModelProto, TensorProto], None], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    _whole(folder)
    held, model = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(1,)), _graph()
    held.data_location = TensorProto.EXTERNAL
    held.external_data.add(key="offset", value="../y")
    held.external_data.add(key="location", value="../x")
    put(model, held)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    _list_anew(folder)
    assert locations(folder / "model.onnx") == {"model.onnx.data", "../x"}
    with pytest.raises(
        ExportError, match=r"out/model\.onnx: reads weights from '\.\./x', which transom\.json does not"
    ):
        ArrayRuntime(folder)


def test_every_way_to_a_tensor_is_known() -> None:
    """Hold the table of fields against ONNX's own description of its messages."""
    found: dict[str, Any] = {}

    def visit(message: Any) -> None:
        if message.name in found:
            return
        found[message.name] = {field.number: field.message_type for field in message.fields if field.message_type}
        for inner in found[message.name].values():
            visit(inner)

    visit(onnx.ModelProto.DESCRIPTOR)
    leading: set[str] = {"TensorProto"}
    while more := {n for n, fields in found.items() if {t.name for t in fields.values()} & leading} - leading:
        leading |= more
    wanted = {n: {k: t.name for k, t in found[n].items() if t.name in leading} for n in leading - {"TensorProto"}}
    external = onnx.TensorProto.DESCRIPTOR.fields_by_name["external_data"].number
    assert {**wanted, "TensorProto": {external: ENTRY}} == MESSAGES


def test_a_broken_graph_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    _whole(folder)
    bytes_ = _graph().SerializeToString()
    # Nothing, an end in the middle, a group, a number without an end, a name that is no text.
    broken = (
        b"",
        bytes_[:-3],
        b"\x3b" + bytes_,
        b"\x08" + b"\xff" * 11,
        bytes_.replace(b"model.onnx.data", b"\xff" * 15),
    )
    for held in broken:
        (folder / "model.onnx").write_bytes(held)
        _list_anew(folder)
        with pytest.raises(ExportError, match=rf"^{re.escape(str(folder / 'model.onnx'))}: is no ONNX graph \(.+\): "):
            ArrayRuntime(folder)


def test_a_graph_may_lie_in_onnx_files_alone(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    _whole(folder)
    said = json.loads((folder / MANIFEST).read_text())
    (folder / "model.onnx").rename(folder / "model.ort")
    said["graphs"]["decoder"]["file"] = "model.ort"
    (folder / MANIFEST).write_text(json.dumps(said))
    _list_anew(folder)
    with pytest.raises(ExportError, match=r"graphs\.decoder\.file: 'model\.ort' does not end in \.onnx"):
        ArrayRuntime(folder)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["state", "seen", "output"], "present.sine", r"has no output 'present\.sine'"),
        (["state", "seen", "input"], "past.sine", r"has no input 'past\.sine'"),
        (["state", "seen", "dtype"], "int32", r"has input 'past\.seen' of tensor\(int64\) \['batch'\]"),
        (["state", "seen", "dims"], [], "has input 'past.seen' of"),
        (["graphs", "decoder", "takes"], [], "takes 'past.seen'"),
        (
            ["graphs", "decoder", "outputs", "logits", "dims"],
            ["batch", 2, WIDTH],
            r"has output 'logits' of .* \['batch', 1, 11\]",
        ),
        (["graphs", "decoder", "outputs", "logits", "dtype"], "float16", r"has output 'logits' of tensor\(float\)"),
    ],
)
def test_a_graph_that_is_not_as_described_is_refused(
    place: list[str], value: Any, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    _whole(folder)
    ArrayRuntime(folder)
    said = json.loads((folder / MANIFEST).read_text())
    at = said
    for name in place[:-1]:
        at = at[name]
    at[place[-1]] = value
    (folder / MANIFEST).write_text(json.dumps(said))
    with pytest.raises(
        ExportError, match=rf"out/model\.onnx: {message}.*, which is not what transom\.json says: export"
    ):
        ArrayRuntime(folder)


def test_what_belongs_to_others_may_lie_hidden_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    _whole(folder)
    (folder / ".git").mkdir()
    (folder / ".gitattributes").write_text("*.onnx filter=lfs\n")
    runtime = ArrayRuntime(folder)
    logits, _ = runtime.step(np.array([[3, 5]]), None, runtime.start(1))
    assert np.array_equal(logits, [np.arange(WIDTH, dtype=np.float32) + 4 * WIDTH])
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"out/notes\.txt: transom\.json lists no such file: move it away"):
        ArrayRuntime(folder)


def test_the_schema_and_the_reader_agree_on_what_transom_json_may_say(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    _whole(folder)
    whole = json.loads((folder / MANIFEST).read_text())
    jsonschema.Draft202012Validator.check_schema(schema())
    checker = jsonschema.Draft202012Validator(schema())
    checker.validate(whole)
    taken = refused = 0
    for seed in range(400):
        draw, said = random.Random(seed), json.loads(json.dumps(whole))
        at: Any = said
        while True:
            key = draw.choice(sorted(at) if isinstance(at, dict) else range(len(at)))
            if not isinstance(at[key], dict | list) or not at[key] or draw.random() < 0.2:
                break
            at = at[key]
        if draw.random() < 0.8:
            at[key] = draw.choice([*HOSTILE, "float32", "ring", 7, ["x"], {"y": "z"}])
        else:
            del at[key]
        (folder / MANIFEST).write_text(json.dumps(said))
        try:
            Manifest.read(folder)
            wrong = ""
        except ExportError as error:
            wrong = str(error)
        # What a name stands for, and how many places a number takes, is more than a schema can say.
        if checker.is_valid(said) == bool(wrong):
            assert re.search(r"is not among its files|there is no state|does not end in|'utf-8' codec", wrong), (
                seed,
                wrong,
            )
        taken, refused = taken + (not wrong), refused + bool(wrong)
    assert taken > 30
    assert refused > 200
