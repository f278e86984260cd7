"""What an exported folder says of itself: `transom.json`, and the check that its files are the ones that it names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..errors import ExportError
from .reaching import locations
from .strict import misfit, outside

MANIFEST = "transom.json"
SCHEMA, SCHEMA_FILE = "$schema", "folder.schema.json"
MASK = "attention_mask"
GRAPH = ".onnx"  # under other endings ONNX Runtime looks for formats of its own
FORMAT = 1
PAST = "past"
TOTAL = "total"  # all columns since the first step; the length of a past after a step that makes it longer
Dims = tuple[str | int, ...]
Grows = Literal["slots", "ring", "fixed", "static", "append"]
Facts = TypeVar("Facts", "TensorFacts", "StateFacts")


@dataclass(frozen=True)
class TensorFacts:
    """Describe a tensor that a graph takes or gives: dimensions (names where they vary) and dtype as numpy names it.

    `high`: values of an int64 input are below it; 0 where nothing is said. `optional`: an input of zeros says no more
    than none.
    """

    dims: Dims
    dtype: str
    high: int = 0
    optional: bool = False


@dataclass(frozen=True)
class StateFacts:
    """Describe a tensor of the state: the names under which graphs take and give it, and what it is when empty.

    `dims`: those that it comes in with. `grows`: `ring`, `fixed` or `static`, as components declare it; `slots`, where
    `past` is how many tokens there is room for, and a step writes to the slots of its tokens; or `append`, where what
    is `past` when it comes in is `total` when it goes out. `fill`: the value of an empty entry.
    """

    input: str
    output: str
    dims: Dims
    dtype: str
    grows: Grows
    fill: float


@dataclass(frozen=True)
class GraphFacts:
    """Describe one graph: its file, its own inputs and outputs, and the state that it takes and gives, by name.

    `rows_alone`: whether its operators take several tokens that follow others from one row at a time alone.
    """

    file: str
    inputs: Mapping[str, TensorFacts]
    outputs: Mapping[str, TensorFacts]
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    rows_alone: bool = False

    @property
    def steps(self) -> bool:
        """Say whether it is run again and again, on tokens that follow others."""
        return bool(self.takes) or any(TOTAL in facts.dims for facts in self.inputs.values())


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Hold what `transom.json` says.

    `max_seq_len`: the most real tokens a row may have. `edges`: the lengths beyond which a row's state can't be used
    that was begun before. `vocab_size`: the tokens that a tokenizer
    gives, or else the ids that the model reads; None without text. `special_ids`: of the tokenizer, by `bos`, `eos`,
    `pad`, `mask`. `stop_ids`: other tokens that end what it writes. `versions`: of the libraries that wrote and checked
    the folder.
    `pools`: the outputs that are one vector a sequence. `labels`: what the classes are called that a head scores.
    `generates`: whether what takes a state gives the logits of next tokens; if not, it reads a text in segments.
    `layers`: by module, what a component's part of the graphs was made from: its lowering, or its `forward`.
    `parity`: the rows of the report. `figures`: what graphs of a lower precision differ by from the exact ones.
    `gate`: the limits that they had to keep to, by measure.
    `spec`: the complete spec, None for a model that was built without one.
    `least_onnxruntime`: the oldest version that has what the graphs are made of; "" where nothing is said.
    `runners`: other programs that may run the folder, each with "" or why it can't. `files`: sha256 of every other
    file.
    """

    max_seq_len: int
    vocab_size: int | None
    opset: int
    precision: str
    graphs: Mapping[str, GraphFacts]
    state: Mapping[str, StateFacts]
    special_ids: Mapping[str, int] = field(default_factory=dict)
    stop_ids: tuple[int, ...] = ()
    generates: bool = True
    versions: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    parity: tuple[Mapping[str, Any], ...] = ()
    figures: tuple[Mapping[str, Any], ...] = ()
    gate: Mapping[str, float] = field(default_factory=dict)
    spec: Mapping[str, Any] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    edges: tuple[int, ...] = ()
    pools: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    runners: Mapping[str, str] = field(default_factory=dict)
    least_onnxruntime: str = ""

    def write(self, folder: Path) -> None:
        """Write `transom.json`, which names its schema: after it, the folder is whole."""
        text = json.dumps(
            {SCHEMA: SCHEMA_FILE, "format": FORMAT, **asdict(self)}, indent=1, allow_nan=False, ensure_ascii=False
        )
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read `transom.json`.

        Raises:
            ExportError: it is missing, broken, or of a format that this version does not know.
        """
        path = folder / MANIFEST
        if path.is_symlink():
            raise ExportError(f"{path}: is a link: copy the folder with the files themselves")
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ExportError(f"{path}: can't be read, so {folder} is no exported model: {error}") from None
        if not isinstance(said, dict) or said.pop("format", None) != FORMAT:
            raise ExportError(f"{path}: not of format {FORMAT}, the one that this version reads: export again")
        if not isinstance(said.pop(SCHEMA, SCHEMA_FILE), str):
            raise ExportError(f"{path}: {SCHEMA} is not the name of a schema: export again")
        try:
            said["graphs"] = {name: _graph(facts) for name, facts in said["graphs"].items()}
            said["state"] = {name: _tensor(StateFacts, facts) for name, facts in said["state"].items()}
            found = cls(**{name: _listed(value) for name, value in said.items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ExportError(f"{path}: is broken ({error}): export again") from None
        if wrong := misfit(found, cls) or found._unknown():
            raise ExportError(f"{path}: {wrong}: export again")
        return found

    def _unknown(self) -> str:
        """Return the first name in a graph that nothing here explains, with its place, or ""."""
        for name, graph in self.graphs.items():
            if not graph.file.endswith(GRAPH):
                return f"graphs.{name}.file: {ascii(graph.file)[:60]} does not end in {GRAPH}"
            if graph.file not in self.files:
                return f"graphs.{name}.file: {ascii(graph.file)[:60]} is not among its files"
            if strange := {*graph.takes, *graph.gives} - self.state.keys():
                return f"graphs.{name}: there is no state {ascii(min(strange))[:60]}"
        return ""

    def check_files(self, folder: Path) -> None:
        """Check that the folder holds every file unchanged and no other, and that its graphs read no other.

        Names that begin with a dot may be there too: nothing here reads them.

        Raises:
            ExportError: with the first that is not so.
        """
        for name in self.files:
            if wrong := outside(folder, name):
                raise ExportError(f"{folder / MANIFEST}: files: {wrong}: export again, or copy the folder whole")
        known = {MANIFEST, *self.files}
        if others := sorted(ascii(path.name)[1:-1] for path in folder.iterdir() if not _may_be(path.name, known)):
            raise ExportError(f"{folder / others[0]}: {MANIFEST} lists no such file: move it away, or export again")
        for name, digest in self.files.items():
            path = folder / name
            if not path.is_file():
                raise ExportError(f"{path}: is missing: copy the folder whole, or export again")
            if sha256(path) != digest:
                raise ExportError(f"{path}: is not the file that was exported (its sha256 differs): export again")
        for name in self.files:
            if name.endswith(GRAPH):
                self._check_reach(folder / name)

    def _check_reach(self, path: Path) -> None:
        """Check that a graph reads no file but those of the folder."""
        try:
            reads = locations(path)
        except ValueError as error:
            raise ExportError(f"{path}: is no ONNX graph ({error}): export again") from None
        if strange := reads - self.files.keys():
            raise ExportError(
                f"{path}: reads weights from {ascii(min(strange))[:60]}, which {MANIFEST} does not list: export again"
            )


def _may_be(name: str, known: set[str]) -> bool:
    return name in known or name.startswith(".")


def is_mask(name: str) -> bool:
    """Say whether an input of this name marks real tokens."""
    return name.endswith("attention_mask")


def _graph(said: Mapping[str, Any]) -> GraphFacts:
    inputs, outputs = ({n: _tensor(TensorFacts, t) for n, t in said[side].items()} for side in ("inputs", "outputs"))
    return GraphFacts(
        **{**{name: _listed(value) for name, value in said.items()}, "inputs": inputs, "outputs": outputs}
    )


def _tensor(facts: type[Facts], said: Mapping[str, Any]) -> Facts:
    return facts(**{name: _listed(value) for name, value in said.items()})


def _listed(value: Any) -> Any:
    """Return a list of JSON as what it is in the dataclasses here."""
    return tuple(value) if isinstance(value, list) else value


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
