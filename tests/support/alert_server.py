"""A server on this machine that takes alerts: Apprise posts them as JSON."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = "T0KENxyz"


class AlertServer:
    """Keeps what is posted.

    Attributes:
        url: for Apprise, with a secret in it.
        posts: bodies in the order in which they came.
        status: with which it answers.
        may_answer: it waits for this before it answers.
    """

    def __init__(self, port: int):
        self.url = f"json://user:{SECRET}@localhost:{port}/{SECRET}"
        self.posts: list[dict] = []
        self.status = 200
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.has_answered = threading.Event()

    @property
    def titles(self) -> list[str]:
        return [post["title"] for post in self.posts]


@contextlib.contextmanager
def alert_server() -> Iterator[AlertServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            server.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            server.may_answer.wait(60)
            with contextlib.suppress(OSError):  # who has posted may have gone
                self.send_response(server.status)
                self.end_headers()
            server.has_answered.set()

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("localhost", 0), Handler) as listener:
        listener.daemon_threads = True
        server = AlertServer(listener.server_address[1])
        threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield server
        finally:
            server.may_answer.set()
            listener.shutdown()
