"""An exported folder that was altered is refused with one located error, before anything outside it is opened."""

import json
import random
import sys
from pathlib import Path
from typing import Any

from transom.deploy.manifest import MANIFEST, GraphFacts, Manifest, StateFacts, TensorFacts, sha256
from transom.errors import ExportError

OPENED: list[str] | None = None
HOSTILE = (None, True, -1, 10**40, 1.5, "", "../x", "/etc/passwd", "a\0b", "\ud800", [], [[]], {}, {"x": 1})


def _watch(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and OPENED is not None:
        OPENED.append(str(args[0]))


def _whole(folder: Path) -> None:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(bytes(range(251)))
    (folder / "model.onnx.data").write_bytes(bytes(97))
    tokens = TensorFacts(("batch", "sequence"), "int64", 11)
    logits = TensorFacts(("batch", 1, 11), "float32")
    state = {
        "seen": StateFacts("past.seen", "present.seen", ("batch",), "int64", "fixed", 0),
        "peak": StateFacts("p", "q", (), "float32", "fixed", -1e38),
    }
    graph = GraphFacts("model.onnx", {"input_ids": tokens}, {"logits": logits}, ("seen",), ("seen",))
    files = {path.name: sha256(path) for path in folder.iterdir()}
    facts = {"max_seq_len": 13, "vocab_size": 11, "opset": 24, "precision": "fp32"}
    Manifest(**facts, graphs={"decoder": graph}, state=state, files=files).write(folder)  # type: ignore[arg-type]


def _mutate(folder: Path, draw: random.Random, away: Path) -> None:
    path = draw.choice(sorted(folder.iterdir()))
    held = bytearray(path.read_bytes())
    match draw.randrange(5):
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
