// Finding a room: members, who is online, the newest messages; and what can be done about them.
import { call, segment } from "./api.js";
import { attempt, chip, confirmed, count, h, section, table, their, time } from "./dom.js";
import { adding, finder, removal, shown } from "./users.js";

const ROOMS = 50;
const PAGE = 30;
const MEMBERS = 100;

export function show(root, name) {
  const { form } = finder("Name of a room", "lobby", "rooms", name);
  root.append(h("h1", {}, "Rooms"), form);
  const page = h("div");
  root.append(page);
  if (name === undefined) all(page);
  else shown(page, () => one(page, name));
  return undefined;
}

async function all(page) {
  const list = h("div");
  const more = h("button.quiet", { type: "button", hidden: true }, "More rooms");
  const rooms = [];
  const load = async () => {
    const last = rooms.at(-1);
    const answer = await call("GET", `rooms?limit=${ROOMS}${last ? `&after=${encodeURIComponent(last.name)}` : ""}`);
    rooms.push(...answer.rooms);
    more.hidden = answer.rooms.length < ROOMS;
    list.replaceChildren(table("Rooms", [["Room"], ["Name"], ["Messages", "number"]],
      rooms.map((room) => [h("a", { href: `#/rooms/${encodeURIComponent(room.name)}` }, their(room.display_name)), their(room.name), count(room.seq)]),
      "There is no room yet."));
  };
  more.addEventListener("click", () => attempt(more, load));
  page.append(section("All rooms, by name", list, more));
  await attempt(more, load);
}

async function one(page, name) {
  const path = `rooms/${segment(name)}`;
  const reload = () => shown(page, () => one(page, name));
  const [found, history] = await Promise.allSettled([call("GET", path), call("GET", `${path}/history?limit=${PAGE}`)]);
  if (found.reason?.status === 404) return page.replaceChildren(none(path, name, reload));
  if (found.reason) return page.replaceChildren(h("p.wrong", { role: "alert" }, found.reason.message));
  const room = found.value;
  const online = new Set(room.online);
  const guests = room.online.filter((user) => !room.members.includes(user));
  const people = [...room.members].sort((a, b) => online.has(b) - online.has(a) || (a < b ? -1 : 1)).map((user) => ({ user, member: true })).concat(guests.map((user) => ({ user, member: false })));
  const title = h("div.title", {}, h("h2.name", { tabIndex: -1 }, their(room.display_name)), room.display_name !== room.name && h("span.muted", {}, their(room.name)),
    h("span.muted", {}, `${count(room.seq)} messages, ${count(room.members.length)} members, ${count(room.online.length)} online`),
    h("button.quiet", { type: "button", onclick: reload }, "Look again"));

  const members = h("div");
  const showMembers = (most) => {
    const rows = people.slice(0, most).map(({ user, member }) => [
      h("a", { href: `#/users/${encodeURIComponent(user)}` }, their(user)), online.has(user) ? chip("good", "online") : chip("plain", "offline"),
      member ? "member" : "by a token", member ? removal(room.name, user, reload) : h("span.muted", {}, "–"),
    ]);
    members.replaceChildren(table("Members", [["User"], ["State"], ["Right"], ["", "acts"]], rows, "Nobody is a member."),
      ...(people.length > most ? [h("button.quiet", { type: "button", onclick: () => showMembers(most + 1000) }, `${count(people.length - most)} more`)] : []));
  };
  showMembers(MEMBERS);
  page.replaceChildren(title,
    h("div.columns.wide-first", {},
      section("Newest messages", history.value ? messages(path, history.value, reload) : h("p.wrong", { role: "alert" }, history.reason.message)),
      section("Members", members, adding((user) => [room.name, user], "User", "Put into the room", reload))));
}

function none(path, name, reload) {
  const button = h("button", { type: "button", onclick: async () => {
    if (await attempt(button, () => call("PUT", path), `The room “${name}” is made.`)) reload();
  } }, "Make this room");
  return h("div.panel", {}, h("p.none", {}, "There is no room ", their(name), "."), button);
}

function messages(path, first, reload) {
  const list = h("ol.notes");
  const older = h("button.quiet", { type: "button" }, "Earlier ones");
  let oldest = null;
  const add = (frame) => {
    for (const each of [...frame.messages].reverse()) {
      const head = h("p.note-head", {}, h("span.place", {}, `#${each.seq}`), h("a", { href: `#/users/${encodeURIComponent(each.from_user)}` }, their(each.from_user, "strong")), time(each.date));
      if (!each.redacted) head.append(redaction(path, each, reload));
      list.append(h("li", {}, head, each.redacted ? h("p.muted", {}, "This message was redacted.") : their(each.message, "p"), each.data && data(each.data)));
      oldest = each.seq;
    }
    older.hidden = !frame.has_more;
  };
  older.addEventListener("click", () => attempt(older, async () => add(await call("GET", `${path}/history?limit=${PAGE}&before=${oldest}`))));
  add(first);
  return first.messages.length ? h("div", {}, list, older) : h("p.none", {}, "Nothing has been said here.");
}

export const data = (value) => h("details", {}, h("summary", {}, "data"), h("pre", { dir: "auto" }, typeof value === "string" ? value : JSON.stringify(value, null, 2)));

function redaction(path, message, reload) {
  const button = h("button.small", { type: "button", "aria-label": `Redact message ${message.seq} of ${message.from_user}`, onclick: async () => {
    if (!(await confirmed(`Redact message ${message.seq}?`, "Its text and data are deleted for good. Its place stays, and clients that are connected are told.", "Redact"))) return;
    if (await attempt(button, () => call("DELETE", `${path}/messages/${segment(message.id)}`), `Message ${message.seq} is redacted.`)) reload();
  } }, "Redact");
  return button;
}
