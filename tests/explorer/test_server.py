"""Who is let in, and which ports can be had; the rest is tried in a browser."""

import asyncio

import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.explorer import server

PORT = 7700


def answer(kind: str, **headers: str) -> list[dict]:
    """What a request is answered with; the app behind says the results it was given."""
    sent: list[dict] = []

    async def app(scope, receive, send):
        await send({"type": "handed on", "meta": scope["meta"]})

    async def send(message):
        sent.append(message)

    guard = server.Guard(app, "the results", PORT)
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(guard({"type": kind, "headers": pairs}, None, send))
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


def test_a_port_in_use_is_refused_and_0_takes_a_free_one():
    with server.listen(0) as taken:
        address, port = taken.getsockname()
        assert address == "127.0.0.1" and port > 0
        with pytest.raises(InputError, match=f"`port` {port} .* give another one, or 0"):
            server.listen(port)
    server.listen(port).close()
