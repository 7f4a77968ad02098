/** Tokens, as an app's own backend would issue them. @module */

import { GatewayError } from "../client.js";

/**
 * A new token of a client of the demo. Throws GatewayError where there is none to be had now.
 *
 * @param {string} clientId
 * @param {typeof fetch} call what to ask with
 * @returns {Promise<string>}
 */
export async function issueToken(clientId, call) {
  try {
    const answer = await call("/demo/token", { method: "POST", body: JSON.stringify({ client_id: clientId }) });
    if (answer.ok) return (await answer.json()).token;
  } catch {
    // What it says may hold more than anybody should read: that there is none is all that matters.
  }
  throw new GatewayError(null, null, "no token was to be had");
}
