// The demo page: sign-in, rooms, messages and notifications over `client.js`. Served with --dev only.
import { connect } from "/client.js";

const $ = (id) => document.getElementById(id);
const SESSION = "gateway.session";
const PAGE = 50; // messages per history request
const REDACTED = "This message was taken away.";
const PRESENCE = 4_000; // ms between two looks at who is there, while the page is shown
const GROUP_GAP = 5 * 60_000; // ms between messages that still count as one group

let me = null; // {username, token}
let gateway = null;
let current = null; // the room shown
let rooms = new Map(); // name -> room
let notices = []; // newest first
let unseen = 0;
let unknown = new Set(); // what this gateway does not know; asking again would look like flooding
let joining = null; // the name of a room that is being entered
let refused = new Set(); // names of rooms that could not be entered: not tried again unasked
let stopped = () => {};

const newRoom = (name) => ({
  name,
  display: name,
  seq: null, // the newest position heard of
  unread: 0,
  messages: new Map(), // id -> message, stored and delivered
  outgoing: new Map(), // key -> message, on its way or failed
  typing: new Map(), // user -> timer
  online: [],
  draft: "", // what was too long to be sent
  loaded: false, // its history has been read
  stale: false, // what was missed could not be resumed
  hasMore: false,
});

// ---- small things ----

function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

function paintAvatar(node, name) {
  let hash = 0x811c9dc5; // FNV-1a, spread over the circle
  for (const letter of name) hash = Math.imul(hash ^ letter.codePointAt(0), 0x01000193);
  node.style.setProperty("--hue", ((hash >>> 8) * 137) % 360);
  node.textContent = [...name][0]?.toUpperCase() ?? "?";
  return node;
}

/** What somebody else has named or written: in its own direction. */
function their(tag, className, ...children) {
  const node = element(tag, className, ...children);
  node.dir = "auto";
  return node;
}

/** The text with its web addresses as links. Only http and https become one, and the other page learns nothing of this. */
function linked(text) {
  const parts = [];
  let from = 0;
  for (const { 0: found, index } of text.matchAll(/https?:\/\/[^\s<>"'`]+/gi)) {
    // What ends a sentence or closes a bracket that was opened before it is none of the address.
    let address = found;
    for (let end = address.at(-1); /[.,;:!?*_)\]}»”’]/.test(end); end = address.at(-1)) {
      if (end === ")" && address.split("(").length >= address.split(")").length) break;
      address = address.slice(0, -1);
    }
    if (!URL.canParse(address)) continue;
    const link = element("a", "", address);
    Object.assign(link, { href: address, target: "_blank", rel: "noopener noreferrer nofollow" });
    parts.push(text.slice(from, index), link);
    from = index + address.length;
  }
  parts.push(text.slice(from));
  return parts;
}

function avatar(name) {
  const node = element("span", "avatar");
  node.setAttribute("aria-hidden", "true");
  return paintAvatar(node, name);
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit" });
const longDay = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });

function timeOf(date) {
  const node = element("time", "", clock.format(date));
  node.dateTime = date.toISOString();
  node.title = date.toLocaleString();
  return node;
}

function dayOf(date) {
  const days = Math.round((new Date().setHours(0, 0, 0, 0) - new Date(date).setHours(0, 0, 0, 0)) / 86_400_000);
  return days === 0 ? "Today" : days === 1 ? "Yesterday" : longDay.format(date);
}

function badge(node, count) {
  node.hidden = count === 0;
  node.textContent = count > 99 ? "99+" : String(count);
}

const announce = (text) => ($("announce").textContent = text);

function toast({ from, text, bad, onClick }) {
  const body = element(onClick ? "button" : "div", "toast-body", ...(from ? [avatar(from)] : []),
    element("span", "notice-text", ...(from ? [their("strong", "", from)] : []), their("span", "toast-text", text)));
  const close = element("button", "icon toast-close", icon("close"));
  Object.assign(close, { type: "button", title: "Dismiss", ariaLabel: "Dismiss" });
  const node = element("div", bad ? "toast bad" : "toast", body, close);
  if (onClick) body.addEventListener("click", () => (node.remove(), onClick()));
  close.addEventListener("click", () => node.remove());
  $("toasts").append(node);
  while ($("toasts").childElementCount > 4) $("toasts").firstElementChild.remove();
  // Whoever reads it, or has its button in hand, has the time to.
  const leave = () => (node.matches(":hover, :focus-within") ? setTimeout(leave, 2_000) : node.remove());
  setTimeout(leave, bad ? 12_000 : 6_000);
}

