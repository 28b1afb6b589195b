"""Text as it comes: together the text of all tokens, and never half a character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growlm.data import load_tokenizer
from growlm.inference.outputs import replace_control_characters
from growlm.inference.text_stream import StreamingDetokenizer, decode_continuation, encode_prompt

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
TOKENIZERS = {name: load_tokenizer(name) for name in ("bytes", "embedded")}

names = st.sampled_from(list(TOKENIZERS))


def pieces(tokenizer, prompt, tokens):
    stream = StreamingDetokenizer(tokenizer, prompt)
    return [stream.push(token) for token in tokens] + [stream.finish()]


@given(name=names, prompt=st.text(max_size=30), text=st.text(max_size=40))
def test_pieces_of_a_text_are_whole_characters(name, prompt, text):
    tokenizer = TOKENIZERS[name]
    prompt_tokens = encode_prompt(tokenizer, prompt)
    found = pieces(tokenizer, prompt_tokens, tokenizer.encode(text))
    assert "".join(found) == text
    assert decode_continuation(tokenizer, prompt_tokens, tokenizer.encode(text)) == text
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in piece for piece in found)


@given(data=st.data(), name=names)
def test_whatever_a_model_writes_the_pieces_are_its_text(data, name):
    tokenizer = TOKENIZERS[name]
    ids = st.integers(0, tokenizer.vocab_size + 2)
    tokens = data.draw(st.lists(ids, max_size=40))
    prompt = tokenizer.encode("Some é")
    assert "".join(pieces(tokenizer, prompt, tokens)) == tokenizer.decode(tokens)


def test_a_character_comes_with_its_last_byte():
    tokenizer = TOKENIZERS["bytes"]
    assert pieces(tokenizer, [97], tokenizer.encode("a€b")) == ["a", "", "", "€", "b", ""]
    assert pieces(tokenizer, [97], [0xE2, 0x82]) == ["", "", REPLACEMENT]
    assert pieces(tokenizer, [97], [0xE2, 65]) == ["", f"{REPLACEMENT}A", ""]


def test_an_empty_prompt_is_the_beginning_of_a_text():
    tokenizer = TOKENIZERS["bytes"]
    assert encode_prompt(tokenizer, "") == [tokenizer.eos_token_id]
    assert encode_prompt(tokenizer, "ab") == [97, 98]


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\rb", "a\x07b", "a\x9bb"])
def test_a_terminal_gets_no_commands(text):
    assert replace_control_characters(text).startswith("a" + REPLACEMENT)
    assert replace_control_characters("né\n\tx – “y” 木") == "né\n\tx – “y” 木"
