"""``manage.py gateway_sync``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ... import memberships, sync
from ...exceptions import GatewayError


class Command(BaseCommand):
    """Compares memberships and repairs them."""

    help = "Compares the memberships of all @room_members with the gateway's, and repairs what differs."

    def add_arguments(self, parser: CommandParser) -> None:
        """Options."""
        parser.add_argument(
            "--dry-run", action="store_true", help="only say what differs; exit with 1 if anything does"
        )
        parser.add_argument("--database", help="the site's tables are in this database")

    def handle(self, *_: Any, **options: Any) -> None:
        """Prints each difference."""
        if not memberships.relations:
            raise CommandError("the site names no relation with @room_members")
        dry = options["dry_run"]
        count = 0
        try:
            for each in sync.differences(options["database"], repair=not dry):
                count += 1
                if options["verbosity"] > 0:
                    self.stdout.write(str(each))
        except GatewayError as error:
            raise CommandError(str(error)) from error
        self.stderr.write(f"{count} differ" if dry else f"{count} repaired")
        if dry and count:
            raise SystemExit(1)
