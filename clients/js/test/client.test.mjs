import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { afterEach, test } from "node:test";
import { WebSocket } from "ws";
import { connect, Gateway, GatewayError } from "../client.js";
import { ack, chat, serve } from "./server.mjs";

const cleanups = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function start(onFrame, options) {
  const server = await serve(onFrame, options);
  cleanups.push(() => server.close());
  return server;
}

/** A client with short delays, closed when the test ends. */
function client(server, options) {
  const gateway = connect(server.url, { WebSocket, baseDelay: 20, maxDelay: 100, ...options });
  gateway.states = [];
  gateway.on("state", (event) => gateway.states.push(event));
  cleanups.push(() => gateway.close());
  return gateway;
}

/** The next event (or the first that `wanted` accepts), at most 5 s away. */
function next(gateway, event, wanted = () => true) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`waited 5 s for "${event}"`)), 5_000);
    const off = gateway.on(event, (value) => {
      if (!wanted(value)) return;
      clearTimeout(timer);
      off();
      resolve(value);
    });
  });
}
const state = (gateway, wanted) => next(gateway, "state", (event) => event.state === wanted);
const ofCate = (cate) => (server) => server.frames.filter((frame) => frame.cate === cate);

test("offers gateway.v1 and the token, and asks for the rooms first", async () => {
  const server = await start();
  client(server, { token: "a.b.c", protocols: ["mine"] });
  await server.until(() => server.frames.length > 0);
  assert.deepEqual(server.offers[0], ["gateway.v1", "mine", "bearer.a.b.c"]);
  assert.equal(server.frames[0].cate, "rooms");
});

test("chat and notify resolve with their acks", async () => {
  const server = await start((frame, socket) => frame.client_id && socket.reply(ack(frame)));
  const gateway = client(server);
  const answer = await gateway.chat("lobby", "hello");
  const sent = ofCate("chat")(server)[0];
  assert.equal(answer.client_id, sent.client_id);
  assert.deepEqual({ ...sent, client_id: "" }, { cate: "chat", group_name: "lobby", message: "hello", client_id: "" });
  await gateway.notify("bob", "psst");
  assert.deepEqual(ofCate("notification")(server).map(({ user_name, message }) => [user_name, message]), [["bob", "psst"]]);
});

test("an unacknowledged message is sent again after a reconnect under the same client_id", async () => {
  const server = await start((frame, socket, number) => {
    if (frame.cate !== "chat") return;
    if (number === 1) socket.terminate();
    else socket.reply(ack(frame));
  });
  const gateway = client(server);
  await gateway.chat("lobby", "once");
  const sent = ofCate("chat")(server);
  assert.equal(sent.length, 2);
  assert.equal(sent[0].client_id, sent[1].client_id);
  assert.deepEqual(gateway.states.map((event) => event.state), ["open", "waiting", "connecting", "open"]);
  assert.equal(gateway.states[1].code, 1006);
});

test("messages sent while the node is away arrive in order once it is back", async () => {
  const first = await start();
  const gateway = client(first);
  await state(gateway, "open");
  await first.close();
  await state(gateway, "waiting");
  const acks = ["one", "two", "three"].map((text) => gateway.chat("lobby", text));
  const second = await start((frame, socket) => frame.client_id && socket.reply(ack(frame)), { port: first.port });
  await Promise.all(acks);
  assert.deepEqual(ofCate("chat")(second).map((frame) => frame.message), ["one", "two", "three"]);
});

test("a permanent error rejects, a passing one is tried again", async () => {
  let refusals = 0;
  const server = await start((frame, socket) => {
    if (frame.cate !== "chat") return;
    const error = (code) => socket.reply({ type: "error", code, detail: "because", client_id: frame.client_id });
    if (frame.group_name === "nowhere") error("room_not_found");
    else if (refusals++ === 0) error("unavailable");
    else socket.reply(ack(frame));
  });
  const gateway = client(server);
  const errors = [];
  gateway.on("error", (frame) => errors.push(frame.code));
  await assert.rejects(gateway.chat("nowhere", "x"), (error) => error instanceof GatewayError && error.code === "room_not_found" && error.message === "because");
  await gateway.chat("lobby", "x");
  const sent = ofCate("chat")(server);
  assert.equal(sent.length, 3);
  assert.equal(sent[1].client_id, sent[2].client_id);
  assert.deepEqual(errors, ["room_not_found", "unavailable"]);
});

