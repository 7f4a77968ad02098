/** The client of JavaScript, its calls and its sockets, against a real gateway. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { DownloadError, GatewayError, Remedy, SocketClosed, UploadError } from "../../gateway/web/client.js";
import { Client, expiryS } from "../../gateway/web/client.js";
import { App, GATEWAY, VIDEO, fresh, freePort, token, until, watchedFetch } from "./client-support.js";

/**
 * A client, and calls of its account without it.
 *
 * @param {string} name
 * @param {import("../../gateway/web/client.js").Token} [bearer]
 * @param {import("../../gateway/web/client.js").ClientOptions} [means]
 */
function somebody(name, bearer, means = {}) {
  const app = new App(fresh(name));
  const named = { deviceId: "phone", clientId: app.clientId };
  const client = new Client(GATEWAY, bearer ?? token(app.clientId), { ...named, ...means });
  return { app, client };
}

/** Bytes that are kept in memory, in the place of a file. */
class MemoryPart {
  /** @type {number[]} */
  bytes = [];

  get size() {
    return this.bytes.length;
  }

  /** @param {Uint8Array} bytes */
  async append(bytes) {
    for (const byte of bytes) this.bytes.push(byte);
  }

  async keep() {}

  async clear() {
    this.bytes = [];
  }
}

/**
 * What a promise is rejected with.
 *
 * @param {Promise<unknown>} promise
 */
async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  return assert.fail("it went well");
}

/** @param {string} url */
const pathOf = (url) => new URL(url).pathname;

/** All that an error says of itself. @param {unknown} error */
function shown(error) {
  const { message, stack, cause } = /** @type {Error} */ (error);
  return JSON.stringify([message, stack, String(cause), JSON.stringify(error)]);
}

test("a video goes from one client to another, call by call", async () => {
  const alice = somebody("alice");
  const bob = somebody("bob");
  const announced = await alice.client.announce(bob.app.clientId, { size: VIDEO.length });
  /** @type {number[]} */
  const moves = [];
  await alice.client.upload(announced, new Blob([VIDEO]), { progress: (soFar) => moves.push(soFar) });
  assert.equal(moves.at(-1), VIDEO.length);
  await alice.client.upload(announced, new Blob([VIDEO])); // it is stored already
  const confirmed = await alice.client.confirm(announced.video_id, bob.app.clientId);
  assert.equal(confirmed.outcome, "duplicate");
  const packet = await bob.client.poll();
  assert.equal(packet?.incoming[0].video_id, announced.video_id);
  const part = new MemoryPart();
  assert.equal(await bob.client.download(announced.video_id, part), VIDEO.length);
  assert.deepEqual(Uint8Array.from(part.bytes), VIDEO);
  assert.equal((await bob.client.report(announced.video_id, "downloaded")).outcome, "applied");
  const { results } = await bob.client.sync([{ video_id: announced.video_id, status: "viewed", recipient_id: null }]);
  assert.equal(results[0].outcome, "applied");
  assert.deepEqual(await alice.app.outgoing(), ["viewed"]);
  assert.equal((await alice.client.delete(announced.video_id, bob.app.clientId)).outcome, "applied");
  assert.deepEqual(await alice.app.outgoing(), []);
});

test("a packet is the same text by every way", async () => {
  const alice = somebody("alice");
  const bob = somebody("bob");
  await alice.app.send(bob.app.clientId);
  const text = await bob.app.text();
  const live = await bob.client.live();
  assert.equal((await live.next()).text, text);
  live.close();
  assert.equal((await bob.client.poll())?.text, text);
  assert.equal((await bob.client.sync()).packet.text, text);
});

test("a poll is held until there is something newer", async () => {
  const alice = somebody("alice");
  const bob = somebody("bob");
  const { version } = await bob.app.packet();
  assert.equal(await bob.client.poll(version), null);
  const held = bob.client.poll(version, { wait: 30 });
  const videoId = await alice.app.send(bob.app.clientId);
  assert.equal((await held)?.incoming[0].video_id, videoId);
});

test("a call that is given up ends with what it was given up with", async () => {
  const { client } = somebody("bob");
  const giving = new AbortController();
  const held = client.poll(0, { wait: 60, signal: giving.signal });
  const reason = new Error("no more");
  giving.abort(reason);
  assert.equal(await failure(held), reason);
});

