"""What a run leaves behind."""

import dataclasses
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from growlm.checkpoint import load_model
from growlm.reporting.reading.sweep_record import Job, SweepRecord
from growlm.reporting.records import PhaseSummary, ReusedPhases, RunSummary
from tests.training.tiny_run import events, rows, tiny_run

PHASES = ["dense", "moe", "wide", "deep"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("runs") / "run")


def test_the_files_of_a_run(run):
    assert {path.name for path in run.run_dir.iterdir()} == {
        "boundaries.json",
        "checkpoints",
        "config.yaml",
        "plan.json",
        "provenance.json",
        "report.html",
        "resume",
        "summary.json",
    }
    kept = {"lock", "run.json", "000000016"}  # the state that more steps would begin from
    assert {path.name for path in (run.run_dir / "resume").iterdir()} == kept
    assert {path.name for path in (run.run_dir / "checkpoints").iterdir()} == {
        "dense_model",
        "moe_model_init",
        "moe_model_final",
        "medium_moe_final",
        "large_moe_final",
        "training_history.jsonl",
    }


def keys_of(value, known):
    """The keys of a JSON value and of all inside it, but for what is below the `known` ones."""
    if isinstance(value, list):
        return set().union(*(keys_of(item, known) for item in value))
    if not isinstance(value, dict):
        return set()
    below = (keys_of(item, known) for key, item in value.items() if key not in known)
    return set(value).union(*below)


def test_the_page_on_run_files_has_every_file_and_key(run):
    page = (Path(__file__).parents[2] / "docs" / "run_files.md").read_text()
    folder = run.run_dir
    lines = (folder / "checkpoints" / "training_history.jsonl").read_text().splitlines()
    keys = {key for line in lines for key in json.loads(line)}
    # figures, and a model's config, operators and checks by name are explained elsewhere
    elsewhere = {"figures", "model", "operators", "checks"}
    for name in ("boundaries", "summary", "plan", "provenance"):
        keys |= keys_of(json.loads((folder / f"{name}.json").read_text()), elsewhere)
    for record in json.loads((folder / "boundaries.json").read_text()):
        for check in record["checks"].values():
            keys |= set(check)
    model = folder / "checkpoints" / "dense_model"
    keys |= set(json.loads((model / "config.json").read_text()))
    for record in (RunSummary, PhaseSummary, ReusedPhases, SweepRecord, Job):
        keys |= {field.name for field in dataclasses.fields(record)}
    keys |= {path.name for path in (*folder.glob("*.*"), *folder.glob("resume/[rl]*"))}
    keys |= {path.name for path in (*model.iterdir(), *folder.glob("resume/0*/*"))}
    assert len(keys) > 100
    named = set(re.findall(r"`([^`\n]+)`", page))
    named |= {Path(name).name for name in named}
    assert not keys - named


def test_every_boundary_is_lossless(run):
    boundaries = json.loads((run.run_dir / "boundaries.json").read_text())
    assert [(b["from"], b["to"]) for b in boundaries] == list(pairwise(PHASES))
    for boundary in boundaries:
        assert abs(boundary["jump"]) <= 1e-4
        assert boundary["max_logit_difference"] <= 2e-5
        assert boundary["lossless"]
        assert boundary["passed"]
        checks = ["rope", "router", "symmetry", "functional", "weights"]
        assert list(boundary["checks"]) == checks
        assert all(c["status"] in ("passed", "not_applicable") for c in boundary["checks"].values())
        assert boundary["noise"] == {}  # nothing is copied, but to experts


def test_the_noise_that_parts_copies_is_on_record(tmp_path):
    run = tiny_run(tmp_path / "run", "recipe=copies")
    boundary = json.loads((run.run_dir / "boundaries.json").read_text())[1]
    assert 0 < boundary["noise"]["sigma_max"] <= 1e-2
    assert boundary["lossless"]
    assert boundary["checks"]["symmetry"]["status"] == "passed"


