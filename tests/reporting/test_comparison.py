"""Several runs side by side: dials, sweeps, savings at equal loss."""

import itertools
import json

import pytest

from growlm.report import report
from growlm.reporting.html import read_report, write_report
from growlm.reporting.html.final_losses import build_final_losses, choose_scale, order_values
from growlm.reporting.html.savings import compute_savings
from growlm.reporting.html.sweep_parameters import find_sweep_parameters
from growlm.runtime.errors import UserError
from tests.reporting.written_run import page_data, write_run

SCRATCH = {"kind": "scratch", "equal": "flops", "of": "quickstart"}


def write_sweep(folder, jobs):
    records = [
        {
            "number": number,
            "overrides": [f"growth.noise_std={value}"],
            "dials": {"growth.noise_std": value},
            "folder": f"{number}_noise_std={value}",
            "status": status,
            "code": 0,
            "message": None if status == "finished" else "growth.noise_std=9: <b>too much</b>",
        }
        for number, (value, status) in enumerate(jobs)
    ]
    sweep = {
        "name": "a_sweep",
        "command": ["growth.noise_std=..."],
        "dials": ["growth.noise_std"],
        "jobs": records,
    }
    (folder / "sweep.json").write_text(json.dumps(sweep))
    return [folder / record["folder"] for record in records]


@pytest.mark.parametrize(
    ("texts", "scale"),
    [
        (["1", "2", "3"], "linear"),
        (["1e-5", "1e-4", "1e-3"], "log"),
        (["0", "1e-5", "1e-2"], "linear"),
        (["1.5", "2"], "linear"),
        (["1e-5", "1e-2"], "log"),
        (["adamw", "muon"], "category"),
        (["1", "adamw"], "category"),
    ],
)
def test_values_choose_their_axis(texts, scale):
    assert choose_scale(order_values(texts)) == scale


def test_seeds_are_averaged(tmp_path):
    runs = []
    for seed, noise, last in itertools.product((0, 1), (1, 2), (0.5,)):
        folder = write_run(tmp_path / f"{seed}_{noise}", growth={"noise_std": noise}, seed=seed)
        path = folder / "checkpoints" / "training_history.jsonl"
        line = json.loads(path.read_text().splitlines()[-2])
        line |= {"event": "validation", "val_loss": last + seed + 10 * noise}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        runs.append(folder)
    report = read_report(runs)
    found = build_final_losses(report.runs, {"seed": "seed", "growth.noise_std": "noise_std"})
    assert [dial["name"] for dial in found["dials"]] == ["noise_std"]
    assert found["means"] == [
        {"at": [0], "loss": 11, "count": 2},
        {"at": [1], "loss": 21, "count": 2},
    ]
    assert len(found["points"]) == 4
    (first, _) = found["table"]["rows"]
    assert [cell["text"] for cell in first] == ["1", "2", "11.0000", "10.5000", "11.5000"]


def test_what_all_runs_have_is_said_once(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, growth={"noise_std": name})
    out = tmp_path / "both.html"
    write_report([tmp_path / "a", tmp_path / "b"], out)
    data = page_data(out)
    assert (
        data["sameInAll"]
        == "The same in all runs: time 1 min 20 s, FLOPs 160 GFLOP, tokens 160 k, parameters 4 M."
    )
    titles = [column["title"] for column in data["table"]["columns"]]
    assert "validation loss" in titles
    assert "parameters" not in titles
    assert {len(row) for row in data["table"]["rows"]} == {len(titles)}


def test_dials_are_the_keys_that_differ(tmp_path):
    for number, noise in enumerate((0.01, 0.02)):
        write_run(
            tmp_path / str(number),
            growth={"noise_std": noise, "scale_factor": 2},
            run_dir=f"/somewhere/{number}",
            logger={"name": str(number)},
            phases={"wide": {"grow": [{"widen": {"noise_std": noise}}]}},
        )
    runs = read_report([tmp_path / "0", tmp_path / "1"]).runs
    assert find_sweep_parameters(runs) == ["growth.noise_std"]
    assert [run.sweep_parameters for run in runs] == [
        {"growth.noise_std": "0.01"},
        {"growth.noise_std": "0.02"},
    ]


def test_a_sweep_shows_every_job(tmp_path):
    folders = write_sweep(tmp_path, [("1e-5", "finished"), ("2e-2", "running"), ("9", "wrong")])
    write_run(folders[0])
    write_run(folders[1], finished=False)
    write_report([tmp_path], tmp_path / "report.html")
    data = page_data(tmp_path / "report.html")
    assert [run["status"] for run in data["runs"]] == ["finished", "running", "wrong"]
    assert [value["text"] for value in data["dials"][0]["values"]] == ["1e-5", "2e-2", "9"]
    assert data["messages"][-1]["text"] == "growth.noise_std=9: <b>too much</b>"
    assert "b>" not in (tmp_path / "report.html").read_text().split('id="data">')[1].split("</")[0]
    # As the end of a sweep calls it: the folders of its jobs.
    write_report(folders[:2], tmp_path / "report.html")
    assert len(page_data(tmp_path / "report.html")["runs"]) == 3


def test_a_sweep_at_its_beginning(tmp_path, capsys):
    write_sweep(tmp_path, [("1e-5", "pending"), ("2e-2", "pending")])
    assert report([str(tmp_path)]) == 0
    assert "pending" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "[]", '{"jobs": [3]}', '{"jobs": []}'])
