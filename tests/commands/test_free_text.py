"""Text settings are taken literally, and `choice(...)` sweeps over them."""

import dataclasses
from typing import get_type_hints

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from growlm.cli.free_text import get_text_key_pattern, quote_free_text, quote_free_texts
from growlm.config.command_schema import EvaluateCommand, GenerateCommand
from growlm.config.literal import escape_prompt_interpolations, quote_for_hydra
from growlm.config.load import load_command_config, load_config, make_config_node
from growlm.config.schema import LoggerConfig, RunConfig
from growlm.reporting.reading.override_text import (
    QUOTED_STRING,
    format_as_typed,
    normalize_override,
)
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
    for key in ("data.path", "data.sources.my-own.path", "+data.cache", "data.column"):
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
    arguments = [quote_free_text(f"prompt={text}", GenerateCommand), "checkpoint=a"]
    assert load_command_config("generate", GenerateCommand, arguments).prompt == text


def test_the_one_prompt_that_cannot_be_given_is_refused():
    with pytest.raises(UserError, match=r"prompt=\?\?\?: must be given"):
        load_command_config(
            "generate",
            GenerateCommand,
            [quote_free_text("prompt=???", GenerateCommand), "checkpoint=a"],
        )


@pytest.mark.parametrize("text", PROMPTS_THAT_WENT_WRONG)
def test_a_sample_prompt_arrives_unchanged_and_comes_back_from_a_runs_folder(text):
    config = load_config(quote_free_text(f"callbacks.sample_prompt={text}"))
    assert config.callbacks.sample_prompt == text
    written = OmegaConf.to_yaml(OmegaConf.structured(escape_prompt_interpolations(config)))
    read = OmegaConf.merge(make_config_node(RunConfig), OmegaConf.create(written))
    assert OmegaConf.to_object(read).callbacks.sample_prompt == text


TEXTS = (
    "train[:10%]",
    "Text (EN)",
    "日本",
    "x=y",
    "it's",
    "text,clean",
    "p (v2)",
    "[a]",
    "{a: b}",
    "choice(a, b)",
    "007",
    "1e5",
    " a ",
)


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_of_a_run_is_free(text):
    keys = [
        *("data.column", "data.split", "data.config", "data.revision", "data.sources.web.column"),
        *("logger.project", "logger.entity", "logger.group", "reuse.folder", "trainer.max_time"),
        *("phases.dense.save_as", "phases.dense.save_initial_as", "optimizer._target_", "name"),
    ]
    for argument, key in zip(
        quote_free_texts([f"{key}={text}" for key in keys]), keys, strict=True
    ):
        assert parsed(argument).value() == text, key


def test_the_commands_from_the_issue_are_composed():
    given = ["data=huggingface", "data.name=a/b", "data.split=train[:10%]", "data.column=Text (EN)"]
    config = load_config(*quote_free_texts([*given, "logger.project=p (v2)"]))
    assert (config.data.split, config.data.column) == ("train[:10%]", "Text (EN)")
    assert config.logger.project == "p (v2)"


def test_the_keys_are_those_of_the_types():
    """Every string that is not one of a list of names, and no other setting."""
    pattern = get_text_key_pattern(RunConfig)
    hints = get_type_hints(LoggerConfig)
    for field in dataclasses.fields(LoggerConfig):
        is_text = hints[field.name] in (str, str | None) and "limits" not in field.metadata
        assert bool(pattern.fullmatch(f"logger.{field.name}")) == is_text, field.name
    assert not pattern.fullmatch("checkpoint")  # a path of other commands
    assert get_text_key_pattern(EvaluateCommand).fullmatch("checkpoint")


@given(st.lists(TEXT, min_size=2, max_size=4), st.sampled_from(["data.path", "logger.project"]))
@settings(max_examples=25, deadline=None)
def test_any_texts_are_swept_over(texts, key):
    assume(not any("${" in text for text in texts))
    quoted = ",".join(quote_free_text(f"{key}={text}").partition("=")[2] for text in texts)
    assume(all(text != "null" and not QUOTED_STRING.fullmatch(text) for text in texts))
    (argument,) = quote_free_texts([f"{key}=choice({quoted})"], is_sweep=True)
    (jobs,) = BasicSweeper.split_arguments([parsed(argument)], None)
    assert [parsed(override).value() for (override,) in jobs] == texts


def test_items_of_a_choice_need_no_quotes():
    line = """data.split=choice(train[:10%], it's, 日本, Text (EN), 'a, b', "c", null, x=y)"""
    (argument,) = quote_free_texts([line], is_sweep=True)
    (jobs,) = BasicSweeper.split_arguments([parsed(argument)], None)
    found = [parsed(override).value() for (override,) in jobs]
    assert found == ["train[:10%]", "it's", "日本", "Text (EN)", "a, b", "c", None, "x=y"]
    assert parsed(quote_free_text(line)).value() == line.partition("=")[2]  # without -m


@pytest.mark.parametrize("items", ["", "a,", ",a", "a,,b", " "])
def test_a_choice_without_a_value_is_refused(items):
    with pytest.raises(UserError, match=r"^data\.path=choice\(.*needs a value before and after"):
        quote_free_texts([f"data.path=choice({items})"], is_sweep=True)


def test_commas_that_growlm_01_swept_over_still_do_with_a_warning(capsys):
    arguments = ["data.column=a,b", "data.path=a,b"]
    column, path = map(parsed, quote_free_texts(arguments, is_sweep=True))
    assert list(column.sweep_string_iterator()) == ["a", "b"]
    assert path.value() == "a,b"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: data.column=a,b ")
    assert line.endswith("data.column=choice(a,b)")


def test_arguments_of_own_classes_keep_their_types():
    given = ["data.split=[80,20]", "data.revision=3", "data.column=it's", "logger.group=[1]"]
    for chosen in ("data._target_=my.Data", "data=own", "--config-dir=mine", "resume=run"):
        values = [parsed(each).value() for each in quote_free_texts([chosen, *given])[1:4]]
        assert values == [[80, 20], 3, "it's"]
    assert parsed(quote_free_texts(["data=own", *given])[4]).value() == "[1]"
    (_, token) = quote_free_texts(["--config-dir=mine", "tokenizer.eos_token=[EOS]"])
    assert parsed(token).value() == "[EOS]"


@with_examples
@given(TEXT)
@settings(max_examples=25, deadline=None)
def test_what_is_printed_can_be_typed_again(text):
    for key in ("callbacks.sample_prompt", "data.path"):
        for argument in (f"{key}={text}", f"{key}=choice(a, {quote_for_hydra(text)})"):
            given = quote_free_texts([argument], is_sweep=True)
            typed = [format_as_typed(each) for each in given]
            assert quote_free_texts(typed, is_sweep=True) == given, typed


@given(TEXT)
@settings(max_examples=25)
def test_quotes_around_a_whole_value_make_no_other_override(text):
    assume("${" not in text and text != "null" and not QUOTED_STRING.fullmatch(text))
    assert normalize_override(quote_free_text(f"data.path={text}")) == f"data.path={text}"