// ---- signing in ----

async function login(username) {
  const response = await fetch("/dev/login", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ username }),
  });
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  throw Object.assign(new Error(answer.detail ?? `The gateway refused this name (${response.status}).`), { final: response.status < 500 });
}

function remember(session) {
  me = session;
  if (session) sessionStorage.setItem(SESSION, JSON.stringify(session));
  else sessionStorage.removeItem(SESSION);
}

/** A new token for the same name; null, where the gateway no longer gives one, signs out. */
async function newToken() {
  try {
    remember(await login(me.username));
    return me.token;
  } catch (error) {
    if (error.final) return null;
    throw error;
  }
}

function showSignIn(reason = "") {
  gateway?.close();
  gateway = null;
  stopped();
  $("app").hidden = true;
  $("sign-in").hidden = false;
  $("sign-in-error").textContent = reason;
  document.title = "Channel Gateway";
  $("sign-in-name").focus();
}

$("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("sign-in-error").textContent = "";
  try {
    remember(await login($("sign-in-name").value.trim()));
    enter();
  } catch (error) {
    $("sign-in-error").textContent = error instanceof TypeError ? "The gateway does not answer." : error.message;
  }
});

$("sign-out").addEventListener("click", () => {
  remember(null);
  showSignIn();
});

function enter() {
  rooms = new Map();
  notices = [];
  unseen = 0;
  current = joining = null;
  unknown = new Set();
  refused = new Set();
  $("sign-in").hidden = true;
  $("app").hidden = false;
  paintAvatar($("me-avatar"), me.username);
  $("me-name").textContent = me.username;
  $("me-node").textContent = location.host;
  togglePanel(false);
  togglePeople(false);
  shownPresence = "";
  saidWrong("");
  renderNotices();
  gateway = connect("/ws/chat/", { token: me.token, getToken: newToken });
  gateway.on("state", onState);
  gateway.on("rooms", onRooms);
  gateway.on("reload", onReload);
  gateway.on("chat", onChat);
  gateway.on("notification", onNotification);
  gateway.on("seen", (frame) => setUnseen(frame.unseen));
  gateway.on("typing", onTyping);
  gateway.on("redacted", onRedacted);
  gateway.on("announcement", (frame) => toast({ from: "Announcement", text: frame.message }));
  gateway.on("error", onError);
  onState({ state: gateway.state });
  const ticking = setInterval(() => document.hidden || loadPresence(), PRESENCE);
  stopped = () => clearInterval(ticking);
  $("text").focus();
}

// ---- the connection ----

let countdown = 0;
let wasOpen = false;

function onState({ state, retryAt, code, reason }) {
  clearInterval(countdown);
  $("state").dataset.state = state;
  $("state-retry").hidden = state !== "waiting" && state !== "closed";
  const show = (text) => ($("state-text").textContent = text);
  if (state === "open") {
    show("Connected");
    if (wasOpen) announce("Connected again");
    wasOpen = true;
    loadNotices();
    loadPresence();
  } else if (state === "connecting") {
    show(wasOpen ? "Reconnecting…" : "Connecting…");
  } else if (state === "waiting") {
    const tick = () => {
      const seconds = Math.ceil((retryAt - Date.now()) / 1000);
      show(seconds > 1 ? `Reconnecting in ${seconds} s` : "Reconnecting…");
    };
    tick();
    countdown = setInterval(tick, 250);
    announce("Connection lost. Trying to reconnect.");
  } else if (code === 4401) {
    wasOpen = false;
    remember(null);
    showSignIn("Your sign-in has expired.");
  } else if (code !== 1000) {
    show(code === 4403 ? "Disconnected by an operator" : `Disconnected (${reason || code})`);
    announce("Disconnected");
  }
}

$("state-retry").addEventListener("click", () => gateway.open());

