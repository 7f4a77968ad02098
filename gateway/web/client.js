/**
 * The client for JavaScript: an app's side of the protocol, all of it, in browsers and in Node.
 *
 * One module, without dependencies. A `Device` is one device of one account, and does what the protocol asks of a good
 * client: what it was told to do happens sooner or later, and it tells what changes.
 *
 *     const client = new Client("https://gateway.example.com", token, { deviceId: "phone", clientId: "alice" });
 *     const videos = new VideoDatabase(client, "videos");
 *     const device = new Device(client, new IndexedDbStore("record"), videos);
 *     await device.open();
 *     await device.send(await videos.add(blob), "bob");
 *     for await (const change of device.changes()) console.log(change.key, change.status);
 *
 * Its `Core` decides, without I/O: it is what `gateway/client/` has in Python, under the same names, and runs the same
 * test vectors. A `Client` makes single calls, and repeats nothing. Its failures are `GatewayError`, and `SocketClosed`
 * for a socket that ends; the `remedy` of either says what the protocol has an app do about it. Tokens and signed URLs
 * appear in no message of an error.
 *
 * What travels or is stored is a frozen object whose members are called as in JSON (`video_id`). So is a task. Times
 * that end in `S` or `_s` are seconds; `at` and `expires_at` are ms since the epoch. What is not there is null.
 *
 * @module
 */

// --- What goes wrong, what the protocol has the app do about it, and how it tries again

/** Stands for a close frame that never came: RFC 6455, section 7.4.1. */
export const LOST = 1006;

/**
 * What an app does about an error. RETRY: the same again, after a pause. RENEW: get a new token, then the same again.
 * UPLOAD: put the bytes again while the URL lives, else announce anew. ANNOUNCE: announce the video anew, this upload
 * URL is of no use any more. POLL: poll, and download again only what is still listed. NONE: give it up, the same again
 * would fail again.
 */
export const Remedy = Object.freeze({
  RETRY: "retry",
  RENEW: "renew",
  UPLOAD: "upload",
  ANNOUNCE: "announce",
  POLL: "poll",
  NONE: "none",
});

/** @typedef {(typeof Remedy)[keyof typeof Remedy]} Remedy */

/** The error codes of the protocol, each with its HTTP status. */
const STATUS_OF_CODE = new Map([
  ["unauthorized", 401],
  ["forbidden", 403],
  ["not_tracked", 404],
  ["not_found", 404],
  ["method_not_allowed", 405],
  ["upgrade_required", 426],
  ["not_stored", 409],
  ["too_many_in_transit", 409],
  ["too_large", 413],
  ["invalid", 422],
  ["rate_limited", 429],
  ["unavailable", 503],
]);

/** Statuses that are repeated whatever code comes with them. */
const REPEATED = new Set([408, 425, 429]);

/** What does not read as what the protocol says. Its message names the member, and never repeats a value. */
export class NotUnderstood extends Error {
  name = "NotUnderstood";
}

/** A call that failed. */
export class GatewayError extends Error {
  name = "GatewayError";

  /**
   * @param {number | null} status of the answer, or null where none came
   * @param {string | null} code one of the protocol's, if any
   * @param {string} detail
   * @param {number | null} retryAfterS how long the gateway wants the app to wait, if it said so
   */
  constructor(status, code, detail, retryAfterS = null) {
    super(`${status ?? "no answer"}${code ? ` ${code}` : ""}: ${detail}`);
    this.status = status;
    this.code = code;
    this.detail = detail;
    this.retryAfterS = retryAfterS;
  }

  /** @returns {Remedy} what the protocol has an app do about it */
  get remedy() {
    const { status, code } = this;
    if (status === null) return Remedy.RETRY;
    const special = this._remedyOf(status);
    if (special !== undefined) return special;
    if (code === "not_stored") return Remedy.UPLOAD;
    if (code === null || code === "rate_limited" || REPEATED.has(status)) return Remedy.RETRY;
    return status >= 400 && status < 500 ? Remedy.NONE : Remedy.RETRY;
  }

  /** Whether the same call may succeed later, with a new token perhaps: a message stays queued. */
  get retryable() {
    return this.remedy === Remedy.RETRY || this.remedy === Remedy.RENEW;
  }

  /**
   * What a status means whatever code comes with it.
   *
   * @protected
   * @param {number} status
   * @returns {Remedy | undefined}
   */
  _remedyOf(status) {
    return status === 401 ? Remedy.RENEW : undefined;
  }
}

/** The object store did not take a video. */
export class UploadError extends GatewayError {
  name = "UploadError";

  /**
   * @protected
   * @override
   * @param {number} status
   * @returns {Remedy | undefined}
   */
  _remedyOf(status) {
    if (status === 403) return Remedy.ANNOUNCE;
    return status === 409 ? Remedy.RETRY : undefined;
  }
}

/** A video could not be downloaded. */
export class DownloadError extends GatewayError {
  name = "DownloadError";

  /**
   * @protected
   * @override
   * @param {number} status
   * @returns {Remedy | undefined}
   */
  _remedyOf(status) {
    return status === 403 || status === 404 ? Remedy.POLL : super._remedyOf(status);
  }
}

/** Close codes after which no socket is opened: something is to be mended, or another one took this one's place. */
const FINAL_CODES = new Set([1002, 1003, 1007, 1009, 4400, 4409]);

/** A socket that has ended, whoever ended it. */
export class SocketClosed extends Error {
  name = "SocketClosed";
  #loggedOut;

  /**
   * @param {number} code of the gateway's close frame, or LOST where none came
   * @param {string} reason
   * @param {{ loggedOut?: boolean }} [options] whether this client has logged out meanwhile
   */
  constructor(code, reason, { loggedOut = false } = {}) {
    super(`the socket was closed with ${code}${reason ? `: ${reason}` : ""}`);
    this.code = code;
    this.reason = reason;
    /** How long the gateway wants the app to stay away, if it said so. */
    this.retryS = code === 1012 ? restartS(reason) : null;
    this.#loggedOut = loggedOut;
  }

  /**
   * @returns {Remedy} what the protocol has an app do about it that wants to hear more: connect again, with a new token
   * if need be, or not at all
   */
  get remedy() {
    if (this.#loggedOut || FINAL_CODES.has(this.code)) return Remedy.NONE;
    return this.code === 4401 ? Remedy.RENEW : Remedy.RETRY;
  }
}

/**
 * @param {string} reason
 * @returns {number | null}
 */
function restartS(reason) {
  return readOr(null, () => Math.max(0, Fields.parse(reason).number("retry_ms")) / 1000);
}

/** How calls are repeated: with pauses of full jitter that double, none ending later than a deadline. */
export class Backoff {
  /** @param {{ baseS?: number, capS?: number, deadlineS?: number }} [options] the first pause, the longest, the time */
  constructor({ baseS = 0.5, capS = 30, deadlineS = 60 } = {}) {
    this.baseS = baseS;
    this.capS = capS;
    this.deadlineS = deadlineS;
    Object.freeze(this);
  }

  /**
   * How long to pause. Never shorter than the gateway asked for, and a little longer, since it asked everybody.
   *
   * @param {number} tries how many there were
   * @param {number | null} retryAfterS what the gateway asked for
   * @param {number} jitter from 0 to 1
   */
  pauseS(tries, retryAfterS, jitter) {
    return (retryAfterS ?? 0) + jitter * Math.min(this.capS, this.baseS * 2 ** Math.min(tries - 1, 60));
  }
}

/**
 * The error that an answer is. Only a problem document of ours is repeated: S3 echoes what was signed.
 *
 * @param {number} status
 * @param {string} body
 * @param {string | null} retryAfter the header
 * @param {new (status: number, code: string | null, detail: string, retryAfterS: number | null) => GatewayError} kind
 * @param {number} nowMs since the epoch
 */
export function problem(status, body, retryAfter, kind = GatewayError, nowMs = Date.now()) {
  const { code, detail } = readOr({ code: null, detail: "without a code" }, () => {
    const fields = Fields.parse(body);
    return { code: fields.text("code"), detail: fields.text("detail") };
  });
  return new kind(status, code, detail, retryAfter === null ? null : retryAfterS(retryAfter, nowMs));
}

/**
 * Seconds from now (RFC 9110, section 10.2.3); null for what is neither seconds nor a date.
 *
 * @param {string} header
 * @param {number} nowMs
 */
function retryAfterS(header, nowMs) {
  if (/^[0-9]+$/.test(header)) return Number(header.slice(0, 9));
  const atMs = header.endsWith(" GMT") ? Date.parse(header) : NaN; // what else Date.parse reads is up to the browser
  return Number.isNaN(atMs) ? null : Math.max(0, atMs - nowMs) / 1000;
}

// --- JSON objects, read strictly: a member is what it must be, or the object is refused

/** Half of a pair of UTF-16, which no UTF-8 has. */
const HALF_CHARACTER = /\p{Surrogate}/u;

/** What a JSON text is made of, white space apart. */
const TOKEN = /"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],:]|[^\s"{}[\],:]+/g;

/**
 * The members of a JSON object, each read as what it must be. Throws NotUnderstood for what is something else. A whole
 * number is one that JavaScript has exactly.
 */
export class Fields {
  #members;

  /** @param {unknown} value */
  constructor(value) {
    if (typeof value !== "object" || value === null || Array.isArray(value)) throw new NotUnderstood("no JSON object");
    this.#members = /** @type {{ [name: string]: unknown }} */ (value);
  }

  /**
   * Throws NotUnderstood for what is no JSON, or no object.
   *
   * @param {string} text
   */
  static parse(text) {
    return new Fields(parsed(text));
  }