test("after rate_limited nothing is sent until the pause is over, then everything in order", async () => {
  let limited = false;
  const server = await start((frame, socket) => {
    if (frame.cate !== "chat") return;
    if (!limited) {
      limited = true;
      // Names the first; the gateway does not answer those behind it at all.
      socket.reply({ type: "error", code: "rate_limited", detail: "slow down", client_id: frame.client_id });
    } else if (ofCate("chat")(server).length > 2) socket.reply(ack(frame));
  });
  const gateway = client(server);
  await Promise.all([gateway.chat("lobby", "a"), gateway.chat("lobby", "b")]);
  assert.deepEqual(ofCate("chat")(server).slice(-2).map((frame) => frame.message), ["a", "b"]);
});

test("no more than the window is under way", async () => {
  const server = await start();
  const gateway = client(server, { window: 3 });
  const acks = Array.from({ length: 10 }, (_, n) => gateway.chat("lobby", `${n}`));
  await server.until(() => server.frames.length === 3); // the request for the rooms waits like the rest
  for (let done = 0; done < 10; done += 1) {
    await server.until(() => ofCate("chat")(server).length > done);
    assert.ok(ofCate("chat")(server).length <= done + 3);
    server.sockets[0].reply(ack(ofCate("chat")(server)[done]));
    await acks[done];
  }
});

test("gives up a message after the time-out, and requests too", async () => {
  const server = await start();
  const gateway = client(server, { ackTimeout: 30 });
  await assert.rejects(gateway.chat("lobby", "x"), { code: "timeout" });
  await assert.rejects(gateway.request({ cate: "history", group_name: "lobby" }, { timeout: 30 }), { code: "timeout" });
});

test("refuses what the gateway would close the socket for, and more than it may keep", async () => {
  const server = await start();
  const gateway = client(server, { maxPending: 1 });
  await assert.rejects(gateway.chat("lobby", "ä".repeat(40_000)), { code: "too_large" });
  gateway.chat("lobby", "waits").catch(() => {});
  await assert.rejects(gateway.chat("lobby", "one too many"), { code: "queue_full" });
});

test("a request is settled by its own answer and by nothing else", async () => {
  const asked = [];
  const server = await start((frame, socket) => {
    if (frame.cate === "rooms") socket.reply({ type: "rooms", rooms: [], client_id: frame.client_id });
    else asked.push(frame);
  });
  const gateway = client(server);
  const outcomes = [];
  const ask = (frame, name) => gateway.request(frame).then((answer) => outcomes.push([name, answer.n]), (error) => outcomes.push([name, error.code]));
  ask({ cate: "history", group_name: "a" }, "first");
  ask({ cate: "history", group_name: "a" }, "second");
  ask({ cate: "seen", up_to: 5 }, "seen");
  ask({ cate: "presence", group_name: "a" }, "presence");
  await server.until(() => asked.length === 4);
  const [socket] = server.sockets;
  const heard = next(gateway, "typing");
  // Another tab's, an error of nobody knows which frame, an answer of another kind, and frames that only look right.
  socket.reply({ type: "seen", up_to: 5, unseen: 0, n: "another tab's" });
  socket.reply({ type: "error", code: "invalid", detail: "" });
  socket.reply({ type: "error", code: "room_not_found", detail: "", client_id: "of a frame that was only posted" });
  socket.reply({ type: "history", group_name: "a", messages: [], n: "no id" });
  socket.reply({ type: "site", client_id: asked[2].client_id });
  socket.reply({ type: "typing" });
  await heard;
  assert.deepEqual(outcomes, []);
  socket.reply({ type: "history", group_name: "a", client_id: asked[1].client_id, n: 2 });
  socket.reply({ type: "error", code: "unknown_cate", detail: "", client_id: asked[3].client_id });
  socket.reply({ type: "seen", client_id: asked[2].client_id, n: 3 });
  socket.reply({ type: "history", group_name: "a", client_id: asked[0].client_id, n: 1 });
  socket.reply({ type: "typing" });
  await next(gateway, "typing");
  assert.deepEqual(outcomes, [["second", 2], ["presence", "unknown_cate"], ["seen", 3], ["first", 1]]);
  assert.throws(() => gateway.request({ cate: "typing" }), TypeError);
});