function onError({ code, detail, client_id }) {
  if (client_id !== undefined || code === "unavailable" || code === "rate_limited") return; // who asked shows it
  if (code === "unknown_cate") unknown.add("typing");
  else if (code !== "room_not_found") toast({ text: detail || code, bad: true });
}

/** The answer to a request; null if there is none, now or in this gateway. */
async function ask(frame) {
  if (unknown.has(frame.cate) || gateway?.state !== "open") return null;
  try {
    return await gateway.request(frame);
  } catch (error) {
    if (error.code === "unknown_cate") unknown.add(frame.cate);
    return null;
  }
}

// ---- rooms ----

function wantedRoom() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

function onRooms(frame) {
  const before = rooms;
  rooms = new Map();
  for (const { group_name: name, display_name: display, seq } of frame.rooms) {
    const room = before.get(name) ?? newRoom(name);
    room.display = display || name;
    // Resuming brings what was said while we were away; where it cannot, the number is all there is.
    if (room.stale && seq > room.seq && (room !== current || document.hidden)) room.unread += seq - room.seq;
    room.stale = false;
    room.seq = Math.max(room.seq ?? 0, seq ?? 0);
    rooms.set(name, room);
  }
  const wanted = wantedRoom() || current?.name || rooms.keys().next().value || "lobby";
  if (rooms.has(wanted)) showRoom(rooms.get(wanted));
  else if (joining === null && !refused.has(wanted)) joinRoom(wanted);
  else renderRooms();
}

/** The missed part of a stream does not come: it is to be read again. */
function onReload({ group_name: name }) {
  const room = rooms.get(name);
  if (!room) return loadNotices();
  Object.assign(room, { stale: true, loaded: false });
  room.messages.clear(); // perhaps of another history
}

/** Under the open room policy, connecting to a room is joining it, for all sockets of the user. */
function joinRoom(name, asked = false) {
  const main = gateway;
  const visit = connect(`/ws/chat/${encodeURIComponent(name)}/`, { token: me.token });
  joining = name;
  const fail = (text) => {
    refused.add(name);
    visit.close();
    if (main !== gateway) return;
    toast({ text, bad: true });
    if (joining !== name) return; // by now another one is wanted
    joining = null;
    history.replaceState(null, "", location.pathname);
    const other = current ?? rooms.values().next().value;
    if (other) showRoom(other);
    else renderRooms();
  };
  visit.on("rooms", async () => {
    visit.close();
    if (joining === name) location.hash = encodeURIComponent(name);
    // The other socket hears of it by way of the channel layer, so perhaps a moment later.
    for (let tries = 0; tries < 10 && main === gateway && !rooms.has(name); tries += 1) {
      if (tries) await new Promise((resolve) => setTimeout(resolve, 100 * tries));
      await main.request({ cate: "rooms" }).catch(() => {});
    }
    if (!rooms.has(name)) return fail(`The room “${name}” is not in the list of rooms.`);
    if (joining !== name) return;
    joining = null;
    if (asked && document.activeElement === $("join-name") && !$("join-name").value) $("text").focus();
  });
  visit.on("state", ({ state, code }) => {
    if (state === "waiting") fail(`The room “${name}” could not be entered.`);
    if (state === "closed" && code !== 1000) fail(`There is no room “${name}” that you may enter.`);
  });
}

$("join-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("join-name").value.trim();
  if (!name) return;
  $("join-name").value = "";
  toggleDrawer(false);
  if (rooms.has(name)) location.hash = encodeURIComponent(name);
  else joinRoom(name, true);
});

addEventListener("hashchange", () => {
  const name = wantedRoom();
  if (!gateway || !name || name === current?.name) return;
  if (rooms.has(name)) showRoom(rooms.get(name));
  else if (joining === null) joinRoom(name);
});

function showRoom(room) {
  const changed = room !== current;
  current = room;
  if (!document.hidden) room.unread = 0;
  if (wantedRoom() !== room.name) history.replaceState(null, "", `#${encodeURIComponent(room.name)}`);
  $("room-title").textContent = $("room-title").title = room.display;
  $("text").placeholder = `Message ${room.display}`;
  if (changed) saidWrong("");
  if (changed) toggleDrawer(false);
  renderRooms();
  renderMessages({ jump: changed });
  renderTyping();
  if (!room.loaded) loadHistory(room);
  if (room.draft) giveBack(room.draft);
  room.draft = "";
  loadPresence();
}

