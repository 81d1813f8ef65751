"""Loading causal language models and what the rest of the package needs to know about them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from metatuner.errors import UserError
from metatuner.lm.deferred import Answers, Deferred, deferrable
from metatuner.lm.splitting import tokenizer_file, warn_if_replaced
from metatuner.lm.weights import check_files, check_loaded, has_plain_head

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
MARK = "\ue000\ue001"
"""A placeholder (private-use characters) that shows where a template puts a text."""


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and how it is run."""

    path: str
    """A local folder in the Hugging Face layout, or a Hub id."""
    revision: str | None = None
    """Branch, tag or commit, for a Hub id."""
    dtype: str = "float32"
    """One of float32, bfloat16, float16, float64."""
    device: str = "auto"
    """A torch device; auto is cuda if available, else cpu."""
    window: int | None = None
    """Maximum tokens of prompt and completion together; by default, as many as the model's config allows."""
    chat: bool | None = None
    """Render with the tokenizer's chat template; by default, if it has one (base models often have one too)."""
    rewrite_system: str = "{prompt}"
    """The system turn that a generator reads to write a prompt; {prompt} is the one to rewrite, {query} its query."""
    rewrite_user: str = "{query}"
    """The user turn that it reads. A request in words must follow the query: models tend to answer what they read last.
    The default holds no request. It suits generators that are trained to write prompts.
    """

    def __post_init__(self) -> None:
        if (self.rewrite_system + self.rewrite_user).count("{query}") != 1:
            raise UserError(
                f"model {self.path}: rewrite_system and rewrite_user must hold {{query}} once together, got "
                f"{self.rewrite_system!r} and {self.rewrite_user!r}; name it in one of them"
            )


@dataclass
class Traffic:
    """Listeners to the work that `generate` gives a model; shared by all wrappers of that model."""

    listeners: list[Callable[[int, int, int], None]] = field(default_factory=list)
    """Each is called after every batch with (prompt tokens, generated tokens, sequences)."""
    generating: bool = False
    """True inside `generate`, which reports its forward passes to the listeners as a whole."""