def test_history_is_one_continuous_axis(run):
    history = rows(run.run_dir)
    assert [row["global_step"] for row in history] == list(range(1, 17))  # all near a growth
    assert [row["phase"] for row in history] == [name for name in PHASES for _ in range(4)]
    for key in ("tokens", "flops", "time_s"):
        values = [row[key] for row in history]
        assert values == sorted(values)
        assert len(set(values)) == len(values)
    assert history[-1]["tokens"] == 16 * 4 * 32
    needed = {"phase", "phase_index", "step", "loss", "lr", "grad_norm", "tokens_per_second"}
    assert needed <= set(history[0])
    assert {"dead_experts", "load_entropy", "max_load", "aux_loss"} <= set(history[-1])
    assert [e["to"] for e in events(run.run_dir, "boundary")] == PHASES[1:]
    assert "expert_loads" not in history[0]
    loads = history[-1]["expert_loads"]
    assert [len(layer) for layer in loads] == [8, 8, 8]  # layers of the last phase, experts
    assert all(sum(layer) == pytest.approx(1.0, abs=1e-3) for layer in loads)


def test_every_step_near_a_growth_has_a_row(tmp_path):
    lengths = {"dense": 33, "moe": 64}
    settings = [
        f"phases.{name}.{key}"
        for name, number in lengths.items()
        for key in (f"steps={number}", "batch_size=1")
    ]
    short = ["callbacks.log_every=20", "~phases.wide", "~phases.deep", "sequence_length=16"]
    history = rows(tiny_run(tmp_path / "run", *settings, *short).run_dir)
    logged = {name: [row["step"] for row in history if row["phase"] == name] for name in lengths}
    assert logged == {
        "dense": [1, *range(4, 34)],  # nothing grew: its first step, and its last 30
        "moe": [*range(1, 31), *range(35, 65)],  # 20, 40 and 60 are among them
    }
    # Whatever its step, a row has the same keys.
    of_moe = [row for row in history if row["phase"] == "moe"]
    assert {tuple(sorted(row)) for row in of_moe} == {tuple(sorted(of_moe[-1]))}
    assert all(sum(row["expert_loads"][0]) == pytest.approx(1.0, abs=1e-3) for row in of_moe)


def test_summary_agrees_with_history_and_plan(run):
    summary = json.loads((run.run_dir / "summary.json").read_text())
    history = rows(run.run_dir)
    plan = json.loads((run.run_dir / "plan.json").read_text())
    assert [phase["name"] for phase in summary["phases"]] == PHASES
    for phase, planned in zip(summary["phases"], plan, strict=True):
        of_phase = [row for row in history if row["phase"] == phase["name"]]
        assert phase["first_loss"] == of_phase[0]["loss"]
        assert phase["final_loss"] == of_phase[-1]["loss"]
        assert phase["total_parameters"] == planned["total_parameters"]
        assert phase["steps"] == planned["steps"] == 4
        assert phase["peak_memory_bytes"] > 10**8
        assert phase["sample"].startswith("Once upon a time")
        assert phase["tokens_per_second"] > 0
    validations = events(run.run_dir, "validation")
    assert summary["phases"][-1]["val_loss"] == validations[-1]["val_loss"]
    bits = [line["val_bits_per_byte"] for line in validations]
    assert summary["phases"][-1]["val_bits_per_byte"] == bits[-1]
    ratios = {round(b / line["val_loss"], 9) for b, line in zip(bits, validations, strict=True)}
    assert len(ratios) == 1, "the corpus' tokens per byte, over ln 2"
    # A lossless boundary: what one phase ends with, the next begins with (bf16 rounds each model its own way).
    for before, after in pairwise(summary["phases"]):
        assert after["initial_val_loss"] == pytest.approx(before["val_loss"], abs=5e-3)


def test_artefacts_hold_the_trained_models(run):
    final, record = load_model(run.run_dir / "checkpoints" / "large_moe_final")
    assert record["phase"] == "deep"
    assert record["global_step"] == 16
    assert record["tokenizer"] == "bytes"
    assert final.config.d_model == 24
    initial, _ = load_model(run.run_dir / "checkpoints" / "moe_model_init")
    dense, _ = load_model(run.run_dir / "checkpoints" / "dense_model")
    probe = torch.arange(32).unsqueeze(0)
    with torch.no_grad():
        assert torch.allclose(initial(probe), dense(probe), atol=2e-5)
        trained, _ = load_model(run.run_dir / "checkpoints" / "moe_model_final")
        assert not torch.allclose(trained(probe), dense(probe), atol=1e-3)


def test_a_taken_name_gets_a_suffix(run):
    again = tiny_run(run.run_dir)
    assert again.run_dir == run.run_dir.with_name("run_2")
