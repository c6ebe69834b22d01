// The chat page: one WebSocket for all rooms. What was not confirmed when a connection ended is sent
// again after the next one has told what is stored.

const $ = (id) => document.getElementById(id);
const me = JSON.parse($("me").textContent);
const rooms = new Map(
  JSON.parse($("rooms").textContent).map((room) => [room.name, { ...room, messages: [], since: [], stale: true, more: false, unread: 0 }]),
);
const waiting = new Map(); // client_id -> frame, in the order of sending
let inbox = [];
let current = null;
let socket = null;
let attempt = 0;

// ---- the connection ----

function connect() {
  socket = new WebSocket(`${location.protocol.replace("http", "ws")}//${location.host}/ws/chat/`);
  socket.onopen = () => {
    attempt = 0;
    status("");
    for (const [name, room] of rooms) {
      Object.assign(room, { stale: true, since: [] });
      reload(name);
    }
    send({ cate: "notifications" });
    for (const frame of waiting.values()) if (frame.cate === "notification") send(frame);
  };
  socket.onmessage = ({ data }) => {
    const frame = JSON.parse(data);
    receive[frame.type]?.(frame);
  };
  socket.onclose = () => {
    for (const room of rooms.values()) room.stale = true;
    status("reconnecting …");
    attempt += 1;
    setTimeout(connect, Math.random() * Math.min(10_000, 250 * 2 ** attempt));
  };
}

const send = (frame) => isOpen() && socket.send(JSON.stringify(frame));
const isOpen = () => socket.readyState === WebSocket.OPEN;

const reload = (name) => send({ cate: "history", group_name: name, client_id: `newest ${name}` });

/** Sent now if that is possible, kept until it is confirmed. */
function say(frame) {
  const client_id = newId();
  waiting.set(client_id, { ...frame, client_id, data: { key: client_id } });
  if (!rooms.get(frame.group_name)?.stale) send(waiting.get(client_id));
}

// ---- frames ----

const receive = {
  chat(frame) {
    waiting.delete(frame.data?.key);
    const room = rooms.get(frame.group_name);
    if (!room) return;
    add(room.messages, frame);
    if (room.stale) add(room.since, frame);
    if (room !== current || document.hidden) room.unread += frame.from_user !== me;
    draw();
  },
  history(frame) {
    const room = rooms.get(frame.group_name);
    if (!room) return;
    for (const message of frame.messages) waiting.delete(message.data?.key);
    room.more = frame.has_more;
    if (frame.client_id === "older") {
      room.messages = [...frame.messages, ...room.messages];
      return draw();
    }
    room.messages = frame.messages;
    for (const message of room.since) add(room.messages, message);
    room.stale = false;
    // What is stored has been taken out above; the rest never arrived.
    for (const each of waiting.values()) if (each.group_name === room.name && !each.refused) send(each);
    draw();
  },
  notification(frame) {
    add(inbox, frame);
    drawInbox();
  },
  notifications(frame) {
    inbox = [];
    for (const each of frame.notifications) add(inbox, each);
    drawInbox();
  },
  ack({ client_id }) {
    waiting.delete(client_id);
    draw();
  },
  error({ code, client_id }) {
    const [, stale] = /^newest (.*)$/.exec(client_id) ?? [];
    // Such as a room that has been joined just now.
    if (stale) setTimeout(reload, 1_000, stale);
    const frame = waiting.get(client_id);
    if (!frame) return;
    if (code === "unavailable" || code === "rate_limited") {
      setTimeout(() => waiting.has(client_id) && send(frame), 1_000);
    } else if (frame.cate === "chat") {
      frame.refused = true;
    } else {
      waiting.delete(client_id);
    }
    draw();
  },
};

/** Once, whether it is told by its id or by the key that the sender's page gave it, and in the order of storing. */
function add(list, frame) {
  if (list.some((each) => each.id === frame.id || (frame.data?.key && each.data?.key === frame.data.key))) return;
  const behind = frame.seq ? list.findLastIndex((each) => each.seq < frame.seq) : list.length - 1;
  list.splice(behind + 1, 0, frame);
}

// ---- what is seen ----

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const time = (date) => element("time", { dateTime: date }, new Date(date).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }));

function draw() {
  const links = [...rooms.values()].map((room) => {
    const link = element("a", { href: `#${room.name}` }, `# ${room.title}`, element("span", { className: "count" }, room.unread || ""));
    if (room === current) link.setAttribute("aria-current", "page");
    return link;
  });
  $("room-list").replaceChildren(...links);
  $("title").textContent = current ? `# ${current.title}` : "Enter a room";
  $("say").hidden = !current;
  if (!current) return;
  const list = $("messages");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 80;
  const shown = current.messages.map((frame) => bubble(frame, frame.from_user === me ? "mine" : ""));
  for (const frame of waiting.values()) {
    if (frame.group_name === current.name) shown.push(bubble(frame, `mine ${frame.refused ? "refused" : "waits"}`));
  }
  if (current.more) {
    const before = current.messages[0].seq;
    const onclick = () => send({ cate: "history", group_name: current.name, before, client_id: "older" });
    shown.unshift(element("li", { className: "more" }, element("button", { className: "plain", onclick }, "Earlier messages")));
  }
  list.replaceChildren(...shown);
  if (atEnd) list.scrollTop = list.scrollHeight;
}

function bubble({ from_user = me, message, date }, className) {
  return element("li", { className }, element("b", {}, from_user), date ? time(date) : "", element("p", {}, message));
}

function drawInbox() {
  const unseen = inbox.filter((each) => !each.seen);
  if ($("bell").open && unseen.length > 0) {
    const stored = unseen.filter((each) => each.seq);
    for (const each of unseen) each.seen = true;
    if (stored.length > 0) send({ cate: "seen", up_to: Math.max(...stored.map((each) => each.seq)) });
  }
  $("unseen").textContent = $("bell").open ? "" : unseen.length || "";
  const lines = inbox.map((each) => element("li", { className: each.seen ? "" : "unseen" }, `${each.message} `, time(each.date)));
  $("inbox").replaceChildren(...lines.reverse());
}

function status(text) {
  $("status").textContent = text;
}

function enter() {
  current = rooms.get(decodeURIComponent(location.hash.slice(1))) ?? rooms.values().next().value ?? null;
  if (current) current.unread = 0;
  draw();
  $("messages").scrollTop = $("messages").scrollHeight;
}

// ---- what the user does ----

$("say").onsubmit = (event) => {
  event.preventDefault();
  const message = $("text").value.trim();
  if (!message) return;
  $("text").value = "";
  say({ cate: "chat", group_name: current.name, message });
  for (const [, name] of message.matchAll(/(?:^|\s)@([\w.+-]+)/g)) {
    if (name !== me) say({ cate: "notification", user_name: name, message: `${me} in ${current.title}: ${message}` });
  }
  draw();
  $("messages").scrollTop = $("messages").scrollHeight;
};
$("bell").ontoggle = drawInbox;
window.onhashchange = enter;
document.onvisibilitychange = () => !document.hidden && enter();

/** `crypto.randomUUID` is there on pages of https and localhost only. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

connect();
enter();
