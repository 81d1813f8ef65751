"""Random search: the trials of one subject on one benchmark, what they build on, and the winners of all searches."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from metatuner import progress
from metatuner.cost.assumptions import Assumptions
from metatuner.cost.predicted import tflop_of
from metatuner.errors import UserError, suggest
from metatuner.files import read_json, write_json
from metatuner.harness.rows import Row, read_rows
from metatuner.hashing import ROOT, git_state
from metatuner.plan import Plan, Winner
from metatuner.plan.winners import write_winners
from metatuner.run.finals import Tried, at_edge, finals
from metatuner.run.packs import REMEDY, watched, write_outcomes
from metatuner.run.workshop import Workshop
from metatuner.supervision import Steps


def search(shop: Workshop, subject: str, benchmark: str, steps: Steps) -> None:
    """Try settings of one subject (a method, or METHOD.VARIANT) on one benchmark's tune rows; write the trials."""
    plan, layout = shop.plan, shop.layout
    if (subject, benchmark) not in plan.searches.all:
        known = [f"{name} on {where}" for name, where in plan.searches.all]
        wanted = f"{subject} on {benchmark}"
        raise UserError(f"nothing to tune for {wanted}; {suggest(wanted, known)}")
    shop.check_splits([benchmark], ["pool", "tune"])
    rows = read_rows(layout.data(benchmark) / "tune.jsonl")
    tried = Tried(subject, benchmark, partial(_trial, shop, subject, benchmark, rows=rows, steps=steps), len(rows))
    keeps = within_budget(plan, subject, benchmark)
    trials = plan.searches.trials(subject, benchmark, keeps)
    countdown = progress.Countdown(len(trials), f"trials of {subject} on {benchmark}")
    found = []
    for over in trials:
        found.append({"settings": over, **tried.once(over)})
        countdown.step()
    key = plan.settings.winner_key(subject, benchmark)
    record = {"method": subject, "benchmark": benchmark, "key": key, "trials": found}
    if plan.config.tuning.finalists > 1:
        record |= finals(tried, found, plan, keeps)
    write_json(layout.tune(subject, benchmark), record)
    steps.finish()


SAFE = 0.95
"""Settings are drawn up to this share of the budget: predictions are of mean lengths, and seeds differ."""


def within_budget(plan: Plan, subject: str, benchmark: str) -> Callable[[dict[str, Any]], bool]:
    """Whether the predicted compute of settings keeps the budget of the subject's method.

    All do if nothing can be predicted: fits then end at the limit. UserError if neither the preset's own settings nor
    any that a search draws keep the budget.
    """
    method = subject.partition(".")[0]
    limit = plan.settings.budget(method).limits((benchmark,)).get("tflop")
    if limit is None:
        return lambda over: True
    assumed = Assumptions.read(ROOT / plan.config.forecast)
    least: list[float] = []
    try:
        tflop_of(plan, assumed, plan.searches.fit(subject, benchmark, {}))
    except UserError as error:
        progress.say(f"{subject} on {benchmark}: its compute is not predicted, so all settings are tried: {error}")
        return lambda over: True

    def keeps(over: dict[str, Any]) -> bool:
        predicted = tflop_of(plan, assumed, plan.searches.fit(subject, benchmark, over))
        least.append(predicted or 0.0)
        return predicted is None or predicted <= SAFE * limit

    if not plan.searches.trials(subject, benchmark, keeps):
        name, needed = plan.settings.budget_name(method), min(least) / SAFE
        raise UserError(
            f"budgets.{name}.tflop: {limit:g} is less than any settings of {subject} on {benchmark} are predicted to "
            f"need, {needed:.3g} at least; raise it, or extend {plan.settings.place(subject, 'search')}"
        )
    return keeps


def warm_up(shop: Workshop, benchmark: str, steps: Steps) -> None:
    """Fit what the searches on one benchmark build on, so that parallel searches need not each fit it.

    If such a fit fails, the trials that build on it will say so; all other trials continue.
    """
    shop.check_splits([benchmark], ["pool"])
    found = [
        watched(steps, fit.key, partial(shop.fit, fit, share=False), shop.patience(fit)["seconds"])
        for fit in shop.plan.searches.needs(benchmark)
    ]
    for outcome in found:
        if outcome.status != "ok":
            progress.say(f"{outcome.status}: {outcome.key}: {outcome.reason}")
    write_outcomes(shop.layout.pack("tune", benchmark), found)
    steps.finish()


