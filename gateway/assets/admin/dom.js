// Small things that all views use. Text only ever becomes text: nothing here makes markup of it.

export const $ = (id) => document.getElementById(id);

// Their properties are of another kind than their texts.
const ATTRIBUTES = ["form", "list", "spellcheck"];

/** An element: `h("button.primary", { type: "button", onclick }, "Text", …)`. What is null or false is left out. */
export function h(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const node = document.createElement(name);
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && !ATTRIBUTES.includes(key)) node[key] = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** What somebody else has named or written: in its own direction. */
export const their = (text, tag = "bdi") => h(tag, { dir: "auto" }, text);

const numbers = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const decimals = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });
export const count = (value) => numbers.format(value);
export const rate = (value) => (value === null ? "–" : (value < 10 ? decimals : numbers).format(value));

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit += 1) value /= 1024;
  return `${(value < 10 && unit ? decimals : numbers).format(value)} ${units[unit]}`;
}

export function duration(seconds) {
  const parts = [[86_400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([size]) => seconds >= size);
  if (first < 0) return "0 s";
  const [size, unit] = parts[first];
  const rest = parts[first + 1] && Math.floor((seconds % size) / parts[first + 1][0]);
  return `${Math.floor(seconds / size)} ${unit}${rest && first < 2 ? ` ${rest} ${parts[first + 1][1]}` : ""}`;
}

const whole = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const short = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" });

export function time(text) {
  const date = new Date(text);
  if (Number.isNaN(date.getTime())) return h("span", {}, text ?? "–");
  return h("time", { dateTime: text, title: whole.format(date) }, short.format(date));
}

/** A table; each column is [title, class]. On narrow screens each row is a card, for which cells know their titles. */
export function table(label, columns, rows, none) {
  if (!rows.length) return h("p.none", {}, none);
  const head = h("tr", {}, columns.map(([title, kind]) => h(`th${kind ? `.${kind}` : ""}`, { scope: "col" }, title || h("span.visually-hidden", {}, "Actions"))));
  const body = rows.map((cells) =>
    h("tr", {}, cells.map((cell, n) => h(`td${columns[n][1] ? `.${columns[n][1]}` : ""}`, { "data-title": columns[n][0] }, cell ?? "–"))));
  return h("div.table", { tabIndex: 0, role: "region", "aria-label": label }, h("table", {}, h("caption.visually-hidden", {}, label), h("thead", {}, head), h("tbody", {}, body)));
}

export const chip = (kind, text) => h(`span.chip.${kind}`, {}, text);

export function section(title, ...children) {
  return h("section.panel", {}, h("h2", {}, title), ...children);
}

let fields = 0;
/** A field with its label. */
export function field(label, input, hint) {
  input.id ||= `field-${++fields}`;
  const says = hint && h("p.hint", { id: `${input.id}-hint` }, hint);
  if (says) input.setAttribute("aria-describedby", says.id);
  return h("div.field", {}, h("label", { htmlFor: input.id }, label), input, says);
}

export function select(options, value) {
  const node = h("select", {}, options.map(([key, text]) => h("option", { value: key }, text)));
  if (value !== undefined) node.value = value;
  return node;
}

/** Says something for a while; what went wrong stays until it is put away. */
export function toast(text, bad = false) {
  const node = h(bad ? "div.toast.bad" : "div.toast", {}, h("p", {}, text));
  const close = h("button.close", { type: "button", "aria-label": "Put away", onclick: () => node.remove() }, "×");
  node.append(close);
  $("toasts").append(node);
  while ($("toasts").childElementCount > 4) $("toasts").firstElementChild.remove();
  if (!bad) setTimeout(() => node.remove(), 6_000);
}

/** Does something once, with its button disabled meanwhile; says how it went. True if it worked. */
export async function attempt(button, run, done) {
  button.disabled = true;
  try {
    const result = await run();
    if (done) toast(typeof done === "function" ? done(result) : done);
    return true;
  } catch (error) {
    toast(error.id ? `${error.message} (call ${error.id})` : error.message, true);
    return false;
  } finally {
    button.disabled = false;
    if (button.isConnected && document.activeElement === document.body) button.focus();
  }
}

/** Asks before something that cannot be taken back. */
export function confirmed(title, text, yes) {
  const dialog = $("confirm");
  $("confirm-title").textContent = title;
  $("confirm-text").textContent = text;
  $("confirm-yes").textContent = yes;
  return new Promise((resolve) => {
    const end = (answer) => () => {
      dialog.close();
      resolve(answer);
    };
    $("confirm-yes").onclick = end(true);
    $("confirm-no").onclick = end(false);
    dialog.oncancel = () => resolve(false);
    dialog.showModal();
    $("confirm-no").focus();
  });
}

/** Runs now and every so often while the page is shown, one after the other, until it is stopped. */
export function every(ms, run) {
  let timer;
  let stopped = false;
  const turn = async () => {
    clearTimeout(timer);
    if (!document.hidden) await run().catch(() => {});
    if (!stopped) timer = setTimeout(turn, ms);
  };
  const shown = () => document.hidden || turn();
  document.addEventListener("visibilitychange", shown);
  turn();
  return () => {
    stopped = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", shown);
  };
}
