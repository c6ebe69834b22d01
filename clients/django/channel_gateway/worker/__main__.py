"""``python -m channel_gateway.worker module:application --listen unix:/run/site/worker.sock``."""

from __future__ import annotations

import argparse
import os
import sys


def main() -> int:
    """Returns the exit code."""
    from . import options

    parser = argparse.ArgumentParser(
        prog="python -m channel_gateway.worker",
        description="Runs an ASGI application behind the gateway, one instance per socket.",
    )
    parser.add_argument("application", help="module:application")
    options.add_arguments(parser)
    given = parser.parse_args()
    try:
        import msgpack  # noqa: F401
    except ImportError:
        print('msgpack is missing: pip install "channel-gateway[worker]", or msgpack alone', file=sys.stderr)
        return 2
    from .run import run
    from .server import load

    # As other servers do: the application is where one stands.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        read = options.read(vars(given), _of_settings())
    except options.WrongOptions as error:
        print(error, file=sys.stderr)
        return 2
    return run(given.application, lambda: load(given.application), read)


def _of_settings() -> tuple[str, ...] | None:
    """The secret of a Django site's settings, where there is one."""
    if not os.environ.get("DJANGO_SETTINGS_MODULE"):
        return None
    try:
        from channel_gateway.conf import conf
    except ImportError:
        return None
    return conf().bridge_secret


if __name__ == "__main__":
    sys.exit(main())