function renderRooms() {
  const items = [...rooms.values()].map((room) => {
    const link = element("a", room.unread ? "room unread" : "room");
    link.href = `#${encodeURIComponent(room.name)}`;
    const mark = element("span", "room-mark", "#");
    mark.setAttribute("aria-hidden", "true");
    const name = their("span", "room-name", room.display);
    name.title = room.display;
    link.append(mark, name);
    if (room === current) link.setAttribute("aria-current", "page");
    if (room.unread) {
      const count = element("span", "badge");
      badge(count, room.unread);
      count.append(element("span", "visually-hidden", " unread"));
      link.append(count);
    }
    return element("li", "", link);
  });
  $("rooms").replaceChildren(...items);
  const unread = [...rooms.values()].reduce((sum, room) => sum + room.unread, 0);
  badge($("drawer-badge"), unread);
  document.title = `${unread + unseen ? `(${unread + unseen}) ` : ""}${current ? `${current.display} · ` : ""}Channel Gateway`;
}

async function loadPresence() {
  const room = current;
  const answer = room && (await ask({ cate: "presence", group_name: room.name }));
  if (room !== current) return;
  if (!answer) return gateway?.state === "open" ? showPresence(null) : undefined; // away: what is known stays
  room.online = answer.users;
  showPresence(room.online.filter((user) => user !== me.username));
}

/** Who else is there; null where this gateway does not tell. */
let shownPresence = "";
function showPresence(others) {
  const said = JSON.stringify([me.username, others]);
  if (said === shownPresence) return;
  shownPresence = said;
  $("people-open").hidden = others === null;
  if (others === null) {
    togglePeople(false);
    return $("room-members").replaceChildren();
  }
  const names = others.slice(0, 4).flatMap((user) => [", ", their("bdi", "", user)]);
  const more = others.length > 4 ? [` and ${others.length - 4} more`] : [];
  $("room-members").replaceChildren(...(others.length ? ["Online: you", ...names, ...more] : ["Only you are here"]));
  $("people-title").textContent = `Here now: ${others.length + 1}`;
  const person = (user, own) => element("li", "person", avatar(user), their("span", "person-name", user), ...(own ? [element("span", "muted", "you")] : [notifier(user)]));
  $("people-here").replaceChildren(person(me.username, true), ...others.map((user) => person(user, false)));
  $("people").replaceChildren(...others.map((user) => Object.assign(document.createElement("option"), { value: user })));
}

function notifier(user) {
  const button = element("button", "link", "Notify");
  button.type = "button";
  button.setAttribute("aria-label", `Notify ${user}`);
  button.addEventListener("click", () => {
    togglePeople(false);
    togglePanel(true);
    $("notify-user").value = user;
    $("notify-text").focus();
  });
  return button;
}

// ---- messages ----

let unstored = 0;

function keep(room, frame) {
  const stored = typeof frame.seq === "number";
  const last = [...room.messages.values()].at(-1)?.order ?? 0;
  const id = frame.id && stored ? frame.id : `live-${++unstored}`;
  const message = { id, from: frame.from_user, text: frame.redacted ? REDACTED : frame.message, redacted: frame.redacted, date: new Date(frame.date ?? Date.now()), order: stored ? frame.seq : last + 1e-6 };
  room.messages.set(id, message);
  if (message.order < last) room.messages = new Map([...room.messages].sort((a, b) => a[1].order - b[1].order));
  if (stored) room.seq = Math.max(room.seq ?? 0, frame.seq);
  return message;
}

async function loadHistory(room, before) {
  const again = room.loaded;
  const frame = await ask({ cate: "history", group_name: room.name, limit: PAGE, ...(before && { before }) });
  room.loaded = frame !== null || unknown.has("history"); // else tried again with the next connection
  if (frame) {
    for (const each of frame.messages) keep(room, each);
    if (before || !again) room.hasMore = frame.has_more;
  }
  if (room === current) renderMessages({ keepPlace: Boolean(before) });
}

$("older").addEventListener("click", () => {
  const first = [...current.messages.values()].find((message) => Number.isInteger(message.order));
  if (first) loadHistory(current, first.order);
});

