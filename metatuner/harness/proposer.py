"""A language model behind an OpenAI-compatible server, which proposes prompts where the config names one.

It reads what a search shows to its proposer: meta-prompts, train rows, scores on them. The samples of a server are not
reproducible. Requests are those of https://platform.openai.com/docs/api-reference/chat, by the standard library.
"""

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from metatuner.errors import UserError

NOTE = "a server's samples are not reproducible; its FLOPs are unknown and counted as 0"
"""What the log of a fit says that asks one."""
LONGEST_REPLY = 2**24
"""Bytes of a reply that are read."""
LONGEST_PAUSE = 30.0
"""Seconds that a server's `Retry-After` is heeded for."""


@dataclass(frozen=True)
class Reply:
    """What a language model wrote, and what it took; a server says so in its `usage`."""

    text: str
    prompt_tokens: int
    generated_tokens: int
    truncated: bool
    """It reached the most tokens asked for."""


class _Passing(Exception):
    """A failure that another try may mend."""

    def __init__(self, error: UserError, pause: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        """What to say if none does."""
        self.pause = pause
        """Seconds to wait before, if the server says so."""


@dataclass(frozen=True)
class ProposerServer:
    """A model and the server that answers for it: the config's `models.proposer`."""

    model: str
    base_url: str
    """Up to and without `/chat/completions`."""
    key_variable: str | None = None
    """The environment variable that holds the key; None: no key is sent."""
    timeout: float = 60.0
    """Seconds that the server may be silent."""
    retries: int = 2
    """Further tries where the server is busy or does not answer."""
    pause: float = 1.0
    """Seconds before the first further try, twice as many before each one after."""

    def chat(self, messages: Sequence[dict[str, str]], *, temperature: float, max_tokens: int, seed: int) -> Reply:
        """One sampled reply.

        Args:
            messages: turns with `role` and `content`.
            temperature: of the sample.
            max_tokens: most tokens of the reply.
            seed: handed on; servers differ in what they make of it.

        Raises UserError, one line that names the key of the config to mend, where no reply comes or it is malformed.
        """
        asked = {
            "model": self.model,
            "messages": list(messages),
            "temperature": temperature,
            "max_tokens": max_tokens,
            "seed": seed % 2**31,
        }
        for attempt in range(self.retries):
            try:
                return self._once(asked)
            except _Passing as failure:
                pause = self.pause * 2**attempt if failure.pause is None else failure.pause
                time.sleep(min(pause, LONGEST_PAUSE))
        try:
            return self._once(asked)
        except _Passing as failure:
            raise failure.error from None

    def _once(self, asked: dict[str, Any]) -> Reply:
        key = self._key()
        request = urllib.request.Request(
            f"{self.base_url.rstrip('/')}/chat/completions",
            data=json.dumps(asked).encode(),
            headers={"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"}),
        )
        try:
            with _OPENER.open(request, timeout=self.timeout) as answer:
                body = answer.read(LONGEST_REPLY)
        except urllib.error.HTTPError as error:
            with error:
                refusal = self._refusal(error)
                if error.code != 429 and error.code < 500:
                    raise refusal from None
                pause = error.headers.get("Retry-After", "")
                raise _Passing(refusal, float(pause) if pause.isdigit() else None) from None
        except OSError as error:  # among them URLError, which wraps most
            reason = getattr(error, "reason", error)
            raise _Passing(self._silent() if isinstance(reason, TimeoutError) else self._absent(reason)) from None
        except HTTPException as error:
            raise self._malformed(type(error).__name__) from None
        return self._read(body)

    def _key(self) -> str | None:
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise self._error("key_variable", f"the environment variable {self.key_variable} is not set; export it")
        if not re.fullmatch(r"[!-~]+", key):  # else the HTTP library would show it in its error
            raise self._error("key_variable", f"{self.key_variable} holds no key but a text with blanks; correct it")
        return key

    def _read(self, body: bytes) -> Reply:
        try:
            reply = json.loads(body)
            choice = reply["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise self._malformed("no choices[0].message.content") from None
        if not isinstance(text, str | None):
            raise self._malformed("choices[0].message.content is no text")
        usage = reply.get("usage")
        told = usage if isinstance(usage, dict) else {}
        read, written = told.get("prompt_tokens"), told.get("completion_tokens")
        if not (type(read) is int and type(written) is int and min(read, written) >= 0):
            raise self._malformed("no `usage` with prompt_tokens and completion_tokens, so it cannot be metered")
        return Reply(text or "", read, written, choice.get("finish_reason") == "length")

    # ---- what to say -------------------------------------------------------------------------------------------

    def _refusal(self, error: urllib.error.HTTPError) -> UserError:
        where, told = self.base_url, f"{error.code}{self._told(error)}"
        if error.code in (401, 403) and self.key_variable is None:
            return self._error("key_variable", f"{where} wants a key ({told}); name the variable that holds it")
        if error.code in (401, 403):
            remedy = "export a valid one"
            return self._error("key_variable", f"{where} refuses the key in {self.key_variable} ({told}); {remedy}")
        if error.code < 400:
            return self._error("base_url", f"{where} sends elsewhere ({told}); name the address that answers")
        if error.code == 404:
            remedy = "correct base_url (most end in /v1) or model"
            return self._error("base_url", f"{where} has no chat completions of {self.model!r} ({told}); {remedy}")
        if error.code == 429 or error.code >= 500:
            return self._error("base_url", f"{where} failed {self._times} ({told}); try later or name another server")
        return self._error("model", f"{where} refuses the request ({told}); name a model that takes it")

    def _told(self, error: urllib.error.HTTPError) -> str:
        """The server's own words, on one line and without the key, which some servers repeat."""
        try:
            body = error.read(LONGEST_REPLY).decode(errors="replace")
        except (OSError, HTTPException):
            return ""
        try:
            told: Any = json.loads(body)["error"]
            told = told["message"] if isinstance(told, dict) else told
        except (ValueError, LookupError, TypeError):
            told = body
        text, key = " ".join(str(told).split()), self._key()
        return f": {(text.replace(key, '***') if key else text)[:200]}" if text else ""

    def _silent(self) -> UserError:
        remedy = "raise it or name a faster server"
        return self._error("timeout", f"{self.base_url} was silent for {self.timeout:g} s {self._times}; {remedy}")

    def _absent(self, reason: object) -> UserError:
        remedy = "start the server or correct the address"
        return self._error("base_url", f"no answer from {self.base_url} ({reason}), asked {self._times}; {remedy}")

    def _malformed(self, what: str) -> UserError:
        remedy = "name an OpenAI-compatible server"
        return self._error("base_url", f"the reply of {self.base_url} is no chat completion ({what}); {remedy}")

    @property
    def _times(self) -> str:
        return "once" if self.retries == 0 else f"{self.retries + 1} times"

    @staticmethod
    def _error(key: str, what: str) -> UserError:
        return UserError(f"config key 'models.proposer.{key}': {what}")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key goes to the server that the config names and to no other."""

    def redirect_request(self, *args: Any, **options: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)
