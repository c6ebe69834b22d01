// Finding a user: sockets, rooms, inbox; and what can be done about them.
import { call, segment } from "./api.js";
import { attempt, chip, confirmed, count, field, h, section, select, table, their, time } from "./dom.js";

const PAGE = 20;

/** The form that finds something by its name. */
export function finder(label, placeholder, base, value = "") {
  const input = h("input", { type: "search", value, placeholder, required: true, maxLength: 150, autocomplete: "off", autocapitalize: "none", spellcheck: "false", dir: "auto" });
  const form = h("form.find", { role: "search", onsubmit: (event) => {
    event.preventDefault();
    if (input.value) location.hash = `#/${base}/${encodeURIComponent(input.value)}`;
  } }, field(label, input), h("button.primary", { type: "submit" }, "Show"));
  return { form, input };
}

export function show(root, name) {
  const { form, input } = finder("Name of a user", "alice", "users", name);
  root.append(h("h1", {}, "Users"), form);
  if (name === undefined) {
    root.append(h("p.none", {}, "A user is found by the exact name that the site signs in with."));
    input.focus();
    return undefined;
  }
  const page = h("div");
  root.append(page);
  shown(page, () => one(page, name));
  return undefined;
}

/** Fills a part of the page, or says there why that is not possible. */
export const shown = (page, fill) => fill().catch((error) => page.replaceChildren(h("p.wrong", { role: "alert" }, error.message)));

async function one(page, name) {
  const path = `users/${segment(name)}`;
  const reload = () => shown(page, () => one(page, name));
  const [found, member, inbox] = await Promise.allSettled([call("GET", path), call("GET", `${path}/rooms`), call("GET", `${path}/notifications?limit=${PAGE}`)]);
  if (found.reason) return page.replaceChildren(h("p.wrong", { role: "alert" }, found.reason.message));
  const { sockets } = found.value;
  const failed = (part) => h("p.wrong", { role: "alert" }, part.reason.message);

  const title = h("div.title", {}, h("h2.name", { tabIndex: -1 }, their(name)), sockets.length ? chip("good", "online") : chip("plain", "offline"),
    inbox.value && h("span.muted", {}, `${count(inbox.value.unseen)} unseen`), h("button.quiet", { type: "button", onclick: reload }, "Look again"));
  const places = table("Sockets", [["Node"], ["Path"], ["Open since"], ["Channel name", "code"]],
    sockets.map((socket) => [their(socket.node), their(socket.path), time(socket.since), their(socket.channel_name)]), "No socket is open.");

  const rooms = member.value && table("Rooms", [["Room"], ["Name"], ["Messages", "number"], ["", "acts"]],
    member.value.rooms.map((room) => [
      h("a", { href: `#/rooms/${encodeURIComponent(room.name)}` }, their(room.display_name)), their(room.name), count(room.seq), removal(room.name, name, reload),
    ]), "A member of no room. Rooms that a token names are not listed here.");

  page.replaceChildren(title,
    h("div.columns", {},
      section("Disconnect", disconnecting(path, name, sockets, reload)),
      section("Notify", notifying(name, reload))),
    section(`Sockets (${count(sockets.length)})`, places),
    section("Rooms", rooms ?? failed(member), adding((room) => [room, name], "Room", "Put into the room", reload)),
    section("Inbox", inbox.value ? notices(path, inbox.value) : failed(inbox)));
}

function disconnecting(path, name, sockets, reload) {
  const code = select([["4403", "4403: the client stays away"], ["4401", "4401: the client signs in again"], ["1012", "1012: the client comes back at once"]]);
  const reason = h("input", { maxLength: 120, autocomplete: "off", dir: "auto" });
  const button = h("button.danger", { type: "submit" }, "Disconnect");
  return h("form", { onsubmit: async (event) => {
    event.preventDefault();
    const text = `All sockets of “${name}” are closed, on every node (${sockets.length} at the last look).`;
    if (!(await confirmed(`Disconnect “${name}”?`, text, "Disconnect"))) return;
    const body = { code: Number(code.value), ...(reason.value && { reason: reason.value }) };
    if (await attempt(button, () => call("POST", `${path}/disconnect`, body), `“${name}” is disconnected.`)) reload();
  } }, field("Close code", code), field("Reason, which the client sees (optional)", reason), button);
}

function notifying(name, reload) {
  const [message, from] = [h("textarea", { required: true, rows: 2, dir: "auto" }), h("input", { required: true, value: "gateway", maxLength: 150, autocomplete: "off", dir: "auto" })];
  const button = h("button.primary", { type: "submit" }, "Notify");
  return h("form", { onsubmit: async (event) => {
    event.preventDefault();
    const envelope = { type: "notification", source: "admin", to: `user:${name}`, data: { message: message.value, from_user: from.value } };
    if (await attempt(button, () => call("POST", "events", envelope), `“${name}” is notified.`)) reload();
  } }, field("Message", message), field("From", from), button);
}

/** A button that takes a user out of a room. */
export function removal(room, user, reload) {
  const button = h("button.small", { type: "button", "aria-label": `Remove ${user} from ${room}`, onclick: async () => {
    if (!(await confirmed(`Remove “${user}” from “${room}”?`, "The user hears and reads nothing of the room any more.", "Remove"))) return;
    if (await attempt(button, () => call("DELETE", `rooms/${segment(room)}/members/${segment(user)}`), `“${user}” is out of “${room}”.`)) reload();
  } }, "Remove");
  return button;
}

/** A form that puts a user into a room; `pair` makes room and user of what is typed. */
export function adding(pair, label, text, reload) {
  const input = h("input", { required: true, maxLength: 150, autocomplete: "off", autocapitalize: "none", spellcheck: "false", dir: "auto" });
  const button = h("button", { type: "submit" }, text);
  return h("form.inline", { onsubmit: async (event) => {
    event.preventDefault();
    const [room, user] = pair(input.value);
    if (await attempt(button, () => call("PUT", `rooms/${segment(room)}/members/${segment(user)}`), `“${user}” is in “${room}”.`)) reload();
  } }, field(label, input), button);
}

function notices(path, first) {
  const list = h("ol.notes");
  const older = h("button.quiet", { type: "button" }, "Earlier ones");
  let oldest = null;
  const add = (frame) => {
    for (const each of [...frame.notifications].reverse()) {
      const head = h("p.note-head", {}, h("span.place", {}, `#${each.seq}`), their(each.from_user ?? "–", "strong"), time(each.date), each.seen ? chip("plain", "seen") : chip("warn", "unseen"));
      list.append(h("li", {}, head, their(each.message, "p")));
      oldest = each.seq;
    }
    older.hidden = !frame.has_more;
  };
  older.addEventListener("click", () => attempt(older, async () => add(await call("GET", `${path}/notifications?limit=${PAGE}&before=${oldest}`))));
  add(first);
  return first.notifications.length ? h("div", {}, list, older) : h("p.none", {}, "Nothing in the inbox.");
}