function onChat(frame) {
  const room = rooms.get(frame.group_name) ?? newRoom(frame.group_name);
  if (!rooms.has(room.name)) {
    room.display = frame.display_name || room.name; // somebody added us to a room
    rooms.set(room.name, room);
  }
  if (frame.id && room.messages.has(frame.id)) return;
  const message = keep(room, frame);
  const own = message.from === me.username;
  // The frame may be here before the ack: until that comes, the waiting copy is not shown twice.
  if (own) [...room.outgoing.values()].some((out) => out.status === "pending" && !out.twin && out.text === message.text && (out.twin = message.id));
  clearTimeout(room.typing.get(message.from));
  room.typing.delete(message.from);
  if (!own && (room !== current || document.hidden)) room.unread += 1;
  if (room === current) {
    renderMessages({ fresh: !own });
    renderTyping();
    if (!own) announce(`${message.from}: ${message.text}`);
    if (!own && !room.online.includes(message.from)) loadPresence();
  }
  renderRooms();
}

function onRedacted({ group_name, id }) {
  const room = rooms.get(group_name);
  const message = room?.messages.get(id);
  if (!message) return;
  Object.assign(message, { text: REDACTED, redacted: true });
  if (room === current) renderMessages();
}

async function say(room, text, again) {
  const key = again ?? crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
  const waiting = { id: `out-${key}`, from: me.username, text, date: new Date(), status: "pending", twin: null };
  room.outgoing.set(key, waiting);
  renderMessages({ jump: true });
  try {
    const ack = await gateway.send({ cate: "chat", group_name: room.name, message: text, client_id: key }, { timeout: 0 });
    room.outgoing.delete(key);
    if (!room.messages.has(ack.id)) keep(room, { ...ack, message: text, from_user: me.username });
  } catch (error) {
    if (error.code === "too_large") {
      // Trying again would not help: what was written goes back to who can shorten it.
      room.outgoing.delete(key);
      if (room === current) giveBack(text);
      else Object.assign(room, { draft: text });
    } else Object.assign(waiting, { status: "failed", twin: null, error: error.message, retry: () => say(room, text, key) });
  }
  if (room === current) renderMessages();
}

/** The list is made anew each time, but a node is kept for every message that did not change. */
const nodes = new Map();
let rendered = null;
let atEnd = true;

function renderMessages({ jump = false, fresh = false, keepPlace = false } = {}) {
  const room = current;
  if (!room) return;
  if (rendered !== room) nodes.clear();
  rendered = room;
  const scroller = $("scroller");
  const heightBefore = scroller.scrollHeight;
  const shown = [...room.messages.values(), ...[...room.outgoing.values()].filter((message) => !message.twin)];
  const list = [];
  const used = new Set();
  shown.forEach((message, n) => {
    const [previous, following] = [shown[n - 1], shown[n + 1]];
    if (!previous || dayOf(previous.date) !== dayOf(message.date)) list.push(element("li", "day", dayOf(message.date)));
    const together = (a, b) => a && b && a.from === b.from && Math.abs(b.date - a.date) < GROUP_GAP && dayOf(a.date) === dayOf(b.date);
    const classes = ["message"];
    if (message.from === me.username) classes.push("own");
    if (!together(previous, message)) classes.push("first");
    if (!together(message, following)) classes.push("last");
    if (message.status) classes.push(message.status);
    if (message.redacted) classes.push("redacted");
    const key = `${message.id} ${message.status} ${message.redacted}`;
    const node = nodes.get(key) ?? messageNode(message);
    node.className = classes.join(" ");
    nodes.set(key, node);
    used.add(key);
    list.push(node);
  });
  for (const key of nodes.keys()) if (!used.has(key)) nodes.delete(key);
  $("messages").replaceChildren(...list);
  $("older").hidden = !room.hasMore;
  $("empty").hidden = shown.length > 0 || !room.loaded;
  $("empty-title").textContent = `Welcome to ${room.display}`;
  if (keepPlace) scroller.scrollTop += scroller.scrollHeight - heightBefore;
  else if (jump || atEnd) scroller.scrollTop = scroller.scrollHeight;
  else if (fresh) $("newer").hidden = false;
  if (jump || atEnd) $("newer").hidden = atEnd = true;
}

