"""Presets, `key=value` words and Snakemake's --config: what is written arrives, or one line says why not."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from snakemake.cli import parse_config

from metatuner.cli import main
from metatuner.config import Config, Layout, from_snakemake, load_config, parse_overrides, presets, read_config
from metatuner.errors import UserError
from metatuner.files import complete_folder, write_text
from metatuner.plan.dag import Dag
from metatuner.run.resume import _nested, remove_unfinished, unfinished
from tests.toys.results import fake_config

PROMPT = "benchmarks.gsm8k.initial_prompt"
TEXTS = [
    *("*think* step", "@solve: it", "{query} please", "{query}", "[1] first", "yes", "no", "on", "True", "5", "1e3"),
    *("010", "1_000", "12:30", "2026-11-30", ".nan", "% of it", "`code`", "&name", "!tag", "> x", "| y", "- z", "a: b"),
    *("a #b", "it's", '"quoted" words', "a, b", "a}", "]", "é 中 \U0001f600", "$(touch x)", ";", "\\n"),
]
"""Ordinary prompts, each with a meaning in YAML or in a shell."""


@pytest.fixture
def preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str | bytes], Config]:
    """Loads a preset of this text, which extends a small one."""
    folder = tmp_path / "config" / "presets"
    folder.mkdir(parents=True)
    base = json.loads(fake_config(tmp_path / "results").model_dump_json(exclude={"preset", "results"}))
    (folder / "base.yaml").write_text(json.dumps(base))
    monkeypatch.setattr(presets, "ROOT", tmp_path)

    def load(text: str | bytes) -> Config:
        (folder / "mine.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        return load_config("mine")

    return load


def prompt(config: Config) -> str | None:
    return config.benchmarks["gsm8k"].initial_prompt


@pytest.mark.parametrize("text", TEXTS)
def test_any_prompt_arrives_as_it_was_written(text: str, preset: Callable[[str], Config]) -> None:
    quoted = json.dumps(text, ensure_ascii=False)
    mapping = f"{{gsm8k: {{initial_prompt: {quoted}}}}}"
    assert prompt(preset(f"extends: base\nbenchmarks: {mapping}\n")) == text
    if not text.startswith('"'):  # a quoted word of a command is what stands in the quotes
        assert prompt(load_config("base", parse_overrides([f"{PROMPT}={text}"]))) == text
    assert prompt(load_config("base", parse_overrides([f"{PROMPT}={quoted}"]))) == text
    for word in (f"benchmarks={mapping}", _nested(f"{PROMPT}={quoted}")):
        assert prompt(load_config("base", from_snakemake(parse_config([word])))) == text


@pytest.mark.parametrize("text", ["yes", "maybe", "5 steps", "a b"])
def test_a_plain_word_needs_no_quotes_in_a_preset(text: str, preset: Callable[[str], Config]) -> None:
    assert prompt(preset(f"extends: base\nbenchmarks: {{gsm8k: {{initial_prompt: {text}}}}}\n")) == text


def test_numbers_truth_values_and_null_have_their_types() -> None:
    words = ["nano={trained: false}", "tuning={trials: 3}", "benchmarks={gsm8k: {sizes: {train: null}}}", "pack=7"]
    words.append("methods={sft: {settings: {learning_rate: 1e-4}, search: {epochs: {values: [1, 2]}}}}")
    words.append("run=[main]")
    for values in (parse_overrides(words), from_snakemake(parse_config(words))):
        config = load_config("smoke", values)
        assert (config.nano.trained, config.tuning.trials, config.pack) == (False, 3, 7)
        assert config.benchmarks["gsm8k"].sizes.train is None
        assert config.methods["sft"].settings["learning_rate"] == 1e-4
        assert config.methods["sft"].search["epochs"].values == [1, 2]
        assert list(config.experiments) == ["main"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("benchmarks={gsm8k: {initial_prompt: @solve: it}}", "--config benchmarks, line 1: not valid YAML"),
        ("benchmarks={gsm8k: {initial_prompt: *think* step}}", "put a text with special characters in quotes"),
        ("run=[main, *x]", "--config run, line 1: not valid YAML"),
        ("benchmarks={gsm8k: {initial_prompt: {query}}}", "'benchmarks.gsm8k.initial_prompt': Input should be a valid"),
        ("cache=a{b}", "'cache': a{b}: braces are Snakemake's; choose another folder with --config cache=FOLDER"),
        (f"cache={__file__}", "test_reading.py is no folder that can be written; make it one, or choose another"),
        ("tuning=" + "{a: " * 60 + "1" + "}" * 60, "nested deeper than 50 levels"),
        (f"results={'a' * 300}", "results: a name has at most 200 bytes"),
    ],
)
def test_what_snakemake_cannot_pass_on_is_one_line_with_the_remedy(word: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        Dag.from_snakemake({"preset": "smoke", **parse_config([word])})
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def bomb(levels: int) -> str:
    """YAML of 10^levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("threads: 1\npack: 2\nthreads: 3", "mine.yaml, line 3: key 'threads' stands twice; keep one"),
        ("budgets:\n  default: {}\n  default: {}", "mine.yaml, line 3: key 'default' stands twice"),
        ("methods: {sft: {pack: 1, pack: 2}}", "mine.yaml, line 1: key 'pack' stands twice"),
        (b"threads: 1 # \xe9", "mine.yaml: not UTF-8 text; save it as UTF-8"),
        ("threads: 1".encode("utf-16"), "mine.yaml: not UTF-8 text"),
        ("threads: 1".encode("utf-16-le"), "mine.yaml, line 1: YAML allows no character U+0000"),
        ("threads: 1\npack: \0", "mine.yaml, line 2: YAML allows no character U+0000; remove it"),
        ("extends: 3", "extends 3, which is no preset's name"),
        ("extends: [base]", "extends ['base'], which is no preset's name"),
        ("extends: ../presets/base", "unknown preset '../presets/base'"),
        ("extends: mine", "extends it; break the circle"),
        ("batch_tokens: .nan", "'batch_tokens': nan is no finite number"),
        ("budgets: {default: {seconds: .inf}}", "'budgets.default.seconds': inf is no finite number"),
        ("a: &a [*a]", "line 1: an alias stands inside what it names"),
        ("a: &a {b: *a}", "line 1: an alias stands inside what it names"),
        ("[" * 100_000, "nested deeper than 50 levels"),
        ("a: " + "{a: " * 60 + "1" + "}" * 60, "nested deeper than 50 levels"),
        (f"threads: {'9' * 5000}", "'threads': inf is no finite number"),
        (f"threads: !!int {'9' * 5000}", "not valid YAML"),
        ('cache: "a\\0b"', "'cache': holds U+0000, which no file can; remove it"),
        ('benchmarks: {gsm8k: {initial_prompt: "\\ud800"}}', "initial_prompt': holds U+D800"),
        ("run: [[main]]", "'run': no experiment ['main']; did you mean main?"),
        ("run: {main: 1}", "config key 'run.str': Input should"),
        ("run: 3", "config key 'run.str': Input should"),
        (f"cache: {'a' * 300}", "cache: a name has at most 200 bytes"),
        (f"results: {'a/' * 900}", "results: a name has at most 200 bytes and a path 1,000"),
        (f"experiments: {{{'a' * 300}: null}}", ""),
        (bomb(9), "more than 100,000 values, with aliases written out"),
        ("? [a]\n: 1", "line 1: a key must be a word"),
        ("3: 1", "3 is no name of a key"),
        ("threads: !!set {1}", "'threads': set is no value of a config"),
        ("threads: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("experiments: {main: {variants: {sft: {=cmd|: {epochs: 1}}}}}", "=cmd|': String should match pattern"),
        ("models: {generators: {my gen: {path: 'nano:generator'}}}", "my gen': String should match pattern"),
        ("- a", "mine.yaml: must be a mapping of keys"),
        ("threads: %", "line 1: not valid YAML"),
        ("budgets:\n\tdefault: 1", "indent with blanks, not with tabs"),
    ],
)
def test_a_preset_that_cannot_be_read_is_one_line_with_its_place(
    text: str | bytes, says: str, preset: Callable[[str | bytes], Config]
) -> None:
    mine = text if isinstance(text, bytes) or text.startswith(("extends", "[", "-")) else f"{text}\nextends: base\n"
    if not says:
        assert preset(mine)
        return
    with pytest.raises(UserError) as error:
        preset(mine)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_byte_order_mark_is_no_part_of_a_preset(preset: Callable[[bytes], Config]) -> None:
    assert preset(b"\xef\xbb\xbfextends: base\nthreads: 3\n").threads == 3