for (const code of [1008, 1009, 4401, 4403, 4404]) {
  test(`does not come back after ${code}`, async () => {
    const server = await start(undefined, { onConnect: (socket) => socket.close(code, "reason") });
    const gateway = client(server);
    const waiting = gateway.chat("lobby", "x");
    await assert.rejects(waiting, (error) => error.code === "closed" && error.closeCode === code);
    assert.equal(gateway.state, "closed");
    assert.equal(server.sockets.length, 1);
    await assert.rejects(gateway.chat("lobby", "y"), { code: "closed" });
  });
}

for (const code of [1000, 1001, 1011, 1012, 1013, 4000, 4008]) {
  test(`comes back after ${code}`, async () => {
    const server = await start(undefined, { onConnect: (socket, number) => number === 1 && socket.close(code, "") });
    const gateway = client(server);
    const { retryAt } = await state(gateway, "waiting");
    assert.ok(retryAt <= Date.now() + 20);
    await server.until(() => server.sockets.length === 2);
  });
}

for (const code of [1001, 1012, 1013]) test(`a node that closes with ${code} says when to come back`, async () => {
  const server = await start(undefined, { onConnect: (socket, number) => number === 1 && socket.close(code, "retry=200-300") });
  const gateway = client(server);
  const asked = Date.now();
  const event = await state(gateway, "waiting");
  assert.ok(event.retryAt - asked >= 200 && event.retryAt - Date.now() <= 300, `${event.retryAt - asked}`);
  await state(gateway, "open");
  assert.ok(Date.now() - asked >= 200);
});

test("the backoff grows to its cap, with full jitter", async () => {
  const server = await start();
  await server.close();
  const random = Math.random;
  Math.random = () => 0.999;
  cleanups.push(() => (Math.random = random));
  const { setTimeout } = globalThis;
  cleanups.push(() => (globalThis.setTimeout = setTimeout));
  const delays = [];
  globalThis.setTimeout = (work, delay, ...more) => {
    if (delay <= 20) delays.push(Math.round(delay));
    return setTimeout(work, delay, ...more);
  };
  const gateway = client(server, { baseDelay: 4, maxDelay: 20 });
  while (delays.length < 5) await state(gateway, "waiting");
  assert.deepEqual(delays, [4, 8, 16, 20, 20]);
});

test("4401 asks for a new token, and gives up when new ones are refused too", async () => {
  const server = await start(undefined, { onConnect: (socket, number) => number !== 2 && socket.close(4401, "expired") });
  let tokens = 0;
  const gateway = client(server, { token: "old", getToken: async () => `new${++tokens}` });
  await server.until(() => server.sockets.length === 2);
  assert.deepEqual(server.offers.map((offer) => offer[1]), ["bearer.old", "bearer.new1"]);
  server.sockets[1].close(4401, "expired");
  await state(gateway, "closed");
  assert.equal(server.sockets.length, 4); // three new tokens in a row
  gateway.open("last");
  await server.until(() => server.sockets.length === 5);
  assert.equal(server.offers[4][1], "bearer.last");
});

test("4401 of who was signed in by cookies is tried once more, with those of now", async () => {
  const greet = (frame, socket) => frame.cate === "rooms" && socket.reply({ type: "rooms", rooms: [], client_id: frame.client_id });
  const server = await start(greet, { onConnect: (socket, number) => number === 3 && socket.close(4401, "expired") });
  const gateway = client(server, { token: null, getToken: null });
  await next(gateway, "rooms");
  server.sockets[0].close(4401, "a new password");
  await next(gateway, "rooms");
  assert.equal(gateway.state, "open");
  server.sockets[1].close(4401, "logged out");
  await state(gateway, "closed");
  assert.deepEqual(server.offers, Array(3).fill(["gateway.v1"]));
  assert.equal(gateway.states.at(-1).code, 4401);
});

