r"""MATH scores: what is extracted, what counts as equivalent, and that no expression can do harm.

The independent truth for equivalence is lm-evaluation-harness's hendrycks_math `is_equiv`, which compares text after a
fixed list of rewrites. Every answer on which the two differ is listed with the reason.
"""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from metatuner.harness.benchmarks import get_benchmark
from metatuner.harness.metrics import equivalence_worker
from metatuner.harness.metrics.equivalence import Comparer, Limits, Verdict, equivalent
from metatuner.harness.metrics.statements import boxes

MATH = get_benchmark("math")
ROW = MATH.row({"id": "a", "problem": "?", "level": "1", "type": "t", "solution": r"$\boxed{x+11}$"})


@pytest.fixture(scope="module")
def comparer() -> Iterator[Comparer]:
    """A worker with a short time limit, so that hostile input is stopped soon."""
    comparer = Comparer(Limits(cpu_seconds=0.5))
    yield comparer
    comparer.close()


def equal(answer: str, gold: str) -> bool:
    (verdict,) = equivalent([(answer, [gold])])
    assert verdict.stopped is None
    return verdict.equal


# ---- extraction ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "extracted"),
    [
        (r"so $\boxed{42}$", "42"),
        (r"\boxed{1}, or rather \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{ 12 x }", "12 x"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed 5$", "5"),
        (r"\fbox{7}", "7"),
        (r"\boxed{3} and then \boxed{4", "3"),
        (r"\boxed{3} and \boxed{4}", "3, 4"),
        (r"\fbox{3} or \boxed{4} \fbox{5}", "4"),
        (r"put it in \boxed{}: the answer is $7$", "7"),
        (r"\boxed{\text{a } b} c}", r"\text{a } b"),
        ("The answer is 5.", "5"),
        ("The answer is 2.5. Yes", "2.5"),
        ("The answer is: $x+1$", "x+1"),
        ("The final answer is $7$.\nDone", "7"),
        (r"\boxed{4", "4"),
        ("it is 5", "5"),
        ("The answer is", None),
        ("", None),
    ],
)
def test_the_last_box_counts_else_the_stated_answer_else_the_last_result(
    completion: str, extracted: str | None
) -> None:
    assert MATH.extract(completion, ROW) == extracted


def test_an_empty_box_answers_a_row_with_an_empty_reference_only() -> None:
    empty = MATH.row({"id": "a", "problem": "?", "level": "1", "type": "t", "solution": r"So $\boxed{}$ in 3."})
    assert MATH.extract(empty.target, empty) == ""
    assert MATH.extract(empty.target, ROW) == "3"


def test_a_box_around_a_megabyte_of_open_braces_is_searched_in_linear_time() -> None:
    def seconds(braces: int) -> float:
        start = time.process_time()
        assert boxes(r"\boxed" + "{" * braces) == []
        return time.process_time() - start

    assert seconds(1_000_000) < 5  # quadratic, it were days


# ---- equivalence -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("0.5", r"\frac{1}{2}"),
        ("2/4", r"\frac12"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        ("(x+1)(x-1)", "x^2-1"),
        ("2+x", "x+2"),
        ("12x", "12 x"),
        (r"\{3,1,2\}", r"\{1,2,3\}"),
        ("10,000", "10000"),
        ("007", "7"),
        (r"\text{Monday}", r"\text{Monday}."),
        ("5", "x=5"),
    ],
)
def test_expressions_that_mean_the_same_are_equivalent(answer: str, gold: str) -> None:
    assert equal(answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("0.5", r"\frac{1}{3}"),
        ("x-1", "1-x"),
        ("(2,1)", "(1,2)"),
        ("[0,1)", "(0,1)"),
        ("12 x", "12 y"),
        ("", "7"),
        ("7", ""),
        ("12", "1 2"),
        (r"\text{Monday}", r"\text{Sunday}"),
        ("9007199254740993", "9007199254740992"),
    ],
)
def test_expressions_that_mean_something_else_are_not_equivalent(answer: str, gold: str) -> None:
    assert not equal(answer, gold)


def test_any_reference_may_match() -> None:
    assert equivalent([("2", ["1", r"\frac{4}{2}"]), ("3", ["1", "2"])]) == [Verdict(True), Verdict(False)]