test("a call that takes too long is an error without an answer", async () => {
  const never = /** @type {typeof fetch} */ (
    (_, init) => new Promise((_, reject) => init?.signal?.addEventListener("abort", () => reject(init.signal?.reason)))
  );
  const error = await failure(somebody("bob", undefined, { fetch: never, callS: 0.01 }).client.poll());
  assert.ok(error instanceof GatewayError);
  assert.deepEqual([error.status, error.detail, error.remedy], [null, "TimeoutError", Remedy.RETRY]);
});

test("calls whose token has expired share a new one", async () => {
  const app = new App(fresh("alice"));
  let asked = 0;
  const source = async () => token(app.clientId, { ttlS: ++asked === 1 ? -3600 : 3600 });
  const { client } = somebody("alice", source, { clientId: app.clientId });
  const packets = await Promise.all([client.poll(), client.poll(), client.sync().then(({ packet }) => packet)]);
  assert.deepEqual(packets.map((packet) => packet?.client_id), Array(3).fill(app.clientId));
  assert.equal(asked, 2);
});

test("a token that nobody renews is refused, and a new one that is refused too is not tried again", async () => {
  const watched = watchedFetch();
  const expired = token("alice", { ttlS: -3600 });
  for (const [bearer, calls] of /** @type {const} */ ([[expired, 1], [() => expired, 2]])) {
    watched.asked.length = 0;
    const error = await failure(somebody("alice", bearer, { fetch: watched }).client.poll());
    assert.ok(error instanceof GatewayError);
    assert.deepEqual([error.status, error.code, error.remedy], [401, "unauthorized", Remedy.RENEW]);
    assert.equal(watched.asked.length, calls);
  }
});

test("the token goes to the gateway and to nothing else, and nothing is kept of an answer", async () => {
  const watched = watchedFetch();
  const alice = somebody("alice", undefined, { fetch: watched });
  const bob = somebody("bob", undefined, { fetch: watched });
  const announced = await alice.client.announce(bob.app.clientId, { size: VIDEO.length });
  await alice.client.upload(announced, new Blob([VIDEO]));
  await bob.client.download(announced.video_id, new MemoryPart());
  const ways = watched.asked.map(({ url, headers }) => [pathOf(url).split("/")[1], headers.has("authorization")]);
  assert.deepEqual(ways, [["v1", true], ["objects", false], ["v1", true], ["objects", false]]);
  for (const request of watched.asked) {
    assert.deepEqual([request.credentials, request.cache, request.redirect], ["omit", "no-store", "error"]);
    assert.equal(request.referrerPolicy, "no-referrer");
  }
});

test("no error shows a token or a signed URL", async () => {
  const secret = token("alice");
  const nowhere = `http://127.0.0.1:${await freePort()}`;
  const client = new Client(nowhere, secret, { deviceId: "phone" });
  const odd = new Client(GATEWAY, "no/subprotocol=secret", { deviceId: "phone" });
  const spaced = new Client(GATEWAY, "secret secret", { deviceId: "phone" });
  const { client: alice } = somebody("alice");
  const announced = await alice.announce("bob", { size: 1 });
  const changed = { ...announced, upload: { ...announced.upload, url: `${announced.upload.url}secret` } };
  const away = { ...announced, upload: { ...announced.upload, url: `${nowhere}/secret` } };
  const calls = [client.poll(), client.live(), odd.live(), spaced.poll()];
  const uploads = [changed, away].map((upload) => alice.upload(upload, new Blob(["a"])));
  const errors = await Promise.all([...calls, ...uploads].map(failure));
  for (const error of errors) {
    assert.doesNotMatch(shown(error), /secret|signature=/);
    assert.ok(!shown(error).includes(secret));
  }
  assert.ok(errors[4] instanceof UploadError);
  assert.equal(errors[4].remedy, Remedy.ANNOUNCE);
  assert.ok(errors[5] instanceof UploadError);
  assert.equal(errors[5].remedy, Remedy.RETRY);
});

test("a source that has not as many bytes as were announced is told apart from a network that fails", async () => {
  const { client } = somebody("alice");
  const announced = await client.announce("bob", { size: 10 });
  for (const size of [9, 11]) {
    const bytes = async function* () {
      yield new Uint8Array(size);
    };
    assert.ok((await failure(client.upload(announced, bytes()))) instanceof RangeError);
    assert.ok((await failure(client.upload(announced, new Blob([new Uint8Array(size)])))) instanceof RangeError);
  }
  const broken = new Error("the disk is gone");
  const unreadable = async function* () {
    yield new Uint8Array(5);
    throw broken;
  };
  assert.equal(await failure(client.upload(announced, unreadable())), broken);
});

