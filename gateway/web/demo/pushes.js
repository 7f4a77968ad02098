/**
 * The push service of a phone. The gateway's console sender tells over a stream what it pushes; this hands it to the
 * phone, or keeps the newest until the phone has a network, as providers do.
 *
 * @module
 */

import { Client, GatewayError } from "../client.js";
import { issueToken } from "./tokens.js";

/** A stream that ended is asked for again after this long. */
const AGAIN_MS = 2_000;

/** A stream on which nothing comes for so long is asked for anew. */
const IDLE_S = 600;

/**
 * A push as it came, and what it says: `payload` is what an app is handed.
 *
 * @typedef {import("../client.js").Push & { payload: { [member: string]: unknown } }} Arrival
 */

/**
 * The phone, which is told of each push that it arrives, or that it is kept, in the place of the one before; and that
 * the gateway does not know the device.
 *
 * @typedef {{ arrive: (push: Arrival) => void, keep: () => void, unknown: () => void }} Receiver
 */

/** Listens for one phone's pushes. */
export class PushService {
  #clientId;
  #phone;
  #online = true;
  /** @type {Arrival | null} */
  #kept = null;
  /** @type {AbortController | null} */
  #listening = null;
  /** For which device. */
  #deviceId = "";

  /**
   * @param {string} clientId
   * @param {Receiver} phone
   */
  constructor(clientId, phone) {
    this.#clientId = clientId;
    this.#phone = phone;
  }

  /** @param {string} deviceId which is registered; another that was listened for before is let go */
  listen(deviceId) {
    if (this.#listening !== null && this.#deviceId === deviceId) return;
    this.stop();
    this.#deviceId = deviceId;
    this.#listening = new AbortController();
    void this.#run(deviceId, this.#listening.signal);
  }

  /** Listen no more. */
  stop() {
    this.#listening?.abort();
    this.#listening = null;
  }

  /**
   * The phone has a network: what was kept for it arrives. Or it has none.
   *
   * @param {boolean} online
   */
  network(online) {
    this.#online = online;
    const kept = this.#kept;
    if (!online || kept === null) return;
    this.#kept = null;
    this.#phone.arrive(kept);
  }

  /** @param {Arrival} push */
  #take(push) {
    if (this.#online) {
      this.#phone.arrive(push);
    } else {
      this.#kept = push;
      this.#phone.keep();
    }
  }

  /**
   * @param {string} deviceId
   * @param {AbortSignal} signal
   */
  async #run(deviceId, signal) {
    const clientId = this.#clientId;
    const token = () => issueToken(clientId, (...asked) => fetch(...asked));
    const client = new Client(location.origin, token, { clientId, deviceId });
    const take = (/** @type {import("../client.js").Push} */ push, /** @type {string} */ text) =>
      this.#take({ ...push, payload: JSON.parse(text) });
    while (!signal.aborted) {
      try {
        await client.pushes(take, { idleS: IDLE_S, signal });
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof GatewayError && error.status === 404) {
          this.stop();
          this.#phone.unknown();
          return;
        }
      }
      await pause(AGAIN_MS, signal);
    }
  }
}

/**
 * @param {number} ms
 * @param {AbortSignal} signal ends it early
 * @returns {Promise<void>}
 */
function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
