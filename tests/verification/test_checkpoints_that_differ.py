"""`growlm verify` on two checkpoints: mixed precision, records that lie, settings that no growth changes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from growlm import grow as grow_command
from growlm import verify as verify_command
from growlm.checkpoint import save_model
from growlm.growth import Upcycle, Widen, grow
from growlm.storage.integrity import MANIFEST, write_manifest
from tests.model.tiny_models import EXPERTS, build, tiny_config

WIDEN = "grow=[{widen: {scale_factor: 1.5}}]"


def seal(folder):
    """Write the manifest anew, as somebody who changes a file does who knows of it."""
    (folder / MANIFEST).unlink()
    write_manifest(folder, {})


def rewrite(folder, change=None, **config):
    """Change weights, fields of the model's config (`model__field`), and the record."""
    if change is not None:
        weights = load_file(folder / "model.safetensors")
        save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})
    record = json.loads((folder / "config.json").read_text())
    for key, value in config.items():
        if key.startswith("model__"):
            record["model"][key.removeprefix("model__")] = value
        else:
            record[key] = value
    (folder / "config.json").write_text(json.dumps(record))
    seal(folder)


def verify(old, new, capsys):
    code = verify_command.verify([f"old={old}", f"new={new}"])
    return code, capsys.readouterr().out


@pytest.fixture
def old(tmp_path):
    model = build(tiny_config("default", **EXPERTS), std=0.05, dtype=torch.float32)
    save_model(model, tmp_path / "old", {})
    return tmp_path / "old"


def in_bf16(*kept):
    return lambda weights: {
        name: tensor if any(part in name for part in kept) else tensor.bfloat16()
        for name, tensor in weights.items()
    }


@pytest.mark.parametrize("kept", ["router", "embedding", "final_norm"])
def test_a_right_growth_in_mixed_precision_passes(kept, old, tmp_path, capsys):
    rewrite(old, in_bf16(kept))
    assert grow_command.grow([f"checkpoint={old}", f"out={tmp_path / 'new'}", WIDEN]) == 0
    code, text = verify(old, tmp_path / "new", capsys)
    assert code == 0, text


@pytest.mark.parametrize("kept", ["router", "embedding"])
def test_a_wrong_entry_in_mixed_precision_is_found(kept, old, tmp_path, capsys):
    rewrite(old, in_bf16(kept))
    assert grow_command.grow([f"checkpoint={old}", f"out={tmp_path / 'new'}", WIDEN]) == 0

    def spoil(weights):
        (name,) = [name for name in weights if kept in name][:1]
        weights[name].view(-1)[0] += 0.01
        return weights

    rewrite(tmp_path / "new", spoil)
    code, text = verify(old, tmp_path / "new", capsys)
    assert code == 1
    assert "weight" in text


@pytest.mark.parametrize(
    "operators",
    [
        [{"widen": {"scale_factor": 64.0}}] * 5,
        [{"deepen": {"extra_layers": 4096}}] * 2000,
        [{"deepen": {"extra_layers": 1}}] * 20_000,
        [{"multiply_experts": {"factor": 256}}] * 5,
    ],
)
def test_a_record_of_a_huge_growth_is_not_followed(operators, old, tmp_path, capsys):
    """Each would take gigabytes or hours; the weights say what happened."""
    assert grow_command.grow([f"checkpoint={old}", f"out={tmp_path / 'new'}", WIDEN]) == 0
    rewrite(tmp_path / "new", grown_from={"operators": operators})
    code, text = verify(old, tmp_path / "new", capsys)
    assert code == 0, text


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"model__max_seq_len": 8}, "max_seq_len is 8 in new"),
        ({"model__router_balance_weight": 1e6}, "routing.balance_weight is 1000000.0 in new"),
        ({"model__router_z_weight": 5.0}, "routing.z_weight is 5.0 in new"),
        ({"tokenizer": "gpt2"}, "tokenizer is gpt2 in new"),
    ],
)
def test_settings_that_no_growth_changes_are_noted(change, note, old, tmp_path, capsys):
    assert grow_command.grow([f"checkpoint={old}", f"out={tmp_path / 'new'}", WIDEN]) == 0
    _, before = verify(old, tmp_path / "new", capsys)
    assert "Note:" not in before
    rewrite(tmp_path / "new", **change)
    _, text = verify(old, tmp_path / "new", capsys)
    assert f"Note: {note}" in " ".join(text.split())


def test_an_upcycling_that_breaks_ties_is_not_noted(tmp_path, capsys):
    model = build(tiny_config("default"), std=0.05, dtype=torch.float32)
    save_model(model, tmp_path / "old", {})
    grown = grow(
        model,
        [Upcycle(num_experts=4, top_k=2, router_init="zeros"), Widen(1.5, new_channels="copies")],
    )
    save_model(grown, tmp_path / "new", {})
    _, text = verify(tmp_path / "old", tmp_path / "new", capsys)
    assert "Note:" not in text


def test_a_file_that_its_manifest_gives_away_is_refused(old, tmp_path, capsys):
    assert grow_command.grow([f"checkpoint={old}", f"out={tmp_path / 'new'}", WIDEN]) == 0
    (tmp_path / "new" / "optimizer.safetensors").write_bytes(b"garbage")
    seal(tmp_path / "new")
    (tmp_path / "new" / "optimizer.safetensors").write_bytes(b"garbaga")
    with pytest.raises(ValueError, match="checksum"):
        verify(old, tmp_path / "new", capsys)