@deferrable("model", "plain_head")
@dataclass(frozen=True, eq=False)
class LM:
    """A causal language model with its tokenizer.

    To run a changed model (merged, or wrapped by PEFT) in the same way: `dataclasses.replace(lm, model=changed)`.
    Models made in this way (views, copies to train) inherit all other fields.

    If a server answers for the model (`engine`), reading `model` loads the weights. From then on they answer, because
    they may have been changed.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    window: int
    """Maximum tokens of prompt and completion together."""
    spec: ModelSpec
    plain_head: bool = True
    """Whether the logits are just the head applied to the decoder's output (some models scale or cap them)."""
    traffic: Traffic = field(default_factory=Traffic)
    batch_tokens: int = 16384
    """Maximum padded tokens of a generation batch, unless `generate` gets another bound."""
    pieces: dict[tuple[Any, ...], list[str] | None] = field(default_factory=dict)
    """The text around the contents, per chat template and sequence of roles (see `chat_text`)."""

    @property
    def _deferred(self) -> Deferred | None:
        """What stands for the weights; None if they are here."""
        held = vars(self)["model"]
        return held if isinstance(held, Deferred) and not held.is_loaded else None

    @property
    def engine(self) -> Answers | None:
        """The server that answers for this model; None if its weights are here."""
        return None if self._deferred is None else self._deferred.engine

    @property
    def outline(self) -> PreTrainedModel:
        """The model; if its weights are not here, its config and shapes alone."""
        return self.model if self._deferred is None else cast(PreTrainedModel, self._deferred.outline)

    def when_loaded(self, act: Callable[[], Any]) -> None:
        """Call `act` when the weights are here: now, or after something has needed them."""
        act() if self._deferred is None else self._deferred.waiting.append(act)

    def within(self, batch_tokens: int) -> "LM":
        """The same model with another bound on the tokens of a batch."""
        found = copy.copy(self)
        vars(found)["batch_tokens"] = batch_tokens
        return found

    @property
    def device(self) -> torch.device:
        """The device that input ids must be on."""
        if self._deferred is not None:
            return _device(self.spec)
        return cast(nn.Embedding, self.model.get_input_embeddings()).weight.device

    @property
    def decoder(self) -> nn.Module:
        """The model without its LM head. Every forward pass of the model runs it; `generate` may go around it (see
        `reading`), and reports what it read and wrote to `traffic`."""
        return self.model.get_decoder()

    @cached_property
    def _fast_tokenizer(self) -> Any:
        """The tokenizer without transformers' own work per call; None if the two differ on a text with odd blanks."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        probe = f"  x\u00a0y \n\n{MARK}"
        if (
            fast is None
            or self.tokenizer(probe, add_special_tokens=False).input_ids
            != fast.encode(probe, add_special_tokens=False).ids
        ):
            return None
        return fast

    @property
    def head(self) -> nn.Linear:
        """The LM head, [..., width] -> [..., vocabulary]."""
        return cast(nn.Linear, self.model.get_output_embeddings())

    @cached_property
    def is_chat(self) -> bool:
        """Whether inputs are rendered with the tokenizer's chat template (else as plain text)."""
        return self.tokenizer.chat_template is not None if self.spec.chat is None else self.spec.chat

    @cached_property
    def takes_system(self) -> bool:
        """Whether the chat template has a system turn: some templates reject it, some drop it silently."""
        turns = [{"role": "system", "content": MARK}, {"role": "user", "content": "x"}]
        try:
            return MARK in self.chat_text(turns)
        except Exception:  # what a template raises is its author's choice
            return False

    def chat_text(self, turns: list[dict[str, str]], *, generate: bool = True) -> str:
        """The chat template's text for `turns`; with `generate`, up to where the assistant's answer begins."""
        key = (self.tokenizer.chat_template, generate, *(turn["role"] for turn in turns))
        if key not in self.pieces:
            self.pieces[key] = self._pieces(turns, generate)
        pieces = self.pieces[key]
        if pieces is None:
            return self._apply_template(turns, generate)
        between = zip(pieces, (turn["content"] for turn in turns), strict=False)
        return "".join(part for pair in between for part in pair) + pieces[-1]

    def _apply_template(self, turns: list[dict[str, str]], generate: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=generate, enable_thinking=False
        )
        return cast(str, text)

    def _pieces(self, turns: list[dict[str, str]], generate: bool) -> list[str] | None:
        """What a template writes around the contents of turns with these roles; None if that depends on contents.

        Templates may strip contents, refuse empty ones, or drop what stands before `</think>`.
        """

        def filled(contents: list[str]) -> str:
            named = [{"role": turn["role"], "content": text} for turn, text in zip(turns, contents, strict=True)]
            return self._apply_template(named, generate)

        marks = [f"{MARK}{place}{MARK}" for place in range(len(turns))]
        pieces, rest = [], filled(marks)
        for mark in marks:
            before, found, rest = rest.partition(mark)
            if not found:
                return None
            pieces.append(before)
        pieces.append(rest)
        probes = ([f" \n{mark}\n " for mark in marks], [""] * len(turns), [f"<think>a</think>{mark}" for mark in marks])
        try:
            kept = all(filled(probe) == "".join(map(str.__add__, pieces, [*probe, ""])) for probe in probes)
        except Exception:  # what a template raises is its author's choice
            kept = False
        return pieces if kept else None

    @cached_property
    def end_of_turn(self) -> int:
        """The token that ends a completion: the special one that the chat template writes after an answer, else EOS."""
        if self.is_chat:
            turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": MARK}]
            after = self.chat_text(turns, generate=False).rpartition(MARK)[2]
            for token in self.encode(after):
                if token in self.tokenizer.all_special_ids or token in self._eos_of_config:
                    return token
        if self.tokenizer.eos_token_id is not None:
            return self.tokenizer.eos_token_id
        if self._eos_of_config:
            return self._eos_of_config[0]
        raise UserError(f"model {self.spec.path}: its tokenizer and generation config name no EOS token; set one")

    @cached_property
    def _eos_of_config(self) -> list[int]:
        eos = self.outline.generation_config.eos_token_id
        return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """The tokens that end a completion."""
        return frozenset({self.end_of_turn, *self._eos_of_config})

    @cached_property
    def suppressed_ids(self) -> list[int]:
        """Tokens that are never generated: suppress_tokens, padding, begin of text, ids the tokenizer does not know."""
        never = set(self.outline.generation_config.suppress_tokens or ())
        never.update(token for token in (self.tokenizer.pad_token_id, self.tokenizer.bos_token_id) if token is not None)
        rows = cast(nn.Linear, self.outline.get_output_embeddings()).weight.shape[0]
        never.update(range(len(self.tokenizer), rows))
        return sorted(never - self.eos_ids)

    @cached_property
    def filler(self) -> int:
        """The id at padded positions, to which no other position attends."""
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.end_of_turn

    @cached_property
    def begin_ids(self) -> list[int]:
        """The begin-of-text ids that the tokenizer itself puts before a plain text."""
        return [token for token in self.tokenizer("").input_ids if token == self.tokenizer.bos_token_id]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without added tokens."""
        fast = self._fast_tokenizer
        if fast is not None and fast.padding is None and fast.truncation is None:
            return cast(list[int], fast.encode(text, add_special_tokens=False).ids)
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens left out."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)


FROM_ELSEWHERE = "download the model elsewhere and give the path of its folder"


def load_lm(spec: ModelSpec, *, instead: str = FROM_ELSEWHERE) -> LM:
    """Load a model folder or Hub model in eval mode: safetensors weights only, no code from the repository.

    It says so if the tokenizer's class splits texts in another way than the model's tokenizer.json.

    Args:
        spec: which model, and how it is run.
        instead: what to do if the Hub cannot be reached.

    Raises `UserError` for a missing or incomplete folder, a Hub that cannot be reached, weights that are missing,
    superfluous, of other shapes, NaN or infinite, a vocabulary larger than the embedding, a chat template that fails
    or drops the user's turn, an unknown dtype or device, and a window larger than the model's.
    """
    device, where, config, tokenizer = open_model(spec, instead)
    model, loading = attempt(
        spec,
        "safetensors weights",
        lambda: AutoModelForCausalLM.from_pretrained(
            config=config, dtype=DTYPES[spec.dtype], use_safetensors=True, output_loading_info=True, **where
        ),
        instead,
    )
    check_loaded(spec.path, spec.dtype, model, loading)
    window = check_sizes(spec, model, config, tokenizer)
    model.to(device).eval()
    plain_head = attempt(spec, "its logits", lambda: has_plain_head(model))
    lm = LM(model, tokenizer, window, spec, plain_head)
    check_turns(lm)
    return lm


def open_model(
    spec: ModelSpec, instead: str = FROM_ELSEWHERE
) -> tuple[torch.device, dict[str, Any], Any, PreTrainedTokenizerBase]:
    """What is known about a model without its weights.

    Returns the device, the arguments of `from_pretrained` that say where the model comes from, config and tokenizer.
    """
    if spec.dtype not in DTYPES:
        raise UserError(f"model {spec.path}: unknown dtype {spec.dtype!r}; known: {', '.join(DTYPES)}")
    device = _device(spec)
    folder = Path(spec.path).expanduser()
    local = folder.is_dir()
    if local:
        check_files(folder)
    elif folder.is_absolute() or spec.path.startswith((".", "~")) or spec.path.count("/") > 1:
        raise UserError(f"model {spec.path}: no such folder; make it, or name a Hub id (owner/name)")
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": str(folder) if local else spec.path,
        "revision": spec.revision,
        "trust_remote_code": False,
        "local_files_only": local,
    }
    config = attempt(spec, "config.json", lambda: AutoConfig.from_pretrained(**where), instead)
    tokenizer = attempt(spec, "the tokenizer", lambda: AutoTokenizer.from_pretrained(**where), instead)
    warn_if_replaced(tokenizer, tokenizer_file(where["pretrained_model_name_or_path"], spec.revision), spec.path)
    return device, where, config, tokenizer


def check_sizes(spec: ModelSpec, model: PreTrainedModel, config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The window; `UserError` if it, the vocabulary or the chat template does not go with the model."""
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if len(tokenizer) > rows:
        raise UserError(
            f"model {spec.path}: the tokenizer knows {len(tokenizer)} tokens, the embedding has {rows} rows; "
            "use the tokenizer the model was trained with"
        )
    if spec.chat and tokenizer.chat_template is None:
        raise UserError(f"model {spec.path}: chat is set, but its tokenizer has no chat template; unset chat")
    return _window(spec, config, tokenizer)


