"""What a URL may reach, and for how long; a local server counts who got through to it."""

import base64
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from internvl2.processing import fetch as fetching
from internvl2.processing.fetch import MediaError, RemoteLimits, decode_data_url, fetch

PAYLOAD = b"secret content of the canary"


class Canary(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *arguments):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.server.hits.append((self.path, self.headers["Host"]))
        getattr(self, "get_" + self.path.strip("/").split("/")[0])()

    def get_ok(self):
        self.answer(200, PAYLOAD)

    def get_missing(self):
        self.answer(404, PAYLOAD)

    def get_hop(self):
        left = int(self.path.split("/")[2])
        self.answer(302, Location=f"/hop/{left - 1}" if left else "/ok")

    def get_away(self):
        self.answer(302, Location=self.server.away)

    def get_large(self):
        self.answer(200, bytes(5000))

    def get_packed(self):
        self.answer(200, PAYLOAD, Content_Encoding="gzip")

    def get_short(self):
        self.close_connection = True
        self.answer(200, PAYLOAD, Content_Length=10**3)

    def get_endless(self):
        self.drip(bytes(1000), 0.0, 100_000)

    def get_slow(self):
        self.drip(b"x", 0.05, 200)

    def drip(self, piece, pause, count):
        self.close_connection = True
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            for _ in range(count):
                self.wfile.write(piece)
                time.sleep(pause)
        except OSError:
            return


