"""The one driver for what tests do in other processes: `twinview` commands, functions, and ranks that form a group.

To import torch, torchvision and DeepSpeed takes ten seconds of a core.  One server pays for it; every process of a test is forked from it and
starts in a few hundredths of a second.  The fixture `processes` starts the server once a session:

    processes.run("train", "recipe.toml")           # a command line, to its end
    processes.start("train", "recipe.toml")         # the same, while it runs: it can be killed, and told to end
    processes.call(function, *args)                 # what a function at the top of a test file gives, in a process of its own
    processes.ranks(function, *args, count=2)       # what it gives on each of several ranks: function(rank, *args)

A forked process is the same as a new one but for what is imported.  What is about imports, launchers or environments read at import starts real ones.
Run as a script, `python processes.py ADDRESS`, this file is the server.
"""
from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.util
import inspect
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Client, Connection, Listener, wait
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any, NamedTuple

PRELOAD = (
    *("numpy", "PIL.Image", "pytest", "torch", "torchvision", "torchvision.ops", "torchvision.io", "timm", "twinview.api", "twinview.engine.train"),
    *("twinview.analysis.figures", "twinview.analysis.evaluate", "twinview.planning.sizes", "twinview.data.prepare.pack"),
    "deepspeed.runtime.zero.muon.muon_optimizer",  # asked for under ZeRO stages 1 to 3
)


class Request(NamedTuple):
    """A process to be made.  `words`: a command line of twinview; `function`: file, name, arguments, and the file for what it gives."""

    words: tuple[str, ...]
    function: tuple[str, str, bytes, str] | None
    path: list[str]
    env: dict[str, str]
    cwd: str
    leads: bool  # a process group of its own


# ---- the server
def serve(address: str) -> None:
    """Fork a process for each request, and say when it has ended; until stdin is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    hear, speak = os.pipe()
    os.set_blocking(speak, False)
    signal.set_wakeup_fd(speak, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    preload()
    alive: dict[int, Connection] = {}
    with Listener(address, "AF_UNIX", backlog=64) as listener:
        door = listener._listener._socket  # type: ignore[attr-defined]
        while sys.stdin.fileno() not in (ready := wait([door, hear, sys.stdin.fileno()])):
            if hear in ready:
                os.read(hear, 1024)
                collect(alive)
            if door in ready:
                caller = listener.accept()
                request: Request = caller.recv()
                handles = [recv_handle(caller) for _ in range(3)]
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    for one in (*alive.values(), caller):
                        one.close()
                    listener.close()
                    become(request, handles)
                for handle in handles:
                    os.close(handle)
                alive[pid] = caller
                caller.send(pid)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


def preload() -> None:
    """Import what tests' processes use, and start nothing: what is forked must have no threads."""
    from twinview.engine.distributed.process import quiet_deepspeed

    for name in PRELOAD:
        importlib.import_module(name)
        if name == "torch":
            quiet_deepspeed("cpu")
    import gc

    gc.collect()
    gc.freeze()  # a collection in a forked process would copy every page


def collect(alive: dict[int, Connection]) -> None:
    """Tell callers of the processes that have ended."""
    while alive:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        caller = alive.pop(pid)
        with contextlib.suppress(OSError):  # nobody asks any more
            caller.send(os.waitstatus_to_exitcode(status))
        caller.close()


def become(request: Request, handles: list[int]) -> None:
    """Be the process that was asked for, to its end."""
    for place, handle in enumerate(handles):
        os.dup2(handle, place)
        os.close(handle)
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGCHLD, signal.SIG_DFL)):
        signal.signal(number, handler)
    if request.leads:
        os.setsid()
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.env)
    sys.path[:] = request.path
    importlib.invalidate_caches()
    encoding, _, errors = request.env.get("PYTHONIOENCODING", "utf-8:").partition(":")
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", encoding=encoding, errors=errors or "strict", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding=encoding, errors="backslashreplace", closefd=False)
    random.seed()
    code = 1
    try:
        code = command(request.words) if request.function is None else called(*request.function)
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    except BaseException:
        traceback.print_exc()
    try:
        atexit._run_exitfuncs()  # what the interpreter would do: data workers are ended, groups of ranks left
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def command(words: tuple[str, ...]) -> int:
    """`python -m twinview WORDS`."""
    from twinview.cli import entry

    sys.argv[:] = [str(Path(sys.executable).with_name("twinview")), *words]
    entry()


def called(file: str, name: str, arguments: bytes, answer: str) -> int:
    """Write what the function `name` of a file gives."""
    args = pickle.loads(arguments)
    Path(answer).write_bytes(pickle.dumps(function_of(file, name)(*args)))
    return 0


def function_of(file: str, name: str) -> Callable[..., Any]:
    """A function at the top of a file, which is loaded under its own name."""
    module = sys.modules.get("__main__")
    if module is None or getattr(module, "__file__", None) != file:
        stem = Path(file).stem
        spec = importlib.util.spec_from_file_location(stem, file)
        assert spec is not None and spec.loader is not None
        module = sys.modules[stem] = importlib.util.module_from_spec(spec)
        sys.path.append(str(Path(file).parent))  # modules that lie beside it
        spec.loader.exec_module(module)
    found: Callable[..., Any] = getattr(module, name)
    return found