def test_aliases_and_merged_keys_are_read(preset: Callable[[str], Config]) -> None:
    config = preset(
        "extends: base\nbenchmarks:\n  gsm8k: &rows {sizes: {test: 5}}\n  math: {<<: *rows, split_seed: 2}\n"
    )
    assert config.benchmarks["math"].sizes.test == 5
    assert config.benchmarks["math"].split_seed == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"\xff", "not UTF-8 text"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"threads": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b"{", "line 1: not valid JSON"),
        (b"[]", "config.json: config: must be a mapping of keys"),
        (b"null", "config.json: config"),
        (b'{"threads": NaN}', "config.json: config key 'threads': nan is no finite number"),
    ],
)
def test_a_config_file_that_cannot_be_read_is_one_line_with_its_name(tmp_path: Path, text: bytes, says: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(UserError) as error:
        read_config(path)
    assert str(path) in str(error.value)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["preset=../presets/smoke"], "unknown preset '../presets/smoke'"),
        (["preset=smoke", "methods.metatuner_j.settings.rnk=4"], "unknown setting 'rnk' of method metatuner_j"),
        (["preset=smoke", "pack=1", "pack=2"], "pack: given twice; keep one"),
        (["preset=smoke", ".".join("a" * 2000) + "=1"], "nested deeper than 50 levels"),
        (["preset=smoke", "run=[main, *x"], "run, line 1: not valid YAML"),
    ],
)
def test_config_refuses_in_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", *words]) == 2
    said: Any = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert says in line


