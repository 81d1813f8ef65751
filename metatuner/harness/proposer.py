"""A language model behind an OpenAI-compatible server. It proposes prompts if the config names one.

It reads what a search shows to its proposer: meta-prompts, train rows, scores on them. The samples of a server are not
reproducible.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metatuner.server import Reply, Server

__all__ = ["NOTE", "ProposerServer", "Reply"]

NOTE = "a server's samples are not reproducible; its FLOPs are unknown and counted as 0"
"""The note in the log of a fit that uses a server."""


@dataclass(frozen=True)
class ProposerServer(Server):
    """A model and its server: the config's `models.proposer`."""

    place: str = "models.proposer"

    kind = "chat completion"
    text_at = ("message", "content")

    def chat(self, messages: Sequence[dict[str, str]], *, temperature: float, max_tokens: int, seed: int) -> Reply:
        """One sampled reply.

        Args:
            messages: turns with `role` and `content`.
            temperature: sampling temperature.
            max_tokens: maximum number of tokens in the reply.
            seed: sent to the server; servers use it in different ways.

        Raises:
            UserError: there is no reply, or it is malformed. The message, one line, names the config key to change.
        """
        with self.client() as client:
            create: Any = client.chat.completions.with_raw_response.create
            return self.ask(
                create, messages=list(messages), temperature=temperature, max_tokens=max_tokens, seed=seed % 2**31
            )
