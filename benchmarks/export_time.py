"""Compare how long an export takes, and how much memory, with optimum-onnx's of the same weights.

    python benchmarks/export_time.py --optimum PYTHON [--work FOLDER] [--rounds 7] [--proven]

A llama-shaped model of 12 layers (d_model 768, 12 heads, d_ff 2048, vocabulary 32000, 134M weights, random, fp32).
Each export is a process of its own, from its first import to its last file, and they take turns; OMP_NUM_THREADS says
on how many threads (two unless set). Both read the same Hugging Face folder and write a decoder with its past; neither
compares the graph with PyTorch, unless `--proven` says that both do: by the report, and by optimum's validation.
Memory is the most that the process held, against the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
ENGINES = ("transom", "optimum-onnx")


def export_transom(source: str, out: str, proven: bool) -> None:
    """Write a model's graphs, or the whole folder with its report."""
    import transom

    spec, model = transom.import_checkpoint(source)
    export = transom.export  # a public name brings its modules in, as for anyone who exports
    if proven:
        export(model, out)
        return
    from transom.deploy.graph import write_graph
    from transom.deploy.lowering import lowered

    Path(out).mkdir()
    with lowered(model, spec.export.target):
        for name, graph in model.graphs(last=spec.export.logits == "last").items():
            write_graph(model, name, graph, Path(out), spec.export)


def export_optimum(source: str, out: str, proven: bool) -> None:
    """Export by optimum-onnx."""
    from optimum.exporters.onnx import main_export

    main_export(source, out, task="text-generation-with-past", do_validation=proven)


EXPORTS: Mapping[str, Callable[[str, str, bool], None]] = {"transom": export_transom, "optimum-onnx": export_optimum}


def run(name: str, python: str, source: Path, out: Path, proven: bool) -> tuple[float, float]:
    """Return the seconds and the bytes of one export, in a process of its own."""
    shutil.rmtree(out, ignore_errors=True)
    command = [python, __file__, "export", name, str(source), str(out), *["proven"] * proven]
    # What is installed was compiled to bytecode then; ours is compiled at the first run, whatever the environment says.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    begin = time.perf_counter()
    said = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ).stdout
    return time.perf_counter() - begin, json.loads(said.splitlines()[-1])["peak"]


def main() -> None:
    """Take turns, and print a row an engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimum", required=True, help="Python of an environment with optimum-onnx")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "export_time", help="where the folders go")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--proven", action="store_true", help="let both compare what they wrote with PyTorch")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    pythons, source = {"transom": sys.executable, "optimum-onnx": given.optimum}, given.work / "weights"
    if not source.exists():
        maker = [given.optimum, str(Path(__file__).with_name("bench_onnx.py")), "make", "weights", str(source)]
        subprocess.run(maker, check=True, stderr=subprocess.DEVNULL)
    weights = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    seconds: dict[str, list[float]] = {name: [] for name in ENGINES}
    peaks: dict[str, list[float]] = {name: [] for name in ENGINES}
    for number in range(given.rounds):
        for name in ENGINES if number % 2 else ENGINES[::-1]:
            took, peak = run(name, pythons[name], source, given.work / name, given.proven)
            seconds[name].append(took)
            peaks[name].append(peak / weights)
    for name in ENGINES:
        print(f"| {name} | {spread(seconds[name])} | {spread(peaks[name])} |")
    ratios = [own / other for own, other in zip(*(seconds[name] for name in ENGINES), strict=True)]
    print(f"ours / optimum-onnx's time: {spread(ratios)}; weights {weights / 1e6:.0f} MB")


def spread(found: list[float]) -> str:
    """Return a median, and the range."""
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    if sys.argv[1:2] == ["export"]:
        EXPORTS[sys.argv[2]](*sys.argv[3:5], "proven" in sys.argv[5:])
        print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
    else:
        main()
