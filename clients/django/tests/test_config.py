"""Settings become gateway.toml; what would not work is said."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from io import StringIO
from pathlib import Path
from unittest import mock

from django.conf import settings
from django.contrib.auth.models import User
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.core.management.base import SystemCheckError
from django.test import SimpleTestCase, TestCase, override_settings, tag

from channel_gateway import binary, checks, toml
from channel_gateway.conf import conf

from .base import gateway

REDIS_CACHE = "django.core.cache.backends.redis.RedisCache"
PG = {"ENGINE": "django.db.backends.postgresql"}


def layer(backend="pubsub.RedisPubSubChannelLayer", **config):
    return override_settings(CHANNEL_LAYERS={"default": {"BACKEND": f"channels_redis.{backend}", "CONFIG": config}})


class SettingsTests(SimpleTestCase):
    def test_every_mistake_at_once_and_the_nearest_name(self):
        wrong = {
            "NAMESPCE": "x",
            "WHEN": "later",
            "TIMEOUT": "2",
            "MAX_CONNECTIONS": 0,
            "RAW_GROUP_NAMES": 1,
            "SIGN_IN": ["ldap"],
            "USER_GROUP": "chat_{username}",
            "JWT_SECRET_FILE": "/nowhere/at/all",
        }
        with override_settings(GATEWAY=wrong), self.assertRaises(ImproperlyConfigured) as raised:
            conf()
        text = str(raised.exception)
        self.assertIn("did you mean 'NAMESPACE'?", text)
        for key in wrong:
            self.assertIn(key, text)

    def test_templates_that_could_meet_a_room(self):
        for template in (
            "c{username}",
            "chat_x{username}",
            "u{username}",
            "r.{username}",
            "user",
            "{username}{username}",
        ):
            with override_settings(GATEWAY={"USER_GROUP": template}), self.assertRaises(ImproperlyConfigured):
                conf()
        for template in ("user_{username}", "{username}_user", "users.{username}"):
            with override_settings(GATEWAY={"USER_GROUP": template}):
                self.assertEqual(conf().user_group, template)

    def test_secrets_from_files_and_out_of_sight(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("one secret, with a comma\n\nanother\n")
            file.flush()
            with override_settings(GATEWAY={"JWT_SECRET_FILE": file.name, "API_KEY": "canary"}):
                self.assertEqual(conf().jwt_secret, ("one secret, with a comma", "another"))
                self.assertNotIn("canary", repr(conf()))
            with override_settings(GATEWAY={"JWT_SECRET_FILE": file.name, "JWT_SECRET": "x"}):
                self.assertRaises(ImproperlyConfigured, conf)

    def test_an_empty_value_is_an_unset_one(self):
        with override_settings(GATEWAY={"JWT_SECRET": "", "NAMESPACE": "", "API_KEY": None, "JWT_SECRET_FILE": ""}):
            self.assertEqual([conf().jwt_secret, conf().namespace, conf().api_key], [(), "gateway", ()])

    def test_the_readme_names_every_key_with_its_default(self):
        from dataclasses import fields

        from channel_gateway.conf import Conf

        text = Path(__file__).resolve().parents[1].joinpath("README.md").read_text()
        for each in fields(Conf):
            self.assertIn(f"| `{each.name.upper()}`", text)


class ConfigTests(SimpleTestCase):
    def plain(self):
        return toml.node_config().plain

    def test_the_layer(self):
        with layer(
            hosts=[("10.0.0.1", 6380)], prefix="shop", capacity=500, expiry=30, symmetric_encryption_keys=["k,1"]
        ):
            config = toml.node_config()
        self.assertEqual(config.plain["redis_url"], "redis://10.0.0.1:6380")
        found = {key: value for key, value in config.plain.items() if key.startswith("layer")}
        wanted = {"layer": "pubsub", "layer_prefix": "shop", "layer_capacity": 500, "layer_expiry": 30}
        self.assertEqual(found, wanted)
        self.assertEqual(config.secret["layer_encryption_keys"], ["k,1"])
        with layer("core.RedisChannelLayer"):
            self.assertEqual([self.plain()[key] for key in ("layer", "redis_url")], ["core", "redis://localhost:6379"])

    def test_redis_with_a_password_is_a_secret(self):
        with layer(hosts=["redis://:pw@one:1/2", {"host": "two", "port": 3, "password": "p@", "db": 4}]):
            config = toml.node_config()
        self.assertEqual(config.secret["redis_url"], ["redis://:pw@one:1/2,redis://:p%40@two:3/4"])
        self.assertNotIn("redis_url", config.plain)
        sentinels = {"sentinels": [("s1", 1), ("::1", 2)], "master_name": "main", "db": 5}
        with layer(hosts=[sentinels]):
            self.assertEqual(self.plain()["redis_url"], "redis+sentinel://s1:1,[::1]:2/main/5")

    def test_databases(self):
        given = {
            "postgres://u:p%40@db:5433/site?sslmode=require": {
                **PG,
                "NAME": "site",
                "USER": "u",
                "PASSWORD": "p@",
                "HOST": "db",
                "PORT": 5433,
                "OPTIONS": {"sslmode": "require"},
            },
            "postgres://u@localhost/site?host=/run/pg": {**PG, "NAME": "site", "USER": "u", "HOST": "/run/pg"},
            "mysql://localhost/site": {"ENGINE": "django.db.backends.mysql", "NAME": "site"},
            "sqlite:///srv/a%20b.sqlite3?mode=rwc": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": Path("/srv/a b.sqlite3"),
            },
        }
        for url, database in given.items():
            with mock.patch.object(settings, "DATABASES", {"default": database}):
                self.assertEqual(toml.database_url("default"), url)
        with mock.patch.object(settings, "DATABASES", {"default": database}):
            # One writer at a time: the gateway's tables are in a file of their own.
            self.assertEqual(toml.gateway_database_url("default"), "sqlite:///srv/gateway.db?mode=rwc")
        with mock.patch.object(settings, "DATABASES", {"default": {"ENGINE": "django.db.backends.oracle"}}):
            self.assertRaises(ImproperlyConfigured, toml.database_url, "default")

    def test_sessions_and_users(self):
        with override_settings(SECRET_KEY_FALLBACKS=["an older key"], USE_TZ=False, TIME_ZONE="Europe/Paris"):
            config = toml.node_config()
        self.assertEqual(config.secret["django_secret_key"], [settings.SECRET_KEY, "an older key"])
        found = {key.removeprefix("django."): value for key, value in config.plain.items() if key.startswith("django.")}
        if "database_url" in found:
            found.pop("database_url")
        self.assertEqual(
            found,
            {
                "session_engine": "db",
                "session_cookie_name": "sessionid",
                "session_table": "django_session",
                "user_table": "auth_user",
                "user_id_column": "id",
                "user_name_column": "username",
                "user_password_column": "password",
                "user_active_column": "is_active",
                "time_zone": "Europe/Paris",
            },
        )
        with gateway(SIGN_IN=["jwt"]):
            config = toml.node_config()
        self.assertNotIn("django_secret_key", config.secret)
        self.assertFalse([key for key in config.plain if key.startswith("django.")])

    def test_engines(self):
        cache = {"default": {"BACKEND": REDIS_CACHE, "LOCATION": "redis://cache/1", "KEY_PREFIX": "p", "VERSION": 3}}
        with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.cache", CACHES=cache):
            plain = self.plain()
        found = [plain[f"django.{key}"] for key in ("session_engine", "cache_url", "cache_key_prefix", "cache_version")]
        self.assertEqual(found, ["cache", "redis://cache/1", "p", 3])
        with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies"):
            self.assertEqual(self.plain()["django.session_cookie_age"], 1209600)
        with override_settings(SESSION_ENGINE="tests.engine"):
            plain = self.plain()
        found = [plain["django.session_engine"], plain["django.session_salt"]]
        self.assertEqual(found, ["db", "django.contrib.sessions.TenantSessionStore"])
        for engine in (
            "django.contrib.sessions.backends.file",
            "no.such.engine",
            "django.contrib.sessions.backends.cache",
        ):
            with override_settings(SESSION_ENGINE=engine):
                self.assertTrue(toml.session_engine()[1])
                self.assertNotIn("session", toml.sign_in(conf()))

    def test_origins_and_what_the_site_adds(self):
        with override_settings(CSRF_TRUSTED_ORIGINS=["https://app.example.org"], ALLOWED_HOSTS=["*", ".example.com"]):
            self.assertEqual(self.plain()["allowed_origins"], [".example.com", "https://app.example.org"])
        with gateway(ALLOWED_ORIGINS=["a.example"], CONFIG={"listen": "0.0.0.0:80", "limits": {"frame_bytes": 9}}):
            plain = self.plain()
        found = [plain[key] for key in ("allowed_origins", "listen", "limits.frame_bytes")]
        self.assertEqual(found, [["a.example"], "0.0.0.0:80", 9])

    def test_secrets_of_the_sites_own_are_kept_as_such(self):
        given = {"api_key": "canary", "database_url": "postgres://u:canary@db/x", "jwt_secret": ["canary1", "canary2"]}
        with gateway(CONFIG=given):
            config = toml.node_config()
        self.assertNotIn("canary", toml.render(config, Path("/secrets")) + repr(config))
        self.assertEqual(config.secret["jwt_secret"], ["canary1", "canary2"])

    def test_what_toml_cannot_misread(self):
        given = {"listen": 'a"b\\c\n\x7f', "no_io_uring": True, "x": {"y": [1, "ü"]}}
        with gateway(CONFIG=given):
            text = toml.render(toml.node_config(), Path("/secrets"))
        read = toml.tomllib.loads(text)
        self.assertEqual([read["listen"], read["no_io_uring"], read["x"]["y"]], ['a"b\\c\n\x7f', True, [1, "ü"]])


class CommandTests(SimpleTestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.file = self.directory / "gateway.toml"
        self.secrets = self.directory / "gateway-secrets"

    def config(self, *arguments):
        out, err = StringIO(), StringIO()
        code = 0
        try:
            call_command("gateway_config", *arguments, stdout=out, stderr=err)
        except SystemExit as end:
            code = end.code
        return code, out.getvalue(), err.getvalue()

    def test_secrets_go_to_files_of_their_own(self):
        code, out, err = self.config("--output", str(self.file))
        self.assertEqual([code, out], [0, ""])
        text = self.file.read_text() + err
        for secret in (settings.SECRET_KEY, settings.GATEWAY["JWT_SECRET"], settings.GATEWAY["API_KEY"]):
            self.assertNotIn(secret, text)
        self.assertEqual(stat.S_IMODE(self.secrets.stat().st_mode), 0o700)
        names = {path.name: stat.S_IMODE(path.stat().st_mode) for path in self.secrets.iterdir()}
        self.assertEqual(set(names.values()), {0o600})
        self.assertEqual(set(names), {"api_key", "django_secret_key", "gateway.env", "jwt_secret"})
        self.assertIn(
            f"GATEWAY_JWT_SECRET_FILE={self.secrets}/jwt_secret\n", (self.secrets / "gateway.env").read_text()
        )

    def test_check(self):
        self.config("--output", str(self.file))
        self.assertEqual(self.config("--check", str(self.file))[:2], (0, ""))
        told = self.file.read_text()
        self.file.write_text('layer_capacity = 500\nuser_name = ""\n' + told)
        code, out, _ = self.config("--check", str(self.file))
        self.assertEqual((code, out.count("\n")), (1, 1))
        self.assertIn("layer_capacity is 500; the site has 100", out)
        self.file.write_text(told)
        with gateway(JWT_SECRET="a newer secret, 32 bytes of it at least"), layer(hosts=[("other", 1)], prefix="x"):
            code, out, _ = self.config("--check", str(self.file))
        self.assertEqual(code, 1)
        self.assertIn("jwt_secret is another one than the site's", out)
        self.assertIn('layer_prefix is "site"; the site has "x"', out)
        self.assertNotIn("newer", out)
        (self.secrets / "api_key").unlink()
        (self.secrets / "jwt_secret").chmod(0o644)
        self.file.write_text(self.file.read_text().replace('layer = "pubsub"\n', ""))
        out = self.config("--check", str(self.file))[1]
        self.assertIn("api_key is missing", out)
        self.assertIn("jwt_secret can be read by others", out)
        self.assertIn('layer is missing; the site has "pubsub"', out)
        self.file.write_text("layer = ")
        self.assertIn("is not TOML", self.config("--check", str(self.file))[1])

    @gateway(SIGN_IN=["jwt"], BINARY=settings.GATEWAY["BINARY"])
    def test_the_gateway_takes_the_file(self):
        self.config("--output", str(self.file))
        self.check_config()

    def check_config(self):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GATEWAY_")}
        lines = (self.secrets / "gateway.env").read_text().splitlines()
        environment |= dict(line.split("=", 1) for line in lines)
        command = [settings.GATEWAY["BINARY"], "check-config", "--config", str(self.file)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_several_bridges(self):
        canary = "canary-0123456789"
        tables = [
            {"path": "/ws/orders/", "workers": "unix:/run/w-*.sock", "secret": canary, "slow-seconds": 2.5},
            {"path": "/ws/", "workers": "tcp://workers:9100", "secret": f"{canary}-2", "auth": "gateway"},
        ]
        with gateway(SIGN_IN=["jwt"], BINARY=settings.GATEWAY["BINARY"], CONFIG={"bridge": tables}):
            _, out, err = self.config("--output", str(self.file))
            text = self.file.read_text()
            self.assertNotIn("canary", out + err + text + repr(toml.node_config()))
            read = toml.tomllib.loads(text)["bridge"]
            self.assertEqual([each["path"] for each in read], ["/ws/orders/", "/ws/"])
            self.assertEqual((read[0]["slow_seconds"], read[1]["auth"]), (2.5, "gateway"))
            for each, secret in zip(read, (canary, f"{canary}-2"), strict=True):
                path = Path(each["secret_file"])
                self.assertEqual((path.read_text(), stat.S_IMODE(path.stat().st_mode)), (f"{secret}\n", 0o600))
            self.assertNotIn("BRIDGE", (self.secrets / "gateway.env").read_text())
            self.check_config()
            self.assertEqual(self.config("--check", str(self.file))[:2], (0, ""))
            self.file.write_text(text.replace('"gateway"', '"app"') + 'ca = "/ca.pem"\n')
            code, out, _ = self.config("--check", str(self.file))
            self.assertEqual(code, 1)
            self.assertIn('bridge 2: auth is "app"; the site has "gateway"\n', out)
            self.assertIn('bridge 2: ca is "/ca.pem"; the site says nothing of it\n', out)
            self.file.write_text(text.partition("[[bridge]]")[0] + f'[[bridge]]\nsecret = "{canary}"\n')
            out = self.config("--check", str(self.file))[1]
            self.assertEqual(out, "there are 1 [[bridge]]; the site has 2\n")
        with gateway(SIGN_IN=["jwt"], CONFIG={"bridge": tables[:1]}):
            out = self.config("--check", str(self.file))[1]
            self.assertIn("bridge 1: path is missing", out)
            self.assertIn("bridge 1: secret stands in the file", out)
            self.assertNotIn("canary", out)

    def test_tables_where_the_gateway_has_none(self):
        secret = {"secret": "canary-0123456789"}
        for given in (
            {"bridges": [secret]},
            {"bridge": [secret, "x"]},
            {"x": {"y": secret}},
            {"bridge": [{"x": secret}]},
        ):
            with gateway(CONFIG=given), self.assertRaises(CommandError) as raised:
                self.config()
            self.assertNotIn("canary", str(raised.exception))

    def test_wrong_settings(self):
        with gateway(NAMESPCE="x"), self.assertRaises(CommandError):
            self.config()


class CheckTests(TestCase):
    def ids(self, **gateway_settings):
        with gateway(**gateway_settings):
            found = run_checks(tags=[checks.TAG])
        for each in found:
            self.assertTrue(each.hint, each)
        return [each.id for each in found]

    def test_a_good_site(self):
        self.assertEqual(self.ids(), [])

    def test_each(self):
        self.assertEqual(self.ids(NAMESPCE="x", WHEN="later"), ["gateway.E001"] * 2)
        files = override_settings(SESSION_ENGINE="django.contrib.sessions.backends.file")
        with files:
            self.assertEqual(self.ids(JWT_SECRET=None), ["gateway.E002"])
            self.assertEqual(self.ids(SIGN_IN=["session"]), ["gateway.E006"])
            self.assertEqual(self.ids(), ["gateway.W009"])
            self.assertEqual(self.ids(SIGN_IN=["jwt"]), [])
            # Django is asked who a cookie is.
            self.assertEqual(self.ids(AUTH_URL="http://localhost/gateway/auth/"), [])
            installed = [each for each in settings.INSTALLED_APPS if each != "django.contrib.sessions"]
            with mock.patch.object(settings, "INSTALLED_APPS", installed):
                self.assertEqual(self.ids(), [])
        self.assertEqual(self.ids(SIGN_IN=["jwt", "auth"], JWT_SECRET=None), ["gateway.E002"] * 2)
        self.assertEqual(self.ids(JWT_SECRET=None), ["gateway.W008"])
        self.assertEqual(self.ids(JWT_SECRET=None, SIGN_IN=["session"]), [])
        self.assertEqual(self.ids(JWT_SECRET="short"), ["gateway.E003"])
        self.assertEqual(self.ids(JWT_SECRET=settings.SECRET_KEY), ["gateway.W004"])
        memory = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
        with override_settings(CHANNEL_LAYERS=memory):
            self.assertEqual(self.ids(), ["gateway.E004"])
            self.assertEqual(self.ids(REDIS_URL="redis://x"), ["gateway.W005"])
            self.assertEqual(self.ids(BACKEND="dummy"), [])
        with override_settings(CHANNEL_LAYERS={}):
            self.assertEqual(self.ids(), ["gateway.E004"])
        self.assertEqual(self.ids(USER_NAME="id"), ["gateway.E005"])
        self.assertEqual(self.ids(USER_NAME="id", JWT_USER_ID_CLAIM="user_id"), [])
        self.assertEqual(self.ids(USER_NAME="id", SIGN_IN=["jwt"]), [])
        self.assertEqual(self.ids(POLICY="no.such"), ["gateway.E007"])
        self.assertEqual(self.ids(POLICY="tests.test_views.TwoMethods"), [])
        self.assertEqual(
            self.ids(POLICY="django.contrib.auth.models.User", BACKEND="builtins.dict"), ["gateway.E007"] * 2
        )
        self.assertEqual(self.ids(ALLOWED_ORIGINS=["*"]), ["gateway.W003"])
        with override_settings(ALLOWED_HOSTS=["*"]):
            self.assertEqual(self.ids(), ["gateway.W003"])
        with override_settings(ROOT_URLCONF="tests.no_urls"):
            self.assertEqual(self.ids(), ["gateway.W007"])

    def test_cache_and_layer_in_one_database(self):
        same = ["gateway.W001"]
        for location, options, host, found in (
            ("redis://localhost:6379", {}, ("localhost", 6379), same),
            ("redis://127.0.0.1:6379/0", {}, ("localhost", 6379), same),
            ("redis://localhost:6379/1", {}, ("localhost", 6379), []),
            (["redis://x", "redis://localhost"], {}, ("localhost", 6379), same),
            ("redis://localhost", {"db": 1}, ("localhost", 6379), []),
            ("redis://localhost", {"db": "1"}, "redis://localhost/1", same),
            ("redis://localhost?db=1", {}, ("localhost", 6379), []),
            # What the address says comes first, and its query before its path.
            ("redis://localhost/0", {"db": 1}, ("localhost", 6379), same),
            ("redis://localhost/1?db=0", {"db": 1}, ("localhost", 6379), same),
            ("unix:///run/redis.sock?db=1", {}, "unix:///run/redis.sock", []),
            ("unix:///run/redis.sock?db=1", {}, "unix:///run/redis.sock?db=1", same),
        ):
            caches = {"default": {"BACKEND": REDIS_CACHE, "LOCATION": location, "OPTIONS": options}}
            with override_settings(CACHES=caches), layer(hosts=[host]):
                self.assertEqual(self.ids(), found, (location, options, host))

    def test_silenced(self):
        from django.core.management import call_command

        with gateway(ALLOWED_ORIGINS=["*"]), override_settings(SILENCED_SYSTEM_CHECKS=["gateway.W003"]):
            call_command("check", "--tag", "gateway", "--fail-level", "WARNING", stdout=StringIO(), stderr=StringIO())
        with gateway(ALLOWED_ORIGINS=["*"]), self.assertRaises(SystemCheckError):
            call_command("check", "--tag", "gateway", "--fail-level", "WARNING", stdout=StringIO(), stderr=StringIO())


class UsernameTests(TestCase):
    def test_names_that_channels_refuses(self):
        User.objects.create_user("ann")
        run = lambda: [each.id for each in checks.check_usernames(None, databases=["default"])]  # noqa: E731
        self.assertEqual(run(), [])
        User.objects.create_user("ann@example.com")
        self.assertEqual(run(), ["gateway.W002"])
        with gateway(USER_NAME="id"):
            self.assertEqual(run(), [])
        self.assertEqual([each.id for each in checks.check_usernames(None)], ["gateway.W002"])


class BinaryTests(SimpleTestCase):
    def test_the_setting_then_the_path_then_the_wheel(self):
        with tempfile.TemporaryDirectory() as named:
            program = Path(named) / "gateway"
            program.write_text("#!/bin/sh\n")
            program.chmod(0o755)
            with gateway(BINARY=str(program)):
                self.assertEqual(binary.find(), str(program))
            with gateway(BINARY="/nowhere/gateway"):
                self.assertRaises(binary.BinaryNotFound, binary.find)
            with gateway(BINARY=None), mock.patch.dict(os.environ, {"PATH": named}):
                self.assertEqual(binary.find(), str(program))
            with gateway(BINARY=None), mock.patch.dict(os.environ, {"PATH": "/nowhere"}):
                with mock.patch("sysconfig.get_path", return_value=named):
                    self.assertEqual(binary.find(), str(program))
                with (
                    mock.patch("sysconfig.get_path", return_value="/nowhere"),
                    mock.patch.object(sys, "executable", "/x/y"),
                ):
                    self.assertRaises(binary.BinaryNotFound, binary.find)


@tag("once")
class ServeTests(SimpleTestCase):
    """A program in the gateway's place writes down what reaches it."""

    SCRIPT = """#!/usr/bin/env python3
import os, signal, sys, time
log = open(os.environ["SAID"], "a", buffering=1)
for name in ("SIGTERM", "SIGHUP", "SIGINT"):
    def got(number, frame, name=name):
        log.write(name + "\\n")
        if name == "SIGTERM":
            os._exit(3)
    signal.signal(getattr(signal, name), got)
log.write(" ".join(sys.argv[1:]) + "\\n")
for key in sorted(os.environ):
    if key.startswith("GATEWAY_"):
        log.write(key + "=" + open(os.environ[key]).read())
log.write("ready\\n")
while True:
    time.sleep(0.01)
"""

    def start(self, *arguments):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.said = Path(directory.name) / "said"
        program = Path(directory.name) / "gateway"
        program.write_text(self.SCRIPT)
        program.chmod(0o755)
        environment = {**os.environ, "SAID": str(self.said), "TEST_GATEWAY": str(program), "TMPDIR": directory.name}
        command = [sys.executable, "-m", "django", "gateway_serve", *arguments]
        process = subprocess.Popen(command, env=environment)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.until(lambda: "ready" in self.lines())
        return process, Path(directory.name)

    def lines(self):
        return self.said.read_text().splitlines() if self.said.exists() else []

    def until(self, condition, seconds=30):
        end = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.01)

    def test_signals_and_the_exit_code_are_passed_on(self):
        process, directory = self.start("--", "--node-id", "web1")
        lines = self.lines()
        self.assertRegex(lines[0], r"^serve --config /\S+/gateway\.toml --node-id web1$")
        self.assertIn(f"GATEWAY_JWT_SECRET_FILE={settings.GATEWAY['JWT_SECRET']}", lines)
        for name in ("SIGHUP", "SIGINT"):
            process.send_signal(getattr(signal, name))
            self.until(lambda: self.lines()[-1] == name)  # noqa: B023
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(30), 3)
        # The secrets do not stay.
        self.assertEqual([path.name for path in directory.glob("gateway-*")], [])

    def test_killed_it_takes_the_node_along(self):
        process, _ = self.start("--relay")
        process.kill()
        self.until(lambda: self.lines()[-1] == "SIGTERM")
