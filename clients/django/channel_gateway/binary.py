"""Where the program ``gateway`` is."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

from .conf import conf
from .exceptions import GatewayError


class BinaryNotFound(GatewayError):
    """There is no program ``gateway`` here."""


def find() -> str:
    """``GATEWAY["BINARY"]``, else ``gateway`` on the ``PATH``, else the one that a wheel installed."""
    wanted = conf().binary
    if wanted:
        found = shutil.which(wanted)
        if not found:
            raise BinaryNotFound(f"GATEWAY['BINARY'] is {wanted}, where there is no program")
        return found
    found = shutil.which("gateway")
    if found:
        return found
    # A wheel puts it beside the interpreter, which may be called without its environment being active.
    for directory in (sysconfig.get_path("scripts"), str(Path(sys.executable).parent)):
        found = shutil.which("gateway", path=directory)
        if found:
            return found
    raise BinaryNotFound("there is no program `gateway` on the PATH: install it, or set GATEWAY['BINARY']")