  /** @param {string} name */
  has(name) {
    return Object.hasOwn(this.#members, name);
  }

  /**
   * @param {string} name
   * @returns {unknown} whatever it is; undefined where there is none
   */
  value(name) {
    return this.has(name) ? this.#members[name] : undefined;
  }

  /** @param {string} name */
  text(name) {
    const value = this.value(name);
    if (typeof value !== "string" || HALF_CHARACTER.test(value)) throw new NotUnderstood(`${name}: no text`);
    return value;
  }

  /** @param {string} name */
  number(name) {
    const value = this.value(name);
    if (!Number.isSafeInteger(value)) throw new NotUnderstood(`${name}: no whole number`);
    return /** @type {number} */ (value);
  }

  /** @param {string} name */
  flag(name) {
    const value = this.value(name);
    if (typeof value !== "boolean") throw new NotUnderstood(`${name}: no boolean`);
    return value;
  }

  /**
   * @param {string} name
   * @returns {unknown[]}
   */
  list(name) {
    const value = this.value(name);
    if (!Array.isArray(value)) throw new NotUnderstood(`${name}: no list`);
    return value;
  }

  /** @param {string} name */
  entries(name) {
    return this.list(name).map((entry) => new Fields(entry));
  }

  /** @param {string} name */
  texts(name) {
    return Object.freeze(this.list(name).map(String));
  }

  /** @param {string} name */
  fields(name) {
    return new Fields(this.value(name));
  }

  /**
   * @param {string} name
   * @returns {Readonly<{ [name: string]: string }>}
   */
  headers(name) {
    const headers = Object.entries(this.fields(name).#members);
    return Object.freeze(Object.fromEntries(headers.map(([key, value]) => [key, String(value)])));
  }

  /**
   * One of these texts.
   *
   * @template {string} T
   * @param {string} name
   * @param {readonly T[]} texts
   */
  oneOf(name, texts) {
    const found = texts.find((text) => text === this.value(name));
    if (found === undefined) throw new NotUnderstood(`${name}: none of ${texts.join(", ")}`);
    return found;
  }
}

/**
 * @param {string} text
 * @returns {unknown}
 */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new NotUnderstood("no JSON");
  }
}

/**
 * What `read` returns, or `otherwise` where it does not understand.
 *
 * @template T, U
 * @param {U} otherwise
 * @param {() => T} read
 * @returns {T | U}
 */
function readOr(otherwise, read) {
  try {
    return read();
  } catch (error) {
    if (error instanceof NotUnderstood) return otherwise;
    throw error;
  }
}

/**
 * What `read` returns; where it does not understand, the sentence says what this is not.
 *
 * @template T
 * @param {string} sentence
 * @param {() => T} read
 */
function readable(sentence, read) {
  try {
    return read();
  } catch (cause) {
    throw cause instanceof NotUnderstood ? new NotUnderstood(sentence, { cause }) : cause;
  }
}

/**
 * The value of a member, exactly as it came, where `text` is known to be a JSON object. Throws NotUnderstood where it
 * has no such member.
 *
 * @param {string} text
 * @param {string} name
 */
export function verbatim(text, name) {
  for (const [found, value] of membersOf(text)) {
    if (found === name) return value;
  }
  throw new NotUnderstood(`${name}: missing`);
}

/**
 * The names and the values of the members, in their order and exactly as they came, where `text` is known to be a JSON
 * object. (What JSON.parse makes of it has numbers before all other names.)
 *
 * @param {string} text
 * @returns {Generator<[name: string, value: string]>}
 */
function* membersOf(text) {
  let name = "";
  let depth = 0;
  let begin = -1; // of what is read at the depth of members: a name, then its value
  let end = -1;
  for (const { 0: token, index } of text.matchAll(TOKEN)) {
    if (token === "}" || token === "]") depth -= 1;
    if (depth === 1 && token === ":") {
      name = JSON.parse(text.slice(begin, end));
      begin = -1;
    } else if (begin >= 0 && (depth === 0 || (depth === 1 && token === ","))) {
      yield [name, text.slice(begin, end)];
      begin = -1;
    } else if (depth > 0) {
      if (begin < 0) begin = index;
      end = index + token.length;
    }
    if (token === "{" || token === "[") depth += 1;
  }
}

/**
 * A JSON object of these members, in their order, whatever their names are.
 *
 * @param {Iterable<[name: string, value: unknown]>} members each value a map of members, or anything that JSON has
 * @returns {string}
 */
function encoded(members) {
  const texts = Array.from(members, ([name, value]) => {
    return `${JSON.stringify(name)}:${value instanceof Map ? encoded(value) : JSON.stringify(value)}`;
  });
  return `{${texts.join(",")}}`;
}

// --- What an app and its gateway say to each other

/** How far a video has come. */
export const Status = Object.freeze({
  UPLOADED: "uploaded",
  NOTIFIED: "notified",
  DOWNLOADED: "downloaded",
  VIEWED: "viewed",
  EXPIRED: "expired",
});

/** @typedef {(typeof Status)[keyof typeof Status]} Status */

/** What became of a status. FAILED is only ever seen in a sync; the others all mean: done, do not repeat. */
export const Outcome = Object.freeze({
  APPLIED: "applied",
  DUPLICATE: "duplicate",
  IGNORED: "ignored",
  FAILED: "failed",
});

/** @typedef {(typeof Outcome)[keyof typeof Outcome]} Outcome */

/**
 * A video that this client sent, and how far it has come. `at`: when, in ms since the epoch.
 *
 * @typedef {Readonly<{ video_id: string, recipient_id: string, status: Status, at: number }>} Outgoing
 */

/**
 * A video that was sent to this client: `uploaded` or `downloaded`. `at`: since when, in ms since the epoch.
 *
 * @typedef {Readonly<{
 *   video_id: string,
 *   sender_id: string,
 *   status: Status,
 *   url: string,
 *   size: number,
 *   content_type: string,
 *   at: number,
 * }>} Incoming
 */

/**
 * An info packet: the whole of what a client needs to know. `text`: exactly as it came.
 *
 * @typedef {Readonly<{
 *   client_id: string,
 *   version: number,
 *   outgoing: readonly Outgoing[],
 *   incoming: readonly Incoming[],
 *   text: string,
 * }>} Packet
 */

/**
 * How to upload: `method` and `headers` to `url`, until `expires_at` (ms since the epoch). The URL is a secret.
 *
 * @typedef {Readonly<{
 *   method: string,
 *   url: string,
 *   headers: Readonly<{ [name: string]: string }>,
 *   expires_at: number,
 * }>} Upload
 */

/**
 * A video to be: its id, what was announced of it, and how to upload it.
 *
 * @typedef {Readonly<{ video_id: string, recipient_id: string, size: number, upload: Upload }>} Announced
 */

/**
 * What became of the status of a video. `version`: of the caller's packet that includes it (0 where it failed).
 * `reason`: why it was ignored. `error`: what it failed with, to be treated as that error.
 *
 * @typedef {Readonly<{
 *   video_id: string,
 *   outcome: Outcome,
 *   version: number,
 *   reason: string | null,
 *   error: GatewayError | null,
 * }>} Result
 */

/**
 * A status that a client still has to report; `recipient_id` goes with `uploaded`.
 *
 * @typedef {Readonly<{ video_id: string, status: Status, recipient_id: string | null }>} Report
 */

/**
 * What became of each report of a sync, in their order, and the packet that includes them.
 *
 * @typedef {Readonly<{ results: readonly Result[], packet: Packet }>} Synced
 */

/**
 * What the user is shown: a text to be looked up with its arguments, the number on the app's icon, with a sound?
 *
 * @typedef {Readonly<{ loc_key: string, loc_args: readonly string[], badge: number, sound: boolean }>} Alert
 */

/**
 * What arrived at a device. `packet`: null where it had no room. `alert`: null where the user is shown nothing.
 *
 * @typedef {Readonly<{ version: number, packet: Packet | null, alert: Alert | null }>} Push
 */

const STATUSES = Object.values(Status);
const OUTCOMES = Object.values(Outcome);

/**
 * An info packet. Throws NotUnderstood for what is none. Members that are not known are ignored.
 *
 * @param {string} text
 * @returns {Packet}
 */
export function parsePacket(text) {
  return readable("not an info packet", () => {
    const fields = Fields.parse(text);
    fields.oneOf("type", ["info"]);
    return Object.freeze({
      client_id: fields.text("client_id"),
      version: fields.number("version"),
      outgoing: Object.freeze(fields.entries("outgoing").map(outgoing)),
      incoming: Object.freeze(fields.entries("incoming").map(incoming)),
      text,
    });
  });
}

/**
 * @param {Fields} entry
 * @returns {Outgoing}
 */
function outgoing(entry) {
  return Object.freeze({
    video_id: entry.text("video_id"),
    recipient_id: entry.text("recipient_id"),
    status: entry.oneOf("status", STATUSES),
    at: entry.number("at"),
  });
}

/**
 * @param {Fields} entry
 * @returns {Incoming}
 */
function incoming(entry) {
  return Object.freeze({
    video_id: entry.text("video_id"),
    sender_id: entry.text("sender_id"),
    status: entry.oneOf("status", STATUSES),
    url: entry.text("url"),
    size: entry.number("size"),
    content_type: entry.text("content_type"),
    at: entry.number("at"),
  });
}

/**
 * The answer to an announcement. Throws NotUnderstood for what is none.
 *
 * @param {string} text
 * @param {string} recipientId
 * @param {number} size in bytes
 * @returns {Announced}
 */
export function parseAnnounced(text, recipientId, size) {
  const fields = Fields.parse(text);
  const upload = fields.fields("upload");
  return Object.freeze({
    video_id: fields.text("video_id"),
    recipient_id: recipientId,
    size,
    upload: Object.freeze({
      method: upload.text("method"),
      url: upload.text("url"),
      headers: upload.headers("headers"),
      expires_at: upload.number("expires_at"),
    }),
  });
}

/**
 * The answer to a status. Throws NotUnderstood for what is none.
 *
 * @param {string} text
 * @param {string} videoId
 */
export function parseResult(text, videoId) {
  return result(Fields.parse(text), videoId);
}

/**
 * @param {Fields} fields
 * @param {string} videoId
 * @returns {Result}
 */
