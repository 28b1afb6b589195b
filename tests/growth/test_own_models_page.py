"""docs/own_models.md: its first example runs, and its tables name what there is."""

import re
from pathlib import Path

from growlm import model as model_package
from growlm.model import ModelConfig
from growlm.model.axes import Label

PAGE = (Path(__file__).parents[2] / "docs" / "own_models.md").read_text()


def test_the_example_runs(capsys):
    example = re.search(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[1]
    exec(compile(example, "own_models.md", "exec"), {})
    width, layers, difference = capsys.readouterr().out.split()
    assert (width, layers) == ("48", "4")
    assert float(difference) < 1e-5


def test_every_axis_and_field_is_listed():
    for axis in ModelConfig().axis_sizes():
        assert f"`{axis}`" in PAGE
    for field in Label.__dataclass_fields__:
        assert field == "dims" or f"| `{field}` |" in PAGE
    for name in model_package.__all__:
        if name.startswith("label") or name in ("gain", "index", "reads", "shift", "writes"):
            assert f"{name}(" in PAGE
