"""Small HTTP servers: scripted ones, and one that completes prompts with a local model through transformers alone."""

import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from metatuner.lm import LM

Answer = Callable[[int, dict[str, Any]], tuple[int, Any, dict[str, str]]]
"""Status, body and headers of the reply to the n-th request, given its JSON body."""


class Server:
    """A server on a free port. Requests are answered one after another unless `side_by_side`."""

    def __init__(self, answer: Answer, *, side_by_side: bool = False) -> None:
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.headers: list[str] = []
        lock, outer = threading.Lock(), self
        answering: AbstractContextManager[Any] = nullcontext() if side_by_side else threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(outer.requests)
                    outer.requests.append(body)
                    outer.paths.append(self.path)
                    outer.keys.append(self.headers.get("Authorization"))
                    outer.headers.append(str(self.headers))
                with answering:
                    status, reply, headers = answer(number, body)
                told = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(told)))
                self.end_headers()
                self.wfile.write(told)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Answer no more."""
        self.http.shutdown()
        self.http.server_close()


def completed(text: str, read: int, written: int, **changes: Any) -> dict[str, Any]:
    """A reply in the schema of OpenAI's completions."""
    reply: dict[str, Any] = {"choices": [{"text": text, "index": 0, "finish_reason": "stop"}], "model": "toy"}
    return reply | {"usage": {"prompt_tokens": read, "completion_tokens": written}} | changes


def completer(lm: LM, name: str = "toy") -> Answer:
    """Completes prompts as vLLM (token ids) and `transformers serve` (texts, and a generation config) do.

    Decoding is `transformers.generate`, one prompt at a time. Token ids are completed without padding and begin of
    text, which no trained model writes.
    """

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        if body["model"] != name:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}, {}
        stops, limit, told = body.get("stop") or [], body["max_tokens"], body["model"]
        if isinstance(body["prompt"], str):
            ids = lm.tokenizer(body["prompt"]).input_ids
            config = GenerationConfig(**json.loads(body["generation_config"]))
            told += "@main"
        else:
            ids = body["prompt"]
            never = [token for token in (lm.tokenizer.pad_token_id, lm.tokenizer.bos_token_id) if token is not None]
            config = GenerationConfig(
                eos_token_id=body["stop_token_ids"],
                suppress_tokens=never,
                pad_token_id=lm.tokenizer.pad_token_id,
                repetition_penalty=body["repetition_penalty"],
                do_sample=body["temperature"] > 0,
                max_new_tokens=limit,
            )
            if body["temperature"] > 0:
                config.update(temperature=body["temperature"], top_p=body["top_p"], top_k=max(0, body["top_k"]))

        def text_of(new: Any) -> str:
            return str(lm.tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False))

        def stopped(found: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            # transformers' own `stop_strings` cannot read a tokenizer of whole words.
            return torch.tensor([any(stop in text_of(found[0, len(ids) :]) for stop in stops)])

        torch.manual_seed(body.get("seed", 0))
        inputs = torch.tensor([ids])
        generate: Any = lm.model.generate
        with torch.no_grad():
            found = generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([stopped]),
            )
        new = found[0, len(ids) :].tolist()
        text = text_of(new)
        ended = new[-1] in config.eos_token_id or any(stop in text for stop in stops)
        if not isinstance(body["prompt"], str):
            text = text_of(new[:-1]) if new[-1] in config.eos_token_id else text
            text = min((text.partition(stop)[0] for stop in stops), key=len, default=text)
        choice = {"text": text, "index": 0, "finish_reason": "stop" if ended else "length"}
        return 200, completed("", len(ids), len(new), choices=[choice], model=told), {}

    return answer