function messageNode(message) {
  const own = message.from === me.username;
  const meta = element("span", "meta", timeOf(message.date));
  if (own) {
    const mark = icon(message.status === "pending" ? "clock" : message.status === "failed" ? "alert" : "check");
    const says = message.status === "pending" ? "sending" : message.status === "failed" ? "not sent" : "stored";
    meta.append(mark, element("span", "visually-hidden", says));
  }
  const bubble = element("div", "bubble", their("span", "text", ...linked(message.text)), meta);
  const node = element("li", "", ...(own ? [] : [avatar(message.from)]), their("span", "who", message.from), bubble);
  if (message.status === "failed") {
    const retry = element("button", "link", "Try again");
    retry.type = "button";
    retry.addEventListener("click", () => message.retry());
    node.append(element("p", "failure", `Not sent: ${message.error}`, retry));
  }
  return node;
}

$("scroller").addEventListener("scroll", () => {
  const { scrollHeight, scrollTop, clientHeight } = $("scroller");
  atEnd = scrollHeight - scrollTop - clientHeight < 80;
  if (atEnd) $("newer").hidden = true;
});
// Who reads the newest message goes on reading it when the window or the keyboard changes the height.
new ResizeObserver(() => atEnd && ($("scroller").scrollTop = $("scroller").scrollHeight)).observe($("scroller"));
$("newer").addEventListener("click", () => $("scroller").scrollTo({ top: $("scroller").scrollHeight, behavior: "smooth" }));
document.addEventListener("visibilitychange", () => {
  if (document.hidden || !current) return;
  current.unread = 0;
  renderRooms();
  loadPresence();
});

// ---- writing ----

let typedAt = 0;

