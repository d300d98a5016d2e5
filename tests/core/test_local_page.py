"""Pages for this machine alone: token, host, method and headers are checked on real connections."""

import http.client
import socket
import threading
from contextlib import ExitStack, contextmanager

import pytest

from mil.errors import MilError
from mil.local_page import ADDRESS, MOST_CONNECTIONS, Answer, LocalPage, Refused


def parts_as_text(parts):
    if parts == ("gone",):
        raise Refused(http.HTTPStatus.NOT_FOUND, "It is not there.")
    return Answer("|".join(parts).encode(), "text/plain; charset=utf-8")


@contextmanager
def served(pages=parts_as_text):
    page = LocalPage(pages)
    thread = threading.Thread(target=page.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield page
    finally:
        page.shutdown()
        thread.join()
        page.server_close()


def asked(page, path, method="GET", **headers):
    connection = http.client.HTTPConnection(ADDRESS, page.server_port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text, answer.headers


def test_the_address_answers_and_forbids_requests_to_others():
    with served() as page:
        assert page.server_address[0] == ADDRESS
        status, text, headers = asked(page, page.address.partition(str(page.server_port))[2])
        assert (status, text) == (200, "index.html")
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "http" not in headers["Content-Security-Policy"]
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert asked(page, f"/{page.token}/a%20b/%2e%2e/%2Fetc%2Fpasswd?x=/y")[1] == "a b|..|/etc/passwd"
        assert asked(page, f"/{page.token}/gone")[:2] == (404, "It is not there.\n")
        assert asked(page, f"/{page.token}/x", "HEAD")[:2] == (200, "")


@pytest.mark.parametrize("path", ["/", "/index.html", "/wrong/index.html", "/%FF%00/index.html", "//x/y"])
def test_a_wrong_token_is_refused(path):
    with served() as page:
        assert asked(page, path)[0] == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1", "0.0.0.0"])
def test_another_host_is_refused(host):
    with served() as page:
        assert asked(page, f"/{page.token}/index.html", Host=host)[0] == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
def test_nothing_but_reading_is_answered(method):
    with served() as page:
        assert asked(page, f"/{page.token}/index.html", method)[0] == 405


@pytest.mark.parametrize("sent", [b"\0\xff\r\n\r\n", b"GET\r\n\r\n", b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n"])
def test_what_is_no_request_ends_the_connection_and_not_the_server(sent, capfd):
    with served() as page:
        with socket.create_connection((ADDRESS, page.server_port), timeout=10) as line:
            line.sendall(sent)
            line.recv(100)
        assert asked(page, f"/{page.token}/x")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_connections_that_say_nothing_do_not_keep_the_page_from_its_reader():
    """Another user of the machine who opens as many as are answered at a time, and a few more."""
    with served() as page, ExitStack() as others:
        address = (ADDRESS, page.server_port)
        for _ in range(MOST_CONNECTIONS + 8):
            others.enter_context(socket.create_connection(address))
        assert asked(page, f"/{page.token}/x")[:2] == (200, "x")


def test_a_port_in_use_is_said_with_the_way_out():
    with served() as page, pytest.raises(MilError, match=f"port {page.server_port} .* --port"):
        LocalPage(parts_as_text, page.server_port)
