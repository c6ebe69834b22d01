// An operator in a real browser, at `/admin/` of two nodes.
//
//   GATEWAY_INTERNAL   the internal listener of a node, with the API key `key`
//   GATEWAY_SOCKET     the public listener as ws://…/, of the other node
//   TOKENS             JSON: a token each for alice and `<i>bob` (both are in the room `lobby`)
//   CHROMIUM           the browser, default: `chromium` on the path
//   SCREENSHOTS        a directory for pictures
//
// Prints one line per step; exit code 0 if all of them hold, else 1.
import assert from "node:assert/strict";
import { once } from "node:events";
import { chromium } from "playwright-core";
import WebSocket from "ws";
import { browserPath, flags } from "./chromium.mjs";
import { nameless, sticksOut, tooFaint } from "./look.mjs";

const internal = process.env.GATEWAY_INTERNAL;
const tokens = JSON.parse(process.env.TOKENS);
const PATIENCE = 15_000; // ms
const BOB = "<i>bob";

const fail = (text) => {
  console.error(`FAILED: ${text}`);
  process.exit(1);
};
setTimeout(() => fail("not done after 600 s"), 600_000).unref();

const browser = await chromium.launch({ executablePath: browserPath(), args: flags });
const complaints = [];
const context = await browser.newContext({ viewport: { width: 1240, height: 820 }, locale: "en-GB", timezoneId: "UTC" });
context.setDefaultTimeout(PATIENCE);
const page = await context.newPage();
page.on("pageerror", (error) => complaints.push(String(error)));
// A refused call is what some steps want to see; what the policy of the page forbids is not.
page.on("console", (message) => message.type() === "error" && !/Failed to load resource/.test(message.text()) && complaints.push(message.text()));

const sockets = [];
async function connect(user) {
  const socket = new WebSocket(`${process.env.GATEWAY_SOCKET}ws/chat/lobby/`, ["gateway.v1", `bearer.${tokens[user]}`]);
  sockets.push(socket);
  socket.on("error", () => {});
  await once(socket, "open");
  return socket;
}

const step = async (text, run) => {
  await run();
  console.log(`ok - ${text}`);
};
const button = (name, where = page) => where.getByRole("button", { name, exact: true });
const go = async (view) => {
  await page.goto(`${internal}admin/#/${view}`);
  await page.locator("#view h1").waitFor();
};
const toast = (text) => page.locator(".toast").filter({ hasText: text }).waitFor();
const confirm = (name) => button(name, page.locator("#confirm")).click();
const row = (text, table = "") => page.locator(`${table} tbody tr`).filter({ hasText: text });

