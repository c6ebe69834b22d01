"""Puts the program into the wheel, which is then one for this kind of machine."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProgramHook(BuildHookInterface):  # type: ignore[misc,type-arg]
    """``GATEWAY_BINARY``, else the workspace's release build."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the wheel is written."""
        named = os.environ.get("GATEWAY_BINARY")
        program = Path(named) if named else Path(self.root).parents[2] / "target/release/gateway"
        if not program.is_file():
            raise FileNotFoundError(f"{program} is missing: cargo build --release, or set GATEWAY_BINARY")
        build_data["shared_scripts"] = {str(program.resolve()): "gateway"}
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
        build_data["pure_python"] = False
