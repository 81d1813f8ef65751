"""GSM8K scores: numbers in text, and where and why they differ from lm-evaluation-harness's own gsm8k task."""

import re
from dataclasses import dataclass

import pytest

from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.metrics.numeric import numbers, numbers_equal
from metatuner.harness.rows import Row

GSM8K = get_benchmark("gsm8k")


def row_of(gold: str) -> Row:
    return GSM8K.row({"id": "a", "question": "How many?", "answer": f"It is <<1+1={gold}>>{gold}.\n#### {gold}"})


def ours(completion: str, gold: str) -> float:
    return GSM8K.score(GSM8K.extract(completion, row_of(gold)), row_of(gold))["accuracy"]


@pytest.mark.parametrize(
    ("completion", "extracted"),
    [
        ("2 + 3 = 5\n#### 26", "26"),
        ("#### 1,234,567.50 dollars", "1234567.50"),
        ("#### $18", "18"),
        ("#### -$18", "-18"),
        ("#### $-18", "-18"),
        ("#### \u221218", "-18"),
        (r"#### \$ 1,080", "1080"),
        ("#### 12%", "12"),
        ("#### .5", ".5"),
        ("#### 18.", "18"),
        ("#### 5\nThen I check: 7", "5"),
        ("#### 5 then #### 6", "6"),
        ("####\n7", "7"),
        ("He has 3 - 2 = 1, so 10-3 leaves 7 apples.", "7"),
        ("so the rest is 16-3", "3"),
        ("it fell to -4 degrees", "-4"),
        ("####", None),
        ("I had 5, but ####", None),
        ("no number at all", None),
        ("", None),
    ],
)
def test_the_number_after_the_mark_is_the_answer_else_the_last_number(completion: str, extracted: str | None) -> None:
    assert GSM8K.extract(completion, row_of("7")) == extracted


def test_numbers_are_equal_as_numbers_and_not_as_text() -> None:
    assert numbers_equal("18", "18.00")
    assert numbers_equal("007", "7")
    assert numbers_equal("-0", "0")
    assert not numbers_equal("33.33", "33.333")
    assert not numbers_equal("12345678901234567890", "12345678901234567891")


def test_a_number_of_a_million_digits_is_read_and_compared() -> None:
    huge = "9" * 1_000_000
    assert numbers(f"#### {huge}") == [huge]
    assert not numbers_equal(huge, "9")


def test_the_target_states_the_gold_answer_and_no_calculator_annotation() -> None:
    row = row_of("1,080")
    assert row.gold == ("1080",)
    assert row.target == "It is 1,080.\n#### 1,080"


@dataclass(frozen=True)
class Case:
    """A way to state an answer, and what both scorers make of it for every gold answer."""

    form: str
    """`{gold}` is the right number, `{wrong}` one more, `{commas}` the right one with thousands separators."""
    ours: float
    theirs: float
    why: str = ""
    """Why the scorers differ, if they do."""


CASES = [
    Case("6 * 7 = 42\n#### {gold}", 1, 1),
    Case("6 * 7 = 42\n#### {wrong}", 0, 0),
    Case("#### {commas}", 1, 1),
    Case("#### {gold}.", 1, 1),
    Case("#### {gold} eggs", 1, 1),
    Case("#### {gold}%", 1, 1),
    Case("#### -{gold}", 0, 0),
    Case("#### {gold}5", 0, 0),
    Case("#### {gold}\n\nLet me check: 1 + 1 = 2", 1, 1),
    Case("The answer is {gold}.", 1, 1),
    Case("The answer is {wrong}.", 0, 0),
    Case("The answer is ${commas}.", 1, 1),
    Case("First 3, then 5, in all {gold}", 1, 1),
    Case("In all {gold}, of which 3 are red", 1, 0, "they take the last number, whatever is said beside the total"),
    Case("So she has {gold} eggs on day 7.", 1, 0, "the same, about a day"),
    Case("{gold} eggs fill all of the boxes (6 dozen and 3)", 1, 0, "the same, in parentheses"),
    Case("I do not know", 0, 0),
    Case("It is -{gold} degrees", 0, 0),
    Case("#### ${gold}", 1, 0, "strict-match wants the digits right after '#### '; a currency sign is no mistake"),
    Case("####{gold}", 1, 0, "the same, about the blank"),
    Case("#### {gold}.00", 1, 0, "they compare text; 18.00 is 18"),
    Case("#### 0{gold}", 1, 0, "they compare text; 018 is 18"),
    Case("#### the total is {gold}", 1, 0, "words between mark and number are no mistake"),
    Case("first #### {wrong}, no: #### {gold}", 1, 0, "they take the first mark; a corrected answer is the last one"),
    Case("first #### {gold}, no: #### {wrong}", 0, 1, "the same, the other way round"),
    Case("The answer is {gold}.0", 1, 0, "they compare text; 18.0 is 18"),
    Case("{gold} it is, ...", 1, 0, "their last 'number' is the three dots"),
    Case("There are 100-{gold}", 1, 0, "they read a subtraction's minus as a sign"),
    Case("The answer is \u2212{gold}", 0, 1, "they do not know the typographic minus sign"),
]
GOLDS = ["18", "26", "70", "105", "540", "694", "1080", "2125", "57500", "1234567"]


def lm_eval_gsm8k(completion: str, gold: str) -> float:
    """The score of lm-eval's gsm8k task: strict-match where the completion has a mark, else flexible-extract."""
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    strict = RegexFilter(r"#### (\-?[0-9\.\,]+)")
    flexible = RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
    chosen = strict if "####" in completion else flexible
    (answer,) = chosen.apply([[completion]], [{}])[0]
    ignored = [",", r"\$", "(?s).*#### ", r"\.$"]
    found = exact_match_hf_evaluate([answer], [f"It is so.\n#### {gold}"], regexes_to_ignore=ignored, ignore_case=True)
    return float(found["exact_match"])


def test_lm_eval_still_defines_its_task_as_this_test_says() -> None:
    from pathlib import Path

    import lm_eval

    text = (Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text(encoding="utf-8")
    stated = [bytes(found, "utf-8").decode("unicode_escape") for found in re.findall(r'regex_pattern: "(.*)"', text)]
    assert stated == [r"#### (\-?[0-9\.\,]+)", r"(-?[$0-9.,]{2,})|(-?[0-9]+)"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.form)
def test_scores_agree_with_lm_eval_but_for_the_listed_reasons(case: Case) -> None:
    for gold in GOLDS:
        text = case.form.format(gold=gold, wrong=int(gold) + 1, commas=f"{int(gold):,}")
        assert (ours(text, gold), lm_eval_gsm8k(text, gold)) == (case.ours, case.theirs), text
    assert bool(case.why) == (case.ours != case.theirs)
