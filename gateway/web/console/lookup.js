/** Looking up a client: which one the address names, again and again while it is open, and closing its sockets. */

import { byId } from "./dom.js";
import { ClientView } from "./client.js";
import { Refused, SignedOut } from "./session.js";

/** @typedef {import("./session.js").Session} Session */
/** @typedef {import("./client.js").Found} Found */

const AGAIN_MS = 2_000;
const NAME = "client";

/** The client that the page's address names after `#`, if it does. */
export function wanted() {
  return new URLSearchParams(location.hash.slice(1)).get(NAME)?.trim() || null;
}

/**
 * The address that names this client.
 * @param {string} clientId
 */
export function addressOf(clientId) {
  return `#${new URLSearchParams({ [NAME]: clientId })}`;
}

/** The client that is open, or none. */
export class Lookup {
  #session;
  #signedOut;
  #place = byId("client", HTMLElement);
  /** @type {AbortController | null} */
  #open = null;

  /**
   * @param {Session} session
   * @param {(reason: string) => void} signedOut what is done when the token is refused
   */
  constructor(session, signedOut) {
    this.#session = session;
    this.#signedOut = signedOut;
  }

  /**
   * Show this client from now on; null for none.
   * @param {string | null} clientId
   */
  show(clientId) {
    this.#open?.abort();
    this.#open = null;
    byId("sure", HTMLDialogElement).close("no");
    this.#place.hidden = clientId === null;
    this.#place.replaceChildren();
    if (clientId === null) return;
    const opened = this.#open = new AbortController();
    const { signal } = opened;
    const view = new ClientView(this.#place, clientId, deviceId => this.#close(view, clientId, deviceId, signal));
    void this.#keepLooking(view, clientId, signal);
  }

  /**
   * @param {ClientView} view
   * @param {string} clientId
   * @param {AbortSignal} signal
   */
  async #keepLooking(view, clientId, signal) {
    while (!signal.aborted) {
      await this.#look(view, clientId, signal);
      await new Promise(resolve => setTimeout(resolve, AGAIN_MS));
    }
  }

  /**
   * @param {ClientView} view
   * @param {string} clientId
   * @param {AbortSignal} signal
   */
  async #look(view, clientId, signal) {
    try {
      const answer = await this.#session.ask(pathOf(clientId), { signal });
      /** @type {Found} */
      const found = await answer.json();
      view.show(found);
    } catch (error) {
      if (!signal.aborted) this.#fail(view, error);
    }
  }

  /**
   * @param {ClientView} view
   * @param {string} clientId
   * @param {string | null} deviceId null: of all its devices
   * @param {AbortSignal} signal
   */
  async #close(view, clientId, deviceId, signal) {
    const whose = deviceId === null ? `all sockets of ${clientId}` : `the socket of ${clientId}'s device ${deviceId}`;
    if (!await sure(`This closes ${whose}, in whatever process. Apps come back within five seconds.`)) return;
    const query = deviceId === null ? "" : `?${new URLSearchParams({ device_id: deviceId })}`;
    view.say(`Closing ${whose} …`);
    try {
      await this.#session.ask(`${pathOf(clientId)}/close${query}`, { method: "POST", signal });
    } catch (error) {
      if (!signal.aborted) this.#fail(view, error, "They could not be closed");
      return;
    }
    view.say(`Told ${whose} to close: the list of connections shows how they go, and come back.`);
    await this.#look(view, clientId, signal);
  }

  /**
   * @param {ClientView} view
   * @param {unknown} error
   * @param {string} [what]
   */
  #fail(view, error, what = "It cannot be looked up now") {
    if (error instanceof SignedOut) this.#signedOut(error.message);
    else if (error instanceof Refused && error.status === 422) view.fail("That is not the id of a client.");
    else view.fail(`${what}: ${error instanceof Refused ? error.message : "the gateway does not answer"}.`);
  }
}

/** @param {string} clientId */
function pathOf(clientId) {
  return `/console/clients/${encodeURIComponent(clientId)}`;
}

/**
 * Ask first. True if the answer is yes.
 * @param {string} text
 * @returns {Promise<boolean>}
 */
function sure(text) {
  const dialog = byId("sure", HTMLDialogElement);
  byId("sure-text", HTMLElement).textContent = text;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise(resolve => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/** Make the buttons of the dialog work. */
export function wireDialog() {
  const dialog = byId("sure", HTMLDialogElement);
  byId("sure-yes", HTMLButtonElement).addEventListener("click", () => dialog.close("yes"));
  byId("sure-no", HTMLButtonElement).addEventListener("click", () => dialog.close("no"));
}
