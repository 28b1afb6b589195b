"""Run `python -m growlm.verify`: check that growth preserved a model's function and left copies distinct."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from torch import nn

from growlm.checkpoint.checkpoint_folder import WEIGHTS_STEM, load_model, read_model
from growlm.cli.hydra_command import run_key_value_command
from growlm.config.command_schema import VerifyCommand
from growlm.config.load import compose_command_config, load_command_config
from growlm.growth import operators_from_dicts
from growlm.growth.grow_model import Operator, build_growth_map
from growlm.growth.growth_map import GrowthMap
from growlm.growth.model_protocol import growth_config_of
from growlm.growth.operators.registry import UnknownOperatorError
from growlm.huggingface.config_reading import is_hf_folder
from growlm.huggingface.folders.model_card import MODEL_CARD
from growlm.huggingface.pretrained import open_pretrained
from growlm.model.config import ModelConfig, get_field
from growlm.model.keyed_rng import keyed_generator
from growlm.reporting.console.check_table import STATUS_LABELS, print_checks
from growlm.reporting.console.plain_console import make_stdout_console
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_main_and_exit
from growlm.runtime.number_format import format_jump, format_magnitude, format_probe_loss
from growlm.storage.input_files import lexists
from growlm.storage.integrity import MANIFEST, check_manifest, read_manifest
from growlm.verification import check_router_collapse, detailed_growth_check
from growlm.verification.check_report import Status
from growlm.verification.comparison import half_precision_tolerance, infer_growth_from_models
from growlm.verification.suite import SuiteCase, run_suite_cases
from growlm.verification.weights import coarsest_dtype, stored_dtypes

UNCHANGED_BY_GROWTH = (
    "max_seq_len",
    "routing.balance_weight",
    "routing.bias_step",
    "routing.z_weight",
)
"""Settings of a model that change no weight and none of what the probe measures."""

USAGE = """
Check that a grown model computes what the old one did, or run the standalone suite on small models.

usage: python -m growlm.verify old=DIR new=DIR [setting=value ...]
       python -m growlm.verify

  old                        folder of the model before the growth: a checkpoint or a Hugging Face model
  new                        folder of the model after the growth; without old and new, the suite runs
  tolerance                  largest difference between logits, times max(1, largest logit) (default: 1e-4)
  probe_sequences            number of sequences of random tokens to compare on (default: 2)
  probe_length               tokens per sequence (default: 32)
  seed                       seed of the probe (default: 0)
  require_symmetry_breaking  fail if copies stay equal (default: false)
  trust                      packages whose classes may be built, where a checkpoint's model is of a class of its
                             own (default: none)

Exit code 0: no check failed; 1: a check failed.

Example:
  python -m growlm.verify old=RUN_DIR/checkpoints/dense_model new=RUN_DIR/checkpoints/moe_model_init
