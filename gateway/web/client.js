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

// --- Time

/**
 * What `work` gives. Its signal aborts when `signal` does, when nothing has moved for that many seconds, and at the
 * end.
 *
 * @template T
 * @param {number} seconds
 * @param {AbortSignal | undefined} signal
 * @param {(signal: AbortSignal, moved: () => void) => Promise<T>} work says when something has moved
 * @returns {Promise<T>}
 */
async function within(seconds, signal, work) {
  signal?.throwIfAborted();
  const over = new AbortController();
  const stop = () => over.abort(new DOMException("it took too long", "TimeoutError"));
  let timer = setTimeout(stop, seconds * 1000);
  const moved = () => {
    clearTimeout(timer);
    if (!over.signal.aborted) timer = setTimeout(stop, seconds * 1000);
  };
  try {
    return await work(signal ? AbortSignal.any([signal, over.signal]) : over.signal, moved);
  } finally {
    clearTimeout(timer);
    over.abort();
  }
}

/**
 * What comes of a promise, unless the signal aborts before.
 *
 * @template T
 * @param {Promise<T>} promise
 * @param {AbortSignal | undefined} signal
 * @returns {Promise<T>}
 */
function unlessAborted(promise, signal) {
  if (!signal) return promise;
  return new Promise((resolve, reject) => {
    const stop = () => reject(signal.reason);
    signal.addEventListener("abort", stop, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
    if (signal.aborted) stop();
  });
}

/**
 * @param {number} seconds
 * @param {AbortSignal} signal
 * @returns {Promise<void>} rejected once the signal aborts
 */
function sleep(seconds, signal) {
  let timer = /** @type {ReturnType<typeof setTimeout> | undefined} */ (undefined);
  const slept = new Promise((/** @type {(value: void) => void} */ resolve) => {
    timer = setTimeout(resolve, seconds * 1000);
  });
  return unlessAborted(slept, signal).finally(() => clearTimeout(timer));
}

/** Wakes whoever waits. What rings while nobody waits is heard by the next who does. */
class Bell {
  #rung = false;
  /** @type {(() => void)[]} */
  #waiting = [];

  ring() {
    this.#rung = true;
    for (const wake of this.#waiting.splice(0)) wake();
  }

  async rung() {
    if (!this.#rung) await new Promise((/** @type {(value: void) => void} */ wake) => this.#waiting.push(wake));
    this.#rung = false;
  }
}

// --- How calls are made: to the gateway with its token, to signed URLs without it

/** How long a call may take unless a client is told otherwise; a held poll may take its wait longer. */
export const CALL_S = 20;

/** How long bytes of a video may fail to move before the transfer is given up. */
export const STALL_S = 60;

/**
 * A bearer token, or what gets one: it is asked again after a 401.
 *
 * @typedef {string | (() => string | Promise<string>)} Token
 */

/**
 * Told how many bytes have moved, and how many there are.
 *
 * @typedef {(soFar: number, size: number) => void} Progress
 */

/** @typedef {Readonly<{ [name: string]: string }>} Texts */

/** @typedef {Readonly<{ status: number, text: string, retryAfter: string | null }>} Reply */

/**
 * What calls are made with.
 *
 * @typedef {Readonly<{
 *   callS: number,
 *   fetch: typeof globalThis.fetch,
 *   WebSocket: typeof globalThis.WebSocket,
 *   XMLHttpRequest: typeof globalThis.XMLHttpRequest | undefined,
 * }>} Means
 */

/**
 * @typedef {object} Asked
 * @property {Texts} [query]
 * @property {Texts} [headers]
 * @property {object} [body]
 * @property {number} [heldS] how much longer than other calls it may take
 * @property {AbortSignal} [signal]
 * @property {new (status: number | null, code: string | null, detail: string) => GatewayError} [kind] of its errors
 */

/**
 * Nothing goes along with a call that it does not name, nothing is kept of its answer, and nobody sends it elsewhere.
 *
 * @type {RequestInit}
 */
const ALONE = { credentials: "omit", referrerPolicy: "no-referrer", cache: "no-store", redirect: "error" };

/** @param {number} status */
const succeeded = (status) => status >= 200 && status < 300;

/** @param {unknown} failure */
const nameOf = (failure) => (failure instanceof Error ? failure.name : typeof failure);

const nothing = () => {};

/**
 * What `work` gives, within that time (see `within`). What it throws becomes an error of that kind: no answer came.
 * What the caller's signal aborts with is thrown as it is.
 *
 * @template T
 * @param {new (status: null, code: null, detail: string) => GatewayError} kind
 * @param {number} seconds
 * @param {AbortSignal | undefined} signal
 * @param {(signal: AbortSignal, moved: () => void) => Promise<T>} work
 * @returns {Promise<T>}
 */
async function reaching(kind, seconds, signal, work) {
  try {
    return await within(seconds, signal, work);
  } catch (failure) {
    signal?.throwIfAborted();
    // Neither chained nor quoted, only named: it may hold the token or the signed URL.
    throw failure instanceof GatewayError ? failure : new kind(null, null, nameOf(failure));
  }
}

/**
 * What `read` makes of an answer. A success that does not read as one came from something else on the way: an error
 * without a code.
 *
 * @template T
 * @param {Reply} answer
 * @param {(text: string) => T} read
 */
function understood({ status, text }, read) {
  try {
    return read(text);
  } catch (error) {
    if (!(error instanceof NotUnderstood)) throw error;
    throw new GatewayError(status, null, "the answer is not what the protocol says");
  }
}

/** The token in use, and where the next one comes from, which may take `withinS` seconds. */
class Bearer {
  #source;
  #withinS;
  /** @type {string | null} */
  #current = null;
  /** @type {Promise<string> | null} */
  #coming = null;

  /**
   * @param {Token} source
   * @param {number} withinS
   */
  constructor(source, withinS) {
    this.#source = source;
    this.#withinS = withinS;
  }

  /**
   * What comes of trying with the token; once more with a new one where it is refused and can be renewed.
   *
   * @template T
   * @param {(token: string) => Promise<T>} attempt
   * @param {AbortSignal | undefined} signal
   */
  async accepted(attempt, signal) {
    const token = await unlessAborted(this.token(), signal);
    try {
      return await attempt(token);
    } catch (error) {
      const renewable = error instanceof GatewayError && error.status === 401 && typeof this.#source === "function";
      if (!renewable) throw error;
    }
    return attempt(await unlessAborted(this.token(token), signal));
  }

  /**
   * The token in use, or a new one where that is the one that was refused. Calls that fail together share it.
   *
   * @param {string | null} insteadOf
   * @returns {Promise<string>}
   */
  async token(insteadOf = null) {
    if (this.#coming === null && (this.#current === null || this.#current === insteadOf)) {
      this.#coming = this.#get().finally(() => (this.#coming = null));
    }
    return this.#coming ?? /** @type {string} */ (this.#current);
  }

  async #get() {
    const source = this.#source;
    const got = async () => (typeof source === "function" ? source() : source);
    const token = await reaching(GatewayError, this.#withinS, undefined, (signal) => unlessAborted(got(), signal));
    // A header cannot carry anything else; what would refuse it otherwise repeats it in its message.
    if (!/^[!-~]+$/.test(token)) throw new TypeError("the token is empty, or no header can carry its characters");
    this.#current = token;
    return token;
  }
}

/** Calls to one gateway, and to the signed URLs that it hands out. */
class Calls {
  #address;
  #bearer;
  #means;

  /**
   * @param {string} address
   * @param {Token} token
   * @param {Means} means
   */
  constructor(address, token, means) {
    this.#address = address;
    this.#bearer = new Bearer(token, means.callS);
    this.#means = means;
  }

  /** @param {string | null} insteadOf */
  token(insteadOf) {
    return this.#bearer.token(insteadOf);
  }

  /**
   * The answer of a call that succeeded; once more with a new token where the one it had is refused.
   *
   * @param {string} method
   * @param {string} path
   * @param {Asked} [asked]
   */
  call(method, path, asked = {}) {
    return this.#bearer.accepted((token) => this.#attempt(token, method, path, asked), asked.signal);
  }

  /**
   * A socket that the gateway has opened; likewise.
   *
   * A browser does not show what a handshake was refused with, nor whether anybody answered. A poll that says no more
   * than the handshake did is refused for the same reason.
   *
   * @param {Texts} query
   * @param {string} version
   * @param {() => boolean} loggedOut
   * @param {AbortSignal | undefined} signal
   * @returns {Promise<Live>}
   */
  socket(query, version, loggedOut, signal) {
    const { WebSocket, callS } = this.#means;
    const url = this.#url("/v1/ws", query).replace(/^http/, "ws");
    return this.#bearer.accepted(async (token) => {
      const live = await reaching(GatewayError, callS, signal, (signal) => {
        const socket = new WebSocket(url, [SUBPROTOCOL, `bearer.${token}`]);
        return new Live(socket, { callS, loggedOut }).opened(signal);
      });
      if (live !== null) return live;
      await this.#attempt(token, "GET", "/v1/poll", { query, headers: { "if-none-match": `"${version}"` }, signal });
      throw new GatewayError(null, null, "no socket gets through");
    }, signal);
  }

  /**
   * Hands each piece of an answer on as it comes, with at most `idleS` seconds between them.
   *
   * @param {string} path
   * @param {number} idleS
   * @param {AbortSignal | undefined} signal
   * @param {(bytes: Uint8Array) => void} take
   */
  async stream(path, idleS, signal, take) {
    const headers = { authorization: `Bearer ${await this.token(null)}` };
    await reaching(GatewayError, idleS, signal, async (signal, moved) => {
      const response = await this.#means.fetch(this.#url(path), { ...ALONE, headers, signal });
      if (!response.ok) throw await refusal(response, GatewayError);
      for await (const bytes of piecesOf(response)) {
        moved();
        take(bytes);
      }
    });
  }

  /**
   * Store the bytes at a signed URL. The call goes without the token, which is none of the store's business.
   *
   * @param {Announced} announced
   * @param {Source} source
   * @param {Progress} progress
   * @param {AbortSignal | undefined} signal
   */
  async upload({ upload, size }, source, progress, signal) {
    const { XMLHttpRequest, fetch } = this.#means;
    const bytes = new Counted(source, size);
    try {
      const answer = await reaching(UploadError, STALL_S, signal, (signal, moved) => {
        const told = (/** @type {number} */ soFar) => {
          moved();
          progress(soFar, size);
        };
        return source instanceof Blob && XMLHttpRequest
          ? putByRequest(new XMLHttpRequest(), upload, source, told, signal)
          : putByStream(fetch, upload, bytes.read(told), size, signal);
      });
      if (succeeded(answer.status) || answer.status === 412) return; // 412: the store has them already
      throw problem(answer.status, answer.text, answer.retryAfter, UploadError);
    } catch (error) {
      throw bytes.fault ?? error;
    }
  }

  /**
   * Fetch the bytes at a signed URL, behind those that are there; how many they are.
   *
   * @param {string} url
   * @param {Part} part
   * @param {Progress} progress
   * @param {AbortSignal | undefined} signal
   */
  download(url, part, progress, signal) {
    const have = part.size;
    const headers = { "accept-encoding": "identity", ...(have ? { range: `bytes=${have}-` } : {}) };
    return reaching(DownloadError, STALL_S, signal, async (signal, moved) => {
      const response = await this.#means.fetch(url, { ...ALONE, headers, signal });
      return received(response, part, have, (soFar, size) => {
        moved();
        progress(soFar, size);
      });
    });
  }

  /**
   * @param {string} token
   * @param {string} method
   * @param {string} path
   * @param {Asked} asked
   * @returns {Promise<Reply>}
   */
  async #attempt(token, method, path, { query, headers, body, heldS = 0, signal, kind = GatewayError }) {
    const { callS, fetch } = this.#means;
    const typed = body === undefined ? null : { "content-type": "application/json" };
    const request = {
      ...ALONE,
      method,
      headers: { ...headers, ...typed, authorization: `Bearer ${token}` },
      body: body === undefined ? null : JSON.stringify(body),
    };
    const answer = await reaching(kind, callS + heldS, signal, async (signal) => {
      return answerOf(await fetch(this.#url(path, query), { ...request, signal }));
    });
    if (succeeded(answer.status) || answer.status === 304) return answer;
    throw problem(answer.status, answer.text, answer.retryAfter, kind);
  }

  /**
   * @param {string} path
   * @param {Texts} [query]
   */
  #url(path, query) {
    return this.#address + path + (query ? `?${new URLSearchParams(query)}` : "");
  }
}

/**
 * @param {Response} response
 * @returns {Promise<Reply>}
 */
async function answerOf(response) {
  return { status: response.status, text: await response.text(), retryAfter: response.headers.get("retry-after") };
}

/**
 * The error that an answer is.
 *
 * @param {Response} response
 * @param {new (status: number | null, code: string | null, detail: string) => GatewayError} kind
 */
async function refusal(response, kind) {
  const { status, text, retryAfter } = await answerOf(response);
  return problem(status, text, retryAfter, kind);
}

/**
 * The body of an answer, piece by piece as it comes.
 *
 * @param {Response} response
 */
async function* piecesOf(response) {
  if (response.body === null) return;
  const reader = response.body.getReader(); // not every browser iterates over streams
  for (let read = await reader.read(); !read.done; read = await reader.read()) yield read.value;
}

// --- The bytes of videos, up and down: counted, and resumed where they broke off

const CHUNK_BYTES = 256 * 1024;

/**
 * The bytes of a video. What is no Blob is good for one try, and needs a `fetch` that sends streams over HTTP/1.1, as
 * Node's does.
 *
 * @typedef {Blob | AsyncIterable<Uint8Array>} Source
 */

/**
 * What has come of a video, and is kept until it is whole. What was appended is there for the next try once `keep` has
 * returned.
 *
 * @typedef {object} Part
 * @property {number} size how many bytes are there
 * @property {(bytes: Uint8Array<ArrayBuffer>) => Promise<void>} append
 * @property {() => Promise<void>} keep
 * @property {() => Promise<void>} clear removes them all
 */

/** The bytes of a source, counted as they are read. `fault`: why that failed, which `fetch` does not tell. */
class Counted {
  /** @type {unknown} */
  fault = null;
  #source;
  #size;

  /**
   * @param {Source} source throws where it has not as many bytes as were announced
   * @param {number} size
   */
  constructor(source, size) {
    if (source instanceof Blob && source.size !== size) throw new RangeError(miscounted(size, source.size));
    this.#source = source;
    this.#size = size;
  }

  /** @param {(soFar: number) => void} told */
  async *read(told) {
    let soFar = 0;
    try {
      for await (const bytes of this.#source instanceof Blob ? piecesOf(new Response(this.#source)) : this.#source) {
        soFar += bytes.length;
        if (soFar > this.#size) throw new RangeError(miscounted(this.#size, soFar));
        yield bytes;
        told(soFar);
      }
      if (soFar < this.#size) throw new RangeError(miscounted(this.#size, soFar));
    } catch (fault) {
      this.fault = fault;
      throw fault;
    }
  }
}

/**
 * @param {number} size
 * @param {number} found
 */
const miscounted = (size, found) => `${size} bytes were announced, and the source has ${found > size ? "more" : found}`;

/**
 * Upload with progress, as only XMLHttpRequest has it in browsers.
 *
 * @param {XMLHttpRequest} request
 * @param {Announced["upload"]} upload
 * @param {Blob} blob
 * @param {(soFar: number) => void} told
 * @param {AbortSignal} signal
 * @returns {Promise<Reply>}
 */
function putByRequest(request, { method, url, headers }, blob, told, signal) {
  return new Promise((resolve, reject) => {
    request.open(method, url);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = ({ loaded }) => told(loaded);
    request.onload = () => {
      const { status, responseText } = request;
      resolve({ status, text: responseText, retryAfter: request.getResponseHeader("retry-after") });
    };
    request.onerror = () => reject(new DOMException("no answer", "NetworkError"));
    request.onabort = () => reject(signal.reason);
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(blob);
  });
}

/**
 * @param {typeof globalThis.fetch} fetch
 * @param {Announced["upload"]} upload
 * @param {AsyncIterable<Uint8Array>} bytes
 * @param {number} size
 * @param {AbortSignal} signal
 */
async function putByStream(fetch, { method, url, headers }, bytes, size, signal) {
  const request = {
    ...ALONE,
    method,
    headers: { ...headers, "content-length": String(size) },
    body: /** @type {BodyInit} */ (/** @type {unknown} */ (bytes)),
    duplex: "half",
    signal,
  };
  return answerOf(await fetch(url, request));
}

/**
 * Append what comes to a part that has `have` bytes, where that is what comes; how many it then has.
 *
 * @param {Response} response
 * @param {Part} part
 * @param {number} have
 * @param {Progress} progress
 */
async function received(response, part, have, progress) {
  const { start, size } = await extentOf(response, have);
  if (response.status === 416) {
    if (start === size) return size;
    await part.clear(); // it is longer than the video, so it is none of it
    throw new DownloadError(416, null, "what was there already is not of this video, and was removed");
  }
  if (have && start === 0) await part.clear();
  let soFar = start;
  try {
    for await (const bytes of piecesOf(response)) {
      await part.append(bytes);
      soFar += bytes.length;
      progress(soFar, size);
    }
  } finally {
    await part.keep();
  }
  if (soFar !== size) throw new DownloadError(null, null, `${soFar} of ${size} bytes came`);
  return size;
}

/**
 * Where in the video the bytes begin that come, and how many it has in all (RFC 9110, section 14.4).
 *
 * @param {Response} response
 * @param {number} have
 */
async function extentOf(response, have) {
  const { status, headers } = response;
  const [, from, whole] = /^bytes (?:(\d+)-\d+|\*)\/(\d+)$/.exec(headers.get("content-range") ?? "") ?? [];
  const length = headers.get("content-length") ?? "";
  if (status === 200 && /^\d+$/.test(length)) return { start: 0, size: Number(length) };
  if (status === 206 && from === String(have)) return { start: have, size: Number(whole) };
  if (status === 416 && whole && have) return { start: have, size: Number(whole) };
  if (succeeded(status)) throw new DownloadError(status, null, "the answer does not say which bytes it has");
  throw await refusal(response, DownloadError);
}

// --- Live delivery: packets as they come over a WebSocket, and what goes back by it

const SUBPROTOCOL = "info.v1";

/** What this side has found wrong (RFC 6455, section 7.4.1). Browsers let an app send only codes of its own. */
const PROTOCOL_ERROR = 1002;
const PROTOCOL_ERROR_OF_APPS = 4002;

/**
 * A socket. Iterating over it gives the packets as they come: while nobody asks, only the newest is kept.
 *
 * The iteration never just ends: it throws SocketClosed. Calls throw GatewayError; one whose answer the end of the
 * socket took away is to be repeated, over another one or over HTTP.
 */
export class Live {
  #socket;
  #callS;
  #loggedOut;
  #asks = 0;
  /** @type {Map<unknown, { resolve: (text: string) => void, reject: (error: GatewayError) => void }>} */
  #asked = new Map();
  /** @type {Packet | null} */
  #newest = null;
  #isOpen = false;
  /** @type {{ code: number, reason: string } | null} */
  #over = null;
  #stirred = new Bell();

  /**
   * @param {WebSocket} socket one that has just been asked for
   * @param {{ callS: number, loggedOut: () => boolean }} options
   */
  constructor(socket, { callS, loggedOut }) {
    this.#socket = socket;
    this.#callS = callS;
    this.#loggedOut = loggedOut;
    socket.onopen = () => this.#begin();
    socket.onmessage = ({ data }) => this.#hear(data);
    socket.onclose = ({ code, reason }) => this.#end(code, reason);
  }

  /**
   * Itself, once it is open, or null where it does not open.
   *
   * @param {AbortSignal} signal gives it up
   */
  async opened(signal) {
    const abort = () => this.abort();
    signal.addEventListener("abort", abort);
    while (!this.#isOpen && this.#over === null) await this.#stirred.rung();
    signal.removeEventListener("abort", abort);
    return this.#isOpen ? this : null;
  }

  /** @returns {AsyncGenerator<Packet, never>} */
  async *[Symbol.asyncIterator]() {
    for (;;) yield await this.next();
  }

  /** The next packet. Throws SocketClosed once there is none and never will be. */
  async next() {
    while (this.#newest === null) {
      if (this.#over !== null) throw this.#closed();
      await this.#stirred.rung();
    }
    const packet = this.#newest;
    this.#newest = null;
    return packet;
  }

  /**
   * This device has applied the packet of that version. There is no answer to that.
   *
   * @param {number} version
   */
  async acknowledge(version) {
    this.#send({ type: "ack", version });
  }

  /**
   * A video that was received has been `notified`, `downloaded` or `viewed`.
   *
   * @param {string} videoId
   * @param {Status} status
   */
  report(videoId, status) {
    return this.tell({ video_id: videoId, status, recipient_id: null });
  }

  /**
   * The upload is done.
   *
   * @param {string} videoId
   * @param {string} recipientId
   */
  confirm(videoId, recipientId) {
    return this.tell({ video_id: videoId, status: Status.UPLOADED, recipient_id: recipientId });
  }

  /**
   * Whichever of the two it is.
   *
   * @param {Report} report
   * @param {{ signal?: AbortSignal }} [options]
   * @returns {Promise<Result>}
   */
  async tell(report, { signal } = {}) {
    const text = await this.#ask({ type: "status", ...reportMembers(report) }, signal);
    try {
      return parseResult(text, report.video_id);
    } catch {
      throw new GatewayError(null, null, "the answer is not what the protocol says");
    }
  }

  /**
   * Have the socket last as long as this token does, which is of the same client and device.
   *
   * @param {string} token
   * @param {{ signal?: AbortSignal }} [options]
   */
  async renew(token, { signal } = {}) {
    await this.#ask({ type: "token", token }, signal);
  }

  /** Close it. Nothing comes any more, and whoever waits is told so. */
  close() {
    this.#part(1000, "", 1000);
  }

  /** Give it up, as one whose network is gone. */
  abort() {
    this.#part(LOST, "");
  }

  /**
   * The answer to a message, found by its id.
   *
   * @param {object} message
   * @param {AbortSignal | undefined} signal
   * @returns {Promise<string>}
   */
  async #ask(message, signal) {
    this.#asks += 1;
    const id = this.#asks;
    try {
      return await reaching(GatewayError, this.#callS, signal, (signal) => {
        const answer = new Promise((/** @type {(text: string) => void} */ resolve, reject) => {
          this.#asked.set(id, { resolve, reject });
        });
        this.#send({ ...message, id });
        return unlessAborted(answer, signal);
      });
    } finally {
      this.#asked.delete(id);
    }
  }

  /** @param {object} message */
  #send(message) {
    if (this.#over !== null) throw this.#unanswered();
    this.#socket.send(JSON.stringify(message)); // after a close frame that is not told yet it goes nowhere
  }

  #begin() {
    this.#isOpen = this.#socket.protocol === SUBPROTOCOL;
    this.#stirred.ring();
    if (!this.#isOpen) this.abort(); // something else speaks there
  }

  /** @param {unknown} data */
  #hear(data) {
    try {
      if (typeof data !== "string") throw new NotUnderstood("a binary message");
      this.#take(data);
    } catch (error) {
      if (!(error instanceof NotUnderstood)) throw error;
      this.#part(PROTOCOL_ERROR, "a message is not what the protocol says", PROTOCOL_ERROR_OF_APPS);
    }
  }

  /** @param {string} text */
  #take(text) {
    const fields = Fields.parse(text);
    const waiting = this.#asked.get(fields.value("id"));
    switch (fields.text("type")) {
      case "info":
        this.#newest = parsePacket(text);
        this.#stirred.ring();
        break;
      case "result":
        waiting?.resolve(text);
        break;
      case "error":
        waiting?.reject(refused(fields));
        break;
    }
  }

  /**
   * End it from this side.
   *
   * @param {number} code
   * @param {string} reason
   * @param {number} [said] with which code; with none, without a word
   */
  #part(code, reason, said) {
    if (this.#over !== null) return;
    this.#end(code, reason);
    this.#socket.close(said);
  }

  /**
   * @param {number} code
   * @param {string} reason
   */
  #end(code, reason) {
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#over = { code, reason };
    this.#stirred.ring();
    for (const waiting of this.#asked.values()) waiting.reject(this.#unanswered());
  }

  #closed() {
    const { code, reason } = this.#over ?? { code: LOST, reason: "" };
    return new SocketClosed(code, reason, { loggedOut: this.#loggedOut() });
  }

  /** The error of a call that got no answer, since the socket was closed. */
  #unanswered() {
    const closed = this.#closed();
    if (closed.code === 4401) return new GatewayError(401, "unauthorized", closed.reason);
    return new GatewayError(null, null, closed.message);
  }
}

// --- The client: one method for each call of the protocol, and what this device has applied

/**
 * @typedef {object} ClientOptions
 * @property {string | null} [deviceId] without one, nothing is acknowledged (unless the token is bound to a device)
 * @property {string | null} [clientId] whose packets to believe; without one, whose packet the gateway answers with
 * first
 * @property {number} [version] of the packet that the device applied last, where it remembers
 * @property {number} [callS] how long a call may take, the wait of a held poll not counted
 * @property {typeof globalThis.fetch} [fetch] what to call with
 * @property {typeof globalThis.WebSocket} [WebSocket]
 * @property {typeof globalThis.XMLHttpRequest} [XMLHttpRequest] what to upload Blobs with, where there is one
 */

/**
 * One device of one account.
 *
 * Every call throws GatewayError, and what its `signal` was aborted with. None repeats itself, but for once after a
 * 401, where the token can be renewed.
 */
export class Client {
  #calls;
  #means;
  #version;
  #loggedOut = false;

  /**
   * @param {string} address such as `https://gateway.example.com`
   * @param {Token} token
   * @param {ClientOptions} [options]
   */
  constructor(address, token, options = {}) {
    const { deviceId = null, clientId = null, version = 0, ...means } = options;
    this.address = address.replace(/\/+$/, "");
    this.deviceId = deviceId;
    this.clientId = clientId;
    this.#version = version;
    this.#means = means;
    this.#calls = new Calls(this.address, token, {
      callS: CALL_S,
      fetch: (...request) => globalThis.fetch(...request),
      WebSocket: globalThis.WebSocket,
      XMLHttpRequest: globalThis.XMLHttpRequest,
      ...means,
    });
  }

  /**
   * A client that speaks for another account or device by the same means.
   *
   * @param {string} clientId
   * @param {string} deviceId
   * @param {Token} token
   */
  speakingFor(clientId, deviceId, token) {
    return new Client(this.address, token, { ...this.#means, clientId, deviceId });
  }

  /**
   * The token in use, or a new one where it is that one; the same again where there is no other.
   *
   * @param {{ insteadOf?: string | null }} [options]
   */
  token({ insteadOf = null } = {}) {
    return this.#calls.token(insteadOf);
  }

  // What has been applied

  /** The version of the packet that was applied last: what the next call acknowledges. */
  get version() {
    return this.#version;
  }

  /**
   * Whether this packet is to be applied: it is this client's, and not older than what was applied.
   *
   * @param {Packet} packet
   */
  wants(packet) {
    return packet.client_id === (this.clientId ?? packet.client_id) && packet.version >= this.#version;
  }

  /**
   * This device has applied the packet of that version, as it remembers.
   *
   * @param {number} version
   */
  remembers(version) {
    this.#version = Math.max(this.#version, version);
  }

  /**
   * This device has applied that packet; the next call says so. Throws RangeError for one that it does not want.
   *
   * @param {Packet} packet
   */
  applied(packet) {
    if (!this.wants(packet)) {
      throw new RangeError("this packet is older than what was applied, or somebody else's: it is to be dropped");
    }
    this.clientId = packet.client_id;
    this.#version = packet.version;
  }

  // Senders

  /**
   * Announce an upload of `size` bytes; nothing is stored yet. `sha256`: of the bytes, in lower-case hex.
   *
   * @param {string} recipientId
   * @param {{ size: number, contentType?: string, sha256?: string | null, signal?: AbortSignal }} options
   * @returns {Promise<Announced>}
   */
  async announce(recipientId, { size, contentType = "video/mp4", sha256 = null, signal }) {
    const announced = { recipient_id: recipientId, size, content_type: contentType };
    const body = sha256 === null ? announced : { ...announced, sha256 };
    const answer = await this.#calls.call("POST", "/v1/videos", { body, signal });
    return understood(answer, (text) => parseAnnounced(text, recipientId, size));
  }

  /**
   * Store the bytes; they are stored too where the store has them already.
   *
   * Throws UploadError, and whatever the source does; RangeError where it has not as many bytes as were announced.
   *
   * @param {Announced} announced
   * @param {Source} source
   * @param {{ progress?: Progress, signal?: AbortSignal }} [options]
   */
  async upload(announced, source, { progress = nothing, signal } = {}) {
    await this.#calls.upload(announced, source, progress, signal);
  }

  /**
   * The upload is done.
   *
   * @param {string} videoId
   * @param {string} recipientId
   */
  confirm(videoId, recipientId) {
    return this.#report({ video_id: videoId, status: Status.UPLOADED, recipient_id: recipientId });
  }

  /**
   * Cancel a video that this client sent, in whatever state, and have its bytes deleted.
   *
   * @param {string} videoId
   * @param {string} recipientId
   * @param {{ signal?: AbortSignal }} [options]
   * @returns {Promise<Result>}
   */
  async delete(videoId, recipientId, { signal } = {}) {
    const asked = { query: { recipient_id: recipientId }, signal };
    const answer = await this.#calls.call("DELETE", `/v1/videos/${encodeURIComponent(videoId)}`, asked);
    return understood(answer, (text) => parseResult(text, videoId));
  }

  // Recipients

  /**
   * A video that was received has been `notified`, `downloaded` or `viewed`.
   *
   * @param {string} videoId
   * @param {Status} status
   */
  report(videoId, status) {
    return this.#report({ video_id: videoId, status, recipient_id: null });
  }

  /**
   * Fetch the bytes of a video that are not there yet; how many it has. Throws DownloadError, after which the next try
   * goes on from what came.
   *
   * @param {string} videoId
   * @param {Part} part
   * @param {{ progress?: Progress, signal?: AbortSignal }} [options]
   * @returns {Promise<number>}
   */
  async download(videoId, part, { progress = nothing, signal } = {}) {
    // Asked for as JSON: whoever follows a redirect does not learn where to, and takes the token along.
    const asked = { headers: { accept: "application/json" }, kind: DownloadError, signal };
    const answer = await this.#calls.call("GET", `/v1/videos/${encodeURIComponent(videoId)}/content`, asked);
    const url = understood(answer, (text) => Fields.parse(text).text("url"));
    return this.#calls.download(url, part, progress, signal);
  }

  // Everybody

  /**
   * The info packet; null where it is not newer than version `known`, for `wait` seconds if need be.
   *
   * @param {number | null} [known]
   * @param {{ wait?: number | null, signal?: AbortSignal }} [options]
   * @returns {Promise<Packet | null>}
   */
  async poll(known = null, { wait = null, signal } = {}) {
    /** @type {Texts} */
    const headers = known === null ? {} : { "if-none-match": `"${known}"` };
    const query = wait === null ? this.#seen() : { ...this.#seen(), wait: String(wait) };
    const answer = await this.#calls.call("GET", "/v1/poll", { query, headers, heldS: wait ?? 0, signal });
    if (answer.status === 304) return null;
    return this.#learned(understood(answer, parsePacket));
  }

  /**
   * Report all that is still to be reported (at most 256), and get the packet that includes it.
   *
   * @param {readonly Report[]} [reports]
   * @param {{ signal?: AbortSignal }} [options]
   * @returns {Promise<Synced>}
   */
  async sync(reports = [], { signal } = {}) {
    const device = this.deviceId === null ? {} : { device_id: this.deviceId };
    const body = { statuses: reports.map(reportMembers), version: this.#version, ...device };
    const answer = await this.#calls.call("POST", "/v1/sync", { body, signal });
    const synced = understood(answer, (text) => parseSynced(text, reports));
    this.#learned(synced.packet);
    return synced;
  }

  /**
   * This client's packets as they come, over a socket that is open until it is closed.
   *
   * @param {number} [version] of the packet that this device has applied: it is acknowledged, and only newer ones come.
   * With 0, the newest comes first.
   * @param {{ signal?: AbortSignal }} [options] gives up opening it
   */
  live(version = 0, { signal } = {}) {
    this.#loggedOut = false;
    const query = { ...this.#seen(), version: String(version) };
    return this.#calls.socket(query, query.version, () => this.#loggedOut, signal);
  }

  /**
   * Have this device woken with that push token, instead of the one before.
   *
   * @param {Platform} platform
   * @param {string} pushToken
   * @param {Environment} [environment]
   * @param {{ signal?: AbortSignal }} [options]
   */
  async register(platform, pushToken, environment = "production", { signal } = {}) {
    const body = { platform, token: pushToken, environment };
    await this.#calls.call("PUT", this.#devicePath(), { body, signal });
  }

  /**
   * Log out: this device gets no more pushes, and its socket ends.
   *
   * @param {{ signal?: AbortSignal }} [options]
   */
  async unregister({ signal } = {}) {
    this.#loggedOut = true;
    await this.#calls.call("DELETE", this.#devicePath(), { signal });
  }

  /**
   * End the account: devices and sent videos go, received ones expire for their senders, sockets end.
   *
   * @param {{ signal?: AbortSignal }} [options]
   */
  async end({ signal } = {}) {
    this.#loggedOut = true;
    await this.#calls.call("DELETE", "/v1/client", { signal });
  }

  /**
   * Hands on what arrives at this registered device from now on, where the gateway sends its pushes to its own console.
   * Returns when the gateway ends that; throws GatewayError when nothing came for `idleS` seconds.
   *
   * @param {(push: Push, text: string) => void} arrived
   * @param {{ idleS?: number, signal?: AbortSignal }} [options]
   */
  async pushes(arrived, { idleS = 60, signal } = {}) {
    const decoder = new TextDecoder();
    let waiting = "";
    await this.#calls.stream(`${this.#devicePath()}/pushes`, idleS, signal, (bytes) => {
      const events = (waiting + decoder.decode(bytes, { stream: true })).split("\n\n");
      waiting = events.pop() ?? "";
      for (const event of events) {
        if (!event.startsWith("data: ")) continue;
        const text = event.slice("data: ".length);
        const push = parsePush(JSON.parse(text));
        queueMicrotask(() => arrived(push, text)); // what the app throws is no failure of ours
      }
    });
  }

  /**
   * @param {Report} report
   * @returns {Promise<Result>}
   */
  async #report(report) {
    const { video_id, ...body } = reportMembers(report);
    const path = `/v1/videos/${encodeURIComponent(video_id)}/status`;
    const answer = await this.#calls.call("POST", path, { query: this.#seen(), body });
    return understood(answer, (text) => parseResult(text, video_id));
  }

  /**
   * What this device has applied: the acknowledgement.
   *
   * @returns {Texts}
   */
  #seen() {
    const version = String(this.#version);
    return this.deviceId === null ? { version } : { version, device_id: this.deviceId };
  }

  /**
   * A client that was not told who it is believes the first packet.
   *
   * @param {Packet} packet
   */
  #learned(packet) {
    this.clientId ??= packet.client_id;
    return packet;
  }

  #devicePath() {
    if (this.deviceId === null) throw new TypeError("this client has no deviceId");
    return `/v1/devices/${encodeURIComponent(this.deviceId)}`;
  }
}

