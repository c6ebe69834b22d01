"""For a site's own tests: an outbox like ``mail.outbox``, a live-server class with a node, a communicator.

class OrderTests(GatewayTestMixin, TestCase):
    def test_paying_notifies(self):
        with self.captureOnCommitCallbacks(execute=True):
            order.pay()
        self.assertEqual(outbox[0].message, "paid")
"""

from __future__ import annotations

from .communicator import GatewayCommunicator
from .live import GatewayLiveServerTestCase, Node
from .outbox import Event, GatewayTestMixin, outbox

__all__ = ["Event", "GatewayCommunicator", "GatewayLiveServerTestCase", "GatewayTestMixin", "Node", "outbox"]
