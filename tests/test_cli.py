"""The command line: its exit codes, its one-line errors, and what it does not import."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import transom.errors
from transom.cli import main
from transom.cli.output import console
from transom.cli.progress import progress
from transom.cli.render import tree, writer
from transom.training import events

COMMANDS = ("show", "train", "eval", "generate", "export", "bench", "plugins", "schema")
Command = Callable[..., subprocess.CompletedProcess[str]]


def ends_with(args: list[str]) -> object:
    """Run a command in this process and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(args)
    return ended.value.code


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Return a function that makes `transom plugins` meet an error."""

    def plant(error: BaseException) -> None:
        def fail() -> Any:
            raise error

        monkeypatch.setattr("transom.registry.manager.installed", fail)

    return plant


def test_help_names_every_command_and_imports_no_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom transom.cli import main\ntry: main(['--help'])\nfinally:"
        " print(sorted({'torch', 'numpy', 'onnx', 'datasets', 'omegaconf'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert all(f" {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with([name, "--help"]) == 0
    assert f"transom {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["shwo"], "show"),
        (["show"], "SPEC"),
        (["export", "run"], "--out"),
        (["generate", "run"], "PROMPT"),
        (["generate", "run", "once", "--top-k", "many"], "--top-k"),
        (["plugins", "--lod"], "--load"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what(args: list[str], says: str, command: Command) -> None:
    done = command(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (transom.errors.SpecError("a.yaml:14:16: model.d_model: no\nb.yaml:1:1: empty"), 2),
        (transom.errors.PluginError("no package [acme] :smile:"), 2),
        (transom.errors.TrainingError("step 7: the loss is not a number"), 1),
        (transom.errors.ExportError("x" * 300), 1),
    ],
)
def test_our_errors_are_their_message_alone(
    error: transom.errors.TransomError,
    code: int,
    failing: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing(error)
    assert ends_with(["plugins"]) == code
    assert capsys.readouterr() == ("", f"{error}\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("size"), "transom: KeyError: 'size' (run again with --debug to see where)\n"),
        (ValueError("one\ntwo"), "transom: ValueError: one (run again with --debug to see where)\n"),
        (RecursionError(), "transom: RecursionError (run again with --debug to see where)\n"),
        (PermissionError(13, "Permission denied"), "transom: PermissionError: [Errno 13] Permission denied (run again"),
    ],
)
def test_an_unexpected_error_is_one_line(
    error: Exception, line: str, failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(error)
    assert ends_with(["plugins"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize(("error", "code"), [(transom.errors.DataError("broken"), 2), (OSError("broken"), 1)])
def test_debug_shows_the_traceback_and_keeps_the_exit_code(
    error: Exception, code: int, failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]
) -> None:
    failing(error)
    assert ends_with(["--debug", "plugins"]) == code
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert f"{type(error).__name__}: broken" in err


def test_ctrl_c_is_one_line(failing: Callable[[BaseException], None], capsys: pytest.CaptureFixture[str]) -> None:
    failing(KeyboardInterrupt())
    assert ends_with(["plugins"]) == 130
    assert capsys.readouterr() == ("", "transom: interrupted\n")


@pytest.mark.parametrize("args", [["plugins"], ["--help"]])
def test_a_reader_that_has_gone_is_no_error(args: list[str]) -> None:
    code = "from transom.cli import main; main()"
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-c", code, *args], stdout=closed, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (1, "")


def test_plugins_lists_this_package_and_loads_it_apart(command: Command) -> None:
    listed = command("plugins")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert f"transom  transom {transom.__version__}  transom.plugins\n" in listed.stdout
    loaded = command("plugins", "--load")
    assert (loaded.returncode, loaded.stderr) == (0, "")
    assert "\n  attention full\n" in loaded.stdout


def plant(folder: Path, package: str, body: str) -> None:
    """Install a package with this module text under a folder."""
    info = folder / f"{package}_parts-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}-parts\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[transom]\n{package} = {package}_parts\n")
    (folder / f"{package}_parts.py").write_text(body)


def test_packages_that_break_are_named_and_the_rest_is_listed(command: Command, tmp_path: Path) -> None:
    """What else may befall one while it is loaded apart, test_plugins_apart shows."""
    for package, body in {"acme": "import nowhere", "leaves": "raise SystemExit(0)", "other": "import no"}.items():
        plant(tmp_path, package, body)
    listed = command("plugins", PYTHONPATH=str(tmp_path))
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "acme  acme-parts 1.2  acme_parts\n" in listed.stdout
    loaded = command("plugins", "--load", PYTHONPATH=str(tmp_path), TRANSOM_PLUGINS="acme,leaves")
    assert loaded.returncode == 1
    for line, (package, says) in zip(
        loaded.stderr.splitlines(), {"acme": "nowhere", "leaves": "SystemExit"}.items(), strict=True
    ):
        assert package in line
        assert says in line
    assert "other_parts  (TRANSOM_PLUGINS does not allow it)\n" in loaded.stdout
    assert "\n  attention full\n" in loaded.stdout


def test_text_off_a_terminal_is_neither_wrapped_nor_interpreted() -> None:
    stream = io.StringIO()
    line = "runs/[bold]x[/bold]/:smile:/" + "deep/" * 60
    console(stream).print(line)
    assert stream.getvalue() == line + "\n"


def test_progress_off_a_terminal_is_a_line_an_event() -> None:
    stream = io.StringIO()
    with progress(console(stream)) as show:
        show(events.Resumed(10, 30))
        show(events.Stepped(20, 30, {"loss": 3.14159, "lr": 0.005}))
        show(events.Evaluated(30, 30, {"loss": 2.5}))
        show(events.Saved(30, Path("runs/x/checkpoints/step-00000030")))
        show(events.Stopped(30, "done"))
    assert stream.getvalue().splitlines() == [
        "going on after step 10 of 30",
        "step 20/30  loss 3.142  lr 0.005",
        "step 30/30  held out: loss 2.5",
        "step 30: saved step-00000030",
        "step 30: done",
    ]


def test_one_prompt_is_streamed_and_several_are_grouped(capsys: pytest.CaptureFixture[str]) -> None:
    with writer(["once"]) as take:
        take(0, "upon ")
        assert capsys.readouterr().out == "upon "
        take(0, "a time")
    assert capsys.readouterr().out == "a time\n"
    with writer(["a", "b"]) as take:
        take(1, "2")
        take(0, "1")
        take(1, "3")
    assert capsys.readouterr().out == "> a\n1\n\n> b\n23\n\n"


@dataclass(frozen=True)
class Part:
    label: str
    detail: str = ""
    children: tuple[Part, ...] = ()


def test_a_model_is_a_tree_of_unbroken_lines() -> None:
    stream = io.StringIO()
    long = Part("head", "lm [tied] " + "x" * 200)
    console(stream).print(tree(Part("tiny", "12 parameters", (Part("layer 0", "", (Part("norm", "rms"),)), long))))
    lines = [line.strip("│├└─ ") for line in stream.getvalue().splitlines()]
    assert lines == ["tiny  12 parameters", "layer 0", "norm  rms", f"head  {long.detail}"]


SPEC = """
name: small
model:
  topology: decoder
  d_model: 24
  max_seq_len: 32
  embedding: {kind: token, vocab_size: 300}
  position: rope
  layer: {norm: rms, attention: {kind: full, n_heads: 3}, feedforward: {kind: glu, d_ff: 40}}
  layers: [{pattern: [{attention: {kind: local, window: 7}}, {}]}]
  norm: rms
  head: {kind: lm, tied: true}
