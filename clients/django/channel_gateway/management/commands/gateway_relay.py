"""``manage.py gateway_relay``."""

from __future__ import annotations

import signal
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ... import relay
from ...exceptions import GatewayError


class Command(BaseCommand):
    """Sends what waits in the outbox."""

    help = "Sends what waits in the outbox. Any number of these may run."

    def add_arguments(self, parser: CommandParser) -> None:
        """Options."""
        parser.add_argument("--once", action="store_true", help="send what waits now, and end")
        parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks (1)")
        parser.add_argument(
            "--older-than",
            type=float,
            metavar="SECONDS",
            help="leave what is younger to who wrote it (GATEWAY['RELAY_AFTER']: 5)",
        )
        parser.add_argument("--database", help="the outbox of this database")

    def handle(self, *_: Any, **options: Any) -> None:
        """Until SIGTERM or SIGINT."""
        older, using = options["older_than"], options["database"]
        if options["once"]:
            try:
                sent = relay.relay(older_than=older, using=using)
            except GatewayError as error:
                raise CommandError(str(error)) from error
            self.stdout.write(f"{sent} sent, {relay.waiting(using)} waiting")
            return
        stop = relay.Stop()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        relay.run(stop, interval=options["interval"], older_than=older, using=using)
