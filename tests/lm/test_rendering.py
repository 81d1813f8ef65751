"""What a model reads: chat templates, plain text, and the cut to the window."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metatuner.errors import UserError
from metatuner.lm import LM, ModelSpec, completion_ids, render, render_around, render_rewrite
from tests.toys.lm import BEGIN, CHAT, END, WORDS, tiny_lm

DEMOS = [("w10 w11", "w12"), ("w13 w14 w15", "w16")]
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + CHAT
DEAF_TO_SYSTEM = CHAT.replace("{{ turn.content }}{% elif", "{% elif", 1)
word = st.integers(0, 56).map("w{}".format)
texts = st.lists(word, min_size=1, max_size=30).map(" ".join)


@pytest.fixture(scope="module")
def chat() -> LM:
    return tiny_lm()


@pytest.fixture(scope="module")
def base() -> LM:
    return tiny_lm(chat=None)


def words(lm: LM, ids: list[int]) -> str:
    return " ".join(WORDS[token] for token in ids)


def test_a_chat_model_reads_system_demonstrations_and_query_as_turns(chat: LM) -> None:
    rendered = render(chat, "w1 w2", "w3 w4", DEMOS)
    assert words(chat, rendered.ids) == (
        "<s> w1 w2 <q> w10 w11 <a> w12 </s> <q> w13 w14 w15 <a> w16 </s> <q> w3 w4 <a>"
    )
    assert (rendered.cut_tokens, rendered.cut_demos) == (0, 0)


def test_chat_ids_are_those_of_the_tokenizers_own_template(chat: LM) -> None:
    turns = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2 w3"}]
    reference = chat.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert render(chat, "w1", "w2 w3").ids == reference


@pytest.mark.parametrize("template", [NO_SYSTEM, DEAF_TO_SYSTEM])
def test_without_a_system_turn_the_prompt_opens_the_first_user_turn(template: str) -> None:
    lm = tiny_lm(chat=template)
    assert words(lm, render(lm, "w1", "w3", DEMOS[:1]).ids) == ("<s> <q> w1 \n \n w10 w11 <a> w12 </s> <q> w3 <a>")
    assert words(lm, render(lm, "", "w3").ids) == "<s> <q> w3 <a>"


def test_a_base_model_reads_plain_text(base: LM) -> None:
    text = "w1\n\nw10 w11\nw12\n\nw13 w14 w15\nw16\n\nw3 w4\n"
    assert render(base, "w1", "w3 w4", DEMOS).ids == base.encode(text)
    assert render(base, "", "w3").ids == base.encode("w3\n")


def test_a_base_model_whose_tokenizer_begins_a_text_reads_that_begin_once() -> None:
    lm = tiny_lm(chat=None, begins=True)
    assert render(lm, "w1", "w3 w4", DEMOS[:1]).ids == [BEGIN, *lm.encode("w1\n\nw10 w11\nw12\n\nw3 w4\n")]
    long = " ".join(f"w{i % 57}" for i in range(300))
    cut = render(lm, "w1", long, reserve=20)
    assert len(cut.ids) == lm.window - 20
    assert cut.ids == [BEGIN, *lm.encode(f"w1\n\n{' '.join(long.split()[cut.cut_tokens :])}\n")]
    # A chat template writes its own.
    assert render(tiny_lm(begins=True), "w1", "w3").ids == render(tiny_lm(), "w1", "w3").ids


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("template", [CHAT, None, NO_SYSTEM])
def test_a_prompt_that_is_no_text_has_the_surroundings_of_one_that_is(template: str | None, begins: bool) -> None:
    lm, prompt = tiny_lm(chat=template, begins=begins), "w1 w2 w5"
    for length, reserve in ((4, 0), (4, 60), (300, 0), (300, 31)):
        query = " ".join(f"w{i % 57}" for i in range(length))
        before, after = render_around(lm, query, reserve=reserve + 3)
        assert [*before, *lm.encode(prompt), *after] == render(lm, prompt, query, reserve=reserve).ids


def test_chat_can_be_switched_off_where_a_template_exists() -> None:
    lm = tiny_lm(spec=ModelSpec("tiny", chat=False))
    assert render(lm, "w1", "w3").ids == lm.encode("w1\n\nw3\n")


def test_a_completion_ends_with_the_end_of_turn(chat: LM) -> None:
    assert completion_ids(chat, "w5 w6") == [*chat.encode("w5 w6"), END]


def test_demonstrations_go_before_the_query_is_touched(chat: LM) -> None:
    whole = render(chat, "w1", "w3 w4", DEMOS)
    spare = chat.window - len(whole.ids)
    cut = render(chat, "w1", "w3 w4", DEMOS, reserve=spare + 1)
    assert cut.ids == render(chat, "w1", "w3 w4", DEMOS[1:]).ids
    assert (cut.cut_demos, cut.cut_tokens) == (1, 0)


def test_a_query_loses_tokens_from_its_start(chat: LM) -> None:
    query = " ".join(f"w{i % 57}" for i in range(200))
    cut = render(chat, "w1 w2", query, DEMOS, reserve=20)
    assert len(cut.ids) == chat.window - 20
    assert words(chat, cut.ids).startswith("<s> w1 w2 <q> ")
    kept = words(chat, cut.ids).removeprefix("<s> w1 w2 <q> ").removesuffix(" <a>")
    assert query.endswith(kept)
    assert cut.cut_tokens == 200 - len(kept.split())
    assert cut.cut_demos == 2


@given(prompt=texts, query=texts, demos=st.lists(st.tuples(texts, texts), max_size=3), reserve=st.integers(0, 60))
def test_whatever_is_cut_the_input_fits_and_ends_with_the_end_of_the_query(
    chat: LM, prompt: str, query: str, demos: list[tuple[str, str]], reserve: int
) -> None:
    rendered = render(chat, prompt, query, demos, reserve=reserve)
    ids = chat.encode(query)[rendered.cut_tokens :]
    assert len(rendered.ids) + reserve <= chat.window
    assert rendered.ids[-len(ids) - 1 : -1] == ids
    assert rendered.cut_tokens == 0 or rendered.cut_demos == len(demos)
    shorter = rendered.cut_tokens > 0
    assert not shorter or len(rendered.ids) + reserve == chat.window


def test_a_prompt_that_leaves_no_room_is_refused(base: LM) -> None:
    with pytest.raises(UserError, match="a prompt of 203 tokens and 0 kept"):
        render(base, "w1 " * 200, "w2")


def test_a_generator_reads_the_templates_of_its_spec() -> None:
    spec = ModelSpec("tiny", rewrite_system="w50 w51", rewrite_user="w52 {prompt} w53 {query} w54")
    lm = tiny_lm(spec=spec)
    assert words(lm, render_rewrite(lm, "w1", "w3").ids) == "<s> w50 w51 <q> w52 w1 w53 w3 w54 <a>"


def test_by_default_a_generator_reads_what_the_actor_reads(chat: LM) -> None:
    assert render_rewrite(chat, "w1 w2", "w3").ids == render(chat, "w1 w2", "w3").ids


def test_braces_in_a_prompt_or_query_are_text(base: LM) -> None:
    lm = tiny_lm(spec=ModelSpec("tiny", rewrite_system="", rewrite_user="{prompt} {query}"))
    assert render_rewrite(lm, "{query}", "{prompt} {0}").ids == lm.encode("<s><q>{query} {prompt} {0}<a>")


def test_a_long_query_is_cut_inside_the_generators_template() -> None:
    lm = tiny_lm(spec=ModelSpec("tiny", rewrite_user="w52 {query} w54"))
    rendered = render_rewrite(lm, "w1", "w3 " * 300 + "w4", reserve=8)
    assert len(rendered.ids) == lm.window - 8
    assert words(lm, rendered.ids).startswith("<s> w1 <q> w52 w3")
    assert words(lm, rendered.ids).endswith("w3 w4 w54 <a>")


TURNS = "{% for m in messages %}<{{ m.role }}>{{ CONTENT }}</s>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
TEMPLATES = {
    "as it is": TURNS.replace("CONTENT", "m.content"),
    "stripped": TURNS.replace("CONTENT", "m.content | trim"),
    "empty turns named": TURNS.replace("CONTENT", "m.content or 'nothing'"),
    "empty turns refused": "{% for m in messages %}{% if not m.content %}{{ raise_exception('empty') }}{% endif %}"
    "{% endfor %}" + TURNS.replace("CONTENT", "m.content"),
    "thoughts dropped": TURNS.replace("CONTENT", "m.content.split('</think>')[-1]"),
    "the number of turns": "{{ messages | length }} " + TURNS.replace("CONTENT", "m.content"),
}
CONTENTS = [("x", "y", "z"), (" x\n", "", " z "), ("<think>a</think>x", "y</think>", "\ue000\ue0011\ue000\ue001")]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_the_text_of_turns_is_always_that_of_the_template(template: str) -> None:
    lm = tiny_lm(chat=template)
    for contents in CONTENTS * 2:
        for count in (1, 2, 3):
            roles = ("user", "assistant", "user")[:count]
            turns = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]

            def told(make: Callable[[], str]) -> str:
                try:
                    return make()
                except Exception as error:
                    return f"{type(error).__name__}: {error}"

            expected = told(
                lambda turns=turns: lm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            )
            assert told(lambda turns=turns: lm.chat_text(turns)) == expected


def test_a_template_that_is_replaced_is_used() -> None:
    lm = tiny_lm(chat=TEMPLATES["as it is"])
    turns = [{"role": "user", "content": "x"}]
    before = lm.chat_text(turns)
    lm.tokenizer.chat_template = TEMPLATES["the number of turns"]
    assert lm.chat_text(turns) == f"1 {before}"
