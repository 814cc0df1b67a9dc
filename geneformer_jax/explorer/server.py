"""The explorer's server: on this machine only, behind a token, without running code of a page.

Built on marimo (Apache-2.0): its wheel holds all that a page needs, so that nothing is fetched from
a network; it draws the Altair charts that reports have and tells which points were chosen, pages
tables on the server, and has the token built in. Streamlit has no token and counts its users over
the network; Panel needs Bokeh beside it and has no token in the address. marimo serves an app in
"run" mode: a page can set the values of the controls it was sent, and no more.
"""

import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from geneformer_jax.common.errors import InputError
from geneformer_jax.explorer.folder import RESULTS, Results

_HOST = "127.0.0.1"
_APP = Path(__file__).with_name("app.py")
# All that the page sends: values of its controls, calls of its tables, the token, its own export.
_POSTS = (
    "/api/kernel/set_ui_element_value",
    "/api/kernel/function_call",
    "/auth/login",
    "/api/export/html",
)
# Pages that are open do not hold up the end.
_CLOSING_S = 1


def serve(results: Results, port: int, tell: Callable[[str], None]) -> None:
    """Serves results until it is interrupted.

    Args:
      results: of a folder.
      port: to listen at; 0 takes any free one.
      tell: is given the address, once it can be opened.

    Raises:
      InputError: the port is taken or not allowed, or marimo is not installed.
      KeyboardInterrupt: at its end.
    """
    try:
        import marimo
        import uvicorn
    except ModuleNotFoundError as error:
        raise InputError(
            "the explorer needs marimo, which is not installed: "
            'pip install "geneformer_jax[explore]"'
        ) from error
    token, inner = secrets.token_urlsafe(24), []

    def guard(app: Any) -> Guard:
        inner.append(app)
        return Guard(app, results, port)

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            # Python would wait for what open pages still run.
            await inner[0].state.session_manager.shutdown()
            await super().shutdown(sockets)

    with listen(port) as listening:
        port = listening.getsockname()[1]
        apps = marimo.create_asgi_app(quiet=True, token=token)
        app = apps.with_app(path="/", root=str(_APP), middleware=[guard]).build()
        config = uvicorn.Config(
            app, log_level="critical", lifespan="off", timeout_graceful_shutdown=_CLOSING_S
        )
        tell(f"http://{_HOST}:{port}/?access_token={token}")
        Server(config).run(sockets=[listening])


def listen(port: int) -> socket.socket:
    """Returns a socket that listens on this machine alone, at a port or (0) any free one.

    Raises:
      InputError: the port is taken or not allowed.
    """
    try:
        return socket.create_server((_HOST, port))
    except OSError as error:
        raise InputError(
            f"`port` {port} cannot be listened at ({error.strerror}); give another one, or 0 for "
            "any that is free"
        ) from error


class Guard:
    """Hands the app its results, and lets through only what its own page sends.

    The token is marimo's affair. A page of someone else that a browser shows meanwhile could still
    ask here in the reader's name, as a name of its own for this address could.
    """

    def __init__(self, app: Callable[..., Any], results: Results, port: int):
        """Wraps an ASGI app that listens at a port."""
        self._app, self._results = app, results
        self._hosts = {f"{name}:{port}".encode() for name in (_HOST, "localhost")}
        self._origins = {b"http://" + host for host in self._hosts}

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """Answers one request, or hands it on."""
        if self._is_of_our_page(scope):
            scope["meta"] = {RESULTS: self._results}
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"not from here"})

    def _is_of_our_page(self, scope: dict) -> bool:
        headers = dict(scope["headers"])
        origin = headers.get(b"origin")
        is_from_here = headers.get(b"host") in self._hosts and (
            origin is None or origin in self._origins
        )
        only_reads = scope["type"] == "websocket" or scope["method"] in ("GET", "HEAD")
        return is_from_here and (only_reads or scope["path"] in _POSTS)
