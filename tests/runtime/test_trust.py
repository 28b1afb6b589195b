"""Classes that a file names are imported from trusted packages only."""

import pytest

from growlm.runtime.errors import UserError
from growlm.runtime.trust import check_trusted, class_path_of, import_trusted

PACKAGE = """
import os
from pathlib import Path
from json import JSONDecoder as Decoder

class Model: ...
class Outer:
    class Inner: ...
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "package_to_trust.py").write_text(PACKAGE)
    (tmp_path / "package_to_trust_not.py").write_text("raise AssertionError('was imported')")
    (tmp_path / "package_that_fails.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    return "package_to_trust"


def test_a_trusted_class_is_imported(package):
    for name in ("Model", "Outer.Inner"):
        found = import_trusted(f"{package}.{name}", [package], "old")
        assert class_path_of(found) == f"{package}.{name}"


@pytest.mark.parametrize("trust", [[], ["package_to"], ["package_to_trust"], ["os", "torch"]])
def test_others_are_not_and_the_message_says_how(package, trust):
    with pytest.raises(UserError) as refused:
        import_trusted("package_to_trust_not.Model", trust, "old.model_class")
    assert (refused.value.key, refused.value.value) == (
        "old.model_class",
        "package_to_trust_not.Model",
    )
    assert refused.value.reason.endswith(
        f"add trust=[{','.join([*trust, 'package_to_trust_not'])}]"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package_to_trust.os.system", "is not a class"),
        ("package_to_trust.Decoder", r"json\.decoder\.JSONDecoder: .* trust=\[.*,json\]"),
        ("package_to_trust.Other", "cannot be imported: .*Other.*PYTHONPATH"),
        ("package_that_fails.Model", "cannot be imported: division by zero"),
    ],
)
def test_a_trusted_package_leads_to_its_own_classes_only(package, name, message):
    with pytest.raises(UserError, match=message):
        import_trusted(name, [package, "package_that_fails"], "old")


@pytest.mark.parametrize("name", ["Model", "", "a..b", "a.b:c", "a.b c", ".a.b", "a.b."])
def test_what_is_no_full_name(name):
    with pytest.raises(UserError, match="must be the full name of a class"):
        check_trusted(name, ["a", ""], "old")
