"""A Postgres of this test's own: in a folder of its own, at a free port of this machine, gone afterwards."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest


def binaries():
    """Folder of `initdb` and `pg_ctl`, or None."""
    found = shutil.which("pg_ctl")
    real = Path(found).resolve().parent if found else None
    candidates = [*([real] if real else []), *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return next((c for c in candidates if (c / "initdb").exists() and (c / "postgres").exists()), None)


@contextlib.contextmanager
def postgres():
    """URL of an empty database; skips, and says why, where there is no server to start."""
    pytest.importorskip("pg8000", reason="no pg8000: pip install -e .[study]")
    folder = binaries()
    if folder is None:
        pytest.skip("no Postgres server here: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="study-pg-", ignore_cleanup_errors=True) as made:
        data = Path(made) / "data"
        run = _as_somebody(made)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        run([folder / "initdb", "-D", data, "-A", "trust", "-U", "study", "-E", "UTF8", "--no-instructions"])
        options = f"-p {port} -h 127.0.0.1 -k {made} -c max_connections=120"
        run([folder / "pg_ctl", "-D", data, "-w", "-t", "60", "-o", options, "-l", Path(made) / "log", "start"])
        try:
            yield f"postgresql://study@127.0.0.1:{port}/postgres"
        finally:
            run([folder / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop"])


def _as_somebody(made):
    """Postgres won't run as root."""
    who = []
    if os.geteuid() == 0:
        runuser = shutil.which("runuser")
        if runuser is None:
            pytest.skip("Postgres won't run as root, and there is no runuser to be somebody else")
        shutil.chown(made, "nobody")
        who = [runuser, "-u", "nobody", "--"]

    def run(command):
        # Its output would keep a pipe open as long as the server lives.
        done = subprocess.run([*who, *map(str, command)], cwd=made, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if done.returncode:
            pytest.skip(f"{command[0]} ended with code {done.returncode}")

    return run