test("whatever getToken gives instead of a token, it is asked again, and the client never ends", async () => {
  const server = await start();
  const given = ["<html>", "\n", "", null, undefined, false, 7, {}];
  let calls = 0;
  const gateway = client(server, { getToken: async () => (calls < given.length ? given[calls++] : "a.b.c") });
  await state(gateway, "open");
  const reasons = gateway.states.filter(({ state }) => state === "waiting").map(({ reason }) => reason);
  assert.deepEqual(reasons, given.map(() => "bad_token"));
  assert.deepEqual(server.offers, [["gateway.v1", "bearer.a.b.c"]]);
});

test("without a token nothing is offered but the protocol: the cookies sign in", async () => {
  const server = await start();
  await state(client(server, {}), "open");
  assert.deepEqual(server.offers, [["gateway.v1"]]);
});

test("renews the sign-in in place before the token expires", async () => {
  const token = (seconds) => `h.${Buffer.from(JSON.stringify({ exp: Math.floor(Date.now() / 1000) + seconds })).toString("base64url")}.s`;
  const server = await start((frame, socket) => frame.cate === "auth" && socket.reply({ type: "auth", expires_at: "", client_id: frame.client_id }));
  const next = token(3600);
  const gateway = client(server, { token: token(2), getToken: async () => next });
  const frame = await server.until((server) => ofCate("auth")(server)[0]);
  assert.equal(frame.token, next);
  assert.equal(gateway.state, "open");
  assert.equal(server.sockets.length, 1);
});

test("drops what it has seen, per room and inbox, and lets unstored frames through", async () => {
  const server = await start();
  const gateway = client(server);
  const seen = [];
  gateway.on("chat", (frame) => seen.push(frame.message));
  gateway.on("notification", (frame) => seen.push(`n${frame.seq}`));
  await server.until(() => server.frames.length > 0);
  const socket = server.sockets[0];
  for (const frame of [chat(1), chat(2), chat(2), chat(1), chat(1, { group_name: "other", message: "other" }), chat(undefined, { message: "live" }), chat(undefined, { message: "live" })]) socket.reply(frame);
  socket.reply({ type: "notification", id: "x", seq: 1, message: "", from_user: "bob" });
  socket.reply({ type: "notification", id: "x", seq: 1, message: "", from_user: "bob" });
  socket.reply(chat(3));
  await next(gateway, "chat", (frame) => frame.seq === 3);
  assert.deepEqual(seen, ["m1", "m2", "other", "live", "live", "n1", "m3"]);
  assert.deepEqual(gateway.positions, { rooms: { lobby: { seq: 3, id: "c3" }, other: { seq: 1, id: "c1" } }, notifications: { seq: 1, id: "x" } });
});

test("without resume an old number drops nothing of a new connection", async () => {
  const server = await start();
  const gateway = client(server, { resume: false });
  await server.until(() => server.frames.length > 0);
  server.sockets[0].reply(chat(7));
  await next(gateway, "chat");
  server.sockets[0].terminate();
  await server.until(() => server.sockets.length === 2);
  const heard = next(gateway, "chat");
  server.sockets[1].reply(chat(1));
  assert.equal((await heard).seq, 1);
});

test("resume is the first frame after a reconnect; a stream it cannot continue is reported", async () => {
  const server = await start((frame, socket) => {
    if (frame.cate === "rooms") socket.reply({ type: "rooms", rooms: [{ group_name: "lobby", seq: 4, id: "c4" }, { group_name: "quiet", seq: 9, id: "q9" }] });
    if (frame.cate !== "resume") return;
    for (const n of [5, 6, 7]) socket.reply(chat(n));
    socket.reply({ type: "resumed", rooms: { lobby: true, quiet: false }, notifications: true, client_id: frame.client_id });
  });
  const gateway = client(server);
  const seen = [];
  gateway.on("chat", (frame) => seen.push(frame.seq));
  await next(gateway, "rooms");
  server.sockets[0].reply(chat(5));
  await next(gateway, "chat");
  const reloads = [];
  gateway.on("reload", (event) => reloads.push(event));
  server.sockets[0].terminate();
  await next(gateway, "resumed");
  const { client_id, ...resume } = server.frames[1];
  assert.ok(client_id);
  assert.deepEqual(resume, { cate: "resume", rooms: { lobby: { seq: 5, id: "c5" }, quiet: { seq: 9, id: "q9" } } });
  assert.deepEqual(seen, [5, 6, 7]);
  assert.deepEqual(reloads, [{ group_name: "quiet" }]);
  assert.equal(gateway.positions.rooms.lobby.seq, 7);
});

