"""Runs the tests on real servers:  python -m tests.run [--postgres] [LABEL …]

Starts a Redis and, with --postgres, a PostgreSQL of its own; GATEWAY_BINARY names the gateway, by default the one in
the workspace's target/debug.
"""

import getpass
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


# In front of a server's command: then it does not outlive a killed run.
WITH_US = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []


_marks = []


def _is_free(port):
    """Whether nobody has it, and no other test was given it: the name is forgotten with this process. The Rust tests
    use the same names."""
    mark = socket.socket(socket.AF_UNIX)
    try:
        with socket.socket() as one:
            one.bind(("127.0.0.1", port))
        mark.bind(f"\0testkit-port-{port}")
    except OSError:
        mark.close()
        return False
    mark.listen()
    _marks.append(mark)
    return True


def free_port(and_above=0):
    """A port below those that the system gives to connections, and the one so far above it if that is asked for."""
    while True:
        port = random.randrange(15000, 22000 if and_above else 32000)
        if _is_free(port) and (not and_above or _is_free(port + and_above)):
            return port


def free_ports(count):
    """The first of so many in a row, above those that the system gives to connections."""
    while True:
        first = random.randrange(61000, 65536 - count)
        if all(_is_free(port) for port in range(first, first + count)):
            return first


def wait(what, is_there, seconds=30):
    end = time.monotonic() + seconds
    while not is_there():
        if time.monotonic() > end:
            sys.exit(f"{what} did not start")
        time.sleep(0.02)


def answers(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def redis():
    with redis_at(free_port()) as (url, _):
        yield url


@contextmanager
def redis_at(port):
    """Its URL, and its process."""
    directory = tempfile.mkdtemp(prefix="gateway-redis-")
    command = [*WITH_US, "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen([*command, "--dir", directory, "--logfile", "log"], cwd=directory)
    try:
        wait("Redis", lambda: answers(port))
        yield f"redis://127.0.0.1:{port}", server
    finally:
        # One that is stopped would not hear it.
        server.send_signal(signal.SIGCONT)
        server.terminate()
        server.wait()
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def postgres():
    found = shutil.which("postgres") or next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))), None)
    if not found:
        sys.exit("PostgreSQL is missing: ./test.sh --install-only")
    programs = Path(os.path.realpath(found)).parent
    directory, port = Path(tempfile.mkdtemp(prefix="gateway-postgres-")), free_port()
    # It refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else getpass.getuser()
    who = {"user": user, "group": user} if os.geteuid() == 0 else {}
    if who:
        shutil.chown(directory, user, user)
    data = directory / "data"
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "tests", "-A", "trust", "-N"],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=directory,
        **who,
    )
    options = ["-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", directory, "-F"]
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen([*WITH_US, programs / "postgres", *options], stderr=log, cwd=directory, **who)
    try:

        def ready():
            command = [programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port), "-U", "tests"]
            return subprocess.run(command, check=False).returncode == 0

        wait("PostgreSQL", ready)
        yield json.dumps({"NAME": "postgres", "USER": "tests", "HOST": "127.0.0.1", "PORT": port})
    finally:
        server.send_signal(2)
        server.wait()
        shutil.rmtree(directory, ignore_errors=True)


def gateway():
    named = os.environ.get("GATEWAY_BINARY")
    path = Path(named) if named else HERE.parent.parent / "target/debug/gateway"
    if not path.is_file():
        sys.exit(f"{path} is missing: cargo build --workspace, or set GATEWAY_BINARY")
    return str(path)


def main(arguments):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    on_postgres = "--postgres" in arguments
    labels = [each for each in arguments if each != "--postgres"] or ["tests"]
    with ExitStack() as stack:
        # In memory where that is possible: each test empties the tables, and a busy disk takes long to be sure of it.
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-django-", dir=memory))
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
        environment |= {
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "TEST_REDIS_URL": stack.enter_context(redis()),
            "TEST_GATEWAY": gateway(),
            "TEST_LONG": os.environ.get("GATEWAY_LONG", ""),
            "TEST_SQLITE": f"{directory}/site.sqlite3",
            "PYTHONPATH": str(HERE),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if on_postgres:
            environment["TEST_POSTGRES"] = stack.enter_context(postgres())
        command = [
            *WITH_US,
            sys.executable,
            "-W",
            "error::RuntimeWarning",
            "-m",
            "django",
            "test",
            "--noinput",
            *labels,
        ]
        return subprocess.run(command, cwd=HERE, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
