"""report.html of one run, as data: finished, unfinished, long, hostile."""

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import yaml

from growlm.reporting.html import write_report
from growlm.reporting.html.page import ASSETS_DIR
from growlm.reporting.reading.run_files import read_run
from growlm.reporting.records import ReusedPhases
from growlm.runtime.errors import UserError
from tests.reporting.written_run import page_data, write_history, write_run

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"'&amp; {{ data }} \u2028 猫"
)


def report(folder):
    write_report([folder], folder / "report.html")
    return page_data(folder / "report.html")


def history(folder):
    path = folder / "checkpoints" / "training_history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_finished_run_tells_all(tmp_path):
    data = report(write_run(tmp_path / "run"))
    assert data["status"] == "finished"
    assert [b["grew"] for b in data["boundaries"]] == ["8 experts", "×1.5 wider", "+2 layers"]
    assert [b["at"]["step"] for b in data["boundaries"]] == [40, 80, 120]
    strip = {value["label"]: value["value"] for value in data["strip"]}
    assert strip["parameters"] == "1 M → 4 M"
    assert strip["largest jump"] == "+3.0e-07"
    assert data["title"] == "quickstart: 1 M → 4 M parameters in 3 growths, validation loss 1.3031"
    assert data["subtitle"] == "run"
    assert strip["tokens"] == "160 k"
    assert [s["text"] for s in data["samples"]] == [f"Once in {p['phase']}." for p in data["sizes"]]
    assert [p["phase"] for p in data["router"]] == ["moe", "wide", "deep"]
    assert data["boundaries"][0]["drift"][1] == {
        "layer": 1,
        "old": 1,
        "largest": 1e-6,
        "mean": 1e-7,
    }


def test_an_unfinished_run_shows_how_far_it_came(tmp_path):
    folder = write_run(tmp_path / "run", finished=False)
    lines = history(folder)
    until = [line for line in lines if line.get("global_step", 0) <= 60][:70]
    write_history(folder, [line for line in until if line["phase"] in ("dense", "moe")])
    with (folder / "checkpoints" / "training_history.jsonl").open("a") as file:
        file.write('{"phase": "moe", "step": 21, "loss')
    (folder / "boundaries.json").write_text("[]")
    (folder / "resume").mkdir()
    (folder / "resume" / "run.json").write_text("{}")
    data = report(folder)
    assert data["status"] == "unfinished"
    assert any(note.startswith("1 line of") for note in data["notes"])
    assert [row[0]["text"] for row in data["phases"]["rows"]] == ["dense", "moe"]
    assert "of 40" in data["phases"]["rows"][1][3]["text"]
    assert data["commands"][0]["command"] == f"python -m growlm.train resume={folder}"


