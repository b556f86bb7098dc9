// The backend: JSON over HTTP.

/** A failed request; `status` is 0 if there was no answer at all. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let signedOut = () => {};

/** What to do when the backend no longer knows who we are. */
export function onSignedOut(callback) {
  signedOut = callback;
}

/** Sends a request; returns the answer's JSON. */
export async function api(method, path, body) {
  let response;
  try {
    response = await fetch(`/api/${path}`, {
      method,
      headers: method === "GET" ? {} : { "Content-Type": "application/json" },
      body: body && JSON.stringify(body),
    });
  } catch {
    throw new ApiError(0, "No connection");
  }
  const answer = await response.json().catch(() => ({}));
  if (response.ok) return answer;
  if (response.status === 401) signedOut();
  throw new ApiError(response.status, answer.error ?? response.statusText);
}
