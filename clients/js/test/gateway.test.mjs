// The client with a real gateway, and in a real browser where the life of a page matters. Needs `cargo build -p gateway` and Chromium.
import assert from "node:assert/strict";
import { after, afterEach, before, test } from "node:test";
import { WebSocket } from "ws";
import { connect } from "../client.js";
import { line, site, startBrowser, startNode } from "./node.mjs";

const PATIENCE = 20_000; // ms until what should happen counts as missing
const cleanups = [];
let node;
let browser;
before(async () => {
  node = await startNode({ GATEWAY_ALLOWED_ORIGINS: "*" });
  browser = await startBrowser();
});
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});
after(async () => {
  await browser?.close();
  await node?.stop();
});

async function client(at, { user = "alice", port = at.port, ...options } = {}) {
  const gateway = connect(`ws://127.0.0.1:${port}/ws/chat/lobby/`, { WebSocket, token: await at.token(user), baseDelay: 20, maxDelay: 100, ...options });
  cleanups.push(() => gateway.close());
  return gateway;
}

function state(gateway, wanted) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`waited for "${wanted}"`)), PATIENCE);
    const off = gateway.on("state", (event) => {
      if (event.state !== wanted) return;
      clearTimeout(timer);
      off();
      resolve(event);
    });
  });
}

test("data beside a text arrives as it was, live and in pages", async () => {
  const gateway = await client(node, { user: "dora" });
  await state(gateway, "open");
  const data = { z: 1.5, a: [null, { "é": "👍" }], big: 2 ** 53 };
  const heard = (kind) => new Promise((resolve) => gateway.on(kind, resolve));
  const live = Promise.all([heard("chat"), heard("notification")]);
  await gateway.chat("lobby", "with", { data });
  await gateway.notify("dora", "with", { data, timeout: PATIENCE });
  const pages = [
    (await gateway.request({ cate: "history", group_name: "lobby", limit: 1 })).messages[0],
    (await gateway.request({ cate: "notifications", limit: 1 })).notifications[0],
  ];
  for (const frame of [...(await live), ...pages]) {
    assert.deepEqual(frame.data, data);
    assert.deepEqual(Object.keys(frame.data), ["z", "a", "big"]);
  }
  const large = { text: "x".repeat(17_000) };
  await assert.rejects(gateway.chat("lobby", "large", { data: large }), { code: "too_large" });
  await assert.rejects(gateway.chat("lobby", "list", { data: [] }), { code: "invalid" });
  await gateway.chat("lobby", "without");
  const [last] = (await gateway.request({ cate: "history", group_name: "lobby", limit: 1 })).messages;
  assert.equal("data" in last, false);
});

test("every request gets its own answer, however many there are at once", async () => {
  const gateway = await client(node, { window: 100 });
  const other = await client(node);
  const seen = (up_to) => gateway.request({ cate: "seen", up_to });
  await Promise.all([state(gateway, "open"), state(other, "open")]);
  const outcomes = await Promise.allSettled([
    gateway.request({ cate: "history", group_name: "elsewhere" }),
    gateway.request({ cate: "history", group_name: "lobby", limit: 1 }),
    gateway.request({ cate: "history", group_name: "lobby", before: -1 }),
    gateway.request({ cate: "presence", group_name: "lobby" }),
    seen(1),
    other.request({ cate: "seen", up_to: 3 }),
    seen(2),
    gateway.request({ cate: "notifications" }),
    gateway.request({ cate: "ping" }),
  ]);
  const told = outcomes.map(({ value, reason }) => value?.up_to ?? value?.type ?? reason.code);
  assert.deepEqual(told, ["room_not_found", "history", "invalid", "presence", 1, 3, 2, "notifications", "pong"]);
});

test("a node that hangs is given up and found again", async () => {
  const own = await startNode();
  cleanups.push(() => own.stop());
  const gateway = await client(own, { pingAfter: 200, pingTimeout: 300, connectTimeout: 500 });
  await state(gateway, "open");
  own.signal("SIGSTOP");
  assert.equal((await state(gateway, "waiting")).reason, "no answer to a ping");
  own.signal("SIGCONT");
  await state(gateway, "open");
  await gateway.chat("lobby", "still here");
});

