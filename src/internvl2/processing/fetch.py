"""Fetch what a URL points to, without letting the URL reach where it should not.

Whoever writes the URL chooses the host, so every address that the host's name stands for must be
public, and the connection goes to the very address that was checked: a name that resolves otherwise
the second time gains nothing. Time, size and redirects are bounded; proxies are not used.
"""

import base64
import binascii
import ipaddress
import queue
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    import httpcore
    import httpx

MediaKind = Literal["picture", "video"]

_UNSAFE_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "64:ff9b::/96",  # NAT64: an IPv4 address inside, which `is_global` does not look at
        "64:ff9b:1::/48",
        "2002::/16",  # 6to4
        "2001::/32",  # Teredo
        "::/96",  # IPv4-compatible
        "::ffff:0:0:0/96",  # IPv4-translated
    )
)
_REDIRECTS = (301, 302, 303, 307, 308)


class MediaError(ValueError):
    """A picture or video that cannot be used; the message is one line naming it and the reason."""


@dataclass(frozen=True, slots=True)
class RemoteLimits:
    """What fetching a picture or video from a URL may cost, and where it may go."""

    enabled: bool = True
    """False: no http(s) URL is fetched; data: URLs still work."""
    picture_bytes: int = 20_000_000
    video_bytes: int = 200_000_000
    picture_seconds: float = 10.0
    """For everything together: name look-up, redirects, connecting, reading."""
    video_seconds: float = 30.0
    redirects: int = 3
    ports: tuple[int, ...] = (80, 443)
    allow_private: bool = False
    """Also reach this machine and private networks."""

    def max_bytes(self, kind: MediaKind) -> int:
        """How large a picture or a video may be."""
        return self.picture_bytes if kind == "picture" else self.video_bytes

    def seconds(self, kind: MediaKind) -> float:
        """How long fetching a picture or a video may take."""
        return self.picture_seconds if kind == "picture" else self.video_seconds


def shorten(text: str, length: int = 100) -> str:
    """`text` on one line, cut where it is longer than `length` characters."""
    clean = "".join(c if c.isprintable() else "?" for c in text[: length + 1])
    return clean if len(text) <= length else f"{clean[:length]}..."


def decode_data_url(url: str, max_bytes: int = 20_000_000) -> bytes:
    """The bytes inside a `data:` URL."""
    header, comma, body = url.partition(",")
    name = f"{shorten(header, 40)},... ({len(url)} characters)"
    if not comma:
        raise MediaError(f"data URL {name} has no comma; need data:image/png;base64,<data>")
    if len(body) * 3 // 4 > max_bytes + 3:
        raise MediaError(f"data URL {name} holds more than {max_bytes} bytes")
    if not header.lower().endswith(";base64"):
        return urllib.parse.unquote_to_bytes(body)
    try:
        return base64.b64decode("".join(urllib.parse.unquote(body).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"data URL {name} is not valid base64") from error


def fetch(url: str, limits: RemoteLimits, kind: MediaKind = "picture") -> bytes:
    """What an http(s) URL holds; a `MediaError` names the URL but never what came from it."""
    import httpcore

    if not limits.enabled:
        raise MediaError(f"{shorten(url)}: fetching from URLs is switched off")
    name = shorten(url)
    deadline = _Deadline(name, limits.seconds(kind))
    backend = _GuardedBackend(limits, deadline)
    try:
        with httpcore.ConnectionPool(
            network_backend=cast("httpcore.NetworkBackend", backend)
        ) as pool:
            return _follow(pool, url, limits, limits.max_bytes(kind), deadline)
    except httpcore.TimeoutException as error:
        raise deadline.passed() from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise MediaError(f"{name}: the connection failed or broke off") from error
    except UnicodeError as error:
        raise MediaError(f"{name} is not a valid URL") from error


def _follow(
    pool: "httpcore.ConnectionPool",
    url: str,
    limits: RemoteLimits,
    max_bytes: int,
    deadline: "_Deadline",
) -> bytes:
    target = _parse(url, limits)
    for _ in range(limits.redirects + 1):
        with pool.stream(
            "GET",
            _core_url(target),
            headers=[
                (b"Host", target.netloc),
                (b"User-Agent", b"internvl2"),
                (b"Accept", b"image/*, video/*, */*;q=0.5"),
                (b"Accept-Encoding", b"identity"),
            ],
        ) as response:
            if response.status not in _REDIRECTS:
                return _body(response, deadline, max_bytes)
            location = _header(response, b"location")
        target = _parse(_join(target, location, deadline.name), limits)
    raise MediaError(f"{deadline.name}: more than {limits.redirects} redirects")


def _body(response: "httpcore.Response", deadline: "_Deadline", max_bytes: int) -> bytes:
    too_large = MediaError(f"{deadline.name} is larger than {max_bytes} bytes")
    if response.status != 200:
        raise MediaError(f"{deadline.name}: the server answered with status {response.status}")
    if _header(response, b"content-encoding").lower() not in ("", "identity"):
        raise MediaError(f"{deadline.name}: the server sent it compressed, which is not accepted")
    length = _header(response, b"content-length")
    if length.isdigit() and int(length) > max_bytes:
        raise too_large
    body = bytearray()
    for chunk in cast("Iterator[bytes]", response.iter_stream()):
        body += chunk
        deadline.remaining()
        if len(body) > max_bytes:
            raise too_large
    return bytes(body)


def _header(response: "httpcore.Response", name: bytes) -> str:
    return next(
        (value.decode("latin-1") for key, value in response.headers if key.lower() == name), ""
    )


def _join(base: "httpx.URL", location: str, name: str) -> str:
    import httpx

    try:
        return str(base.join(location))
    except (httpx.InvalidURL, ValueError) as error:
        raise MediaError(f"{name}: redirected to something that is not a URL") from error


def _parse(url: str, limits: RemoteLimits) -> "httpx.URL":
    """The URL, taken apart by one parser; everything after works with these parts."""
    import httpx

    name = shorten(url)
    if "\\" in url or not url.isprintable() or " " in url:
        raise MediaError("a URL with a backslash, space or control character is not accepted")
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise MediaError(f"{name} is not a valid URL") from error
    if parsed.scheme not in ("http", "https"):
        raise MediaError(f"{name}: unknown scheme {parsed.scheme!r}; accepted: http, https, data")
    if parsed.userinfo:
        raise MediaError(f"the URL for host {parsed.host} holds a user name; that is not accepted")
    if not parsed.host:
        raise MediaError(f"{name} names no host")
    if _port(parsed) not in limits.ports:
        accepted = ", ".join(map(str, limits.ports))
        raise MediaError(f"{name}: port {_port(parsed)} is not accepted; accepted: {accepted}")
    return parsed


def _port(url: "httpx.URL") -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _core_url(url: "httpx.URL") -> "httpcore.URL":
    import httpcore

    return httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=_port(url), target=url.raw_path
    )


