"""Who is let in, and which ports can be had; the rest is tried in a browser."""

import asyncio
import sys

import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.explorer import server

PORT = 7700


def answer(kind: str, request: str = "GET /", **headers: str) -> list[dict]:
    """What a request is answered with; the app behind says the results it was given."""
    method, path = request.split()
    sent: list[dict] = []

    async def app(scope, receive, send):
        await send({"type": "handed on", "meta": scope["meta"]})

    async def send(message):
        sent.append(message)

    guard = server.Guard(app, "the results", PORT)
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(guard({"type": kind, "method": method, "path": path, "headers": pairs}, None, send))
    return sent


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("host", [f"127.0.0.1:{PORT}", f"localhost:{PORT}"])
def test_the_page_itself_is_let_in(kind, host):
    handed_on = [{"type": "handed on", "meta": {"results": "the results"}}]
    assert answer(kind, host=host) == handed_on
    assert answer(kind, host=host, origin=f"http://{host}") == handed_on


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("host", "origin"),
    [
        (f"127.0.0.1:{PORT}", "http://127.0.0.1:8888"),
        (f"127.0.0.1:{PORT}", "https://example.org"),
        (f"127.0.0.1:{PORT}", "null"),
        (f"rebound.example.org:{PORT}", f"http://rebound.example.org:{PORT}"),
        ("", f"http://127.0.0.1:{PORT}"),
    ],
)
def test_pages_and_names_of_others_are_not(kind, host, origin):
    messages = answer(kind, host=host, origin=origin)
    refused = {"http": {"status": 403}, "websocket": {"code": 1008}}[kind]
    assert refused.items() <= messages[0].items()
    assert "handed on" not in [message["type"] for message in messages]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ("POST /api/kernel/function_call", None),
        ("POST /api/kernel/set_ui_element_value", None),
        ("POST /api/kernel/run", 403),
        ("POST /api/files/list_files", 403),
        ("PUT /api/kernel/function_call/x", 403),
        ("DELETE /", 403),
    ],
)
def test_a_page_can_set_controls_and_no_more(request_, status):
    first = answer("http", request_, host=f"127.0.0.1:{PORT}")[0]
    assert first.get("status") == status


def test_without_its_library_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "marimo", None)
    with pytest.raises(InputError, match=r'pip install "geneformer_jax\[explore\]"'):
        server.serve(None, 0, print)


def test_a_port_in_use_is_refused_and_0_takes_a_free_one():
    with server.listen(0) as taken:
        address, port = taken.getsockname()
        assert address == "127.0.0.1" and port > 0
        with pytest.raises(InputError, match=f"`port` {port} .* give another one, or 0"):
            server.listen(port)
    server.listen(port).close()
