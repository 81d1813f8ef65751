"""Whether a converted model reads and answers as it must."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from metatuner.errors import UserError
from metatuner.fetch.known import Checks

if TYPE_CHECKING:
    from metatuner.lm import LM

REMEDY = "nothing was stored; install the packages of constraints/cpu.txt and run again"


def check(folder: Path, checks: Checks) -> str:
    """Load a folder in float32 and compare it with what is known of the model.

    Returns:
        What was measured, as one clause.

    Raises:
        UserError: the first check that fails, with what was found in place of what was expected.
    """
    from transformers.utils import logging

    from metatuner.lm import ModelSpec, generate, load_lm

    logging.disable_progress_bar()
    lm = load_lm(ModelSpec(str(folder), device="cpu", window=512))
    for text, ids in checks.tokens.items():
        if tuple(lm.encode(text)) != ids:
            raise UserError(f"the converted tokenizer reads {text!r} as {lm.encode(text)}, not {list(ids)}; {REMEDY}")
        if lm.decode(list(ids)) != text:
            raise UserError(f"the converted tokenizer gives {text!r} back as {lm.decode(list(ids))!r}; {REMEDY}")
    found = perplexity(lm, checks.paragraph)
    least, most = checks.perplexity
    if not least <= found <= most:
        raise UserError(f"the converted model's perplexity is {found:.2f}, not {least} to {most}; {REMEDY}")
    prompt = lm.encode(lm.chat_text([{"role": "user", "content": checks.chat}]))
    (answer,) = generate(lm, [prompt], max_new_tokens=2 * len(lm.encode(checks.answer)))
    if answer.text != checks.answer:
        raise UserError(
            f"the converted model answers {checks.chat!r} with {answer.text!r}, not {checks.answer!r}; {REMEDY}"
        )
    return f"perplexity {found:.2f} (must be {least} to {most}), answer {answer.text!r}"


def perplexity(lm: "LM", text: str) -> float:
    """exp of the mean negative log-likelihood of a text's tokens after the first, in nats per token."""
    import torch

    ids = torch.tensor([lm.encode(text)], device=lm.device)
    with torch.no_grad():
        logits = lm.model(input_ids=ids).logits[0, :-1].double()
    return math.exp(float(torch.nn.functional.cross_entropy(logits, ids[0, 1:])))