def on_ranks(file: str, name: str, args: tuple[Any, ...], count: int) -> list[Any]:
    """What `name(rank, *args)` gives on each of several ranks of gloo."""
    import torch.distributed as dist

    from twinview.engine.distributed.launch import launch
    from twinview.engine.distributed.process import gathered

    function = function_of(file, name)
    found: list[Any] = launch(count, lambda: gathered(function(dist.get_rank(), *args)), device="cpu")
    return found


# ---- the caller
class Process:
    """A process that the server has made."""

    def __init__(self, caller: Connection, words: tuple[str, ...], files: tuple[Path, Path]) -> None:
        self._caller, self.args, self._files = caller, words, files
        self.pid: int = caller.recv()
        self.returncode: int | None = None

    @property
    def stdout(self) -> str:
        """What it has said so far."""
        return self._files[0].read_text(errors="surrogateescape")

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._files[1].read_text(errors="surrogateescape")

    def poll(self) -> int | None:
        """Its exit code, or None while it runs; -N where signal N ended it."""
        if self.returncode is None and self._caller.poll():
            self.returncode = self._caller.recv()
            self._caller.close()
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        """Its exit code, once it has ended.  Raises subprocess.TimeoutExpired."""
        if self.returncode is None and not self._caller.poll(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout, self.stdout, self.stderr)
        code = self.poll()
        assert code is not None
        return code

    def wait_for(self, what: Callable[[], bool], timeout: float = 120) -> None:
        """Until `what()` holds; it has to run as long.  Raises AssertionError."""
        until = time.monotonic() + timeout
        while not what():
            assert self.poll() is None, f"ended with exit code {self.returncode}:\n{self.stderr}"
            assert time.monotonic() < until, f"not within {timeout} s:\n{self.stderr}"
            time.sleep(0.005)

    def send_signal(self, number: int) -> None:
        """Nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Processes:
    """The server, and what to ask it for."""

    def __init__(self) -> None:
        self._folder, self._made = Path(tempfile.mkdtemp(prefix="twinview-tests-")), 0  # short: an address has some hundred characters at most
        self._address, self._log = str(self._folder / "server"), self._folder / "server.log"
        command = [sys.executable, __file__, self._address]
        with self._log.open("w") as log:
            self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)

    def close(self) -> None:
        """End the server, and what it has made."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)
        shutil.rmtree(self._folder)

    def start(self, *words: str, **options: Any) -> Process:
        """`twinview WORDS`.  Options: `env` (this process's), `cwd`, `stdout` (a file descriptor), `leads` (a process group of its own)."""
        return self._make(words, None, **options)

    def run(self, *words: str, timeout: float = 120, **options: Any) -> Process:
        """The same, to its end."""
        process = self.start(*words, **options)
        try:
            process.wait(timeout)
        finally:
            process.kill()
        return process

    def begin(self, function: Callable[..., Any], *args: Any, **options: Any) -> Process:
        """`function(*args)`, a function at the top of a file, in a process of its own, while it runs."""
        return self._make((), (inspect.getfile(function), function.__name__, pickle.dumps(args), str(self._file("answer"))), **options)

    def call(self, function: Callable[..., Any], *args: Any, timeout: float = 200, **options: Any) -> Any:
        """What `function(*args)` gives, a function at the top of a file, in a process of its own; arguments and answer are pickled."""
        answer = self._file("answer")
        process = self._make((), (inspect.getfile(function), function.__name__, pickle.dumps(args), str(answer)), **options)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        assert code == 0, f"exit code {code}:\n{process.stderr}"
        return pickle.loads(answer.read_bytes())

    def ranks(self, function: Callable[..., Any], *args: Any, count: int = 2, timeout: float = 200, **options: Any) -> list[Any]:
        """What `function(rank, *args)` gives on each of `count` gloo ranks."""
        found: list[Any] = self.call(on_ranks, inspect.getfile(function), function.__name__, args, count, timeout=timeout, **options)
        return found

    def _file(self, kind: str) -> Path:
        self._made += 1
        return self._folder / f"{self._made}.{kind}"

    def _make(
        self, words: tuple[str, ...], function: tuple[str, str, bytes, str] | None, *, env: dict[str, str] | None = None, cwd: Path | None = None,
        stdout: int | None = None, leads: bool = False,
    ) -> Process:
        env = dict(os.environ if env is None else env)
        path = [*filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *filter(None, sys.path)]  # what a test has installed is there too
        files = self._file("stdout"), self._file("stderr")
        with files[0].open("wb") as out, files[1].open("wb") as err, open(os.devnull, "rb") as nothing:
            caller = self._caller()
            caller.send(Request(words, function, path, env, str(cwd or Path.cwd()), leads))
            for handle in (nothing.fileno(), out.fileno() if stdout is None else stdout, err.fileno()):
                send_handle(caller, handle, self._server.pid)
            return Process(caller, words, files)

    def _caller(self, timeout: float = 300) -> Connection:
        """A line to the server, once it has imported everything."""
        until = time.monotonic() + timeout
        while True:
            try:
                return Client(self._address, "AF_UNIX")
            except (FileNotFoundError, ConnectionRefusedError):
                assert self._server.poll() is None and time.monotonic() < until, self._log.read_text()
                time.sleep(0.02)


if __name__ == "__main__":
    serve(sys.argv[1])
