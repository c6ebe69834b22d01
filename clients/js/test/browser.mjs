// Two people in real browsers, on two nodes with --dev, through the demo page.
//
//   GATEWAY_URL_A, GATEWAY_URL_B   the nodes (or one balancer for both; B defaults to A)
//   CHROMIUM                       the browser, default: `chromium` on the path
//   SCREENSHOTS                    a directory for pictures: of the looks, and of each window when something fails
//
// Prints one line per step; exit code 0 if all of them hold, else 1.
import assert from "node:assert/strict";
import net from "node:net";
import { chromium } from "playwright-core";
import { browserPath, flags } from "./chromium.mjs";
import { nameless, sticksOut, tooFaint } from "./look.mjs";

const urlA = process.env.GATEWAY_URL_A;
const urlB = process.env.GATEWAY_URL_B || urlA;
if (!urlA) fail("GATEWAY_URL_A is not set");
const PATIENCE = 10_000; // ms until something that should be seen counts as missing
const unique = Math.random().toString(36).slice(2, 8);
const [alice, bob] = [`alice-${unique}`, `bob-${unique}`];
const room = `room ${unique}`;

function fail(text) {
  console.error(`FAILED: ${text}`);
  process.exit(1);
}
setTimeout(() => fail("not done after 180 s"), 180_000).unref();

