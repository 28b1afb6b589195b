"""The dashboard: one description of its panels for the script, for the page, and for W&B."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reporting.test_metrics import KEYS, LOADS
from tests.reporting.wandb_server import wandb_server

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "wandb_dashboard.py"
PAGE = (ROOT / "docs" / "dashboard.md").read_text()
LOGGED = KEYS | {name.rpartition("/")[0] for name in LOADS} | {"trainer/global_step"}
TABLES = {"growth/boundaries", "samples"}


@pytest.fixture
def run_dir(tmp_path):
    """So much of a run's folder as the script looks at."""
    folder = tmp_path / "run"
    (folder / "wandb" / "offline-run-20260131_120000-abc").mkdir(parents=True)
    (folder / "wandb" / "offline-run-20260131_120000-abc" / "run-abc.wandb").touch()
    (folder / "config.yaml").write_text("phases: {dense: {}, moe: {}}\n")
    return folder


def call(*arguments, **environment):
    nobody = {k: v for k, v in os.environ.items() if k != "WANDB_API_KEY"}
    nobody |= {"HOME": "/nonexistent", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env=nobody | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def panels(spec):
    """(section, settings of W&B's) of all panels."""
    sections = spec["section"]["panelBankConfig"]["sections"]
    return [(s["name"], panel["config"]) for s in sections for panel in s["panels"]]


def test_every_panel_shows_what_is_logged(script):
    for panel in (panel for section in script.SECTIONS.values() for panel in section):
        if isinstance(panel, script.LastTable):
            assert panel.title in TABLES
            continue
        assert panel.x in LOGGED
        if not panel.y.startswith("^"):
            assert panel.y in LOGGED
            continue
        for part in panel.y.removeprefix("^(").removesuffix(")$").split("|"):
            assert any(re.fullmatch(part, key) for key in LOGGED), part


def test_the_page_describes_every_panel(script):
    parts = re.split(r"^The section \*(.+?)\*", PAGE, flags=re.MULTILINE)
    described = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert described.keys() == script.SECTIONS.keys()
    for section, of_section in script.SECTIONS.items():
        text = described[section]
        titles = re.findall(r"^- \*\*(.+?)\*\*", text, flags=re.MULTILINE)
        assert titles == [panel.title for panel in of_section]
        items = dict(
            zip(titles, re.split(r"^- \*\*.+?\*\*", text, flags=re.MULTILINE)[1:], strict=True)
        )
        for panel in of_section:
            if isinstance(panel, script.LastTable):
                assert f'runs.summary["{panel.title}"]' in items[panel.title]
            elif section == "Loss over other axes":
                assert f"X `{panel.x}`" in items[panel.title]
                assert panel.y == script.LOSS_AND_GROWTHS
            else:
                assert f"Y `{panel.y}`" in items[panel.title]
                assert panel.x == "trainer/global_step"


def test_a_dry_run_prints_the_workspace_without_network(script, run_dir):
    done = call("--dry-run", run_dir)
    assert done.returncode == 0, done.stderr
    made = panels(json.loads(done.stdout))
    described = [(name, panel) for name, section in script.SECTIONS.items() for panel in section]
    for (section, config), (name, panel) in zip(made, described, strict=True):
        assert section == name
        if isinstance(panel, script.LastTable):
            assert json.dumps(config).count(f'"val": "{panel.title}"') == 1
            continue
        assert (config["chartTitle"], config["xAxis"]) == (panel.title, panel.x)
        assert panel.y in (config.get("metricRegex"), *config["metrics"])
    by_phase = made[0][1]
    colours = by_phase["overrideColors"]
    assert colours.keys() == {"abc:loss_by_phase/dense", "abc:loss_by_phase/moe"}
    assert len({colour["color"] for colour in colours.values()}) == 2
    assert by_phase["overrideMarks"] == {"abc:growth/on_loss_curve/dense-moe": "points"}


def test_what_is_saved_is_what_was_printed(run_dir):
    printed = json.loads(call("--dry-run", run_dir).stdout)
    with wandb_server() as (environment, received):
        done = call("--project", "mine", run_dir, **environment)
    assert done.returncode == 0, done.stderr
    (view,) = received.views
    assert (view["entityName"], view["projectName"]) == ("someone", "mine")
    assert panels(json.loads(view["spec"])) == panels(printed)
    assert "/someone/mine?nw=" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param([], "wandb login", marks=pytest.mark.slow),
        (["nowhere"], "nowhere is not the folder of a run"),
    ],
)
def test_what_is_wrong_with_the_dashboard_is_said_once(arguments, said):
    done = call(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