// --- The device: what its core decides is carried out, what it remembers is stored before

/** How long a push may keep an app awake: iOS gives it 30 s. */
const PUSH_S = 25;

/** So long before its token expires a socket is given a new one, and not more often. */
const RENEW_S = 20;

/**
 * So often a socket is given its token again: that has an answer. A browser shows an app neither the pings of the
 * gateway nor a network that is gone.
 */
const BEAT_S = 40;

/** After a record that could not be stored, before it is tried again. */
const REST_S = 1;

/** The longest time that a timer takes: 2^31 - 1 ms. */
const LONGEST_S = 2_147_483;

/**
 * Where a packet came from.
 *
 * @typedef {"socket" | "poll" | "sync" | "push"} Channel
 */

/**
 * @typedef {object} DeviceOptions
 * @property {(key: string, soFar: number, size: number) => void} [watch] sees bytes move: of which video (a sent one's
 * key, a received one's id), how many have, and how many there are
 * @property {(channel: Channel, packet: Packet, applied: boolean) => void} [heard] is told of every packet that came,
 * and whether it was applied: one that is older than what was, or somebody else's, is not
 * @property {boolean} [foreground] whether the app is, at first
 * @property {() => number} [clock] seconds since the epoch
 * @property {() => number} [jitter] random numbers from 0 to 1
 */