test("a resume that meets an absent database is repeated; positions survive a page load", async () => {
  let asked = 0;
  const server = await start((frame, socket) => {
    if (frame.cate !== "resume") return;
    if (++asked === 1) socket.reply({ type: "error", code: "unavailable", detail: "", client_id: frame.client_id });
    else socket.reply({ type: "resumed", rooms: { lobby: true }, notifications: true, client_id: frame.client_id });
  });
  const positions = { rooms: { lobby: { seq: 5, id: "c5" } }, notifications: { seq: 2, id: "n2" } };
  const gateway = client(server, { positions });
  await next(gateway, "resumed");
  const sent = ofCate("resume")(server).map(({ client_id, ...frame }) => frame);
  assert.deepEqual(sent, [{ cate: "resume", ...positions }, { cate: "resume", ...positions }]);
});

test("a resume that is refused is one whose streams are read anew", async () => {
  const server = await start((frame, socket) => {
    if (frame.cate === "resume") socket.reply({ type: "error", code: "invalid", detail: "", client_id: frame.client_id });
  });
  const gateway = client(server, { positions: { rooms: { lobby: { seq: "x" } } } });
  assert.deepEqual(await next(gateway, "reload"), { group_name: "lobby" });
  assert.deepEqual(gateway.positions, { rooms: {} });
});

/** A page, as far as the client looks at it. */
function page() {
  const window = new EventTarget();
  const document = Object.assign(new EventTarget(), { visibilityState: "visible" });
  for (const name of ["addEventListener", "removeEventListener"]) globalThis[name] = window[name].bind(window);
  globalThis.document = document;
  cleanups.unshift(() => {
    for (const name of ["addEventListener", "removeEventListener", "document"]) delete globalThis[name];
  });
  return {
    tell: (name, target = window) => target.dispatchEvent(new Event(name)),
    freeze: () => document.dispatchEvent(new Event("freeze")),
    resume: () => document.dispatchEvent(new Event("resume")),
    show(visibilityState) {
      document.visibilityState = visibilityState;
      document.dispatchEvent(new Event("visibilitychange"));
    },
  };
}
const NEVER = { baseDelay: 1e9, maxDelay: 1e9 }; // by itself it would not come back
const pong = (frame, socket) => frame.cate === "ping" && socket.reply({ type: "pong", client_id: frame.client_id });

test("online and offline events of the browser: retry at once, let go at once", async () => {
  const { tell } = page();
  const server = await start();
  const gateway = client(server, NEVER);
  await state(gateway, "open");
  tell("offline");
  assert.equal(gateway.state, "waiting");
  tell("online");
  await state(gateway, "open");
  assert.equal(server.sockets.length, 2);
});

test("a gateway that has been silent is asked, and given up when it stays so", async () => {
  let alive = true;
  const server = await start((frame, socket) => alive && pong(frame, socket));
  const gateway = client(server, { pingAfter: 60, pingTimeout: 100 });
  const seen = [];
  gateway.on("frame", (frame) => seen.push(frame.type));
  await server.until(() => ofCate("ping")(server).length >= 2);
  assert.equal(gateway.state, "open");
  assert.equal(server.sockets.length, 1);
  alive = false;
  const { code, reason } = await state(gateway, "waiting");
  assert.deepEqual([code, reason], [1006, "no answer to a ping"]);
  await state(gateway, "open");
  assert.equal(server.sockets.length, 2);
  assert.deepEqual(seen, [], "its own pings are nobody's business");
});

