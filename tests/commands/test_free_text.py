"""Paths and prompts are taken literally."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from growlm.command import quote_free_text

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), min_size=1).filter(
    lambda text: text == text.strip() and "${" not in text and text not in ("null", "''", '""')
)


def parsed(argument):
    (override,) = OverridesParser.create().parse_overrides([argument])
    return override


@given(TEXT)
def test_any_text_arrives_as_it_is(text):
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return
    for key in ("data.path", "data.sources.my-own.path", "+data.cache"):
        override = parsed(quote_free_text(f"{key}={text}"))
        assert override.value() == text
        assert not override.is_sweep_override()


@pytest.mark.parametrize(
    "argument",
    [
        "growth.noise_std=1,2",
        "data.path=null",
        "data.path='a b'",
        "data.sources.a.weight=1,2",
        "-m",
    ],
)
def test_other_arguments_are_left_alone(argument):
    assert quote_free_text(argument) == argument