/**
 * One device of one account, from `open` to `close`, or as `await using`.
 *
 * What a method that is awaited was told is stored when it returns, and happens sooner or later, whatever becomes of
 * this process and of the network. A client that names no account is for an app in which nobody is logged in: its
 * device only says what a log-out left to be said.
 */
export class Device {
  #client;
  #store;
  #videos;
  #watch;
  #heard;
  #clock;
  #jitter;
  #foreground;
  #record = new Record("", "");
  #core = new Core(this.#record, { clock: uptimeS });
  /** @type {Live | null} */
  #live = null;
  /** @type {Map<Action, { ending: AbortController, ended: Promise<void> }>} */
  #running = new Map();
  /** Where the videos are that are being sent. @type {ReadonlySet<string>} */
  #sources = new Set();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #alarm;
  /** Who waits until the record is stored. @type {{ resolve: () => void, reject: (error: unknown) => void }[]} */
  #waiting = [];
  /** Who waits until the gateway is asked. @type {(() => void)[]} */
  #pushes = [];
  #isStoring = false;
  #isTelling = false;
  #stirred = new Bell();
  #news = new Bell();
  #round = new Bell();
  #closing = new AbortController();
  /** @type {Promise<void> | null} */
  #driving = null;
  /** @type {Promise<void> | null} */
  #closed = null;

