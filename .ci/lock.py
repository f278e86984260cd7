"""Write requirements.lock: everything that the tests and the demo install, each at the version that pip picks today.

And benchmarks/peers.lock: what the peers of the benchmarks need besides.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
# A free choice would take the newest release, whose Linux build brings gigabytes of CUDA packages.
TORCH = "torch==2.13.0"
HEADER = "# Everything that `make test` and `make demo` install. Written by `make lock`; not by hand.\n"
PEERS = ROOT / "benchmarks" / "peers.lock"
PEERS_HEADER = (
    "# What `make peers` installs besides, none of it with what it asks for. Written by `make lock`; not by hand.\n"
)
# By itself, and what it needs of that beside all else: it asks for huggingface-hub<1.4, and transformers for a newer.
ALONE, ITS_OWN = "litgpt>=0.5.13", ("lightning>=2.6", "jsonargparse[signatures]>=4.37")


def resolve(*wanted: str) -> dict[str, str]:
    """Return the version of each package, by name, that pip would install for what is wanted."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    report = json.loads(subprocess.run([*command, *wanted], check=True, stdout=subprocess.PIPE).stdout)
    packages = (item["metadata"] for item in report["install"])
    # A local version (2.13.0+cpu) names one index's build; the public one installs from any.
    versions = {re.sub(r"[-_.]+", "-", p["name"]).lower(): p["version"].partition("+")[0] for p in packages}
    versions.pop("transom", None)
    return versions


def resolve_peers(locked: Mapping[str, str]) -> dict[str, str]:
    """Return the version of each package that the peers need and that is not `locked`."""
    found = resolve(TORCH, f"{ROOT}[peers]", *ITS_OWN, "--constraint", str(LOCK)) | resolve("--no-deps", ALONE)
    return {name: version for name, version in found.items() if name not in locked}


def runtime_markers() -> dict[str, str]:
    """Return the platform marker of each build of ONNX Runtime, by name, as pyproject.toml has them."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    marked = (line.split(";", 1) for line in dependencies if line.startswith("onnxruntime"))
    return {re.split(r"[<>=]", requirement)[0]: marker.strip() for requirement, marker in marked}


def main() -> None:
    """Resolve, and replace the lock files when that went well."""
    versions = resolve(TORCH, f"{ROOT}[test]")
    markers = runtime_markers()
    builds = {versions[name] for name in markers if name in versions}
    assert len(builds) == 1, "this platform takes exactly one build of ONNX Runtime"
    versions |= dict.fromkeys(markers, builds.pop())
    lines = [f"{n}=={v}" + (f" ; {markers[n]}" if n in markers else "") for n, v in sorted(versions.items())]
    LOCK.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    peers = sorted(resolve_peers(versions).items())
    PEERS.write_text(PEERS_HEADER + "".join(f"{n}=={v}\n" for n, v in peers), encoding="utf-8")


if __name__ == "__main__":
    main()
