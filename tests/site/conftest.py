"""A server for the site."""

import functools
import http.server
import threading

import pytest
from built_site import SITE


class Handler(http.server.SimpleHTTPRequestHandler):
    """Notes what it does not find."""

    def log_message(self, format, *arguments):
        pass

    def send_error(self, code, message=None, explain=None):
        self.server.errors.append(f"{code} {self.path}")
        super().send_error(code, message, explain)


@pytest.fixture(scope="session")
def server():
    handler = functools.partial(Handler, directory=SITE)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.errors = []
    server.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
