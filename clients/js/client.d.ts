/** Types of the browser client of Channel Gateway; what each thing does stands in client.js. */

export interface Options {
  /** JWT; `null` or nothing: the cookies sign in. */
  token?: string | null;
  /** Asked for the first token, after 4401, and before one expires. What is no token, `null` too, is a failed attempt: where cookies sign in, leave it out. */
  getToken?: (() => string | null | undefined | false | PromiseLike<string | null | undefined | false>) | null;
  /** ms until `getToken` is given up; it is asked again later. */
  tokenTimeout?: number;
  /** Further subprotocols to offer. */
  protocols?: string[];
  /** Ask for what was missed after a reconnect. */
  resume?: boolean;
  /** Where to resume from after a page load: an earlier value of `gateway.positions`. */
  positions?: Positions | null;
  /** ms until an unacknowledged message is given up; 0 waits for ever. */
  ackTimeout?: number;
  /** ms until an unanswered request is given up; 0 waits for ever. */
  requestTimeout?: number;
  /** ms until a handshake is given up. */
  connectTimeout?: number;
  /** ms: reconnects wait a random part of baseDelay * 2^attempt … */
  baseDelay?: number;
  /** … and never longer than this. */
  maxDelay?: number;
  /** ms of silence, at most, until the gateway is asked for a sign of life; 0: never. */
  pingAfter?: number;
  /** ms of silence after that until the connection is given up. */
  pingTimeout?: number;
  /** ms without an answer to a message or request until the gateway is asked, too. */
  lateAfter?: number;
  /** ms a page may be hidden; after that no attempts are made until it is shown again. */
  hiddenAfter?: number;
  /** ms a connection must last before the backoff starts afresh. */
  stableAfter?: number;
  /** ms before a token expires at which `getToken` is asked for the next. */
  renewBefore?: number;
  /** Frames under way without an answer. */
  window?: number;
  /** Frames waiting; more are refused with `queue_full`. */
  maxPending?: number;
  /** The gateway closes a socket that sends a larger frame. */
  maxFrameBytes?: number;
  /** Another WebSocket class, for tests and for Node. */
  WebSocket?: unknown;
}

export interface Position {
  seq: number;
  id?: string;
}

export interface Positions {
  rooms: Record<string, Position>;
  notifications?: Position;
}

export type State = "connecting" | "open" | "waiting" | "closed";

export interface StateEvent {
  state: State;
  /** ms since 1970; none while the page is not shown. */
  retryAt?: number;
  /** The close code; 0 if there was no socket. */
  code?: number;
  /** For people, but for `handshake` (the third in a row never opened) and `hidden` (waits until the page is shown). */
  reason?: string;
}

/** A stream whose missed part cannot be resumed and is to be read again. */
export type ReloadEvent = { group_name: string } | { notifications: true };

export interface ChatFrame {
  type: "chat";
  /** Without it the message was not stored. */
  seq?: number;
  id?: unknown;
  group_name: string;
  display_name: string;
  message: string;
  data?: Record<string, unknown>;
  from_user: string;
  date: string;
  /** Its text and data were taken away. */
  redacted?: true;
}

export interface NotificationFrame {
  type: "notification";
  seq?: number;
  id?: unknown;
  message: string;
  data?: Record<string, unknown>;
  from_user: string;
  date: string;
  /** In pages of the inbox. */
  seen?: boolean;
}

export interface AckFrame {
  type: "ack";
  client_id: string;
  id: string;
  seq: number;
  date: string;
}

export interface HistoryFrame {
  type: "history";
  group_name: string;
  messages: ChatFrame[];
  has_more: boolean;
}

export interface NotificationsFrame {
  type: "notifications";
  notifications: NotificationFrame[];
  unseen: number;
  has_more: boolean;
}

export interface SeenFrame {
  type: "seen";
  ids?: string[];
  up_to?: number;
  unseen: number;
}

export interface ResumedFrame {
  type: "resumed";
  rooms: Record<string, boolean>;
  notifications?: boolean;
}

export interface RoomsFrame {
  type: "rooms";
  rooms: { group_name: string; display_name: string; seq: number; id?: string }[];
}

export interface TypingFrame {
  type: "typing";
  group_name: string;
  from_user: string;
}

