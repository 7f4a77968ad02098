/** What tells two texts apart at a glance. @module */

/**
 * The size of a text in bytes, and the first 8 hex digits of their SHA-256; none where the page may not compute it,
 * since it came over plain HTTP from another machine.
 *
 * @param {string} text
 * @returns {Promise<{ bytes: number, hash: string | null }>}
 */
export async function fingerprint(text) {
  const encoded = new TextEncoder().encode(text);
  if (!isSecureContext) return { bytes: encoded.length, hash: null };
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", encoded), 0, 4);
  return { bytes: encoded.length, hash: hex(digest) };
}

/**
 * Bytes as lower-case hex digits.
 *
 * @param {Uint8Array} bytes
 */
export function hex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
