"""Small HTTP requests for listings and metadata: HEAD and GET with a redirect rule that never leaks a token.

Weight bytes never pass here. A token is sent only to the origin (scheme, host and port) of the first URL, and not
even there any more once a redirect has led elsewhere. HTTPS never steps down to HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import NoReturn, Self
from urllib.parse import quote, urljoin, urlsplit

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from cacheagent.addresses import is_refused
from cacheagent.errors import (
    CacheAgentError,
    ConfigError,
    OriginForbidden,
    OriginNotFound,
    OriginThrottled,
    OriginUnavailable,
    OriginWrong,
    PolicyRefused,
    SourceChanged,
)
from cacheagent.source.address import (
    CONNECT_TIMEOUT_S,
    IDLE_TIMEOUT_S,
    PASSING,
    RETRY_DELAYS_S,
    origin_of,
    shown,
    untrusted_certificate,
)

MAX_REDIRECTS = 5
"""Real origins need one or two (mirror, then storage). Chosen."""
MAX_CONNECTIONS = 32
"""Parallel requests of one source. Chosen."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ESCAPED_AND_RESERVED = "%:/?#[]@!$&'()*+,;=~"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer that is not a redirect. `url` is where it came from; it may hold a signature. `at_home`: that is the
    origin that was asked first, and no redirect led away from it."""

    status: int
    url: str = field(repr=False)
    at_home: bool
    redirected: bool
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Caller:
    """As whom requests are made. `credential` is the name that messages may show; `token` is secret."""

    credential: str = ""
    token: str = field(default="", repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What the home origin gets."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


class Web:
    """Makes requests from one event loop; connections are opened by the first one."""

    def __init__(self, *, ca_bundle: str = "", refused_networks: tuple[str, ...] = ()) -> None:
        self._ca_bundle = ca_bundle
        self._refused_networks = refused_networks
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of connections. May be called twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def ask(
        self, method: str, url: str, caller: Caller, *, headers: Mapping[str, str] | None = None, limit_bytes: int = 0
    ) -> Answer:
        """Send, follow redirects, read at most `limit_bytes` of the body (longer: OriginWrong).

        Whatever status ends the chain is returned; see `expect_success`. Raises OriginUnavailable, OriginWrong. What
        may pass is tried again twice, shortly after: of ten thousand HEADs one may well hit a moment's trouble.
        """
        for delay_s in RETRY_DELAYS_S:
            with contextlib.suppress(OriginUnavailable):
                answer = await self._ask_once(method, url, caller, headers or {}, limit_bytes)
                if answer.status not in PASSING:
                    return answer
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
        return await self._ask_once(method, url, caller, headers or {}, limit_bytes)

    async def _ask_once(
        self, method: str, url: str, caller: Caller, headers: Mapping[str, str], limit_bytes: int
    ) -> Answer:
        home = origin_of(url)
        at_home, here = True, url
        for hop in range(MAX_REDIRECTS + 1):
            _require_permitted(urlsplit(here).hostname or "", here, self._refused_networks)
            sent = {"Accept-Encoding": "identity", **headers, **(caller.headers if at_home else {})}
            try:
                async with self._open_session().request(
                    method, URL(here, encoded=True), headers=sent, allow_redirects=False
                ) as response:
                    target = response.headers.get("Location", "")
                    if response.status not in _REDIRECTS or not target:
                        body = await _read_body(response, limit_bytes, where=shown(url))
                        return Answer(
                            status=response.status,
                            url=here,
                            at_home=at_home,
                            redirected=hop > 0,
                            headers=response.headers.copy(),
                            body=body,
                        )
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                self._raise_unreachable(error, here)
            here = _redirect_target(here, target)
            at_home = at_home and origin_of(here) == home
        raise OriginWrong(f"{shown(url)} redirects more than {MAX_REDIRECTS} times")

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=MAX_CONNECTIONS,
                ssl=tls_context(self._ca_bundle) if self._ca_bundle else True,
                resolver=_Resolver(self._refused_networks) if self._refused_networks else None,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=IDLE_TIMEOUT_S),
            )
        return self._session

    def _raise_unreachable(self, error: Exception, url: str) -> NoReturn:
        origin = origin_of(url)
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            raise untrusted_certificate(origin, self._ca_bundle) from error
        if isinstance(error, aiohttp.InvalidURL):
            raise OriginWrong(f"{origin} leads to a URL that makes no sense") from error
        reason = "no answer in time" if isinstance(error, TimeoutError | asyncio.TimeoutError) else type(error).__name__
        raise OriginUnavailable(
            f"{origin} cannot be reached: {reason}", hint="is the server up, and is the way to it open from this node?"
        ) from error


class _Resolver(ThreadedResolver):
    """Names whose addresses are refused have none: what is looked at here is what is connected to."""

    def __init__(self, refused_networks: tuple[str, ...]) -> None:
        super().__init__()
        self._refused_networks = refused_networks

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        for result in found:
            _require_permitted(result["host"], f"http://{host}", self._refused_networks)
        return found


def _require_permitted(address: str, url: str, refused_networks: tuple[str, ...]) -> None:
    if is_refused(address, refused_networks):
        raise PolicyRefused(
            f"{urlsplit(url).hostname} is at {address}, where nothing may be fetched from on demand",
            hint="use a ModelCache, which an administrator makes",
        )


def expect_success(answer: Answer, what: str, origin: str, caller: Caller) -> Answer:
    """The answer itself if it is a 2xx; otherwise the error that its status stands for. `what` names the thing asked
    for."""
    if 200 <= answer.status < 300:
        return answer
    raise refusal(answer.status, what, origin, caller.credential)


def refusal(status: int, what: str, origin: str, credential: str) -> CacheAgentError:
    """The one table from HTTP status to error, for sources that speak plain HTTP. Bodies are never shown."""
    says = f"{what}: {origin} answered {status}"
    if status in (401, 403):
        who = f"credential {credential!r} was used" if credential else "no credential was used"
        return OriginForbidden(says, hint=f"{who}; name one that may read it")
    if status in (404, 410):
        return OriginNotFound(says, hint="look at the URI; some origins also answer 404 for what may not be seen")
    if status == 412:
        return SourceChanged(
            f"{what} is no longer the one that was listed ({origin} answered 412)", hint="resolve again"
        )
    if status == 429:
        return OriginThrottled(
            says, hint="the origin limits requests; try later or use a credential with a higher limit"
        )
    if status >= 500 or status == 408:
        return OriginUnavailable(says, hint="the trouble is at the origin; try again later")
    return OriginWrong(f"{says}, which is not expected here", hint="is the URI the right kind of source?")


def tls_context(ca_bundle: str) -> ssl.SSLContext:
    """Trusts exactly the authorities in the bundle. Raises ConfigError if it cannot be read."""
    try:
        return ssl.create_default_context(cafile=ca_bundle)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_bundle {ca_bundle} cannot be read: {error}", hint="it must be a PEM file") from error


async def _read_body(response: aiohttp.ClientResponse, limit_bytes: int, where: str) -> bytes:
    body = bytearray()
    if limit_bytes and 200 <= response.status < 300:
        async for chunk in response.content.iter_chunked(256 * 1024):
            body += chunk
            if len(body) > limit_bytes:
                raise OriginWrong(f"{where} is longer than the {limit_bytes} bytes that are allowed for it")
    return bytes(body)


def _redirect_target(here: str, location: str) -> str:
    target = urljoin(here, quote(location, safe=_ESCAPED_AND_RESERVED)).partition("#")[0]
    parts = urlsplit(target)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise OriginWrong(f"{origin_of(here)} redirects to something that is not a plain http(s) URL")
    if here.startswith("https:") and parts.scheme != "https":
        raise OriginWrong(
            f"{origin_of(here)} redirects from https to http ({origin_of(target)})",
            hint="refused: anybody could listen",
        )
    return target
