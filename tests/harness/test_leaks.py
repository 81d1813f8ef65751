"""Which prompts give an answer away, and which must not be taken for such a prompt."""

from random import Random

import pytest

from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.benchmarks.lm_eval_task import LmEvalBenchmark, Task
from metatuner.harness.rows import Row
from metatuner.nano.instructions import FAMILIES, instruction, with_gloss
from metatuner.nano.problems import BENCHMARKS
from metatuner.nano.world import World, raw_rows

TEXTS = (
    "He was hungry and wanted to eat dinner",
    "He had worked a long day at the office",
    "He was angry at his boss",
    "None of the above choices .",
)
COSMOS = get_benchmark("cosmosqa").row(
    {
        "id": "r",
        "context": "Tom was tired after work . He went to bed .",
        "question": "Why did he go?",
        **{f"answer{index}": text for index, text in enumerate(TEXTS)},
        "label": 1,
    }
)
LISTED = " ".join(f"{text} ({letter})" for text, letter in zip(TEXTS, "ABCD", strict=True))


@pytest.mark.parametrize(
    "prompt",
    [
        "The answer is (B).",
        "Answer: B",
        "B",
        "(C)",  # a wrong one too
        "Option A is correct.",
        "I would choose option C.",
        "He had worked a long day at the office (B)",
        "Choose the best option: he had worked a long day at the office.",
        "The best option is that he was angry at his boss, so say that.",
        "Answer: None of the above choices .",
        "Options: A, B, C, D. The answer is B.",
        f"Options: {LISTED}\nThe answer is (B).",
        f"Options: {LISTED}\n(D)",
    ],
)
def test_a_prompt_that_singles_out_an_option_by_letter_or_text_leaks(prompt: str) -> None:
    assert get_benchmark("cosmosqa").leaks(prompt, COSMOS)


@pytest.mark.parametrize(
    "prompt",
    [
        "choose the best option",
        "think step by step , then give the letter .",
        "End with the text of the best option and its letter.",
        "Answer with A, B, C or D.",
        "Which of the options A, B, C, D is best?",
        "State the letter (A-D).",
        "Options A to D: choose one.",
        "Give the letter in parentheses, such as (B).",
        "Answer in the form 'Answer: B'.",
        "The answer is the option that fits best.",
        "A good reader looks at each option.",
        "Q: question\nA:",
        "A. Read the context. B. Read the question. C. Choose.",
        "Pick None of the above choices only if no other fits.",
        "Consider that Tom was tired after work .",  # the context may be repeated
        f"Read this: {COSMOS.query}\nAnswer:",
        f"Options: {LISTED}",
        "\n".join(f"{letter}: {text}" for text, letter in zip(TEXTS, "ABCD", strict=True)),
        f"Choose between (A) {TEXTS[0]} and (B) {TEXTS[1]}.",
        f"Is it that {TEXTS[0]}, or that {TEXTS[2]}?",
        "",
    ],
)
def test_a_prompt_that_lists_options_or_says_how_to_answer_does_not_leak(prompt: str) -> None:
    assert not get_benchmark("cosmosqa").leaks(prompt, COSMOS)


def test_an_option_inside_a_longer_one_is_not_quoted_with_it() -> None:
    texts = ("he went home", "he went home to sleep", "she went out", "they stayed in")
    raw = {"id": "r", "context": "It rained .", "question": "what next ?", "label": 0}
    row = get_benchmark("cosmosqa").row(raw | {f"answer{index}": text for index, text in enumerate(texts)})
    assert get_benchmark("cosmosqa").leaks("tell that he went home to sleep and why", row)
    assert not get_benchmark("cosmosqa").leaks("either he went home or he went home to sleep", row)


def gsm8k(gold: str, query: str = "Tom has 12 eggs and three hens .") -> Row:
    return get_benchmark("gsm8k").row({"id": "r", "question": query, "answer": f"so\n#### {gold}"})


