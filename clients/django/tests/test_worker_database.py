"""Old database connections are closed as Channels closes them, however seldom the worker looks."""

from django.test import tag

from .test_worker_processes import WithProcesses

OF_THESE_TESTS = ("-m", "channel_gateway.worker", "tests.worker_database:application")


class ClosingCases:
    """What holds however it is looked."""

    how = None

    async def socket(self, max_age="0", **environment):
        # With settings of its own.
        environment |= {"DJANGO_SETTINGS_MODULE": "", "TEST_MAX_AGE": max_age}
        environment["TEST_DATABASE"] = str(self.directory / "database")
        self.start("--close-connections", self.how, module=OF_THESE_TESTS, **environment)
        self.node = await self.dial()
        return await self.node.connect()

    async def ask(self, socket, what):
        socket.say(what)
        return await socket.hears()

    async def test_one_that_was_left_open_is_closed_before_the_next_handler_of_anybody(self):
        socket = await self.socket()
        other = await self.node.connect()
        self.assertEqual(await self.ask(socket, "leave"), "1")
        self.assertEqual(await self.ask(other, "is_open"), "False")
        self.assertEqual(await self.ask(other, "leave"), "1")
        socket.closed()
        await socket.end()
        self.assertEqual(await self.ask(other, "is_open"), "False")

    async def test_one_that_was_opened_while_the_application_was_imported_is_closed(self):
        self.assertEqual(await self.ask(await self.socket(TEST_AT_IMPORT="yes"), "is_open"), "False")

    async def test_one_that_is_to_stay_stays_until_its_age_or_a_forgotten_transaction(self):
        socket = await self.socket(max_age="none")
        for end in ("expire", "forget"):
            self.assertEqual(await self.ask(socket, "leave"), "1")
            self.assertEqual(await self.ask(socket, "is_open"), "True")
            await self.ask(socket, end)
            self.assertEqual(await self.ask(socket, "is_open"), "False")


@tag("once")
class NeededTests(ClosingCases, WithProcesses):
    how = "needed"

    async def test_nobody_looks_where_no_connection_is_open(self):
        socket = await self.socket()
        for _ in range(3):
            self.assertEqual(await self.ask(socket, "looks"), "0")
        # With one that is closed again it is the same.
        self.assertEqual(await self.ask(socket, "query"), "1")
        before = await self.ask(socket, "looks")
        self.assertEqual(await self.ask(socket, "looks"), before)


@tag("once")
class AlwaysTests(ClosingCases, WithProcesses):
    how = "always"

    async def test_channels_looks_before_each_handler(self):
        socket = await self.socket()
        # Once for websocket.connect, and for each message.
        for count in range(2, 5):
            self.assertEqual(await self.ask(socket, "looks"), str(count))
