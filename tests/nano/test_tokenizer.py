"""The nano tokenizer: lossless on any text, one token a word of the language, loaded like any other."""

import json
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from metatuner.hashing import hash_file
from metatuner.nano import World
from metatuner.nano.constants import frozen
from metatuner.nano.corpus import actor_rows, generator_rows
from metatuner.nano.instructions import FAMILIES, instruction, with_gloss
from metatuner.nano.problems import BENCHMARKS, SHIFTED, problem
from metatuner.nano.tokenizer import (
    ANSWER,
    LINE_STARTS,
    REWRITE,
    SPECIAL,
    VOCABULARY_FILE,
    alike,
    build_vocabulary,
    byte_letters,
    transformers_tokenizer,
    vocabulary,
)

BYTES = range(len(SPECIAL), len(SPECIAL) + 256)
WITHOUT_SPACE = {*"0123456789ABCD:)}", "Ċ"}
"""What the language writes without a space before it, beside LINE_STARTS: a byte token each."""
TOKENIZER = transformers_tokenizer(ANSWER, 2048)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    transformers_tokenizer(ANSWER, 2048).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def there_and_back(tokenizer, text):
    return tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids, clean_up_tokenization_spaces=False)


@given(st.text().filter(lambda text: not any(token in text for token in SPECIAL)))
def test_any_text_comes_back_as_it_was(text):
    assert there_and_back(TOKENIZER, text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  two  spaces ",
        "line\n\nline\r\n\ttab",
        "naïve 日本語 👩‍👩‍👧",
        "e\u0301",
        "\x00",
        r"\boxed{\frac{1}{2}}",
    ],
)
def test_awkward_texts_come_back_as_they_were(tokenizer, text):
    assert there_and_back(tokenizer, text) == text


def test_a_saved_tokenizer_is_the_one_that_was_built(tokenizer):
    random = Random(0)
    for name in BENCHMARKS:
        for _ in range(20):
            query = problem(random, name, SHIFTED).query
            assert tokenizer(query).input_ids == TOKENIZER(query).input_ids


def test_every_word_and_digit_of_the_language_is_one_token():
    random = Random(0)
    for number in range(400):
        for name in BENCHMARKS:
            item = problem(random, name, SHIFTED)
            told = with_gloss(instruction(random, FAMILIES[number % 5], name), item.glosses)
            for text in (told, item.query, item.rationale, item.early_stop, item.final):
                tokens = TOKENIZER.convert_ids_to_tokens(TOKENIZER(text).input_ids)
                as_bytes = {token for token in tokens if vocabulary()[token] in BYTES}
                assert as_bytes <= WITHOUT_SPACE, f"{as_bytes - WITHOUT_SPACE} in {text!r}"


def test_pretraining_texts_are_of_words_too():
    for make in (actor_rows, generator_rows):
        for row in make(World(), Random(1), 500):
            for text, _ in row:
                tokens = TOKENIZER.convert_ids_to_tokens(TOKENIZER(text).input_ids)
                assert {token for token in tokens if vocabulary()[token] in BYTES} <= WITHOUT_SPACE


def test_numbers_are_read_digit_by_digit():
    assert TOKENIZER.convert_ids_to_tokens(TOKENIZER("365 apples").input_ids) == ["Ġ3", "6", "5", "Ġapples"]


def test_all_256_bytes_are_known():
    assert sorted(byte_letters()) == list(range(256))
    assert len(set(byte_letters().values())) == 256
    assert {vocabulary()[letter] for letter in byte_letters().values()} == set(BYTES)


def test_the_vocabulary_file_is_the_frozen_one_and_the_language_still_makes_it():
    assert hash_file(VOCABULARY_FILE) == frozen()["vocabulary"]
    assert json.loads(VOCABULARY_FILE.read_text(encoding="utf-8")) == build_vocabulary()
    assert len(set(vocabulary())) == len(vocabulary()) == len(TOKENIZER)


def test_digits_letters_and_line_starts_have_a_twin_with_a_space():
    assert len(list(alike(vocabulary()))) == 10 + 4 + len(LINE_STARTS)


def test_the_template_renders_turns_as_pretraining_writes_them(tokenizer):
    turns = [
        {"role": "system", "content": "p"},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y"},
        {"role": "user", "content": "x2"},
    ]
    render = tokenizer.apply_chat_template
    assert render(turns, tokenize=False, add_generation_prompt=True) == "<s>p<q>x<a>y</s><q>x2<a>"
    rewriter = transformers_tokenizer(REWRITE, 2048).apply_chat_template
    assert rewriter(turns[:2], tokenize=False, add_generation_prompt=True) == "<s>p<q>x<rewrite>"
