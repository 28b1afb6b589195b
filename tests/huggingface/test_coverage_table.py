"""docs/architectures.md shows what the code does, and published models come in or are refused by feature."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from coverage_table import (
    EXAMPLES,
    PAGE,
    VARIANT_EXAMPLES,
    find_refusal,
    format_coverage,
    format_models,
    is_variant,
    split_page,
)

from growlm.huggingface.architectures import ARCHITECTURES
from growlm.huggingface.unsupported_features import NO_TABLE, UNSUPPORTED_FEATURES

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT.parent / "shared" / "models.json"
COMING_IN = {
    *("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "SmolLM3ForCausalLM"),
    *("Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"),
    *("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM"),
    *("Olmo2ForCausalLM", "Olmo3ForCausalLM", "OlmoeForCausalLM", "GPTNeoXForCausalLM"),
    *("GPT2LMHeadModel", "GraniteForCausalLM", "GraniteMoeForCausalLM"),
    *("Glm4ForCausalLM", "Ernie4_5ForCausalLM", "PhiForCausalLM", "FalconForCausalLM"),
    "CohereForCausalLM",
    *("Glm4ForCausalLM", "Ernie4_5ForCausalLM", "Starcoder2ForCausalLM", "StableLmForCausalLM"),
    *("OPTForCausalLM", "OlmoForCausalLM", "SeedOssForCausalLM"),
}
OF_ANOTHER_KIND = {"OPT-350M"}
"""Models that are refused although others of their class come in."""


def test_the_page_shows_what_the_script_prints():
    assert split_page(PAGE.read_text())[1] == format_coverage(), (
        "run python scripts/coverage_table.py --write"
    )


def test_examples_are_of_the_architectures():
    assert {*EXAMPLES} == {each.model_type for each in ARCHITECTURES}
    assert {*VARIANT_EXAMPLES} == {each.model_type for each in ARCHITECTURES if is_variant(each)}


@pytest.mark.skipif(not MODELS.exists(), reason="../shared/models.json is not there")
def test_published_models_come_in_or_are_refused_by_feature():
    entries = json.loads(MODELS.read_text())["models"]
    names = [*(feature.name for feature in UNSUPPORTED_FEATURES), NO_TABLE]
    refusals = {entry["name"]: find_refusal(entry) for entry in entries}
    refused = {name: reason for name, reason in refusals.items() if reason is not None}
    for reason in refused.values():
        assert any(name in reason for name in names), reason
    coming_in = {entry["architecture"] for entry in entries if entry["name"] not in refused}
    assert coming_in >= COMING_IN
    assert not [
        e["name"]
        for e in entries
        if e["name"] in {*refused} - OF_ANOTHER_KIND and e["architecture"] in COMING_IN
    ]
    assert {*refused} >= OF_ANOTHER_KIND
    assert f"{len(entries) - len(refused)} of {len(entries)} models come in." in format_models(
        MODELS
    )


def test_without_the_list_of_models_the_script_says_so(tmp_path):
    command = [sys.executable, "scripts/coverage_table.py", "--models", str(tmp_path / "none.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'none.json'} does not exist; nothing to check\n"
