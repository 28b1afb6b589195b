"""Print which transformers architectures come in and go out, how they grow, and what is refused.

    python scripts/coverage_table.py              (the tables of docs/architectures.md)
    python scripts/coverage_table.py --write      (write them into that page)
    python scripts/coverage_table.py --models ../shared/models.json

Everything is computed from the code: the config of a small model is read from a `config.json` of each class, each
operator changes it, and the class that an export would choose is looked up. No weights are made.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from growlm.growth import Deepen, MultiplyExperts, Operator, Upcycle, Widen
from growlm.huggingface.architecture import Architecture
from growlm.huggingface.architectures import ARCHITECTURES, GROWLM
from growlm.huggingface.config_reading import parse_model_config, read_hf_config
from growlm.huggingface.config_writing import can_represent
from growlm.huggingface.families.shared_tables import GROUPED_KEYS, SIZE_KEYS
from growlm.huggingface.folder_conversion import choose_architecture
from growlm.huggingface.keys.config_keys import CONFIG_NAME
from growlm.huggingface.unsupported_features import (
    NO_TABLE,
    UNDESCRIBED_TYPES,
    UNSUPPORTED_FEATURES,
)
from growlm.model.config import ModelConfig
from growlm.runtime.errors import UserError
from growlm.runtime.exit_codes import run_main_and_exit

PAGE = Path(__file__).resolve().parents[1] / "docs" / "architectures.md"
BEGIN = "<!-- begin of what scripts/coverage_table.py prints -->"
END = "<!-- end of what scripts/coverage_table.py prints -->"

EXAMPLES = {
    "llama": "Llama 1 to 3.3, SmolLM2, TinyLlama, Yi, SOLAR, DeepSeek-LLM, DeepSeek-Coder",
    "mistral": "Mistral 7B, Mistral Nemo",
    "mixtral": "Mixtral",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen3": "Qwen3",
    "qwen2_moe": "Qwen1.5-MoE, Qwen2-57B-A14B",
    "qwen3_moe": "Qwen3-30B-A3B",
    "gemma": "Gemma",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3 (text)",
    "phi3": "Phi-3, Phi-3.5, Phi-4",
    "olmo2": "OLMo 2",
    "olmo3": "OLMo 3",
    "olmoe": "OLMoE",
    "flex_olmo": "FlexOlmo",
    "gpt_neox": "GPT-NeoX, Pythia",
    "gpt2": "GPT-2",
    "smollm3": "SmolLM3",
    "granite": "Granite 3",
    "granitemoe": "Granite 3 MoE",
    "glm": "GLM-4-9B",
    "glm4": "GLM-4 0414",
    "ernie4_5": "ERNIE 4.5 (dense)",
    "phi": "Phi-1, Phi-1.5, Phi-2",
    "falcon": "Falcon-7B",
    "cohere": "Command-R",
    "cohere2": "Command R7B, Command A",
    "gptj": "GPT-J",
    "codegen": "CodeGen",
    "starcoder2": "StarCoder2",
    "stablelm": "StableLM 2 1.6B, StableLM 3B",
    "opt": "OPT (but 350M)",
    "olmo": "OLMo 1",
    "seed_oss": "Seed-OSS",
    "nemotron": "Nemotron 3 and 4, Minitron",
    "arcee": "Arcee AFM",
    "helium": "Helium 1",
    "cwm": "CWM",
    "ministral": "Ministral 8B",
    "exaone4": "EXAONE 4.0",
    "vaultgemma": "VaultGemma",
    "gpt_bigcode": "StarCoder, SantaCoder",
    "granitemoeshared": "Granite MoE with a shared expert",
    "growlm": "any model of growlm's",
}
"""Published models by model type."""
VARIANT_EXAMPLES = {
    "qwen2_moe": "upcycled Qwen2, Seed-OSS",
    "falcon": "Falcon-40B and -180B, Falcon2-11B",
}
"""Likewise of the second description of a type."""
SIZES = {
    "vocab_size": 64,
    "d_model": 64,
    "n_layers": 4,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 16,
    "d_ff": 96,
    "max_seq_len": 64,
    "num_experts": 4,
    "top_k": 2,
    "shared_d_ff": 32,
}
GRANITE_MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.1,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
FLAGS: dict[str, dict[str, Any]] = {
    "granite": GRANITE_MULTIPLIERS,
    "granitemoe": GRANITE_MULTIPLIERS,
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "growlm": {"tie_word_embeddings": True} | {name: {} for name in ModelConfig.part_types()},
}
"""Keys without a default, or whose default no published model has."""
UPCYCLE, MULTIPLY = "upcycle", "multiply experts"
OPERATORS: dict[str, Operator] = {
    UPCYCLE: Upcycle(num_experts=4),
    "widen ×1.5": Widen(scale_factor=1.5, new_channels="copies"),
    "widen ×2": Widen(scale_factor=2, new_channels="copies"),
    "deepen": Deepen(init="identity"),
    MULTIPLY: MultiplyExperts(),
}
NOT_APPLICABLE = "–"
PROSE_KEYS = (
    *("name", "architecture", "attention", "blocks", "embedding", "head", "layers", "norm"),
    *("note", "positions", "rope", "tensors"),
)
"""Keys of the list of published models that are no keys of a `config.json`."""


def build_small_config(architecture: Architecture) -> ModelConfig:
    """Return the config of a small model, as a `config.json` of the architecture has it."""
    content = dict(architecture.key_defaults)
    content |= {key: values[0] for key, values in architecture.required_values.items()}
    for name, hf_keys in architecture.field_to_key.items():
        if name in SIZES:
            content |= dict.fromkeys(hf_keys.split(), SIZES[name])
    content |= FLAGS.get(architecture.model_type, {})
    content["growlm"] = {"model": dict(architecture.own_fields)}
    return parse_model_config(architecture, content, Path())


def is_variant(architecture: Architecture) -> bool:
    """Return whether another description of the same model type comes before this one."""
    alike = [each for each in ARCHITECTURES if each.model_type == architecture.model_type]
    return architecture is not alike[0]


def describe_architecture(architecture: Architecture, notes: list[str]) -> list[str]:
    """Return an architecture's row: how its model comes in, goes out and grows, and in which class it leaves.

    Args:
        architecture: Architecture of the model.
        notes: Reasons for refusals in the rows so far; new ones are appended.
    """
    config = build_small_config(architecture)
    dense = config
    if architecture is GROWLM:
        dense = replace(config, num_experts=0, shared_d_ff=0, expert_d_ff=None)
    examples = VARIANT_EXAMPLES if is_variant(architecture) else EXAMPLES
    goes_out = "yes" if can_represent(architecture, config) else "no"
    row = [f"`{architecture.class_name}`", examples[architecture.model_type], "yes", goes_out]
    upcycled, numbers = NOT_APPLICABLE, []
    for name, operator in OPERATORS.items():
        start = config if name == MULTIPLY else dense
        if start.is_moe if name == UPCYCLE else name == MULTIPLY and not start.is_moe:
            row.append(NOT_APPLICABLE)
            continue
        try:
            grown = operator.change(start).config
        except UserError as error:
            row.append("no")
            note = f"{name}: {error.reason}"
            if note not in notes:
                notes.append(note)
            numbers.append(f"({notes.index(note) + 1})")
            continue
        found = choose_architecture(grown, {"huggingface": {"model_type": architecture.model_type}})
        if name == UPCYCLE:
            upcycled = f"`{found.class_name}`"
        keeps_class = name == UPCYCLE or found.class_name == architecture.class_name
        row.append("yes" if keeps_class else f"`{found.class_name}`")
    return [*row, upcycled, ", ".join(numbers) or NOT_APPLICABLE]


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def format_coverage() -> str:
    """Return the tables of docs/architectures.md."""
    notes: list[str] = []
    rows = [describe_architecture(each, notes) for each in ARCHITECTURES]
    header = ["class", "models", "in", "out", *OPERATORS, "after upcycling", "refused because"]
    listed = "".join(f"({number}) {note}\n" for number, note in enumerate(notes, 1))
    title = "Refused, by `model_type` or by a key of `config.json`:"
    return f"{format_table(header, rows)}\n{listed}\n{title}\n\n{format_refused()}"


def format_refused() -> str:
    """Return the table of the features that growlm does not have, with the model types and keys that need them."""

    def listed(names: Iterable[str]) -> str:
        return ", ".join(f"`{name}`" for name in names) or NOT_APPLICABLE

    rows = [
        [feature.name, listed(feature.model_types), listed(feature.keys)]
        for feature in UNSUPPORTED_FEATURES
    ]
    rows.append([NO_TABLE, listed(UNDESCRIBED_TYPES), NOT_APPLICABLE])
    return format_table(["not supported", "model types", "keys"], rows)


def find_model_type(class_name: str) -> str:
    """Return the model type of a class of transformers, among those that growlm describes or refuses by name."""
    for architecture in ARCHITECTURES:
        if architecture.class_name == class_name:
            return architecture.model_type
    stem = re.sub(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$", "", class_name)
    named = [name for feature in UNSUPPORTED_FEATURES for name in feature.model_types]
    plain = {re.sub(r"[_-]", "", name): name for name in (*named, *UNDESCRIBED_TYPES)}
    return plain.get(stem.replace("_", "").lower(), stem)


def build_published_config(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `config.json` of a published model from its entry in the list, without the prose."""
    class_name = entry["architecture"]
    content = {key: value for key, value in entry.items() if key not in PROSE_KEYS}
    content |= {"architectures": [class_name], "model_type": find_model_type(class_name)}
    scaling = content.get("rope_scaling")
    if scaling is not None:
        content["rope_scaling"] = {key: _as_numbers(value) for key, value in scaling.items()}
    described = [each for each in ARCHITECTURES if each.class_name == class_name]
    if described:  # the list has Llama's names of the sizes for every class
        names = described[0].field_to_key
        for field, key in (SIZE_KEYS | GROUPED_KEYS).items():
            if key in content and names.get(field, key) != key:
                content.setdefault(names[field], content.pop(key))
    return content