test("a line that dies without a word is noticed, and what was said on it arrives once", async () => {
  const wire = await line(node.port);
  cleanups.push(() => wire.close());
  const gateway = await client(node, { port: wire.port, pingAfter: 60_000, lateAfter: 200, pingTimeout: 500 });
  const heard = [];
  const last = new Promise((resolve) => gateway.on("chat", ({ message }) => heard.push(message) && message === "after" && resolve()));
  await state(gateway, "open");
  await gateway.chat("lobby", "before");
  wire.die();
  const message = gateway.chat("lobby", "into the dark");
  assert.equal((await state(gateway, "waiting")).reason, "no answer to a ping");
  await message;
  await gateway.chat("lobby", "after");
  await last; // it and its ack come in either order
  assert.deepEqual(heard, ["before", "into the dark", "after"]);
});

test("an origin that is not allowed is said to be refused before it was opened", async () => {
  const strict = await startNode({ GATEWAY_ALLOWED_ORIGINS: "https://chat.example.com" });
  cleanups.push(() => strict.stop());
  const page = await visit(strict, { baseDelay: 20 });
  const refused = await page.waitForFunction(() => globalThis.states.find((event) => event.reason === "handshake"));
  assert.deepEqual(Object.keys(await refused.jsonValue()).sort(), ["code", "reason", "retryAt", "state"]);
  const before = await page.evaluate(() => globalThis.states.filter((event) => event.state === "waiting" && event.reason !== "handshake").length);
  assert.equal(before, 2);
});

/** A page of another origin that imports the client from the gateway; its `gateway` is a global. */
async function visit(at, options = {}) {
  const token = await at.token("alice");
  const script = `
    import { connect } from "${at.url}client.js";
    globalThis.states = [];
    globalThis.gateway = connect("${at.socket}ws/chat/lobby/", { token: "${token}", ...${JSON.stringify(options)} });
    gateway.on("state", (event) => states.push(event));
    globalThis.addEventListener("pageshow", (event) => { globalThis.persisted = event.persisted; });`;
  const pages = await site({ "/": `<!doctype html><title>chat</title><script type="module">${script}</script>`, "/away": "<!doctype html><title>away</title>" });
  const context = await browser.newContext();
  cleanups.push(() => pages.close(), () => context.close());
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  page.site = pages.url;
  await page.goto(`${pages.url}/`);
  await page.waitForFunction(() => globalThis.gateway);
  return page;
}
const isOpen = (page) => page.waitForFunction(() => globalThis.gateway.state === "open");
const NEVER = { baseDelay: 1e9, maxDelay: 1e9 };

test("a page of another origin imports the client", async () => {
  const page = await visit(node);
  await isOpen(page);
  assert.equal((await page.evaluate(() => gateway.chat("lobby", "from elsewhere"))).type, "ack");
});

// The browser freezes a page that it puts there, and thaws it.
test("a page out of the back/forward cache is connected at once, with all it had", async () => {
  const page = await visit(node, NEVER);
  await isOpen(page);
  await page.evaluate(() => (globalThis.kept = "kept"));
  await page.goto(`${page.site}/away`);
  // `goBack` waits for a page to load, and this one does not.
  await page.evaluate(() => history.back());
  await page.waitForURL(`${page.site}/`, { waitUntil: "commit" }).catch(() => {});
  await isOpen(page);
  assert.deepEqual(await page.evaluate(() => [persisted, globalThis.kept, states.map((event) => event.state)]), [true, "kept", ["open", "waiting", "connecting", "open"]]);
  assert.equal((await page.evaluate(() => gateway.chat("lobby", "back again"))).type, "ack");
});

test("a browser that is offline waits, and is connected when it is online", async () => {
  const page = await visit(node, NEVER);
  await isOpen(page);
  await page.context().setOffline(true);
  await page.waitForFunction(() => gateway.state === "waiting");
  await page.context().setOffline(false);
  await isOpen(page);
});

test("a page that was hidden for long asks for nothing until it is shown", async () => {
  const wire = await line(node.port);
  cleanups.push(() => wire.close());
  const at = { ...node, socket: `ws://127.0.0.1:${wire.port}/` };
  const page = await visit(at, { baseDelay: 20, maxDelay: 20, pingAfter: 100, pingTimeout: 200, connectTimeout: 300, hiddenAfter: 300 });
  await isOpen(page);
  // What the browser itself does when another tab is chosen; without a screen all tabs count as shown.
  const show = (visibility) =>
    page.evaluate((visibility) => {
      Object.defineProperty(document, "visibilityState", { value: visibility, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }, visibility);
  await show("hidden");
  wire.die(true);
  await page.waitForFunction(() => states.at(-1).reason === "hidden", undefined, { timeout: 60_000 });
  wire.live();
  await show("visible");
  await isOpen(page);
});
