"""A run's page over HTTP on the loopback address, fresh while the run goes on."""
from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from twinview.analysis.report.curves import charts_of
from twinview.analysis.report.run_page import Pictures, head, run_page
from twinview.analysis.report.runs import RunInfo
from twinview.errors import TwinviewError

HOST = "127.0.0.1"
Draw = Callable[[], tuple[Pictures, list[str]]]


class Server(ThreadingHTTPServer):
    """Serves one run's folder; `draw` is asked again in a thread of its own when a checkpoint has come."""

    daemon_threads = True

    def __init__(self, folder: Path, draw: Draw | None, port: int = 0) -> None:
        """`port` 0: any that is free.  Raises TwinviewError where it is taken."""
        self.folder, self.draw = folder, draw
        self.pictures: Pictures = {}
        self.notes: list[str] = []
        self.drawn = 0  # how often pictures have changed
        self._seen: set[str] = set()
        self._busy = threading.Lock()
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as e:
            raise TwinviewError(f"--port: {port} cannot be listened at: {e.strerror}. Name another, or leave it out.") from None

    @property
    def url(self) -> str:
        """Where a browser finds the page."""
        return f"http://{HOST}:{self.server_address[1]}/"

    def page(self) -> str:
        """The page as the run stands."""
        self._look()
        return run_page(RunInfo(self.folder), self.pictures, notes=self.notes, live=True)

    def data(self) -> str:
        """What a page that is open asks for."""
        self._look()
        run = RunInfo(self.folder)
        return json.dumps({"head": head(run), "charts": charts_of(run.rows, run.evaluations), "pictures": self.drawn}, allow_nan=False)

    def _look(self) -> None:
        """Draw anew, aside, where there are checkpoints or pictures that were not there before."""
        there = {p.name for place in ("checkpoints", "pictures", "pictures/cells") for p in (self.folder / place).glob("*")}
        if self.draw is not None and there - self._seen and self._busy.acquire(blocking=False):
            self._seen |= there
            threading.Thread(target=self._draw, daemon=True).start()

    def _draw(self) -> None:
        try:
            if self.draw is not None:
                self.pictures, self.notes = self.draw()
        except TwinviewError as e:
            self.notes = [str(e)]
        finally:
            self.drawn += 1
            self._busy.release()


class _Handler(BaseHTTPRequestHandler):
    """Answers for the page and its data; no other file is given out, and no other host's name is answered to."""

    server: Server

    def do_GET(self) -> None:
        """`/` and `/data.json`."""
        host = (self.headers.get("Host") or "").rpartition(":")[0]
        answers = {"/": (self.server.page, "text/html; charset=utf-8"), "/data.json": (self.server.data, "application/json")}
        path = self.path.partition("?")[0]
        if host not in (HOST, "localhost") or path not in answers:
            self.send_error(404)
            return
        make, kind = answers[path]
        body = make().encode()
        self.send_response(200)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a page that is open asks every few seconds."""
