"""The stream behind Sentinels, on a cluster, and over a Unix socket: real servers."""

import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import redis
from django.conf import settings
from django.test import SimpleTestCase, override_settings, tag

import channel_gateway as gw
from channel_gateway import backends

from .base import gateway
from .run import WITH_US, free_port, wait


@contextmanager
def server(*arguments, sentinel=None):
    # A cluster's second port is 10,000 higher.
    directory, port = Path(tempfile.mkdtemp(prefix="gateway-redis-")), free_port(and_above=10_000)
    command = [*WITH_US, "redis-server"]
    if sentinel:
        (directory / "sentinel.conf").write_text(sentinel)
        command += ["sentinel.conf", "--sentinel"]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory), "--logfile", "log"]
    process = subprocess.Popen([*command, *options, *arguments], cwd=directory)
    try:
        with redis.Redis(port=port) as client:
            wait("Redis", lambda: pings(client))
            yield port, client, directory
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def pings(client):
    try:
        return client.ping()
    except redis.RedisError:
        return False


@tag("once")
class TopologyTests(SimpleTestCase):
    def publish(self, count=3):
        for number in range(count):
            gw.notify("alice", f"{number}", when="now")
        gw.notify([f"user{number}" for number in range(2500)], "many", when="now")

    def test_sentinels(self):
        with server() as (port, client, _):
            conf = f"sentinel monitor main 127.0.0.1 {port} 1\n"
            with server(sentinel=conf) as (sentinel, _, _):
                hosts = [{"sentinels": [("127.0.0.1", sentinel)], "master_name": "main"}]
                layer = {"default": {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": {"hosts": hosts}}}
                with override_settings(CHANNEL_LAYERS=layer), gateway():
                    self.publish()
                with gateway(REDIS_URL=f"redis+sentinel://127.0.0.1:{sentinel}/main"):
                    self.publish()
            self.assertEqual(client.xlen(f"{settings.GATEWAY['NAMESPACE']}:events"), 12)

    def test_a_cluster(self):
        with server("--cluster-enabled", "yes") as (port, client, _):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait(
                "the cluster",
                lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO", NEVER_DECODE=True),
            )
            with gateway(REDIS_URL=f"redis+cluster://127.0.0.1:{port}"):
                self.publish()
                backends.backend().check()
            self.assertEqual(client.xlen(f"{settings.GATEWAY['NAMESPACE']}:events"), 6)

    def test_a_unix_socket_and_a_password(self):
        with server("--unixsocket", "redis.sock") as (_, client, directory):
            client.config_set("requirepass", "secret")
            client.auth("secret")
            with gateway(REDIS_URL=f"unix://:secret@{directory}/redis.sock?db=2"):
                self.publish()
            with (
                self.assertRaises(gw.Unavailable) as raised,
                gateway(REDIS_URL=f"unix://:wrong@{directory}/redis.sock"),
            ):
                self.publish()
            self.assertNotIn("wrong@", str(raised.exception))
            client.select(2)
            self.assertEqual(client.xlen(f"{settings.GATEWAY['NAMESPACE']}:events"), 6)
