"""Packages whose faults need a process of their own: those that end Python, and what the command line says of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from packages import GOOD

Install = Callable[..., Path]
Command = Callable[..., subprocess.CompletedProcess[str]]


def child(code: str, folder: Path) -> str:
    """Run Python with the packages of a folder, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


USE = """
import sys
from transom.registry.manager import get
from transom.errors import PluginError
try:
    print(get("attention", "acme/ring").name)
except PluginError as error:
    print(error)
"""


def test_what_libraries_do_lazily_is_nobodys_fault(install: Install) -> None:
    body = "import torch._dynamo, torch.onnx, torch.export, torch.distributed, torch.nn.attention.flex_attention\n"
    folder = install("acme", body + "import transom; transom.load_spec, transom.compose, transom.train" + GOOD)
    assert child(USE, folder) == "ring\n"


def test_a_module_that_was_not_loaded_yet_is_watched_too(install: Install) -> None:
    body = "from transom.training import loop\ndef train(*args): print('mine')\nloop.train = train\n"
    folder = install("acme", body + GOOD)
    after = "import transom.training.loop\nprint(transom.training.loop.train.__module__)"
    said = child(USE + after, folder).splitlines()
    assert "it puts transom.training.loop.train in place" in said[0]
    assert said[1] == "transom.training.loop"


def test_the_other_threads_of_a_process_keep_their_settings(install: Install) -> None:
    folder = install("acme", GOOD)
    code = f"import torch\ntorch.set_grad_enabled(False)\ntorch.set_default_device('meta')\n{USE}"
    assert child(code + "print(torch.is_grad_enabled(), torch.zeros(1).device)", folder) == "ring\nFalse meta\n"


SPEC = """
model:
  {topology: decoder, d_model: 8, max_seq_len: 9, embedding: {kind: token, vocab_size: 11}, position: none, norm: rms,
   head: lm, layer: {norm: rms, feedforward: mlp, attention: acme/ring}, layers: [{}]}
"""


APART = {
    "exits": ("import os; os._exit(3)", "package 'exits' ended Python with exit code 3 while loading"),
    "faults": ("import ctypes; ctypes.string_at(0)", "package 'faults' ended Python with signal 11 while loading"),
    "hangs": ("while True: pass", "package 'hangs' (hangs, hangs_module) was still loading after 2 s"),
}


def test_the_command_line_tries_each_apart(install: Install, command: Command) -> None:
    for name, (body, _) in APART.items():
        install(name, body)
    folder = install("good", GOOD)
    done = command("plugins", "--load", PYTHONPATH=str(folder), TRANSOM_PLUGIN_SECONDS="2")
    assert done.returncode == 1
    for line, (name, (_, says)) in zip(done.stderr.splitlines(), APART.items(), strict=True):
        assert line.startswith(says)
        assert f"{name}  {name} 1.2  {name}_module\n  does not load\n" in done.stdout
    assert "\n  attention full\n    can causal, " in done.stdout
    assert "good  good 1.2  good_module\n  attention ring\n" in done.stdout


def test_ctrl_c_ends_the_wait_for_a_package(install: Install, command: Command, tmp_path: Path) -> None:
    body = "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(50)"
    folder = install("acme", body)
    (tmp_path / "spec.yaml").write_text(SPEC)
    done = command("show", "spec.yaml", PYTHONPATH=str(folder))
    assert (done.returncode, done.stderr) == (130, "transom: interrupted\n")


def test_a_package_can_be_blocked_from_the_command_line(install: Install, command: Command, tmp_path: Path) -> None:
    folder = str(install("acme", "raise RuntimeError"))
    (tmp_path / "spec.yaml").write_text(SPEC)
    done = command("-p", "no:other", "-p", "no:acme", "show", "spec.yaml", PYTHONPATH=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "package 'acme' is installed, but -p no:acme blocks it: leave that out" in done.stderr
    done = command("-p", "no:acme", "plugins", PYTHONPATH=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "acme  acme 1.2  acme_module  (-p no:acme blocks it)\n" in done.stdout
    for wrong, says in [
        ("acme", "is not no:NAME"),
        ("no:", "is not no:NAME"),
        ("no:transom", "can't be blocked"),
    ]:
        done = command("-p", wrong, "plugins", PYTHONPATH=folder)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr


def test_the_list_opens_nothing_but_metadata(install: Install) -> None:
    for number in range(50):
        folder = install(f"many{number}", "raise RuntimeError")
    code = f"""
import sys
opened = []
sys.addaudithook(lambda event, given: opened.append(str(given[0])) if event == "open" else None)
from transom.cli import main
try:
    main(["plugins"])
finally:
    mine = [name for name in opened if name.startswith({str(folder)!r})]
    assert len(mine) >= 50
    assert {{name.rpartition("/")[2] for name in mine}} <= {{"METADATA", "entry_points.txt"}}, mine
    assert not any("many" in name for name in sys.modules)
    assert not {{"torch", "numpy", "ctypes"}} & set(sys.modules)
"""
    assert sum(line.startswith("many") for line in child(code, folder).splitlines()) == 50
