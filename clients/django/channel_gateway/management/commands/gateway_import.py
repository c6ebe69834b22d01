"""``manage.py gateway_import``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser

from ... import binary, importing, toml
from ...exceptions import GatewayError


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class Command(BaseCommand):
    """Brings the tables of an existing chat over."""

    help = (
        "Brings the tables of an existing chat over, while the site runs; run again, it brings what is new."
        " Each is app.Model:field,… or app.Model:role=field,…; what follows -- goes to `gateway import`."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """A table for each kind of line."""
        for kind, (roles, needed) in importing.ROLES.items():
            fields = ",".join(roles[:needed]) + "".join(f"[,{role}]" for role in roles[needed:])
            parser.add_argument(f"--{kind}", action="append", default=[], metavar="TABLE", help=f"app.Model:{fields}")
        parser.add_argument("--output", metavar="FILE", help="write the lines to a file (-: print them) instead")
        parser.add_argument("--database", help="the site's tables are in this database")
        parser.add_argument("arguments", nargs="*", help="arguments of `gateway import`, after --")

    def handle(self, *_: Any, **options: Any) -> None:
        """Writes the lines, or hands them to the gateway."""
        try:
            tables = [importing.Table(kind, text) for kind in importing.ROLES for text in options[kind]]
            if not tables:
                raise CommandError("name a table: --rooms, --members, --messages or --notifications")
            lines = chain.from_iterable(table.lines(options["database"]) for table in tables)
            if options["output"] == "-":
                for line in lines:
                    self.stdout.write(line, ending="")
            elif options["output"]:
                # What everybody has said to everybody is its owner's only.
                with open(options["output"], "w", encoding="utf-8", opener=_private) as file:
                    file.writelines(lines)
            else:
                code = self._import(lines, options["arguments"])
                if code:
                    sys.exit(code)
        except (GatewayError, ImproperlyConfigured, OSError) as error:
            raise CommandError(str(error)) from error

    def _import(self, lines: Iterator[str], arguments: list[str]) -> int:
        program, config = binary.find(), toml.node_config()
        directory = Path(tempfile.mkdtemp(prefix="gateway-"))
        try:
            toml.write_secrets(config, directory)
            (directory / "gateway.toml").write_text(toml.render(config, directory), encoding="utf-8")
            environment = {**dict(line.split("=", 1) for line in toml.environment(config, directory)), **os.environ}
            command = [program, "import", "--config", str(directory / "gateway.toml"), *arguments, "-"]
            importer = subprocess.Popen(  # noqa: S603
                command, env=environment, stdin=subprocess.PIPE, text=True, encoding="utf-8"
            )
            try:
                # What it refuses it says itself, and ends.
                with suppress(BrokenPipeError):
                    if importer.stdin is not None:
                        importer.stdin.writelines(lines)
                        importer.stdin.close()
                return importer.wait()
            except BaseException:
                importer.terminate()
                importer.wait()
                raise
        finally:
            shutil.rmtree(directory, ignore_errors=True)
