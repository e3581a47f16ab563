"""optuna-dashboard on a study's storage: for looking, also while the study runs, never for changing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import SQLAlchemyError

import analysis.results as results
from study.errors import StorageError, UsageError, require
from study.spec.secrets import expanded, redacted
from study.tuning import JOURNAL
from study.tuning.storage import journal

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Server(ThreadingMixIn, WSGIServer):
    """A browser opens connections that it does not use yet; each has a thread, so none holds up the others."""

    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Print no line per request."""


def serve(folder: Path, host: str = "127.0.0.1", port: int = 8080) -> None:
    """Show a study in the browser until Ctrl-C; the default host is reached from this machine alone."""
    require("optuna_dashboard", "dashboard")
    loaded = results.load(folder)
    storage = _storage(folder, loaded.spec.get("tuning", {}).get("storage"), loaded.name)
    from optuna_dashboard import wsgi

    try:
        shown = _guarded(wsgi(storage), host)
        server = make_server(host, port, shown, server_class=_Server, handler_class=_Handler)
    except (OSError, OverflowError) as error:
        raise UsageError("dashboard", f"cannot listen on {host}:{port} ({error}); give another port") from error
    with server:
        print(f"dashboard: http://{host}:{server.server_port}/  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def _storage(folder: Path, url: str | None, study: str) -> BaseStorage:
    """Optuna's storage, opened so that nothing is written to it, not even tables."""
    if not url and not (folder / JOURNAL).is_file():  # opening it would make it
        raise StorageError(str(folder), "has no optuna.journal; the study has not begun, or its journal was moved away")
    try:
        storage: BaseStorage = (
            RDBStorage(expanded("tuning.storage", url), skip_table_creation=True) if url else journal(folder)
        )
        names = [held.study_name for held in storage.get_all_studies()]
    except (StorageInternalError, SQLAlchemyError, RuntimeError, ImportError, ValueError, KeyError) as error:
        reason = redacted(f"{type(error).__name__}: {error}".splitlines()[0])
        raise StorageError(str(folder), f"Optuna's storage cannot be read ({reason})") from error
    if study not in names:
        raise StorageError(str(folder), f"Optuna's storage does not hold the study {study}; it holds {names}")
    return storage


def _guarded(application: Application, host: str) -> Application:
    """Refuse requests for another host, and those that would change the storage.

    A page of any site could have its name point here, and read the answers. A running study would trip over changes,
    of which its tables would not know.
    """
    names = {host, "localhost", "127.0.0.1", "::1"}

    def checked(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if urlsplit(f"//{environ.get('HTTP_HOST', '')}").hostname not in names:
            reason = f"the dashboard answers at http://{host} only"
        elif environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            reason = "study dashboard only shows; nothing was changed"
        else:
            return application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "application/json")])
        return [json.dumps({"reason": reason}).encode()]

    return checked
