"""The build of the documentation site fails where a page leads nowhere or loads anything from elsewhere."""

import build_docs
import pytest


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setattr(build_docs, "ROOT", tmp_path)
    monkeypatch.setattr(build_docs, "SITE", tmp_path / "site")
    (tmp_path / "site" / "images").mkdir(parents=True)
    (tmp_path / "site" / "images" / "there.svg").touch()
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "own.py").touch()
    return tmp_path / "site" / "page.html"


@pytest.mark.parametrize(
    "html",
    [
        '<a href="nowhere.html">x</a>',
        '<a href="../examples/nowhere.py">x</a>',
        '<a href="../../outside">x</a>',
        '<img src="images/nowhere.svg">',
        '<source srcset="images/nowhere.svg">',
        '<img alt="x" src="https://example.org/a.png">',
        '<script src="//example.org/a.js"></script>',
        '<source srcset="https://example.org/a.png">',
        '<link rel="stylesheet" href="https://example.org/a.css">',
    ],
)
def test_what_leads_nowhere_or_elsewhere_is_named(page, html):
    page.write_text(html)
    (problem,) = build_docs.find_problems()
    assert problem.startswith("page.html: ")


@pytest.mark.parametrize(
    "html",
    [
        '<a href="page.html#heading">x</a>',
        '<img src="images/there.svg">',
        '<a href="https://example.org">x</a>',
        '<a href="#heading">x</a>',
    ],
)
def test_what_leads_somewhere_stays(page, html):
    page.write_text(html)
    assert not build_docs.find_problems()
    assert page.read_text() == html


def test_a_file_of_the_repository_is_copied(page):
    page.write_text('<a class="x" href="../examples/own.py#L1">x</a>')
    assert not build_docs.find_problems()
    assert page.read_text() == '<a class="x" href="repository/examples/own.py#L1">x</a>'
    assert (page.parent / "repository" / "examples" / "own.py").exists()
