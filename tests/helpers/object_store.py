"""A bucket of S3 on this machine."""

import contextlib
import logging

import fsspec

BUCKET = "bucket"
KEY = "any"


@contextlib.contextmanager
def serve_bucket(folder):
    """Puts what lies in a folder into a bucket; yields host and port of the server."""
    from moto.s3.models import s3_backends
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    try:
        host, port = server.get_host_and_port()
        address = f"{host}:{port}"
        files = fsspec.filesystem("s3", endpoint_url=f"http://{address}", key=KEY, secret=KEY)
        files.mkdir(BUCKET)
        files.put(f"{folder}/", f"{BUCKET}/", recursive=True)
        yield address
    finally:
        # Buckets are kept by the library, not by its server.
        s3_backends.reset()
        server.stop()