test("whoever talks is not asked, and what was under way for long is a sign of life", async () => {
  const server = await start((frame, socket) => frame.client_id && frame.cate === "chat" && socket.reply(ack(frame)));
  const gateway = client(server, { pingAfter: 1000, pingTimeout: 2000 });
  await server.until(() => server.sockets.length === 1);
  const told = setInterval(() => server.sockets[0].reply({ type: "typing" }), 100);
  cleanups.push(() => clearInterval(told));
  for (let n = 0; n < 30; n += 1) await next(gateway, "typing");
  assert.equal(ofCate("ping")(server).length, 0);
  clearInterval(told);
  await server.until(() => ofCate("ping")(server).length === 1);
  // Frames that keep coming in while the pong is behind them.
  for (let n = 0; n < 4; n += 1) {
    await new Promise((resolve) => setTimeout(resolve, 900));
    server.sockets[0].reply({ type: "typing" });
  }
  assert.equal(gateway.state, "open");
  assert.equal((await state(gateway, "waiting")).reason, "no answer to a ping");
});

test("a page that slept looks once for an answer that it has not read, then gives up", async () => {
  const server = await start();
  const gateway = client(server, { pingAfter: 50, pingTimeout: 100 });
  await server.until(() => ofCate("ping")(server).length === 1);
  const { now } = Date;
  cleanups.push(() => (Date.now = now));
  let asleep = 0;
  Date.now = () => now() + (asleep += 3_600_000); // every timer is an hour late
  assert.equal((await state(gateway, "waiting")).reason, "no answer to a ping");
});

test("it asks at once when a message's answer is late, and when the page or the network is back", async () => {
  const { tell, show, resume } = page();
  for (const [name, happens] of [
    ["late", (gateway) => void gateway.chat("lobby", "x").catch(() => {})],
    ["visible", () => show("visible")],
    ["pageshow", () => tell("pageshow")],
    ["online", () => tell("online")],
    ["resume", () => resume()],
  ]) {
    const server = await start(pong);
    const gateway = client(server, { lateAfter: 20 });
    await server.until(() => ofCate("rooms")(server).length > 0);
    server.sockets[0].reply({ type: "rooms", rooms: [], client_id: server.frames[0].client_id });
    await next(gateway, "rooms");
    happens(gateway);
    await server.until(() => ofCate("ping")(server).length === 1, `a ping after "${name}"`);
    gateway.close();
  }
});

test("a gateway that knows no ping is not asked again", async () => {
  const server = await start((frame, socket) => frame.cate === "ping" && socket.reply({ type: "error", code: "unknown_cate", detail: "", client_id: frame.client_id }));
  const gateway = client(server, { pingAfter: 30, pingTimeout: 50 });
  await server.until(() => ofCate("ping")(server).length === 1);
  await new Promise((resolve) => setTimeout(resolve, 150));
  assert.equal(ofCate("ping")(server).length, 1);
  assert.deepEqual([gateway.state, server.sockets.length], ["open", 1]);
});

for (const [name, getToken, expected = /^bad_token$/] of [
  ["never settles", () => new Promise(() => {}), /^no token: /],
  ["throws", () => { throw new Error("broken"); }, /^no token: broken$/],
  ["rejects with nothing", () => Promise.reject(), /^no token: /],
  ["gives a page", () => "<!doctype html><title>Sign in</title>"],
  ["gives JSON", () => '{"token": "a.b.c"}'],
  ["gives an object", () => ({ token: "a.b.c" })],
  ["gives a line break", () => "\n"],
  ["gives two lines", () => "a.b.c\nd.e.f"],
]) {
  test(`a getToken that ${name} is one failed attempt`, async () => {
    const server = await start();
    let calls = 0;
    const gateway = client(server, { tokenTimeout: 50, getToken: () => (++calls === 1 ? getToken() : "a.b.c\n") });
    const { reason, retryAt } = await state(gateway, "waiting");
    assert.match(reason, expected);
    assert.ok(!reason.includes("a.b.c") && retryAt > 0);
    await state(gateway, "open");
    assert.deepEqual(server.offers, [["gateway.v1", "bearer.a.b.c"]]);
  });
}