/** Everything that is shown has contrast, a name and a place, light and dark, wide and narrow; with pictures of it. */
async function looksWell(name) {
  const size = page.viewportSize();
  for (const [width, height, scheme] of [[1240, 820, "light"], [1240, 820, "dark"], [390, 844, "light"], [390, 844, "dark"]]) {
    await page.setViewportSize({ width, height });
    await page.emulateMedia({ colorScheme: scheme, reducedMotion: "reduce" });
    const [faint, out, mute] = [await tooFaint(page), await sticksOut(page), await nameless(page)];
    const shot = `${name}-${width > 640 ? "wide" : "narrow"}-${scheme}`;
    if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/${shot}.png` });
    assert.deepEqual([faint, out, mute], [[], [], []], shot);
  }
  await page.setViewportSize(size);
  await page.emulateMedia({ colorScheme: "light" });
}

try {
  await Promise.all([connect("alice"), connect(BOB)]);

  await step("without a key there is a sign-in and nothing else; a wrong one is refused", async () => {
    await page.goto(`${internal}admin`);
    assert.equal(page.url(), `${internal}admin/`);
    await page.getByLabel("API key").fill("wrong");
    await button("Sign in").click();
    await page.getByText("the API key is missing or wrong").waitFor();
    await looksWell("sign-in");
  });

  await step("with the key there is a session that scripts cannot read", async () => {
    await page.getByLabel("API key").fill("key");
    await page.getByLabel("API key").press("Enter");
    await page.locator("h1").filter({ hasText: "Overview" }).waitFor();
    assert.equal(await page.evaluate(() => document.cookie), "");
    const [cookie] = await context.cookies(internal);
    assert.deepEqual([cookie.httpOnly, cookie.sameSite, cookie.expires], [true, "Strict", -1]);
  });

  await step("both nodes are there with their state, version, sockets and rates", async () => {
    await row("one").filter({ hasText: "ready" }).waitFor();
    await row("two").filter({ hasText: /ready.*0\.\d+\.\d+.*2/ }).waitFor();
    await page.getByText("This node is ready.").waitFor();
    await page.locator(".tile").filter({ hasText: "Sockets" }).locator(".now").filter({ hasText: "2" }).waitFor();
    await page.locator(".tile").filter({ hasText: "Connects a second" }).locator(".most").filter({ hasText: "at most" }).waitFor();
    await looksWell("overview");
  });

  await step("a user is found: sockets, rooms, inbox", async () => {
    await button("Skip to the content").focus();
    await page.keyboard.press("Tab");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.getByLabel("Name of a user").fill("alice");
    await page.keyboard.press("Enter");
    await page.getByRole("heading", { name: "Sockets (1)" }).waitFor();
    await row("two").filter({ hasText: "/ws/chat/lobby/" }).waitFor();
    await row("The lobby").filter({ hasText: "Remove" }).waitFor();
  });

  await step("a notification from the page reaches the user and is in the inbox", async () => {
    const heard = once(sockets[0], "message");
    await page.getByLabel("Message").fill("The shop closes at <i>eight</i> today.\nסגור בשמונה");
    await button("Notify").click();
    await toast("“alice” is notified.");
    assert.equal(JSON.parse((await heard)[0]).message, "The shop closes at <i>eight</i> today.\nסגור בשמונה");
    await page.locator(".notes li").filter({ hasText: "<i>eight</i>" }).filter({ hasText: "unseen" }).waitFor();
    await looksWell("user");
  });

  await step("a disconnected user's socket is closed, with the code and the reason", async () => {
    const closed = once(sockets[0], "close");
    await page.getByLabel("Close code").selectOption("4401");
    await page.getByLabel("Reason, which the client sees (optional)").fill("new rules");
    await button("Disconnect").click();
    await looksWell("confirm");
    await page.keyboard.press("Escape");
    assert.equal(sockets[0].readyState, WebSocket.OPEN);
    await button("Disconnect").click();
    await confirm("Disconnect");
    const [code, reason] = await closed;
    assert.deepEqual([code, String(reason)], [4401, "new rules"]);
    // Another node may still list it.
    const gone = page.getByText("No socket is open.");
    while (!(await gone.isVisible())) {
      await button("Look again").click();
      await gone.waitFor({ timeout: 1000 }).catch(() => {});
    }
  });

  await step("a room is found: members, who is online, the newest messages", async () => {
    await go("rooms");
    await row("lobby").getByRole("link").click();
    await page.getByRole("heading", { name: "The lobby" }).waitFor();
    await row(BOB).filter({ hasText: "online" }).waitFor();
    await row("alice").filter({ hasText: "offline" }).waitFor();
    await page.locator(".notes li").filter({ hasText: "good morning" }).waitFor();
    await looksWell("room");
  });

  await step("a message is redacted, a member added and removed", async () => {
    await page.locator(".notes li").filter({ hasText: "good morning" }).getByRole("button").click();
    await confirm("Redact");
    await page.locator(".notes li").filter({ hasText: "This message was redacted." }).waitFor();
    await page.getByLabel("User").fill("carol");
    await button("Put into the room").click();
    await row("carol").filter({ hasText: "member" }).waitFor();
    await button("Remove carol from lobby").click();
    await confirm("Remove");
    await row("carol").waitFor({ state: "detached" });
  });

  await step("a room that does not exist can be made; a name that is none is refused", async () => {
    await go("rooms/new%20room");
    await button("Make this room").click();
    await page.getByText("Nobody is a member.").waitFor();
    await go("rooms/a%2Fb");
    await page.getByText("the room is not a valid name").waitFor();
    await go("users/..");
    await page.getByText("“..” is not a valid name").waitFor();
    assert.deepEqual(complaints, []);
  });

  await step("the stream's backlog and dead letters: one is tried again, one dropped", async () => {
    await go("stream");
    await page.locator(".letters li").nth(2).waitFor();
    await page.locator(".tile").filter({ hasText: "Dead letters" }).locator(".now").filter({ hasText: "3" }).waitFor();
    await page.locator(".letters dl").filter({ hasText: /source\s*shop/ }).first().waitFor();
    await looksWell("stream");
    await button("Try again", page.locator(".letters li").filter({ hasText: "new room" })).click();
    await toast("It is in the stream again.");
    await page.locator(".letters li").nth(2).waitFor({ state: "detached" });
    await button("Drop", page.locator(".letters li").filter({ hasText: "no_such_type" })).click();
    await confirm("Drop");
    await page.locator(".letters li").nth(1).waitFor({ state: "detached" });
    await go("rooms/new%20room");
    await page.locator(".notes li").filter({ hasText: "too early" }).waitFor();
  });

  await step("the form publishes into rooms, to users, to everybody, and envelopes as they are", async () => {
    await go("publish");
    await page.getByLabel("What").selectOption("chat");
    await page.getByLabel("To these rooms").fill("lobby\nnew room");
    await page.getByLabel("Message").fill("hello from the form");
    await page.getByLabel("Data, an object").fill("{");
    await button("Publish").click();
    await toast("The data is not JSON");
    await button("Put away", page.locator(".toast.bad")).click();
    await page.getByLabel("Data, an object").fill('{"n": 1}');
    const heard = once(sockets[1], "message");
    await button("Publish").click();
    await row("room:new room").filter({ hasText: "done" }).waitFor();
    assert.deepEqual(JSON.parse((await heard)[0]).data, { n: 1 });
    await looksWell("publish");
    await page.getByLabel("What").selectOption("announcement");
    await page.getByLabel("Message").fill("back in a minute");
    const told = once(sockets[1], "message");
    await button("Publish").click();
    await confirm("Announce");
    assert.equal(JSON.parse((await told)[0]).type, "announcement");
    await page.getByLabel("What").selectOption("envelope");
    await button("Publish").click();
    await row("room:lobby").filter({ hasText: "done" }).waitFor();
  });

  await step("what users are called and write is text, whatever is in it", async () => {
    await go(`users/${encodeURIComponent(BOB)}`);
    await page.getByRole("heading", { name: BOB }).waitFor();
    assert.equal(await page.locator("#view i").count(), 0);
  });

  await step("signing out ends the session, also for a page that is loaded again", async () => {
    await button("Sign out").click();
    await page.getByLabel("API key").waitFor();
    await page.reload();
    await page.getByLabel("API key").waitFor();
    assert.equal((await context.cookies(internal)).length, 0);
  });

  await step("nothing was forbidden by the page's own policy, and no error was thrown", async () => assert.deepEqual(complaints, []));
} catch (error) {
  if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/failed.png` }).catch(() => {});
  console.error(`FAILED: ${error.stack ?? error}`);
  for (const complaint of complaints) console.error(`  console: ${complaint}`);
  process.exitCode = 1;
} finally {
  for (const socket of sockets) socket.terminate();
  await browser.close();
}
process.exit();