class _Deadline:
    """One limit for all steps of a fetch."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    def remaining(self) -> float:
        left = self.end - time.monotonic()
        if left <= 0:
            raise self.passed()
        return left

    def passed(self) -> MediaError:
        return MediaError(f"{self.name}: took longer than {self.seconds:g} seconds")


class _GuardedBackend:
    """Opens connections for httpcore, only to addresses that were checked."""

    def __init__(self, limits: RemoteLimits, deadline: _Deadline) -> None:
        self.limits = limits
        self.deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> "_TimedStream":
        import httpcore

        addresses = _resolve(host, port, self.deadline)
        if not self.limits.allow_private and not all(map(_is_public, addresses)):
            raise MediaError(f"{self.deadline.name}: the host is not on the public internet")
        opener = httpcore.SyncBackend()
        for address in addresses:
            try:
                stream = opener.connect_tcp(address, port, self.deadline.remaining())
            except httpcore.ConnectError:
                continue
            return _TimedStream(stream, self.deadline)
        raise httpcore.ConnectError("no address answers")

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, self.deadline.remaining()))


class _TimedStream:
    """A connection whose every operation ends with the fetch's deadline."""

    def __init__(self, stream: "httpcore.NetworkStream", deadline: _Deadline) -> None:
        self.stream = stream
        self.deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, self.deadline.remaining())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, self.deadline.remaining())

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> "_TimedStream":
        left = self.deadline.remaining()
        return _TimedStream(
            self.stream.start_tls(ssl_context, server_hostname, left), self.deadline
        )

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


def _resolve(host: str, port: int, deadline: _Deadline) -> list[str]:
    """Every address of `host`; in a thread because a name look-up knows no time limit."""
    answer: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            found = []
        answer.put([str(entry[4][0]) for entry in found])

    threading.Thread(target=look_up, daemon=True).start()
    try:
        addresses = answer.get(timeout=deadline.remaining())
    except queue.Empty:
        raise deadline.passed() from None
    if not addresses:
        raise MediaError(f"{deadline.name}: the host {shorten(host, 60)} was not found")
    return list(dict.fromkeys(addresses))


def _is_public(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.scope_id is not None:
            return False
        parsed = parsed.ipv4_mapped or parsed
    unsafe = any(parsed in network for network in _UNSAFE_NETWORKS)
    return parsed.is_global and not parsed.is_multicast and not unsafe