test("a download goes on where it was, and what is none of the video is removed", async () => {
  const { app, client } = somebody("bob");
  const videoId = await new App(fresh("alice")).send(app.clientId);
  const part = new MemoryPart();
  await part.append(VIDEO.subarray(0, 1000));
  /** @type {number[]} */
  const moves = [];
  assert.equal(await client.download(videoId, part, { progress: (soFar) => moves.push(soFar) }), VIDEO.length);
  assert.ok(moves[0] > 1000);
  assert.deepEqual(Uint8Array.from(part.bytes), VIDEO);
  assert.equal(await client.download(videoId, part), VIDEO.length); // it was whole already
  await part.append(VIDEO);
  const error = await failure(client.download(videoId, part));
  assert.ok(error instanceof DownloadError);
  assert.deepEqual([error.status, error.remedy, part.size], [416, Remedy.RETRY, 0]);
});

test("a download is refused where the answer does not say what it has, and goes on where it broke off", async () => {
  const { app } = somebody("bob");
  const videoId = await new App(fresh("alice")).send(app.clientId);
  const bare = watchedFetch((response, { url }) => (url.includes("/v1/") ? response : new Response(response.body)));
  const { client } = somebody("bob", token(app.clientId), { clientId: app.clientId, fetch: bare });
  assert.match(String(await failure(client.download(videoId, new MemoryPart()))), /does not say which bytes/);
  const short = watchedFetch((response, { url }) =>
    url.includes("/v1/") ? response : new Response(new Uint8Array(7), { headers: response.headers }),
  );
  const part = new MemoryPart();
  const { client: other } = somebody("bob", token(app.clientId), { clientId: app.clientId, fetch: short });
  assert.match(String(await failure(other.download(videoId, part))), /7 of 1048576 bytes came/);
  assert.equal(part.size, 7);
});

test("a video that is not there any more is to be polled for", async () => {
  const { client } = somebody("bob");
  const error = await failure(client.download("0199c0de-0000-7000-8000-000000000001", new MemoryPart()));
  assert.ok(error instanceof DownloadError);
  assert.deepEqual([error.code, error.remedy], ["not_tracked", Remedy.POLL]);
});

test("over a socket packets come, statuses are reported, and the newest packet is enough", async () => {
  const alice = somebody("alice");
  const bob = somebody("bob");
  const live = await bob.client.live();
  assert.equal((await live.next()).incoming.length, 0);
  const videoId = await alice.app.send(bob.app.clientId);
  const packet = await live.next();
  assert.equal(packet.incoming[0].video_id, videoId);
  await live.acknowledge(packet.version);
  await until(async () => (await alice.app.outgoing())[0] === "notified", "the sender is told");
  assert.equal((await live.report(videoId, "downloaded")).outcome, "applied");
  assert.equal((await live.report(videoId, "viewed")).outcome, "applied");
  const { version } = await bob.app.packet();
  while ((await live.next()).version < version); // versions between may be skipped
  const refused = await failure(live.confirm(videoId, "."));
  assert.ok(refused instanceof GatewayError);
  assert.equal(refused.code, "invalid");
  live.close();
  const closed = await failure(live.next());
  assert.ok(closed instanceof SocketClosed);
  assert.equal(closed.code, 1000);
  const late = await failure(live.report(videoId, "viewed"));
  assert.ok(late instanceof GatewayError);
  assert.deepEqual([late.status, late.remedy], [null, Remedy.RETRY]);
});

test("a socket that is opened again by the same device ends with 4409", async () => {
  const { client } = somebody("bob");
  const old = await client.live();
  const newer = await client.live();
  await old.next();
  const closed = await failure(old.next());
  assert.ok(closed instanceof SocketClosed);
  assert.deepEqual([closed.code, closed.reason, closed.remedy], [4409, "displaced", Remedy.NONE]);
  newer.close();
});

test("a socket gets a new token, and ends with that of somebody else", async () => {
  const { app, client } = somebody("bob");
  const live = await client.live();
  await live.renew(token(app.clientId));
  const refused = await failure(live.renew(token("mallory")));
  assert.ok(refused instanceof GatewayError);
  assert.deepEqual([refused.status, refused.remedy], [401, Remedy.RENEW]);
  await live.next();
  const closed = await failure(live.next());
  assert.ok(closed instanceof SocketClosed);
  assert.deepEqual([closed.code, closed.remedy], [4401, Remedy.RENEW]);
});

test("a socket that ends since its client has logged out is not opened again", async () => {
  const { client } = somebody("bob");
  const live = await client.live();
  await live.next();
  await client.unregister();
  const closed = await failure(live.next());
  assert.ok(closed instanceof SocketClosed);
  assert.deepEqual([closed.code, closed.remedy], [4401, Remedy.NONE]);
});

