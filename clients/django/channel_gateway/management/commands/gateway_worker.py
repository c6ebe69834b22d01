"""``manage.py gateway_worker``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections
from django.utils import autoreload

from ...conf import conf
from ...worker import options as worker_options
from ...worker.supervisor import Child

if TYPE_CHECKING:
    from ...worker.reload import Signals


class Command(BaseCommand):
    """Runs this site's ASGI application behind the gateway."""

    help = "Runs this site's ASGI application behind the gateway, one instance per socket."
    # Under autoreload a mistake must not end it: whoever made it is just about to mend it.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Options."""
        worker_options.add_arguments(parser)
        parser.add_argument("--application", help="module:application; default settings.ASGI_APPLICATION")

    def handle(self, *_: Any, **given: Any) -> None:
        """Runs until a signal says so, and exits with the worker's code."""
        try:
            import msgpack  # noqa: F401
        except ImportError as error:
            raise CommandError('msgpack is missing: pip install "channel-gateway[worker]"') from error
        name = given["application"] or getattr(settings, "ASGI_APPLICATION", None)
        if not name:
            raise CommandError('ASGI_APPLICATION is not set; it names the application: "mysite.asgi.application"')
        try:
            options = worker_options.read(given, conf().bridge_secret)
        except (worker_options.WrongOptions, ImproperlyConfigured) as error:
            raise CommandError(str(error), returncode=2) from error
        if settings.DEBUG and not given["noreload"] and not Child.is_one():
            from ...worker.reload import run_with_reloader

            sys.exit(run_with_reloader(lambda signals: self._run(name, options, signals)))
        sys.exit(self._run(name, options, None))

    def _run(self, name: str, options: worker_options.Options, signals: Signals | None) -> int:
        from ...worker.run import run
        from ...worker.server import load

        if settings.DEBUG:
            autoreload.raise_last_exception()
            self.check(display_num_errors=True)
        # What looked at the database until now is not who will.
        connections.close_all()
        return run(name, lambda: load(name), options, signals)
