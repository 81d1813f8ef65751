"""Answers in the forms that models write: `answers.jsonl` says for each whether a reader would call it right."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metatuner import cli
from metatuner.files import read_lines, write_lines
from metatuner.harness.benchmarks import benchmark_ids, get_benchmark

ANSWERS = Path(__file__).with_name("answers.jsonl")
OPTIONS = ["she slept", "he ate", "they ran", "None of the above choices ."]
RAW: dict[str, Callable[[str], dict[str, Any]]] = {
    "math": lambda gold: {"problem": "?", "level": "1", "type": "t", "solution": rf"$\boxed{{{gold}}}$"},
    "gsm8k": lambda gold: {"question": "?", "answer": f"x\n#### {gold}"},
    "hotpotqa": lambda gold: {"question": "?", "type": "t", "answer": gold, "context": [["a", ["b"]]]},
    "cosmosqa": lambda gold: {
        "context": "c",
        "question": "?",
        "label": "ABCD".index(gold),
        **{f"answer{i}": text for i, text in enumerate(OPTIONS)},
    },
}


def test_every_listed_answer_gets_the_score_that_a_reader_would_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = read_lines(ANSWERS, "")
    asked = [{**one, "row": RAW[one["benchmark"]](one["gold"])} for one in answers]
    asked_file, scored_file = write_lines(tmp_path / "asked.jsonl", asked), tmp_path / "scored.jsonl"
    assert cli.main(["score", str(asked_file), "--out", str(scored_file)]) == 0
    scored = read_lines(scored_file, "")
    wrong = [
        (one["benchmark"], answer["completion"], one["gold"], one["extracted"])
        for one, answer in zip(scored, answers, strict=True)
        if one[get_benchmark(one["benchmark"]).primary] != one["right"]
    ]
    assert wrong == []
    assert {one["benchmark"] for one in answers} == set(benchmark_ids())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("form", ["letter_first", "letter_last"])
def test_answers_are_read_alike_in_both_forms_of_options(form: str) -> None:
    benchmark = get_benchmark("cosmosqa").with_overrides(choices={"options": form})
    rows = {letter: benchmark.row({"id": "a", **RAW["cosmosqa"](letter)}) for letter in "ABCD"}
    answers = [one for one in read_lines(ANSWERS, "") if one["benchmark"] == "cosmosqa"]
    wrong = [
        one["completion"]
        for one in answers
        if benchmark.score(benchmark.extract(one["completion"], rows[one["gold"]]), rows[one["gold"]])["accuracy"]
        != one["right"]
    ]
    assert len(answers) > 400
    assert wrong == []


TRAPS = [
    "is not right",
    "plan (A) or C) and (D)",
    "I choose D . The answer is (C) .",
    "each option (B)",
    "say 'no' (twice)",
]


@pytest.mark.parametrize("label", range(4))
@pytest.mark.parametrize("shift", range(len(TRAPS)))
def test_a_copied_option_is_its_letter_whatever_its_text_says(label: int, shift: int) -> None:
    benchmark = get_benchmark("cosmosqa")
    texts = {f"answer{i}": TRAPS[(i + shift) % len(TRAPS)] for i in range(4)}
    row = benchmark.row({"id": "a", "context": "c", "question": "?", "label": label, **texts})
    assert row.target == f"({'ABCD'[label]}) {texts[f'answer{label}']}"
    assert benchmark.extract(row.target, row) == "ABCD"[label]
    assert benchmark.extract(f"  {row.target.upper()}\n", row) == "ABCD"[label]


@pytest.mark.parametrize("form", ["letter_first", "letter_last"])
@pytest.mark.parametrize("text", ["plan (b) it", "(they) left", "go (C) home", "a (very) old D"])
def test_an_option_with_parentheses_is_found_by_its_text_in_both_forms(form: str, text: str) -> None:
    benchmark = get_benchmark("cosmosqa").with_overrides(choices={"options": form})
    texts = {"answer0": "x", "answer1": text, "answer2": "y", "answer3": "z"}
    row = benchmark.row({"id": "a", "context": "c\nOptions:\n(A) no", "question": "?", "label": 1, **texts})
    assert benchmark.extract(row.target, row) == "B"
    assert benchmark.extract("Answer: z", row) == "D"


def test_score_keeps_other_keys_and_adds_what_was_extracted_and_each_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {
        "benchmark": "hotpotqa",
        "completion": "Answer: Lisbon town",
        "row": RAW["hotpotqa"]("Lisbon"),
        "model": "m",
    }
    cli.main(["score", str(write_lines(tmp_path / "asked.jsonl", [asked]))])
    (line,) = capsys.readouterr().out.splitlines()
    expected = {
        "benchmark": "hotpotqa",
        "model": "m",
        "extracted": "Lisbon town",
        "em": 0.0,
        "f1": 2 / 3,
        "stopped": None,
    }
    assert json.loads(line) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "line 1: an object is needed"),
        ('{"benchmark": "gsm8k"}', "line 1: 'completion' must be text"),
        ('{"benchmark": "gsm8", "completion": "", "row": {}}', "line 1: unknown benchmark 'gsm8'; did you mean"),
        ('{"benchmark": "gsm8k", "completion": "", "row": {"question": "?"}}', "line 1: field 'answer' is missing"),
        ("{", "line 1: not valid JSON"),
        ("\ufeff{}", "starts with a byte-order mark; save it as UTF-8 without one"),
        ("", "no answers in it; give one JSON object per line"),
    ],
)
def test_a_line_that_cannot_be_scored_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    assert cli.main(["score", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_half_of_a_surrogate_pair_is_written_read_back_and_scored(tmp_path: Path) -> None:
    asked = [
        {"benchmark": name, "completion": "\ud800 x\ud800", "row": RAW[name](gold)}
        for name, gold in (("math", "x+1"), ("gsm8k", "7"), ("hotpotqa", "x"), ("cosmosqa", "A"))
    ]
    path = write_lines(tmp_path / "asked.jsonl", asked)
    assert read_lines(path, "")[0]["completion"] == "\ud800 x\ud800"
    cli.main(["score", str(path), "--out", str(tmp_path / "scored.jsonl")])
    assert len(read_lines(tmp_path / "scored.jsonl", "")) == 4


HOSTILE = [
    *[
        r"\boxed{",
        "answer ",
        "answer: ",
        "Answer:\n",
        "the answer is not ",
        "#### ",
        "####",
        "(A) ",
        "**",
        "_",
        "$",
        r"\(",
    ],
    *[r"\[ ", "\n", " ", ". ", "1 ", "1,", "1/", "=", "{", "\\", r"\boxed{1} and ", "\nQuestion: a\n", "</think>"],
    *["twenty ", "in 3 boxes ", "of which 3 ", "option A is ", "a\u2028", "\ud800", "1 000 ", "answer to the "],
]


@pytest.mark.parametrize("name", benchmark_ids())
def test_extraction_takes_time_linear_in_the_length_of_the_completion(name: str) -> None:
    benchmark = get_benchmark(name)
    row = benchmark.row({"id": "a", **RAW[name]("B" if name == "cosmosqa" else "7")})

    def seconds(unit: str, length: int) -> float:
        completion = "answer" + unit * (length // len(unit))
        start = time.process_time()
        benchmark.extract(completion, row)
        return time.process_time() - start

    for unit in HOSTILE:
        # Four times the length: quadratic time would be sixteen times as much, here at least 4 s.
        slow = seconds(unit, 120_000)
        assert slow < 0.5 or slow < 8 * seconds(unit, 30_000), unit