export interface PresenceFrame {
  type: "presence";
  group_name: string;
  users: string[];
}

export interface AuthFrame {
  type: "auth";
  expires_at: string;
}

export interface PongFrame {
  type: "pong";
}

export interface ErrorFrame {
  type: "error";
  code: string;
  detail: string;
  client_id?: string;
}

/** A message lost its text and data. */
export interface RedactedFrame {
  type: "redacted";
  group_name: string;
  id: string;
  seq: number;
}

/** What an operator or the site tells everybody who is connected; it is not stored. */
export interface AnnouncementFrame {
  type: "announcement";
  message: string;
  data?: Record<string, unknown>;
}

/** Frames of the gateway by their type, and the events of the client itself. */
export interface Events {
  chat: ChatFrame;
  notification: NotificationFrame;
  ack: AckFrame;
  history: HistoryFrame;
  notifications: NotificationsFrame;
  seen: SeenFrame;
  resumed: ResumedFrame;
  rooms: RoomsFrame;
  typing: TypingFrame;
  presence: PresenceFrame;
  auth: AuthFrame;
  pong: PongFrame;
  error: ErrorFrame;
  announcement: AnnouncementFrame;
  redacted: RedactedFrame;
  /** Every frame. */
  frame: { type?: string; [field: string]: unknown };
  state: StateEvent;
  reload: ReloadEvent;
}

export interface Requests {
  history: { group_name: string; before?: number; after?: number; limit?: number };
  notifications: { before?: number; limit?: number; unseen?: boolean };
  seen: { ids: string[] } | { up_to: number };
  rooms: object;
  presence: { group_name: string };
  auth: { token: string };
  ping: object;
}

type AnswerOf<C extends keyof Requests> = C extends "ping" ? PongFrame : Events[Exclude<C, "ping">];
type Message = { message: string; data?: Record<string, unknown>; client_id?: string };

/** Why a message or request failed. */
export class GatewayError extends Error {
  /** The gateway's, or `timeout`, `closed`, `queue_full`. */
  readonly code: string;
  readonly client_id?: string;
  readonly closeCode?: number;
  constructor(code: string, detail?: string, extra?: object);
}

export interface SendOptions {
  /** Something of the site's own beside the text, up to 16 KiB of JSON; a larger one is `too_large`. */
  data?: Record<string, unknown>;
  /** ms until it is given up; 0 waits for ever. */
  timeout?: number;
}

/** Opens a connection that stays: `url` may be relative, and `http` stands for `ws`. */
export function connect(url: string | URL, options?: Options): Gateway;

export class Gateway {
  constructor(url: string | URL, options?: Options);
  get state(): State;
  /** The last position seen of each stream, as the `resume` frame wants it. */
  get positions(): Positions;
  /** Calls `listener` for an event and returns the function that ends it. */
  on<E extends keyof Events>(event: E, listener: (event: Events[E]) => void): () => void;
  /** A type of the site's own (`gateway.send`). */
  on(event: string, listener: (frame: { type?: string; [field: string]: unknown }) => void): () => void;
  /** Connects now, also while waiting for a later attempt or after the end; with a new token if given, `null` is none. */
  open(token?: string | null): this;
  /** Leaves for good; what was not acknowledged is rejected with `closed`. */
  close(): void;
  /** Sends a chat message; resolves with the ack once it is stored. `data` is an object of the site's own beside the text. */
  chat(room: string, message: string, options?: SendOptions): Promise<AckFrame>;
  /** Sends a notification to a user; resolves with the ack once it is stored. */
  notify(user: string, message: string, options?: SendOptions): Promise<AckFrame>;
  /** Sends a chat or notification frame; after a `timeout`, again with the same `client_id`. */
  send(
    frame: ({ cate: "chat"; group_name: string } | { cate: "notification"; user_name: string }) & Message,
    options?: { timeout?: number },
  ): Promise<AckFrame>;
  /** Asks for something, and resolves with the answer. */
  request<C extends keyof Requests>(
    frame: { cate: C; client_id?: string } & Requests[C],
    options?: { timeout?: number },
  ): Promise<AnswerOf<C>>;
  /** Sends a frame that has no answer (`typing`) if the connection is open now; false if not. */
  post(frame: object): boolean;
}
