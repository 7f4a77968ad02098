/** What an operator who has signed in may ask. The token is kept as long as the tab, and goes only into a header. */

const KEPT = "operator-token";

/** The token is wrong, or no longer right. */
export class SignedOut extends Error {}

/** It was answered otherwise than hoped. `status`: HTTP's. `retryMs`: when the gateway would like to be asked again. */
export class Refused extends Error {
  /**
   * @param {number} status
   * @param {string} message in words, from the gateway if it said something
   * @param {number | null} retryMs
   */
  constructor(status, message, retryMs) {
    super(message);
    this.status = status;
    this.retryMs = retryMs;
  }
}

/** An operator who has given a token, right or wrong. */
export class Session {
  #token;

  /** @param {string} token the operator's */
  constructor(token) { this.#token = token; }

  /** The session that this tab has kept, if it has. */
  static kept() {
    const token = sessionStorage.getItem(KEPT);
    return token === null ? null : new Session(token);
  }

  /** Keep it until the tab is closed. */
  keep() { sessionStorage.setItem(KEPT, this.#token); }

  /** Sign out: nothing is kept. */
  static forget() { sessionStorage.removeItem(KEPT); }

  /**
   * An answer that is 2xx. It throws `SignedOut` after 401, `Refused` after any other, and what `fetch` throws where
   * there is none.
   * @param {string} path
   * @param {{method?: string, signal?: AbortSignal}} [options]
   */
  async ask(path, options = {}) {
    const headers = { Authorization: `Bearer ${this.#token}` };
    const answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
    if (answer.ok) return answer;
    if (answer.status === 401) throw new SignedOut("That is not the operator's token.");
    const seconds = Number(answer.headers.get("Retry-After"));
    throw new Refused(answer.status, await detail(answer), seconds > 0 ? seconds * 1000 : null);
  }
}

/** @param {Response} answer */
async function detail(answer) {
  try {
    const problem = await answer.json();
    if (typeof problem.detail === "string") return problem.detail;
  } catch { /* it is no problem document: something between here and the gateway answered */ }
  return `the answer was ${answer.status}`;
}
