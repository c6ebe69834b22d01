// Pages of other origins in a real browser that holds the victim's cookie for the gateway.
//
//   GATEWAY_URL   the node
//   COOKIE        the cookie that signs in, default: `gateway_token`
//   TOKEN         what the browser keeps in it
//   CHROMIUM      the browser, default: `chromium` on the path
//
// Prints one line per page; exit code 0 if only the node's own page was let in, else 1.
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import http from "node:http";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { browserPath, flags } from "./chromium.mjs";

const node = new URL(process.env.GATEWAY_URL);
const cookie = process.env.COOKIE || "gateway_token";
setTimeout(() => (console.error("FAILED: not done after 60 s"), process.exit(1)), 60_000).unref();

/** The way to the node, where every handshake and its answer are written down. */
const handshakes = [];
const wire = net.createServer((near) => {
  const far = net.connect(Number(node.port), node.hostname);
  const seen = { request: "", answer: "" };
  near.on("data", (bytes) => (seen.request += bytes.toString("latin1")));
  far.on("data", (bytes) => (seen.answer += bytes.toString("latin1")));
  for (const [from, to] of [[near, far], [far, near]]) {
    from.on("error", () => {});
    from.on("close", () => to.destroy());
    from.pipe(to);
  }
  handshakes.push(seen);
});
/** Somebody else's site. */
const foreign = http.createServer((_, answer) => answer.setHeader("content-type", "text/html").end("<!doctype html><title>x</title>"));
for (const server of [wire, foreign]) await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const gateway = `127.0.0.1:${wire.address().port}`;
const site = foreign.address().port;
const directory = mkdtempSync(join(tmpdir(), "origins-"));
const file = join(directory, "page.html");
writeFileSync(file, "<!doctype html><title>x</title>");

// A browser that keeps no cookie from other sites, as private windows do: that is not to be what helps.
mkdirSync(join(directory, "profile/Default"), { recursive: true });
writeFileSync(join(directory, "profile/Default/Preferences"), JSON.stringify({ profile: { cookie_controls_mode: 0 } }));
const context = await chromium.launchPersistentContext(join(directory, "profile"), { executablePath: browserPath(), args: flags });
context.setDefaultTimeout(10_000);
// The most careless cookie there is: sent along by any page.
await context.addCookies([{ name: cookie, value: process.env.TOKEN, domain: "127.0.0.1", path: "/", sameSite: "None", secure: true }]);
const page = await context.newPage();

/** Connects in that frame; what the handshake said and how it ended. */
async function attempt(frame) {
  handshakes.length = 0;
  const ended = await frame.evaluate(
    (url) =>
      new Promise((resolve) => {
        const socket = new WebSocket(url);
        socket.onopen = () => (resolve("open"), socket.close());
        socket.onclose = (event) => resolve(`closed ${event.code}`);
      }),
    `ws://${gateway}/ws/chat/lobby/`,
  );
  const asked = handshakes.filter((seen) => /^GET \/ws\//.test(seen.request));
  assert.equal(asked.length, 1, "the browser has asked the gateway");
  const origin = /^origin: (.*)\r$/im.exec(asked[0].request)?.[1];
  assert.match(asked[0].request, new RegExp(`^cookie: .*${cookie}=`, "im"), "with the victim's cookie");
  return { ended, origin, status: asked[0].answer.slice(9, 12) };
}

async function sandboxed(url) {
  await page.goto(url);
  await page.evaluate(() => {
    const frame = document.createElement("iframe");
    frame.sandbox = "allow-scripts";
    frame.srcdoc = "<!doctype html><title>x</title>";
    return new Promise((resolve) => ((frame.onload = resolve), document.body.append(frame)));
  });
  return page.frames()[1];
}

async function opened(url) {
  await page.goto(url);
  return page.mainFrame();
}

const own = `http://${gateway}/healthz`;
const pages = [
  ["its own page", () => opened(own), `http://${gateway}`, true],
  ["another host", () => opened(`http://localhost:${site}/`), `http://localhost:${site}`, false],
  ["another port of the same host", () => opened(`http://127.0.0.1:${site}/`), `http://127.0.0.1:${site}`, false],
  ["a sandboxed frame in another page", () => sandboxed(`http://127.0.0.1:${site}/`), "null", false],
  ["a sandboxed frame in its own page", () => sandboxed(own), "null", false],
  ["a file", () => opened(`file://${file}`), "null", false],
];
try {
  for (const [name, open, origin, welcome] of pages) {
    const seen = await attempt(await open());
    const expected = welcome ? { ended: "open", origin, status: "101" } : { ended: "closed 1006", origin, status: "403" };
    assert.deepEqual(seen, expected, name);
    console.log(`ok - ${name}: ${seen.origin} is answered ${seen.status}`);
  }
} catch (error) {
  console.error(`FAILED: ${error.stack ?? error}`);
  process.exitCode = 1;
} finally {
  await context.close();
  rmSync(directory, { recursive: true });
}
process.exit();
