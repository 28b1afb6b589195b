"""Build the documentation site into site/.

    python scripts/build_docs.py

First come the reports of the gallery, then the pages: Zensical makes them of `docs/` and the docstrings, and
refuses links to pages or headings that do not exist. Pages also link files outside of `docs/`, such as examples.
These are copied into the site, so that a link works on the site as it does in the repository.
Needs `pip install -e '.[docs]'`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_main_and_exit

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "site"
LINK = re.compile(r'(?<=\s)((?:href|src|srcset)=")(?!(?:https?:)?//|mailto:|#|data:)([^"#?]+)')
LOADED = re.compile(
    r'<(?:script|link|img|iframe|source)[^>]+(?:src|href|srcset)="(?:https?:)?//[^"]*"'
)


def copy_linked_files(page: Path) -> list[str]:
    """Copy the repository's files that a page links from outside of `docs/`, and let the links lead to the copies.

    Returns:
        Links and pictures that lead to no file.
    """
    broken: list[str] = []

    def follow(found: re.Match[str]) -> str:
        attribute, link = found.groups()
        target = Path(os.path.normpath(page.parent / link))
        if target.is_relative_to(SITE):
            if not target.exists():
                broken.append(link)
            return found[0]
        place = Path(os.path.normpath(ROOT / "docs" / page.parent.relative_to(SITE) / link))
        if not place.is_relative_to(ROOT) or not place.is_file():
            broken.append(link)
            return found[0]
        copy = SITE / "repository" / place.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place, copy)
        return attribute + os.path.relpath(copy, page.parent)

    page.write_text(LINK.sub(follow, page.read_text()))
    return broken


def find_problems() -> list[str]:
    """Complete the links of the built pages.

    Returns:
        A line per link or picture that leads nowhere, and per file that a page loads from elsewhere.
    """
    problems = []
    for page in sorted(SITE.rglob("*.html")):
        name = page.relative_to(SITE)
        # Reports have tests of their own, and 404.html is for a server.
        if name.parts[0] in ("gallery", "repository", "404.html"):
            continue
        problems += [
            f"{name}: links {link}, which does not exist" for link in copy_linked_files(page)
        ]
        problems += [f"{name}: loads {tag}" for tag in LOADED.findall(page.read_text())]
    return problems


def main() -> int:
    """Build the site; return 1 if a page links what does not exist, or loads anything from elsewhere."""
    gallery = ROOT / "scripts" / "render_gallery.py"
    subprocess.run([sys.executable, gallery], cwd=ROOT, check=True)
    shutil.rmtree(SITE, ignore_errors=True)
    build = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    try:
        subprocess.run(build, cwd=ROOT, check=True)
    except subprocess.CalledProcessError as error:
        reason = (
            "did not build the site (its messages are above; pip install -e '.[docs]' installs it)"
        )
        raise UserError("zensical", error.returncode, reason) from error
    problems = find_problems()
    print("\n".join(problems) or f"built {SITE}")
    return 1 if problems else 0


if __name__ == "__main__":
    run_main_and_exit(main)