"""

SUITE_CHECKS = ("rope", "router", "symmetry", "functional", "weights")


def main() -> None:
    """Run the command; exit by `sys.exit`."""
    sys.exit(
        run_key_value_command(
            USAGE,
            verify,
            partial(compose_command_config, "verify", VerifyCommand),
            schema=VerifyCommand,
        )
    )


def verify(arguments: list[str]) -> int:
    """Check two checkpoints, or run the standalone suite; return the exit code."""
    command = load_command_config("verify", VerifyCommand, arguments)
    if command.old is None and command.new is None:
        settings = [argument for argument in arguments if not argument.startswith("hydra.")]
        if settings:
            key, _, value = settings[0].partition("=")
            raise UserError(
                key, value, "needs old=DIR and new=DIR; the standalone suite has no settings"
            )
        return run_suite()
    for key in ("old", "new"):
        if getattr(command, key) is None:
            raise UserError(key, None, "give both old and new, or neither for the standalone suite")
    return compare_checkpoints(command, str(command.old), str(command.new))


def compare_checkpoints(command: VerifyCommand, old: str, new: str) -> int:
    """Check a grown checkpoint against the old one, and return the exit code."""
    for key, folder in (("old", old), ("new", new)):
        if lexists(Path(folder) / MANIFEST):
            check_manifest(Path(folder), key, _files_beside_weights(Path(folder), key))
    old_model, old_record = _load_folder(Path(old), "old", command.trust)
    new_model, record = _load_folder(Path(new), "new", command.trust)
    old_config, new_config = growth_config_of(old_model), growth_config_of(new_model)
    console = make_stdout_console()
    dtypes = stored_dtypes(old_model.state_dict(), new_model.state_dict())
    new_dtypes = {name: tensor.dtype for name, tensor in new_model.state_dict().items()}
    rounding = half_precision_tolerance(coarsest_dtype(dtypes.values()))
    tolerance = max(command.tolerance, rounding)
    if tolerance > command.tolerance:
        raised = format_magnitude(tolerance)
        console.print(f"  Half-precision weights: tolerance raised to {raised} for rounding")
    if rounding:
        old_model, new_model = old_model.float(), new_model.float()  # in place
    growth_map = _resolve_growth_map(old_model, new_model, record, new, dtypes)
    rounded_to = _round_as_grown(old_model, growth_map, new_dtypes)
    if rounded_to:
        console.print(f"  Note: weights of old are rounded to {rounded_to}, as new has them")
    for note in _describe_config_changes(old_config, new_config, old_record, record):
        console.print(f"  Note: {note}", markup=False)
    shape = (command.probe_sequences, min(command.probe_length, new_config.max_seq_len))
    probe = torch.randint(
        old_config.vocab_size, shape, generator=keyed_generator("verify", command.seed)
    )
    report = detailed_growth_check(
        old_model=old_model,
        new_model=new_model,
        probe=probe,
        device="cpu",
        tolerance=tolerance,
        growth_map=growth_map,
        require_symmetry_breaking=command.require_symmetry_breaking,
        growth_dtype=dtypes,
    )
    for line in growth_map.description:
        console.print(f"  {line}", markup=False)
    print_checks(console, report.checks | {"router_lock": check_router_collapse(new_model, probe)})
    console.print(
        f"  Probe loss {format_probe_loss(report.loss_before)} → {format_probe_loss(report.loss_after)}, jump "
        f"{format_jump(report.jump)}"
    )
    failed = [name for name, check in report.checks.items() if not check]
    console.print(f"[bold red]failed[/]: {', '.join(failed)}" if failed else "[green]passed[/]")
    return int(bool(failed))


@torch.no_grad()
def _round_as_grown(
    old: nn.Module, growth_map: GrowthMap, new_dtypes: Mapping[str, torch.dtype]
) -> str:
    """Round the old weights in place to the half precision that they were converted to before the growth.

    Returns:
        Names of the precisions that changed a weight; empty if none did.
    """
    weights, names = old.state_dict(), set()
    for name, tensor_map in growth_map.tensors.items():
        dtype, source = new_dtypes[name], tensor_map.source
        if source is None or dtype.itemsize >= 4:
            continue
        rounded = weights[source].to(dtype).to(weights[source].dtype)
        if not torch.equal(rounded, weights[source]):
            weights[source].copy_(rounded)
            names.add(str(dtype).removeprefix("torch."))
    return " and ".join(sorted(names))


def _files_beside_weights(folder: Path, key: str) -> list[str]:
    """Return the manifest's files but for a model card, which people edit, and for the weights.

    The weights' checksums are compared when they are loaded.
    """
    return [
        name
        for name in read_manifest(folder, key)
        if name != MODEL_CARD
        and not (name.startswith(WEIGHTS_STEM) and name.endswith(".safetensors"))
    ]


def _load_folder(folder: Path, key: str, trust: Sequence[str]) -> tuple[nn.Module, dict[str, Any]]:
    """Load the model of a folder of either kind, in the dtype of its files, and its record."""
    if not is_hf_folder(folder):
        return load_model(folder, key, trust=trust)
    pretrained = open_pretrained(folder, key)
    return read_model(pretrained.config, pretrained.weights), pretrained.record


def _resolve_growth_map(
    old: nn.Module,
    new: nn.Module,
    record: dict[str, Any],
    path: str,
    dtypes: Mapping[str, torch.dtype],
) -> GrowthMap:
    """Build the growth map from the new checkpoint's record if it fits the old model, else infer it."""
    try:
        if grown_from := record.get("grown_from"):
            operators = operators_from_dicts(grown_from["operators"])
            new_config = growth_config_of(new)
            if _grow_config(growth_config_of(old), operators, new_config) == new_config:
                return build_growth_map(old, operators)
        return infer_growth_from_models(old, new, dtypes)
    except UnknownOperatorError as error:
        reason = f"was grown by the operator {error.value}: {error.reason}"
        raise UserError("new", path, reason) from error
    except ValueError as error:
        raise UserError("new", path, f"was not grown from old: {error}") from error
    except (
        ArithmeticError,
        AttributeError,
        KeyError,
        TypeError,
    ) as error:  # from an unsuitable record
        reason = f"its record of the growth cannot be followed ({type(error).__name__}: {error})"
        raise UserError("new", path, reason) from error