def test_a_run_that_has_only_begun(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: quickstart\nseed: 3\n")
    data = report(folder)
    assert data["status"] == "unfinished"
    assert data["rows"]["loss"] == []


def test_a_failed_boundary_fails_the_run(tmp_path):
    folder = write_run(tmp_path / "run", finished=False)
    boundaries = json.loads((folder / "boundaries.json").read_text())
    boundaries[2]["passed"] = False
    (folder / "boundaries.json").write_text(json.dumps(boundaries))
    assert report(folder)["status"] == "failed"


def test_losses_that_are_not_finite_are_gaps(tmp_path):
    folder = write_run(tmp_path / "run")
    lines = history(folder)
    lines[5]["loss"], lines[6]["loss"], lines[7]["grad_norm"] = float("nan"), float("inf"), None
    write_history(folder, lines)
    data = report(folder)
    assert data["rows"]["loss"][4:7] == [None, None, data["rows"]["loss"][6]]
    assert any("2 logged steps" in note for note in data["notes"])


def test_reused_phases_and_baselines_are_told(tmp_path):
    folder = write_run(
        tmp_path / "run", baseline={"kind": "scratch", "equal": "flops", "of": "grown"}
    )
    summary = json.loads((folder / "summary.json").read_text())
    summary["reused"] = asdict(ReusedPhases(["dense", "moe"], run="../0_first", seconds=41.2))
    (folder / "summary.json").write_text(json.dumps(summary))
    notes = report(folder)["notes"]
    assert "Phases dense, moe reused from ../0_first, 41 s saved." in notes
    assert any("scratch" in note and "grown" in note for note in notes)


def test_nothing_from_a_run_becomes_markup(tmp_path):
    folder = write_run(tmp_path / "a<b>&'\"", name=HOSTILE)
    lines = history(folder)
    lines[-1]["sample"] = HOSTILE
    lines[2] |= {"event": "warning", "text": HOSTILE}
    write_history(folder, lines)
    (folder / "summary.json").unlink()
    write_report([folder], folder / "report.html", title=HOSTILE)
    text = (folder / "report.html").read_text()
    assert text.isascii()
    assert "alert(1)</script>" not in text
    assert "<img" not in text
    assert text.count("<script") == 3
    data = page_data(folder / "report.html")
    assert data["title"] == data["samples"][-1]["text"] == data["warnings"][0]["text"] == HOSTILE


def test_the_pages_own_parts_are_ascii():
    for path in ASSETS_DIR.iterdir():
        assert path.read_bytes().isascii(), path.name


def test_ten_thousand_steps(tmp_path):
    folder = write_run(tmp_path / "run", steps=2500, layers=6)
    write_report([folder], folder / "report.html")
    times = []
    for _ in range(3):
        start = time.process_time()  # others may have the machine's cores for a while
        write_report([folder], folder / "report.html")
        times.append(time.process_time() - start)
    assert sorted(times)[1] < 2
    assert (folder / "report.html").stat().st_size < 5_000_000
    rows = page_data(folder / "report.html")["rows"]
    assert len(rows["step"]) < 4000
    for start in (2500, 5000, 7500):
        assert set(range(start - 59, start + 60)) <= set(rows["step"])


def test_a_folder_that_is_none_is_refused_and_nothing_is_written(tmp_path):
    (tmp_path / "empty").mkdir()
    broken = write_run(tmp_path / "broken")
    (broken / "summary.json").write_text("{")
    for folder, words in [
        ("missing", "no such"),
        ("empty", "config.yaml"),
        ("broken", "summary.json"),
    ]:
        with pytest.raises(UserError, match=words):
            write_report([tmp_path / folder], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def command(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "growlm.report", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command(tmp_path):
    write_run(tmp_path / "run[b]")
    done = command(tmp_path, "run[b]")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run[b]" / "report.html").exists()
    assert "dense" in done.stdout
    assert "Wrote run[b]/report.html" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "growlm.reporting.html.report_writer" in loaded
    assert not {"torch", "lightning", "hydra", "plotly"} & loaded


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give the folder"),
        (["nothing"], "argument=nothing: there is no such folder"),
        (["."], "is neither a run folder"),
        (["run", "out=no/such/file.html"], "out=no/such/file.html"),
        (["--verbose"], "--help"),
    ],
)
def test_what_is_wrong_is_said_once(tmp_path, arguments, words):
    write_run(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    done = command(tmp_path, *arguments)
    assert done.returncode == 2
    (message,) = [line for line in done.stderr.splitlines() if not line.startswith("import time")]
    assert words in message
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_the_command_to_reproduce_trains_the_same(tmp_path):
    from tests.training.tiny_run import rows, tiny_run

    first = tmp_path / "a run, 'quoted'"
    short = [f"phases.{name}.steps=1" for name in ("dense", "moe", "wide", "deep")]
    tiny_run(str(first).replace("'", "\\'"), *short, "data.documents=150")
    again = next(c["command"] for c in report(first)["commands"] if c["title"] == "Reproduce")
    arguments = shlex.split(again)[1:]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=one_thread,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (second,) = tmp_path.glob("outputs/2*/*")
    assert [row["loss"] for row in rows(second)] == [row["loss"] for row in rows(first)]
    configs = [
        yaml.safe_load((f / "config.yaml").read_text()) | {"run_dir": None} for f in (first, second)
    ]
    assert configs[0] == configs[1]


def test_statuses_of_a_sweep_are_kept(tmp_path):
    run = read_run(write_run(tmp_path / "run", finished=False))
    run.reported_status = "interrupted"
    assert run.status == "interrupted"
