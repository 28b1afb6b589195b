"""An audit of the report with axe-core, which is not part of the project: `npm pack axe-core`, then

GROWLM_AXE=package/axe.min.js python -m pytest -m slow tests/reporting/test_accessibility.py
"""

import json
import os
from pathlib import Path

import pytest

from growlm.reporting.html import write_report
from tests.reporting.browser import chromium
from tests.reporting.written_run import write_run

AUDIT = """
const done = arguments[arguments.length - 1];
const describe = ({id, impact, help, nodes}) => ({id, impact, help, nodes: nodes.map(({html}) => html)});
axe.run(document, {resultTypes: ['violations']}).then(({violations}) => done(violations.map(describe)));
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_audit_finds_nothing_serious(tmp_path, width, scheme):
    axe = os.environ.get("GROWLM_AXE")
    if not axe:
        pytest.skip("needs axe-core: npm pack axe-core, then GROWLM_AXE=package/axe.min.js")
    one, other = (write_run(tmp_path / name, layers=3, seed=seed) for seed, name in enumerate("ab"))
    failed = write_run(tmp_path / "failed", finished=False)
    boundaries = json.loads((failed / "boundaries.json").read_text())
    boundaries[-1]["passed"] = False
    (failed / "boundaries.json").write_text(json.dumps(boundaries))
    layer = {"layer": 0, "old_layer": 0, "choices": 6, "stayed": 5}
    layer |= {"moves": [[0, 0, 3], [1, 0, 1], [1, 1, 2]]}
    boundaries[-1] |= {"expert_movement": {"experts": [2, 2], "layers": [layer]}, "passed": True}
    (one / "boundaries.json").write_text(json.dumps(boundaries))
    grid = [
        write_run(tmp_path / f"{a}{b}", growth={"noise_std": a, "scale_factor": b})
        for a, b in ((1, 2), (1, 3), (2, 2))
    ]
    reports = {"run": [one], "failed": [failed], "both": [one, other], "grid": grid}
    with chromium() as browser:
        for name, folders in reports.items():
            page = tmp_path / f"{name}.html"
            write_report(folders, page)
            browser.open(page, width=width, scheme=scheme)
            browser.run(
                "document.querySelectorAll('details').forEach((one) => { one.open = true; })"
            )
            browser.run(Path(axe).read_text())
            found = browser.chrome.execute_async_script(AUDIT)
            serious = [each for each in found if each["impact"] in ("serious", "critical")]
            assert serious == [], f"{name}: {json.dumps(serious, indent=1)}"
