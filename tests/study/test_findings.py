"""What the study's tables say, of runs whose answer is known."""

import math

import pytest
from growth_study.arms import AXES, SEEDS
from growth_study.findings import Findings
from growth_study.plots import draw_all
from growth_study.tables import all_tables, fill_page, make_placeholder

from tests.study.simulated_study import AHEAD, simulate_runs


@pytest.fixture(scope="module")
def findings():
    return Findings(simulate_runs())


def test_savings_are_what_was_built_in(findings):
    axes = findings.axes()
    assert [found.arm for found in axes] == [arm for axis in AXES for arm in axis.grown_arms]
    for found in axes:
        seeds = len(SEEDS) if found.axis.is_headline else 1
        ahead = AHEAD[found.arm.name]
        assert [cost.value for cost in found.flops] == pytest.approx([1 / ahead] * seeds)
        assert [cost.value for cost in found.seconds] == pytest.approx([1.2 / ahead] * seeds)
        assert found.differences["scratch"].mean == pytest.approx(-0.05 * math.log(ahead))
        late = [read.value for read in found.late]
        assert late == pytest.approx([-0.05 * math.log(ahead / 1.2)] * seeds)


def test_changes_are_beside_the_plan_with_the_same_seed(findings):
    for axis in AXES:
        for change in findings.changes(axis):
            behind = AHEAD["grown"] / AHEAD.get(change.arm.name, 1.0)
            assert change.difference.mean == pytest.approx(0.05 * math.log(behind))


def test_a_page_is_filled_where_it_has_room(findings, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        f"before\n\n{make_placeholder('savings')}\n\nbetween {make_placeholder('headline')} after"
    )
    fill_page(page, all_tables(findings))
    once = page.read_text()
    assert "| Width ×2 | 25% | 0.69 ± 0.00 | 0.83 ± 0.00 | -0.0095 ± 0.0000 |" in once
    assert once.startswith("before\n")
    assert once.endswith(" after")
    fill_page(page, all_tables(findings))
    assert page.read_text() == once


def test_every_table_has_as_many_cells_in_each_row(findings):
    for name, table in all_tables(findings).items():
        lines = table.splitlines()
        assert len(lines) > 2, name
        assert len({line.count(" | ") for line in lines}) == 1, name


def test_unfinished_studies_have_tables_and_plots_too(tmp_path):
    records = simulate_runs(AXES[:1])
    for some in ([], records[:3], records):
        assert "headline" in all_tables(Findings(some))
        files = draw_all(Findings(some), tmp_path)
        assert all(file.stat().st_size > 5000 for file in files)
        assert bool(files) == (some is records)