class CanaryServer(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Clients hang up on purpose here; the default prints a traceback."""


@pytest.fixture
def canary():
    server = CanaryServer(("127.0.0.1", 0), Canary)
    server.daemon_threads = True
    server.hits, server.away = [], "/ok"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url_of(server, path="/ok", host="127.0.0.1"):
    return f"http://{host}:{server.server_port}{path}"


def reachable(server, **limits):
    """Limits under which the local server may be reached."""
    return RemoteLimits(ports=(server.server_port,), **({"allow_private": True} | limits))


def fault(url, limits=None):
    with pytest.raises(MediaError) as caught:
        fetch(url, limits or RemoteLimits())
    message = str(caught.value)
    assert "\n" not in message
    assert PAYLOAD.decode() not in message
    return message


def test_a_url_is_fetched(canary):
    assert fetch(url_of(canary), reachable(canary)) == PAYLOAD
    assert canary.hits == [("/ok", f"127.0.0.1:{canary.server_port}")]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0x7f.1",
        "127.1",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "127.0.0.1.",
        "１２７.0.0.1",
    ],
)
def test_no_way_of_writing_loopback_reaches_it(canary, host):
    fault(url_of(canary, host=host), reachable(canary, allow_private=False))
    assert canary.hits == []


@pytest.mark.parametrize(
    "address",
    [
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::1",
        "fc00::1",
        "fe80::1",
        "fe80::1%eth0",
        "ff02::1",
        "::ffff:10.0.0.1",
        "64:ff9b::808:808",
        "2002:808:808::1",
        "2001:0:1::1",
        "::8.8.8.8",
        "not an address",
    ],
)
def test_addresses_that_are_not_public_are_known(address):
    assert not fetching._is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_pass(address):
    assert fetching._is_public(address)


def answers(monkeypatch, *addresses):
    """Every name stands for these addresses, one answer per look-up, the last one for good."""
    left, real = list(addresses), socket.getaddrinfo

    def look_up(host, port, *arguments, **options):
        if host[0].isdigit():
            return real(host, port, *arguments, **options)
        found = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_a_name_with_one_private_address_is_refused(canary, monkeypatch):
    answers(monkeypatch, ["8.8.8.8", "127.0.0.1"])
    message = fault(url_of(canary, host="two.example"), reachable(canary, allow_private=False))
    assert "not on the public internet" in message
    assert canary.hits == []


def test_the_connection_goes_to_the_address_that_was_checked(canary, monkeypatch):
    seen = []
    monkeypatch.setattr(fetching, "_is_public", lambda address: seen.append(address) or True)
    answers(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
    limits = reachable(canary, allow_private=False)
    assert fetch(url_of(canary, host="rebinding.example"), limits) == PAYLOAD
    assert seen == ["127.0.0.1"]
    assert canary.hits == [("/ok", f"rebinding.example:{canary.server_port}")]


def test_a_redirect_to_a_private_address_is_refused(canary, monkeypatch):
    monkeypatch.setattr(fetching, "_is_public", lambda address: address == "127.0.0.1")
    canary.away = url_of(canary, host="127.0.0.2")
    fault(url_of(canary, "/away"), reachable(canary, allow_private=False))
    assert [path for path, _ in canary.hits] == ["/away"]


@pytest.mark.parametrize(
    "away", ["file:///etc/hostname", "ftp://8.8.8.8/", "http://8.8.8.8:22/", "http://a@8.8.8.8/"]
)
def test_a_redirect_must_be_an_acceptable_url(canary, away):
    canary.away = away
    fault(url_of(canary, "/away"), reachable(canary))


def test_three_redirects_are_followed_and_a_fourth_is_not(canary):
    assert fetch(url_of(canary, "/hop/2"), reachable(canary)) == PAYLOAD
    assert "more than 3 redirects" in fault(url_of(canary, "/hop/3"), reachable(canary))


@pytest.mark.parametrize("path", ["/large", "/endless"])
def test_too_much_data_is_refused(canary, path):
    message = fault(url_of(canary, path), reachable(canary, picture_bytes=4000))
    assert "larger than 4000 bytes" in message


def test_videos_have_a_limit_of_their_own(canary):
    limits = reachable(canary, picture_bytes=4000)
    assert len(fetch(url_of(canary, "/large"), limits, "video")) == 5000


def test_a_slow_server_ends_with_the_deadline(canary):
    start = time.monotonic()
    message = fault(url_of(canary, "/slow"), reachable(canary, picture_seconds=0.3))
    assert "took longer than 0.3 seconds" in message
    assert time.monotonic() - start < 2


def test_a_server_that_never_finishes_its_header_ends_with_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        limits = RemoteLimits(allow_private=True, ports=(port,), picture_seconds=0.3)
        assert "took longer" in fault(f"http://127.0.0.1:{port}/", limits)


def test_a_name_look_up_that_hangs_ends_with_the_deadline(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(0.6) or [])
    assert "took longer" in fault("http://slow.example/", RemoteLimits(picture_seconds=0.2))


def test_a_content_length_that_lies_is_an_error(canary):
    assert "broke off" in fault(url_of(canary, "/short"), reachable(canary))


def test_an_error_status_is_said_without_its_content(canary):
    assert "status 404" in fault(url_of(canary, "/missing"), reachable(canary))


def test_a_compressed_answer_is_refused(canary):
    assert "compressed" in fault(url_of(canary, "/packed"), reachable(canary))


def test_proxies_of_the_environment_are_not_used(canary, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert fetch(url_of(canary), reachable(canary)) == PAYLOAD


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("ftp://8.8.8.8/a.png", "unknown scheme"),
        ("http://8.8.8.8:22/a.png", "port 22 is not accepted; accepted: 80, 443"),
        ("http://user:password@8.8.8.8/a.png", "user name"),
        ("http://8.8.8.8\\@10.0.0.1/", "backslash"),
        ("http://8.8.8.8/a\r\nHost: b", "control character"),
        ("http:///a.png", "names no host"),
        ("http://[::1/", "not a valid URL"),
        ("http://8.8.8.8:99999/", "is not"),
        ("http://" + "a" * 300 + "/", ""),
        ("http://xn--\u00fc/", ""),
    ],
)
def test_urls_that_are_not_acceptable_are_refused(url, what):
    message = fault(url)
    assert what in message
    assert "password" not in message


def test_fetching_can_be_switched_off(canary):
    assert "switched off" in fault(url_of(canary), reachable(canary, enabled=False))
    assert canary.hits == []


def test_a_data_url_is_decoded():
    assert decode_data_url("data:a/b;base64," + base64.b64encode(PAYLOAD).decode()) == PAYLOAD
    assert decode_data_url("data:text/plain,a%20b") == b"a b"


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,a", "not valid base64"),
        ("data:image/png;base64,$$$$", "not valid base64"),
        ("data:image/png;base64," + "A" * 400, "more than 100 bytes"),
    ],
)
def test_broken_and_large_data_urls_are_refused(url, what):
    with pytest.raises(MediaError, match=what):
        decode_data_url(url, 100)
