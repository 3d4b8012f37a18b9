"""Functions run in a process of their own."""

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

needs_fork = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="forks of a process with Metal are not safe"
)


class Server:
    """A process that forks others; see `server.py`."""

    def __init__(self):
        tests = str(Path(__file__).parent.parent)
        path = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hostile.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # NumPy's linear algebra starts threads when it is imported.
            env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
            text=True,
        )

    def run(self, module, name, arguments):
        """The exit status, the text printed, and the value returned."""
        self.process.stdin.write(json.dumps([module, name, arguments]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the server ended"
        return json.loads(answer)


@functools.cache
def server():
    return Server()


def told(status, printed):
    """The end of a process in words."""
    ended = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return f"{ended}\n{printed}"


def apart(test):
    """Make a test run in a process of its own; its arguments are numbers, texts, lists and dicts.

    It fails if it raises, or if the process ends by a signal or by a sanitizer's report.
    """

    @needs_fork
    @functools.wraps(test)
    def run(**arguments):
        status, printed, _ = server().run(test.__module__, test.__name__, arguments)
        assert status == 0, told(status, printed)

    run.alone = test
    return run
