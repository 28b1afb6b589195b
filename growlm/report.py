"""`python -m growlm.report`: report.html of a run, of a sweep, or of several runs side by side."""

from __future__ import annotations

import sys
from pathlib import Path

from growlm import __version__
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_and_get_exit_code

USAGE = """
python -m growlm.report RUN_DIR                  writes RUN_DIR/report.html
python -m growlm.report SWEEP_DIR                the jobs of a sweep side by side: SWEEP_DIR/report.html
python -m growlm.report DIR DIR... [out=FILE]    runs and sweeps side by side: comparison.html

  out   the file to write

Unfinished runs are shown as far as they came. Exit code 0: written; 2: what was asked for is wrong.
"""


def main() -> None:
    """The command."""
    # Without Hydra: it and the config's schema load torch, for which a table need not wait.
    sys.exit(run_and_get_exit_code(lambda: report(sys.argv[1:])))


def report(arguments: list[str]) -> int:
    """Write the report and print its tables; the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(USAGE.strip())
        return 0
    if "--version" in arguments:
        print(f"growlm {__version__}")
        return 0
    folders, out = _parse_arguments(arguments)

    from growlm.reporting.console.plain_console import make_stdout_console
    from growlm.reporting.console.run_tables import print_report
    from growlm.reporting.html import read_report, write_page

    found = read_report(folders)
    if out is None:
        is_alone = found.is_one_run or found.sweep is not None
        out = folders[0] / "report.html" if is_alone else Path("comparison.html")
    write_page(found, out)
    console = make_stdout_console()
    print_report(console, found)
    console.print(f"Wrote {out}", markup=False, soft_wrap=True)
    return 0


def _parse_arguments(arguments: list[str]) -> tuple[list[Path], Path | None]:
    """Folders, and `out`."""
    folders: list[Path] = []
    out: Path | None = None
    for argument in arguments:
        if argument.startswith("out=") and not Path(argument).is_dir():
            out = Path(argument.removeprefix("out=")).expanduser()
            if argument == "out=" or out.is_dir() or not out.absolute().parent.is_dir():
                raise UserError("out", out, "must be a file, in a folder that exists")
        elif argument.startswith("-"):
            raise UserError("argument", argument, "must be the folder of a run; see --help")
        else:
            folders.append(Path(argument).expanduser())
    if not folders:
        raise UserError("argument", "", "give the folder of a run or of a sweep; see --help")
    for folder in folders:
        if not folder.is_dir():
            raise UserError("argument", folder, "there is no such folder")
    return folders, out


if __name__ == "__main__":
    main()
