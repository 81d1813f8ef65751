"""Export what a finished MetaTuner cell makes for one query, for use elsewhere."""

from pathlib import Path

from baselines.metatuner import MetaTunerPolicy
from metatuner import progress
from metatuner.errors import UserError
from metatuner.harness.rows import read_rows
from metatuner.plan import Cell
from metatuner.run.workshop import Workshop


def open_metatuner(shop: Workshop, key: str) -> tuple[Cell, MetaTunerPolicy]:
    """A finished MetaTuner cell and its saved policy; UserError for a cell of another method."""
    cell = shop.finished_cell(key)
    policy = shop.open_policy(cell.fit, share=False)
    if not isinstance(policy, MetaTunerPolicy):
        raise UserError(f"--cell {key} is of {cell.fit.method}; only MetaTuner's has a prompt and a LoRA per query")
    return cell, policy


def export(shop: Workshop, key: str, query: str | None, row: str | None, out: Path) -> str:
    """Write the LoRA that a cell's policy makes for a query, as a PEFT folder.

    Args:
        shop: the preset's workshop.
        key: the cell's key.
        query: the query as the model reads it.
        row: instead of `query`, the id of one of the cell's test rows.
        out: a folder that is empty or does not exist yet.

    Returns:
        The query's prompt.
    """
    if (query is None) == (row is None):
        raise UserError("give either --query or --id")
    cell, policy = open_metatuner(shop, key)
    if query is None:
        shop.check_splits([cell.benchmark], ["test"])
        file = shop.layout.data(cell.benchmark) / "test.jsonl"
        found = [each.query for each in read_rows(file) if each.id == row]
        if not found:
            raise UserError(f"--id {row!r}: no such row in {file}")
        query = found[0]
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out}: this folder holds files already; name a new one")
    initial = shop.benchmarks[cell.benchmark].initial_prompt
    prompt = policy.tuner.export_adapter(query, out, prompt=initial)
    progress.say(f"wrote {out}; load it with PeftModel.from_pretrained on {policy.tuner.actor.spec.path}")
    return prompt