objective: causal_lm
data: {kind: text, path: TEXTS, seq_len: 17, hold_out: 0.3, tokenizer: {kind: bpe, vocab_size: 300}}
train: {steps: 8, batch_size: 4, lr: 1.0e-2, eval_every: 4, checkpoint_every: 4, log_every: 4}
"""
WITHOUT_TORCH = "import sys\nsys.modules['torch'] = None\nfrom transom.cli import main\nmain(sys.argv[1:])"


def test_from_a_spec_to_text_without_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(9):
        (tmp_path / f"texts/{number}.txt").write_text(f"the {number} cats sat on the {number * 7} mats. " * 20)
    spec, run, out = tmp_path / "small.yaml", tmp_path / "run", tmp_path / "out"
    spec.write_text(SPEC.replace("TEXTS", str(tmp_path / "texts")))

    assert ends_with(["show", str(spec)]) == 0
    assert "attention local  n_heads 3" in capsys.readouterr().out
    assert ends_with(["train", str(spec), "-o", str(run)]) == 0
    trained = capsys.readouterr()
    assert trained.out == f"{run}\n"
    assert "step 8: done" in trained.err
    assert ends_with(["train", str(spec), "-o", str(run), "train.lr=2"]) == 2
    assert "holds a run of another spec" in capsys.readouterr().err
    assert ends_with(["eval", str(run)]) == 0
    figures = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert "bits_per_byte" in figures
    asked = ["the 3 cats", "on the", "--max-new-tokens", "9", "--temperature", "0.7", "--seed", "4"]
    assert ends_with(["generate", str(run), *asked]) == 0
    text = capsys.readouterr().out
    assert ends_with(["export", str(run), "-o", str(out), "model.d_model=3"]) == 2
    assert "model.d_model=3: what a run is exported to can be changed" in capsys.readouterr().err
    small = ["export.quantize.method=gptq", "export.quantize.samples=3"]
    assert ends_with(["export", str(run), "-o", str(out), *small]) == 0
    losses = re.search(r"held-out loss (\S+) -> (\S+) nats", capsys.readouterr().out)
    assert losses is not None
    assert [float(loss) for loss in losses.groups()] == pytest.approx([float(figures["loss"])] * 2, rel=0.05)
    assert ends_with(["export", str(run), "-o", str(out), "--opset", "23", "--gate", "rms=1", "export.logits=all"]) == 0
    assert "same token 100.0%" in capsys.readouterr().out
    assert '"opset": 23' in (out / "transom.json").read_text()
    command = [sys.executable, "-c", WITHOUT_TORCH, "generate", str(out), *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == text


def test_a_folder_that_is_neither_run_nor_export_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with(["generate", str(tmp_path), "x"]) == 2
    assert "is neither a run (it has no spec.yaml) nor an export (no transom.json)" in capsys.readouterr().err