function result(fields, videoId) {
  const outcome = fields.oneOf("result", OUTCOMES);
  const failed = outcome === Outcome.FAILED;
  return Object.freeze({
    video_id: videoId,
    outcome,
    version: failed ? 0 : fields.number("version"),
    reason: !failed && fields.has("reason") ? fields.text("reason") : null,
    error: failed ? refused(fields) : null,
  });
}

/**
 * The error that has no answer of its own: with the HTTP status that it would have had, and 400 for a code that is new
 * here. Throws NotUnderstood for what is none.
 *
 * @param {Fields} fields
 */
export function refused(fields) {
  const code = fields.text("code");
  return new GatewayError(STATUS_OF_CODE.get(code) ?? 400, code, fields.text("detail"));
}

/**
 * The answer to a sync with those reports. Throws NotUnderstood for what is none.
 *
 * @param {string} text
 * @param {readonly Report[]} reports
 * @returns {Synced}
 */
export function parseSynced(text, reports) {
  const results = Fields.parse(text).entries("results");
  if (results.length !== reports.length) throw new NotUnderstood("results: not one for each report");
  return Object.freeze({
    results: Object.freeze(results.map((fields, index) => result(fields, reports[index].video_id))),
    packet: parsePacket(verbatim(text, "packet")),
  });
}

/**
 * A push, from its members: of what APNs hands to an app, or of the data that FCM does. Throws NotUnderstood for what
 * is no push.
 *
 * @param {unknown} members
 * @returns {Push}
 */
export function parsePush(members) {
  return readable("not a push", () => {
    const fields = new Fields(members);
    return Object.freeze({
      version: wholeNumber(fields.text("version")),
      packet: fields.has("packet") ? parsePacket(fields.text("packet")) : null,
      alert: fields.has("alert") ? alert(fields.fields("alert")) : null,
    });
  });
}

/** @param {string} text */
function wholeNumber(text) {
  const number = Number(text);
  if (!/^-?[0-9]+$/.test(text) || !Number.isSafeInteger(number)) throw new NotUnderstood("no whole number");
  return number;
}

/**
 * @param {Fields} fields
 * @returns {Alert}
 */
function alert(fields) {
  return Object.freeze({
    loc_key: fields.text("loc-key"),
    loc_args: fields.texts("loc-args"),
    badge: fields.number("badge"),
    sound: fields.flag("sound"),
  });
}

/**
 * A report as JSON has it.
 *
 * @param {Report} report
 * @returns {{ video_id: string, status: Status, recipient_id?: string }}
 */
export function reportMembers({ video_id, status, recipient_id }) {
  return recipient_id === null ? { video_id, status } : { video_id, status, recipient_id };
}

// --- Entries: what is remembered of one thing. They never change; what changes is put in their place.

/**
 * What is to be done next for a video that is being sent.
 *
 * @typedef {"announce" | "upload" | "confirm"} Step
 */

/**
 * A video on its way to the gateway. `source`: what its bytes are found by. `size`: how many they are. `sha256`: in
 * hexadecimal digits, or null where that cannot be computed. `upload`: how to upload them, once it is announced.
 * `late`: an upload that had no answer may still arrive.
 *
 * @typedef {Readonly<{
 *   source: string,
 *   size: number,
 *   content_type: string,
 *   sha256: string | null,
 *   step: Step,
 *   upload: Upload | null,
 *   late: boolean,
 * }>} Delivery
 */

/**
 * How far a sent video has come, as its sender is shown it. It only moves forward. QUEUED: it is on its way to the
 * gateway, or waits for that. COMPLETE: it is in transit no more: viewed, replaced, or deleted by another device of
 * this account. FAILED: it was not sent and will not be; the change that tells it has the reason.
 */
export const SentStatus = Object.freeze({
  QUEUED: "queued",
  UPLOADED: "uploaded",
  NOTIFIED: "notified",
  DOWNLOADED: "downloaded",
  VIEWED: "viewed",
  EXPIRED: "expired",
  COMPLETE: "complete",
  FAILED: "failed",
});

/** @typedef {(typeof SentStatus)[keyof typeof SentStatus]} SentStatus */

/**
 * What a received video is to its recipient. ARRIVED: it is there, and its bytes are being fetched. READY: its bytes
 * are on this device. GONE: it ended before its bytes were here: viewed on another device, replaced, deleted, expired.
 */
export const ReceivedStatus = Object.freeze({ ARRIVED: "arrived", READY: "ready", GONE: "gone" });

/** @typedef {(typeof ReceivedStatus)[keyof typeof ReceivedStatus]} ReceivedStatus */

/**
 * A video that this client sends or has sent.
 *
 * `key`: what the app calls it, from the moment it asks for it to be sent; the video's id where another device sent it.
 * `at`: when its status was reached, in ms since the epoch, 0 where the gateway has not said. `reason`: why it failed.
 * `listed`: by the packet that was applied last. `silence`: the least version of a packet whose silence about it says
 * that it is complete. `over_at`: from that version on no packet lists it. `told`: the status that the app was told
 * last.
 *
 * @typedef {Readonly<{
 *   key: string,
 *   recipient_id: string,
 *   status: SentStatus,
 *   video_id: string | null,
 *   at: number,
 *   reason: string | null,
 *   delivery: Delivery | null,
 *   listed: boolean,
 *   silence: number | null,
 *   over_at: number,
 *   told: SentStatus | null,
 * }>} Sent
 */

/**
 * A video that this client has received and not viewed.
 *
 * `here`: its bytes are on this device. `viewed`: its user has seen it. `known`: the status that the gateway has.
 * `known_at`: the version from which packets show that. `listed`: by the packet that was applied last. `told`: what the
 * app was told last. Its `receivedStatus` is told from these.
 *
 * @typedef {Readonly<{
 *   video_id: string,
 *   sender_id: string,
 *   size: number,
 *   content_type: string,
 *   at: number,
 *   here: boolean,
 *   viewed: boolean,
 *   known: Status,
 *   known_at: number,
 *   listed: boolean,
 *   told: ReceivedStatus | null,
 * }>} Received
 */

/**
 * A video that is to be shown no more, and deleted. `over_at`: once the gateway has answered, the version from which no
 * packet lists it.
 *
 * @typedef {Readonly<{ recipient_id: string, over_at: number | null }>} Deletion
 */

/** @typedef {"apns" | "fcm"} Platform */
/** @typedef {"production" | "sandbox"} Environment */

/**
 * How this device is to be woken. `answered_s`: when the gateway answered, in seconds since the epoch. The token is a
 * secret.
 *
 * @typedef {Readonly<{
 *   platform: Platform,
 *   token: string,
 *   environment: Environment,
 *   answered_s: number | null,
 * }>} Registration
 */

/**
 * A log-out that the gateway is still to be told, or the end of an account: the token that this needs, and what was
 * unanswered at that moment. `deletions`: ids of videos, and their recipients.
 *
 * @typedef {Readonly<{
 *   client_id: string,
 *   device_id: string,
 *   token: string,
 *   ends_account: boolean,
 *   reports: readonly Report[],
 *   deletions: readonly (readonly [video_id: string, recipient_id: string])[],
 * }>} Farewell
 */

/**
 * What the app is told of one video: each at most once, the newest where several came before it was asked for.
 *
 * `key`: what `send` returned, else the video's id. `peer_id`: the recipient of a sent video, the sender of a received
 * one. `at`: when, in ms since the epoch, 0 where the gateway has not said. `reason`: why it failed.
 *
 * @typedef {Readonly<{
 *   key: string,
 *   video_id: string | null,
 *   peer_id: string,
 *   status: SentStatus | ReceivedStatus,
 *   at: number,
 *   reason: string | null,
 * }>} Change
 */

/**
 * What an entry is at first, its members in the order of the stored form. Undefined: there is always one.
 *
 * @template {object} T
 * @typedef {{ readonly [K in keyof T]: T[K] | undefined }} Template
 */

/** @type {Template<Upload>} */
const UPLOAD = { method: undefined, url: undefined, headers: undefined, expires_at: undefined };

/** @type {Template<Delivery>} */
const DELIVERY = {
  source: undefined,
  size: undefined,
  content_type: undefined,
  sha256: undefined,
  step: "announce",
  upload: null,
  late: false,
};

/** @type {Template<Sent>} */
const SENT = {
  key: undefined,
  recipient_id: undefined,
  status: SentStatus.QUEUED,
  video_id: null,
  at: 0,
  reason: null,
  delivery: null,
  listed: false,
  silence: null,
  over_at: 0,
  told: null,
};

/** @type {Template<Received>} */
const RECEIVED = {
  video_id: undefined,
  sender_id: undefined,
  size: undefined,
  content_type: undefined,
  at: undefined,
  here: false,
  viewed: false,
  known: Status.UPLOADED,
  known_at: 0,
  listed: true,
  told: null,
};

/** @type {Template<Deletion>} */
const DELETION = { recipient_id: undefined, over_at: null };

/** @type {Template<Registration>} */
const REGISTRATION = { platform: undefined, token: undefined, environment: "production", answered_s: null };

/** @type {Template<Report>} */
const REPORT = { video_id: undefined, status: undefined, recipient_id: null };

/** @type {Template<Farewell>} */
const FAREWELL = {
  client_id: undefined,
  device_id: undefined,
  token: undefined,
  ends_account: false,
  reports: undefined,
  deletions: undefined,
};

/**
 * An entry with these members, and what the template has besides. Throws NotUnderstood where one is missing, or is none
 * of an entry's.
 *
 * @template {object} T
 * @param {Template<T>} template
 * @param {unknown} members
 * @returns {T}
 */
function made(template, members) {
  const entry = { ...template, .../** @type {Partial<T>} */ (members) };
  const missing = Object.values(entry).includes(undefined);
  if (missing || Object.keys(entry).length > Object.keys(template).length) throw new NotUnderstood("no such entry");
  return /** @type {T} */ (Object.freeze(entry));
}