def _grow_config(
    config: ModelConfig, operators: Sequence[Operator], target: ModelConfig
) -> ModelConfig | None:
    """Return the config after the operators; None as soon as it is larger than the target.

    The operators come from a file: what they make may be too large for the memory, and there may be too many.
    """
    limits = target.axis_sizes() | {"blocks": target.n_layers}
    # An upcycling may split blocks into smaller experts.
    limits["hidden"] *= max(1, target.num_experts)
    for operator in operators:
        config = operator.change(config).config
        sizes = config.axis_sizes() | {"blocks": config.n_layers}
        if any(size > limits.get(axis, 0) for axis, size in sizes.items()):
            return None
    return config


def _describe_config_changes(
    old: ModelConfig, new: ModelConfig, old_record: dict[str, Any], record: dict[str, Any]
) -> list[str]:
    """Describe settings that differ between the checkpoints although no growth changes them."""
    names = UNCHANGED_BY_GROWTH + (("routing.tie_breaking",) if old.is_moe else ())
    pairs = {name: (get_field(old, name), get_field(new, name)) for name in names}
    pairs["tokenizer"] = (old_record.get("tokenizer"), record.get("tokenizer"))
    return [
        f"{name} is {after} in new and {before} in old; no growth changes it"
        for name, (before, after) in pairs.items()
        if before != after
    ]


def run_suite() -> int:
    """Run the standalone suite on small models, and return the exit code."""
    console = make_stdout_console()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("growth", "logits", "loss", *SUITE_CHECKS, "ok"):
        table.add_column(name, no_wrap=True)
    section, num_failed = "", 0
    for case in track(run_suite_cases(), "growing", total=None, console=console, transient=True):
        if case.section != section:
            section = case.section
            table.add_row(f"[bold]{section}")
        table.add_row(*_format_suite_row(case))
        num_failed += not case
    console.print(table)
    console.print(
        f"\n[bold red]{num_failed} not as expected[/]"
        if num_failed
        else "\n[green]all as expected[/]"
    )
    return int(bool(num_failed))


def _format_suite_row(case: SuiteCase) -> list[str]:
    report = case.report
    marks = {**STATUS_LABELS, Status.NOT_APPLICABLE: "[dim]–[/]"}
    return [
        f"  {case.name}",
        format_magnitude(report.max_logit_difference),
        format_jump(report.jump),
        *(marks[report.checks[check].status] for check in SUITE_CHECKS),
        "[green]yes[/]" if case else "[bold red]NO[/]",
    ]


if __name__ == "__main__":
    run_main_and_exit(main)