  /**
   * @param {Client} client names the account and the device
   * @param {Store} store
   * @param {Videos} videos
   * @param {DeviceOptions} [options]
   */
  constructor(client, store, videos, options = {}) {
    const { watch = nothing, heard = nothing, foreground = true, clock = epochS, jitter = Math.random } = options;
    if (client.clientId !== null && client.deviceId === null) {
      throw new TypeError("this client does not say which device it speaks for");
    }
    this.#client = client;
    this.#store = store;
    this.#videos = videos;
    this.#watch = watch;
    this.#heard = heard;
    this.#clock = clock;
    this.#jitter = jitter;
    this.#foreground = foreground;
  }

  /** Go on where this device was; itself. Throws what the store does: StoreInUse, or a record that cannot be read. */
  async open() {
    if (this.#driving !== null) throw new TypeError("a device is opened once");
    this.#record = recordIn(await this.#loaded());
    this.#record.logIn(this.#client.clientId, this.#client.deviceId);
    this.#client.remembers(this.#record.version);
    this.#core = new Core(this.#record, { clock: uptimeS, jitter: this.#jitter });
    this.#core.foreground(this.#foreground);
    this.#sources = sourcesIn(this.#record);
    await this.#videos.retain?.(this.#sources)?.catch(nothing); // what it did not remove is there the next time
    this.#driving = this.#drive();
    this.#stir();
    return this;
  }

  /** End it. What is unsaid is said when it is opened again. Throws what the store does. */
  async close() {
    if (this.#driving !== null) await (this.#closed ??= this.#end(this.#driving));
  }

  [Symbol.asyncDispose]() {
    return this.close();
  }

  // What there is

  /** Of the packet that was applied last. */
  get version() {
    return this.#record.version;
  }

  /** The videos that this client sends or has sent, until they are over and that has been told. */
  get sent() {
    return [...this.#record.sent.values()];
  }

  /** The videos that this client has received, until they are viewed or have ended. */
  get received() {
    return [...this.#record.received.values()].filter((video) => !video.viewed);
  }

  /**
   * What changes, as it happens; of one video only the newest, where more came than was asked for. Ends with the
   * device.
   *
   * Nothing comes twice. What the app was told and had not taken in when it was killed, which it shows by asking for
   * the next, comes again when it is started anew. Throws TypeError for a second iteration at the same time.
   *
   * @returns {AsyncGenerator<Change, void>}
   */
  async *changes() {
    if (this.#isTelling) throw new TypeError("the changes of this device are being told already");
    this.#isTelling = true;
    try {
      while (!this.#closing.signal.aborted) {
        const change = await this.#untold();
        if (change === null) continue;
        yield change;
        if (this.#closing.signal.aborted) return;
        this.#record.told(change);
        await this.#kept();
      }
    } finally {
      this.#isTelling = false;
    }
  }

  /** Wait until the gateway has answered everything that this device has to say. Rejects where it is closed before. */
  async settled() {
    await this.#until(() => this.#isSettled, this.#closing.signal);
  }

  // What the user does

  /**
   * Have a video sent; what it is called from now on. Throws what `videos` does where it cannot be read.
   *
   * @param {string} source where `videos` finds its bytes, which stay as they are until the video is uploaded
   * @param {string} recipientId
   * @param {{ contentType?: string }} [options]
   * @returns {Promise<string>}
   */
  async send(source, recipientId, { contentType = "video/mp4" } = {}) {
    const { size, sha256 } = await this.#videos.measure(source);
    const key = randomName();
    this.#record.send(key, recipientId, { source, size, content_type: contentType, sha256 });
    await this.#kept();
    return key;
  }

  /**
   * Have a sent video deleted, in whatever state it is, and forget it; nothing happens where there is none.
   *
   * @param {string} key
   */
  async delete(key) {
    this.#record.delete(key);
    await this.#kept();
  }

  /**
   * The user has seen a received video. Its bytes on this device are the app's to remove.
   *
   * @param {string} videoId
   */
  async viewed(videoId) {
    this.#record.viewed(videoId);
    await this.#kept();
  }

  // What the phone does

  /**
   * Have this device woken with that token. An app says so at every start, as it is told the token: the gateway hears
   * of it where it is new, or where that is a day ago.
   *
   * @param {Platform} platform
   * @param {string} pushToken
   * @param {Environment} [environment]
   */
  async register(platform, pushToken, environment = "production") {
    const old = this.#record.registration;
    const isSame = old?.platform === platform && old.token === pushToken && old.environment === environment;
    const isFresh = old !== null && (old.answered_s === null || this.#clock() < old.answered_s + AGAIN_S);
    if (!isSame || !isFresh) this.#record.register({ platform, token: pushToken, environment });
    await this.#kept();
  }

  /**
   * Forget everything of this account, and have the gateway told of what was unsaid and of the log-out: now, or
   * whenever this store is opened next, by whichever account.
   *
   * @param {{ token?: string }} [options] what to say that with, else the one in use
   */
  async logOut({ token } = {}) {
    this.#record.logOut(token ?? (await this.#client.token()));
    await this.#kept();
  }

  /**
   * End the account at the gateway; else as `logOut`.
   *
   * @param {{ token?: string }} [options]
   */
  async endAccount({ token } = {}) {
    this.#record.logOut(token ?? (await this.#client.token()), { endsAccount: true });
    await this.#kept();
  }

  /**
   * The app is in the foreground now, and holds a socket; or it is no more, and holds none.
   *
   * @param {boolean} active
   */
  foreground(active) {
    this.#core.foreground(active);
    this.#stir();
  }

  /**
   * The phone has a network (another one, perhaps), or has none. Who never says so has one. In a browser, this is for
   * the events `online` and `offline` of the window.
   *
   * @param {boolean} online
   */
  network(online) {
    this.#core.network(online);
    this.#stir();
  }

  /**
   * A push arrived: what APNs calls its user info, or the data of an FCM message. Returns once the gateway has been
   * asked and what is new has been fetched and said, as far as that went well, or after `withinS` seconds: the system
   * may let the app sleep then.
   *
   * @param {unknown} payload
   * @param {{ withinS?: number }} [options]
   */
  async handlePush(payload, { withinS = PUSH_S } = {}) {
    if (this.#record.loggedOut) return;
    const asked = new Promise((/** @type {(value: void) => void} */ resolve) => this.#pushes.push(resolve));
    const packet = packetIn(payload);
    if (packet === null) this.#core.pushed(null);
    else this.#hears("push", packet, () => this.#core.pushed(packet));
    this.#stir();
    const handled = within(withinS, this.#closing.signal, async (signal) => {
      await unlessAborted(asked, signal);
      await this.#until(() => this.#core.quiet, signal);
    });
    await handled.catch(nothing); // it is time, or the device ends: either way there is no more to wait for
  }

  // The driver

  async #drive() {
    const { signal } = this.#closing;
    for (;;) {
      await this.#stirred.rung();
      if (signal.aborted) return;
      const actions = this.#core.next();
      const waiting = this.#waiting.splice(0);
      if (!(await this.#keep(signal))) {
        this.#waiting.unshift(...waiting); // it ends: they are looked after there
        return;
      }
      if (!signal.aborted) for (const action of actions) this.#begin(action);
      for (const { resolve } of waiting) resolve();
      // A socket has brought what a call would.
      if (!this.#core.stale) for (const asked of this.#pushes.splice(0)) asked();
      this.#setAlarm();
      this.#news.ring();
      this.#round.ring();
    }
  }

  /**
   * Store the record, if it has changed: nothing follows from it before that.
   *
   * @param {AbortSignal} signal
   * @returns {Promise<boolean>} false where the signal has aborted before
   */
  async #keep(signal) {
    while (this.#record.changed && !signal.aborted) {
      const { version } = this.#record;
      const sources = sourcesIn(this.#record);
      try {
        await this.#save();
        this.#client.remembers(version);
        this.#release(sources);
        return true;
      } catch (error) {
        console.warn(`the record cannot be stored, and is tried again: ${nameOf(error)}`);
        await sleep(REST_S, signal).catch(nothing);
      }
    }
    return !signal.aborted;
  }

  async #save() {
    const body = this.#record.encode();
    this.#record.changed = false;
    this.#isStoring = true;
    try {
      await this.#store.save(body);
      this.#isStoring = false;
    } catch (error) {
      this.#record.changed = true;
      throw error;
    }
  }

  /**
   * The bytes of videos that are not being sent any more are of no use.
   *
   * @param {ReadonlySet<string>} sources of those that are
   */
  #release(sources) {
    for (const source of this.#sources) {
      if (!sources.has(source)) this.#videos.release?.(source).catch(nothing); // else it goes the next time
    }
    this.#sources = sources;
  }

  /** Rejects where the device is not open, or ends before the record is stored. */
  #kept() {
    const isOpen = this.#driving !== null && this.#closed === null;
    if (!isOpen) return Promise.reject(new TypeError("this device is not open"));
    return new Promise((/** @type {(value: void) => void} */ resolve, reject) => {
      this.#waiting.push({ resolve, reject });
      this.#stir();
    });
  }

  /** What the app is to be told next, once that is stored: what is not may never have been. Null: look again. */
  async #untold() {
    if (this.#record.changed || this.#isStoring) {
      await this.#kept();
      return null;
    }
    const change = this.#record.untold();
    if (change === null) await this.#news.rung();
    return change;
  }

  /**
   * @param {() => boolean} holds
   * @param {AbortSignal} signal
   */
  async #until(holds, signal) {
    await unlessAborted(this.#kept(), signal);
    while (!holds()) await unlessAborted(this.#round.rung(), signal);
  }

  get #isSettled() {
    const { sent, registration, farewells } = this.#record;
    const isDelivered = [...sent.values()].every(({ delivery }) => delivery === null);
    const isRegistered = registration === null || registration.answered_s !== null;
    const isSaid = [...this.#record.reports(), ...this.#record.unansweredDeletions()].length === 0;
    return isDelivered && isRegistered && isSaid && farewells.length === 0;
  }

  /** Something has happened. */
  #stir() {
    this.#stirred.ring();
  }

  #setAlarm() {
    clearTimeout(this.#alarm);
    const restS = this.#core.nextS - uptimeS();
    if (restS < Infinity) this.#alarm = setTimeout(() => this.#stir(), Math.min(Math.max(restS, 0), LONGEST_S) * 1000);
  }

  /** @param {Promise<void>} driving */
  async #end(driving) {
    this.#closing.abort(new DOMException("the device is closed", "AbortError"));
    clearTimeout(this.#alarm);
    for (const { ending } of this.#running.values()) ending.abort(this.#closing.signal.reason);
    for (const bell of [this.#stirred, this.#news, this.#round]) bell.ring();
    await Promise.allSettled([driving, ...Array.from(this.#running.values(), ({ ended }) => ended)]);
    clearTimeout(this.#alarm);
    try {
      if (this.#record.changed || this.#isStoring) await this.#save();
      for (const { resolve } of this.#waiting.splice(0)) resolve();
    } finally {
      for (const { reject } of this.#waiting.splice(0)) reject(this.#closing.signal.reason);
      await this.#store.close();
    }
  }

  // Tasks

  /** @param {Action} action */
  #begin(action) {
    switch (action.kind) {
      case "abandon":
        this.#running.get(action.task)?.ending.abort(new DOMException("of no use any more", "AbortError"));
        break;
      case "acknowledge":
        // While it could not be stored the account may have logged out, and then it never was.
        if (action.version <= this.#client.version) this.#live?.acknowledge(action.version).catch(nothing);
        break;
      case "sync":
        this.#start(action, this.#pushes.splice(0));
        break;
      default:
        this.#start(action, []);
    }
  }

  /**
   * Carry a task out, and say what came of it.
   *
   * @param {Task} task
   * @param {(() => void)[]} waiting who is told when it has ended
   */
  #start(task, waiting) {
    const ending = new AbortController();
    const ended = this.#carry(task, ending.signal).finally(() => {
      this.#running.delete(task);
      for (const tell of waiting) tell();
      this.#stir();
    });
    this.#running.set(task, { ending, ended });
  }

  /**
   * @param {Task} task
   * @param {AbortSignal} signal
   */
  async #carry(task, signal) {
    try {
      this.#answered(task, await this.#carried(task, signal));
    } catch (error) {
      if (signal.aborted) return; // the core wants to hear no more of it, or the device ends
      if (task.kind === "connect" && error instanceof SocketClosed) {
        this.#core.closed(task, error);
        return;
      }
      if (!(error instanceof GatewayError)) console.warn(`a task failed: ${task.kind}, ${nameOf(error)}`);
      this.#core.failed(task, error);
    }
  }

  /**
   * @param {Task} task
   * @param {AbortSignal} signal
   * @returns {Promise<Answer>}
   */
  async #carried(task, signal) {
    const client = this.#client;
    switch (task.kind) {
      case "sync":
        return client.sync(task.reports, { signal });
      case "poll":
        return client.poll(task.version, { wait: task.wait_s || null, signal });
      case "connect":
        return this.#listen(task, signal);
      case "tell":
        return this.#socket.tell(task.report, { signal });
      case "announce": {
        const { size, content_type: contentType, sha256 } = task.delivery;
        return client.announce(task.recipient_id, { size, contentType, sha256, signal });
      }
      case "put":
        await this.#videos.upload(task.announced, task.source, this.#moves(task.key), signal);
        return null;
      case "delete":
        return client.delete(task.video_id, task.recipient_id, { signal });
      case "download":
        await this.#download(task.video_id, signal);
        return null;
      case "register": {
        const { platform, token, environment } = task.registration;
        await client.register(platform, token, environment, { signal });
        return null;
      }
      case "leave":
        await this.#leave(task.farewell, signal);
        return null;
    }
  }

  /**
   * @param {Connect} task
   * @param {AbortSignal} signal
   * @returns {Promise<never>}
   */
  async #listen(task, signal) {
    const live = await this.#client.live(Math.min(task.version, this.#client.version), { signal });
    const over = new AbortController();
    signal.addEventListener("abort", () => live.close());
    if (signal.aborted) live.close(); // while it was being handed over
    this.#live = live;
    this.#core.opened(task);
    this.#stir();
    this.#attend(live, over.signal).catch(nothing); // what it throws, the end of the socket has told
    try {
      for (;;) {
        const packet = await live.next();
        this.#hears("socket", packet, () => this.#core.came(task, packet));
        this.#stir();
      }
    } finally {
      if (this.#live === live) this.#live = null;
      over.abort();
      live.close();
    }
  }

  /**
   * Hand a socket its token again and again, and a new one before that expires. Where no answer comes, there is no
   * network any more.
   *
   * @param {Live} live
   * @param {AbortSignal} signal
   */
  async #attend(live, signal) {
    let token = await this.#client.token();
    for (;;) {
      const leftS = (expiryS(token) ?? Infinity) - this.#clock();
      await sleep(Math.min(BEAT_S, Math.max(leftS - RENEW_S, RENEW_S)), signal);
      token = await this.#lasting(token);
      try {
        await live.renew(token, { signal });
      } catch (error) {
        if (error instanceof GatewayError && error.status === null) live.abort();
      }
    }
  }

  /**
   * This token, or a new one where it expires soon. Where none is to be had the socket ends with the old one, and the
   * next is opened with a new one.
   *
   * @param {string} token
   */
  async #lasting(token) {
    const expiresS = expiryS(token);
    if (expiresS === null || expiresS - this.#clock() > RENEW_S + 1) return token; // timers may be early
    return this.#client.token({ insteadOf: token }).catch(() => token);
  }

  get #socket() {
    if (this.#live === null) throw new GatewayError(null, null, "the socket has just ended");
    return this.#live;
  }

  /**
   * @param {string} videoId
   * @param {AbortSignal} signal
   */
  async #download(videoId, signal) {
    const contentType = this.#record.received.get(videoId)?.content_type ?? "";
    try {
      await this.#videos.download(videoId, contentType, this.#moves(videoId), signal);
    } finally {
      if (!this.#record.received.get(videoId)?.listed) await this.#videos.discard(videoId);
    }
  }

  /**
   * @param {Farewell} farewell
   * @param {AbortSignal} signal
   */
  async #leave({ client_id, device_id, token, ends_account, reports, deletions }, signal) {
    const client = this.#client.speakingFor(client_id, device_id, token);
    if (reports.length > 0) {
      const synced = await unlessFinal(client.sync(reports, { signal }));
      const unsaid = synced?.results.find(({ error }) => error?.retryable);
      if (unsaid) throw unsaid.error;
    }
    for (const [videoId, recipientId] of deletions) {
      await unlessFinal(client.delete(videoId, recipientId, { signal }));
    }
    await (ends_account ? client.end({ signal }) : client.unregister({ signal }));
  }

  /**
   * @param {Task} task
   * @param {Answer} answer
   */
  #answered(task, answer) {
    if (task.kind === "register") {
      this.#core.registered(task, this.#clock());
      return;
    }
    const tell = () => this.#core.answered(task, answer);
    if (task.kind === "sync") this.#hears("sync", /** @type {Synced} */ (answer).packet, tell);
    else if (task.kind === "poll" && answer !== null) this.#hears("poll", /** @type {Packet} */ (answer), tell);
    else tell();
  }

  /**
   * Have the core take in a packet, and the app hear of it.
   *
   * @param {Channel} channel
   * @param {Packet} packet
   * @param {() => void} tell
   */
  #hears(channel, packet, tell) {
    const { clientId, version, loggedOut } = this.#record;
    const isWanted = packet.client_id === clientId && packet.version >= version && !loggedOut;
    tell();
    const isApplied = isWanted && this.#record.version === packet.version;
    queueMicrotask(() => this.#heard(channel, packet, isApplied)); // what the app throws is no failure of ours
  }

  /**
   * @param {string} key
   * @returns {Progress}
   */
  #moves(key) {
    return (soFar, size) => queueMicrotask(() => this.#watch(key, soFar, size));
  }

  async #loaded() {
    try {
      return await this.#store.load();
    } catch (error) {
      await this.#store.close();
      throw error;
    }
  }
}

/**
 * What comes of a call; null where it is refused for good: that ends the message, not those behind it.
 *
 * @template T
 * @param {Promise<T>} call
 */
async function unlessFinal(call) {
  try {
    return await call;
  } catch (error) {
    if (error instanceof GatewayError && !error.retryable) return null;
    throw error;
  }
}

/** Seconds since the epoch. */
const epochS = () => Date.now() / 1000;

/** Seconds of a clock that does not go back. */
function uptimeS() {
  return performance.now() / 1000;
}

/** @param {Uint8Array} bytes */
const hexadecimal = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** A name that nothing else has. (`crypto.randomUUID` is for secure contexts alone.) */
const randomName = () => hexadecimal(crypto.getRandomValues(new Uint8Array(16)));

/**
 * When a JWT expires, in seconds since the epoch (RFC 7519, section 4.1.4), as far as can be read without its key; null
 * where it cannot.
 *
 * @param {string} token
 * @returns {number | null}
 */
export function expiryS(token) {
  try {
    const claims = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
    return typeof claims.exp === "number" ? claims.exp : null;
  } catch {
    return null;
  }
}

/**
 * The record that was stored. One that cannot be read is as a new installation: what is in transit comes again.
 *
 * @param {string | null} text
 */
function recordIn(text) {
  try {
    if (text !== null) return Record.decode(text);
  } catch (error) {
    if (!(error instanceof NotUnderstood)) throw error;
    console.error("the record cannot be read, and a new one is begun");
  }
  return new Record("", "");
}

/**
 * Where the videos are that are still to be uploaded, or may have to be again.
 *
 * @param {Record} record
 */
function sourcesIn(record) {
  return new Set(Array.from(record.sent.values()).flatMap(({ delivery }) => delivery?.source ?? []));
}

/**
 * The packet in a push, where it has one. Whatever else it is: whoever gets a push syncs.
 *
 * @param {unknown} payload
 */
function packetIn(payload) {
  try {
    return parsePush(payload).packet;
  } catch (error) {
    if (!(error instanceof NotUnderstood)) throw error;
    return null;
  }
}

// --- Where a device keeps its record

/**
 * One record: JSON of some hundred characters to some hundred thousand. It holds secrets.
 *
 * @typedef {object} Store
 * @property {() => Promise<string | null>} load what was saved last; null where nothing was. Throws StoreInUse where
 * another device has it open: two that write to it would each undo what the other did.
 * @property {(text: string) => Promise<void>} save replaces it. Once this returns, that is durable; after a crash
 * before, one of the two is there, whole. Throws where that is not possible now. Not called again before it has
 * returned.
 * @property {() => Promise<void>} close whoever opens it next may, once this returns
 */

/** Another process, another page, or another device of this one has the store open. */
export class StoreInUse extends Error {
  name = "StoreInUse";
}

/**
 * A record that lasts as long as this object, for tests and tools.
 *
 * @implements {Store}
 */
export class MemoryStore {
  /** @param {string | null} [text] */
  constructor(text = null) {
    this.text = text;
  }

  async load() {
    return this.text;
  }

  /** @param {string} text */
  async save(text) {
    this.text = text;
  }

  async close() {}
}

/** How long the page that was here before may take to go: a reload opens the new one before the old one has ended. */
const LOCK_MS = 1_000;

/**
 * A record in a browser, by its name. It is opened by `load`, and then nobody else's until it is closed or the page
 * ends. (Where pages cannot lock, since they come over plain HTTP, nobody notices a second one.)
 *
 * @implements {Store}
 */
export class IndexedDbStore {
  #name;
  #database;
  /** @type {(() => void) | null} */
  #unlock = null;

  /** @param {string} name */
  constructor(name) {
    this.#name = `record of ${name}`;
    this.#database = new Database(this.#name, ["record"]);
  }

  /** @returns {Promise<string | null>} */
  async load() {
    this.#unlock ??= await lockedInBrowser(this.#name);
    return (await this.#database.read("record", (record) => record.get(0))) ?? null;
  }

  /** @param {string} text */
  async save(text) {
    await this.#database.change(["record"], ([record]) => record.put(text, 0));
  }

  async close() {
    await this.#database.close();
    this.#unlock?.();
    this.#unlock = null;
  }
}

/**
 * Lock a name among the pages of this origin; what unlocks it.
 *
 * @param {string} name
 * @returns {Promise<() => void>}
 */
function lockedInBrowser(name) {
  if (!navigator.locks) return Promise.resolve(nothing);
  return new Promise((resolve, reject) => {
    const held = () => new Promise((/** @type {(value: void) => void} */ unlock) => resolve(unlock));
    const inUse = () => reject(new StoreInUse(`the ${name} is in use`));
    navigator.locks.request(name, { signal: AbortSignal.timeout(LOCK_MS) }, held).catch(inUse);
  });
}

/**
 * A record in a file that only its owner may read, for Node. Its folder is made where it is missing. It is opened by
 * `load`, and then no other FileStore's until it is closed or the process ends, however it does. (The client for Python
 * reads and writes the same records; on Linux and Windows neither sees the other's lock.)
 *
 * @implements {Store}
 */
export class FileStore {
  #path;
  /** @type {(() => Promise<void>) | null} */
  #unlock = null;

  /** @param {string} path */
  constructor(path) {
    this.#path = path;
  }

  /** @returns {Promise<string | null>} */
  async load() {
    const { fs, path } = await ofNode();
    await fs.mkdir(path.dirname(this.#path), { recursive: true });
    this.#unlock ??= await lockedInNode(this.#path);
    return fs.readFile(this.#path, "utf8").catch(whereAbsent(null));
  }

  /**
   * First the whole of it under another name, then that name becomes the record's: rename(2) does it at once.
   *
   * @param {string} text
   */
  async save(text) {
    const { fs, path } = await ofNode();
    const folder = path.dirname(this.#path);
    const aside = path.join(folder, `.${path.basename(this.#path)}.new`);
    await fs.rm(aside, { force: true }); // of a save that was cut off, with whatever rights it had
    await fs.writeFile(aside, text, { flag: "wx", mode: 0o600, flush: true });
    await fs.rename(aside, this.#path);
    await syncFolder(folder);
  }

  async close() {
    const unlock = this.#unlock;
    this.#unlock = null;
    await unlock?.();
  }
}

/** What Node has and browsers have not; asked for where it is used, so that they never see it. */
async function ofNode() {
  const [fs, path, { createHash }, { createServer }] = await Promise.all([
    import("node:fs/promises"),
    import("node:path"),
    import("node:crypto"),
    import("node:net"),
  ]);
  return { fs, path, createHash, createServer };
}

/**
 * What to make of a failure to find a file.
 *
 * @template T
 * @param {T} instead what is taken for it
 * @returns {(error: unknown) => T}
 */
function whereAbsent(instead) {
  return (error) => {
    if (/** @type {NodeJS.ErrnoException} */ (error).code === "ENOENT") return instead;
    throw error;
  };
}

/**
 * Have the names in a folder outlast a loss of power.
 *
 * @param {string} path
 */
async function syncFolder(path) {
  if (process.platform === "win32") return; // it has no such thing
  const { fs } = await ofNode();
  const folder = await fs.open(path, "r");
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

/**
 * Lock a file, which need not be there, in a folder that is; what unlocks it. The system does, too, when the process
 * ends.
 *
 * Node cannot lock files where open(2) cannot. There it is a name at which only one process may listen: on Linux an
 * abstract socket, which those see that have the same network namespace, on Windows a named pipe.
 *
 * @param {string} file
 * @returns {Promise<() => Promise<void>>}
 */
async function lockedInNode(file) {
  const { fs, path, createHash } = await ofNode();
  const base = path.basename(file);
  try {
    if (!["linux", "win32"].includes(process.platform)) {
      const lock = await fs.open(path.join(path.dirname(file), `.${base}.lock`), LOCKED, 0o600);
      return () => lock.close();
    }
    const { dev, ino } = await fs.stat(path.dirname(file));
    const name = createHash("sha256").update(`${dev} ${ino} ${base}`).digest("hex");
    return await listeningAt(process.platform === "linux" ? `\0${name}` : `\\\\.\\pipe\\${name}`);
  } catch (error) {
    const { code = "" } = /** @type {NodeJS.ErrnoException} */ (error);
    throw ["EADDRINUSE", "EAGAIN"].includes(code) ? new StoreInUse(`${base} is in use`) : error;
  }
}

/** O_RDWR | O_CREAT | O_EXLOCK | O_NONBLOCK, as macOS and the BSDs have them. */
const LOCKED = 0x0002 | 0x0200 | 0x0020 | 0x0004;

/**
 * Listen at a name; what ends that. It keeps no process alive.
 *
 * @param {string} name
 * @returns {Promise<() => Promise<void>>}
 */
async function listeningAt(name) {
  const { createServer } = await ofNode();
  const server = createServer((socket) => socket.destroy()).unref();
  await new Promise((/** @type {(value: void) => void} */ resolve, reject) => {
    server.once("error", reject).listen({ path: name, exclusive: true }, resolve);
  });
  return () => new Promise((resolve) => server.close(() => resolve()));
}

/** A database of the browser's, opened when it is used. What it cannot do throws a DOMException. */
class Database {
  #name;
  #stores;
  /** @type {Promise<IDBDatabase> | null} */
  #opening = null;

  /**
   * @param {string} name
   * @param {readonly string[]} stores what it has, each with keys that are not in the values
   */
  constructor(name, stores) {
    this.#name = name;
    this.#stores = stores;
  }

  /**
   * @template T
   * @param {string} store
   * @param {(store: IDBObjectStore) => IDBRequest<T>} ask
   * @returns {Promise<T>}
   */
  async read(store, ask) {
    const transaction = (await this.#opened()).transaction(store, "readonly");
    return resultOf(ask(transaction.objectStore(store)));
  }

  /**
   * Returns once what `change` asked for is durable, all of it.
   *
   * @param {readonly string[]} names
   * @param {(stores: IDBObjectStore[]) => void} change
   * @returns {Promise<void>}
   */
  async change(names, change) {
    const transaction = (await this.#opened()).transaction(names, "readwrite", { durability: "strict" });
    const completed = new Promise((/** @type {(value: void) => void} */ resolve, reject) => {
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error ?? new DOMException("it was aborted", "AbortError"));
    });
    change(names.map((name) => transaction.objectStore(name)));
    await completed;
  }

  async close() {
    const opening = this.#opening;
    this.#opening = null;
    (await opening?.catch(nothing))?.close();
  }

  #opened() {
    this.#opening ??= this.#open();
    this.#opening.catch(() => (this.#opening = null)); // it is tried again
    return this.#opening;
  }

  async #open() {
    const request = indexedDB.open(this.#name, 1);
    request.onupgradeneeded = () => {
      for (const store of this.#stores) request.result.createObjectStore(store);
    };
    const database = await resultOf(request);
    database.onversionchange = () => database.close(); // it is being deleted
    database.onclose = () => (this.#opening = null);
    return database;
  }
}

/**
 * @template T
 * @param {IDBRequest<T>} request
 * @returns {Promise<T>}
 */
function resultOf(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

// --- Where the bytes of videos are on this device

/**
 * Measures and moves videos. What cannot be read or written throws whatever it throws.
 *
 * @typedef {object} Videos
 * @property {(source: string) => Promise<{ size: number, sha256: string | null }>} measure a video that is to be sent.
 * `sha256`: in lower-case hex, null where it cannot be computed
 * @property {(announced: Announced, source: string, progress: Progress, signal: AbortSignal) => Promise<void>} upload
 * stores the bytes. Throws UploadError, and RangeError where they are not as many as were announced
 * @property {(videoId: string, contentType: string, progress: Progress, signal: AbortSignal) => Promise<void>} download
 * fetches a video; it is durable once this returns. What came before a failure need not come again. Throws
 * DownloadError
 * @property {(videoId: string) => Promise<void>} discard removes what has come of a video that is not wanted any more
 * @property {(source: string) => Promise<void>} [release] no device sends from there any more
 * @property {(sources: ReadonlySet<string>) => Promise<void>} [retain] a device begins, and sends from these alone
 */

const OUTGOING = "outgoing";
const PARTS = "parts";
const WHOLE = "whole";

/**
 * Videos in a browser, by the name of their database: those to be sent, and those that were received.
 *
 * @implements {Videos}
 */
export class VideoDatabase {
  #client;
  #database;

  /**
   * @param {Client} client
   * @param {string} name
   */
  constructor(client, name) {
    this.#client = client;
    this.#database = new Database(`videos of ${name}`, [OUTGOING, PARTS, WHOLE]);
  }

  /**
   * Keep a video that is to be sent: what a device is told to send. It stays, whatever becomes of this page, until it
   * is uploaded or its sending has ended otherwise; or until a device is opened anew, where none was told to send it.
   *
   * @param {Blob} blob
   * @returns {Promise<string>}
   */
  async add(blob) {
    const source = randomName();
    await this.#database.change([OUTGOING], ([outgoing]) => outgoing.put(blob, source));
    return source;
  }

  /**
   * A received video, once it is ready; null where it is not here.
   *
   * @param {string} videoId
   * @returns {Promise<Blob | null>}
   */
  async blob(videoId) {
    return (await this.#database.read(WHOLE, (whole) => whole.get(videoId))) ?? null;
  }

  /**
   * Remove a received video.
   *
   * @param {string} videoId
   */
  async remove(videoId) {
    await this.#database.change([WHOLE], ([whole]) => whole.delete(videoId));
  }

  /** Close the database; whoever uses it again opens it again. */
  async close() {
    await this.#database.close();
  }

  /**
   * The hash only in a secure context: pages that come over plain HTTP have none, but for those of this machine. The
   * gateway then checks the length alone.
   *
   * @param {string} source
   */
  async measure(source) {
    const blob = await this.#outgoing(source);
    const digest = await crypto.subtle?.digest("SHA-256", await blob.arrayBuffer());
    return { size: blob.size, sha256: digest ? hexadecimal(new Uint8Array(digest)) : null };
  }

  /**
   * @param {Announced} announced
   * @param {string} source
   * @param {Progress} progress
   * @param {AbortSignal} signal
   */
  async upload(announced, source, progress, signal) {
    const blob = await this.#outgoing(source).catch((failure) => {
      if (failure.name === "NotFoundError") throw failure;
      throw new UploadError(null, null, nameOf(failure)); // the database may be readable later
    });
    await this.#client.upload(announced, blob, { progress, signal });
  }

  /**
   * @param {string} videoId
   * @param {string} contentType
   * @param {Progress} progress
   * @param {AbortSignal} signal
   */
  async download(videoId, contentType, progress, signal) {
    // It may be here already, where the page ended before the device noted that.
    if (await this.#database.read(WHOLE, (whole) => whole.count(videoId))) return;
    await this.#client.download(videoId, await this.#part(videoId), { progress, signal });
    await this.#database.change([PARTS, WHOLE], ([parts, whole]) => {
      parts.getAll(partsOf(videoId)).onsuccess = ({ target }) => {
        const { result } = /** @type {IDBRequest<Blob[]>} */ (target);
        whole.put(new Blob(result, { type: contentType }), videoId);
        parts.delete(partsOf(videoId));
      };
    });
  }

  /** @param {string} videoId */
  async discard(videoId) {
    await this.#database.change([PARTS], ([parts]) => parts.delete(partsOf(videoId)));
  }

  /** @param {string} source */
  async release(source) {
    await this.#database.change([OUTGOING], ([outgoing]) => outgoing.delete(source));
  }

  /** @param {ReadonlySet<string>} sources */
  async retain(sources) {
    const kept = await this.#database.read(OUTGOING, (outgoing) => outgoing.getAllKeys());
    const useless = kept.filter((source) => !sources.has(String(source)));
    await this.#database.change([OUTGOING], ([outgoing]) => useless.forEach((source) => outgoing.delete(source)));
  }

  /**
   * @param {string} source
   * @returns {Promise<Blob>}
   */
  async #outgoing(source) {
    const blob = await this.#database.read(OUTGOING, (outgoing) => outgoing.get(source));
    if (blob === undefined) throw new DOMException("there is no such video to be sent", "NotFoundError");
    return blob;
  }

  /** @param {string} videoId */
  async #part(videoId) {
    const parts = await this.#database.read(PARTS, (parts) => parts.getAll(partsOf(videoId)));
    return new DatabasePart(this.#database, videoId, parts);
  }
}

/**
 * The keys of the parts of a video.
 *
 * @param {string} videoId
 */
const partsOf = (videoId) => IDBKeyRange.bound([videoId], [videoId, Infinity]);

/**
 * What has come of a video: Blobs, in their order. Small pieces wait to become one.
 *
 * @implements {Part}
 */
class DatabasePart {
  #database;
  #videoId;
  #parts;
  /** @type {Uint8Array<ArrayBuffer>[]} */
  #waiting = [];
  #waitingBytes = 0;

  /**
   * @param {Database} database
   * @param {string} videoId
   * @param {readonly Blob[]} parts
   */
  constructor(database, videoId, parts) {
    this.#database = database;
    this.#videoId = videoId;
    this.#parts = parts.length;
    this.size = parts.reduce((size, part) => size + part.size, 0);
  }

  /** @param {Uint8Array<ArrayBuffer>} bytes */
  async append(bytes) {
    this.#waiting.push(bytes);
    this.#waitingBytes += bytes.length;
    if (this.#waitingBytes >= CHUNK_BYTES) await this.keep();
  }

  async keep() {
    if (this.#waitingBytes === 0) return;
    const part = new Blob(this.#waiting);
    await this.#database.change([PARTS], ([parts]) => parts.put(part, [this.#videoId, this.#parts]));
    this.#waiting = [];
    this.#waitingBytes = 0;
    this.#parts += 1;
    this.size += part.size;
  }

  async clear() {
    await this.#database.change([PARTS], ([parts]) => parts.delete(partsOf(this.#videoId)));
    this.#parts = this.size = 0;
  }
}

/** What a UUID looks like: the ids of videos. */
const VIDEO_ID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;

/**
 * Received videos as files in a folder, for Node. It is made where it is missing. A video that is there whole is the
 * app's from then on: to show, to move, to remove. Videos to be sent are the paths of files.
 *
 * @implements {Videos}
 */
export class VideoFolder {
  #client;
  #folder;

  /**
   * @param {Client} client
   * @param {string} path
   */
  constructor(client, path) {
    this.#client = client;
    this.#folder = path;
  }

  /**
   * Where a received video is, once it is ready. Throws RangeError for what is no video's id: it must not lead out of
   * the folder, whoever made it up.
   *
   * @param {string} videoId
   */
  path(videoId) {
    if (!VIDEO_ID.test(videoId)) throw new RangeError("no video's id");
    return `${this.#folder}/${videoId}`;
  }

  /** @param {string} source */
  async measure(source) {
    const { fs, createHash } = await ofNode();
    const hash = createHash("sha256");
    let size = 0;
    const file = await fs.open(source, "r");
    try {
      for await (const bytes of chunksOf(file)) {
        hash.update(bytes);
        size += bytes.length;
      }
    } finally {
      await file.close();
    }
    return { size, sha256: hash.digest("hex") };
  }

  /**
   * @param {Announced} announced
   * @param {string} source
   * @param {Progress} progress
   * @param {AbortSignal} signal
   */
  async upload(announced, source, progress, signal) {
    const { fs } = await ofNode();
    const file = await fs.open(source, "r");
    try {
      await this.#client.upload(announced, chunksOf(file), { progress, signal });
    } finally {
      await file.close();
    }
  }

  /**
   * @param {string} videoId
   * @param {string} _contentType
   * @param {Progress} progress
   * @param {AbortSignal} signal
   */
  async download(videoId, _contentType, progress, signal) {
    const { fs } = await ofNode();
    const path = this.path(videoId);
    await fs.mkdir(this.#folder, { recursive: true });
    // It may be there already, where the device was killed before it noted that.
    if (await fs.stat(path).catch(whereAbsent(null))) return;
    const file = await fs.open(this.#partOf(videoId), "a");
    try {
      const { size } = await file.stat();
      await this.#client.download(videoId, new FilePart(file, size), { progress, signal });
    } finally {
      await file.close();
    }
    await fs.rename(this.#partOf(videoId), path);
    await syncFolder(this.#folder);
  }

  /** @param {string} videoId */
  async discard(videoId) {
    const { fs } = await ofNode();
    await fs.rm(this.#partOf(videoId), { force: true });
  }

  /** @param {string} videoId */
  #partOf(videoId) {
    this.path(videoId);
    return `${this.#folder}/.${videoId}.${videoId}.part`; // as the client for Python calls it
  }
}

/**
 * @param {import("node:fs/promises").FileHandle} file
 */
async function* chunksOf(file) {
  for (;;) {
    const { bytesRead, buffer } = await file.read(new Uint8Array(CHUNK_BYTES));
    if (bytesRead === 0) return;
    yield buffer.subarray(0, bytesRead);
  }
}

/**
 * What has come of a video: a file that is open for appending.
 *
 * @implements {Part}
 */
class FilePart {
  #file;

  /**
   * @param {import("node:fs/promises").FileHandle} file
   * @param {number} size
   */
  constructor(file, size) {
    this.#file = file;
    this.size = size;
  }

  /** @param {Uint8Array<ArrayBuffer>} bytes */
  async append(bytes) {
    await this.#file.appendFile(bytes);
    this.size += bytes.length;
  }

  async keep() {
    await this.#file.sync();
  }

  async clear() {
    await this.#file.truncate(0);
    this.size = 0;
  }
}
