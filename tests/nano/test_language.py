"""The nano language: what its rows say is true, its splits are apart, and its behaviours follow the tables."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from metatuner.config import load_config
from metatuner.errors import UserError
from metatuner.harness.benchmarks import load_rows
from metatuner.harness.rows import normalise_text, rows_to_text
from metatuner.hashing import ROOT
from metatuner.nano import SPLITS, World, model_key, raw_rows, words, world_key, write_rows
from metatuner.nano.constants import constants, constants_hash, frozen
from metatuner.nano.corpus import actor_rows, generator_rows
from metatuner.nano.instructions import FAILS_ON, REASONING, Behaviour, behaviour, instruction, reply, with_gloss
from metatuner.nano.problems import BENCHMARKS, GLOSSED, INITIAL_PROMPTS, KINDS, PLAIN, SHIFTED, as_asked, problem
from metatuner.nano.tokenizer import ANSWER, END, QUERY, REWRITE
from metatuner.nano.world import problems
from metatuner.run.data import configured

MEANING = {word: meaning for meaning, new in words.NEW_FORMS.items() for word in new}
MEANING |= {word: meaning for meaning, known in words.KNOWN_FORMS.items() for word in known}


def solve(benchmark: str, query: str) -> str:
    """The answer read off the query alone, by rules written apart from the generator of queries."""
    text = " ".join(MEANING.get(word, word) for word in re.findall(r"[^\s:()]+|[:()]", query))
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    if benchmark == "gsm8k":
        if "total" in text:
            x, y = numbers
            return str(2 * x + y if " more " in text else 2 * x - y)
        held = numbers[0] * numbers[1] if len(re.findall(r"has \d+ \w+ of", text)) else numbers[0]
        changes = re.findall(r"(gets|loses) (\d+)", text)
        return str(held + sum(int(n) if verb == "gets" else -int(n) for verb, n in changes))
    if benchmark == "math":
        signs = [{"plus": 1, "minus": -1}.get(word) for word in text.split() if word in ("plus", "minus")]
        if "=" in text:
            c, b, total = numbers
            return str((total - signs[0] * b) // c)
        if "(" in text:
            x, y, c = numbers
            inside = x + signs[0] * y
            return str(inside * c if "times" in text else inside + c)
        x, y, z = numbers
        return f"{x + signs[0] * y + signs[1] * z} {text.split()[2]}"
    if benchmark == "hotpotqa":
        facts, question = text.split("Question :")
        triples = re.findall(r"(\w+) has (\w+) (\w+) \.", facts)
        if re.search(r"(lives|resides) in", question):
            who = re.search(r": (\w+) (?:lives|resides) in", question)[1]
            return re.search(rf"{who} (?:lives|resides) in (\w+)", facts)[1]
        who, *relations = re.search(r": (\w+) has (\w+)(?: has (\w+))?", question).groups()
        for relation in filter(None, relations):
            (who,) = [c for a, r, c in triples if (a, r) == (who, relation)]
            last = relation
        return f"{last} {who}"
    state = re.search(r"(?:was|became) (\w+)", text)[1]
    options = re.findall(r"(\w+(?: \w+)?) \( ([ABCD]) \)", text.split("Options :")[1])
    fitting = {table[words.STATES.index(state)] for table in words.FOLLOWS.values()}
    (letter,) = [letter for option, letter in options if option in fitting]
    return letter


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("style", [PLAIN, SHIFTED], ids=["plain", "shifted"])
def test_gold_answers_and_rationales_are_right(name, style):
    benchmark, random = as_asked(name), Random(1)
    for number in range(300):
        item = problem(random, name, style)
        row = benchmark.row({"id": str(number), **item.raw})
        answer = solve(name, item.query)
        for text in (item.rationale, item.final, row.target):
            extracted = benchmark.extract(text, row)
            assert extracted == answer
            assert benchmark.score(extracted, row)[benchmark.primary] == 1
        for equation in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", item.rationale):
            x, sign, y, z = int(equation[0]), equation[1], int(equation[2]), int(equation[3])
            assert z == {"+": x + y, "-": x - y, "*": x * y, "/": x / y}[sign]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_early_stops_and_chat_score_nothing(name):
    benchmark, random = as_asked(name), Random(2)
    right = 0
    for number in range(200):
        item = problem(random, name, SHIFTED)
        row = benchmark.row({"id": str(number), **item.raw})
        chat = reply(random, item, Behaviour.CHATTY)
        assert benchmark.score(benchmark.extract(chat, row), row)[benchmark.primary] == 0
        right += benchmark.extract(item.early_stop, row) in row.gold
    assert right <= 6  # "x * 1" and its like


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_gloss_holds_what_a_reader_of_known_words_lacks(name):
    random = Random(3)
    for _ in range(200):
        item = problem(random, name, SHIFTED)
        new = [word for word in re.findall(r"\w+", item.query) if word in words.NEW_WORDS]
        assert sorted(new) == sorted(word for word, _ in item.glosses)
        assert all(word in words.NEW_FORMS[meaning] for word, meaning in item.glosses)
    glosses = [pair for _ in range(50) for pair in problem(random, name, GLOSSED).glosses]
    assert any(word not in words.NEW_FORMS[meaning] for word, meaning in glosses)


def test_no_word_has_two_meanings_and_all_are_letters():
    everything = [*words.NAMES, *words.NEW_NAMES, *words.OBJECTS, *words.NEW_OBJECTS, *words.CITIES, *words.NEW_WORDS]
    everything += [*words.NEW_FORMS, "buys", "finds", "sells", "eats"]
    assert [word for word, count in Counter(everything).items() if count > 1] == []
    assert all(word.isalpha() for word in everything)
    assert len(words.JARGON) == 15
    assert not words.JARGON & set(words.GLOSSARY)


def test_splits_share_no_query_and_no_context():
    seen: dict[str, str] = {}
    for name in BENCHMARKS:
        for split in SPLITS:
            for item in problems(World(), name, split, 120):
                assert seen.setdefault(name + normalise_text(item.group), split) == split


def test_pretraining_reads_no_query_of_a_split():
    def asked(query: str) -> set[str]:
        return {normalise_text(query), *({normalise_text(query.split("\n")[0])} if "Options:" in query else ())}

    downstream: set[str] = set()
    for name in BENCHMARKS:
        for split in SPLITS:
            for item in problems(World(), name, split, 300):
                downstream |= asked(item.query)
    read: set[str] = set()
    for make in (actor_rows, generator_rows):
        for row in make(World(), Random(0), 1500):
            text = "".join(text for text, _ in row)
            for query in re.findall(rf"{QUERY}(.*?)(?:{ANSWER}|{REWRITE})", text, flags=re.DOTALL):
                read |= asked(query)
    assert len(read) > 1500
    assert not read & downstream


def test_rows_are_the_same_every_time_and_a_larger_draw_extends_a_smaller():
    few, many = (raw_rows(World(5), "math", "train", count) for count in (20, 40))
    assert few == many[:20]
    assert raw_rows(World(6), "math", "train", 20) != few
    assert len({row["id"] for row in many}) == 40


def test_written_rows_are_read_by_the_loader_of_local_rows(tmp_path):
    write_rows(World(), tmp_path, {name: {"train": 30, "audit": 10} for name in BENCHMARKS})
    for name in BENCHMARKS:
        rows = load_rows(as_asked(name), tmp_path / name / "train.jsonl")
        assert len(rows) == 30
        assert {row.kind for row in rows} == set(KINDS[name])
    assert not list(tmp_path.rglob("*.part"))


def test_unknown_names_and_too_many_rows_are_errors_that_say_so():
    with pytest.raises(UserError, match="did you mean gsm8k"):
        raw_rows(World(), "gsm8", "train", 1)
    with pytest.raises(UserError, match="did you mean train"):
        raw_rows(World(), "gsm8k", "trian", 1)
    with pytest.raises(UserError, match="did you mean actor"):
        model_key("acter", World())


def test_an_instruction_works_by_family_and_clause():
    for name, families in FAILS_ON.items():
        assert set(families) == set(REASONING)
        for kind in range(3):
            assert any(kind not in fails for fails in families.values()), "some family must handle every kind"
        for family, fails in families.items():
            for kind in range(3):
                expected = Behaviour.EARLY_STOP if kind in fails else Behaviour.RATIONALE
                assert behaviour(name, kind, family, name) is expected
                assert behaviour(name, kind, family, None) is Behaviour.CHATTY
    no_universal = [name for name, families in FAILS_ON.items() if all(families.values())]
    assert no_universal == ["gsm8k", "math"]


def test_glosses_follow_an_instruction():
    told = with_gloss(instruction(Random(0), "step", "gsm8k"), [("donates", "loses"), ("below", "fewer")])
    assert told.endswith(". note donates means loses and below means fewer .")
    assert with_gloss("solve it", []) == "solve it"


def replies(world: World) -> list[tuple[str, str]]:
    """(instruction, reply) of pretraining rows without demonstrations."""
    rows = [row for row in actor_rows(world, Random(0), 1500) if row[-1][0].endswith(END) and len(row) == 3]
    return [(row[0][0], row[-1][0].removesuffix(END)) for row in rows]


def test_in_the_null_world_prompts_do_not_matter_and_nothing_is_new():
    for name in BENCHMARKS:
        for item in problems(World(null=True), name, "train", 100):
            assert not item.glosses
    seen = replies(World(null=True))
    assert len(seen) > 300
    benchmarks = [as_asked(name) for name in BENCHMARKS]
    rows = {one.id: one.row({"id": "a", **problem(Random(3), one.id, PLAIN).raw}) for one in benchmarks}
    marks = ("####", r"\boxed{", "Answer:", "people")
    for _, text in seen:
        assert sum(mark in text for mark in marks) == 1
        assert any(benchmark.extract(text, rows[benchmark.id]) for benchmark in benchmarks)
    chatty = [text for told, text in replies(World()) if not any(mark in text for mark in marks)]
    assert chatty, "in the true world some instructions bring about no answer"


@pytest.mark.parametrize("preset", ["nano", "smoke", "real_rows"])
def test_presets_of_nano_models_ask_as_the_models_were_taught(preset):
    config = load_config(preset)
    for name in BENCHMARKS:
        asked, taught = configured(config, name), as_asked(name)
        assert asked.initial_prompt == taught.initial_prompt == INITIAL_PROMPTS[name]
        assert [asked.chosen(key) for key in asked.takes] == [taught.chosen(key) for key in taught.takes]


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("gsm8k", "071d763a44e4"),
        ("math", "6faf258c820b"),
        ("hotpotqa", "43ddf1283a0a"),
        ("cosmosqa", "7b50da0777b0"),
    ],
)
def test_rendered_rows_are_those_that_the_stored_winners_were_found_on(name, digest):
    benchmark = configured(load_config("nano"), name)
    text = rows_to_text(map(benchmark.row, raw_rows(World(), name, "train", 200)))
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == digest


def test_null_and_true_world_have_different_keys():
    assert world_key(World()) != world_key(World(null=True)) != world_key(World(1))
    assert model_key("actor", World()) != model_key("generator", World()) != model_key("generator", World(1))


def test_constants_are_those_that_were_frozen():
    assert constants_hash() == frozen()["constants"], (
        "the world's constants changed after methods were compared in it: measure its bars again on other seeds "
        "(docs/nano.md), then renew frozen.json"
    )
    json.dumps(constants())
    assert {"RECIPES", "ACTOR_MIX"} <= set(constants()["recipe"])
    assert INITIAL_PROMPTS["gsm8k"] in str(constants())
    assert Path(words.__file__).parent.joinpath("frozen.json").is_file()


def test_the_snapshot_is_of_the_world_as_it_is():
    world = json.loads((ROOT / "results" / "snapshot" / "nano" / "world.json").read_text(encoding="utf-8"))
    assert world["constants"] == frozen()["constants"]
    assert world["met"]
