"""Runs a site's ASGI application behind the gateway: the gateway holds the sockets, the application decides.

``python manage.py gateway_worker --listen unix:/run/site/worker.sock`` runs ``settings.ASGI_APPLICATION``,
``python -m channel_gateway.worker module:application --listen …`` any other. The worker listens, every node dials it;
one link to a node carries many sockets, and each socket has an instance of the application for its whole life.

Needs msgpack, and neither Django nor Channels; uvloop is used where it is installed.
"""
