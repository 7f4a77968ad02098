/** What the test vectors cannot say: how the core of the client for JavaScript is made. */
import assert from "node:assert/strict";
import { test } from "node:test";

import {
  Core,
  Fields,
  GatewayError,
  NotUnderstood,
  Record,
  SocketClosed,
  parsePacket,
  parseSynced,
  problem,
  refused,
  reportMembers,
  verbatim,
} from "../../gateway/web/client.js";

const INCOMING = {
  video_id: "video-1",
  sender_id: "carol",
  status: "uploaded",
  url: "/v1/videos/video-1/content",
  size: 9,
  content_type: "video/mp4",
  at: 5,
};

/**
 * @param {number} version
 * @param {object[]} incoming
 */
function packet(version, ...incoming) {
  return parsePacket(JSON.stringify({ type: "info", client_id: "alice", version, outgoing: [], incoming }));
}

/** @param {Record} record */
function coreOf(record) {
  return new Core(record, { clock: () => 1000 });
}

test("what is read, remembered and to be done cannot be changed by whoever gets it", () => {
  const record = new Record("alice", "phone");
  const core = coreOf(record);
  const found = packet(7, INCOMING);
  core.pushed(found);
  record.send("key", "bob", { source: "/videos/1", size: 9, content_type: "video/mp4", sha256: null });
  const actions = core.next();
  const things = [found, found.incoming, found.incoming[0], ...actions, ...record.sent.values(), record.untold()];
  assert.ok(actions.length > 2);
  for (const thing of things) assert.ok(Object.isFrozen(thing), JSON.stringify(thing));
});

test("what an app hands over is copied, with its members in the stored order", () => {
  const record = new Record("alice", "phone");
  const delivery = { sha256: "5a", content_type: "video/mp4", size: 9, source: "/videos/1" };
  record.send("key", "bob", delivery);
  delivery.size = 10;
  record.register({ token: "push-token", platform: "fcm" });
  const { sent, registration } = JSON.parse(record.encode());
  assert.deepEqual(Object.keys(sent[0].delivery).slice(0, 4), ["source", "size", "content_type", "sha256"]);
  assert.equal(sent[0].delivery.size, 9);
  const expected = { platform: "fcm", token: "push-token", environment: "production", answered_s: null };
  assert.equal(JSON.stringify(registration), JSON.stringify(expected));
});

test("what an app hands over and is no delivery is refused", () => {
  const record = new Record("alice", "phone");
  const wrong = /** @type {any} */ ({ source: "/videos/1", size: 9 });
  assert.throws(() => record.send("key", "bob", wrong), NotUnderstood);
});

test("a task that is given up is the very task that was begun", () => {
  const core = coreOf(new Record("alice", "phone"));
  core.foreground(true);
  const [connect] = core.next();
  core.foreground(false);
  const [abandon] = core.next();
  assert.ok(abandon.kind === "abandon");
  assert.equal(abandon.task, connect);
});

test("deletions stay in their order whatever their ids look like", () => {
  const text = new Record("alice", "phone").encode();
  const ids = ["b", "10", "9", "__proto__", "constructor"];
  const deletions = ids.map((id) => `"${id}":{"recipient_id":"bob","over_at":null}`);
  const stored = text.replace('"deletions":{}', `"deletions":{${deletions}}`);
  const record = Record.decode(stored);
  assert.deepEqual([...record.deletions.keys()], ids);
  assert.deepEqual(Array.from(record.unansweredDeletions(), ([id]) => id), ids);
  assert.equal(record.encode(), stored);
});

test("a part of a text is found as it came, whatever is around it", () => {
  const part = '{ "a\\"b" : [1,{"packet":2}] , "c":"}," }';
  const text = ` {"x":"\\"packet\\":1", "y" : {"packet":[]},\n"__proto__":-1.5e3,"packet":${part}, "packet":7 } `;
  assert.equal(verbatim(text, "packet"), part);
  assert.equal(verbatim(text, "__proto__"), "-1.5e3");
  assert.equal(verbatim('{"only":null}', "only"), "null");
  assert.throws(() => verbatim("{}", "packet"), NotUnderstood);
  assert.throws(() => verbatim('{"x":"packet"}', "packet"), NotUnderstood);
});

test("a version that JavaScript does not have exactly is refused", () => {
  const text = packet(5).text;
  assert.equal(parsePacket(text.replace("5", "9007199254740991")).version, 2 ** 53 - 1);
  assert.throws(() => parsePacket(text.replace("5", "9007199254740992")), NotUnderstood);
});

test("how long to wait is read from a date, too", () => {
  const nowMs = Date.UTC(2026, 0, 1, 12);
  /** @param {string} header */
  const waitS = (header) => problem(503, "", header, GatewayError, nowMs).retryAfterS;
  assert.equal(waitS("Thu, 01 Jan 2026 13:00:00 GMT"), 3600);
  assert.equal(waitS("Thu, 01 Jan 2026 11:00:00 GMT"), 0);
  assert.equal(waitS("2026-01-01"), null);
  assert.equal(waitS("tomorrow GMT"), null);
});

test("errors say what happened, and nothing of what was signed", () => {
  assert.equal(new GatewayError(422, "invalid", "size: must be").message, "422 invalid: size: must be");
  assert.equal(new GatewayError(null, null, "TimeoutError").message, "no answer: TimeoutError");
  assert.equal(new SocketClosed(1013, "full").message, "the socket was closed with 1013: full");
  assert.equal(new SocketClosed(1006, "").message, "the socket was closed with 1006");
  const { message } = problem(403, "<Error><Signature>5ec4e7</Signature></Error>", null);
  assert.equal(message, "403: without a code");
});

test("what is not understood names the member, and not what stood in it", () => {
  const read = () => refused(Fields.parse('{"code":"invalid","detail":["5ec4e7"]}'));
  assert.throws(read, (error) => error instanceof NotUnderstood && error.message === "detail: no text");
  assert.throws(
    () => parseSynced('{"results":[],"packet":{"type":"5ec4e7"}}', []),
    (error) => error instanceof NotUnderstood && !`${error.stack}${error.cause}`.includes("5ec4e7"),
  );
});

test("a report has a recipient only where it is of an upload", () => {
  const viewed = reportMembers({ video_id: "v", status: "viewed", recipient_id: null });
  assert.deepEqual(viewed, { video_id: "v", status: "viewed" });
  const uploaded = /** @type {const} */ ({ video_id: "v", status: "uploaded", recipient_id: "bob" });
  assert.deepEqual(reportMembers(uploaded), uploaded);
});

test("a packet that brings nothing new leaves the record as it was stored", () => {
  const record = new Record("alice", "phone");
  assert.ok(record.apply(packet(7, INCOMING)));
  assert.ok(record.changed);
  record.changed = false;
  assert.ok(record.apply(packet(7, INCOMING)));
  assert.ok(!record.changed);
});
