"""Write the model card of a grown Hugging Face model: what was grown from what, and what is exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from growlm import __version__
from growlm.huggingface.folders.folder_report import FolderGrowthReport, join_dtypes
from growlm.runtime.errors import UserError
from growlm.runtime.escaping import escape_unprintable_line
from growlm.storage.input_files import MAX_RECORD_BYTES, copy_file, lexists, read_text
from growlm.storage.parsing import parse_yaml

MODEL_CARD = "README.md"
SOURCE_CARD = "README.source.md"
"""Name of the source's own model card beside that of the grown model."""
KEPT_ENTRIES = ("license", "license_name", "license_link", "language")
"""Entries of the source card's header that hold for the grown model, too."""
ROWS = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "num_experts", "top_k")
"""Sizes of a model that the card shows where they change."""


@dataclass(frozen=True)
class CardContent:
    """What a model card says."""

    report: FolderGrowthReport
    grown_from: Mapping[str, Any]
    """Operators, seed and index of the growth."""
    earlier: Mapping[str, Any] | None = None
    """The same of the growth that made the source; None if it was not grown."""


def write_model_card(folder: Path, content: CardContent, source: Path) -> None:
    """Write `README.md`, and keep the source's own beside it as `README.source.md`.

    Of a model that was grown before, the card that is kept is that of the first model.

    Args:
        folder: Unfinished folder of the grown model.
        content: What the card says.
        source: Folder of the model before the growth.

    Raises:
        UserError: If the source's card is no text file inside its folder.
    """
    kept = next((source / n for n in (SOURCE_CARD, MODEL_CARD) if lexists(source / n)), None)
    if kept is not None:
        copy_file(kept, folder / SOURCE_CARD, "checkpoint", source)
    header = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["growlm"],
        **_read_kept_entries(kept, source),
    }
    text = make_model_card(content, get_model_name(source), header, kept is not None)
    (folder / MODEL_CARD).write_text(text, encoding="utf-8")


def get_model_name(source: Path) -> str:
    """Return the name of a model's folder, or of the model itself in a cache of the Hugging Face Hub."""
    folder = source.absolute()
    cached = folder.parents[1].name if len(folder.parents) > 1 else ""
    if folder.parent.name == "snapshots" and cached.startswith("models--"):
        return escape_unprintable_line("/".join(cached.split("--")[1:]))
    return escape_unprintable_line(folder.name)


def make_model_card(
    content: CardContent, source_name: str, header: Mapping[str, Any], has_source_card: bool
) -> str:
    """Return the text of a model card.

    Args:
        content: What the card says.
        source_name: Name of the source.
        header: Entries of the YAML header.
        has_source_card: Whether the source's own card lies beside it.
    """
    report = content.report
    name = f"`{source_name.replace('`', '')}`"
    lines = [
        "---",
        yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# Grown from {source_name.replace('`', '')}",
        "",
        f"The weights of this model were made from those of {name} by growlm {__version__}, without training.",
        "",
        "| | before | after |",
        "|---|---|---|",
        *(f"| {row} | {before} | {after} |" for row, before, after in _table_rows(report)),
        "",
        "## The growth",
        "",
        "```yaml",
        _dump_growth(content.grown_from),
        "```",
        "",
        *(f"* {line}" for line in report.growth_map.description),
        "",
        "## What is exact",
        "",
        *(f"* {line}" for line in report.exactness),
        "",
        _describe_check(report),
        "",
        "```sh",
        "growlm verify old=SOURCE new=THIS_FOLDER",
        "```",
    ]
    if report.own_class_reason is not None:
        lines += ["", f"The class is growlm's own: {report.own_class_reason}."]
    if content.earlier is not None:
        lines += ["", "The source was itself grown, by", "", "```yaml"]
        lines += [_dump_growth(content.earlier), "```"]
    if has_source_card:
        lines += ["", f"The card of the model before any growth is [{SOURCE_CARD}]({SOURCE_CARD})."]
    return "\n".join(lines) + "\n"


def _describe_check(report: FolderGrowthReport) -> str:
    """Return which check was made, and what it found."""
    if report.weight_check is None:
        return "No check has been run. This compares every tensor, and the outputs on a probe:"
    return (
        f"Every tensor has been compared with its source after it was written: {report.weight_check.summary}. "
        "This does so again, and compares the outputs on a probe:"
    )


def _table_rows(report: FolderGrowthReport) -> list[tuple[str, str, str]]:
    before, after = report.parameters_before, report.parameters_after
    old, new = report.growth_map.old_config, report.growth_map.new_config
    rows = [
        ("class", report.class_before, report.class_after),
        ("parameters", f"{before.total:,}", f"{after.total:,}"),
        ("active for a token", f"{before.active:,}", f"{after.active:,}"),
    ]
    values = [(row, getattr(old, row), getattr(new, row)) for row in ROWS]
    rows += [(row, f"{one:,}", f"{two:,}") for row, one, two in values if one != two]
    return [*rows, ("dtype", join_dtypes(report.dtypes_before), join_dtypes(report.dtypes))]


def _dump_growth(grown_from: Mapping[str, Any]) -> str:
    operators = [
        {name: {k: v for k, v in settings.items() if v is not None}}
        for entry in grown_from["operators"]
        for name, settings in entry.items()
    ]
    content = {"grow": operators} | {k: v for k, v in grown_from.items() if k != "operators"}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True).rstrip()


def _read_kept_entries(card: Path | None, root: Path) -> dict[str, Any]:
    """Return the entries of a card's YAML header that are kept; none if it has no header that can be read."""
    if card is None:
        return {}
    try:
        text = read_text(card, "checkpoint", root, MAX_RECORD_BYTES)
        parts = text.split("---\n", 2) if text.startswith("---\n") else []
        header = parse_yaml(parts[1]) if len(parts) == 3 else None
    except (UserError, ValueError):
        return {}
    if not isinstance(header, dict):
        return {}
    return {name: header[name] for name in KEPT_ENTRIES if isinstance(header.get(name), str | list)}
