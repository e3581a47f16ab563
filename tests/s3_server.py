"""An S3 server, moto's, that keeps what it holds in a file when it is stopped: `-m tests.s3_server HOST PORT FILE`."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from pathlib import Path

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

from tests.servers import BUCKET


def serve(host: str, port: str, file: Path) -> None:
    store = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    store.create_bucket(BUCKET, "us-east-1")
    if file.exists():
        for name, content in pickle.loads(file.read_bytes()).items():
            store.put_object(BUCKET, name, content)

    def stop(*_: object) -> None:
        held = dict(store.buckets[BUCKET].keys.items())
        file.write_bytes(pickle.dumps({name: key.value for name, key in held.items()}))
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    run_simple(host, int(port), DomainDispatcherApplication(create_backend_app), threaded=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