def test_a_broken_sweep_is_refused(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json"):
        read_report([tmp_path])


@pytest.mark.parametrize("folder", ["../outside", "..", ".", "", "/", "a/b"])
def test_a_job_cannot_point_elsewhere(folder, tmp_path):
    write_run(tmp_path / "outside")
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    job = {"number": 0, "overrides": [], "dials": {}, "folder": folder, "status": "finished"}
    record = {"name": "a", "command": [], "dials": [], "jobs": [job]}
    (sweep / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(
        UserError, match=r"sweep\.json: jobs\[0\]\.folder is not a valid job folder name"
    ):
        read_report([sweep])


def test_savings_against_a_baseline(tmp_path):
    write_run(tmp_path / "grown", speed=2.0)
    write_run(tmp_path / "scratch", name="scratch", baseline=SCRATCH)
    found = compute_savings(read_report([tmp_path / "grown", tmp_path / "scratch"]).runs)
    assert not isinstance(found, str)
    assert "training loss" in found.loss_description
    grown, scratch = found.runs
    assert grown.saved_fractions["scratch"]["flops"] == pytest.approx(0.5)
    assert grown.saved_fractions["scratch"]["tokens"] == pytest.approx(0.0)
    assert grown.saved_fractions["scratch"]["seconds"] == pytest.approx(0.5)
    assert scratch.saved_fractions == {}


def test_savings_use_validations_that_are_frequent(tmp_path):
    for name, steps in (("a", [0, 10]), ("b", [0, 20])):
        folder = write_run(tmp_path / name)
        path = folder / "checkpoints" / "training_history.jsonl"
        with path.open("a") as file:
            for index in range(10):
                at = {"global_step": 200 + index, "tokens": steps[1] * index}
                at |= {"flops": steps[1] * index, "time_s": 1.0 * index, "step": index}
                line = {
                    "event": "validation",
                    "phase": "deep",
                    **at,
                    "val_loss": 0.9 - 0.05 * index,
                }
                file.write(json.dumps(line) + "\n")
    found = compute_savings(read_report([tmp_path / "a", tmp_path / "b"]).runs)
    assert not isinstance(found, str)
    assert "validation loss" in found.loss_description
    assert found.target_loss == pytest.approx(0.45)


def test_a_run_that_never_gets_there_says_so(tmp_path):
    write_run(tmp_path / "long", steps=40)
    write_run(tmp_path / "also", steps=40, speed=2.0)
    short = write_run(tmp_path / "stopped", steps=40, finished=False)
    path = short / "checkpoints" / "training_history.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:30]))
    found = compute_savings(
        read_report([tmp_path / name for name in ("long", "also", "stopped")]).runs
    )
    assert not isinstance(found, str)
    assert [one.costs is None for one in found.runs] == [False, False, True]
    out = tmp_path / "comparison.html"
    write_report([tmp_path / name for name in ("long", "also", "stopped")], out)
    cells = page_data(out)["savings"]["table"]["rows"][2]
    assert cells[1]["text"] == "never reached it"


def test_losses_on_other_data_are_not_compared(tmp_path):
    write_run(tmp_path / "a", tokenizer={"name": "bytes"})
    write_run(tmp_path / "b", tokenizer={"name": "gpt2"})
    found = compute_savings(read_report([tmp_path / "a", tmp_path / "b"]).runs)
    assert isinstance(found, str)
    assert "tokenizer.name" in found


def test_links_to_the_runs_own_reports_are_no_scripts(tmp_path):
    for name in ("javascript:alert(1)", "b c"):
        folder = write_run(tmp_path / name)
        write_report([folder], folder / "report.html")
    out = tmp_path / "comparison.html"
    write_report([tmp_path / "javascript:alert(1)", tmp_path / "b c"], out)
    links = [row[0]["link"] for row in page_data(out)["table"]["rows"]]
    assert links == ["./javascript%3Aalert%281%29/report.html", "./b%20c/report.html"]


def test_runs_of_one_name_are_told_apart(tmp_path):
    for name in ("x/run", "y/run"):
        write_run(tmp_path / name)
    names = [run.name for run in read_report([tmp_path / "x/run", tmp_path / "y/run"]).runs]
    assert names == ["x/run", "y/run"]


def test_the_console_tells_of_the_sweep(tmp_path, capsys):
    folders = write_sweep(tmp_path, [("1e-5", "finished"), ("2e-2", "finished")])
    for folder in folders:
        write_run(folder)
    assert report([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "noise_std" in out
    assert "saved" not in out  # its jobs are no baselines of each other
    assert (tmp_path / "report.html").is_file()


def test_the_console_tells_what_was_saved(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "grown", speed=2.0)
    write_run(tmp_path / "scratch", name="scratch", baseline=SCRATCH)
    assert report(["grown", "scratch"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "+50 %" in line]
    assert line.split() == ["grown", "scratch", *["+50", "%", "+0", "%", "+50", "%"]]
    assert (tmp_path / "comparison.html").is_file()


def test_what_follows_from_the_kind_of_baseline_is_no_dial(tmp_path):
    write_run(tmp_path / "grown", baseline={"kind": "none", "of": None}, model={"d_model": 8})
    other = {"baseline": {"kind": "none", "of": None}, "model": {"d_model": 8}, "seed": 1}
    write_run(tmp_path / "again", **other)
    write_run(tmp_path / "scratch", name="scratch", baseline=SCRATCH, model={"d_model": 16})
    report = read_report([tmp_path / name for name in ("grown", "again", "scratch")])
    assert report.parameter_keys == ["baseline.kind", "seed"]


def test_all_keys_that_differ_are_told(tmp_path):
    write_run(tmp_path / "a", optimizer={"name": "adamw"}, schedule={"name": "wsd"})
    write_run(tmp_path / "b", optimizer={"name": "sgd"}, schedule={"name": "cosine"})
    assert read_report([tmp_path / "a", tmp_path / "b"]).parameter_keys == [
        "optimizer.name",
        "schedule.name",
    ]
