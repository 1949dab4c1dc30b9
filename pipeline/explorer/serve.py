"""Start the explorer on a port of this machine, and end it plainly."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from devil_pipe.pipeline.explorer.app import Explorer, application
from devil_pipe.pipeline.explorer.pictures import Dropped, Library, RunPictures
from devil_pipe.pipeline.explorer.sides import Side
from devil_pipe.pipeline.explorer.turns import Turns
from devil_pipe.pipeline.explorer.units import Units
from devil_pipe.stages.common.progress import log, warn
from devil_pipe.store.errors import UsageError

_LAST = 20.0  # seconds that a computation under way has to end, once the server is stopped


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before any model is loaded. Raises UsageError where the place cannot be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"--host {host}: expected an address or a name of this machine: {error}") from None
    opened = socket.socket(family, kind)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(address)
        opened.listen(128)
    except OSError as error:
        opened.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"port {port} of {host} is taken: choose another with --port, or 0 for any free") from None
        if error.errno == errno.EACCES:
            raise UsageError(f"port {port} is reserved for the system: choose one above 1023 with --port") from None
        raise UsageError(f"--host {host}: expected an address of this machine: {error.strerror}") from None
    return opened


def serve(
    opened: socket.socket,
    host: str,
    sides: Sequence[Side],
    pictures: RunPictures | None,
    units: Units | None,
    most_bytes: int,
    *,
    browser: bool,
) -> None:
    """Answer until Ctrl-C, which it raises on as KeyboardInterrupt; dropped pictures go when it ends."""
    folder = Path(tempfile.mkdtemp(prefix="devil-pipe-explore-"))  # for this user's eyes alone
    turns = Turns()
    library = Library(pictures, Dropped(folder))
    closing = partial(_close, turns, folder)
    app = application(Explorer(sides, library, turns, units, most_bytes, closing), _names(host))
    config = uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, ws="none", timeout_graceful_shutdown=1
    )
    address = _address(opened, host)
    log(f"the explorer is at {address} (Ctrl-C ends it)")
    if browser:
        threading.Timer(0.5, partial(_show, address)).start()
    try:
        uvicorn.Server(config).run(sockets=[opened])
    finally:
        _close(turns, folder)


def _close(turns: Turns, folder: Path) -> None:
    """Remove what was dropped, and wait for what is computed: the interpreter must not end under PyTorch's feet."""
    shutil.rmtree(folder, ignore_errors=True)
    if not turns.stop(_LAST):
        log("stopped")
        sys.stderr.flush()
        os._exit(130)


def _names(host: str) -> list[str]:
    """The names that requests may call this server by: all, if it was put on the network."""
    with suppress(ValueError):
        if not ip_address(host).is_loopback:
            warn(f"--host {host}: whoever reaches this machine can use the explorer; it asks for no password")
            return ["*"]
        return ["localhost", "127.0.0.1", "[::1]", "::1", host]
    if host != "localhost":
        warn(f"--host {host}: whoever reaches this name can use the explorer; it asks for no password")
    return ["localhost", "127.0.0.1", "[::1]", "::1", host]


def _address(opened: socket.socket, host: str) -> str:
    port = opened.getsockname()[1]
    named = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{named}:{port}/"


def _show(address: str) -> None:
    with suppress(webbrowser.Error):
        webbrowser.open(address)