def test_resume_removes_what_this_run_left_unfinished_and_nothing_else(tmp_path: Path) -> None:
    config = fake_config(tmp_path / "here").model_copy(update={"cache": str(tmp_path / "cache")})
    left = ["here/.scores.csv.4711.tmp", "here/cells/.0123456789abcdef.ab_cd123.tmp/predictions.jsonl"]
    left += ["here/packs/fit/.sft-00.json.7.tmp", "cache/models/.actor-0.abcdefgh.tmp/config.json"]
    own = ["here/.mine.tmp", "here/notes/.a.1.tmp", "cache/.b.1.tmp", "other/.scores.csv.4711.tmp", "here/scores.csv"]
    for name in left + own:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    within = tmp_path / "here/cells/.0123456789abcdef.ab_cd123.tmp/.manifest.json.8.tmp"
    within.write_text("x")
    found = {path.relative_to(tmp_path).as_posix() for path in unfinished(Layout(config)) if path != within}
    assert found == {name.partition(".tmp")[0] + ".tmp" for name in left}
    remove_unfinished(Layout(config))
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == set(own)


def test_unfinished_files_are_known_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(fake_config(tmp_path))
    seen: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.extend(unfinished(layout)))
    write_text(layout.scores, "x")
    with complete_folder(layout.cell("0" * 16)):
        seen += unfinished(layout)
    assert [path.parent.name for path in seen] == [tmp_path.name, "cells"]
    assert unfinished(layout) == []