/**
 * An entry with these members instead; itself, where they are its own already.
 *
 * @template {object} T
 * @param {T} entry
 * @param {Partial<T>} members
 * @returns {T}
 */
function replaced(entry, members) {
  const names = /** @type {(keyof T)[]} */ (Object.keys(members));
  return names.every((name) => entry[name] === members[name]) ? entry : Object.freeze({ ...entry, ...members });
}

// --- A video on its way. Each of these returns what it is afterwards, to be kept before the next step is taken:
// whoever is cut off then goes on where it was.

/**
 * It has been announced.
 *
 * @param {Delivery} delivery
 * @param {Upload} upload
 */
function deliveryAnnounced(delivery, upload) {
  return replaced(delivery, { step: "upload", upload: made(UPLOAD, upload), late: false });
}

/**
 * The upload begins. An upload without an answer may have arrived whole: to ask that first, by confirming it, can save
 * sending it all again.
 *
 * @param {Delivery} delivery
 */
function deliveryUploading(delivery) {
  return replaced(delivery, { step: "confirm" });
}

/**
 * The upload failed.
 *
 * @param {Delivery} delivery
 * @param {GatewayError} error
 */
function deliveryNotUploaded(delivery, error) {
  if (error.status === null) return replaced(delivery, { late: true });
  // What stands between may say so of an upload that arrived all the same.
  return replaced(delivery, { step: "upload", late: delivery.late || error.status === 408 || error.status >= 500 });
}

/**
 * The gateway finds nothing stored: upload it (again) while the URL lives.
 *
 * @param {Delivery} delivery
 */
function deliveryNotStored(delivery) {
  return replaced(delivery, { step: "upload", late: true });
}

// --- A sent video

const ENDED = 4;

/** @type {ReadonlyMap<SentStatus, number>} */
const RANK = new Map([
  [SentStatus.QUEUED, 0],
  [SentStatus.UPLOADED, 1],
  [SentStatus.NOTIFIED, 2],
  [SentStatus.DOWNLOADED, 3],
  [SentStatus.VIEWED, ENDED],
  [SentStatus.EXPIRED, ENDED],
  [SentStatus.COMPLETE, ENDED],
  [SentStatus.FAILED, ENDED],
]);

/** @param {SentStatus} status */
function rank(status) {
  return /** @type {number} */ (RANK.get(status));
}

/** @param {Sent} video */
function hasEnded(video) {
  return rank(video.status) === ENDED;
}

/**
 * With that status, if it comes after the present one. The only place that decides it.
 *
 * @param {Sent} video
 * @param {SentStatus} status
 * @param {{ at?: number, reason?: string | null }} [more]
 */
function moved(video, status, { at = 0, reason = null } = {}) {
  if (rank(status) <= rank(video.status)) return video;
  const ended = rank(status) === ENDED;
  const delivery = ended ? null : video.delivery;
  return replaced(video, { status, at: Math.max(at, video.at), reason, delivery });
}

/**
 * A packet of that version lists it: it is stored, whatever this device has heard of that.
 *
 * @param {Sent} video
 * @param {Outgoing} entry
 * @param {number} version
 */
function sentSeen(video, entry, version) {
  const silence = Math.min(video.silence ?? Infinity, version + 1);
  const { video_id, status, at } = entry;
  return replaced(moved(video, status, { at }), { video_id, listed: true, silence, delivery: null });
}

/**
 * A packet of that version does not list it.
 *
 * @param {Sent} video
 * @param {number} version
 */
function sentUnseen(video, version) {
  const unlisted = replaced(video, { listed: false });
  const complete = video.silence !== null && version >= video.silence;
  return complete ? moved(unlisted, SentStatus.COMPLETE) : unlisted;
}

/**
 * The gateway has answered that it is uploaded. `version`: of the packet that was applied last.
 *
 * @param {Sent} video
 * @param {Result} result
 * @param {number} version
 */
function sentConfirmed(video, { outcome, version: from, reason }, version) {
  if (outcome === Outcome.IGNORED) {
    const over = replaced(video, { delivery: null, over_at: Math.max(video.over_at, from) });
    return moved(over, video.silence === null ? SentStatus.FAILED : SentStatus.COMPLETE, { reason });
  }
  const silence = Math.min(video.silence ?? Infinity, from);
  const confirmed = replaced(moved(video, SentStatus.UPLOADED), { delivery: null, silence });
  return confirmed.listed ? confirmed : sentUnseen(confirmed, version);
}

// --- A received video

/** How far the statuses of a received video are. @type {ReadonlyMap<Status, number>} */
const REACHED = new Map([
  [Status.UPLOADED, 0],
  [Status.NOTIFIED, 1],
  [Status.DOWNLOADED, 2],
  [Status.VIEWED, 3],
]);

/** @param {Status} status */
function reached(status) {
  return REACHED.get(status) ?? Infinity;
}

/**
 * What a received video is to its recipient.
 *
 * @param {Received} video
 * @returns {ReceivedStatus}
 */
export function receivedStatus(video) {
  if (video.here) return ReceivedStatus.READY;
  return video.listed ? ReceivedStatus.ARRIVED : ReceivedStatus.GONE;
}

/**
 * The status that the gateway is still to be told. That it was viewed is said until that is answered, listed or not: a
 * repetition may complete what was cut short.
 *
 * @param {Received} video
 * @returns {Status | null}
 */
function unsaid(video) {
  if (video.viewed) return video.known === Status.VIEWED ? null : Status.VIEWED;
  return video.here && video.listed && video.known === Status.UPLOADED ? Status.DOWNLOADED : null;
}

/**
 * A packet of that version lists it. Where that packet is from before an answer, the answer counts.
 *
 * @param {Received} video
 * @param {Incoming} entry
 * @param {number} version
 */
function receivedSeen(video, entry, version) {
  const known = version >= video.known_at ? entry.status : video.known;
  return replaced(video, { known, listed: true, at: entry.at });
}

/**
 * The gateway has answered to that status; packets from `version` on show it.
 *
 * @param {Received} video
 * @param {Status} status
 * @param {number} version
 */
function receivedSaid(video, status, version) {
  const known = reached(status) > reached(video.known) ? status : video.known;
  return replaced(video, { known, known_at: Math.max(video.known_at, version) });
}

/**
 * Whether nothing is to be done about it any more, nor to be told of it.
 *
 * @param {Received} video
 */
function isOver(video) {
  if (video.listed || unsaid(video) !== null) return false;
  return video.viewed || (!video.here && (video.told === null || video.told === ReceivedStatus.GONE));
}

// --- What a device remembers

const FORMAT = 1;

/** A version that no packet has. */
const FOR_EVER = 2 ** 53;

/** So many sent videos that have ended may wait to be told of; the oldest beyond that are forgotten. */
const MOST_UNTOLD = 1_000;

/**
 * All that a device of a client remembers: what it sends and has received that is still in transit, and what it has to
 * say still. All of it is pure. A message is no entry of its own: what the gateway does not know yet is told from the
 * lists, and is said again until it is answered.
 */
export class Record {
  /**
   * @param {string} clientId
   * @param {string} deviceId
   */
  constructor(clientId, deviceId) {
    this.clientId = clientId;
    this.deviceId = deviceId;
    this.version = 0;
    /** By their keys. @type {Map<string, Sent>} */
    this.sent = new Map();
    /** By their ids. @type {Map<string, Received>} */
    this.received = new Map();
    /** By the ids of their videos. @type {Map<string, Deletion>} */
    this.deletions = new Map();
    /** @type {Registration | null} */
    this.registration = null;
    /** @type {readonly Farewell[]} */
    this.farewells = [];
    this.loggedOut = false;
    /** Whether that is more than what was stored last: whoever stores it says so. */
    this.changed = false;
  }

  // --- What the gateway says

  /**
   * Take in a packet.
   *
   * @param {Packet} packet
   * @returns {boolean} whether it was: one that is older than what was applied, or somebody else's, is dropped
   */
  apply(packet) {
    if (packet.client_id !== this.clientId || packet.version < this.version || this.loggedOut) return false;
    const { version, sent, received } = this;
    const before = { version, sent: new Map(sent), received: new Map(received) };
    this.version = packet.version;
    this.#applySent(packet);
    this.#applyReceived(packet);
    this.#tidy();
    // No deletion is over with the version that there was: what ends one is a newer version.
    this.changed ||=
      this.version !== before.version ||
      !areSame(this.sent, before.sent) ||
      !areSame(this.received, before.received);
    return true;
  }

