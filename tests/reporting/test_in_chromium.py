"""report.html as people see it: opened from the file system in Chromium, with the network off."""

import itertools
import json
import re
import statistics

import pytest

from growlm.reporting.html import write_report
from tests.reporting.browser import chromium
from tests.reporting.written_run import write_history, write_run
from tests.training.tiny_run import tiny_run

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
PLOTTED = "return document.getElementById('{}').data[0].x"


@pytest.fixture(scope="module")
def browser():
    with chromium() as page:
        yield page


@pytest.fixture(autouse=True)
def _nothing_to_complain_of(browser):
    yield
    assert browser.problems() == []


@pytest.fixture(scope="module")
def run_page(tmp_path_factory, browser):
    folder = tmp_path_factory.mktemp("tiny") / "run"
    tiny_run(folder, "callbacks.log_every=1", "trainer.validate_every=2")
    write_report([folder], folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def sweep_page(tmp_path_factory, browser):
    sweep = tmp_path_factory.mktemp("tiny") / "a_sweep"
    sweep.mkdir()
    short = [f"phases.{name}.steps=2" for name in ("dense", "moe", "wide", "deep")]
    jobs = []
    for number, (noise, scale) in enumerate(itertools.product(("2e-2", "1e-5"), ("1.5", "2"))):
        dials = {"growth.noise_std": noise, "growth.scale_factor": scale}
        overrides = [f"{key}={value}" for key, value in dials.items()]
        folder = f"{number}_noise_std={noise}_scale_factor={scale}"
        tiny_run(sweep / folder, *short, "callbacks.log_every=1", *overrides)
        job = {"number": number, "overrides": overrides, "dials": dials, "folder": folder}
        jobs.append(job | {"status": "finished", "code": 0, "message": None})
    record = {"name": sweep.name, "command": [], "dials": list(dials), "jobs": jobs}
    (sweep / "sweep.json").write_text(json.dumps(record))
    write_report([sweep], sweep / "report.html")
    return sweep / "report.html"


def test_phases_and_growths_are_labelled_in_the_page(browser, run_page):
    browser.open(run_page)
    labels = ["dense", "moe: 8 experts", "wide: ×1.5 wider", "deep: +1 layer"]
    shown = browser.texts("#loss-plot .annotation-text")
    assert shown[:4] == labels
    assert [text for text in shown[4:] if not text.endswith("active")] == sizes(browser)
    listed = browser.texts(".marks li")
    assert [line.split(",")[0].lstrip("1234") for line in listed] == labels
    for line, size in zip(listed, sizes(browser), strict=True):
        assert f"{size} parameters" in line
    assert "after step 8; " in listed[2]
    assert listed[2].endswith("checks passed")
    cards = [card.strip() for card in browser.texts(".boundary h3")]
    assert cards == ["dense → moe: 8 experts", "moe → wide: ×1.5 wider", "wide → deep: +1 layer"]
    assert len(browser.texts(".boundary:nth-of-type(2) .checks li")) == 5


def sizes(browser):
    return browser.texts("#phase-table tbody td:nth-child(2)")


def test_parameters_step_below_the_loss_on_the_same_axis(browser, run_page):
    browser.open(run_page)
    traces = browser.run(
        """const {data, layout} = document.getElementById('loss-plot');
        return data.map(({name, x, y, yaxis}) => ({name, x, y, yaxis})).concat(layout.xaxis.anchor)"""
    )
    assert traces.pop() == "y2"
    by_name = {trace["name"]: trace for trace in traces}
    total, active = by_name["parameters"], by_name["active per token"]
    assert total["x"] == active["x"] == [0, 4, 4, 8, 8, 12, 12, 16]
    assert total["y"] == sorted(total["y"])
    assert len(set(total["y"])) == 4
    assert all(one <= two for one, two in zip(active["y"], total["y"], strict=True))
    assert active["y"][-1] < total["y"][-1]
    assert by_name["growth"]["x"] == [4, 8, 12]
    bands = browser.run(
        "return document.getElementById('loss-plot').layout.shapes.filter((s) => s.type === 'rect')"
    )
    assert [(band["x0"], band["x1"]) for band in bands] == [(0, 4), (4, 8), (8, 12), (12, 16)]
    areas = "const [one, two] = ['loss-plot', 'measure-plot'].map((id) => document.getElementById(id)); "
    assert browser.run(
        f"{areas} return ['l', 'r'].every((side) => one.layout.margin[side] === two.layout.margin[side])"
        " && String(one.layout.xaxis.range) === String(two.layout.xaxis.range)"
    )


def test_the_hover_box_tells_phase_step_and_losses(browser, run_page):
    browser.open(run_page)
    browser.run("Plotly.Fx.hover('loss-plot', {xval: 8}, ['xy', 'xy2'])")
    browser.wait(
        "return document.querySelectorAll('#loss-plot .hoverlayer .legendtext').length > 3"
    )
    told = " | ".join(browser.texts("#loss-plot .hoverlayer text"))
    for words in ("moe, step 4 of 4", "training : ", "training, smoothed : ", "validation : "):
        assert words in told
    assert "parameters : " in told


def test_where_it_comes_from_is_said_first_and_can_be_copied(browser, run_page):
    browser.open(run_page)
    assert browser.texts("h1")[0].startswith("quickstart: ")
    labels = browser.texts(".provenance dt")
    assert {"started", "seed", "device", "host", "versions", "folder"} <= set(labels)
    assert browser.run(
        "return document.querySelector('.provenance').getBoundingClientRect().top"
        " < document.querySelector('#loss').getBoundingClientRect().top"
    )
    browser.click("#commands .copy")
    copied = "return document.querySelector('#commands .copy').textContent"
    browser.wait(f"{copied} !== 'Copy'")
    assert browser.run(copied) in ("Copied", "Selected")


def test_the_rate_is_that_of_the_schedule_at_every_step(browser, run_page):
    browser.open(run_page)
    lr = browser.run("return document.getElementById('measure-plot').data[0]")
    rows = browser.run("return document.getElementById('measure-plot').data[1]")
    assert lr["x"][0] == 1
    assert lr["x"][-1] == 16
    assert len(rows["x"]) == 16
    assert rows["y"][0] == pytest.approx(0.002 / 20)  # the warm-up of quickstart


def test_the_probe_is_a_ring_with_a_dot_in_it(browser, run_page):
    browser.open(run_page)
    steps, _, before, after = browser.run("return document.getElementById('zoom-0').data")
    assert steps["x"] == list(range(-3, 13))[:8]
    assert before["x"] == after["x"]
    assert before["y"] == pytest.approx(after["y"], abs=1e-5)
    ranges = (
        "return [0, 1, 2].map((i) => String(document.getElementById(`{}-${{i}}`).layout.{}.range))"
    )
    assert len(set(browser.run(ranges.format("zoom", "xaxis")))) == 1
    assert len(set(browser.run(ranges.format("drift", "yaxis")))) == 1


def test_the_switch_changes_the_axis(browser, run_page):
    browser.open(run_page)
    assert browser.run(PLOTTED.format("loss-plot")) == list(range(1, 17))
    for axis, last in (("tokens", 16 * 4 * 32), ("flops", None), ("seconds", None), ("step", 16)):
        browser.click(f"#axis input[value={axis}]")
        values = browser.run(PLOTTED.format("loss-plot"))
        assert values == sorted(values)
        assert last is None or values[-1] == last
        title = browser.run("return document.getElementById('loss-plot').layout.xaxis.title.text")
        assert title.lower() == axis
        assert browser.run("return document.getElementById('measure-plot').data[1].x") == values


def test_the_switch_works_from_the_keyboard(browser, run_page):
    browser.open(run_page)
    radio = browser.chrome.find_element("css selector", "#axis input[value=step]")
    radio.send_keys("\ue014")  # the right arrow
    assert (
        browser.run("return document.getElementById('loss-plot').layout.xaxis.title.text")
        == "tokens"
    )
    assert browser.texts("#axis legend") == ["against"]


def test_ticks_are_round_and_never_crowd(browser, run_page):
    for width in (360, 1280):
        browser.open(run_page, width=width)
        tops = "#loss-plot .ytick text"
        places = browser.run(
            "return [...document.querySelectorAll(arguments[0])].map((t) => t.getBoundingClientRect().y)",
            tops,
        )
        assert len(places) > 2
        gaps = [abs(one - two) for one, two in itertools.pairwise(sorted(places))]
        assert min(gaps) > 18
    before = browser.texts("#loss-plot .ytick text")
    browser.run("Plotly.relayout('loss-plot', {'yaxis.range': [0.70, 0.72]})")
    browser.wait("return document.querySelectorAll('#loss-plot .ytick').length > 2")
    assert browser.texts("#loss-plot .ytick text") != before


def test_the_sweeps_table_sorts(browser, sweep_page):
    browser.open(sweep_page)
    titles = browser.texts("#run-table th")
    column = titles.index("noise_std") + 1
    cells = f"#run-table tbody td:nth-child({column})"
    header = f"#run-table th:nth-child({column})"
    assert browser.texts(cells) == ["2e-2", "2e-2", "1e-5", "1e-5"]
    browser.click(f"{header} button")
    assert browser.texts(cells) == ["1e-5", "1e-5", "2e-2", "2e-2"]
    sort = "return document.querySelector(arguments[0]).getAttribute('aria-sort')"
    assert browser.run(sort, header) == "ascending"
    browser.click(f"{header} button")
    assert browser.texts(cells) == ["2e-2", "2e-2", "1e-5", "1e-5"]
    assert browser.run(sort, header) == "descending"


CURVES = """return document.getElementById('loss-plot').data.filter(({meta}) => !meta.growth)
.map(({line: {color, width}, meta: {runs}, x}) => ({color, width, runs, x}))"""


def own_colours(browser):
    curves = browser.run(CURVES)
    return [next(c["color"] for c in curves if c["runs"] == [run]) for run in range(4)]


def test_dials_are_colours_and_runs_can_be_hidden(browser, sweep_page):
    browser.open(sweep_page)
    by_noise = own_colours(browser)
    assert by_noise[0] == by_noise[1] != by_noise[2] == by_noise[3]
    browser.click("#dial input[value='1']")
    by_scale = own_colours(browser)
    assert by_scale[0] == by_scale[2] != by_scale[1] == by_scale[3]
    browser.click(".legend button")
    assert all(0 not in curve["runs"] for curve in browser.run(CURVES))
    assert len(browser.texts(".legend button")) == 4


def test_what_runs_share_is_drawn_once_and_says_so(browser, sweep_page):
    browser.open(sweep_page)
    shared, *own = browser.run(CURVES)
    assert shared["runs"] == [0, 1, 2, 3]
    assert shared["x"] == [1, 2, 3, 4]
    drawn = [curve["runs"] for curve in own]
    assert all([run] in drawn for run in range(4))
    assert {tuple(runs) for runs in drawn if len(runs) > 1} <= {(0, 2), (1, 3)}  # of one width
    assert all((curve["width"] < shared["width"]) == (len(curve["runs"]) == 1) for curve in own)
    for run in range(4):  # the pieces of each run, one behind the other
        pieces = sorted(c["x"] for c in (shared, *own) if run in c["runs"])
        assert all(one[-1] == two[0] for one, two in itertools.pairwise(pieces))
        assert pieces[-1][-1] == 8
    assert "all 4 runs" in browser.texts("#loss-plot .annotation-text")
    key = " | ".join(browser.texts("#loss .key span"))
    for words in ("color: noise_std", "1e-5", "dashes: scale_factor", "the same curve", "growth"):
        assert words in key
    assert "after step 2 (all 4 runs)" in browser.texts("#loss .marks li")[0]


def test_runs_that_grew_elsewhere_are_told_apart(browser, tmp_path):
    folders = [write_run(tmp_path / f"run{n}", steps=n, growth={"noise_std": n}) for n in (4, 7)]
    write_report(folders, tmp_path / "both.html")
    browser.open(tmp_path / "both.html")
    marks = "return document.getElementById('loss-plot').data.filter(({meta}) => meta.growth).map(({x}) => x[0])"
    assert sorted(browser.run(marks)) == [4, 7, 8, 12, 14, 21]
    first = browser.texts("#loss .marks li")[0]
    assert first.endswith("after step 4 (noise_std 4); after step 7 (noise_std 7)")
    lines = "return document.getElementById('loss-plot').layout.shapes.length"
    assert browser.run(lines) == 0


def test_two_dials_are_a_grid_with_its_numbers(browser, sweep_page):
    browser.open(sweep_page)
    grid = browser.run("return document.getElementById('dial-plot').data[0]")
    assert grid["type"] == "heatmap"
    assert [len(row) for row in grid["z"]] == [2, 2]
    losses = [cell for row in grid["text"] for cell in row]
    assert sorted(losses) == sorted(browser.texts("#final-table tbody td:nth-child(4)"))
    fits = "return ((box) => box.scrollWidth <= box.clientWidth)(document.querySelector('#runs .table-box'))"
    assert browser.run(fits)


def background(browser):
    return browser.run("return getComputedStyle(document.querySelector('section')).backgroundColor")


def test_light_and_dark(browser, run_page):
    browser.open(run_page, scheme="dark")
    tick = "return document.getElementById('loss-plot').layout.hoverlabel.font.color"
    dark = background(browser), browser.run(tick)
    browser.prefer("light")
    browser.wait(f"{tick} !== '{dark[1]}'")
    assert background(browser) != dark[0]


def test_a_table_that_scrolls_says_so_and_can_be_scrolled_from_the_keyboard(browser, run_page):
    cue = "return getComputedStyle(document.querySelector('#phases .scroll-cue')).display"
    browser.open(run_page, width=390)
    browser.wait(f"{cue} === 'block'")
    assert browser.run("return document.querySelector('#phases .table-box').tabIndex") == 0
    browser.open(run_page, width=1440)
    browser.wait(f"{cue} === 'none'")
    unnamed = browser.run(
        """return [...document.querySelectorAll('button, [role=img], [role=region], input, select')]
        .filter((one) => !one.textContent && !one.getAttribute('aria-label') && !one.labels?.length)
        .map((one) => one.outerHTML)"""
    )
    assert unnamed == []


@pytest.mark.parametrize("width", [360, 390, 820, 1280, 1920])
def test_the_page_is_never_wider_than_the_screen(browser, run_page, sweep_page, width):
    for page in (run_page, sweep_page):
        browser.open(page, width=width)
        assert browser.run("return document.documentElement.scrollWidth") <= width
        plots = "return [...document.querySelectorAll('.plot')].map((p) => [p.clientWidth, p.layout.width])"
        assert all(box == drawn for box, drawn in browser.run(plots))


def test_on_paper_everything_is_light_and_there(browser, run_page):
    browser.open(run_page, scheme="dark")
    browser.run(
        """addEventListener('beforeprint', () => {
            window.printed = [...document.querySelectorAll('.plot')].map((plot) => ({
                inside: plot.layout.width <= 690 && Boolean(plot.querySelector('.main-svg')),
                text: plot.layout.hoverlabel.font.color,
            }));
        })"""
    )
    assert 1 < len(re.findall(rb"/Type\s*/Page\b", browser.pdf())) <= 4
    printed = browser.run("return window.printed")
    assert len(printed) == 13
    assert all(plot == {"inside": True, "text": "#1c2330"} for plot in printed)
    assert not browser.run("return document.body.classList.contains('printing')")


def test_hostile_texts_stay_texts(browser, tmp_path):
    folder = write_run(tmp_path / "run <b>x<b>", name=HOSTILE, growth={"noise_std": HOSTILE})
    (folder / "summary.json").unlink()
    path = folder / "checkpoints" / "training_history.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1]["sample"] = HOSTILE
    lines[2] |= {"event": "warning", "text": HOSTILE}
    write_history(folder, lines)
    boundaries = json.loads((folder / "boundaries.json").read_text())
    boundaries[0] |= {"to": HOSTILE, "growth": [HOSTILE]}
    (folder / "boundaries.json").write_text(json.dumps(boundaries))
    other = write_run(tmp_path / "other", growth={"noise_std": "<i>1</i>"})
    write_report([folder], tmp_path / "run.html", title=HOSTILE)
    write_report([folder, other], tmp_path / "both.html", title=HOSTILE)
    for name in ("run.html", "both.html"):
        browser.open(tmp_path / name)
        assert browser.texts("h1") == [HOSTILE]
        assert browser.chrome.title == HOSTILE
        assert browser.texts("main img, main script, main i, main section b b") == []
    browser.click("#dial input[value='1']")
    assert "<i>1</i>" in browser.texts("#dial-plot .xtick text")


def test_a_growth_that_failed_is_red_and_named(browser, tmp_path):
    folder = write_run(tmp_path / "run", finished=False)
    path = folder / "checkpoints" / "training_history.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    write_history(folder, [line for line in lines if line["phase"] in ("dense", "moe")])
    boundaries = json.loads((folder / "boundaries.json").read_text())[:2]
    boundaries[1] |= {"passed": False, "loss_after": 2.5, "jump": 0.5}
    (folder / "boundaries.json").write_text(json.dumps(boundaries))
    write_report([folder], folder / "report.html")
    browser.open(folder / "report.html")
    assert browser.texts("h1") == [
        "quickstart: 1 M → 2 M parameters in 1 growth, validation loss 2.3189, "
        "the growth moe → wide failed after step 80"
    ]
    assert browser.texts("#loss-plot .annotation-text")[2] == "wide: ×1.5 wider failed"
    last = browser.texts(".marks li")[-1]
    for words in ("after step 80", "would have 3 M parameters", "jump\u00a0+0.5", "checks failed"):
        assert words in last
    marks = browser.run(
        "return document.getElementById('loss-plot').data.map(({name, x}) => [name, x])"
    )
    assert dict(marks)["failed growth"] == [80]


def test_unfinished_runs_open(browser, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "config.yaml").write_text("name: quickstart\n")
    stopped = write_run(tmp_path / "stopped", finished=False)
    write_report([begun], tmp_path / "begun.html")
    write_report([begun, stopped], tmp_path / "both.html")
    for name in ("begun.html", "both.html"):
        browser.open(tmp_path / name)
        assert "unfinished" in " ".join(browser.texts(".status"))


def test_router_loads_have_the_same_colors_everywhere(browser, run_page):
    browser.open(run_page)
    maps = browser.run(
        """return ['router-most-plot', 'router-layer-plot'].flatMap((id) => document.getElementById(id).data)
        .map(({zmin, zmax, showscale, colorscale, colorbar: {title, ticktext}}) =>
            ({zmin, zmax, showscale, colors: String(colorscale), title: title.text, ticks: ticktext}))"""
    )
    assert len(maps) == 6
    assert [one.pop("showscale") for one in maps] == [True, False, False] * 2
    assert all(one == maps[0] for one in maps)
    assert maps[0]["title"] == "load / even share"
    assert maps[0]["ticks"] == ["none", "≤ ¼", "½", "1", "2", "≥ 4"]
    titles = "return document.getElementById('router-layer-plot').layout.{}.title.text"
    assert [browser.run(titles.format(axis)) for axis in ("xaxis", "yaxis")] == ["step", "expert"]
    heights = "return document.getElementById('router-layer-plot').data[0].z.flat()"
    assert all(-2 <= value <= 2 or value == maps[0]["zmin"] for value in browser.run(heights))


def test_where_tokens_went_is_drawn_and_told_for_each_growth(browser, run_page):
    browser.open(run_page)
    read = "return [...document.querySelectorAll('#movement .plot')].map((p) => p.data[0]?.z)"
    upcycled, widened, deepened = browser.run(read)
    assert len(upcycled) == 1
    assert sum(upcycled[0]) == pytest.approx(1, abs=1e-3)
    for matrix in (widened, deepened):
        for old, row in enumerate(matrix):
            # The probe of the tiny run is small: an expert may have no tokens.
            assert row in ([None] * 8, [float(old == new) for new in range(8)])
        assert sum(None not in row for row in matrix) > 4
    rows = browser.texts("#movement-table tbody tr")
    assert len(rows) == 2 + 2 + 3
    assert sum("100 %" in row for row in rows) == 4
    assert sum("inserted" in row for row in rows) == 1
    inserted = next(i for i, row in enumerate(rows[4:]) if "inserted" in row)
    browser.run(
        """const choice = document.getElementById('movement-layer'); choice.value = arguments[0];
        choice.dispatchEvent(new Event('change'))""",
        str(inserted),
    )
    assert [len(z) for z in browser.run(read) if z][-1] == 1
    assert f"layer {inserted} was inserted" in browser.texts("#movement small")[-1]


def test_older_runs_have_no_matrices(browser, tmp_path):
    folder = write_run(tmp_path / "run")
    write_report([folder], folder / "report.html")
    browser.open(folder / "report.html")
    assert browser.texts("#movement") == []
    assert len(browser.texts("#router")) == 1


def test_ten_thousand_steps_are_drawn_in_two_seconds(browser, tmp_path):
    folder = write_run(tmp_path / "run", steps=2500, layers=6)
    write_report([folder], folder / "report.html")
    rounds = []
    # Other processes may have the machine's cores for a while.
    while len(rounds) < 4 and min(map(statistics.median, rounds), default=2000) >= 2000:
        rounds.append([time_to_plots(browser, folder / "report.html") for _ in range(3)])
    assert min(map(statistics.median, rounds)) < 2000, rounds


def time_to_plots(browser, path):
    """Milliseconds from opening until all plots on the first screen are drawn."""
    browser.open(path)
    return browser.run("return performance.getEntriesByName('first-plots')[0].startTime")