def _device(spec: ModelSpec) -> torch.device:
    if spec.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(spec.device)
    except RuntimeError as error:
        raise UserError(f"model {spec.path}: unknown device {spec.device!r}; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise UserError(f"model {spec.path}: device {spec.device} asked, but torch sees no such GPU; use auto or cpu")
    return device


def check_turns(lm: LM) -> None:
    """`UserError` if the chat template fails or drops the user's turn, or if nothing ends a completion."""
    remedy = "restore chat_template.jinja (or chat_template in tokenizer_config.json), or set chat to false"
    if lm.is_chat:
        try:
            system = [{"role": "system", "content": "x"}] if lm.takes_system else []
            asked = lm.chat_text([*system, {"role": "user", "content": MARK}])
            turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": MARK}]
            answered = lm.chat_text(turns, generate=False)
        except Exception as error:  # what a template raises is its author's choice
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(f"model {lm.spec.path}: its chat template fails ({reason}); {remedy}") from error
        for whose, text in (("user", asked), ("assistant", answered)):
            if MARK not in text:
                raise UserError(f"model {lm.spec.path}: its chat template drops the {whose}'s turn; {remedy}")
    _ = lm.end_of_turn


def attempt(spec: ModelSpec, what: str, load: Callable[[], Any], instead: str = FROM_ELSEWHERE) -> Any:
    """Run one loader; an error of the library, often many lines, becomes one line."""
    try:
        return load()
    except UserError:
        raise
    except Exception as error:  # libraries raise what they like on a broken file
        reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
        if Path(spec.path).expanduser().is_dir():
            told = f"{what} cannot be loaded: {reason.rstrip('.')}"
            raise UserError(f"model {spec.path}: {told}; restore the folder, or save the model again") from error
        raise UserError(
            f"model {spec.path}: {what} cannot be fetched from the Hub: {reason} Check the name and the network, or "
            f"{instead}"
        ) from error


def _window(spec: ModelSpec, config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokenizer's own limit is used only if the config names none: it is often a placeholder of 1e30."""
    named = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    largest = named or tokenizer.model_max_length
    if spec.window is None:
        return int(largest)
    if not 1 < spec.window <= largest:
        raise UserError(f"model {spec.path}: window {spec.window} is not in 2..{largest}, what the model allows")
    return spec.window
