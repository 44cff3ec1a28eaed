"""Bearer tokens by the name of a credential.

A credential called `team-a` is the environment variable `CACHEAGENT_TOKEN_TEAM_A`, or the file `team-a` in the
directory that `CACHEAGENT_CREDENTIALS_DIR` names (a mounted Kubernetes secret). Read again for every listing, so that
rotation needs no restart."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cacheagent.errors import ConfigError

CREDENTIALS_DIR = "CACHEAGENT_CREDENTIALS_DIR"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


def find_token(credential: str) -> str:
    """The token of that name. Blocking (a small file). Raises ConfigError when there is none; never shows what it
    read."""
    if not _NAME.fullmatch(credential):
        raise ConfigError(
            f"credential name {credential[:64]!r} is not usable", hint="letters, digits, dots, dashes and underscores"
        )
    variable = token_variable(credential)
    token = os.environ.get(variable, "").strip()
    directory = os.environ.get(CREDENTIALS_DIR, "")
    if not token and directory:
        token = _read(Path(directory) / credential)
    if not token:
        place = f"file {Path(directory) / credential}" if directory else f"{CREDENTIALS_DIR} is not set"
        raise ConfigError(
            f"no token for credential {credential!r}: {variable} is not set and {place} holds none"
            if directory
            else f"no token for credential {credential!r}: {variable} is not set and {place}",
            hint="set one of them where the agent runs",
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"the token of credential {credential!r} is not one printable ASCII word")
    return token


def token_variable(credential: str) -> str:
    """The environment variable that may hold the token of a credential."""
    return "CACHEAGENT_TOKEN_" + re.sub(r"[^A-Za-z0-9]", "_", credential).upper()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"credential file {path} cannot be read: {type(error).__name__}") from error
