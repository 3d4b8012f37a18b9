"""Forks a process for each function that it is asked to run: `python -m hostile.server`.

A request is a line of JSON on stdin, [module, name, arguments]; the answer is a line on stdout,
[exit status, what it printed, what it returned]. The status is negative for a signal.
"""

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import selectors
import signal
import sys
import time
import traceback

TIME_LIMIT = 120.0  # seconds; under a sanitizer, on a machine with other work


def run_child(function, arguments, printed, returned):
    """Run the function in this process, which then ends."""
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    faulthandler.enable(file=2)
    status = 1
    try:
        result = function(**arguments)
        os.write(returned, json.dumps(result).encode())
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run(function, arguments):
    """Run the function in a fork of this process."""
    # A fork has only the thread that made it. Had MLX threads here, they would be missing there.
    tasks = "/proc/self/task"
    assert not os.path.exists(tasks) or len(os.listdir(tasks)) == 1, "the server has threads"
    gc.freeze()  # or the fork's first collection copies all that is here
    pipes = {name: os.pipe() for name in ("printed", "returned")}
    pid = os.fork()
    if pid == 0:
        run_child(function, arguments, *(write for _, write in pipes.values()))
    texts = {name: b"" for name in pipes}
    end = time.monotonic() + TIME_LIMIT
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as opened:
        for name, (read, write) in pipes.items():
            os.close(write)
            opened.callback(os.close, read)
            selector.register(read, selectors.EVENT_READ, name)
        while selector.get_map():
            ready = selector.select(max(0.0, end - time.monotonic()))
            if not ready:
                os.kill(pid, signal.SIGKILL)
                texts["printed"] += f"\nkilled after {TIME_LIMIT} seconds\n".encode()
                break
            for key, _ in ready:
                chunk = os.read(key.fd, 65536)
                texts[key.data] += chunk
                if not chunk:
                    selector.unregister(key.fd)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    returned = json.loads(texts["returned"]) if texts["returned"] else None
    return status, texts["printed"].decode(errors="replace"), returned


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anything prints at its import is no answer
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    for line in sys.stdin:
        module, name, arguments = json.loads(line)
        function = getattr(importlib.import_module(module), name)
        answers.write(json.dumps(run(getattr(function, "alone", function), arguments)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
