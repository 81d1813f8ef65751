"""The report: complete, self-contained, and inert whatever text it holds."""

import base64
import csv
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from metatuner.analysis.claims import claims
from metatuner.analysis.figures import figures_of
from metatuner.analysis.report import report
from metatuner.analysis.report.data import POINTS, browser, cells, costs, packed, thinned
from metatuner.analysis.results.provenance import write_provenance
from metatuner.analysis.results.scores import read_query_scores, write_scores
from metatuner.analysis.tables import tables_of
from metatuner.config import Config
from metatuner.errors import UserError
from tests.analysis.test_appendix import run
from tests.analysis.test_costs import HEADER
from tests.toys.browser import PROGRAM, Browser, scratch
from tests.toys.results import few_draws, judge_parts, plan_rows

MARK = "document.body.setAttribute('data-hacked', 'yes')"
HOSTILE = (
    f'<img src=x onerror="{MARK}"></script><script>{MARK}</script><!-- {{{{7*7}}}} \u2028 =1+1 | **bold** `x` '
    f"\\input{{x}} javascript:{MARK} &lt;b&gt; \ufeff $\\frac{{$ and $x$"
)
FORGED = (
    f"{HOSTILE}\u2028# Table 1\u2029\n# Table 2\r\n\n| a |\n| --- |\x85## Claims\n</table></section><h2>Forged</h2>"
)
"""A kind of query that would be a heading, wherever a line begins."""
REASON = f"=ValueError: {HOSTILE}"
"""Of the cell that failed."""
needs_browser = pytest.mark.skipif(
    PROGRAM is None, reason="no Chromium here: install the package chromium to run this test"
)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Few draws, for the whole module's one report."""
    with pytest.MonkeyPatch.context() as patch:
        few_draws(patch)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, str]:
    """A finished run whose every text is hostile, and its report."""
    root = tmp_path_factory.mktemp("results")
    config = run(root)
    rows = plan_rows(config)
    lost = rows[-1]["cell"]
    shutil.rmtree(root / "cells" / lost)
    write_scores(rows, {lost: ("failed", REASON)}, root)
    for row in rows[:-1]:
        path = root / "cells" / row["cell"] / "predictions.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            record["kind"] = FORGED
            record |= {"prompt": f"prompt {HOSTILE}", "completion": HOSTILE, "extracted": None, "gold": [HOSTILE]}
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        cost = {"seconds": 1.5, "peak_memory_bytes": 10**6, "peak_gpu_memory_bytes": 0, "flops": 2e12}
        cost |= {"lm_calls": 7, "trained_tokens": 9, "prompt_tokens": 8, "generated_tokens": 6}
        (root / "cells" / row["cell"] / "cost.json").write_text(json.dumps(cost))
        (root / "cells" / row["cell"] / "cell.json").write_text(json.dumps({"fit": row["fit"]}))
        fit = root / "fits" / row["fit"]
        fit.mkdir(parents=True)
        (fit / "cost.json").write_text(json.dumps(cost))
        events = [{"event": "step", "step": i, "loss": 1 / (i + 1)} for i in range(5)]
        events += [{"event": "diverged", "loss": float("nan")}]
        events += [{"event": "late", "loss": value} for value in (2.0, float("inf"), 1.0)]
        events.append({"event": HOSTILE, "text": HOSTILE})
        (fit / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    for name in config.benchmarks:
        path = root / "data" / name / "test.jsonl"
        queries = [json.loads(line) for line in path.read_text().splitlines()]
        for query in queries:
            query |= {"query": f"q {HOSTILE}", "kind": FORGED}
        path.write_text("".join(json.dumps(query) + "\n" for query in queries))
    (root / "efficiency.csv").write_text(f"{HEADER}\nmetatuner_j,math,0,2,3,1,2,2,0.5,0.4,0.6,1.5,9,9,cpu\n")
    for make in (*tables_of(config).values(), *figures_of(config).values()):
        make(config)
    with pytest.MonkeyPatch.context() as patch:
        judge_parts(patch)
        claims(config)
    write_provenance(config, {"note": HOSTILE}, root / "provenance.json")
    return config, report(config).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags, attributes and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_it_loads_nothing_from_anywhere_and_runs_its_own_script_alone(made: tuple[Config, str]) -> None:
    _, text = made
    page = Page(text)
    for tag, attributes in page.tags:
        source = attributes.get("src")
        assert source is None or source.startswith("data:image/png;base64,"), (tag, source)
        target = attributes.get("href")
        assert target is None or re.match(r"#\w+|(tables|figures)/\w+\.\w+$", target), (tag, target)
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    (policy,) = [each["content"] for tag, each in page.tags if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_hostile_text_arrives_as_text(made: tuple[Config, str]) -> None:
    config, text = made
    page = Page(text)
    assert "img" not in {tag for tag, each in page.tags if "onerror" in each}
    assert page.text.count(" ".join(REASON.split())) >= 3  # of the holes, the table and the claims
    assert "'=ValueError" not in page.text  # as a spreadsheet has it
    blocks = dict(re.findall(r'<script type="application/octet-stream" id="([\w-]+)">([\w+/=]+)</script>', text))
    assert set(blocks) == {*(f"queries-{name}" for name in config.benchmarks), "cells-data"}
    data = {name: json.loads(zlib.decompress(base64.b64decode(block))) for name, block in blocks.items()}
    assert HOSTILE in data["queries-gsm8k"]["texts"]
    assert data["queries-gsm8k"]["queries"][0] == f"q {HOSTILE}"
    (hole,) = [hole for name in config.benchmarks for hole in data[f"queries-{name}"]["holes"]]
    assert hole["reason"].startswith("=ValueError: <img")
    assert all(hole["method"] in data[name]["methods"] for name in blocks if name != "cells-data")


def test_no_text_forges_a_heading_or_a_table(made: tuple[Config, str]) -> None:
    config, text = made
    headings = re.findall(r"<(h\d|summary|title|caption)\b[^>]*>(.*?)</\1>", text, re.DOTALL)
    tables = [
        each
        for path in sorted((Path(config.results) / "tables").glob("*.json"))
        for each in json.loads(path.read_text(encoding="utf-8"))
    ]
    settled = ["How each is settled", "Every component test"]
    folded = [html.unescape(words) for tag, words in headings if tag == "summary"]
    assert sorted(folded) == sorted([*(each["title"] for each in tables), *settled])
    assert [words for tag, words in headings if tag == "h2"] == [
        *("Overview", "Claims", "Tables", "Figures", "Queries", "Cells", "Cost", "Appendix", "Provenance")
    ]
    others = 7  # the first again, holes, claims and their two, cells, costs
    assert Counter(tag for tag, _ in Page(text).tags)["table"] == len(tables) + others
    assert "# Table 2" in Page(text).text  # shown, as text


def test_a_hole_is_shown_with_its_reason_and_no_score(made: tuple[Config, str]) -> None:
    config, text = made
    block = re.findall(r'id="cells-data">([\w+/=]+)<', text)[0]
    cells = json.loads(zlib.decompress(base64.b64decode(block)))
    (hole,) = [cell for cell in cells if cell["status"] != "ok"]
    assert hole["score"] is None
    assert hole["reason"].startswith("=ValueError: <img")
    assert len(cells) == 2 * len(config.benchmarks)
    assert cells[0]["curves"] == {"late: loss": [2.0, "Infinity", 1.0], "step: loss": [1 / (i + 1) for i in range(5)]}
    assert cells[0]["fit_cost"]["lm_calls"] == 7


def test_it_says_which_world_was_measured_and_what_is_published(made: tuple[Config, str]) -> None:
    _, text = made
    page = Page(text)
    assert "rankings are no evidence about the paper" in " ".join(page.text.split())
    assert "secondary sources" in page.text
    headings = [each["id"] for tag, each in page.tags if tag == "section"]
    sections = ["overview", "claims", "tables", "figures", "queries", "cells", "cost", "appendix", "provenance"]
    assert headings == sections


def test_every_table_as_csv_says_which_world_it_is_of(made: tuple[Config, str]) -> None:
    config, _ = made
    tables = sorted((Path(config.results) / "tables").glob("*.csv"))
    assert len(tables) >= 9
    for path in tables:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["world"] for row in rows} <= {"nano"}, path.name


def test_a_table_has_its_families_its_best_in_bold_and_its_notes(made: tuple[Config, str]) -> None:
    config, text = made
    (shown,) = json.loads((Path(config.results) / "tables" / "table_1.json").read_text(encoding="utf-8"))
    (part,) = re.findall(r'<section id="overview">(.*?)</section>', text, re.DOTALL)
    page = Page(part)
    assert [each["class"] for tag, each in page.tags if tag == "tr" and "class" in each] == ["family"] * 2
    best = [span for row in shown["rows"] for cell in row for span, style in cell if style == "bold"]
    assert re.findall(r"<td><strong>(.*?)</strong>", part) == best != []
    for note in shown["notes"]:
        assert " ".join("".join(span for span, _ in note).split()) in " ".join(page.text.split())


def test_the_same_files_give_the_same_bytes(made: tuple[Config, str]) -> None:
    config, text = made
    assert report(config).read_text(encoding="utf-8") == text


def test_a_missing_cell_is_named(made: tuple[Config, str], tmp_path: Path) -> None:
    config, _ = made
    copy = tmp_path / "copy"
    shutil.copytree(config.results, copy)
    moved = config.model_copy(update={"results": str(copy)})
    next((copy / "cells").glob("*/predictions.jsonl")).unlink()
    with pytest.raises(UserError, match=r"no file .*predictions.jsonl; run `snakemake"):
        report(moved)


@pytest.mark.parametrize("folder", ["tables/table_1.json", "figures/figure_main.png"])
def test_a_missing_table_or_figure_is_named(made: tuple[Config, str], tmp_path: Path, folder: str) -> None:
    config, _ = made
    copy = tmp_path / "copy"
    shutil.copytree(config.results, copy)
    (copy / folder).unlink()
    with pytest.raises(UserError, match=rf"no file .*{folder}; (run `snakemake|make it again with `metatuner table)"):
        report(config.model_copy(update={"results": str(copy)}))


@pytest.mark.slow
@needs_browser
def test_in_a_browser_nothing_of_it_runs_and_queries_and_cells_are_shown(
    made: tuple[Config, str],
) -> None:
    config, _ = made
    key = next(row["cell"] for row in plan_rows(config) if row["method"] == "metatuner_j")
    address = (Path(config.results) / "report.html").resolve().as_uri() + f"#cell-{key}"
    command = [str(PROGRAM), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    with scratch() as folder:
        environment = {**os.environ, "TMPDIR": folder}
        done = subprocess.run([*command, address], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    body = re.search(r"<body[^>]*>", done.stdout)
    assert body is not None
    assert 'data-ready="yes"' in body[0]
    assert "data-hacked" not in body[0]
    page = Page(done.stdout)
    assert not [tag for tag, each in page.tags if tag == "img" and each.get("src") == "x"]
    shown = done.stdout.split('id="q-list"')[1].split('id="q-more"')[0]
    assert Page(f"<div {shown}").text.count(f"prompt {HOSTILE}") >= 2
    counts = re.search(r'id="q-counts"[^>]*>([^<]*)', done.stdout)
    assert counts is not None
    assert re.search(r"right \d+, wrong \d+; against Zero-shot: won \d+, lost \d+, both \d+, neither \d+", counts[1])
    detail = done.stdout.split('id="c-detail"')[1]
    assert "<polyline" in detail
    assert "step: loss" in detail
    assert "3 points, in the order of the log; 1 not finite" in detail
    assert "NaN" not in "".join(re.findall(r'points="([^"]*)"', detail))
    assert re.search(r'id="c-counts"[^>]*>8 of 8 cells\.<', done.stdout)


@pytest.fixture(scope="module")
def page(made: tuple[Config, str]) -> Iterator[Browser]:
    """The report in a browser."""
    config, _ = made
    with Browser() as browser:
        address = (Path(config.results) / "report.html").resolve().as_uri()
        browser.open(address, "document.body?.dataset.ready === 'yes'")
        yield browser


def choose(page: Browser, field: str, value: str, told: str) -> None:
    """Give a field a value, and wait until the counts say so."""
    event = "input" if field.endswith("text") else "change"
    page.run(f"""(() => {{
        const field = document.getElementById({field!r});
        document.getElementById('q-counts').textContent = '';
        field.value = {json.dumps(value)};
        field.dispatchEvent(new Event({event!r}));
    }})()""")
    page.wait(f"document.getElementById('q-counts').textContent.includes({json.dumps(told)})")


@pytest.mark.slow
@needs_browser
def test_queries_are_filtered_and_two_methods_compared_as_their_scores_say(
    made: tuple[Config, str], page: Browser
) -> None:
    config, _ = made
    root = Path(config.results)
    cells = {row["method"]: row["cell"] for row in plan_rows(config) if row["benchmark"] == "gsm8k"}
    own, other = (
        {name: answer.score == 1.0 for name, answer in read_query_scores(root, cells[method]).items()}
        for method in ("metatuner_j", "zero_shot")
    )
    pairs = Counter((own[name], other[name]) for name in own)
    won, lost, both, neither = (pairs[key] for key in ((True, False), (False, True), (True, True), (False, False)))
    assert sum(count > 0 for count in (won, lost, both, neither)) >= 3
    told = f"right {won + both}, wrong {lost + neither}; against Zero-shot: won {won}, lost {lost}, both {both}, "
    choose(page, "q-benchmark", "gsm8k", f"{told}neither {neither}. {len(own)} shown.")
    right, wrong = won + both, lost + neither
    wanted = {"won": won, "lost": lost, "both": both, "neither": neither, "right": right, "wrong": wrong}
    for case, count in wanted.items():
        choose(page, "q-case", case, f". {count} shown.")
    choose(page, "q-case", "all", f". {len(own)} shown.")
    choose(page, "q-text", "no query says this", ". 0 shown.")
    choose(page, "q-text", "JAVASCRIPT:", f". {len(own)} shown.")
    choose(page, "q-text", "", f". {len(own)} shown.")


@pytest.mark.slow
@needs_browser
def test_a_click_on_a_column_sorts_by_number_up_and_then_down(page: Browser) -> None:
    order = """[...document.querySelectorAll('#c-list tr')].map((row) => row.cells[5].textContent)"""
    shown = page.run(order)
    numbers = sorted(float(text) for text in shown if re.fullmatch(r"[\d.]+", text))
    assert len(numbers) > 3
    for wanted in (numbers, numbers[::-1]):
        page.run("document.querySelectorAll('#cells thead th')[5].click()")
        found = [float(text) for text in page.run(order) if re.fullmatch(r"[\d.]+", text)]
        assert found == wanted
    assert sorted(page.run(order)) == sorted(shown)


# ---- its data ------------------------------------------------------------------------------------------------------


def varied(results: Path) -> tuple[Config, list[dict[str, Any]]]:
    """A run of two generators, seeds and experiments, files of rows in other orders, every cost and text another."""
    models = {
        "actor": {"path": "nano:actor"},
        "generators": {name: {"path": f"nano:{name}"} for name in ("large", "small")},
    }
    grid = {"methods": ["zero_shot", "metatuner_j"], "benchmarks": ["gsm8k"], "seeds": [1, 0]}
    variants = {"metatuner_j": {"default": {}, "without_f": {}}}
    experiments = {
        "main": {**grid, "generator": ["large", "small"]},
        "ablation": {**grid, "methods": ["metatuner_j"], "generator": "large", "variants": variants},
    }
    config = run(results, {"models": models, "experiments": experiments})
    rows = plan_rows(config)
    for place, row in enumerate(rows):
        path = results / "cells" / row["cell"] / "predictions.jsonl"
        if (path.parent / "cell.json").is_file():
            continue
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for index, record in enumerate(records):
            record |= {
                "prompt": f"prompt {index % 2}",
                "completion": f"{row['cell']} {record['id']}",
                "extracted": None if index == place else f"{index}",
                "score": round(index / 7 + place / 100, 3),
            }
        shift = place % len(records)
        path.write_text("".join(json.dumps(record) + "\n" for record in records[shift:] + records[:shift]))
        fit = results / "fits" / row["fit"]
        fit.mkdir(parents=True)
        (path.parent / "cell.json").write_text(json.dumps({"fit": row["fit"]}))
        for folder, factor in ((path.parent, 1), (fit, 10)):
            cost = {"seconds": factor * (place + 1.0), "flops": 1e12 * factor * (place + 1), "lm_calls": factor * place}
            cost["trained_tokens"] = 0
            cost |= {"peak_memory_bytes": 10**6, "peak_gpu_memory_bytes": 10**7 * (place % 2)}
            (folder / "cost.json").write_text(json.dumps(cost))
    write_scores_of(results, rows)
    return config, rows


def write_scores_of(results: Path, rows: list[dict[str, Any]]) -> None:
    """metrics.json and scores.csv of the predictions at hand."""
    for row in rows:
        folder = results / "cells" / row["cell"]
        scores = [json.loads(line)["score"] for line in (folder / "predictions.jsonl").read_text().splitlines()]
        told = {"metrics": {"accuracy": sum(scores) / len(scores)}, "primary": "accuracy", "n": len(scores)}
        (folder / "metrics.json").write_text(json.dumps(told))
    write_scores(rows, {}, results)


def test_the_browsers_texts_and_scores_are_those_of_each_row_whatever_the_order_of_the_files(tmp_path: Path) -> None:
    config, rows = varied(tmp_path)
    told = browser(config)["gsm8k"]
    main = [row for row in rows if row["experiment"] == "main" and row["generator"] != "small"]
    assert {cell["key"] for cell in told["cells"]} == {row["cell"] for row in main}
    assert [cell["seed"] for cell in told["cells"]] == [0, 1, 0, 1]
    assert told["methods"] == ["Zero-shot", "MetaTuner-J"]
    assert len(told["texts"]) == len(set(told["texts"]))
    for cell in told["cells"]:
        lines = (tmp_path / "cells" / cell["key"] / "predictions.jsonl").read_text().splitlines()
        records = {record["id"]: record for record in map(json.loads, lines)}
        for index, name in enumerate(told["ids"]):
            for key in ("prompt", "completion", "extracted"):
                place = cell[key][index]
                assert (None if place == -1 else told["texts"][place]) == records[name][key]
            assert cell["score"][index] == records[name]["score"]
    assert told["queries"] == [f"q {index} of gsm8k" for index in range(6)]


def test_a_cell_of_other_rows_than_the_data_is_refused(tmp_path: Path) -> None:
    config, rows = varied(tmp_path)
    path = tmp_path / "cells" / rows[0]["cell"] / "predictions.jsonl"
    path.write_text(path.read_text().replace("gsm8k-3", "gsm8k-9"))
    with pytest.raises(UserError, match=f"cell {rows[0]['cell']} was tested on other rows"):
        browser(config)


def test_a_cell_is_shown_once_with_its_experiments_settings_and_events(tmp_path: Path) -> None:
    config, rows = varied(tmp_path)
    (own,) = [row for row in rows if (row["experiment"], row["variant"], row["seed"]) == ("ablation", "without_f", 1)]
    lines = ["experiment,method,variant,benchmark,generator,tuned,settings"]
    for variant, alpha in (("default", 0.5), ("without_f", 0.25)):
        lines.append(f'ablation,metatuner_j,{variant},gsm8k,large,winner,"{{""alpha"": {alpha}}}"')
    (tmp_path / "settings.csv").write_text("\n".join(lines) + "\n")
    events = [{"event": "joint", "step": step, "loss": 3.0 - step, "done": True} for step in range(3)]
    events += [{"event": "dev", "reward": 0.5}, {"event": "dev", "reward": 0.25}]
    (tmp_path / "fits" / own["fit"] / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    found = {cell["key"]: cell for cell in cells(config)}
    assert found.keys() == {row["cell"] for row in rows}
    for key, cell in found.items():
        assert cell["experiments"] == list(dict.fromkeys(row["experiment"] for row in rows if row["cell"] == key))
    assert any(cell["experiments"] == ["main", "ablation"] for cell in found.values())
    shown = found[own["cell"]]
    assert (shown["tuned"], shown["settings"], shown["method"]) == ("winner", {"alpha": 0.25}, "MetaTuner-J (w/o F)")
    assert shown["curves"] == {"joint: loss": [3.0, 2.0, 1.0]}
    assert shown["events"] == events[3:]
    assert shown["fit_cost"]["seconds"] == 10 * shown["evaluation_cost"]["seconds"]


def test_costs_are_means_over_a_methods_fits_and_over_its_test_queries(tmp_path: Path) -> None:
    config, rows = varied(tmp_path)
    places = {row["cell"]: place for place, row in reversed(list(enumerate(rows)))}
    table = {line[0]: line[1:] for line in costs(config)}
    assert list(table) == ["Zero-shot", "MetaTuner-J"]
    for title, method in (("Zero-shot", "zero_shot"), ("MetaTuner-J", "metatuner_j")):
        own = [
            places[row["cell"]]
            for row in rows
            if (row["experiment"], row["method"]) == ("main", method) and row["generator"] != "small"
        ]
        mean = sum(own) / len(own)
        fits, calls, *_, flops, seconds, peak, evaluation = table[title]
        assert (fits, calls, flops) == ("2", f"{10 * mean:,.0f}", f"{10 * (mean + 1):.3g}")
        assert (seconds, evaluation) == (f"{10 * (mean + 1):.1f}", f"{1000 * (mean + 1) / 6:.1f}")
        assert peak == ("10" if any(place % 2 for place in own) else "1")


# ---- its parts -----------------------------------------------------------------------------------------------------


def test_packing_is_reversible_and_thinning_keeps_both_ends() -> None:
    value: dict[str, Any] = {"b": HOSTILE, "a": [1, None]}
    assert json.loads(zlib.decompress(base64.b64decode(packed(value)))) == value
    assert packed(value) == packed(dict(reversed(value.items())))
    values = [float(each) for each in range(1000)]
    assert len(thinned(values)) == POINTS
    assert (thinned(values)[0], thinned(values)[-1]) == (0.0, 999.0)
    assert thinned([1.0, 2.0]) == [1.0, 2.0]


def test_numbers_that_are_none_are_told_in_words_and_half_a_character_survives() -> None:
    nan, infinity = float("nan"), float("inf")
    block = base64.b64decode(packed({"loss": [nan, -infinity, 1.0], "deep": ({"x": infinity},), "text": "a\ud800b"}))
    value = json.loads(zlib.decompress(block), parse_constant=lambda name: pytest.fail(f"no browser reads {name}"))
    assert value == {"loss": ["NaN", "-Infinity", 1.0], "deep": [{"x": "Infinity"}], "text": "a\ud800b"}
