/**
 * The core of the client for JavaScript passes the test vectors: those in `tests/vectors`, or in the folder that the
 * environment names as VECTORS. One test for each file.
 */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { test } from "node:test";

import {
  Backoff,
  Core,
  DownloadError,
  GatewayError,
  NotUnderstood,
  Record,
  SocketClosed,
  UploadError,
  parseAnnounced,
  parsePacket,
  parsePush,
  parseResult,
  parseSynced,
  problem,
} from "../../gateway/web/client.js";

/**
 * @import { Answer, Connect, Register, Result, Task } from "../../gateway/web/client.js"
 * @typedef {{ [name: string]: any }} Members
 */

const FOLDER = process.env.VECTORS ?? join(import.meta.dirname, "..", "vectors");

/** @type {{ [kind: string]: typeof GatewayError }} */
const ERRORS = { gateway: GatewayError, upload: UploadError, download: DownloadError };

/** A device that a story happens to: a core on a record, its clock, and what it has begun. */
class Replay {
  #nowS = 0;
  #draws = 0;
  /** @type {Task[]} */
  #tasks = [];
  /** @type {Members} */
  #record = {};
  /** @type {Members | null} */
  #untold = null;

  /** @param {Members} story */
  constructor({ client_id, device_id, jitter, record }) {
    this.jitter = jitter;
    this.record = record === null ? new Record(client_id, device_id) : Record.decode(JSON.stringify(record));
    this.core = this.#started(client_id, device_id);
  }