GOLDS = [
    *["7", "-3", "42", "1000", "0.75", r"\frac{1}{2}", r"-\frac{5}{3}", r"\frac{\sqrt{3}}{2}", r"2\sqrt{5}", r"\pi"],
    *[r"12\pi", r"\log_2 3", "3+4i", "x^2+3x+2", "(x+1)(x-4)", "x=4", "(2,-3)", "[0,5)", r"(-\infty,2)\cup(3,\infty)"],
    *[r"\{1,2,3\}", "1,2,3", r"90^\circ", r"25\%", r"10\text{ cm}", r"\text{Monday}"],
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
]
PERTURBATIONS: dict[str, Callable[[str], str]] = {
    "same": lambda gold: gold,
    "blanks": lambda gold: f" {gold.replace(',', ' , ').replace('+', ' + ')} ",
    "dfrac": lambda gold: gold.replace(r"\frac", r"\dfrac"),
    "left right": lambda gold: gold.replace("(", r"\left(").replace(")", r"\right)"),
    "thin space": lambda gold: gold.replace(",", r",\!"),
    "minus": lambda gold: f"-{gold}",
    "plus one": lambda gold: f"{gold}+1",
    "named": lambda gold: f"y={gold}",
    "unit": lambda gold: rf"{gold}\text{{ meters}}",
    "bare unit": lambda gold: f"{gold} meters",
    "full stop": lambda gold: f"{gold}.",
    "dollars": lambda gold: f"${gold}$",
    "box": lambda gold: rf"\boxed{{{gold}}}",
    "times one": lambda gold: rf"1\cdot {gold}",
    "parentheses": lambda gold: f"({gold})",
    "about": lambda gold: rf"\approx {gold}",
}
ALL = frozenset(GOLDS)
TUPLES = frozenset({"(2,-3)", "[0,5)", r"(-\infty,2)\cup(3,\infty)"})
VECTOR = r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"
DISAGREEMENTS: list[tuple[str, frozenset[str], bool, str]] = [
    # (perturbation, golds, whether we call it equivalent, why; is_equiv says the opposite)
    ("dollars", ALL, True, "delimiters are no part of the expression; their caller strips them before is_equiv"),
    ("box", ALL, True, "nor is a box"),
    (
        "bare unit",
        ALL - {r"10\text{ cm}", r"\text{Monday}"},
        True,
        "a unit is as good outside \\text as inside it, where both ignore it",
    ),
    ("unit", frozenset({r"\text{Monday}"}), False, "they cut at the last \\text: a word becomes empty, equal to any"),
    (
        "unit",
        frozenset({r"10\text{ cm}"}),
        True,
        "units are ignored, also two of them; they raise and compare raw text",
    ),
    ("full stop", ALL - {r"10\text{ cm}"}, True, "a full stop is no part of the expression"),
    ("plus one", frozenset({r"10\text{ cm}"}), False, "they cut at the unit and lose the +1"),
    ("minus", frozenset({"x=4"}), False, "-x=4 is x=-4; they drop a short left side"),
    ("times one", ALL - TUPLES - {r"\{1,2,3\}", r"\text{Monday}", VECTOR}, True, "1 times anything is itself"),
    ("parentheses", ALL, True, "parentheses around a whole answer are ignored, also around a list"),
    ("about", ALL - TUPLES - {"x=4", r"\{1,2,3\}", r"\text{Monday}", VECTOR}, True, "the relation sign is ignored"),
]


def test_scores_agree_with_lm_eval_but_for_the_listed_reasons() -> None:
    from lm_eval.tasks.hendrycks_math.utils import is_equiv

    listed = {(name, gold): ours for name, golds, ours, _ in DISAGREEMENTS for gold in golds}
    found = {}
    for name, perturb in PERTURBATIONS.items():
        for gold in GOLDS:
            ours, theirs = equal(perturb(gold), gold), is_equiv(perturb(gold), gold)
            if ours != theirs:
                found[name, gold] = ours
    assert found == listed


# ---- limits ----------------------------------------------------------------------------------------------------

STOPPED_BY_TIME = {
    "tower": "9^{9^{9^{9}}}",
    "factorial": "(10^{9})!",
    "factorials": "((((9!)!)!)!)!",
    "nested": "(" * 900 + "1" + ")" * 900,
    "braces": "{" * 1000,
    "binomial": r"\binom{10^{9}}{5\cdot10^{8}}",
    "sum": r"\sum_{n=1}^{10^{12}} n^n",
    "exponent": "7^{" + "7" * 1000 + "}",
}


@pytest.mark.parametrize("expression", STOPPED_BY_TIME.values(), ids=STOPPED_BY_TIME)
def test_an_endless_expression_is_stopped_counted_and_scores_nothing(comparer: Comparer, expression: str) -> None:
    assert comparer.compare(expression, "x+4") == Verdict(False, "time")
    assert comparer.compare("4+x", "x+4") == Verdict(True)


