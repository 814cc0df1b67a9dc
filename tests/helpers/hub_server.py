"""As much of the Hugging Face hub as its client needs to put a model there and to fetch it."""

import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

ALLOWED = "token-of-org"
_LARGE = (".safetensors", ".parquet")


class HubState:
    """Repositories, and what was sent.

    Attributes:
      repositories: name -> path -> content.
      private: names of those that are.
      sent: sizes of large files, in order of arrival.
      drops: how many large files yet are not taken to their end.
    """

    def __init__(self):
        self.repositories, self.private, self.sent, self.drops = {}, set(), [], 0
        self.objects = {}


@contextlib.contextmanager
def serve_hub():
    """Yields (address, state)."""
    state = HubState()

    class Handler(_Hub):
        hub = state

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Handler.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Handler.address, state
        finally:
            server.shutdown()
            thread.join()


def _sha1(content):
    return hashlib.sha1(content).hexdigest()


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub, address = None, ""
    commit = "1" * 40

    def log_message(self, *words):
        """Says nothing."""

    def do_GET(self):
        self._route({
            r"/api/models/([\w-]+/[\w.-]+)(?:/revision/\w+)?": self._describe,
            r"/api/models/([\w-]+/[\w.-]+)/tree/\w+": self._tree,
            r"/([\w-]+/[\w.-]+)/resolve/\w+/(.+)": self._give,
        })  # fmt: skip

    do_HEAD = do_GET

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(length)
        if self.headers.get("authorization") != f"Bearer {ALLOWED}":
            self._answer(401, {"error": "Invalid username or password."})
            return
        self._route({
            r"/api/validate-yaml": self._validate,
            r"/api/repos/create": self._create,
            r"/api/models/([\w-]+/[\w.-]+)/preupload/\w+": self._preupload,
            r"/api/models/([\w-]+/[\w.-]+)/paths-info/\w+": self._paths_info,
            r"/([\w-]+/[\w.-]+)\.git/info/lfs/objects/batch": self._batch,
            r"/api/models/([\w-]+/[\w.-]+)/commit/\w+": self._commit,
        })  # fmt: skip

    def do_PUT(self):
        length = int(self.headers.get("Content-Length", 0))
        if self.hub.drops:
            self.hub.drops -= 1
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        content = self.rfile.read(length)
        self.hub.objects[hashlib.sha256(content).hexdigest()] = content
        self.hub.sent.append(length)
        self._answer(200, {})

    def _route(self, routes):
        path = urlsplit(self.path).path
        for pattern, answer in routes.items():
            if found := re.fullmatch(pattern, path):
                answer(*found.groups())
                return
        self._answer(404, {"error": f"no {self.command} {path}"})

    def _answer(self, status, content, headers=()):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _files(self, name):
        if name not in self.hub.repositories:
            self._answer(404, {"error": "no such repository"}, [("X-Error-Code", "RepoNotFound")])
            return None
        return self.hub.repositories[name]

    def _validate(self):
        self._answer(200, {"errors": [], "warnings": []})

    def _create(self):
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "org":
            self._answer(403, {"error": "You don't have the rights to create a model there"})
            return
        there = name in self.hub.repositories
        self.hub.repositories.setdefault(name, {".gitattributes": b""})
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(name)
        self._answer(409 if there else 200, {"url": f"{self.address}/{name}", "name": name})

    def _describe(self, name):
        if (files := self._files(name)) is not None:
            siblings = [{"rfilename": path} for path in files]
            self._answer(200, {"id": name, "modelId": name, "sha": self.commit, "private": False,
                               "siblings": siblings, "tags": [], "downloads": 0})  # fmt: skip

    def _entry(self, path, content):
        entry = {"type": "file", "path": path, "size": len(content), "oid": _sha1(content)}
        if path.endswith(_LARGE):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return entry

    def _tree(self, name):
        if (files := self._files(name)) is not None:
            self._answer(200, [self._entry(*each) for each in files.items()])

    def _paths_info(self, name):
        asked = self.body.decode()
        files = self._files(name)
        self._answer(200, [self._entry(*each) for each in files.items() if each[0] in asked])

    def _preupload(self, name):
        asked = [each["path"] for each in json.loads(self.body)["files"]]
        modes = [{"path": path, "uploadMode": "lfs" if path.endswith(_LARGE) else "regular",
                  "shouldIgnore": False, "oid": None} for path in asked]  # fmt: skip
        self._answer(200, {"files": modes})

    def _batch(self, name):
        objects = []
        for each in json.loads(self.body)["objects"]:
            send = {"upload": {"href": f"{self.address}/lfs/{each['oid']}"}}
            there = each["oid"] in self.hub.objects
            objects.append(each if there else {**each, "actions": send})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name):
        import base64

        for line in self.body.splitlines():
            entry = json.loads(line)
            path = entry["value"].get("path")
            if entry["key"] == "file":
                self.hub.repositories[name][path] = base64.b64decode(entry["value"]["content"])
            if entry["key"] == "lfsFile":
                self.hub.repositories[name][path] = self.hub.objects[entry["value"]["oid"]]
        url = f"{self.address}/{name}/commit/{self.commit}"
        self._answer(200, {"commitUrl": url, "commitOid": self.commit})

    def _give(self, name, path):
        files = self._files(name)
        if files is None:
            return
        if path not in files:
            self._answer(404, {}, [("X-Error-Code", "EntryNotFound")])
            return
        named = [("ETag", f'"{_sha1(files[path])}"'), ("X-Repo-Commit", self.commit)]
        self._answer(200, files[path], named)
