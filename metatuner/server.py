"""The client of an OpenAI-compatible server: requests, and errors of one line. Proposers and engines share it.

The library `openai` handles requests, retries and pauses.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from metatuner.errors import UserError

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

ENGINE_NOTE = "a server answers: its answers repeat as exactly as it decodes"
"""The note in logs and provenance about a model with an engine."""


@dataclass(frozen=True)
class Reply:
    """What a language model wrote, with the token counts from the server's `usage`."""

    text: str
    prompt_tokens: int
    generated_tokens: int
    truncated: bool
    """The reply reached `max_tokens`."""
    model: str | None = None
    """What the server says answered."""


@dataclass(frozen=True)
class Server:
    """A model and its server. A subclass says which kind of reply it requests."""

    model: str
    base_url: str
    """The address without `/chat/completions` or `/completions` at its end."""
    key_variable: str | None = None
    """The environment variable that holds the key; None: no key is sent."""
    timeout: float = 60.0
    """Seconds that the server may be silent."""
    retries: int = 2
    """Further tries if the server is busy or does not answer."""
    place: str = ""
    """The config key that names this server; errors begin with it."""

    kind: ClassVar[str]
    """What a reply is called."""
    text_at: ClassVar[Sequence[str]]
    """The keys that lead to the text in the first of a reply's choices."""

    def client(self) -> "OpenAI":
        """A client, also for several threads; it follows no redirects, so that the key reaches no other server."""
        import ssl

        from openai import DefaultHttpxClient, Omit, OpenAI

        # The library would send these from environment variables, which are meant for another server.
        custom = [line.partition(":")[0].strip() for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines()]
        names = ("OpenAI-Organization", "OpenAI-Project", *filter(None, custom))
        headers: Any = dict.fromkeys(names, Omit())
        return OpenAI(
            base_url=self.base_url,
            api_key=self._key() or "none",  # the client cannot be created without a key
            timeout=self.timeout,
            max_retries=self.retries,
            default_headers=headers,
            http_client=DefaultHttpxClient(follow_redirects=False, verify=ssl.create_default_context()),
        )

    def ask(self, create: Any, **request: Any) -> Reply:
        """One reply.

        Args:
            create: the client's method `with_raw_response.create` for this kind of reply.
            request: its arguments, but for the model.

        Raises:
            UserError: there is no reply, or it is malformed. The message, one line, names the config key to change.
        """
        import openai

        headers = {} if self.key_variable else {"Authorization": openai.Omit()}
        try:
            raw = create(model=self.model, extra_headers=headers, **request)
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except openai.APITimeoutError:
            raise self._silent() from None
        except openai.APIConnectionError as error:
            raise self._absent(error.__cause__ or error) from None
        return self._read(raw.http_response.content)

    def _key(self) -> str | None:
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise self.error("key_variable", f"the environment variable {self.key_variable} is not set; export it")
        if not re.fullmatch(r"[!-~]+", key):  # otherwise the HTTP library would show the key in its error
            raise self.error("key_variable", f"{self.key_variable} holds no key but a text with blanks; correct it")
        return key

    def _read(self, body: bytes) -> Reply:
        where = ".".join(["choices[0]", *self.text_at])
        try:
            reply = json.loads(body)
            text = choice = reply["choices"][0]
            for name in self.text_at:
                text = text[name]
        except (ValueError, LookupError, TypeError):
            raise self._malformed(f"no {where}") from None
        if not isinstance(text, str | None):
            raise self._malformed(f"{where} is no text")
        usage = reply.get("usage")
        counts = usage if isinstance(usage, dict) else {}
        read, written = counts.get("prompt_tokens"), counts.get("completion_tokens")
        if not (type(read) is int and type(written) is int and min(read, written) >= 0):
            raise self._malformed("no `usage` with prompt_tokens and completion_tokens, so it cannot be metered")
        model = reply.get("model")
        truncated = choice.get("finish_reason") == "length"
        return Reply(text or "", read, written, truncated, model if isinstance(model, str) else None)

    # ---- error messages ----------------------------------------------------------------------------------------

    def error(self, key: str, what: str) -> UserError:
        """An error that begins with one of this server's config keys."""
        return UserError(f"config key '{self.place}.{key}': {what}")

    def _refusal(self, error: "APIStatusError") -> UserError:
        where, code = self.base_url, error.status_code
        said = f"{code}{self._words(error.response.text)}"
        if code in (401, 403) and self.key_variable is None:
            return self.error("key_variable", f"{where} wants a key ({said}); name the variable that holds it")
        if code in (401, 403):
            remedy = "export a valid one"
            return self.error("key_variable", f"{where} refuses the key in {self.key_variable} ({said}); {remedy}")
        if code < 400:
            return self.error("base_url", f"{where} sends elsewhere ({said}); name the address that answers")
        if code == 404:
            remedy = "correct base_url (most end in /v1) or model"
            return self.error("base_url", f"{where} has no {self.kind}s of {self.model!r} ({said}); {remedy}")
        if code == 429 or code >= 500:
            return self.error("base_url", f"{where} failed {self._times} ({said}); try later or name another server")
        return self.error("model", f"{where} refuses the request ({said}); name a model that takes it")

    def _words(self, body: str) -> str:
        """The server's own message, on one line and without the key, which some servers repeat."""
        try:
            said: Any = json.loads(body)
            said = said["error"] if "error" in said else said["detail"]
            said = said["message"] if isinstance(said, dict) else said
        except (ValueError, LookupError, TypeError):
            said = body
        text, key = " ".join(str(said).split()), self._key()
        return f": {(text.replace(key, '***') if key else text)[:200]}" if text else ""

    def _silent(self) -> UserError:
        remedy = "raise it or name a faster server"
        return self.error("timeout", f"{self.base_url} was silent for {self.timeout:g} s {self._times}; {remedy}")

    def _absent(self, reason: object) -> UserError:
        remedy = "start the server or correct the address"
        return self.error("base_url", f"no answer from {self.base_url} ({reason}), asked {self._times}; {remedy}")

    def _malformed(self, what: str) -> UserError:
        remedy = "name an OpenAI-compatible server"
        return self.error("base_url", f"the reply of {self.base_url} is no {self.kind} ({what}); {remedy}")

    @property
    def _times(self) -> str:
        return "once" if self.retries == 0 else f"up to {self.retries + 1} times"
