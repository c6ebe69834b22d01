"""Signals that this app sends."""

from __future__ import annotations

from django.dispatch import Signal

#: The transaction was committed, but its event could not be published. Arguments: ``entries``, the fields of its stream
#: entries, and ``error``. A receiver may keep them, or count.
publish_failed = Signal()
