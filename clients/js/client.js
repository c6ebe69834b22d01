/**
 * Browser client of Channel Gateway: one ES module, no dependencies.
 *
 *     import { connect } from "/client.js";
 *     const gateway = connect("/ws/chat/lobby/", { token });
 *     gateway.on("chat", (frame) => console.log(frame.from_user, frame.message));
 *     const ack = await gateway.chat("lobby", "hello");
 *
 * It comes back by itself after a lost connection, also one that died without a word, sends every
 * unacknowledged message again under the `client_id` it was given first (so nothing is stored twice),
 * and drops frames it has seen.
 */

const DEFAULTS = {
  token: null, // JWT, offered as the subprotocol `bearer.<jwt>`; null: the cookies sign in
  getToken: null, // async () => JWT: asked for the first token, after 4401, and before one expires
  tokenTimeout: 10_000, // ms until `getToken` is given up; it is asked again later
  protocols: [], // further subprotocols to offer
  resume: true, // ask for what was missed after a reconnect
  positions: null, // where to resume from after a page load: an earlier value of `gateway.positions`
  ackTimeout: 60_000, // ms until an unacknowledged message is given up; 0 waits for ever
  requestTimeout: 10_000, // ms until an unanswered request is given up; 0 waits for ever
  connectTimeout: 15_000, // ms until a handshake is given up
  baseDelay: 500, // ms: reconnects wait a random part of baseDelay * 2^attempt …
  maxDelay: 30_000, // … and never longer than this
  pingAfter: 25_000, // ms of silence, at most, until the gateway is asked for a sign of life; 0: never
  pingTimeout: 10_000, // ms of silence after that until the connection is given up
  lateAfter: 5_000, // ms without an answer to a message or request until the gateway is asked, too
  hiddenAfter: 60_000, // ms a page may be hidden; after that no attempts are made until it is shown again
  stableAfter: 5_000, // ms a connection must last before the backoff starts afresh
  renewBefore: 60_000, // ms before a token expires at which `getToken` is asked for the next
  window: 16, // frames under way without an answer
  maxPending: 1_000, // frames waiting; more are refused with `queue_full`
  maxFrameBytes: 65_536, // the gateway closes a socket that sends a larger frame
  WebSocket: null, // another WebSocket class, for tests and for Node
};

/** Close codes after which the same attempt would meet the same end. */
const FINAL = new Set([1008, 1009]);
/** Errors that pass: the same message is sent again later. */
const PASSING = new Set(["rate_limited", "unavailable"]);
/** Requests, with the type of the frame that answers them. Messages are answered by an `ack`. */
const ANSWERS = new Map(["history", "notifications", "seen", "rooms", "presence", "auth"].map((cate) => [cate, cate]));
ANSWERS.set("ping", "pong");
/** Handshakes in a row that never opened, after which the reason is more likely a refusal than the network. */
const REFUSED_AFTER = 3;
/** ms after which an attempt that is under way when the page or the network is back is made anew. */
const STUCK_AFTER = 3_000;
/** ms between two pings because of late answers: many may be late at once, and one ping in 5 s is free. */
const ASK_EVERY = 5_000;
/** Events of this client; a frame of the site's own with such a type is only seen by "frame". */
const OWN_EVENTS = new Set(["state", "reload", "frame"]);
const INBOX = Symbol("notifications");

/** Why a message or request failed. `code` is the gateway's, or `timeout`, `closed`, `queue_full`. */
export class GatewayError extends Error {
  constructor(code, detail, extra) {
    super(detail || code);
    this.name = "GatewayError";
    this.code = code;
    Object.assign(this, extra);
  }
}

/** Opens a connection that stays: `url` may be relative, and `http` stands for `ws`. */
export function connect(url, options) {
  return new Gateway(url, options).open();
}

