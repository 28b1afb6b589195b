"""The gallery's histories render, and say what was grown; the drawn dashboard has every panel."""

import json
import re
import sys

import pytest
import render_gallery

from growlm.reporting.reading.run_files import read_run
from growlm.runtime.errors import UserError
from growlm.runtime.number_format import format_large_count
from tests.commands.processes import CommandProcess
from tests.training.tiny_run import TINY

RUNS = render_gallery.GALLERY / "runs"


@pytest.mark.parametrize("name", sorted(render_gallery.RUNS))
def test_it_renders_with_sizes_and_growths(name, tmp_path):
    out = tmp_path / f"{name}.html"
    render_gallery.render(name, out)
    page = out.read_text()
    assert render_gallery.RUNS[name].title in page
    for folder in sorted(path.parent for path in (RUNS / name).rglob("config.yaml")):
        run = read_run(folder)
        if name != "sweep":
            assert format_large_count(run.plan[0]["total_parameters"]) in page
            assert all(json.dumps(boundary["summary"])[1:-1] in page for boundary in run.boundaries)
        assert run.boundaries
        assert (run.status == "failed") == (name == "failed_growth")


@pytest.mark.parametrize("name", sorted(render_gallery.RUNS))
def test_what_is_kept_is_small_and_names_no_machine(name):
    files = [path for path in (RUNS / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 600_000
    for path in files:
        assert not re.search(r"/(tmp|home|work|root)/", path.read_text()), path
        if path.name == "provenance.json":
            assert {session["host"] for session in json.loads(path.read_text())} == {"a machine"}


def test_a_run_that_is_not_there():
    with pytest.raises(UserError, match=r"--only=other: must be one of quickstart, four_stage"):
        list(render_gallery.chosen(["other"]))


def test_the_dashboard_has_a_panel_for_every_metric(script, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_dashboard", script)
    import draw_dashboard

    rows = draw_dashboard.read_logged_rows(RUNS / "quickstart")
    for panel in (each for panels in script.SECTIONS.values() for each in panels):
        if not isinstance(panel, script.Lines):
            continue
        if panel.y.startswith("moe/load/"):
            assert any(panel.y in row for row in rows)
        else:
            lines = draw_dashboard.select_lines(rows, panel)
            assert lines, panel
            assert all(len(x) == len(y) for x, y in lines.values())


@pytest.mark.slow
def test_the_wrong_operator_is_found(tmp_path):
    tiny = [each for each in TINY if not each.startswith("growth.extra_layers")]
    overrides = [*tiny, "phases.deep.grow=[{stack_blocks: {}}]", "run_dir=run"]
    program = render_gallery.GALLERY / "wrong_operator.py"
    done = CommandProcess(program, [*overrides, "logger=none"], tmp_path, tmp_path).wait()
    assert done.returncode == 1
    assert "functional identity  FAILED" in done.stdout
    (boundary,) = [each for each in read_run(tmp_path / "run").boundaries if not each["passed"]]
    assert boundary["summary"] == "blocks stacked"
