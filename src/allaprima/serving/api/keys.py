"""Bearer keys: who asks. Without keys only this machine is answered, under its own names."""

from __future__ import annotations

import hmac
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from allaprima.core.errors import SettingError
from allaprima.serving.api.errors import ApiError

ENVIRONMENT = "ALLAPRIMA_KEYS"
LEAST = 16
"""Characters of a key."""
LINE = re.compile(r"([A-Za-z0-9_.@-]{1,64})[\s:=]+([!-~]+)")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Keys:
    """Clients' names and their keys; none: whoever reaches the server is `anyone`."""

    named: tuple[tuple[str, bytes], ...] = field(default=(), repr=False)

    @classmethod
    def parse(cls, text: str, where: str) -> Keys:
        """`NAME KEY` a line (or between commas); `#` begins a comment. Raises `SettingError`, which never shows a key."""
        found: list[tuple[str, bytes]] = []
        for number, line in enumerate(re.split(r"[\n,]", text), 1):
            said = line.partition("#")[0].strip()
            if not said:
                continue
            match = LINE.fullmatch(said)
            if match is None:
                raise SettingError(f"{where}, entry {number}: NAME KEY is due, a name of letters and digits first.")
            if len(match[2]) < LEAST:
                raise SettingError(
                    f"{where}, entry {number}: the key of {match[1]!r} has {len(match[2])} characters: {LEAST} or more are"
                    " due. `openssl rand -hex 24` makes one."
                )
            found.append((match[1], match[2].encode()))
        if not found:
            raise SettingError(f"{where} holds no keys: NAME KEY is due, one a line.")
        names, keys = [n for n, _ in found], [k for _, k in found]
        if len({*keys}) < len(keys) or len({*names}) < len(names):
            raise SettingError(f"{where}: a name or a key is there twice. Give every client its own.")
        return cls(tuple(found))

    @classmethod
    def load(cls, path: Path | None) -> Keys:
        """From a file, else from the environment (`ALLAPRIMA_KEYS`), else none. Raises `SettingError`."""
        if path is None:
            said = os.environ.get(ENVIRONMENT, "")
            return cls.parse(said, ENVIRONMENT) if said.strip() else cls()
        try:
            if path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
                raise SettingError(f"{path} can be read by everyone on this machine: chmod 600 {path}")
            return cls.parse(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as e:
            raise SettingError(f"{path} can't be read: {e}. A text file of NAME KEY, one a line, is due.") from e

    def client(self, authorization: str | None) -> str:
        """Who has this `Authorization`. Raises a 401 `ApiError`.

        Every key is compared, each in a time that doesn't tell how much of it was right.
        """
        if not self.named:
            return "anyone"
        scheme, _, given = (authorization or "").partition(" ")
        offered = given.strip().encode("latin-1", "replace")
        name: str | None = None
        for known, key in self.named:
            if hmac.compare_digest(offered, key):
                name = known
        if scheme.lower() != "bearer" or not offered:
            raise ApiError(401, "invalid_api_key", "no API key: send 'Authorization: Bearer KEY'.")
        if name is None:
            raise ApiError(401, "invalid_api_key", "this API key is not known here: check it.")
        return name


def check_local(host: str | None, origin: str | None, own: tuple[str, ...] = LOOPBACK) -> None:
    """Of a server without keys: raise a 403 `ApiError` for what a page of another site makes a browser send.

    Such a page can make its own name point to this machine (then `Host` is that name), or just post here (then `Origin`
    is not `Host`).
    """
    if _name(host) not in own:
        raise ApiError(
            403, "forbidden", f"this server has no keys, so only requests to {' or '.join(own[:2])} are answered, not to"
            f" {(host or '')[:80]!r}. Start it with --keys, or with --allow-anyone.",
        )  # fmt: skip
    if origin is not None and origin.partition("://")[2] != host:
        raise ApiError(403, "forbidden", f"a page of {origin[:80]!r} asks, and this server has no keys: start it with --keys.")


def _name(host: str | None) -> str:
    """`Host` without its port."""
    said = (host or "").strip().lower()
    if said.startswith("["):
        return said[1:].partition("]")[0]
    return said.partition(":")[0]
