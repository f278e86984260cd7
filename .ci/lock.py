"""Write requirements.lock: everything that the tests and the demo install, each at the version that pip picks today."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
# A free choice would take the newest release, whose Linux build brings gigabytes of CUDA packages.
TORCH = "torch==2.13.0"
HEADER = "# Everything that `make test` and `make demo` install. Written by `make lock`; not by hand.\n"


def resolve() -> dict[str, str]:
    """Return the version of each package, by name, that pip would install for the checkout and its tests."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    report = json.loads(subprocess.run([*command, TORCH, f"{ROOT}[test]"], check=True, stdout=subprocess.PIPE).stdout)
    packages = (item["metadata"] for item in report["install"])
    # A local version (2.13.0+cpu) names one index's build; the public one installs from any.
    versions = {re.sub(r"[-_.]+", "-", p["name"]).lower(): p["version"].partition("+")[0] for p in packages}
    del versions["transom"]
    return versions


def runtime_markers() -> dict[str, str]:
    """Return the platform marker of each build of ONNX Runtime, by name, as pyproject.toml has them."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    marked = (line.split(";", 1) for line in dependencies if line.startswith("onnxruntime"))
    return {re.split(r"[<>=]", requirement)[0]: marker.strip() for requirement, marker in marked}


def main() -> None:
    """Resolve, and replace the lock file when that went well."""
    versions = resolve()
    markers = runtime_markers()
    builds = {versions[name] for name in markers if name in versions}
    assert len(builds) == 1, "this platform takes exactly one build of ONNX Runtime"
    versions |= dict.fromkeys(markers, builds.pop())
    lines = [f"{n}=={v}" + (f" ; {markers[n]}" if n in markers else "") for n, v in sorted(versions.items())]
    LOCK.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