test("a token that cannot be one is replaced, or the end until another one is given", async () => {
  const server = await start();
  const asking = client(server, { token: "<html>", getToken: async () => "a.b.c" });
  await state(asking, "open");
  const gateway = client(server, { token: "<html>" });
  assert.equal(gateway.state, "closed");
  assert.deepEqual([gateway.states.length, server.sockets.length], [0, 1]);
  gateway.open("d.e.f");
  await state(gateway, "open");
  assert.deepEqual(server.offers.map((offer) => offer[1]), ["bearer.a.b.c", "bearer.d.e.f"]);
});

test("open(token) uses the token, whatever the client is doing", async () => {
  const server = await start();
  let settle;
  const gateway = client(server, { getToken: () => new Promise((resolve) => (settle = resolve)) });
  assert.equal(gateway.state, "connecting");
  gateway.open("one");
  await state(gateway, "open");
  settle("late");
  gateway.open("one"); // nothing new
  assert.equal(gateway.state, "open");
  gateway.open("two");
  assert.equal(gateway.state, "connecting");
  await state(gateway, "open");
  await server.until(() => server.sockets[0].readyState === WebSocket.CLOSED);
  gateway.close();
  gateway.open("three");
  await state(gateway, "open");
  assert.deepEqual(server.offers.map((offer) => offer[1]), ["bearer.one", "bearer.two", "bearer.three"]);
});

test("one failed renewal is not the last", async () => {
  const token = (seconds) => `h.${Buffer.from(JSON.stringify({ exp: Math.floor(Date.now() / 1000) + seconds })).toString("base64url")}.s`;
  const renewed = token(3600);
  const server = await start((frame, socket) => {
    if (frame.cate !== "auth") return;
    if (ofCate("auth")(server).length === 1) socket.reply({ type: "error", code: "invalid", detail: "", client_id: frame.client_id });
    else socket.reply({ type: "auth", expires_at: "", client_id: frame.client_id });
  });
  let calls = 0;
  const gateway = client(server, { token: token(4), getToken: async () => { if (++calls === 1) throw new Error("broken"); return calls === 2 ? token(3) : renewed; } });
  await server.until(() => ofCate("auth")(server).some((frame) => frame.token === renewed), "the renewal");
  assert.deepEqual([gateway.state, calls, server.sockets.length], ["open", 3, 1]);
});

test("a clock that is wrong does not renew all the time", async () => {
  const past = `h.${Buffer.from(JSON.stringify({ exp: Math.floor(Date.now() / 1000) - 3600 })).toString("base64url")}.s`;
  const server = await start((frame, socket) => frame.cate === "auth" && socket.reply({ type: "auth", expires_at: "", client_id: frame.client_id }));
  let calls = 0;
  const gateway = client(server, { token: past, getToken: async () => (++calls, past), renewBefore: 1_000 });
  await server.until(() => ofCate("auth")(server).length === 1);
  await next(gateway, "auth");
  await new Promise((resolve) => setTimeout(resolve, 300));
  assert.equal(calls, 1);
});

test("a page that is hidden for long makes no attempts, and one at once when it is shown", async () => {
  const { show } = page();
  const server = await start(undefined, { onConnect: (socket, number) => number === 1 && socket.close(1013, "") });
  show("hidden");
  const gateway = client(server, { hiddenAfter: 0 });
  const rest = await state(gateway, "waiting");
  assert.ok(rest.retryAt);
  assert.deepEqual(await state(gateway, "waiting"), { state: "waiting", code: 1013, reason: "hidden" });
  globalThis.document.dispatchEvent(new Event("resume")); // thawed, and still hidden
  assert.equal(gateway.state, "waiting");
  show("visible");
  await state(gateway, "open");
  assert.equal(server.sockets.length, 2);
});