/** A wire to a node that can be cut: what a browser sees when its node dies. */
async function wire(url) {
  const { hostname, port } = new URL(url);
  const sockets = new Set();
  let whole = true;
  const server = net.createServer((near) => {
    if (!whole) return near.destroy();
    const far = net.connect(Number(port || 80), hostname);
    for (const [from, to] of [[near, far], [far, near]]) {
      sockets.add(from);
      from.setNoDelay(true);
      from.on("error", () => {});
      from.on("close", () => (sockets.delete(from), to.destroy()));
      from.pipe(to);
    }
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}/`,
    cut() {
      whole = false;
      for (const socket of sockets) socket.destroy();
    },
    mend: () => (whole = true),
    close: () => server.close(),
  };
}

const wireA = await wire(urlA);
const browser = await chromium.launch({
  executablePath: browserPath(),
  args: flags,
});
const complaints = [];
const pages = {};

async function open(name, url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, ...options });
  context.setDefaultTimeout(PATIENCE);
  const page = await context.newPage();
  pages[name] = page;
  page.on("pageerror", (error) => complaints.push(`${name}: ${error}`));
  page.on("console", (message) => {
    // That the wire is cut is what this test does.
    if (message.type() === "error" && !/net::ERR_|Connection closed/.test(message.text())) complaints.push(`${name}: ${message.text()}`);
  });
  // Every state the page has shown, also the short ones.
  await page.addInitScript(() => {
    globalThis.states = [];
    addEventListener("DOMContentLoaded", () => {
      const lamp = document.getElementById("state");
      new MutationObserver(() => globalThis.states.push(lamp.dataset.state)).observe(lamp, { attributeFilter: ["data-state"] });
    });
  });
  await page.goto(url);
  return page;
}

async function signIn(page, name) {
  await page.getByLabel("Your name").fill(name);
  await page.getByRole("button", { name: "Sign in" }).click();
  await connected(page);
}
const connected = (page) => page.locator('#state[data-state="open"]').waitFor();
const message = (page, text) => page.locator(".message").filter({ hasText: text });
const stored = (page, text) => page.locator(".message.own:not(.pending):not(.failed)").filter({ hasText: text });
const inRoom = (page, name) => page.locator("h1#room-title").filter({ hasText: name }).waitFor();

async function join(page, name) {
  await page.getByLabel("Join or create a room").fill(name);
  await page.getByLabel("Join or create a room").press("Enter");
  await inRoom(page, name);
}

async function say(page, text) {
  await page.locator("#text").fill(text);
  await page.locator("#text").press("Enter");
}

async function step(text, run) {
  await run();
  console.log(`ok - ${text}`);
}

try {
  const [a, b] = await Promise.all([open("alice", wireA.url), open("bob", urlB)]);

  await step("both sign in and are connected", () => Promise.all([signIn(a, alice), signIn(b, bob)]));

  await step("both enter a room that did not exist", async () => {
    await join(a, room);
    await join(b, room);
    assert.equal(decodeURIComponent(new URL(a.url()).hash), `#${room}`);
  });

  await step("each sees what the other says, with the sender's name; one's own is stored", async () => {
    await say(a, "hello from A");
    await message(b, "hello from A").waitFor();
    await say(b, "hello from B");
    await message(a, "hello from B").waitFor();
    await Promise.all([stored(a, "hello from A").waitFor(), stored(b, "hello from B").waitFor()]);
    assert.equal(await message(b, "hello from A").locator(".who").textContent(), alice);
    assert.equal(await message(a, "hello from A").count(), 1);
  });

  await step("what people write is text and nothing else", async () => {
    await say(a, '<img src=x onerror="globalThis.broken = 1"><b>bold</b>');
    await message(b, '<b>bold</b>').waitFor();
    assert.equal(await b.evaluate(() => globalThis.broken), undefined);
  });

  await step("a notification reaches a user on the other node: badge, toast and list", async () => {
    await b.getByRole("button", { name: "Notifications", exact: true }).click();
    await b.locator("#notify-user").fill(alice);
    await b.locator("#notify-text").fill("lunch?");
    await b.getByRole("button", { name: "Notify", exact: true }).click();
    await b.getByText(`Sent to ${alice}`).waitFor();
    await a.locator("#bell-badge").filter({ hasText: "1" }).waitFor();
    await a.locator(".toast").filter({ hasText: "lunch?" }).waitFor();
    await a.getByRole("button", { name: "Notifications, 1 new" }).click();
    await a.locator(".notice").filter({ hasText: "lunch?" }).waitFor();
    await a.locator("#bell-badge").waitFor({ state: "hidden" });
    await a.keyboard.press("Escape");
  });

  await step("a user that nobody knows is named as such", async () => {
    await b.locator("#notify-user").fill(`nobody-${unique}`);
    await b.locator("#notify-text").fill("x");
    await b.getByRole("button", { name: "Notify", exact: true }).click();
    await b.locator("#notify-result.bad").waitFor();
    await b.keyboard.press("Escape");
  });

  await step("a room that is not shown counts what is unread", async () => {
    const other = `other ${unique}`;
    await join(a, other);
    await say(b, "are you there?");
    const link = a.locator(".room").filter({ hasText: room });
    await link.locator(".badge").filter({ hasText: "1" }).waitFor();
    await link.click();
    await inRoom(a, room);
    await message(a, "are you there?").waitFor();
    assert.equal(await link.locator(".badge").count(), 0);
  });

  // Older messages are there only if this gateway can be asked for them.
  const remembers = await a.evaluate(async (room) => {
    const { connect } = await import("/client.js");
    const gateway = connect("/ws/chat/", { token: JSON.parse(sessionStorage.getItem("gateway.session")).token });
    return gateway.request({ cate: "history", group_name: room }).then(() => true, () => false).finally(() => gateway.close());
  }, room);

  await step("a lost connection shows, and what is written meanwhile arrives once", async () => {
    wireA.cut();
    await a.locator('#state[data-state="open"]').waitFor({ state: "detached" });
    await a.waitForFunction(() => globalThis.states.includes("waiting"));
    await a.locator("#state-text").filter({ hasText: /Reconnecting/ }).waitFor();
    await say(a, "written in the dark");
    await a.locator(".message.own.pending").filter({ hasText: "written in the dark" }).waitFor();
    await say(b, "said while alice was away");
    await stored(b, "said while alice was away").waitFor();
    wireA.mend();
    await connected(a);
    await stored(a, "written in the dark").waitFor();
    await message(b, "written in the dark").waitFor();
    assert.equal(await message(a, "written in the dark").count(), 1);
    assert.equal(await message(b, "written in the dark").count(), 1);
  });

  if (remembers) {
    await step("what was said meanwhile is there after the reconnect, once and in order", async () => {
      await message(a, "said while alice was away").waitFor();
      const texts = await a.locator(".message .text").allTextContents();
      assert.deepEqual(texts.slice(-2).sort(), ["said while alice was away", "written in the dark"]);
    });
  }

  await step("a reload keeps the sign-in and the room", async () => {
    await a.reload();
    await connected(a);
    await inRoom(a, room);
    if (remembers) await message(a, "hello from B").waitFor();
    await say(b, "welcome back");
    await message(a, "welcome back").waitFor();
  });

  await step("a narrow window has the rooms in a drawer and nothing sticks out", async () => {
    await b.setViewportSize({ width: 390, height: 844 });
    assert.ok(await b.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
    await b.getByRole("button", { name: "Rooms", exact: true }).click();
    await b.locator(".room").filter({ hasText: room }).waitFor();
    await b.keyboard.press("Escape");
    await b.locator("#drawer").waitFor({ state: "hidden" });
  });

  await step("links are links, only to http and https, and tell the other page nothing", async () => {
    await b.setViewportSize({ width: 1280, height: 800 });
    await say(b, 'see (https://example.com/a_(b)?x="y), http://[::1]:80/. javascript:alert(1) or HTTPS://EXAMPLE.COM/<b>!');
    const links = message(a, "see (https").locator(".text a");
    assert.deepEqual(await links.allTextContents(), ["https://example.com/a_(b)?x=", "http://[::1]:80/", "HTTPS://EXAMPLE.COM/"]);
    for (const link of await links.all()) assert.equal(await link.getAttribute("rel"), "noopener noreferrer nofollow");
  });

  await step("what is written from right to left is shown so", async () => {
    await say(b, "שלום עולם!");
    assert.equal(await message(a, "שלום").locator(".text").evaluate((node) => getComputedStyle(node).direction), "rtl");
    assert.equal(await message(a, "welcome back").locator(".text").evaluate((node) => getComputedStyle(node).direction), "ltr");
  });

  await step("a message that is too long gives its text back", async () => {
    const long = "long ".repeat(16_000).trim();
    await a.locator("#text").fill(long);
    await a.locator("#text").press("Enter");
    await a.getByText("This message is too long to be sent.").waitFor();
    assert.equal(await a.locator("#text").inputValue(), long);
    assert.equal(await a.locator(".message.failed, .message.pending").count(), 0);
    await a.locator("#text").fill("short");
    await a.locator("#text").press("Enter");
    await message(b, "short").waitFor();
    assert.equal(await a.locator("#text-error").textContent(), "");
  });

  await step("a toast can be put away, with the mouse and the keyboard", async () => {
    const notify = async (text) => {
      await b.locator("#notify-user").fill(alice);
      await b.locator("#notify-text").fill(text);
      await b.getByRole("button", { name: "Notify", exact: true }).click();
      await a.locator(".toast").filter({ hasText: text }).waitFor();
    };
    await b.getByRole("button", { name: /^Notifications/ }).click();
    await notify("first");
    await a.locator(".toast").filter({ hasText: "first" }).getByRole("button", { name: "Dismiss" }).click();
    await a.locator(".toast").waitFor({ state: "detached" });
    await notify("second");
    await a.locator(".toast").getByRole("button", { name: "Dismiss" }).focus();
    await a.keyboard.press("Escape");
    await a.locator(".toast").waitFor({ state: "detached" });
    assert.equal(await a.locator("#panel").evaluate((panel) => panel.inert), true, "the toast and nothing else");
    await b.keyboard.press("Escape");
  });

  await step("who is here is listed, and who comes and goes is seen without asking", async () => {
    await a.getByRole("button", { name: "Who is here" }).click();
    await a.locator(".person").filter({ hasText: bob }).waitFor();
    const guest = await open("guest", urlB);
    await signIn(guest, `guest-${unique}`);
    await join(guest, room);
    await a.locator(".person").filter({ hasText: `guest-${unique}` }).waitFor();
    await a.locator("#room-members").filter({ hasText: `guest-${unique}` }).waitFor();
    await guest.context().close();
    await a.locator(".person").filter({ hasText: `guest-${unique}` }).waitFor({ state: "detached" });
    await a.getByRole("button", { name: `Notify ${bob}` }).click();
    assert.equal(await a.locator("#notify-user").inputValue(), bob);
    await a.keyboard.press("Escape");
  });

  await step("long names, many unread and many people fit, with contrast, light and dark, wide and narrow", async () => {
    const long = `${"a-room-with-a-very-long-name-".repeat(4)}${unique}`;
    await join(b, long);
    await join(a, long);
    const link = b.locator(".room").filter({ hasText: room });
    await b.locator(".room").filter({ hasText: long }).waitFor();
    await join(a, room);
    for (let n = 0; n < 12; n += 1) await say(a, `line ${n} for the badge`);
    await link.locator(".badge").filter({ hasText: "12" }).waitFor();
    for (let n = 0; n < 11; n += 1) {
      await a.evaluate(([user, n]) => import("/client.js").then(({ connect }) => {
        globalThis.teller ??= connect("/ws/chat/", { token: JSON.parse(sessionStorage.getItem("gateway.session")).token });
        return globalThis.teller.notify(user, `notice ${n}`);
      }), [bob, n]);
    }
    await b.locator("#bell-badge").filter({ hasText: "11" }).waitFor();
    const title = await b.locator("#room-title").evaluate((node) => [node.textContent, node.title]);
    assert.equal(title[0], title[1], "the whole name can be read");
    for (const page of [a, b]) {
      for (const [width, height, scheme] of [[1280, 800, "light"], [1280, 800, "dark"], [390, 844, "light"], [390, 844, "dark"]]) {
        await page.setViewportSize({ width, height });
        await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
        if (page === a) await page.getByRole("button", { name: "Who is here" }).click();
        assert.equal(await page.evaluate(() => document.scrollingElement.scrollLeft + document.getElementById("app").scrollLeft), 0, "nothing has moved it sideways");
        const shot = `demo-${page === a ? "talk" : "badges"}-${width > 640 ? "wide" : "narrow"}-${scheme}`;
        if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/${shot}.png` });
        assert.deepEqual([await tooFaint(page), await sticksOut(page), await nameless(page)], [[], [], []], shot);
        if (page === a) await page.keyboard.press("Escape");
      }
    }
    for (const badge of await b.locator(".badge:visible").all()) {
      const box = await badge.evaluate((node) => [node.scrollWidth - node.clientWidth, node.getBoundingClientRect().width]);
      assert.ok(box[0] <= 0 && box[1] >= 18, `a badge is too small for its number: ${box}`);
    }
    await a.setViewportSize({ width: 1280, height: 800 });
  });

  await step("signing out ends it", async () => {
    await a.getByRole("button", { name: "Sign out" }).click();
    await a.getByLabel("Your name").waitFor();
    assert.equal(await a.evaluate(() => sessionStorage.length), 0);
  });

  await step("no error in any console", async () => assert.deepEqual(complaints, []));
} catch (error) {
  if (process.env.SCREENSHOTS) for (const [name, page] of Object.entries(pages)) await page.screenshot({ path: `${process.env.SCREENSHOTS}/${name}.png` }).catch(() => {});
  console.error(`FAILED: ${error.stack ?? error}`);
  for (const complaint of complaints) console.error(`  console of ${complaint}`);
  process.exitCode = 1;
} finally {
  await browser.close();
  wireA.close();
}
process.exit();
