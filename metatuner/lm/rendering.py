"""The one place where prompt, demonstrations and query become the ids that a model reads.

Chat models: the prompt is the system turn. If the template has no system turn, the prompt is put before the text of the
first user turn. Demonstrations are earlier user and assistant turns, and the query is the last user turn. Base models
read plain text: the prompt, a blank line, each demonstration (query, line end, answer, blank line), then the query and
a line end.

An input that does not fit the window is cut by a rule that knows no gold answer. It drops demonstrations, from the
first one on, and then tokens from the start of the query. Both are counted.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from metatuner.errors import UserError
from metatuner.lm.model import LM, MARK

Demo = tuple[str, str]
"""A demonstration: query, answer."""


@dataclass(frozen=True)
class Rendered:
    """A model input."""

    ids: list[int]
    cut_tokens: int = 0
    """Number of tokens dropped from the start of the query."""
    cut_demos: int = 0
    """Number of demonstrations dropped, from the first one on."""


def render(lm: LM, prompt: str, query: str, demos: Sequence[Demo] = (), *, reserve: int = 0) -> Rendered:
    """The input under which an actor answers `query` with `prompt`.

    `reserve` tokens of the window are kept free for the answer. Raises `UserError` if prompt and reserve do not fit.
    """
    return _fit(lm, lambda x, shown: _text(lm, prompt, x, shown), query, demos, reserve)


def render_rewrite(lm: LM, prompt: str, query: str, *, reserve: int = 0) -> Rendered:
    """The input under which a generator writes a prompt for `query`, given the prompt to start from.

    The spec's `rewrite_system` and `rewrite_user` are the templates; cutting and `reserve` are as in `render`.
    """

    def text(x: str, demos: Sequence[Demo]) -> str:
        fields = {"{prompt}": prompt, "{query}": x}
        # One pass, so that braces inside a prompt or a query stay as they are.
        system, user = (
            re.sub(r"\{prompt\}|\{query\}", lambda match: fields[match[0]], template)
            for template in (lm.spec.rewrite_system, lm.spec.rewrite_user)
        )
        return _text(lm, system, user, demos)

    return _fit(lm, text, query, (), reserve)


def render_around(lm: LM, query: str, *, reserve: int = 0) -> tuple[list[int], list[int]]:
    """The ids before and after the place where `render` puts a prompt, for a prompt of embeddings, not text.

    The three parts are encoded separately. Cutting is as in `render`; `reserve` covers answer and prompt together.
    """
    begin = [] if lm.is_chat else lm.begin_ids
    before = begin + lm.encode(_text(lm, MARK, query, ()).partition(MARK)[0])

    def text_after(x: str, demos: Sequence[Demo]) -> str:
        return _text(lm, MARK, x, demos).partition(MARK)[2]

    after = _fit(lm, text_after, query, (), reserve + len(before) - len(begin)).ids
    return before, after[len(begin) :]


def completion_ids(lm: LM, text: str) -> list[int]:
    """The ids to train on: the tokens of `text`, then the end of turn, so that the model stops there."""
    return [*lm.encode(text), lm.end_of_turn]


def _text(lm: LM, prompt: str, query: str, demos: Sequence[Demo]) -> str:
    if not lm.is_chat:
        shown = "".join(f"{asked}\n{answer}\n\n" for asked, answer in demos)
        return (f"{prompt}\n\n" if prompt else "") + f"{shown}{query}\n"
    turns = []
    for asked, answer in demos:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    turns.append({"role": "user", "content": query})
    if lm.takes_system:
        turns.insert(0, {"role": "system", "content": prompt})
    elif prompt:
        turns[0] = {"role": "user", "content": f"{prompt}\n\n{turns[0]['content']}"}
    return lm.chat_text(turns)


def _fit(
    lm: LM, text: Callable[[str, Sequence[Demo]], str], query: str, demos: Sequence[Demo], reserve: int
) -> Rendered:
    room = lm.window - reserve
    begin = [] if lm.is_chat else lm.begin_ids
    for cut in range(len(demos) + 1):
        ids = begin + lm.encode(text(query, demos[cut:]))
        if len(ids) <= room:
            return Rendered(ids, cut_demos=cut)
    # The three parts are encoded separately, so that only tokens of the query are cut.
    head, _, tail = text(MARK, ()).partition(MARK)
    before, asked, after = begin + lm.encode(head), lm.encode(query), lm.encode(tail)
    left = room - len(before) - len(after)
    if left < 0:
        raise UserError(
            f"model {lm.spec.path}: a prompt of {len(before) + len(after)} tokens and {reserve} kept for the answer "
            f"do not fit its window of {lm.window}, even without the query; shorten the prompt or raise the window"
        )
    cut_tokens = max(0, len(asked) - left)
    return Rendered(before + asked[cut_tokens:] + after, cut_tokens, len(demos))
