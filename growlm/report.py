"""Run `python -m growlm.report`: write an HTML report of a run, a sweep, or several runs side by side."""

from __future__ import annotations

import sys
from pathlib import Path

from growlm import __version__
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_and_get_exit_code, run_main_and_exit
from growlm.runtime.output_streams import output_may_be_lost

USAGE = """
Write an HTML report of a run, a sweep, or several runs side by side, and print its tables.

usage: python -m growlm.report DIR [DIR ...] [out=FILE]

  DIR   folder of a run or a sweep; one run or sweep is written to DIR/report.html, several are compared in
        comparison.html
  out   file to write instead

--config-dir is accepted, as by all commands; a report reads no config files.
Unfinished runs are included up to their last step. Exit code 0: the report was written; 2: an argument is wrong.

Examples:
  python -m growlm.report RUN_DIR
  python -m growlm.report RUN_DIR BASELINE_DIR out=comparison.html
"""


def main() -> None:
    """Run the command; exit by `sys.exit`."""
    # Hydra is not used here: it and the config schema import torch, which would only delay the tables.
    sys.exit(run_and_get_exit_code(lambda: report(sys.argv[1:])))


def report(arguments: list[str]) -> int:
    """Write the report, print its tables, and return the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(USAGE.strip())
        return 0
    if "--version" in arguments:
        print(f"growlm {__version__}")
        return 0
    folders, out = _parse_arguments(_check_config_dir(arguments))

    from growlm.reporting.console.plain_console import make_stdout_console
    from growlm.reporting.console.run_tables import print_report
    from growlm.reporting.html import read_report, write_page

    content = read_report(folders)
    if out is None:
        is_single = content.is_one_run or content.sweep is not None
        out = folders[0] / "report.html" if is_single else Path("comparison.html")
    write_page(content, out)
    with output_may_be_lost():  # the page is written
        console = make_stdout_console()
        print_report(console, content)
        console.print(f"Wrote {out}", markup=False, soft_wrap=True)
    return 0


def _check_config_dir(arguments: list[str]) -> list[str]:
    """Return the arguments without `--config-dir`, whose folder is only checked."""
    if not any(argument.startswith(("--config-dir", "-cd")) for argument in arguments):
        return arguments
    from growlm.config.config_dir import check_config_dir, split_config_dir

    folder, others = split_config_dir(arguments)
    if folder is not None:
        check_config_dir(folder)
    return others


def _parse_arguments(arguments: list[str]) -> tuple[list[Path], Path | None]:
    """Split arguments into the folders and the value of `out`."""
    folders: list[Path] = []
    out: Path | None = None
    for argument in arguments:
        if argument.startswith("out=") and not Path(argument).is_dir():
            out = Path(argument.removeprefix("out=")).expanduser()
            if argument == "out=" or not out.absolute().parent.is_dir():
                raise UserError("out", out, "must be a file in an existing folder")
            if out.exists() and not out.is_file():
                raise UserError("out", out, "exists and is not a regular file")
        elif argument.startswith("-"):
            raise UserError(
                "argument", argument, "must be the folder of a run or a sweep; see --help"
            )
        else:
            folders.append(Path(argument).expanduser())
    if not folders:
        raise UserError("argument", "", "give the folder of a run or a sweep; see --help")
    for folder in folders:
        if not folder.is_dir():
            raise UserError("argument", folder, "there is no such folder")
    return folders, out


if __name__ == "__main__":
    run_main_and_exit(main)
