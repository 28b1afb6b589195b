"""Paths and prompts are taken literally."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from growlm.cli.free_text import QUOTED_STRING, quote_free_text
from growlm.config.command_schema import GenerateCommand
from growlm.config.literal import escape_prompt_interpolations
from growlm.config.load import load_command_config, load_config, make_config_node
from growlm.config.schema import RunConfig
from growlm.runtime.errors import UserError

PIECES = st.sampled_from(
    ["'", '"', "\\", "$", "{", "}", "${", "${seed}", "null", "???", ",", "=", " "]
)
CHARACTERS = st.characters(codec="utf-8", exclude_characters="\0")
TEXT = st.lists(PIECES | CHARACTERS, min_size=1).map("".join)
PROMPTS_THAT_WENT_WRONG = (
    "'Twas the night, said 'Tom'",
    '"Hi," she said. "Bye"',
    "a\\'b",
    "a\\\\'b,c",
    "cost ${x} now",
    "\\${x} and \\\\${y}",
    "'quoted'",
    "null",
    "end\\",
    " a\nb ",
)


def parsed(argument):
    (override,) = OverridesParser.create().parse_overrides([argument])
    return override


@given(TEXT)
def test_any_text_arrives_as_it_is(text):
    assume("${" not in text and text != "null" and not QUOTED_STRING.fullmatch(text))
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


def test_a_key_in_a_path_is_looked_up_beside_a_comma():
    override = parsed(quote_free_text("data.path=a, ${name}"))
    assert (override.value(), override.is_sweep_override()) == ("a, ${name}", False)


def with_examples(test):
    for text in PROMPTS_THAT_WENT_WRONG:
        test = example(text)(test)
    return test


@with_examples
@given(TEXT)
@settings(max_examples=30, deadline=None)
def test_any_prompt_arrives_unchanged(text):
    assume(text != "???")
    arguments = [quote_free_text(f"prompt={text}"), "checkpoint=a"]
    assert load_command_config("generate", GenerateCommand, arguments).prompt == text


def test_the_one_prompt_that_cannot_be_given_is_refused():
    with pytest.raises(UserError, match=r"prompt=\?\?\?: must be given"):
        load_command_config(
            "generate", GenerateCommand, [quote_free_text("prompt=???"), "checkpoint=a"]
        )


@pytest.mark.parametrize("text", PROMPTS_THAT_WENT_WRONG)
def test_a_sample_prompt_arrives_unchanged_and_comes_back_from_a_runs_folder(text):
    config = load_config(quote_free_text(f"callbacks.sample_prompt={text}"))
    assert config.callbacks.sample_prompt == text
    written = OmegaConf.to_yaml(OmegaConf.structured(escape_prompt_interpolations(config)))
    read = OmegaConf.merge(make_config_node(RunConfig), OmegaConf.create(written))
    assert OmegaConf.to_object(read).callbacks.sample_prompt == text