  /**
   * @param {string | null} clientId
   * @param {string | null} deviceId
   */
  #started(clientId, deviceId) {
    this.record.logIn(clientId, deviceId);
    const jitter = () => this.jitter[this.#draws++ % this.jitter.length];
    return new Core(this.record, { clock: () => this.#nowS, jitter });
  }

  /** @param {Members} step */
  step(step) {
    if ("for" in step) {
      this.#repeat(step);
      return;
    }
    this.#play(step);
    if ("actions" in step) {
      assert.deepEqual(this.#asked(), step.actions);
      assert.equal(this.core.nextS, step.next_s ?? Infinity);
    }
    this.#record = { ...this.#record, ...step.record };
    if ("untold" in step) this.#untold = step.untold;
    assert.equal(this.record.encode(), JSON.stringify(this.#record));
    assert.deepEqual(this.record.untold(), this.#untold);
    const facts = { changed: this.record.changed, stale: this.core.stale, quiet: this.core.quiet };
    assert.deepEqual(facts, {
      changed: step.is.includes("changed"),
      stale: step.is.includes("stale"),
      quiet: step.is.includes("quiet"),
    });
    if ("actions" in step) this.record.changed = false;
  }

  /** @param {Members} block */
  #repeat({ for: [first, last], steps }) {
    const text = JSON.stringify(steps);
    for (let n = first; n <= last; n += 1) {
      for (const step of JSON.parse(text.replaceAll('"{n}"', String(n)).replaceAll("{n}", String(n)))) {
        this.#play(step);
        if (!("actions" in step)) continue;
        assert.deepEqual(this.#asked(), step.actions);
        this.record.changed = false;
      }
    }
    this.#record = JSON.parse(this.record.encode());
  }

  /** @returns {Members[]} what is to be done, as the files have it */
  #asked() {
    return this.core.next().map((action) => {
      if (action.kind === "abandon") return { kind: action.kind, task: this.#tasks.indexOf(action.task) + 1 };
      if (action.kind === "acknowledge") return { ...action };
      const { op, ...members } = action;
      assert.equal(typeof op, "string");
      return { n: this.#tasks.push(action), ...members };
    });
  }

  /** @param {Members} step */
  #play({ at_s, event }) {
    this.#nowS = at_s;
    const { core, record } = this;
    switch (event.do) {
      case "wait":
        return;
      case "foreground":
        return core.foreground(event.active);
      case "network":
        return core.network(event.online);
      case "push":
        return core.pushed(event.packet === null ? null : parsePacket(event.packet));
      case "restart":
        this.record = Record.decode(record.encode());
        this.core = this.#started(event.client_id, event.device_id);
        return;
      case "send":
        return record.send(event.key, event.recipient_id, event.delivery);
      case "delete":
        return record.delete(event.key);
      case "viewed":
        return record.viewed(event.video_id);
      case "register":
        return record.register(event.registration);
      case "log_out":
        return record.logOut(event.token, { endsAccount: event.ends_account });
      case "told":
        return record.told(event.change);
      default:
        return this.#ended(event);
    }
  }

  /** @param {Members} event what became of a task */
  #ended(event) {
    const { core } = this;
    const task = this.#tasks[event.task - 1];
    switch (event.do) {
      case "opened":
        return core.opened(/** @type {Connect} */ (task));
      case "came":
        return core.came(/** @type {Connect} */ (task), parsePacket(event.packet));
      case "closed": {
        const closed = new SocketClosed(event.code, event.reason, { loggedOut: event.logged_out });
        return core.closed(/** @type {Connect} */ (task), closed);
      }
      case "answered":
        return core.answered(task, event.answer === null ? null : answerOf(task, event.answer));
      case "registered":
        return core.registered(/** @type {Register} */ (task), event.answered_s);
      case "failed":
        for (const number of event.tasks) core.failed(this.#tasks[number - 1], errorOf(event.error));
        return;
      default:
        assert.fail(`an event that is not known: ${event.do}`);
    }
  }
}

/**
 * @param {Task} task
 * @param {string} text
 * @returns {Answer}
 */
function answerOf(task, text) {
  switch (task.kind) {
    case "sync":
      return parseSynced(text, task.reports);
    case "poll":
      return parsePacket(text);
    case "announce":
      return parseAnnounced(text, task.recipient_id, task.delivery.size);
    case "tell":
      return parseResult(text, task.report.video_id);
    case "delete":
      return parseResult(text, task.video_id);
    default:
      return assert.fail(`a ${task.kind} has no answer that is read`);
  }
}

/** @param {Members} error */
function errorOf({ kind, status, code, retry_after_s }) {
  return kind === "local" ? new Error("a full disk") : new ERRORS[kind](status, code, "so it is", retry_after_s);
}

/** @param {GatewayError} error */
function errorMembers({ status, code, detail, retryAfterS, remedy, retryable }) {
  return { status, code, detail, retry_after_s: retryAfterS, remedy, retryable };
}

/**
 * What is read, or null for what is refused.
 *
 * @template T
 * @param {() => T} read
 */
function readOrNull(read) {
  try {
    return read();
  } catch (error) {
    assert.ok(error instanceof NotUnderstood, String(error));
    return null;
  }
}

/** @param {Result} result */
function resultMembers(result) {
  return { ...result, error: result.error && errorMembers(result.error) };
}

/** What is read in the cases of a file of texts. @type {{ [file: string]: (found: Members) => void }} */
const TEXTS = {
  packets({ text, read }) {
    assert.deepEqual(readOrNull(() => parsePacket(text)), read);
  },
  syncs({ text, reports, read }) {
    const synced = readOrNull(() => parseSynced(text, reports));
    assert.deepEqual(synced && { results: synced.results.map(resultMembers), packet: synced.packet }, read);
  },
  results({ text, video_id, read }) {
    const result = readOrNull(() => parseResult(text, video_id));
    assert.deepEqual(result && resultMembers(result), read);
  },
  announcements({ text, recipient_id, size, read }) {
    assert.deepEqual(readOrNull(() => parseAnnounced(text, recipient_id, size)), read);
  },
  pushes({ members, read }) {
    assert.deepEqual(readOrNull(() => parsePush(members)), read);
  },
  problems({ kind, status, body, retry_after, read }) {
    assert.deepEqual(errorMembers(problem(status, body, retry_after, ERRORS[kind])), read);
  },
  remedies({ kind, status, code, ...expected }) {
    const { remedy, retryable } = new ERRORS[kind](status, code, "so it is");
    assert.deepEqual({ remedy, retryable }, expected);
  },
  closings({ code, reason, logged_out, ...expected }) {
    const { remedy, retryS } = new SocketClosed(code, reason, { loggedOut: logged_out });
    assert.deepEqual({ remedy, retry_s: retryS }, expected);
  },
  pauses({ tries, retry_after_s, jitter, pause_s }) {
    assert.equal(new Backoff().pauseS(tries, retry_after_s, jitter), pause_s);
  },
  records({ text, read }) {
    assert.equal(readOrNull(() => Record.decode(text).encode()), read);
  },
};

/**
 * Play each row; an error says which it was of.
 *
 * @param {Members[]} rows
 * @param {(row: Members) => void} play
 */
function each(rows, play) {
  assert.ok(rows.length > 0);
  for (const [index, row] of rows.entries()) {
    try {
      play(row);
    } catch (error) {
      assert.ok(error instanceof Error);
      error.message = `${index + 1}: ${JSON.stringify(row)}\n${error.message}`;
      throw error;
    }
  }
}

for (const path of readdirSync(FOLDER, { recursive: true }).map(String).sort()) {
  if (!path.endsWith(".json")) continue;
  const found = JSON.parse(readFileSync(join(FOLDER, path), "utf8"));
  test(`${path}: ${found.name}`, () => {
    if ("steps" in found) {
      const replay = new Replay(found);
      each(found.steps, (step) => replay.step(step));
    } else {
      each(found.cases, TEXTS[basename(path, ".json")]);
    }
  });
}