test("why a socket was refused is learned by a poll, which acknowledges nothing that was not applied", async () => {
  const watched = watchedFetch();
  const refused = await failure(somebody("bob", "garbage", { fetch: watched }).client.live(5));
  assert.ok(refused instanceof GatewayError);
  assert.deepEqual([refused.status, refused.code], [401, "unauthorized"]);
  const [{ url, headers }] = watched.asked;
  assert.equal(pathOf(url), "/v1/poll");
  assert.deepEqual([new URL(url).searchParams.get("version"), headers.get("if-none-match")], ["5", '"5"']);
  const bound = await failure(somebody("bob", token("bob", { device: "tablet" })).client.live());
  assert.ok(bound instanceof GatewayError);
  assert.equal(bound.code, "forbidden");
  const alice = new App(fresh("alice"));
  const bob = new App(fresh("bob"));
  await alice.send(bob.clientId);
  const none = class extends WebSocket {
    /** @param {string | URL} url */
    constructor(url) {
      super(url, ["info.v1"]); // without the token: it is refused
    }
  };
  const { client } = somebody("bob", token(bob.clientId), { clientId: bob.clientId, WebSocket: none });
  assert.match(String(await failure(client.live())), /no socket gets through/);
  assert.deepEqual(await alice.outgoing(), ["uploaded"]);
});

test("a socket whose token has expired is opened with a new one", async () => {
  const bob = new App(fresh("bob"));
  const tokens = [token(bob.clientId), token(bob.clientId, { ttlS: -3600 })];
  const { client } = somebody("bob", () => String(tokens.pop()), { clientId: bob.clientId });
  const live = await client.live();
  assert.equal((await live.next()).client_id, bob.clientId);
  assert.deepEqual(tokens, []);
  live.close();
});

test("a socket over which something comes that the protocol does not have is closed for good", async () => {
  /** @type {WebSocket[]} */
  const sockets = [];
  const kept = class extends WebSocket {
    /**
     * @param {string | URL} url
     * @param {string | string[]} [protocols]
     */
    constructor(url, protocols) {
      super(url, protocols);
      sockets.push(this);
    }
  };
  const says = (/** @type {string} */ data) => sockets[0].onmessage?.(new MessageEvent("message", { data }));
  const live = await somebody("bob", undefined, { WebSocket: kept }).client.live();
  await live.next();
  says('{"type":"news"}'); // a type that is not known is ignored
  says('{"type":"info"}');
  const closed = await failure(live.next());
  assert.ok(closed instanceof SocketClosed);
  assert.deepEqual([closed.code, closed.remedy], [1002, Remedy.NONE]);
});

test("pushes are handed on as they arrive", async () => {
  const alice = somebody("alice");
  const bob = somebody("bob");
  await bob.client.register("apns", fresh("push-token"));
  const listening = new AbortController();
  /** @type {import("../../gateway/web/client.js").Push[]} */
  const pushes = [];
  let isOpen = false;
  const fetched = watchedFetch((response) => {
    isOpen = true;
    return response;
  });
  const listener = somebody("bob", token(bob.app.clientId), { clientId: bob.app.clientId, fetch: fetched }).client;
  const ended = failure(listener.pushes((push) => pushes.push(push), { signal: listening.signal }));
  await until(() => isOpen, "the stream is open");
  const videoId = await alice.app.send(bob.app.clientId);
  await until(() => pushes.length === 1, "a push arrives");
  assert.equal(pushes[0].packet?.incoming[0].video_id, videoId);
  assert.equal(pushes[0].packet?.text, await bob.app.text());
  listening.abort();
  assert.equal(await ended, listening.signal.reason);
});

test("a client drops what is older than what it applied, and what is somebody else's", async () => {
  const { client, app } = somebody("bob");
  const old = await client.poll();
  assert.ok(old);
  await new App(fresh("alice")).send(app.clientId);
  const newest = await client.poll();
  assert.ok(newest);
  assert.ok(client.wants(old));
  client.applied(newest);
  assert.equal(client.version, newest.version);
  assert.ok(!client.wants(old));
  assert.throws(() => client.applied({ ...newest, client_id: "mallory" }), RangeError);
});

test("when a token expires is read from it, and nothing from what is none", () => {
  const inAnHour = Math.floor(Date.now() / 1000) + 3600;
  assert.ok(Math.abs(Number(expiryS(token("é\u{1f4f1}"))) - inAnHour) <= 2);
  for (const other of ["", "a.b.c", "opaque", "a.e30.c"]) assert.equal(expiryS(other), null);
});