@pytest.mark.parametrize(
    ("prompt", "gold", "leaks"),
    [
        ("The answer is 42.", "42", True),
        ("Compute 6 * 7 = $42.00", "42", True),
        ("Say 1,080", "1080", True),
        ("The answer is 41.", "42", False),
        ("Use the 12 eggs.", "12", False),  # the query's own number
        ("Count the 3 hens.", "3", False),  # in words there
        ("Think in 2 steps.", "2", False),
        ("Step 2 is to add.", "2", False),
        ("Round to 2 decimal places.", "2", False),
        ("1. Read the problem. 2. Add. 3. Answer.", "2", False),
        ("1. Read the problem.\n2. Add.", "1", False),
        ("The answer is 7. Think about it.", "7", True),
        ("end with #### .", "4", False),
    ],
)
def test_gsm8ks_prompt_leaks_by_a_number_that_equals_the_reference_and_is_new(
    prompt: str, gold: str, leaks: bool
) -> None:
    assert get_benchmark("gsm8k").leaks(prompt, gsm8k(gold)) is leaks


@pytest.mark.parametrize(
    ("prompt", "gold", "leaks"),
    [
        (r"Show that it is $\dfrac{3}{4}$.", r"\frac{3}{4}", True),
        ("The result is 0.75.", r"\frac{3}{4}", True),
        ("The result is 42.", "42", True),
        (r"Factor it as (x-2)(x - 3).", "(x-2)(x-3)", True),
        ("Solve x + 1 = 5 for x.", "x", False),  # a short reference stands everywhere
        ("Use 12 as the side.", "12", False),
        ("It is 2x+1.", "x+1", False),
        (r"Put the final answer in \boxed{}.", "42", False),
    ],
)
def test_maths_prompt_leaks_by_its_reference_as_a_number_or_as_written(prompt: str, gold: str, leaks: bool) -> None:
    raw = {"id": "r", "problem": "A side is 12 long .", "level": "Level 1", "type": "Algebra"}
    row = get_benchmark("math").row(raw | {"solution": rf"\boxed{{{gold}}}"})
    assert get_benchmark("math").leaks(prompt, row) is leaks


@pytest.mark.parametrize(
    ("prompt", "gold", "leaks"),
    [
        ("Answer: Lisbon", "Lisbon", True),
        ("lisbon", "Lisbon", True),
        ("The facts say where Lisbon is; use them.", "Lisbon", False),  # a paragraph names it
        ("It is the painter Amadeo Cardoso.", "Amadeo Cardoso", True),  # no paragraph names him
        ("Answer: Porto", "Lisbon", False),
        ("Answer with yes or no.", "yes", False),
        ("Give no explanation.", "no", False),
        ("Answer: no", "no", True),
        ("End with 'Answer: ' and a short answer.", "Lisbon", False),
    ],
)
def test_hotpotqas_prompt_leaks_by_a_reference_that_it_states_or_that_no_paragraph_has(
    prompt: str, gold: str, leaks: bool
) -> None:
    raw = {"id": "r", "question": "Where?", "answer": gold, "type": "bridge"}
    row = get_benchmark("hotpotqa").row(raw | {"context": [["Portugal", ["Its capital is Lisbon .", "Porto is not."]]]})
    assert get_benchmark("hotpotqa").leaks(prompt, row) is leaks


def test_any_other_benchmarks_prompt_leaks_by_a_reference_that_neither_query_nor_initial_prompt_has() -> None:
    made = LmEvalBenchmark("trivia", Task("trivia")).with_overrides(initial_prompt="name the town")
    row = Row("r", "trivia", "which town is north of Rome ?", ("Orte", "the town", "Rome"), "Orte", "all", "g")
    assert made.leaks("the answer is ORTE.", row)
    assert not made.leaks("name the town , not Rome or Ortega", row)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_instruction_of_the_nano_world_leaks_and_most_of_its_answers_would(name: str) -> None:
    benchmark, random = get_benchmark(name), Random(0)
    leaking, told = [], 0
    for raw in raw_rows(World(), name, "test", 60):
        row = benchmark.row(raw)
        for family in FAMILIES:
            for clause in (*BENCHMARKS, None):
                prompt = with_gloss(instruction(random, family, clause), raw["glosses"])
                leaking += [prompt] if benchmark.leaks(prompt, row) else []
        told += benchmark.leaks(row.target, row)
    assert leaking == []
    assert told > 40  # the others stand in their query
