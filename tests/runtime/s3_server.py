"""A local S3 server, and credentials for it."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "artifacts"


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedMotoServer]:
    """A server with an empty bucket that everything in this process and its children talks to."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    # Servers of one process share what they hold.
    urllib.request.urlopen(urllib.request.Request(f"{settings['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")).close()
    bucket().mkdir(BUCKET)
    try:
        yield server
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        server.stop()


def bucket() -> fsspec.AbstractFileSystem:
    """The bucket's server as another machine sees it: nothing is remembered."""
    return fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