def _as_numbers(value: Any) -> Any:
    """Return a list of ones for text such as "48 numbers", and any other value as it is."""
    found = re.fullmatch(r"(\d+) numbers", value) if isinstance(value, str) else None
    return [1.0] * int(found[1]) if found else value


def find_refusal(entry: Mapping[str, Any]) -> str | None:
    """Return why a published model does not come in; None if it does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CONFIG_NAME
        path.write_text(json.dumps(build_published_config(entry)))
        try:
            read_hf_config(Path(folder))
        except UserError as error:
            return str(error).removeprefix(f"{path}: ")
    return None


def format_models(path: Path) -> str:
    """Return the table of the published models of a list, and how many of them come in."""
    if not path.exists():
        return f"{path} does not exist; nothing to check\n"
    entries = json.loads(path.read_text())["models"]
    refusals = [find_refusal(entry) for entry in entries]
    rows = [
        [entry["name"], f"`{entry['architecture']}`", refusal or "yes"]
        for entry, refusal in zip(entries, refusals, strict=True)
    ]
    count = f"{refusals.count(None)} of {len(entries)} models come in."
    return format_table(["model", "class", "comes in"], rows) + f"\n{count}\n"


def split_page(page: str) -> tuple[str, str, str]:
    """Return what the page has before the tables, the tables, and what it has after them."""
    before, begin, rest = page.partition(f"{BEGIN}\n")
    tables, end, after = rest.partition(END)
    return before + begin, tables, end + after


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--models", type=Path, help="list of published models to check instead")
    parser.add_argument("--write", action="store_true", help=f"write the tables into {PAGE.name}")
    settings = parser.parse_args()
    if settings.models is not None:
        print(format_models(settings.models), end="")
        return
    tables = format_coverage()
    print(tables, end="")
    if settings.write:
        before, _, after = split_page(PAGE.read_text())
        PAGE.write_text(before + tables + after)


if __name__ == "__main__":
    run_main_and_exit(main)
