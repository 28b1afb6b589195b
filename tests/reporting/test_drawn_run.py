"""scripts/draw_run.py: the figure and the animation of the front page show the run's own numbers."""

import re
import xml.etree.ElementTree as ElementTree

import draw_run
import pytest

from growlm.reporting.reading.run_files import read_run
from growlm.runtime.errors import UserError
from growlm.runtime.number_format import format_large_count
from tests.training.tiny_run import tiny_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("drawn") / "run").run_dir


@pytest.mark.parametrize("animated", [False, True])
def test_it_shows_phases_sizes_and_jumps(run_dir, animated):
    run = read_run(run_dir)
    svg = draw_run.draw(run, animated)
    words = [element.text or "" for element in ElementTree.fromstring(svg).iter()]
    for planned in run.plan:
        assert planned["name"] in words
        assert format_large_count(planned["total_parameters"]) in words
    assert len([each for each in words if each.startswith("jump ")]) == len(run.boundaries) == 3
    assert ("prefers-reduced-motion" in svg) == animated
    assert len(svg) < 100_000
    assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")


def test_the_line_goes_through_the_losses(run_dir):
    run = read_run(run_dir)
    line = re.search(r'class="line training" d="M([^"]+)"', draw_run.draw(run, False))[1]
    points = [tuple(map(float, point.split(","))) for point in line.split(" L")]
    losses = [row["loss"] for row in run.history.rows]
    assert len(points) == len(losses)
    lowest = min(range(len(losses)), key=losses.__getitem__)
    assert points[lowest][1] == max(y for _, y in points)  # pixels count from the top


def test_a_run_that_has_not_trained_is_refused(run_dir, tmp_path):
    (tmp_path / "config.yaml").write_text((run_dir / "config.yaml").read_text())
    with pytest.raises(UserError, match="has no training history"):
        draw_run.draw(read_run(tmp_path), False)
