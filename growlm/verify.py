"""`python -m growlm.verify`: did a growth lose anything? Two checkpoints, or the standalone suite."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table

from growlm.checkpoint.checkpoint_folder import load_model
from growlm.cli.hydra_command import run_key_value_command
from growlm.config.command_schema import VerifyCommand
from growlm.config.load import compose_command_config, load_command_config
from growlm.growth import operators_from_dicts
from growlm.growth.api import build_growth_map
from growlm.growth.growth_map import GrowthMap
from growlm.model.keyed_rng import keyed_generator
from growlm.model.transformer import TransformerLM
from growlm.reporting.console.check_table import STATUS_LABELS, print_checks
from growlm.reporting.console.plain_console import make_stdout_console
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.verification import check_router_collapse, detailed_growth_check
from growlm.verification.check_report import Status
from growlm.verification.comparison import half_precision_tolerance, infer_growth_from_models
from growlm.verification.suite import SuiteCase, run_suite_cases

USAGE = """
python -m growlm.verify old=DIR new=DIR     the checks of a growth, on two checkpoints
python -m growlm.verify                     the standalone suite, on small models

  tolerance                  logits may differ by this times max(1, largest logit) (1e-4)
  probe_sequences            sequences of random tokens to compare on (2)
  probe_length               tokens of each (32)
  seed                       of the probe (0)
  require_symmetry_breaking  fail where copies stay equal (false)

Exit code 0: nothing failed; 1: a check failed.
"""

SUITE_CHECKS = ("rope", "router", "symmetry", "functional", "weights")


def main() -> None:
    """The command."""
    sys.exit(
        run_key_value_command(
            USAGE, verify, partial(compose_command_config, "verify", VerifyCommand)
        )
    )


def verify(arguments: list[str]) -> int:
    """Check; the exit code."""
    command = load_command_config("verify", VerifyCommand, arguments)
    if command.old is None and command.new is None:
        if arguments:
            key, _, value = arguments[0].partition("=")
            raise UserError(key, value, "belongs to old=DIR new=DIR; the suite has no settings")
        return run_suite()
    for key in ("old", "new"):
        if getattr(command, key) is None:
            raise UserError(key, None, "give both old and new, or neither for the standalone suite")
    return compare_checkpoints(command, str(command.old), str(command.new))


def compare_checkpoints(command: VerifyCommand, old: str, new: str) -> int:
    """The checks on two checkpoints; the exit code."""
    old_model, _ = load_model(Path(old), "old")
    new_model, record = load_model(Path(new), "new")
    console = make_stdout_console()
    dtypes = [next(model.parameters()).dtype for model in (old_model, new_model)]
    stored_as = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    tolerance = max(command.tolerance, half_precision_tolerance(stored_as))
    if tolerance > command.tolerance:
        console.print(f"  Weights of half precision: tolerance {tolerance:.1e}, their rounding")
    if half_precision_tolerance(stored_as):
        old_model, new_model = old_model.float(), new_model.float()  # in place
    growth_map = _resolve_growth_map(old_model, new_model, record, new, stored_as)
    shape = (command.probe_sequences, min(command.probe_length, new_model.config.max_seq_len))
    probe = torch.randint(
        old_model.config.vocab_size, shape, generator=keyed_generator("verify", command.seed)
    )
    report = detailed_growth_check(
        old_model=old_model,
        new_model=new_model,
        probe=probe,
        device="cpu",
        tolerance=tolerance,
        growth_map=growth_map,
        require_symmetry_breaking=command.require_symmetry_breaking,
        growth_dtype=stored_as,
    )
    for line in growth_map.description:
        console.print(f"  {line}", markup=False)
    print_checks(console, report.checks | {"router_lock": check_router_collapse(new_model, probe)})
    console.print(
        f"  Probe loss {report.loss_before:.6f} → {report.loss_after:.6f}, jump {report.jump:+.1e}"
    )
    failed = [name for name, check in report.checks.items() if not check]
    console.print(f"[bold red]failed[/]: {', '.join(failed)}" if failed else "[green]passed[/]")
    return int(bool(failed))


def _resolve_growth_map(
    old: TransformerLM,
    new: TransformerLM,
    record: dict[str, Any],
    path: str,
    stored_dtype: torch.dtype,
) -> GrowthMap:
    """As the grown checkpoint says, if it was grown from a model of the old shape; else inferred."""
    try:
        if grown_from := record.get("grown_from"):
            operators = operators_from_dicts(grown_from["operators"])
            config = old.config
            for operator in operators:  # the map of a model that is not there may be too large
                config = operator.change(config).config
            if config == new.config:
                return build_growth_map(old.config, operators)
        return infer_growth_from_models(old, new, stored_dtype)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError("new", path, f"is not grown from old: {error}") from error


def run_suite() -> int:
    """The standalone suite; the exit code."""
    console = make_stdout_console()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("growth", "logits", "loss", *SUITE_CHECKS, "ok"):
        table.add_column(name, no_wrap=True)
    section, wrong = "", 0
    for case in track(run_suite_cases(), "growing", total=None, console=console, transient=True):
        if case.section != section:
            section = case.section
            table.add_row(f"[bold]{section}")
        table.add_row(*_format_suite_row(case))
        wrong += not case
    console.print(table)
    console.print(
        f"\n[bold red]{wrong} not as expected[/]" if wrong else "\n[green]all as expected[/]"
    )
    return int(bool(wrong))


def _format_suite_row(case: SuiteCase) -> list[str]:
    report = case.report
    marks = {**STATUS_LABELS, Status.NOT_APPLICABLE: "[dim]–[/]"}
    return [
        f"  {case.name}",
        f"{report.max_logit_difference:.1e}",
        f"{report.jump:+.1e}",
        *(marks[report.checks[check].status] for check in SUITE_CHECKS),
        "[green]yes[/]" if case else "[bold red]NO[/]",
    ]


if __name__ == "__main__":
    run_main_and_exit(main)