test("an attempt that hangs since before the network was back is made anew", async () => {
  const { tell } = page();
  const net = await import("node:net");
  let attempts = 0;
  const silent = net.createServer((socket) => void (attempts += 1, socket.on("error", () => {})));
  await new Promise((resolve) => silent.listen(0, "127.0.0.1", resolve));
  cleanups.push(() => silent.close());
  const gateway = client({ url: `ws://127.0.0.1:${silent.address().port}/` });
  const connected = () => new Promise((resolve) => silent.once("connection", resolve));
  await connected();
  tell("online"); // an attempt that has only just begun goes on
  const { now } = Date;
  cleanups.push(() => (Date.now = now));
  Date.now = () => now() + 10_000;
  const again = connected();
  tell("online");
  await again;
  assert.deepEqual([attempts, gateway.state], [2, "connecting"]);
});

test("a page hidden for a moment goes on trying", async () => {
  const { show } = page();
  const server = await start(undefined, { onConnect: (socket, number) => number < 3 && socket.close(1013, "") });
  show("hidden");
  client(server);
  await server.until(() => server.sockets.length === 3);
});

test("what leaves for the back/forward cache or is frozen lets go, and is back at once", async () => {
  const { tell, freeze, resume } = page();
  const server = await start();
  const gateway = client(server, NEVER);
  await state(gateway, "open");
  tell("pagehide");
  freeze();
  assert.deepEqual(gateway.states.at(-1), { state: "waiting", code: 0, reason: "hidden" });
  await server.until(() => server.sockets[0].readyState === WebSocket.CLOSED);
  const kept = gateway.chat("lobby", "said meanwhile").catch(() => {});
  resume();
  await state(gateway, "open");
  tell("pageshow");
  await server.until(() => ofCate("chat")(server).length === 1);
  assert.deepEqual([server.sockets.length, gateway.states.filter((event) => event.state === "waiting").length], [2, 1]);
  gateway.close();
  await kept;
  tell("pageshow");
  assert.equal(gateway.state, "closed");
});

test("the third handshake in a row that never opens is said to be refused", async () => {
  let refuse = true;
  const http = await import("node:http");
  const server = await start();
  const door = http.createServer();
  door.on("upgrade", (request, socket, head) => {
    if (refuse) return socket.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
    server.wss.handleUpgrade(request, socket, head, (ws) => server.wss.emit("connection", ws, request));
  });
  await new Promise((resolve) => door.listen(0, "127.0.0.1", resolve));
  cleanups.push(() => door.close());
  const gateway = client({ url: `ws://127.0.0.1:${door.address().port}/ws/chat/` });
  const waits = () => gateway.states.filter((event) => event.state === "waiting");
  while (waits().length < 4) await state(gateway, "waiting");
  assert.deepEqual(waits().map((event) => event.reason === "handshake"), [false, false, true, true]);
  refuse = false;
  await state(gateway, "open");
  server.sockets[0].close(1013, "busy");
  assert.equal((await state(gateway, "waiting")).reason, "busy");
});

test("close leaves for good, and a broken listener keeps no frame from the others", async () => {
  const server = await start();
  const gateway = client(server);
  const { error } = console;
  console.error = () => {};
  cleanups.push(() => (console.error = error));
  gateway.on("chat", () => {
    throw new Error("broken");
  });
  const heard = next(gateway, "chat");
  await server.until(() => server.frames.length > 0);
  server.sockets[0].reply(chat(1));
  await heard;
  const waiting = gateway.chat("lobby", "x");
  gateway.close();
  await assert.rejects(waiting, { code: "closed" });
  assert.equal(gateway.state, "closed");
  assert.equal(gateway.states.at(-1).code, 1000);
});

test("the types name every option and every method", () => {
  const text = (name) => readFileSync(new URL(`../${name}`, import.meta.url), "utf8");
  const [code, types] = [text("client.js"), text("client.d.ts")];
  const names = (text, pattern) => [...text.matchAll(pattern)].map(([, name]) => name).sort();
  const defaults = /const DEFAULTS = {(.*?)^};/ms.exec(code)[1];
  const options = /interface Options {(.*?)^}/ms.exec(types)[1];
  assert.deepEqual(names(options, /^  (\w+)\?:/gm), names(defaults, /^  (\w+):/gm));
  const methods = Object.getOwnPropertyNames(Gateway.prototype).filter((name) => name !== "constructor");
  for (const name of methods) assert.match(types, new RegExp(`^  (get )?${name}[<(]`, "m"), name);
});
