"""Rows come in one form from local files and the Hub; what is wrong with them is said with file and line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from metatuner.errors import UserError
from metatuner.harness.benchmarks import (
    benchmark_file,
    benchmark_ids,
    get_benchmark,
    load_hub,
    load_raw,
    load_rows,
)
from metatuner.harness.rows import read_rows, rows_to_text

RAW: dict[str, dict[str, Any]] = {
    "gsm8k": {"id": "a", "question": "How many?", "answer": "2+2=<<2+2=4>>4\n#### 4"},
    "math": {
        "id": "a",
        "problem": "Find $x$.",
        "level": "Level 1",
        "type": "Algebra",
        "solution": r"It is $\boxed{\frac{1}{2}}$.",
    },
    "hotpotqa": {
        "id": "a",
        "question": "Who is it?",
        "answer": "doctor sam",
        "type": "bridge",
        "level": "hard",
        "context": [["Sam", ["Sam is a doctor.", " He is kind."]], ["Empty", []]],
        "supporting_facts": [["Sam", 0]],
    },
    "cosmosqa": {
        "id": "a",
        "context": "It was  late.",
        "question": "What next?",
        "answer0": "go up",
        "answer1": "go bed",
        "answer2": "go out",
        "answer3": "none",
        "label": 1,
    },
}
RENDERED = {
    "gsm8k": ("How many?", "2+2=4\n#### 4", ("4",), "all", "how many?"),
    "math": ("Find $x$.", r"It is $\boxed{\frac{1}{2}}$.", (r"\frac{1}{2}",), "Level 1", "find $x$."),
    "hotpotqa": (
        "Sam: Sam is a doctor. He is kind.\nEmpty: \nQuestion: Who is it?",
        "Answer: doctor sam",
        ("doctor sam",),
        "bridge",
        "sam: sam is a doctor. he is kind. empty: question: who is it?",
    ),
    "cosmosqa": (
        "It was  late.\nQuestion: What next?\nOptions:\n(A) go up\n(B) go bed\n(C) go out\n(D) none",
        "(B) go bed",
        ("B",),
        "all",
        "it was late.",
    ),
}


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return path


@pytest.mark.parametrize("name", sorted(RAW))
def test_a_raw_row_is_rendered_with_its_target_gold_kind_and_group(name: str, tmp_path: Path) -> None:
    (row,) = load_rows(get_benchmark(name), write(tmp_path / "r.jsonl", json.dumps(RAW[name])))
    assert (row.query, row.target, row.gold, row.kind, row.group) == RENDERED[name]
    assert (row.id, row.benchmark) == ("a", name)


def test_options_with_the_letter_last_are_rendered_as_before() -> None:
    benchmark = get_benchmark("cosmosqa").with_overrides(choices={"options": "letter_last"})
    row = benchmark.row(RAW["cosmosqa"])
    assert row.query == "It was  late.\nQuestion: What next?\nOptions: go up (A) go bed (B) go out (C) none (D)"
    assert row.target == "go bed (B)"
    assert (benchmark.version, get_benchmark("cosmosqa").version) == (2, 3)


def test_an_option_is_one_line_whatever_white_space_it_holds() -> None:
    raw = {**RAW["cosmosqa"], "answer1": " go\n(C)\u2028 bed "}
    assert get_benchmark("cosmosqa").row(raw).query.endswith("\n(A) go up\n(B) go (C) bed\n(C) go out\n(D) none")


FACTS = {
    "id": "a",
    "question": "Where was the painter's sister born?",
    "answer": "Ghent",
    "type": "bridge",
    "context": [
        ["Bruges", ["Bruges is a town."]],
        ["Ann Lee", ["Ann is a painter.", " Her sister is Eva."]],
        ["Lace", ["Lace is made."]],
        ["Eva Lee", ["Eva was born in Ghent."]],
    ],
    "supporting_facts": [["Eva Lee", 0], ["Ann Lee", 1], ["Ann Lee", 7]],
}


def test_gold_paragraphs_are_those_with_a_supporting_fact_in_the_order_of_the_context() -> None:
    gold = get_benchmark("hotpotqa").with_overrides(choices={"contexts": "gold"})
    assert gold.row(FACTS).query == (
        "Ann Lee: Ann is a painter. Her sister is Eva.\nEva Lee: Eva was born in Ghent.\n"
        "Question: Where was the painter's sister born?"
    )
    assert gold.remarks == ["gold paragraphs"]
    whole = get_benchmark("hotpotqa")
    assert whole.row(FACTS).query.count("\n") == 4
    assert whole.remarks == []
    assert whole.row({**FACTS, "supporting_facts": None}) == whole.row(FACTS)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (None, "field 'supporting_facts' of row 'a' is of another form; add"),
        ([], "field 'supporting_facts' of row 'a' is empty; add"),
        ([["Eva Lee"]], "field 'supporting_facts' of row 'a' is of another form; add"),
        ([["Eva", 0]], "field 'supporting_facts' of row 'a': 'Eva' is no title of 'context'; correct the row, or set"),
        ("absent", "field 'supporting_facts' of row 'a' is missing; add [[title, index of a sentence], ...], or set"),
    ],
)
def test_a_row_without_supporting_facts_stops_gold_paragraphs_with_its_line(
    tmp_path: Path, facts: Any, said: str
) -> None:
    raw = {key: value for key, value in FACTS.items() if key != "supporting_facts"}
    raw |= {} if facts == "absent" else {"supporting_facts": facts}
    gold = get_benchmark("hotpotqa").with_overrides(choices={"contexts": "gold"})
    with pytest.raises(UserError) as error:
        load_rows(gold, write(tmp_path / "r.jsonl", json.dumps({**FACTS, "id": "b"}), json.dumps(raw)))
    assert f"r.jsonl:2: hotpotqa: {said}" in str(error.value)
    assert str(error.value).endswith("set contexts: all")


def test_a_choice_that_a_benchmark_does_not_offer_is_an_error() -> None:
    with pytest.raises(UserError, match=r"benchmarks\.hotpotqa: unknown key 'context'; did you mean contexts\?"):
        get_benchmark("hotpotqa").with_overrides(choices={"context": "gold"})
    with pytest.raises(UserError, match=r"'benchmarks\.hotpotqa\.contexts': no value \['gold'\]; .*Known: all, gold"):
        get_benchmark("hotpotqa").with_overrides(choices={"contexts": ["gold"]})


@pytest.mark.parametrize(
    ("name", "completion"),
    [
        ("gsm8k", "#### 42"),
        ("math", r"\boxed{42}"),
        ("hotpotqa", "Answer: Ghent"),
        ("cosmosqa", "(B)"),
    ],
)
def test_a_benchmarks_own_prompt_states_the_form_in_which_answers_are_read(name: str, completion: str) -> None:
    prompt = get_benchmark(name).initial_prompt
    marks = {"gsm8k": "'#### '", "math": r"\boxed{}", "hotpotqa": "'Answer: ...'", "cosmosqa": "letter in parentheses"}
    assert marks[name] in prompt
    row = get_benchmark(name).row(RAW[name])
    assert get_benchmark(name).extract(completion, row) == {"hotpotqa": "Ghent", "cosmosqa": "B"}.get(name, "42")


@pytest.mark.parametrize("name", sorted(RAW))
def test_a_row_says_its_own_kind_if_it_has_one(name: str) -> None:
    assert get_benchmark(name).row({**RAW[name], "kind": "two steps"}).kind == "two steps"


@pytest.mark.parametrize("name", sorted(RAW))
def test_a_target_is_extracted_and_scores_one(name: str) -> None:
    benchmark = get_benchmark(name)
    row = benchmark.row(RAW[name])
    assert benchmark.score(benchmark.extract(row.target, row), row) == dict.fromkeys(benchmark.metrics, 1.0)
    assert benchmark.score(None, row) == dict.fromkeys(benchmark.metrics, 0.0)
    assert benchmark.primary in benchmark.metrics


def test_rows_survive_a_split_file(tmp_path: Path) -> None:
    rows = [get_benchmark(name).row({**raw, "id": name}) for name, raw in RAW.items()]
    path = tmp_path / "rows.jsonl"
    path.write_text(rows_to_text(rows), encoding="utf-8")
    assert read_rows(path) == rows


def test_line_separators_inside_a_text_do_not_end_a_row(tmp_path: Path) -> None:
    raw = {**RAW["gsm8k"], "question": "one\u2028two\u0085three\x0bfour"}
    path = write(tmp_path / "r.jsonl", json.dumps(raw, ensure_ascii=False), "", json.dumps({**raw, "id": "b"}))
    assert [row["id"] for row in load_raw(path)] == ["a", "b"]


GOOD = json.dumps(RAW["gsm8k"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "b",', "r.jsonl:2: broken JSON"),
        ("[1]", "r.jsonl:2: a JSON list, not an object"),
        (b'{"id": "\xff"}', "r.jsonl:2: byte 9 is not UTF-8"),
        ("[" * 100_000, "r.jsonl:2: JSON nested too deeply"),
        (GOOD, "r.jsonl:2: id 'a' is already used on line 1"),
        ('{"question": "?"}', "r.jsonl:2: field 'id' must be text"),
        ('{"id": 3}', "r.jsonl:2: field 'id' must be text"),
        ('{"id": "b", "answer": "#### 1"}', "r.jsonl:2: gsm8k: field 'question' is missing"),
        ('{"id": "b", "question": 7, "answer": "#### 1"}', "r.jsonl:2: gsm8k: field 'question' must be text, is int"),
        ('{"id": "b", "question": " ", "answer": "#### 1"}', "r.jsonl:2: gsm8k: field 'question' is empty"),
        ('{"id": "b", "question": "?", "answer": "one"}', "r.jsonl:2: gsm8k: field 'answer' must end in"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(tmp_path: Path, line: str | bytes, said: str) -> None:
    with pytest.raises(UserError) as error:
        load_rows(get_benchmark("gsm8k"), write(tmp_path / "r.jsonl", GOOD, line))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "field", "value", "said"),
    [
        ("math", "solution", "It is 4.", "field 'solution' states no answer"),
        ("hotpotqa", "context", "Sam is a doctor.", "field 'context' must be a list"),
        ("hotpotqa", "context", [["Sam", "Sam is a doctor."]], "field 'context', paragraph 1"),
        ("hotpotqa", "context", [["Sam", [1]]], "field 'context', paragraph 1"),
        ("cosmosqa", "label", 4, "field 'label' must be an integer from 0 to 3, is 4"),
        ("cosmosqa", "label", "1", "field 'label' must be an integer"),
        ("cosmosqa", "label", True, "field 'label' must be an integer"),
    ],
)
def test_an_ill_typed_field_is_named(name: str, field: str, value: object, said: str) -> None:
    with pytest.raises(UserError, match="^" + said.replace("(", r"\(")):
        get_benchmark(name).row({**RAW[name], field: value})


def test_an_empty_or_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"r\.jsonl: no rows"):
        list(load_raw(write(tmp_path / "r.jsonl", "", "  ")))
    with pytest.raises(UserError, match=r"absent\.jsonl: No such file"):
        list(load_raw(tmp_path / "absent.jsonl"))


def test_an_unknown_benchmark_is_met_with_the_nearest_and_the_list() -> None:
    with pytest.raises(UserError, match=r"'gsm8'; did you mean gsm8k\? Known: cosmosqa, gsm8k, hotpotqa, math"):
        get_benchmark("gsm8")
    assert benchmark_file("math").name == "math.py"


def test_overrides_make_another_benchmark_and_leave_the_first_alone() -> None:
    base = get_benchmark("math")
    own = base.initial_prompt
    changed = base.with_overrides(initial_prompt="think", max_new_tokens=9)
    assert (changed.initial_prompt, changed.max_new_tokens) == ("think", 9)
    assert base.initial_prompt == own != "think"
    assert base.with_overrides().max_new_tokens == base.max_new_tokens


def test_the_one_file_of_the_docs_adds_a_benchmark(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    file = tmp_path / "capitals.py"
    file.write_text(code, encoding="utf-8")
    assert benchmark_file("capitals", [str(file)]) == file
    capitals = get_benchmark("capitals", [str(file)])
    raw = write(tmp_path / "r.jsonl", '{"id": "1", "country": "France", "capital": "Paris"}')
    (row,) = load_rows(capitals, raw)
    answers = [capitals.extract(text, row) for text in ("\nParis.\n", "Lyon", "")]
    assert [one.metrics["em"] for one in capitals.score_all(answers, [row] * 3)] == [1, 0, 0]
    assert "capitals" not in benchmark_ids()


EMPTY = "from metatuner.harness.benchmarks.base import Benchmark\n\n\nclass Mine(Benchmark):\n    id = "


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("absent.py", None, r"extra_benchmarks: no file .*absent\.py"),
        ("gsm8k.py", EMPTY + "'gsm8k'\n", r"gsm8k\.py defines 'gsm8k' already; rename it"),
        ("My Own.py", EMPTY + "'my'\n", "its name must be <id>.py"),
        ("mine.yaml", "", "its name must be <id>.py"),
        ("mine.py", "import nothing_of_this_name\n", r"mine\.py does not import: ModuleNotFoundError: .*mend the file"),
        ("mine.py", "x = (", r"mine\.py does not import: SyntaxError"),
        ("mine.py", "raise SystemExit(3)", r"mine\.py does not import: SystemExit: it ends the process"),
        ("mine.py", EMPTY + "'other'\n", "must define exactly one Benchmark, with id = 'mine'"),
        ("mine.py", "", "must define exactly one Benchmark, with id = 'mine'"),
        ("mine.py", EMPTY + "'mine'\n", "Mine lacks extract, row, score"),
    ],
)
def test_a_users_file_that_is_no_benchmark_is_refused_in_one_line(
    name: str, text: str | None, said: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said) as refused:
        get_benchmark("mine", [tmp_path / name])
    assert "\n" not in str(refused.value)


def test_two_users_files_of_one_name_are_refused(tmp_path: Path) -> None:
    files = [tmp_path / "a" / "mine.py", tmp_path / "b" / "mine.py"]
    for file in files:
        file.parent.mkdir()
        file.write_text(EMPTY + "'mine'\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"b/mine\.py: .*a/mine\.py defines 'mine' already"):
        get_benchmark("mine", files)


def test_a_benchmark_without_a_hub_address_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    local = get_benchmark("gsm8k")
    monkeypatch.setattr(type(local), "hub", None)
    with pytest.raises(UserError, match="gsm8k: has no Hub address; name local JSON Lines files"):
        load_hub(local, "test")


HUB_RECORDS: dict[str, dict[str, Any]] = {
    "gsm8k": {key: value for key, value in RAW["gsm8k"].items() if key != "id"},
    "math": {key: value for key, value in RAW["math"].items() if key != "id"},
    "hotpotqa": {
        **RAW["hotpotqa"],
        "context": {"title": ["Sam", "Empty"], "sentences": [["Sam is a doctor.", " He is kind."], []]},
        "supporting_facts": {"title": ["Sam"], "sent_id": [0]},
    },
    "cosmosqa": RAW["cosmosqa"],
}


@pytest.mark.parametrize("name", sorted(RAW))
def test_the_hubs_records_give_the_same_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, config: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((path, config, split, revision))
        return datasets.Dataset.from_list([HUB_RECORDS[name]])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    benchmark = get_benchmark(name)
    (row,) = load_hub(benchmark, "test")
    assert (row.query, row.target, row.gold, row.kind, row.group) == RENDERED[name]
    assert row.id == ("a" if "id" in HUB_RECORDS[name] else "test-0")
    hub = benchmark.hub
    assert hub is not None
    assert asked == [(hub.path, hub.config, hub.test, hub.revision)]


def test_a_record_that_is_not_as_published_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    wrong = datasets.Dataset.from_list([{"id": "a", "question": "?"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: wrong)
    with pytest.raises(UserError, match="validation split, record 0: hotpotqa: not the published form"):
        load_hub(get_benchmark("hotpotqa"), "test")


def test_without_a_network_the_error_says_to_name_local_files() -> None:
    with pytest.raises(
        UserError, match=r"^gsm8k: cannot load openai/gsm8k, train split .* name local JSON Lines files"
    ):
        load_hub(get_benchmark("gsm8k"), "train")
