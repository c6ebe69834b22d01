"""The tests' own node with groups: a layer of one link, in memory."""

import struct

import msgpack

from .bridge import BINARY, TEXT, Node, Socket

LAYER, JOIN, LEAVE, JOINED, PUBLISH, SEND, SENT, PUBLISHED, EVENT, CLASS, RENDER, RENDERED = range(32, 44)
DETACH, STATE, READY = range(44, 47)


def named(name, rest):
    return struct.pack("<H", len(name)) + name.encode() + rest


def parted(body):
    length = struct.unpack_from("<H", body)[0]
    return body[2 : 2 + length].decode(), body[2 + length :]


class GroupNode(Node):
    def __init__(self, about):
        super().__init__()
        self.about = about
        self.groups = {}
        self.classes = {}
        self.renders = {}
        self.states = {}
        self.ready = set()
        # What sockets answer JOIN with, and SEND.
        self.refuses = set()
        self.sends = 0
        # Groups at whose JOIN the client leaves.
        self.ends_at = set()
        self.detached = set()

    async def dial(self, *args, **more):
        await super().dial(*args, **more)
        self.write(LAYER, 0, msgpack.packb(self.about))
        return self

    def _frame(self, kind, sid, body):
        if kind == JOIN:
            group = body.decode()
            if group in self.ends_at and not self.sockets[sid].is_closed:
                self.sockets[sid].closed(1006)
            refused = group in self.refuses or self.sockets[sid].is_closed
            if not refused:
                self.groups.setdefault(group, []).append(sid)
            self.write(JOINED, sid, bytes((refused,)) + body)
        elif kind == LEAVE:
            if sid in self.groups.get(body.decode(), ()) and sid not in self.detached:
                self.groups[body.decode()].remove(sid)
        elif kind == PUBLISH:
            group, event = parted(body)
            self.publish(group, event)
            self.write(PUBLISHED, 0, struct.pack("<I", 1))
        elif kind == SEND:
            channel, event = parted(body[4:])
            self.write(SENT, 0, body[:4] + bytes((self.sends,)))
            for each in self.sockets.values():
                if each.channel_name == channel and not self.sends:
                    self.event(event, [each.sid])
        elif kind == CLASS:
            self.classes[sid] = msgpack.unpackb(body)
        elif kind == RENDERED:
            request, outcome = struct.unpack_from("<QB", body)
            group, event, name = self.renders.pop(request)
            self.rendered(group, event, name, outcome, body[9:])
        elif kind == STATE:
            self.states[sid] = msgpack.unpackb(body) if body else None
        elif kind == READY:
            self.ready.add(sid)
        else:
            return False
        return True

    def publish(self, group, event):
        if isinstance(event, dict):
            event = msgpack.packb(event)
        handler = msgpack.unpackb(event)["type"].replace(".", "_")
        members = list(dict.fromkeys(self.groups.get(group, ())))
        of = {sid: self.classes.get(sid, {"shared": ()}) for sid in members}
        self.event(event, [sid for sid in members if handler not in of[sid]["shared"]])
        for name in dict.fromkeys(of[sid]["class"] for sid in members if handler in of[sid]["shared"]):
            request = max(self.renders, default=0) + 1
            self.renders[request] = (group, event, name)
            self.write(RENDER, 0, struct.pack("<Q", request) + named(name, event))

    def event(self, event, sids):
        if sids:
            self.write(EVENT, 0, struct.pack("<I", len(event)) + event + struct.pack(f"<{len(sids)}Q", *sids))

    def rendered(self, group, event, name, outcome, rest):
        sids = [sid for sid in dict.fromkeys(self.groups[group]) if self.classes.get(sid, {}).get("class") == name]
        if outcome:
            self.outcome = (outcome, rest.decode())
            self.event(event, sids)
            return
        while rest:
            kind, length = struct.unpack_from("<BI", rest)
            data, rest = rest[5 : 5 + length], rest[5 + length :]
            for sid in sids:
                text = data.decode() if kind == TEXT else data
                self.sockets[sid].events.put_nowait(("text" if kind == TEXT else "bytes", text))
                assert kind in (TEXT, BINARY)

    def detach(self, socket):
        self.detached.add(socket.sid)
        self.write(DETACH, socket.sid)


__all__ = ["GroupNode", "Socket"]
