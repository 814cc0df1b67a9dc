"""A folder as a bucket of S3, on this machine and for reading only."""

import contextlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

BUCKET = "bucket"
KEY = "any"


@contextlib.contextmanager
def serve_bucket(folder):
    """Serves what lies in a folder as the objects of a bucket; yields host and port."""

    class Bucket(_Bucket):
        root = folder

    with ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Bucket(BaseHTTPRequestHandler):
    """HEAD and GET of objects, of ranges of them, and lists (version 2) of those with a prefix."""

    protocol_version = "HTTP/1.1"
    root = None

    def do_HEAD(self):
        self._answer(*self._object())

    def do_GET(self):
        query = parse_qs(urlsplit(self.path).query)
        if not self.path.startswith((f"/{BUCKET}/", f"/{BUCKET}?")):
            self._answer(404, b"<Error><Code>NoSuchBucket</Code></Error>")
            return
        self._answer(*(self._list(query) if "list-type" in query else self._object()))

    def log_message(self, *words):
        """Says nothing."""

    def _answer(self, status, content, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _object(self):
        _, _, key = urlsplit(self.path).path.lstrip("/").partition("/")
        file = self.root / key
        if not key or not file.is_file():
            return (200 if not key else 404), b""
        content = file.read_bytes()
        part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if part is None:
            return 200, content
        first, last = int(part[1]), min(int(part[2]), len(content) - 1)
        place = ("Content-Range", f"bytes {first}-{last}/{len(content)}")
        return 206, content[first : last + 1], [place]

    def _list(self, query):
        prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))
        objects, folders = [], set()
        for file in sorted(path for path in self.root.rglob("*") if path.is_file()):
            key = file.relative_to(self.root).as_posix()
            if key.startswith(prefix):
                inner, found, _ = key[len(prefix) :].partition(delimiter or "\0")
                if found:
                    folders.add(f"{prefix}{inner}{delimiter}")
                else:
                    objects.append(f"<Key>{escape(key)}</Key><Size>{file.stat().st_size}</Size>")
        rows = [f"<Contents>{each}</Contents>" for each in objects]
        rows += [f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders]
        head = f"<KeyCount>{len(rows)}</KeyCount><IsTruncated>false</IsTruncated>"
        text = f"<ListBucketResult>{head}{''.join(rows)}</ListBucketResult>"
        return 200, text.encode(), [("Content-Type", "application/xml")]
