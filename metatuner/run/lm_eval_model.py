"""lm-eval's command line with saved policies: the model `metatuner`, and the command `metatuner lm-eval`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model

from metatuner.errors import UserError
from metatuner.harness.query import Query, Response
from metatuner.hashing import hash_value
from metatuner.run.evaluation import TASKS, PolicyLM
from metatuner.run.saved import Saved, open_named

MODEL_FILE = Path(__file__).with_name("metatuner.yaml")
"""A task file that makes the model known to lm-eval's own commands, if `--tasks` names it."""
OWN_DEVICE = "cuda:0"
"""The device that lm-eval passes if `--device` names none."""


@register_model("metatuner", "metatuner_policy")
class SavedPolicyLM(PolicyLM):
    """A saved policy as an lm-eval model. It answers this project's tasks and all others that generate text."""

    def __init__(self, saved: Saved, ask_as: str = "") -> None:
        """Wrap a policy.

        Args:
            saved: the policy, with all that its answers depend on.
            ask_as: the benchmark that gives prompt, stops and length limit to tasks other than ours; by default the
                benchmark that the policy was fitted on.
        """
        super().__init__(saved.policy)
        self.ask_as = ask_as or saved.ask_as
        self.identity = hash_value([saved.identity, self.ask_as]) if saved.identity else ""

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """A model from `--model_args` (see `open_named`) and `--device`; `--batch_size` is not used."""
        _say_in_one_line()
        names = dict(arg_dict)
        ask_as = str(names.pop("ask_as", ""))
        device = (additional_config or {}).get("device")
        if device not in (None, OWN_DEVICE):
            names.setdefault("device", device)
        return cls(open_named(**names), ask_as)

    # ---- answers -----------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The policy's completions, in order, each cut at its request's own stop texts."""
        queries = [self._query(request) for request in requests]
        limits = [_limit(request) for request in requests]
        responses: dict[int, Response] = {}
        for limit in dict.fromkeys(limits):
            chosen = [index for index, each in enumerate(limits) if each == limit]
            responses |= zip(chosen, self._respond([queries[index] for index in chosen], limit), strict=True)
        return [
            _cut(responses[index].completion, request.args[1].get("until")) for index, request in enumerate(requests)
        ]

    def _query(self, request: Instance) -> Query:
        text = request.args[0]
        if (request.task_name or "").startswith("metatuner_") and "benchmark" in request.doc:
            return Query(request.doc["id"], request.doc["benchmark"], text)
        if not self.ask_as:
            raise UserError(
                f"task {request.task_name} is not one of metatuner's: add ask_as=BENCHMARK to --model_args, "
                "the benchmark with the prompt and the limits to use"
            )
        return Query(f"{request.task_name}-{request.doc_id}", self.ask_as, text)

    def _respond(self, queries: Sequence[Query], limit: int | None) -> list[Response]:
        """The policy's responses, with another limit of new tokens than the benchmark's if there is one."""
        ground = self.policy.ground
        benchmarks = ground.benchmarks
        for name in {query.benchmark for query in queries}:
            ground.benchmark(name)  # raises an error if the policy was not made for it
        if limit is not None:
            changed = {name: each.with_overrides(max_new_tokens=limit) for name, each in benchmarks.items()}
            ground.benchmarks = changed
        try:
            return self.policy.respond(queries)
        finally:
            ground.benchmarks = benchmarks

    # ---- what lm-eval does with a model ------------------------------------------------------------------------

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Keep this policy's answers apart in the file of `--use_cache`: lm-eval knows a request by its text alone."""
        super().set_cache_hook(cache_hook)
        answers = cache_hook.dbdict
        if answers is None:
            return
        if not self.identity or not hasattr(answers, "encode_key"):
            raise UserError("--use_cache: this policy's answers cannot be kept apart from others; leave it out")
        identity = self.identity
        answers.encode_key = lambda key: f"{identity} {key}"

    @property
    def tokenizer_name(self) -> str:
        """Always raises `UserError`: see `chat_template`."""
        return str(self.chat_template())

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Always raises `UserError`: lm-eval calls this for --apply_chat_template only."""
        raise UserError(
            "--apply_chat_template: a policy renders prompt and query with its actor's own chat template; leave it out"
        )

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Always raises `UserError`: see `chat_template`."""
        return self.chat_template()


def _limit(request: Instance) -> int | None:
    """The request's limit of new tokens, if it has one; `UserError` for a request to sample."""
    how = request.args[1]
    if how.get("do_sample", (how.get("temperature") or 0) > 0) and how.get("temperature", 1.0) > 0:
        raise UserError(
            f"task {request.task_name} samples, and a policy decodes greedily: add --gen_kwargs do_sample=false"
        )
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    limit = next((how[name] for name in names if how.get(name) is not None), None)
    return None if limit is None else int(limit)


def _cut(completion: str, until: str | Sequence[str] | None) -> str:
    """A completion, cut at the task's own stop texts."""
    for stop in [until] if isinstance(until, str) else until or []:
        completion = completion.split(stop)[0] if stop else completion
    return completion


def _say_in_one_line() -> None:
    """In a process of lm-eval's own command, let an error that the user can mend end it with one line."""
    program = Path(sys.argv[0])
    if not {"lm-eval", "lm_eval"} & {program.stem, program.parent.name}:  # python -m lm_eval: lm_eval/__main__.py
        return
    before = sys.excepthook

    def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, UserError):
            print(f"metatuner: {error}", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = say


def lm_eval_command(argv: Sequence[str]) -> None:
    """lm-eval's own command line, which also knows the model `metatuner` and our tasks.

    Args:
        argv: its arguments, e.g. `--model metatuner --model_args ... --tasks metatuner_gsm8k`. The word `path` alone
            prints the file that makes the model known to lm-eval's own commands.
    """
    from lm_eval.__main__ import cli_evaluate

    words = list(argv)
    if words == ["path"]:
        print(MODEL_FILE)
        return
    runs = words[:1] == ["run"] or (words[:1] != [] and words[0].startswith("--") and words[0] != "--help")
    if (runs or words[:1] in (["ls"], ["validate"])) and not any(
        word == "--include_path" or word.startswith("--include_path=") for word in words
    ):
        words += ["--include_path", str(TASKS)]
    before = sys.argv
    sys.argv = ["metatuner lm-eval", *words]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
