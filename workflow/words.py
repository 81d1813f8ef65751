"""Starts a program with what a user gave to make: `words.py PROGRAM WORD ...`. No shell reads it.

`{NAME}` in a word stands for the environment variable NAME. The word `{ARGS}` stands for the words that a shell would
find in ARGS, and `{KEYS}` for the config keys in KEYS.
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn


def split_keys(text: str) -> list[str]:
    """Words `key=value`, split at white space outside of quotes, brackets and braces.

    Quotes around a whole value are removed.

    >>> split_keys("run=[main, ablation] results='my results'")
    ['run=[main, ablation]', 'results=my results']
    """
    words: list[str] = []
    word, quote, depth = "", "", 0
    for character in text:
        begins = not word or word.rstrip()[-1] in "=:,[{"
        if quote:
            escaped = quote == '"' and (len(word) - len(word.rstrip("\\"))) % 2
            closes = character == quote and not escaped
            quote = "" if closes else quote
            word += character if depth or quote else ""
        elif character in "'\"" and begins:
            quote = character
            word += character if depth else ""
        elif character.isspace() and not depth:
            words, word = [*words, word], ""
        else:
            depth = max(0, depth + (character in "[{") - (character in "]}"))
            word += character
    if quote:
        stop(f"KEYS: a quote {quote} is not closed in {text!r}; close it")
    return [each for each in [*words, word] if each]


def split_arguments(text: str, keys_follow: bool) -> list[str]:
    """The words that a shell would find in ARGS; if `keys_follow`, without a --config."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        stop(f"ARGS: {str(error).lower()} in {text!r}; close it")
    for word in words:
        name = word.partition("=")[0]
        # Snakemake takes the last --config alone: this one would be lost.
        if keys_follow and (name == "--config" or re.fullmatch("-[A-Za-z]*C.*", name)):
            stop(f'ARGS has {word}; write its keys as KEYS="..."')
    return words


def fill(template: Sequence[str], given: Mapping[str, str]) -> list[str]:
    """The template's words, with the given values in place of their names."""
    found: list[str] = []
    for word in template:
        if word == "{ARGS}":
            found += split_arguments(given["ARGS"], "--config" in template)
        elif word == "{KEYS}":
            found += split_keys(given["KEYS"])
        else:
            found.append(re.sub(r"\{([A-Z]+)\}", lambda match: given[match[1]], word))
    return found


def stop(message: str) -> NoReturn:
    """Say in one line what is wrong."""
    sys.exit(f"make: {message}")


if __name__ == "__main__":
    command = fill(sys.argv[1:], os.environ)
    print(shlex.join(command), flush=True)
    try:
        os.execvp(command[0], command)
    except (OSError, ValueError) as error:
        stop(f"{command[0]}: {error}")
