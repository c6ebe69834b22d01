"""``manage.py gateway_config``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from ... import toml
from ...conf import conf


class Command(BaseCommand):
    """Prints ``gateway.toml``."""

    help = "Prints gateway.toml from this site's settings, and writes its secrets to files that only you may read."

    def add_arguments(self, parser: CommandParser) -> None:
        """Options."""
        parser.add_argument(
            "--check", metavar="FILE", help="say what differs in this file, and exit with 1 if any does"
        )
        parser.add_argument("--output", metavar="FILE", help="write the file instead of printing it")
        parser.add_argument(
            "--secrets-dir",
            metavar="DIR",
            help="where the secrets go (default: GATEWAY['SECRETS_DIR'], else gateway-secrets beside the file)",
        )

    def handle(self, *_: Any, **options: Any) -> None:
        """Prints, writes or compares."""
        try:
            config = toml.node_config()
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error
        named = options["output"] or options["check"]
        beside = Path(named).absolute().parent if named else Path.cwd()
        directory = Path(options["secrets_dir"] or conf().secrets_dir or beside / "gateway-secrets").absolute()
        if options["check"]:
            differences = toml.differences(config, Path(options["check"]), directory)
            for each in differences:
                self.stdout.write(each)
            if differences:
                # Not a CommandError: nothing went wrong.
                sys.exit(1)
            self.stderr.write(f"{options['check']} says what the site's settings say")
            return
        try:
            if config.secret:
                toml.write_secrets(config, directory)
            text = toml.render(config, directory)
            if options["output"]:
                Path(options["output"]).write_text(text, encoding="utf-8")
            else:
                self.stdout.write(text, ending="")
        except (OSError, ImproperlyConfigured) as error:
            raise CommandError(str(error)) from error
        if config.secret:
            self.stderr.write(f"{len(config.secret)} secrets are in {directory}; never commit them")
