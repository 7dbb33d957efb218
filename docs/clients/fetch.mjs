// Calls the API for one organization, with Node's own modules alone.  node fetch.mjs ORGANIZATION URL
import http from "node:http";

// Keeps connections to the worker and uses them again.
const agent = new http.Agent({ keepAlive: true, maxSockets: 8 });
const socketPath = process.env.CONSENTRY_SOCKET ?? "/run/consentry/consentry.sock";

/** Asks the worker; gives { token, tag }, or throws an Error whose code is the problem's, such as consent_lost. */
function ask(method, path, headers = {}) {
  return new Promise((resolve, reject) => {
    const request = http.request({ socketPath, agent, method, path, headers, timeout: 60_000 }, (answer) => {
      let text = "";
      answer.setEncoding("utf8");
      answer.on("data", (chunk) => (text += chunk));
      answer.on("end", () => {
        const body = JSON.parse(text);
        if (answer.statusCode === 200) {
          resolve({ token: body.access_token, tag: answer.headers.etag });
        } else {
          reject(Object.assign(new Error(body.detail ?? body.title), { code: body.code }));
        }
      });
    });
    request.on("timeout", () => request.destroy(new Error("the worker does not answer")));
    request.on("error", (error) => {
      // A connection that was kept had been closed meanwhile, as by a restart: once more, on a new one.
      if (request.reusedSocket && error.code === "ECONNRESET") {
        ask(method, path, headers).then(resolve, reject);
      } else {
        reject(error);
      }
    });
    request.end();
  });
}

const [organization, url] = process.argv.slice(2);
const call = (token) => fetch(url, { headers: { authorization: `Bearer ${token}` } });

let { token, tag } = await ask("GET", `/v1/organizations/${organization}/token`);
let answer = await call(token);
if (answer.status === 401) {
  // The tag names the rejected token, so that many callers cause one exchange.
  ({ token } = await ask("POST", `/v1/organizations/${organization}/token/refresh`, { "if-match": tag }));
  answer = await call(token);
}
process.stdout.write(await answer.text());
process.exitCode = answer.status === 200 ? 0 : 1;
agent.destroy();