export class Gateway {
  #url;
  #options;
  #token;
  #state = "closed";
  #listeners = new Map(); // event -> Set of functions
  #pending = new Map(); // key -> entry, in the order of sending
  #streams = new Map(); // room name or INBOX -> {seq, id, live}
  #socket = null;
  #run = 0; // counts attempts, so that an old await or timer notices it is out of date
  #attempt = 0;
  #refusals = 0; // 4401 in a row
  #unopened = 0; // handshakes in a row that never opened
  #attemptedAt = 0;
  #openedAt = 0;
  #welcome = false; // this connection has brought a frame: who is refused gets none
  #heardAt = 0;
  #asked = null; // the `client_id` of the ping that waits for its pong
  #askedAt = 0;
  #canPing = true; // false for a gateway that does not know the frame
  #hiddenSince = 0;
  #resting = false; // until the page is shown
  #resuming = null; // the `client_id` of the resume that is under way
  #resumeAgain = false;
  #holding = 0; // the timer that ends a pause after `rate_limited` or `unavailable`
  #holds = 0;
  #timers = { retry: 0, connect: 0, renew: 0, silence: 0 };
  #pageEvents; // [target, event, listener]

  constructor(url, options = {}) {
    this.#options = { ...DEFAULTS, ...options };
    this.#url = webSocketUrl(url);
    this.#token = trimmed(this.#options.token);
    const { document } = globalThis;
    this.#pageEvents = [
      [globalThis, "online", this.#returned],
      [globalThis, "offline", this.#offline],
      [globalThis, "pagehide", this.#left],
      [globalThis, "pageshow", this.#returned],
      [document, "visibilitychange", this.#shownOrHidden],
      [document, "freeze", this.#left],
      [document, "resume", this.#returned],
    ];
    const { rooms = {}, notifications } = this.#options.positions ?? {};
    for (const [room, at] of Object.entries(rooms)) this.#streams.set(room, { ...at, live: false });
    if (notifications) this.#streams.set(INBOX, { ...notifications, live: false });
  }

  /** "connecting", "open", "waiting" (for the next attempt) or "closed" (does not come back). */
  get state() {
    return this.#state;
  }

  /** The last position seen of each stream, as the `resume` frame wants it. */
  get positions() {
    const all = [...this.#streams].map(([stream, { seq, id }]) => [stream, id ? { seq, id } : { seq }]);
    const rooms = Object.fromEntries(all.filter(([stream]) => stream !== INBOX));
    const notifications = all.find(([stream]) => stream === INBOX)?.[1];
    return notifications ? { rooms, notifications } : { rooms };
  }

  /**
   * Calls `listener` for an event and returns the function that ends it. Events: the type of any
   * frame ("chat", "notification", "rooms", "error", …), "frame" for all of them, "state" with
   * `{state, retryAt (ms since 1970; none while the page is not shown), code, reason}`, and "reload" with `{group_name}` or `{notifications: true}`
   * for a stream whose missed part cannot be resumed and is to be read again with `history`.
   */
  on(event, listener) {
    if (!this.#listeners.has(event)) this.#listeners.set(event, new Set());
    this.#listeners.get(event).add(listener);
    return () => this.#listeners.get(event)?.delete(listener);
  }

  /** Connects now, also while waiting for a later attempt or after the end; with a new token if given. */
  open(token) {
    const given = trimmed(token);
    if ((!given || given === this.#token) && (this.#state === "connecting" || this.#state === "open")) return this;
    if (given) {
      this.#token = given;
      this.#refusals = 0;
    }
    for (const [target, event, listener] of this.#pageEvents) target?.addEventListener?.(event, listener);
    this.#hiddenSince = isHidden() ? Date.now() : 0;
    this.#connect();
    return this;
  }

  /** Leaves for good; what was not acknowledged is rejected with `closed`. */
  close() {
    this.#drop()?.close(1000);
    this.#finish(1000, "closed by this client");
  }

  /** Sends a chat message; resolves with the ack once it is stored. `data` is an object of the site's own beside the text. */
  chat(room, message, { data, ...options } = {}) {
    return this.send({ cate: "chat", group_name: room, message, data }, options);
  }

  /** Sends a notification to a user; resolves with the ack once it is stored. */
  notify(user, message, { data, ...options } = {}) {
    return this.send({ cate: "notification", user_name: user, message, data }, options);
  }

  /**
   * Sends a chat or notification frame and resolves with its ack. It waits for the connection, and
   * is sent again after a reconnect until answered. After a `timeout` the message may still have
   * been stored: to try again, give the same `client_id`.
   */
  send(frame, options = {}) {
    const { cate = frame.type, client_id = newId() } = frame;
    if (cate !== "chat" && cate !== "notification") return this.request(frame, options);
    return this.#enqueue(client_id, { ...frame, cate, client_id }, "ack", options.timeout ?? this.#options.ackTimeout);
  }

  /** Asks for `history`, `notifications`, `rooms`, `presence` …, and resolves with the answer. */
  request(frame, { timeout = this.#options.requestTimeout } = {}) {
    const { cate = frame.type, client_id = newId() } = frame;
    if (!ANSWERS.has(cate)) throw new TypeError(`no answer is known for a "${cate}" frame; use post()`);
    return this.#enqueue(client_id, { ...frame, cate, client_id }, ANSWERS.get(cate), timeout);
  }

  /** Sends a frame that has no answer (`typing`) if the connection is open now; false if not. */
  post(frame) {
    if (this.#state !== "open") return false;
    this.#socket.send(JSON.stringify(frame));
    return true;
  }

  // ---- the connection ----

  async #connect() {
    this.#drop()?.close();
    const run = this.#run;
    this.#attemptedAt = Date.now();
    this.#setState("connecting");
    if (run !== this.#run) return; // a listener did something else
    const unusable = this.#token && !isToken(this.#token);
    if (unusable) this.#token = null;
    if (!this.#token && this.#options.getToken) {
      let token = null;
      try {
        token = await this.#newToken();
      } catch (error) {
        const reason = error?.code === "bad_token" ? "bad_token" : `no token: ${error?.message ?? error}`;
        if (run === this.#run) this.#wait(this.#backoff(), 0, reason);
        return;
      }
      if (run !== this.#run) return;
      this.#token = token;
    } else if (unusable) {
      return this.#finish(4401, "what was given as a token cannot be one");
    }
    const protocols = ["gateway.v1", ...this.#options.protocols];
    if (this.#token) protocols.push(`bearer.${this.#token}`);
    const Socket = this.#options.WebSocket ?? globalThis.WebSocket;
    try {
      this.#socket = new Socket(this.#url, protocols);
    } catch (error) {
      return this.#finish(0, String(error?.message ?? error)); // a bad address or subprotocol: no retry helps
    }
    const socket = this.#socket;
    const mine = (handle) => (event) => this.#socket === socket && handle(event);
    socket.addEventListener("open", mine(() => this.#opened()));
    socket.addEventListener("message", mine((event) => this.#received(event.data)));
    socket.addEventListener("close", mine((event) => this.#lost(event.code, event.reason)));
    socket.addEventListener("error", () => {}); // a close event always follows, with the code
    const late = () => this.#abandon("no answer to the handshake");
    this.#timers.connect = setTimeout(late, this.#options.connectTimeout);
  }

  #opened() {
    clearTimeout(this.#timers.connect);
    this.#openedAt = this.#heardAt = Date.now();
    this.#unopened = 0;
    this.#canPing = true;
    this.#watch();
    if (this.#options.resume) this.#resume();
    // Nothing proves that a stream is the one of before, so old numbers drop no frame of this connection.
    else for (const at of this.#streams.values()) at.live = false;
    this.#setState("open");
    if (this.#state !== "open") return; // a listener closed it
    // The gateway holds stored frames back until the first frame has come. This one also gives the
    // positions of rooms that nothing has been heard from yet.
    this.request({ cate: "rooms" }).catch(() => {});
    this.#renewLater();
  }

  #resume() {
    const { rooms, notifications } = this.positions;
    const client_id = newId();
    const frame = { cate: "resume", rooms, ...(notifications && { notifications }), client_id };
    // Rooms that do not fit into one frame have to be read again.
    for (const room of Object.keys(rooms).reverse()) {
      if (byteLength(JSON.stringify(frame)) <= this.#options.maxFrameBytes) break;
      delete rooms[room];
      this.#forget(room);
    }
    this.#resumeAgain = false;
    this.#resuming = notifications || Object.keys(rooms).length > 0 ? client_id : null;
    if (this.#resuming) this.#socket.send(JSON.stringify(frame));
  }

  /** What the rules of the close codes ask for. */
  #lost(code, reason) {
    // The site gives its visitors new cookies: after a new password, with a new key.
    const byCookie = this.#welcome && !this.#token;
    this.#drop();
    if (!this.#openedAt && globalThis.navigator?.onLine !== false) this.#unopened += 1;
    if (this.#openedAt && Date.now() - this.#openedAt >= this.#options.stableAfter) {
      this.#attempt = 0;
      this.#refusals = 0;
    }
    this.#openedAt = 0;
    if (code === 4401 && (this.#options.getToken || byCookie) && this.#refusals < 3) {
      this.#refusals += 1;
      this.#token = null;
      return this.#wait(this.#backoff(), code, reason);
    }
    if (FINAL.has(code) || code >= 4400) return this.#finish(code, reason);
    const range = [1001, 1012, 1013].includes(code) ? /\bretry=(\d{1,6})-(\d{1,6})\b/.exec(reason) : null;
    // A browser does not tell why a handshake failed.
    if (!range) return this.#wait(this.#backoff(), code, this.#unopened >= REFUSED_AFTER ? "handshake" : reason);
    const [least, most] = [Number(range[1]), Number(range[2])].sort((a, b) => a - b);
    this.#wait(least + Math.random() * (most - least), code, reason);
  }

  #abandon(reason) {
    this.#drop()?.close();
    this.#lost(1006, reason);
  }

  /** Lets go of the socket and of everything that belonged to it. */
  #drop() {
    const socket = this.#socket;
    this.#socket = null;
    this.#run += 1;
    this.#resuming = this.#asked = null;
    this.#resumeAgain = this.#resting = this.#welcome = false;
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    this.#release();
    for (const entry of this.#pending.values()) this.#takeBack(entry);
    return socket;
  }

  #wait(delay, code, reason) {
    this.#timers.retry = setTimeout(() => {
      if (this.#isLongHidden()) this.#rest(code);
      else this.#connect();
    }, delay);
    this.#setState("waiting", { retryAt: Date.now() + delay, code, reason });
  }

  /** Makes no attempts until the page is shown. */
  #rest(code) {
    this.#resting = true;
    this.#setState("waiting", { code, reason: "hidden" });
  }

  /** Exponential, with full jitter: a crowd that lost its node does not come back as one. */
  #backoff() {
    const { baseDelay, maxDelay } = this.#options;
    const most = Math.min(maxDelay, baseDelay * 2 ** Math.min(this.#attempt, 30));
    this.#attempt += 1;
    return Math.random() * most;
  }

  #finish(code, reason) {
    for (const [target, event, listener] of this.#pageEvents) target?.removeEventListener?.(event, listener);
    this.#drop();
    this.#attempt = this.#refusals = this.#unopened = this.#openedAt = 0;
    if (code === 4401) this.#token = null;
    const entries = [...this.#pending.values()];
    this.#setState("closed", { code, reason });
    const error = () => new GatewayError("closed", reason || "the connection is closed", { closeCode: code });
    for (const entry of entries) this.#settle(entry, error());
  }

  // ---- the page's life ----

  /** The page or the network is back: a connection may have died meanwhile, and an attempt may now succeed. */
  #returned = () => {
    if (this.#state === "open") return this.#ask();
    // An attempt may have been under way when the network went.
    const stuck = this.#state === "connecting" && Date.now() - this.#attemptedAt >= STUCK_AFTER;
    if ((this.#state === "waiting" || stuck) && !this.#isLongHidden()) this.#connect();
  };

  #isLongHidden() {
    return isHidden() && Date.now() - this.#hiddenSince >= this.#options.hiddenAfter;
  }

  #shownOrHidden = () => {
    this.#hiddenSince = isHidden() ? Date.now() : 0;
    if (!this.#hiddenSince) this.#returned();
  };

  /**
   * Nothing of the page runs from now on: it is unloaded, frozen, or put into the back/forward cache, which
   * takes no page with an open socket.
   */
  #left = () => {
    if (this.#state === "closed" || this.#resting) return;
    this.#drop()?.close();
    this.#openedAt = 0;
    this.#rest(0);
  };

  #offline = () => {
    if (!this.#socket) return;
    this.#drop().close();
    this.#openedAt = 0;
    this.#wait(this.#backoff(), 1006, "the browser is offline");
  };

  // ---- signs of life ----

  /** A line may die without a word: whoever has heard nothing for a while asks. */
  #watch(patience = this.#options.pingAfter * (0.8 + Math.random() * 0.2), left = patience) {
    if (!this.#options.pingAfter) return;
    clearTimeout(this.#timers.silence);
    this.#timers.silence = setTimeout(() => {
      // A clock that was set back must not make it wait longer.
      const left = Math.min(this.#heardAt + patience - Date.now(), patience);
      if (left > 0) this.#watch(patience, left);
      else this.#ask();
    }, left);
  }

  #ask() {
    if (this.#state !== "open" || this.#asked || !this.#canPing || !this.#options.pingAfter) return;
    this.#askedAt = Date.now();
    this.#asked = newId();
    this.#socket.send(JSON.stringify({ cate: "ping", client_id: this.#asked }));
    this.#expectAnswer();
  }

  #expectAnswer(wasLate = false) {
    const { pingTimeout } = this.#options;
    const due = Date.now() + pingTimeout;
    clearTimeout(this.#timers.silence);
    this.#timers.silence = setTimeout(() => {
      // Woken up late, the page may have an answer that it has not read yet. Once is enough: where it is
      // hidden, timers are always late.
      if (!wasLate && Date.now() - due > pingTimeout / 2) return this.#expectAnswer(true);
      this.#abandon("no answer to a ping");
    }, pingTimeout);
  }

  /** Notes a sign of life; true for the answer to a ping of its own, which is nobody else's business. */
  #heard({ type, code, client_id }) {
    this.#heardAt = Date.now();
    if (!this.#asked) return false;
    if (client_id !== this.#asked) {
      // What was under way for long may come in before the answer, or was there before the line died.
      this.#expectAnswer();
      return false;
    }
    this.#asked = null;
    clearTimeout(this.#timers.silence);
    if (type === "error" && code === "unknown_cate") this.#canPing = false;
    else this.#watch();
    return type !== "error" || !this.#canPing;
  }

  #setState(state, more = {}) {
    this.#state = state;
    this.#emit("state", { state, ...more });
  }

  // ---- the sign-in ----

  /** What `getToken` gives. Whatever else the site's code does is an error. */
  async #newToken() {
    const { tokenTimeout } = this.#options;
    const given = await within(tokenTimeout, () => this.#options.getToken(), "getToken gave none in time");
    const token = typeof given === "string" ? given.trim() : "";
    // A page that asks to sign in, or nothing: the next answer may be a token. Its text may hold one, and is not shown.
    if (!isToken(token)) throw new GatewayError("bad_token", "getToken gave something that is no token");
    return token;
  }

  /** Renews the sign-in in place before the token expires; where that fails to the end, 4401 will follow. */
  #renewLater() {
    const { getToken, renewBefore } = this.#options;
    const expires = getToken && expiry(this.#token);
    if (!expires) return;
    const left = expires - Date.now();
    // The gateway has just taken the token: if it is over, this clock is wrong.
    const delay = left > 0 ? Math.min(Math.max(left - renewBefore, left / 2, 1_000), 2 ** 31 - 1) : Math.max(renewBefore, 1_000);
    const run = this.#run;
    clearTimeout(this.#timers.renew);
    this.#timers.renew = setTimeout(async () => {
      try {
        const token = await this.#newToken();
        if (run !== this.#run) return;
        await this.request({ cate: "auth", token });
        if (run === this.#run) this.#token = token;
      } catch {
        // Once more, after half of what is left.
      }
      if (run === this.#run) this.#renewLater();
    }, delay);
  }

  // ---- frames ----

  #enqueue(key, frame, answer, timeout) {
    const { maxPending, maxFrameBytes } = this.#options;
    const text = JSON.stringify(frame);
    const refuse = (code, detail) => Promise.reject(new GatewayError(code, detail, { client_id: frame.client_id }));
    if (this.#state === "closed") return refuse("closed", "the connection is closed");
    if (this.#pending.has(key)) return refuse("invalid", "this client_id is already under way");
    if (this.#pending.size >= maxPending) return refuse("queue_full", "too many frames wait to be sent");
    if (byteLength(text) > maxFrameBytes) return refuse("too_large", "the message is too long");
    return new Promise((resolve, reject) => {
      const entry = { key, text, answer, sent: false, resolve, reject, timer: 0, late: 0 };
      const late = () => this.#settle(entry, new GatewayError("timeout", "no answer in time", { client_id: frame.client_id }));
      if (timeout > 0) entry.timer = setTimeout(late, timeout);
      this.#pending.set(key, entry);
      this.#pump();
    });
  }

  #settle(entry, result) {
    clearTimeout(entry.timer);
    clearTimeout(entry.late);
    this.#pending.delete(entry.key);
    if (result instanceof Error) {
      entry.reject(result);
    } else {
      this.#holds = 0;
      entry.resolve(result);
    }
    this.#pump();
  }

  /** Sends what waits, in order, with a bounded number under way. */
  #pump() {
    if (this.#state !== "open" || this.#holding) return;
    let underWay = 0;
    for (const entry of this.#pending.values()) {
      underWay += 1;
      if (underWay > this.#options.window) return;
      if (entry.sent) continue;
      entry.sent = true;
      entry.late = setTimeout(() => Date.now() - this.#askedAt >= ASK_EVERY && this.#ask(), this.#options.lateAfter);
      this.#socket.send(entry.text);
    }
  }

  /** It is to be sent again. */
  #takeBack(entry) {
    entry.sent = false;
    clearTimeout(entry.late);
  }

  #received(data) {
    const frame = parse(data);
    if (this.#heard(frame ?? {}) || !frame) return;
    this.#welcome = true;
    switch (frame.type) {
      case "chat":
        if (!this.#isNew(frame.group_name, frame)) return;
        break;
      case "notification":
        if (!this.#isNew(INBOX, frame)) return;
        break;
      case "error":
        this.#failed(frame);
        break;
      case "rooms":
        for (const room of frame.rooms ?? []) this.#startAt(room.group_name, room);
        break;
      case "notifications":
        this.#startAt(INBOX, (frame.notifications ?? []).reduce((a, b) => (b.seq > a.seq ? b : a), { seq: 0 }));
        break;
      case "resumed":
        this.#resumed(frame);
        break;
    }
    const entry = this.#pending.get(frame.client_id);
    if (entry?.answer === frame.type) this.#settle(entry, frame);
    this.#emit("frame", frame);
    if (!OWN_EVENTS.has(frame.type)) this.#emit(frame.type, frame);
  }

  #failed(frame) {
    const { code, detail, client_id } = frame;
    const entry = this.#pending.get(client_id);
    const isResume = Boolean(this.#resuming) && client_id === this.#resuming;
    if (code === "rate_limited") {
      // What was sent after the refused frame is not even answered; repeating what was served is harmless.
      for (const each of this.#pending.values()) this.#takeBack(each);
    }
    if (PASSING.has(code)) {
      if (isResume) this.#resumeAgain = true;
      else if (entry) this.#takeBack(entry);
      else if (code !== "rate_limited") return; // it answers what was only posted
      return this.#hold();
    }
    if (isResume) {
      this.#resuming = null;
      for (const stream of [...this.#streams.keys()]) this.#forget(stream);
    }
    if (entry) this.#settle(entry, new GatewayError(code, detail, { client_id }));
  }

  /** Sends nothing for a while: going on would count as flooding. */
  #hold() {
    if (this.#holding) return;
    const most = Math.min(15_000, 1_000 * 2 ** Math.min(this.#holds, 10));
    this.#holds += 1;
    this.#holding = setTimeout(() => {
      this.#release();
      if (this.#resumeAgain) this.#resume();
      this.#pump();
    }, most / 2 + (Math.random() * most) / 2);
  }

  #release() {
    clearTimeout(this.#holding);
    this.#holding = 0;
  }

  // ---- positions ----

  /** Moves the position of a stream, and tells whether the frame is new. Frames without `seq` were not stored. */
  #isNew(stream, { seq, id }) {
    if (typeof seq !== "number") return true;
    const at = this.#streams.get(stream);
    if (at?.live && seq <= at.seq) return false;
    this.#streams.set(stream, { seq, id, live: true });
    return true;
  }

  /** A position told rather than heard: good to resume from, but no reason to drop a frame. */
  #startAt(stream, { seq, id }) {
    if (typeof seq === "number" && !this.#streams.has(stream)) this.#streams.set(stream, { seq, id, live: false });
  }

  #resumed(frame) {
    if (frame.client_id === this.#resuming) this.#resuming = null;
    for (const [room, complete] of Object.entries(frame.rooms ?? {})) if (complete === false) this.#forget(room);
    if (frame.notifications === false) this.#forget(INBOX);
  }

  #forget(stream) {
    this.#streams.delete(stream);
    this.#emit("reload", stream === INBOX ? { notifications: true } : { group_name: stream });
  }

  #emit(event, value) {
    for (const listener of this.#listeners.get(event) ?? []) {
      try {
        listener(value);
      } catch (error) {
        console.error(error); // one broken listener keeps no frame from the others
      }
    }
  }
}

/** The value of a JSON text as an object; null if it is not JSON. */
function parse(text) {
  try {
    return Object(JSON.parse(text));
  } catch {
    return null;
  }
}

/** What `work` resolves with, if it does in time. */
function within(ms, work, late) {
  return new Promise((resolve, reject) => {
    const timer = ms > 0 ? setTimeout(() => reject(new Error(late)), ms) : 0;
    const settled = (settle) => (value) => (clearTimeout(timer), settle(value));
    Promise.resolve().then(work).then(settled(resolve), settled(reject));
  });
}

const isHidden = () => globalThis.document?.visibilityState === "hidden";

const trimmed = (token) => (token ? String(token).trim() : null);

/** Whether a text can be sent as a token: what a name of a subprotocol may consist of. */
const isToken = (text) => /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/.test(text);

function webSocketUrl(url) {
  const absolute = new URL(url, globalThis.location?.href);
  absolute.protocol = absolute.protocol.replace(/^http/, "ws");
  absolute.hash = "";
  return absolute.href;
}

/** `randomUUID` exists on secure pages only; a page served by plain HTTP has `getRandomValues`. */
function newId() {
  if (globalThis.crypto.randomUUID) return globalThis.crypto.randomUUID();
  const bytes = globalThis.crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function byteLength(text) {
  return new TextEncoder().encode(text).length;
}

/** The `exp` of a JWT in ms since 1970; 0 if it cannot be read. */
function expiry(token) {
  try {
    return parse(atob(token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/"))).exp * 1000 || 0;
  } catch {
    return 0;
  }
}
