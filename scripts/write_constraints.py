"""Write `constraints/lowest.txt` and `constraints/newest.txt`, the library versions that the tests run with.

    python -m pip install uv
    python scripts/write_constraints.py

The lowest versions are the lower bounds in pyproject.toml, with the newest releases of their own dependencies; the
newest versions are those that pip would choose today. Both are for Linux and the Python that runs this script.
`make test-lowest` and `make test-newest` install them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}
TOOLS = ("--extra=test", "--no-header", "--no-annotate", "--quiet")


def main() -> int:
    """Write both files; return 2 if uv is missing."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        print("error: uv is not installed: python -m pip install uv", file=sys.stderr)
        return 2
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name, resolution in RESOLUTIONS.items():
        path = ROOT / "constraints" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        command = [uv, "pip", "compile", "pyproject.toml", *TOOLS]
        command += [f"--resolution={resolution}", f"--python-version={python}", "--upgrade"]
        completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if completed.returncode:
            print(completed.stderr, file=sys.stderr, end="")
            return 1
        path.write_text(
            f"# Written by scripts/write_constraints.py, Python {python}.\n{completed.stdout}"
        )
        print(f"{path.relative_to(ROOT)}: {len(completed.stdout.splitlines())} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