  /** @param {Packet} packet */
  #applySent({ version, outgoing }) {
    const keys = new Map(Array.from(this.sent.values(), (video) => [video.video_id, video.key]));
    const shown = outgoing.filter((entry) => !this.deletions.has(entry.video_id));
    const listed = new Map(shown.map((entry) => [keys.get(entry.video_id) ?? entry.video_id, entry]));
    for (const [key, entry] of listed) {
      const video = this.sent.get(key) ?? made(SENT, { key, recipient_id: entry.recipient_id });
      this.sent.set(key, sentSeen(video, entry, version));
    }
    for (const [key, video] of this.sent) {
      if (!listed.has(key)) this.sent.set(key, sentUnseen(video, version));
    }
  }

  /** @param {Packet} packet */
  #applyReceived({ version, incoming }) {
    const listed = new Map(incoming.map((entry) => [entry.video_id, entry]));
    for (const [videoId, entry] of listed) {
      const video = this.received.get(videoId) ?? newlyReceived(entry);
      this.received.set(videoId, receivedSeen(video, entry, version));
    }
    for (const [videoId, video] of this.received) {
      if (!listed.has(videoId)) this.received.set(videoId, replaced(video, { listed: false }));
    }
  }

  /**
   * The gateway has answered to a status: the message is done.
   *
   * @param {Report} report
   * @param {Result} result
   */
  answered(report, result) {
    if (report.status === Status.UPLOADED) {
      const video = this.sentAs(report.video_id);
      if (video !== null && !hasEnded(video)) this.putSent(sentConfirmed(video, result, this.version));
    } else {
      this.#said(report, result.version);
    }
  }

  /**
   * The gateway will not have that status: the message ends, whatever packets list from now on.
   *
   * @param {Report} report
   * @param {string} reason
   */
  refused(report, reason) {
    if (report.status === Status.UPLOADED) {
      const video = this.sentAs(report.video_id);
      if (video !== null) this.fail(video.key, reason);
    } else {
      this.#said(report, FOR_EVER);
    }
  }

  /**
   * @param {Report} report
   * @param {number} version
   */
  #said({ video_id, status }, version) {
    const video = this.received.get(video_id);
    if (video !== undefined) this.#putReceived(receivedSaid(video, status, version));
  }

  /**
   * The gateway has answered that a video is deleted: packets from `version` on do not list it.
   *
   * @param {string} videoId
   * @param {number} version
   */
  deleted(videoId, version) {
    const deletion = this.deletions.get(videoId);
    if (deletion === undefined) return;
    this.deletions.set(videoId, replaced(deletion, { over_at: version }));
    this.#tidy();
    this.changed = true;
  }

  /**
   * The gateway has taken a registration.
   *
   * @param {Registration} registration the record's own, not one that is like it
   * @param {number} atS seconds since the epoch
   */
  registered(registration, atS) {
    if (this.registration !== registration) return;
    this.registration = replaced(registration, { answered_s: atS });
    this.changed = true;
  }

  /**
   * The gateway has been told of a log-out.
   *
   * @param {Farewell} farewell the record's own
   */
  left(farewell) {
    this.farewells = this.farewells.filter((other) => other !== farewell);
    this.changed = true;
  }

  // --- What the user does

  /**
   * A video is to be sent.
   *
   * @param {string} key
   * @param {string} recipientId
   * @param {Pick<Delivery, "source" | "size" | "content_type" | "sha256">} delivery
   */
  send(key, recipientId, delivery) {
    const queued = { delivery: made(DELIVERY, delivery), told: SentStatus.QUEUED };
    this.putSent(made(SENT, { key, recipient_id: recipientId, ...queued }));
  }

  /**
   * A video that is to be sent has an id now.
   *
   * @param {string} key
   * @param {string} videoId
   * @param {Upload} upload
   */
  announced(key, videoId, upload) {
    const video = this.sent.get(key);
    if (!video?.delivery) return;
    this.putSent(replaced(video, { video_id: videoId, delivery: deliveryAnnounced(video.delivery, upload) }));
  }

  /**
   * A sent video is to be deleted, wherever it is by now; nothing happens where there is none.
   *
   * @param {string} key
   */
  delete(key) {
    const video = this.sent.get(key);
    if (video === undefined) return;
    this.sent.delete(key);
    this.#cancel(video);
    this.changed = true;
  }

  /**
   * A video will not be sent.
   *
   * @param {string} key
   * @param {string} reason
   */
  fail(key, reason) {
    const video = this.sent.get(key);
    if (video === undefined || hasEnded(video)) return;
    this.#cancel(video); // an upload that has no answer may still arrive
    this.putSent(moved(video, SentStatus.FAILED, { reason }));
  }

  /**
   * The URL of an upload is of no use any more.
   *
   * @param {string} key
   */
  announceAnew(key) {
    const video = this.sent.get(key);
    if (!video?.delivery) return;
    if (video.delivery.late) this.#cancel(video);
    const delivery = replaced(video.delivery, { step: "announce", upload: null });
    this.putSent(replaced(video, { video_id: null, delivery }));
  }

  /**
   * Have the gateway delete whatever it may have of it.
   *
   * @param {Sent} video
   */
  #cancel({ video_id, recipient_id, status }) {
    if (video_id === null || status === SentStatus.COMPLETE || status === SentStatus.FAILED) return;
    this.deletions.set(video_id, made(DELETION, { recipient_id }));
  }

  /**
   * The bytes of a received video are on this device.
   *
   * @param {string} videoId
   */
  arrived(videoId) {
    const video = this.received.get(videoId);
    if (video !== undefined) this.#putReceived(replaced(video, { here: true }));
  }

  /**
   * The user has seen a received video. Nothing happens where there is none, or where it ended meanwhile.
   *
   * @param {string} videoId
   */
  viewed(videoId) {
    const video = this.received.get(videoId);
    if (video === undefined || video.viewed) return;
    const known = video.listed ? video.known : Status.VIEWED; // one that has ended is the gateway's matter no more
    this.#putReceived(replaced(video, { viewed: true, told: receivedStatus(video), known }));
  }

  /**
   * This device is to be woken like this from now on; null: the app is to say again how.
   *
   * @param {Pick<Registration, "platform" | "token"> & Partial<Registration> | null} registration
   */
  register(registration) {
    this.registration = registration && made(REGISTRATION, registration);
    this.changed = true;
  }

  /**
   * Forget everything of this client, but for what the gateway is to be told with this token.
   *
   * @param {string} token
   * @param {{ endsAccount?: boolean }} [options]
   */
  logOut(token, { endsAccount = false } = {}) {
    const farewell = made(FAREWELL, {
      client_id: this.clientId,
      device_id: this.deviceId,
      token,
      ends_account: endsAccount,
      reports: Object.freeze(endsAccount ? [] : [...this.reports()]),
      deletions: Object.freeze(endsAccount ? [] : [...this.unansweredDeletions()]),
    });
    this.farewells = [...this.farewells, farewell];
    this.#forget();
    this.loggedOut = true;
  }

  /**
   * This client uses the device from now on, or nobody does (null): what was another's is forgotten, log-outs apart.
   *
   * @param {string | null} clientId
   * @param {string | null} deviceId
   */
  logIn(clientId, deviceId) {
    const loggedOut = clientId === null || deviceId === null;
    if (loggedOut === this.loggedOut && clientId === this.clientId && deviceId === this.deviceId) return;
    this.#forget();
    this.clientId = clientId || this.clientId;
    this.deviceId = deviceId || this.deviceId;
    this.loggedOut = loggedOut;
  }

  #forget() {
    this.version = 0;
    this.registration = null;
    this.sent.clear();
    this.received.clear();
    this.deletions.clear();
    this.changed = true;
  }

  // --- What is to be said and told

  /**
   * The statuses that the gateway has not answered.
   *
   * @returns {Generator<Report>}
   */
  *reports() {
    for (const video of this.received.values()) {
      const status = unsaid(video);
      if (status !== null) yield made(REPORT, { video_id: video.video_id, status });
    }
    for (const { video_id, recipient_id, delivery } of this.sent.values()) {
      const confirms = delivery?.step === "confirm" && video_id !== null;
      if (confirms) yield made(REPORT, { video_id, status: Status.UPLOADED, recipient_id });
    }
  }

  /**
   * The videos that the gateway is still to delete, and their recipients.
   *
   * @returns {Generator<readonly [videoId: string, recipientId: string]>}
   */
  *unansweredDeletions() {
    for (const [videoId, { recipient_id, over_at }] of this.deletions) {
      if (over_at === null) yield Object.freeze(/** @type {const} */ ([videoId, recipient_id]));
    }
  }

  /**
   * What the app is to be told next.
   *
   * @returns {Change | null}
   */
  untold() {
    for (const { key, video_id, recipient_id: peer_id, status, at, reason, told } of this.sent.values()) {
      if (told !== status) return Object.freeze({ key, video_id, peer_id, status, at, reason });
    }
    for (const video of this.received.values()) {
      const { video_id, sender_id: peer_id, at } = video;
      const status = receivedStatus(video);
      if (video.told !== status && !video.viewed) {
        return Object.freeze({ key: video_id, video_id, peer_id, status, at, reason: null });
      }
    }
    return null;
  }

  /**
   * The app has taken in a change.
   *
   * @param {Change} change
   */
  told({ key, status }) {
    if (isOfSent(status)) {
      const video = this.sent.get(key);
      if (video !== undefined) this.putSent(replaced(video, { told: status }));
    } else {
      const video = this.received.get(key);
      if (video !== undefined) this.#putReceived(replaced(video, { told: status }));
    }
  }

  // --- Entries

  /**
   * The sent video with that id, or null.
   *
   * @param {string} videoId
   */
  sentAs(videoId) {
    for (const video of this.sent.values()) {
      if (video.video_id === videoId) return video;
    }
    return null;
  }

  /**
   * Put a sent video in the place of the one with its key.
   *
   * @param {Sent} video
   */
  putSent(video) {
    this.sent.set(video.key, video);
    this.#tidy();
    this.changed = true;
  }

  /** @param {Received} video */
  #putReceived(video) {
    this.received.set(video.video_id, video);
    this.#tidy();
    this.changed = true;
  }

  /** Forget what is over and has been told. */
  #tidy() {
    const over = [...this.sent.values()].filter((video) => this.#isOver(video));
    const untold = over.filter((video) => video.told !== video.status);
    const tooMany = new Set(untold.slice(0, Math.max(0, untold.length - MOST_UNTOLD)));
    for (const video of over) {
      if (video.told === video.status || tooMany.has(video)) this.sent.delete(video.key);
    }
    for (const video of this.received.values()) {
      if (isOver(video)) this.received.delete(video.video_id);
    }
    for (const [videoId, { over_at }] of this.deletions) {
      if (over_at !== null && this.version >= over_at) this.deletions.delete(videoId);
    }
  }

  /** @param {Sent} video */
  #isOver(video) {
    return hasEnded(video) && !video.listed && this.version >= video.over_at;
  }

  // --- As it is stored

  /** As JSON, the same that the client for Python writes. It holds secrets: tokens, and URLs that uploads go to. */
  encode() {
    return encoded(
      Object.entries({
        format: FORMAT,
        client_id: this.clientId,
        device_id: this.deviceId,
        version: this.version,
        sent: [...this.sent.values()],
        received: [...this.received.values()],
        deletions: this.deletions,
        registration: this.registration,
        farewells: this.farewells,
        logged_out: this.loggedOut,
      }),
    );
  }

  /**
   * Throws NotUnderstood for what is none.
   *
   * @param {string} text
   */
  static decode(text) {
    return readable("not a device's record", () => {
      const fields = Fields.parse(text);
      if (fields.number("format") !== FORMAT) throw new NotUnderstood("a record of another format");
      const record = new Record(fields.text("client_id"), fields.text("device_id"));
      record.version = fields.number("version");
      record.sent = by("key", fields.list("sent").map(storedSent));
      record.received = by("video_id", fields.list("received").map(storedReceived));
      fields.fields("deletions"); // is an object: what is in it is read from the text, in its order
      record.deletions = storedDeletions(verbatim(text, "deletions"));
      record.registration = orNull(fields.value("registration"), (entry) => made(REGISTRATION, entry));
      record.farewells = fields.list("farewells").map(storedFarewell);
      record.loggedOut = fields.flag("logged_out");
      return record;
    });
  }
}

