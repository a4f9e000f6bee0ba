"""Who may ask: secrets from a file or the environment, never from a command line that all can see.

A line is ``TOKEN``, or ``NAME TOKEN``; the name is what the trail of the rules then tells. Empty
lines and those that begin with ``#`` are left out.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edgekd.contracts.artifacts import read_text
from edgekd.errors import InputError

VARIABLE: Final = "EDGEKD_SERVE_TOKEN"
LEAST_LETTERS: Final = 16
_MOST_TOKENS: Final = 100
_MAKE: Final = 'make one: python3 -c "import secrets; print(secrets.token_urlsafe(32))"'
_UNNAMED: Final = "the token"


class Tokens:
    """Secrets by the names of those who have them.

    Args:
        text: lines as above.
        source: what to call it in messages, which never hold a secret.

    Raises:
        InputError: no token, one that is short or stands twice, or a line that is none.
    """

    def __init__(self, text: str, source: str) -> None:
        self._known: dict[bytes, str] = {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            token = words[-1]
            if len(words) > 2 or not re.fullmatch(r"[!-~]+", token):
                raise InputError(
                    f"line {number} of {source} is no token; expected 'TOKEN' or 'NAME TOKEN' of "
                    "letters without blanks"
                )
            if len(token) < LEAST_LETTERS:
                raise InputError(
                    f"line {number} of {source} has a token of {len(token)} letters, expected at "
                    f"least {LEAST_LETTERS}, since it can be guessed from elsewhere; {_MAKE}"
                )
            name = words[0] if len(words) == 2 else _UNNAMED
            if not name.isprintable() or len(name) > 64:
                raise InputError(f"line {number} of {source} has a name that is no short word")
            key = _digest(token)
            if key in self._known:
                raise InputError(f"line {number} of {source} repeats a token of before")
            self._known[key] = name
        if not self._known or len(self._known) > _MOST_TOKENS:
            raise InputError(
                f"{source} holds {len(self._known)} tokens, expected 1 to {_MOST_TOKENS}; {_MAKE}"
            )

    def name_of(self, authorization: str | None) -> str | None:
        """Whose token a header ``Authorization: Bearer TOKEN`` holds; None where it is nobody's.

        Takes as long for one that is nearly right as for any other.
        """
        scheme, _, token = (authorization or "").partition(" ")
        given = _digest(token.strip())
        found = None
        for key, name in self._known.items():
            if hmac.compare_digest(key, given):
                found = name
        return found if scheme.lower() == "bearer" else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def read_tokens(file: Path | None, environment: Mapping[str, str] = os.environ) -> Tokens | None:
    """From ``--token-file``, or from :data:`VARIABLE`; None where neither is given.

    Raises:
        InputError: both are, or what is there holds no tokens.
    """
    value = environment.get(VARIABLE)
    if file is not None and value is not None:
        raise InputError(
            f"both --token-file and {VARIABLE} are given, and nobody said which holds; give one"
        )
    if file is not None:
        return Tokens(read_text(file), str(file))
    return None if value is None else Tokens(value, VARIABLE)
