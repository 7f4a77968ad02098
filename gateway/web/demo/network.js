/**
 * A phone's network, which can be cut: what the client is given to call with, in the place of the browser's own.
 *
 * While it is cut, calls and transfers fail at once, those in flight too. A socket that was open stays half open for
 * ever: nothing comes, nothing goes, and no close frame says so to either side.
 *
 * @module
 */

/** The network of one phone. */
export class Network {
  #cut = new AbortController();
  /** @type {Set<CuttableSocket>} */
  #sockets = new Set();
  #changed;

  /**
   * @param {boolean} online
   * @param {() => void} changed whether there is one, or an open socket over it, is not as it was
   */
  constructor(online, changed) {
    this.#changed = changed;
    if (!online) this.cut();
  }

  get online() {
    return !this.#cut.signal.aborted;
  }

  /** Whether a socket is open over it. */
  get live() {
    return [...this.#sockets].some((socket) => socket.readyState === WebSocket.OPEN);
  }

  /** There is none any more. */
  cut() {
    this.#cut.abort(new TypeError("there is no network"));
    for (const socket of this.#sockets) socket.silence();
    this.#sockets.clear();
    this.#changed();
  }

  /** There is one again. */
  restore() {
    this.#cut = new AbortController();
    this.#changed();
  }

  /** @type {typeof globalThis.fetch} */
  fetch = async (input, init = {}) => {
    const cut = this.#cut.signal;
    cut.throwIfAborted();
    return fetch(input, { ...init, signal: init.signal ? AbortSignal.any([cut, init.signal]) : cut });
  };

  /** @returns {typeof globalThis.WebSocket} */
  get WebSocket() {
    const open = (/** @type {string | URL} */ url, /** @type {string[]} */ protocols) => {
      const socket = new CuttableSocket(this.online ? new WebSocket(url, protocols) : null, () => this.#changed());
      if (this.online) this.#sockets.add(socket);
      return socket;
    };
    // What the client uses of a socket, and no more: the rest of the browser's type has no meaning here.
    return /** @type {any} */ (
      class {
        constructor(/** @type {string | URL} */ url, /** @type {string[]} */ protocols) {
          return open(url, protocols);
        }
      }
    );
  }

  /** @returns {typeof globalThis.XMLHttpRequest} */
  get XMLHttpRequest() {
    const cut = () => this.#cut.signal;
    return class extends XMLHttpRequest {
      /** @param {Document | XMLHttpRequestBodyInit | null} [body] */
      send(body) {
        const signal = cut();
        const fail = () => {
          this.onabort = null;
          this.abort();
          this.dispatchEvent(new ProgressEvent("error"));
        };
        if (signal.aborted) {
          fail();
          return;
        }
        signal.addEventListener("abort", fail);
        this.addEventListener("loadend", () => signal.removeEventListener("abort", fail));
        super.send(body);
      }
    };
  }
}

/** A socket as the client uses it. Once it is silenced nothing passes, in either direction. */
class CuttableSocket {
  CONNECTING = WebSocket.CONNECTING;
  /** @type {(() => void) | null} */
  onopen = null;
  /** @type {((event: MessageEvent) => void) | null} */
  onmessage = null;
  /** @type {((event: Pick<CloseEvent, "code" | "reason">) => void) | null} */
  onclose = null;
  #socket;

  /**
   * @param {WebSocket | null} socket null where nothing can be reached
   * @param {() => void} changed it is open, or open no more
   */
  constructor(socket, changed) {
    this.#socket = socket;
    if (socket === null) return;
    socket.onopen = () => this.#pass(() => this.onopen?.(), changed);
    socket.onmessage = (event) => this.#pass(() => this.onmessage?.(event));
    socket.onclose = (event) => this.#pass(() => this.onclose?.(event), changed);
  }

  get readyState() {
    return this.#socket?.readyState ?? WebSocket.CONNECTING;
  }

  get protocol() {
    return this.#socket?.protocol ?? "";
  }

  /** @param {string} text */
  send(text) {
    this.#socket?.send(text);
  }

  /** @param {number} [code] */
  close(code) {
    this.#socket?.close(code);
  }

  /** Its network is gone. The browser keeps its end open until the page ends: that is what half open is. */
  silence() {
    this.#socket = null;
  }

  /** @param {...(() => void)} handlers */
  #pass(...handlers) {
    if (this.#socket !== null) for (const handle of handlers) handle();
  }
}