/**
 * @param {SentStatus | ReceivedStatus} status
 * @returns {status is SentStatus}
 */
function isOfSent(status) {
  return RANK.has(/** @type {SentStatus} */ (status));
}

/**
 * @param {ReadonlyMap<string, unknown>} some
 * @param {ReadonlyMap<string, unknown>} others
 */
function areSame(some, others) {
  return some.size === others.size && [...some].every(([key, entry]) => entry === others.get(key));
}

/** @param {Incoming} entry */
function newlyReceived({ video_id, sender_id, size, content_type, at }) {
  return made(RECEIVED, { video_id, sender_id, size, content_type, at });
}

/**
 * Entries by one of their members.
 *
 * @template {string} K
 * @template {{ readonly [name in K]: string }} T
 * @param {K} name
 * @param {readonly T[]} entries
 */
function by(name, entries) {
  return new Map(entries.map((entry) => [entry[name], entry]));
}

/**
 * @template T
 * @param {unknown} value
 * @param {(value: unknown) => T} read
 */
function orNull(value, read) {
  return value === null ? null : read(value);
}

/** @param {unknown} members */
function storedSent(members) {
  const fields = new Fields(members);
  const status = fields.oneOf("status", Object.values(SentStatus));
  const told = orNull(fields.value("told"), () => fields.oneOf("told", Object.values(SentStatus)));
  const delivery = orNull(fields.value("delivery"), storedDelivery);
  return made(SENT, { .../** @type {Sent} */ (members), status, told, delivery });
}

/** @param {unknown} members */
function storedDelivery(members) {
  const fields = new Fields(members);
  const step = fields.oneOf("step", /** @type {const} */ (["announce", "upload", "confirm"]));
  const upload = orNull(fields.value("upload"), (entry) => made(UPLOAD, entry));
  return made(DELIVERY, { .../** @type {Delivery} */ (members), step, upload });
}

/** @param {unknown} members */
function storedReceived(members) {
  const fields = new Fields(members);
  const known = fields.oneOf("known", STATUSES);
  const told = orNull(fields.value("told"), () => fields.oneOf("told", Object.values(ReceivedStatus)));
  return made(RECEIVED, { .../** @type {Received} */ (members), known, told });
}

/** @param {string} text */
function storedDeletions(text) {
  return new Map(Array.from(membersOf(text), ([videoId, entry]) => [videoId, made(DELETION, parsed(entry))]));
}

/** @param {unknown} members */
function storedFarewell(members) {
  const fields = new Fields(members);
  const reports = fields.entries("reports").map(storedReport);
  const deletions = fields.list("deletions").map(storedPair);
  const lists = { reports: Object.freeze(reports), deletions: Object.freeze(deletions) };
  return made(FAREWELL, { .../** @type {Farewell} */ (members), ...lists });
}

/** @param {Fields} fields */
function storedReport(fields) {
  const recipient_id = orNull(fields.value("recipient_id"), () => fields.text("recipient_id"));
  return made(REPORT, { video_id: fields.text("video_id"), status: fields.oneOf("status", STATUSES), recipient_id });
}

/**
 * @param {unknown} value
 * @returns {readonly [video_id: string, recipient_id: string]}
 */
function storedPair(value) {
  if (!Array.isArray(value) || value.length !== 2) throw new NotUnderstood("no pair");
  return Object.freeze(/** @type {[string, string]} */ (value));
}

// --- What takes time, as the core decides it and its driver carries it out. `op`: what is done at most once at a time.

/**
 * Report all this, and get the packet.
 *
 * @typedef {Readonly<{ kind: "sync", op: string, reports: readonly Report[], version: number }>} Sync
 */

/**
 * Get the packet that is newer than `version`, within `wait_s` seconds.
 *
 * @typedef {Readonly<{ kind: "poll", op: string, version: number, wait_s: number }>} Poll
 */

/**
 * Open a socket, and take in what comes until it ends. `version`: what that acknowledges.
 *
 * @typedef {Readonly<{ kind: "connect", op: string, version: number }>} Connect
 */

/**
 * Report this over the socket.
 *
 * @typedef {Readonly<{ kind: "tell", op: string, report: Report }>} Tell
 */

/**
 * Announce a video.
 *
 * @typedef {Readonly<{
 *   kind: "announce",
 *   op: string,
 *   key: string,
 *   recipient_id: string,
 *   delivery: Delivery,
 * }>} Announce
 */

/**
 * Upload the bytes of a video.
 *
 * @typedef {Readonly<{ kind: "put", op: string, key: string, source: string, announced: Announced }>} Put
 */

/**
 * Have a sent video deleted.
 *
 * @typedef {Readonly<{ kind: "delete", op: string, video_id: string, recipient_id: string }>} Delete
 */

/**
 * Fetch the bytes of a received video.
 *
 * @typedef {Readonly<{ kind: "download", op: string, video_id: string }>} Download
 */

/**
 * Have this device woken with that token.
 *
 * @typedef {Readonly<{ kind: "register", op: string, registration: Registration }>} Register
 */

/**
 * Say with the token that goes with it what was unsaid at a log-out, and then the log-out.
 *
 * @typedef {Readonly<{ kind: "leave", op: string, farewell: Farewell }>} Leave
 */

/**
 * What takes time, and of which the core is told how it ended: `answered`, `registered`, `failed`, and `closed` for a
 * socket.
 *
 * @typedef {Sync | Poll | Connect | Tell | Announce | Put | Delete | Download | Register | Leave} Task
 */

/**
 * Say over the socket that the packet of this version is applied. There is no answer to that.
 *
 * @typedef {Readonly<{ kind: "acknowledge", version: number }>} Acknowledge
 */

/**
 * Give up a task that is under way; the core wants to hear no more of it.
 *
 * @typedef {Readonly<{ kind: "abandon", task: Task }>} Abandon
 */

/** @typedef {Task | Acknowledge | Abandon} Action */

/**
 * What a task may end with that went well.
 *
 * @typedef {Synced | Packet | Result | Announced | null} Answer
 */

/**
 * @template {Action} T
 * @param {T} members
 * @returns {T}
 */
function action(members) {
  return Object.freeze(members);
}

// --- What a good client does, and when

const BACKOFF = new Backoff({ baseS: 0.5, capS: 60, deadlineS: Infinity });

/** Videos that are announced or uploaded at the same time, of one recipient only one: they are to arrive in order. */
const MOST_UPLOADS = 2;

/** Videos that are fetched at the same time. */
const MOST_DOWNLOADS = 2;

/** Statuses in one sync. */
const MOST_REPORTS = 256;

/** So many statuses go by the socket; more are a sync, which is one message. */
const FEW_REPORTS = 16;

/** How long a socket that is being opened may hold up what would else be a call. */
const SOCKET_FIRST_S = 2;

/** After so many sockets that got no answer from a gateway, where calls do, polls are held instead. */
const SOCKET_TRIES = 3;

/** For so long; then a socket is tried again. */
const POLLS_S = 300;

/** A socket that was open for so long is no reason to wait before the next one. */
const STEADY_S = 30;

/** How long a poll is held. */
const HELD_S = 50;

/**
 * How long news that came by a call may stay without an acknowledgement of its own: most often a status that
 * acknowledges it too is sent before.
 */
const ACKNOWLEDGE_S = 2;

/**
 * How long the packet that an answer speaks of may stay away from a socket before the gateway is asked for it: it may
 * have got lost on its way to the gateway's process.
 */
const EXPECTED_S = 5;

/** A registration that the gateway answered longer ago than this is repeated when the app asks for it again. */
export const AGAIN_S = 86_400;

/** So many things that failed are remembered; the oldest are tried again without a pause. */
const MOST_PAUSES = 1_000;

/** Why a video fails whose bytes are not as they were when it was to be sent. */
const UNREADABLE = "unreadable";

/**
 * After a failure: how many there were in a row, until when nothing is tried, and until when the gateway asked for
 * that.
 *
 * @typedef {{ tries: number, untilS: number, askedS: number }} Pause
 */

/**
 * The socket and what there is instead of it.
 *
 * @typedef {{
 *   task: Connect | null,
 *   beganS: number,
 *   openedS: number | null,
 *   stopped: boolean,
 *   unanswered: number,
 *   unansweredSinceS: number,
 *   pollsUntilS: number,
 * }} Socket
 */

/**
 * What a good client does, and when: packets, answers and the time go in, what is to be done comes out. No I/O.
 *
 * Whoever drives a core tells it everything that happens, and after each thing asks `next` what is to be begun. The
 * record is stored first, if it has `changed`: then a device that is killed at any moment goes on where it was.
 */