def test_a_megabyte_is_not_even_compared(comparer: Comparer) -> None:
    assert comparer.compare("1" * 1_000_000, "4") == Verdict(False, "length")


@pytest.mark.parametrize(
    "code",
    [
        "__import__('os').system('touch {marker}')",
        "exec(\"open('{marker}','w')\")",
        r"\text{{__import__('pathlib').Path('{marker}').touch()}}",
        r"\write18{{touch {marker}}}",
        "$(touch {marker})",
        "(1).__class__.__base__.__subclasses__()",
        "\n4\n",
        "\x00\ud800",
    ],
)
def test_an_expression_is_never_executed(comparer: Comparer, code: str, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    verdict = comparer.compare(code.format(marker=marker) if "{marker}" in code else code, "5")
    assert not verdict.equal
    assert not marker.exists()


def test_a_worker_out_of_memory_is_replaced_and_the_reason_recorded() -> None:
    comparer = Comparer(Limits(memory_bytes=1))  # what it holds when it starts is all it ever has
    try:
        verdicts = [comparer.compare("x+1", "1+x"), comparer.compare("7", "8")]
    finally:
        comparer.close()
    assert {verdict.stopped for verdict in verdicts} <= {"memory", "crash"}
    assert not any(verdict.equal for verdict in verdicts)


def test_a_worker_that_was_killed_between_two_comparisons_costs_no_score() -> None:
    before, comparer = psutil.Process().children(), Comparer()
    try:
        assert comparer.compare("x+1", "1+x").equal
        (worker,) = [child for child in psutil.Process().children() if child not in before]
        worker.kill()
        deadline = time.monotonic() + 60
        while worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.01)
        assert comparer.compare("x+1", "1+x") == Verdict(True)
        (other,) = [child for child in psutil.Process().children() if child not in before]
        assert other != worker
    finally:
        comparer.close()
    assert not other.is_running()


@pytest.mark.parametrize("whole", [True, False], ids=["worker and fork", "fork alone"])
def test_a_worker_that_is_killed_during_a_comparison_repeats_it(whole: bool) -> None:
    before = psutil.Process().children(recursive=True)
    comparer = Comparer(Limits(cpu_seconds=600))
    try:
        comparer.compare("x+1", "1+x")
        (worker,) = [child for child in psutil.Process().children() if child not in before]
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(comparer.compare, "x+2", "2+x")
            for process in [*([worker] if whole else []), *worker.children()]:
                process.kill()
            assert found.result(timeout=60) == Verdict(True)
        endless = threading.Thread(target=comparer.compare, args=("(10^{9})!", "x"))
        endless.start()
        killed = list(before)
        for _ in range(2):  # once repeated, then given up: "crash"
            killed.append(until(lambda: busy(psutil.Process().children(recursive=True), killed)))
            killed[-1].kill()
        endless.join(60)
        assert not endless.is_alive()
        assert comparer.compare("x+3", "3+x") == Verdict(True)
    finally:
        comparer.close()


def until(find: Callable[[], psutil.Process | None]) -> psutil.Process:
    deadline = time.monotonic() + 60
    while (found := find()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def busy(processes: list[psutil.Process], before: list[psutil.Process]) -> psutil.Process | None:
    """The fork that computes: it has used processor time."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process not in before and process.parent() != psutil.Process() and process.cpu_times().user > 0.2:
                return process
    return None


def test_the_worker_does_not_import_torch() -> None:
    probe = (
        'import runpy, sys; sys.argv = [\'w\', \'{"cpu_seconds": 5, "wall_seconds": 5, "memory_bytes": 2147483648}\'];'
        f"runpy.run_module({equivalence_worker.__name__!r}, run_name='__main__');"
        "names = {name.split('.')[0] for name in sys.modules};"
        "sys.exit(bool(names & {'torch', 'transformers', 'lm_eval', 'datasets'}))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", probe], input='["x+1", "1+x"]\n', capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.split()) == (0, [equivalence_worker.READY, "true"])


def test_a_batch_counts_what_was_stopped_and_scores_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    from metatuner.harness.metrics import equivalence

    comparer = Comparer(Limits(cpu_seconds=2))
    monkeypatch.setattr(equivalence, "_comparer", comparer)
    try:
        scored = MATH.score_all(["11+x", "(10^{9})!", None, "x+11", "x+12"], [ROW] * 5)
    finally:
        comparer.close()
    assert [one.metrics["accuracy"] for one in scored] == [1, 0, 0, 1, 0]
    assert [one.stopped for one in scored] == [None, "time", None, None, None]