def _trial(
    shop: Workshop,
    subject: str,
    benchmark: str,
    over: dict[str, Any],
    seed: int | None,
    *,
    rows: Sequence[Row],
    steps: Steps,
) -> dict[str, Any]:
    """One trial; it is computed only if its score is not stored yet. A broken file counts as none."""
    fit = shop.plan.searches.fit(subject, benchmark, over, seed)
    path = shop.layout.trial(fit.key)
    if path.is_file():
        with suppress(UserError):
            stored = read_json(path, REMEDY)
            if isinstance(stored, dict) and stored.keys() >= {"score", "tflop", "status", "reason"}:
                return stored
    # A trial fits and answers, each within its limit; what it builds on was made before (`warm_up`).
    seconds = shop.patience(fit)["seconds"]
    result = {
        "score": None,
        "tflop": None,
        **steps.run(fit.key, lambda: shop.trial(fit, rows), seconds and 2 * seconds),
    }
    if result["status"] == "ok":
        write_json(path, result)
    return result


def store_winners(plan: Plan) -> bool:
    """Store the winners of all finished searches in the preset's file. Returns whether each had a successful trial.

    A search that no longer matches the preset replaces nothing. A winner that builds on another method's winner expires
    when that winner changes; the log names the searches to repeat.
    """
    path = plan.config.tuning.winners
    if path is None:
        raise UserError("config key 'tuning.winners' is null; name the file that winners go to")
    stored, lost = dict(plan.settings.winners), 0
    for subject, benchmark in plan.searches.all:
        file = plan.layout.tune(subject, benchmark)
        if not file.is_file():
            continue
        record = read_json(file, f"{REMEDY}, with the target `tune`")
        if not isinstance(record, dict) or not record.keys() >= {"key", "method", "benchmark", "trials"}:
            raise UserError(f"{file}: no record of a search; {REMEDY}, with the target `tune`")
        if record["key"] != plan.settings.winner_key(subject, benchmark):
            progress.say(f"{file}: a search of other settings, rows, models or limits; run the `tune` target again")
            continue
        winner = _winner(plan, record)
        if winner is None:
            which = "finalist failed with one of the seeds" if record.get("finalists") == [] else "trial failed"
            log = plan.layout.logs / "tune" / f"{subject}-{benchmark}.log"
            progress.say(f"{file}: every {which}; change methods.{subject}.search, and see {log}")
            file.unlink()  # so that the next `tune` tries again
            lost += 1
            continue
        before = stored.get((subject, benchmark))
        stamped = replace(winner, commit=before.commit, date=before.date) if before else winner
        if stamped != before:
            commit = git_state(ROOT)["commit"]
            stamped = replace(winner, commit=commit, date=datetime.now(UTC).date().isoformat())
        stored[subject, benchmark] = stamped
        edge = f"; at the edge of its range, widen it: {', '.join(winner.at_edge)}" if winner.at_edge else ""
        shown = winner.settings or "the preset itself"
        progress.say(f"{subject} on {benchmark}: {shown}, {winner.score:.1f}{edge}")
    write_winners(ROOT / path, stored.values())
    plan = Plan(plan.config)
    for subject, benchmark in plan.searches.all:
        found = plan.settings.winners.get((subject, benchmark))
        if found is not None and not plan.settings.is_current(found):
            progress.say(f"{subject} on {benchmark}: expired; run `tune` again")
    return lost == 0


def _winner(plan: Plan, record: Mapping[str, Any]) -> Winner | None:
    """The winner of a finished search; None if every trial failed, or every finalist on some seed."""
    done = [trial for trial in record["trials"] if trial["score"] is not None]
    ranked = record.get("finalists", sorted(done, key=lambda trial: -trial["score"]))  # the first of equal scores
    if not ranked:
        return None
    subject = record["method"]
    best, *others = ranked
    edges = at_edge(plan.settings.searched(subject, best["settings"]), plan.settings.subject(subject).search)
    return Winner(
        method=subject,
        benchmark=record["benchmark"],
        settings=best["settings"],
        score=best["score"],
        trials=len(record["trials"]),
        failed=len(record["trials"]) - len(done),
        at_edge=tuple(name for name in edges if name not in record.get("beyond", ())),
        key=record["key"],
        rival=others[0]["settings"] if others else None,
        rival_score=others[0]["score"] if others else None,
        finalists=record.get("finalists", []),
        dearest=max((trial["tflop"] for trial in [*done, *ranked] if trial.get("tflop") is not None), default=None),
    )