function fitText() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight}px`;
}

const saidWrong = (text) => ($("text-error").textContent = text);

/** Puts what could not be sent back where it was written, before what has been written since. */
function giveBack(text) {
  $("text").value = [text, $("text").value].filter(Boolean).join("\n");
  fitText();
  saidWrong("This message is too long to be sent. Shorten it, or send it in parts.");
  $("text").focus();
  $("text").setSelectionRange($("text").value.length, $("text").value.length);
}

$("text").addEventListener("input", () => {
  fitText();
  saidWrong("");
  if (unknown.has("typing") || !current || !$("text").value.trim() || Date.now() - typedAt < 3_000) return;
  typedAt = Date.now();
  gateway.post({ cate: "typing", group_name: current.name });
});
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || !current) return;
  $("text").value = "";
  saidWrong("");
  typedAt = 0;
  fitText();
  $("text").focus();
  say(current, text);
});

function onTyping({ group_name, from_user }) {
  const room = rooms.get(group_name);
  if (!room || from_user === me.username) return;
  clearTimeout(room.typing.get(from_user));
  room.typing.set(from_user, setTimeout(() => (room.typing.delete(from_user), renderTyping()), 4_500));
  renderTyping();
  if (room === current && !room.online.includes(from_user)) loadPresence();
}

function renderTyping() {
  const users = [...(current?.typing.keys() ?? [])].slice(0, 3);
  const names = users.flatMap((user, n) => (n ? [" and ", their("bdi", "", user)] : [their("bdi", "", user)]));
  $("typing").replaceChildren(...names, ...(users.length === 0 ? [] : [users.length === 1 ? " is typing…" : " are typing…"]));
}

// ---- notifications ----

async function loadNotices() {
  const frame = await ask({ cate: "notifications", limit: 30 });
  if (!frame) return; // what comes from now on is shown all the same
  notices = frame.notifications.map((each) => ({ ...each, fresh: !each.seen, date: new Date(each.date) })).sort((a, b) => b.seq - a.seq);
  setUnseen(frame.unseen);
}

function onNotification(frame) {
  const notice = { ...frame, date: new Date(frame.date ?? Date.now()), fresh: true };
  if (frame.id !== undefined && notices.some((each) => each.id === frame.id)) return;
  notices.unshift(notice);
  notices.length = Math.min(notices.length, 100);
  unseen += 1;
  if (panelIsOpen() && !document.hidden) markSeen();
  else toast({ from: notice.from_user, text: notice.message, onClick: () => togglePanel(true) });
  renderNotices();
}

function setUnseen(count) {
  unseen = count;
  renderNotices();
}

function markSeen() {
  const upTo = Math.max(...notices.map((notice) => notice.seq ?? 0), 0);
  if (upTo > 0) ask({ cate: "seen", up_to: upTo });
  unseen = 0;
}

function renderNotices() {
  const items = notices.map((notice) => {
    const top = element("div", "notice-top", their("strong", "", notice.from_user ?? "The site"), timeOf(notice.date));
    return element("li", notice.fresh ? "notice new" : "notice", avatar(notice.from_user ?? "!"), element("div", "notice-text", top, their("p", "", ...linked(notice.message))));
  });
  $("notices").replaceChildren(...items);
  $("notices-empty").hidden = notices.length > 0;
  badge($("bell-badge"), unseen);
  $("panel-open").setAttribute("aria-label", unseen ? `Notifications, ${unseen} new` : "Notifications");
  renderRooms();
}

$("notify-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [user, text] = [$("notify-user").value.trim(), $("notify-text").value.trim()];
  if (!user || !text) return;
  const show = (message, bad) => {
    $("notify-result").textContent = message;
    $("notify-result").classList.toggle("bad", bad);
  };
  show("Sending…", false);
  try {
    await gateway.notify(user, text);
    $("notify-text").value = "";
    show(`Sent to ${user}`, false);
  } catch (error) {
    show(error.code === "user_not_found" ? `Nobody is called ${user}` : error.message, true);
  }
});

// ---- drawer and panel ----

const panelIsOpen = () => $("app").classList.contains("with-panel");
const narrow = matchMedia("(max-width: 640px)");
const overlaid = matchMedia("(max-width: 1100px)");

function updateScrim() {
  const drawer = $("app").classList.contains("with-drawer");
  $("scrim").hidden = !((narrow.matches && drawer) || (overlaid.matches && panelIsOpen()));
}

function togglePanel(open) {
  const had = $("panel").contains(document.activeElement);
  $("app").classList.toggle("with-panel", open);
  $("panel").inert = !open;
  $("panel-open").setAttribute("aria-expanded", String(open));
  updateScrim();
  if (open) {
    if (unseen) markSeen();
    $("toasts").replaceChildren();
    renderNotices();
    $("panel-close").focus();
  } else {
    for (const notice of notices) notice.fresh = false; // they have been looked at
    if (had) $("panel-open").focus();
  }
}

function toggleDrawer(open) {
  const had = $("drawer").contains(document.activeElement);
  $("app").classList.toggle("with-drawer", open);
  $("drawer-open").setAttribute("aria-expanded", String(open));
  updateScrim();
  if (!narrow.matches) return;
  if (open) ($("rooms").querySelector("[aria-current]") ?? $("drawer-close")).focus();
  else if (had) $("drawer-open").focus();
}

function togglePeople(open) {
  const had = $("people-list").contains(document.activeElement);
  $("people-list").hidden = !open;
  $("people-open").setAttribute("aria-expanded", String(open));
  if (open) {
    loadPresence();
    $("people-list").focus();
  } else if (had) $("people-open").focus();
}

$("people-open").addEventListener("click", () => togglePeople($("people-list").hidden));
$("people-close").addEventListener("click", () => togglePeople(false));
$("panel-open").addEventListener("click", () => togglePanel(!panelIsOpen()));
$("panel-close").addEventListener("click", () => togglePanel(false));
$("drawer-open").addEventListener("click", () => toggleDrawer(true));
$("drawer-close").addEventListener("click", () => toggleDrawer(false));
$("scrim").addEventListener("click", () => (toggleDrawer(false), togglePanel(false)));
narrow.addEventListener("change", updateScrim);
overlaid.addEventListener("change", updateScrim);
addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if ($("toasts").contains(document.activeElement)) return document.activeElement.closest(".toast").remove();
  if (!$("people-list").hidden) return togglePeople(false);
  toggleDrawer(false);
  if (panelIsOpen()) togglePanel(false);
});

// ---- start ----

try {
  me = JSON.parse(sessionStorage.getItem(SESSION));
} catch {
  me = null;
}
if (me?.username && me?.token) enter();
else showSignIn();
