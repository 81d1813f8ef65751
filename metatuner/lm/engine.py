"""A server that answers for a model of which only config and tokenizer are here, until its weights are needed."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from multiprocessing.pool import ThreadPool
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from metatuner.lm.deferred import Deferred
from metatuner.lm.model import LM, ModelSpec, attempt, check_sizes, check_turns, open_model
from metatuner.server import ENGINE_NOTE, Reply, Server

SEAM = 8
"""Most tokens that may differ, in one place, between a prompt and its text: where a query was cut within a word."""


@dataclass(frozen=True)
class Engine(Server):
    """A model and its server: the config's key `engine` of a model.

    Prompts are rendered here and completed there (`/completions`), so that a model reads the same tokens as in this
    process. vLLM and SGLang get token ids. `transformers serve` takes texts only, which it tokenizes itself.
    """

    timeout: float = 600.0
    server: Literal["vllm", "sglang", "transformers"] = "vllm"
    """Which requests the server takes."""
    parallel: int = 32
    """Maximum number of requests at a time."""

    kind = "completion"
    text_at = ("text",)

    @property
    def described(self) -> dict[str, str]:
        """What a fit's log says about it."""
        return {"model": self.model, "server": self.server, "note": ENGINE_NOTE}

    def answers(
        self,
        lm: LM,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stops: Sequence[str],
        temperature: float,
        top_p: float,
        seeds: Sequence[int] | None,
    ) -> Iterator[Reply]:
        """A reply to each prompt, in order; the arguments are those of `metatuner.lm.generate`.

        After an error, or when the iterator is closed, no further request is sent.

        Raises:
            UserError: there is no reply, it is malformed, another model answered, or it read other tokens.
        """
        common: dict[str, Any] = {"max_tokens": max_new_tokens, "temperature": temperature}
        if stops:
            common["stop"] = list(stops)
        common |= self._sampling(lm, max_new_tokens, temperature, top_p)
        asked = [self._prompt(lm, list(prompt)) for prompt in prompts]
        with self.client() as client:
            create = client.completions.with_raw_response.create

            def ask(index: int) -> Reply:
                prompt, tokens = asked[index]
                seed = {} if seeds is None else {"seed": seeds[index] % 2**31}
                return self._checked(lm, tokens, self.ask(create, prompt=prompt, **common, **seed))

            # Its threads are daemons: a request that is still waiting when another failed keeps nothing from ending.
            threads = ThreadPool(max(1, min(self.parallel, len(asked))))
            try:
                yield from threads.imap(ask, range(len(asked)))
            finally:
                threads.terminate()

    def _prompt(self, lm: LM, ids: list[int]) -> tuple[list[int] | str, int]:
        """What is sent for a prompt, and the number of tokens that the server must read."""
        if self.server != "transformers":
            return ids, len(ids)
        read = {text: list(lm.tokenizer(text).input_ids) for text in _texts(lm, ids)}
        text = min(read, key=lambda each: _differing(read[each], ids))
        if _differing(read[text], ids) > SEAM:
            raise self.error(
                "server",
                f"`transformers serve` takes texts, and no text becomes the tokens of a prompt of {lm.spec.path}; use "
                "a server that takes token ids, such as vllm",
            )
        return text, len(read[text])

    def _sampling(self, lm: LM, limit: int, temperature: float, top_p: float) -> dict[str, Any]:
        """Decoding rules. Servers would add the model's own: top_k, a repetition penalty, other ends."""
        if self.server != "transformers":
            extra = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": sorted(lm.eos_ids)}
            return {"top_p": top_p, "extra_body": extra}
        rules: dict[str, Any] = {
            "max_new_tokens": limit,
            "eos_token_id": sorted(lm.eos_ids),
            "pad_token_id": lm.filler,
            "suppress_tokens": lm.suppressed_ids or None,
            "do_sample": temperature > 0,
        }
        if temperature > 0:
            rules |= {"temperature": temperature, "top_p": top_p, "top_k": 0}
        return {"extra_body": {"generation_config": json.dumps(rules)}}

    def _checked(self, lm: LM, tokens: int, reply: Reply) -> Reply:
        named = (reply.model or self.model).partition(f"{self.model}@")  # `transformers serve` adds the revision
        if named[0] not in ("", self.model):
            raise self.error("model", f"{self.base_url} answers with {reply.model!r}, not {self.model!r}; correct it")
        if reply.prompt_tokens != tokens:
            raise self.error(
                "model",
                f"{self.base_url} read {reply.prompt_tokens} tokens where the prompt has {tokens}: its tokenizer is "
                f"another than that of {lm.spec.path}; serve that model, and set `server` to the kind of server",
            )
        return reply


def load_served(spec: ModelSpec, engine: Engine, load: Callable[[], LM]) -> LM:
    """A model for which a server answers. Its config and tokenizer are read, but not its weights.

    Args:
        spec: the model that the server runs.
        engine: the server.
        load: makes the local model; called at most once, when something needs its weights.

    Raises `UserError` as `load_lm` does, but for faults of the weights.
    """
    _, where, config, tokenizer = open_model(spec)
    with torch.device("meta"):
        outline = attempt(spec, "config.json", lambda: AutoModelForCausalLM.from_config(config))
    with suppress(OSError):  # without a generation config, the config's values hold, as in transformers
        outline.generation_config = GenerationConfig.from_pretrained(**_renamed(where))
    window = check_sizes(spec, outline, config, tokenizer)
    held: Any = Deferred(load, engine, outline)
    lm = LM(held, tokenizer, window, spec, held)
    check_turns(lm)
    return lm


def _renamed(where: dict[str, Any]) -> dict[str, Any]:
    names = {"pretrained_model_name_or_path": "pretrained_model_name"}
    return {names.get(name, name): value for name, value in where.items() if name != "trust_remote_code"}


def _texts(lm: LM, ids: list[int]) -> Iterator[str]:
    """Texts that may become these tokens. Some tokenizers put blanks around special tokens when they decode."""
    special = set(lm.tokenizer.all_special_ids)
    runs = [list(run) for _, run in groupby(ids, special.__contains__)]
    for parts in (runs, [ids]):
        text = "".join(
            str(lm.tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False))
            if len(parts) == 1 or part[0] not in special
            else "".join(lm.tokenizer.convert_ids_to_tokens(part))
            for part in parts
        )
        yield text
        if lm.begin_ids:  # the server puts one before every text itself
            yield text.removeprefix(str(lm.tokenizer.bos_token))


def _differing(found: list[int], wanted: list[int]) -> int:
    """The length of what lies between the common beginning and the common end of two lists."""
    shorter = min(len(found), len(wanted))
    start = next((place for place in range(shorter) if found[place] != wanted[place]), shorter)
    end = next((back for back in range(shorter - start) if found[-1 - back] != wanted[-1 - back]), shorter - start)
    return max(len(found), len(wanted)) - start - end