export class Core {
  #clock;
  #jitter;
  #backoff;
  /** What is under way, by its op. @type {Map<string, Task>} */
  #tasks = new Map();
  /** @type {Map<string, Pause>} */
  #pauses = new Map();
  /** @type {Socket} */
  #socket = {
    task: null,
    beganS: 0,
    openedS: null,
    stopped: false,
    unanswered: 0,
    unansweredSinceS: 0,
    pollsUntilS: 0,
  };
  #foreground = false;
  #online = true;
  #stale = true;
  #acked = 0;
  #news = 0;
  #acknowledgeAtS = Infinity;
  /** Videos whose download was refused. @type {Set<string>} */
  #doubted = new Set();
  #expected = 0;
  #expectedAtS = Infinity;
  #calledS = -Infinity;
  /** @type {Task[]} */
  #abandoned = [];

  /**
   * @param {Record} record
   * @param {{ clock: () => number, jitter?: () => number, backoff?: Backoff }} options `clock`: seconds, of any clock
   * that does not go back. `jitter`: random numbers from 0 to 1.
   */
  constructor(record, { clock, jitter = Math.random, backoff = BACKOFF }) {
    this.record = record;
    /** When to ask `next` again at the latest, whatever happens till then. */
    this.nextS = Infinity;
    this.#clock = clock;
    this.#jitter = jitter;
    this.#backoff = backoff;
  }

  // --- What the phone and its user do. What the user does to videos is told to the record.

  /**
   * The app is in the foreground now, or is no more.
   *
   * @param {boolean} active
   */
  foreground(active) {
    if (active && !this.#foreground) {
      this.#lookAfresh();
      this.#trySockets();
    }
    this.#foreground = active;
  }

  /**
   * The phone has a network now, a new one perhaps, or has none.
   *
   * @param {boolean} online
   */
  network(online) {
    this.#giveUp("socket"); // of a network that is gone
    this.#giveUp("poll");
    this.#online = online;
    if (online) {
      this.#lookAfresh();
      this.#trySockets();
    }
  }

  /**
   * A push arrived: with the packet or without, whoever gets one syncs. And there is a network.
   *
   * @param {Packet | null} packet
   */
  pushed(packet) {
    this.#online = true;
    if (packet !== null) this.#apply(packet);
    this.#lookAfresh();
  }

  /** Whatever kept the app from holding a socket may be over. */
  #trySockets() {
    this.#socket.stopped = false;
    this.#socket.pollsUntilS = 0;
  }

  /** Ask the gateway soon, and try at once whatever waits after a failure, unless the gateway asked for that. */
  #lookAfresh() {
    this.#stale = true;
    const asked = [...this.#pauses].filter(([, { askedS }]) => askedS > this.#clock());
    this.#pauses = new Map(asked.map(([op, { askedS }]) => [op, { tries: 0, untilS: askedS, askedS }]));
  }

  /** Whether the gateway is to be asked, and has not been. */
  get stale() {
    return this.#stale;
  }

  /** Whether nothing is under way but what waits for news. */
  get quiet() {
    const waits = this.#acknowledgeAtS < Infinity || (this.#stale && this.#ready("sync"));
    return !waits && [...this.#tasks.values()].every(({ kind }) => kind === "connect" || kind === "poll");
  }

  // --- What is to be done

  /**
   * What to begin now, once the record is stored. All that is returned counts as begun.
   *
   * @returns {Action[]}
   */
  next() {
    this.nextS = Infinity;
    /** @type {Action[]} */
    const actions = this.#unwanted().map((task) => action({ kind: "abandon", task }));
    if (this.#online) {
      for (const task of this.#wanted()) {
        this.#tasks.set(task.op, task);
        actions.push(task);
      }
      actions.push(...this.#acknowledgement());
    }
    return actions;
  }

  /** What is under way, and of no use any more. */
  #unwanted() {
    for (const task of [...this.#tasks.values()]) {
      if (!this.#isOfUse(task)) this.#giveUp(task.op);
    }
    const unwanted = this.#abandoned;
    this.#abandoned = [];
    return unwanted;
  }

  /** @param {Task} task */
  #isOfUse(task) {
    const { record } = this;
    if (task.kind === "leave") return true;
    if (record.loggedOut) return false;
    switch (task.kind) {
      case "connect":
        return this.#foreground;
      case "poll":
        return this.#foreground || task.wait_s === 0;
      case "announce":
      case "put":
        return Boolean(record.sent.get(task.key)?.delivery);
      case "download": {
        const received = record.received.get(task.video_id);
        return received !== undefined && received.listed && !received.here;
      }
      default:
        // A registration too, though another has been asked for: two under way could overtake each other.
        return true;
    }
  }

  /** @returns {Generator<Task>} */
  *#wanted() {
    const { record } = this;
    if (record.farewells.length > 0) {
      if (this.#ready("leave")) yield action({ kind: "leave", op: "leave", farewell: record.farewells[0] });
      // What this client said when it left comes before what it says now.
      if (record.farewells.some((farewell) => farewell.client_id === record.clientId)) return;
    }
    if (record.loggedOut) return;
    if (this.#foreground && !this.#socket.stopped && this.#due(this.#socket.pollsUntilS)) yield* this.#connect();
    yield* this.#messages();
    yield* this.#sends();
    for (const [video_id, recipient_id] of record.unansweredDeletions()) {
      const op = `delete:${video_id}`;
      if (this.#ready(op)) yield action({ kind: "delete", op, video_id, recipient_id });
    }
    yield* this.#registers();
    yield* this.#downloads();
  }

  /** @returns {Generator<Task>} */
  *#connect() {
    if (!this.#ready("socket")) return;
    this.#socket.task = action({ kind: "connect", op: "socket", version: this.record.version });
    this.#socket.beganS = this.#clock();
    yield this.#socket.task;
  }

  /** @returns {Generator<Task>} */
  *#messages() {
    if (this.#due(this.#expectedAtS)) {
      this.#expectedAtS = Infinity;
      this.#stale = true;
    }
    const { version } = this.record;
    let reports = [...this.record.reports()].filter((report) => this.#sayable(report));
    if (this.#isOpen && reports.length <= FEW_REPORTS) {
      for (const report of reports) yield action({ kind: "tell", op: `tell:${report.video_id}`, report });
      reports = [];
    }
    const wanted = reports.length > 0 || this.#stale;
    if (wanted && this.#ready("sync") && !this.#socketComes()) {
      this.#stale = false;
      yield action({ kind: "sync", op: "sync", reports: Object.freeze(reports.slice(0, MOST_REPORTS)), version });
    }
    if (this.#polls && this.#ready("poll")) {
      yield action({ kind: "poll", op: "poll", version, wait_s: HELD_S });
    } else if (this.#due(this.#acknowledgeAtS) && this.#ready("poll")) {
      yield action({ kind: "poll", op: "poll", version, wait_s: 0 });
    }
  }

  get #isOpen() {
    return this.#socket.openedS !== null;
  }

  /** Whether polls are held, since no socket gets through. */
  get #polls() {
    return this.#foreground && (this.#socket.stopped || this.#clock() < this.#socket.pollsUntilS);
  }

  /**
   * Whether to send this now: it is not on its way, nor waits after a failure, nor are its bytes being sent.
   *
   * @param {Report} report
   */
  #sayable(report) {
    const sync = this.#tasks.get("sync");
    if (sync?.kind === "sync" && sync.reports.some((other) => isSameReport(other, report))) return false;
    if (report.status === Status.UPLOADED) {
      const video = this.record.sentAs(report.video_id);
      if (video === null || this.#tasks.has(`send:${video.key}`)) return false;
    }
    return this.#ready(`tell:${report.video_id}`);
  }

  /** Whether a socket is about to be open, which then brings what a call would. */
  #socketComes() {
    return this.#socket.task !== null && !this.#isOpen && !this.#due(this.#socket.beganS + SOCKET_FIRST_S);
  }

  /** @returns {Generator<Task>} */
  *#sends() {
    const recipients = new Set();
    let room = MOST_UPLOADS - this.#count("announce", "put");
    for (const video of [...this.record.sent.values()]) {
      const { key, recipient_id, delivery } = video;
      if (delivery === null || recipients.has(recipient_id)) continue;
      recipients.add(recipient_id);
      const op = `send:${key}`;
      if (room > 0 && delivery.step !== "confirm" && this.#ready(op)) {
        room -= 1;
        if (delivery.step === "announce") yield action({ kind: "announce", op, key, recipient_id, delivery });
        else yield* this.#put(op, video);
      }
    }
  }

  /**
   * @param {string} op
   * @param {Sent} video
   * @returns {Generator<Task>}
   */
  *#put(op, video) {
    const { key, video_id, recipient_id, delivery } = video;
    if (video_id === null || !delivery?.upload) return;
    this.record.putSent(replaced(video, { delivery: deliveryUploading(delivery) }));
    const { source, size, upload } = delivery;
    const announced = Object.freeze({ video_id, recipient_id, size, upload });
    yield action({ kind: "put", op, key, source, announced });
  }

  /** @returns {Generator<Task>} */
  *#registers() {
    const { registration } = this.record;
    if (registration !== null && registration.answered_s === null && this.#ready("register")) {
      yield action({ kind: "register", op: "register", registration });
    }
  }

  /** @returns {Generator<Task>} */
  *#downloads() {
    let room = MOST_DOWNLOADS - this.#count("download");
    for (const { video_id, listed, here, viewed } of this.record.received.values()) {
      if (!listed || here || viewed || this.#doubted.has(video_id)) continue;
      const op = `download:${video_id}`;
      if (room > 0 && this.#ready(op)) {
        room -= 1;
        yield action({ kind: "download", op, video_id });
      }
    }
  }

  /** @param {...Task["kind"]} kinds */
  #count(...kinds) {
    return [...this.#tasks.values()].filter(({ kind }) => kinds.includes(kind)).length;
  }

  /** @returns {Action[]} */
  #acknowledgement() {
    const { version } = this.record;
    if (!this.#isOpen || version <= this.#acked) return [];
    this.#hasAcked(version);
    return [action({ kind: "acknowledge", version })];
  }

  /**
   * Whether to begin with this: it is not under way, and waits for nothing.
   *
   * @param {string} op
   */
  #ready(op) {
    if (this.#tasks.has(op)) return false;
    const pause = this.#pauses.get(op);
    return pause === undefined || this.#due(pause.untilS);
  }

  /**
   * Whether that time has come; if not, it is thought of.
   *
   * @param {number} atS
   */
  #due(atS) {
    if (this.#clock() >= atS) return true;
    this.nextS = Math.min(this.nextS, atS);
    return false;
  }

  // --- What became of it

  /**
   * The socket is open.
   *
   * @param {Connect} task
   */
  opened(task) {
    if (this.#tasks.get(task.op) !== task) return;
    this.#socket.openedS = this.#clock();
    this.#hasAcked(task.version);
    // A packet comes, if there is a newer one. Where there is none, nobody has said what became of refused downloads.
    this.#stale = this.#doubted.size > 0;
  }

  /**
   * A packet came over the socket.
   *
   * @param {Connect} task
   * @param {Packet} packet
   */
  came(task, packet) {
    if (this.#tasks.get(task.op) === task) this.#apply(packet);
  }

  /**
   * A task went well, and this is what came of it: Synced of a sync, Packet or null of a poll, Result of a tell or a
   * deletion, Announced of an announcement, null of all others.
   *
   * @param {Task} task
   * @param {Answer} [answer]
   */
  answered(task, answer = null) {
    if (!this.#ended(task)) return;
    this.#pauses.delete(task.op);
    if (task.kind !== "put" && task.kind !== "download") this.#calledS = this.#clock();
    switch (task.kind) {
      case "sync":
        this.#doubted.clear();
        this.#synced(task, /** @type {Synced} */ (answer));
        this.#hasAcked(task.version);
        break;
      case "poll":
        if (answer !== null) this.#apply(/** @type {Packet} */ (answer));
        this.#hasAcked(task.version);
        break;
      case "tell":
        this.#expect(/** @type {Result} */ (answer).version);
        this.record.answered(task.report, /** @type {Result} */ (answer));
        break;
      case "announce": {
        const { video_id, upload } = /** @type {Announced} */ (answer);
        this.record.announced(task.key, video_id, upload);
        break;
      }
      case "delete":
        this.#expect(/** @type {Result} */ (answer).version);
        this.record.deleted(task.video_id, /** @type {Result} */ (answer).version);
        break;
      case "download":
        this.record.arrived(task.video_id);
        break;
      case "leave":
        this.record.left(task.farewell);
        break;
      default: // of the others there is nothing to remember
    }
  }

  /**
   * The gateway has taken the registration.
   *
   * @param {Register} task
   * @param {number} atS seconds since the epoch
   */
  registered(task, atS) {
    if (!this.#ended(task)) return;
    this.#pauses.delete(task.op);
    this.#calledS = this.#clock();
    this.record.registered(task.registration, atS);
  }

  /**
   * A task failed. What is no GatewayError is a fault of this phone: a file that cannot be read, a full disk.
   *
   * @param {Task} task
   * @param {unknown} error
   */
  failed(task, error) {
    if (!this.#ended(task)) return;
    const known = error instanceof GatewayError ? error : new GatewayError(null, null, "a fault of this phone");
    this.#pause(task.op, known.retryAfterS);
    switch (task.kind) {
      case "sync":
        this.#stale = true;
        break;
      case "connect":
        this.#stale = true;
        this.#noSocket(known.code !== null);
        break;
      case "tell":
        this.#notTold(task.report, known);
        break;
      case "put":
        this.#notPut(task, error);
        break;
      case "download":
        if (known.remedy === Remedy.POLL) {
          this.#doubted.add(task.video_id);
          this.#stale = true;
        }
        break;
      case "leave":
        if (known.remedy === Remedy.RENEW) this.record.left(task.farewell); // there is no other token to try it with
        else if (known.remedy === Remedy.NONE) this.#refused(task, String(known.code));
        break;
      case "announce":
      case "delete":
      case "register":
        if (known.remedy === Remedy.NONE) this.#refused(task, String(known.code));
        break;
      default: // a poll that failed has nothing to be undone
    }
  }

  /**
   * The same again would be refused again; something else need not wait for it.
   *
   * @param {Announce | Delete | Register | Leave} task
   * @param {string} code
   */
  #refused(task, code) {
    this.#pauses.delete(task.op);
    switch (task.kind) {
      case "announce":
        this.record.fail(task.key, code);
        break;
      case "delete":
        this.record.deleted(task.video_id, this.record.version);
        break;
      case "register":
        if (this.record.registration === task.registration) this.record.register(null);
        break;
      case "leave":
        this.record.left(task.farewell);
    }
  }

  /**
   * The socket was open, and has ended.
   *
   * @param {Connect} task
   * @param {SocketClosed} closed
   */
  closed(task, closed) {
    const { openedS } = this.#socket;
    if (!this.#ended(task)) return;
    const steady = openedS !== null && this.#clock() - openedS >= STEADY_S;
    if (steady) this.#pauses.delete(task.op);
    this.#noSocket(steady || closed.code !== LOST);
    if (closed.remedy === Remedy.NONE) {
      // A client that is to be mended can still ask. So can one whose socket was displaced: by another app that says it
      // is this device, or by a socket of its own that it gave up long ago and that was opened late.
      this.#socket.stopped = true;
    } else if (closed.retryS !== null) {
      const untilS = this.#clock() + closed.retryS;
      this.#pauses.set(task.op, { tries: 0, untilS, askedS: untilS });
    } else {
      this.#pause(task.op, null);
    }
  }

  /**
   * Take note that a task has ended; whether anybody still wants to know.
   *
   * @param {Task} task
   */
  #ended(task) {
    if (this.#tasks.get(task.op) !== task) return false;
    this.#drop(task.op);
    return true;
  }

  /** @param {string} op */
  #drop(op) {
    this.#tasks.delete(op);
    if (op === "socket") this.#socket.task = this.#socket.openedS = null;
  }

  /** @param {string} op */
  #giveUp(op) {
    const task = this.#tasks.get(op);
    if (task === undefined) return;
    this.#drop(op);
    this.#abandoned.push(task);
  }

  /**
   * @param {string} op
   * @param {number | null} retryAfterS
   */
  #pause(op, retryAfterS) {
    if (this.#pauses.size >= MOST_PAUSES) {
      const [oldest] = this.#pauses.keys();
      this.#pauses.delete(oldest);
    }
    const tries = (this.#pauses.get(op)?.tries ?? 0) + 1;
    const nowS = this.#clock();
    const untilS = nowS + this.#backoff.pauseS(tries, retryAfterS, this.#jitter());
    this.#pauses.set(op, { tries, untilS, askedS: nowS + (retryAfterS ?? 0) });
  }

  /** @param {number} version */
  #hasAcked(version) {
    this.#acked = Math.max(this.#acked, version);
    if (this.#acked >= this.#news) this.#acknowledgeAtS = Infinity;
  }

  /**
   * There is a packet of that version.
   *
   * @param {number} version
   */
  #expect(version) {
    this.#expected = Math.max(this.#expected, version);
    if (this.#expected > this.record.version) {
      this.#expectedAtS = Math.min(this.#expectedAtS, this.#clock() + EXPECTED_S);
    }
  }

  /** @param {Packet} packet */
  #apply(packet) {
    const { record } = this;
    const before = record.version;
    if (!record.apply(packet)) return;
    if (record.version >= this.#expected) this.#expectedAtS = Infinity;
    const isNews = [...record.received.values()].some((video) => video.listed && video.known === Status.UPLOADED);
    if (isNews && record.version > before && !this.#isOpen) {
      this.#news = record.version;
      this.#acknowledgeAtS = Math.min(this.#acknowledgeAtS, this.#clock() + ACKNOWLEDGE_S);
    }
  }

  /**
   * @param {Sync} task
   * @param {Synced} synced
   */
  #synced(task, { results, packet }) {
    for (const [index, report] of task.reports.entries()) {
      const op = `tell:${report.video_id}`;
      const { error } = results[index];
      if (error !== null) {
        this.#pause(op, error.retryAfterS);
        this.#notTold(report, error);
      } else {
        this.#pauses.delete(op);
        this.record.answered(report, results[index]);
      }
    }
    this.#apply(packet);
  }

  /**
   * @param {Report} report
   * @param {GatewayError} error
   */
  #notTold(report, error) {
    if (error.remedy === Remedy.UPLOAD) {
      const video = this.record.sentAs(report.video_id);
      if (video?.delivery) this.record.putSent(replaced(video, { delivery: deliveryNotStored(video.delivery) }));
    } else if (error.remedy === Remedy.NONE) {
      this.record.refused(report, String(error.code));
    }
  }

  /**
   * @param {Put} task
   * @param {unknown} error
   */
  #notPut(task, error) {
    const video = this.record.sent.get(task.key);
    if (!video?.delivery) return;
    if (!(error instanceof GatewayError)) {
      this.record.fail(task.key, UNREADABLE);
    } else if (error.remedy === Remedy.ANNOUNCE) {
      this.record.announceAnew(task.key);
    } else {
      this.record.putSent(replaced(video, { delivery: deliveryNotUploaded(video.delivery, error) }));
    }
  }

  /**
   * A socket could not be opened, or has ended. Where again and again no gateway says why, though calls are answered,
   * something on the way lets none through.
   *
   * @param {boolean} answered
   */
  #noSocket(answered) {
    const socket = this.#socket;
    if (answered) {
      socket.unanswered = 0;
      return;
    }
    if (socket.unanswered === 0) socket.unansweredSinceS = this.#clock();
    socket.unanswered += 1;
    if (socket.unanswered >= SOCKET_TRIES && this.#calledS >= socket.unansweredSinceS) {
      socket.unanswered = 0;
      socket.pollsUntilS = this.#clock() + POLLS_S;
    }
  }
}

/**
 * @param {Report} some
 * @param {Report} other
 */
function isSameReport(some, other) {
  return (
    some.video_id === other.video_id && some.status === other.status && some.recipient_id === other.recipient_id
  );
}
