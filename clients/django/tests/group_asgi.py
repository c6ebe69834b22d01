"""What a worker of its own process runs: the consumers of groups."""

import django

django.setup()

from .group_consumers import application as _application  # noqa: E402

application = _application()
