// Receivers of webhooks, which verify every signature with the library of the Standard Webhooks specification and write
// down what they got.
//
//     node receiver.mjs PORT FILE        port 0: any free one
//
// Prints one line of JSON with `ready` and `port` on standard output when it listens. Ends when its standard input ends,
// so that it never outlives the test that started it.
//
// Every path below /hooks/ is a receiver of its own:
//   POST /hooks/NAME     a webhook. A line of JSON is appended to FILE: `receiver`, `id`, `verified_by` (the positions of
//                        the secrets that its signatures were verified with, as a list), `problem` (what the library says
//                        where none did), `signatures` (how many there were), `answered` (the status; null: none yet),
//                        `body` (as it came, as text)
//   PUT  /control/NAME   {"secrets":["whsec_…"], "status":200, "times":null, "retry_after":null, "delay_ms":0}
//                        sets any of these from now on. With `times`, so many get `status`, and the others 200
//   PUT  /control        {"now_ms":N} lets the library believe that it is that moment

import { once } from 'node:events';
import { appendFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';

import { Webhook } from 'standardwebhooks';

const LONGEST_BODY = 1024 * 1024;

const [port, file] = process.argv.slice(2);
const receivers = new Map();

function receiver(name) {
  if (!receivers.has(name)) {
    receivers.set(name, { secrets: [], status: 200, times: null, retry_after: null, delay_ms: 0 });
  }
  return receivers.get(name);
}

// The library asks the clock whether a timestamp is fresh; a test that lets weeks pass moves this clock along.
const realNow = Date.now;
let shift = 0;
Date.now = () => realNow() + shift;

async function read(request) {
  const chunks = [];
  let length = 0;
  for await (const chunk of request) {
    length += chunk.length;
    if (length > LONGEST_BODY) throw new Error('the body is too long');
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

function judge(secrets, body, headers) {
  const verifiedBy = [];
  let problem = secrets.length === 0 ? 'no secret is known' : null;
  secrets.forEach((secret, index) => {
    try {
      new Webhook(secret).verify(body, headers);
      verifiedBy.push(index);
    } catch (error) {
      problem = error.message;
    }
  });
  return { verifiedBy, problem: verifiedBy.length > 0 ? null : problem };
}

async function hook(name, request, response) {
  const terms = receiver(name);
  const body = await read(request);
  const { verifiedBy, problem } = judge(terms.secrets, body, request.headers);
  const status = terms.times === 0 ? 200 : terms.status;
  if (terms.times > 0) terms.times -= 1;
  const note = {
    receiver: name,
    id: request.headers['webhook-id'],
    verified_by: verifiedBy,
    problem,
    signatures: (request.headers['webhook-signature'] ?? '').split(' ').filter(Boolean).length,
    content_type: request.headers['content-type'],
    answered: terms.delay_ms > 0 ? null : status,
    body,
  };
  appendFileSync(file, `${JSON.stringify(note)}\n`);
  if (terms.delay_ms > 0) await sleep(terms.delay_ms, undefined, { ref: false });
  if (terms.retry_after !== null && status !== 200) response.setHeader('retry-after', terms.retry_after);
  response.writeHead(status).end();
}

async function answer(request, response) {
  const [, first, name] = new URL(request.url, 'http://localhost').pathname.split('/');
  if (request.method === 'POST' && first === 'hooks' && name) return hook(name, request, response);
  if (request.method === 'PUT' && first === 'control') {
    const change = JSON.parse(await read(request));
    if (name) Object.assign(receiver(name), change);
    else shift = change.now_ms - realNow();
    return response.writeHead(204).end();
  }
  return response.writeHead(request.method === 'HEAD' ? 405 : 404).end();
}

const server = createServer((request, response) => {
  answer(request, response).catch((error) => {
    console.error(error);
    if (!response.headersSent) response.writeHead(500);
    response.end();
  });
});
server.listen(Number(port ?? 0), '127.0.0.1');
await once(server, 'listening');
console.log(JSON.stringify({ ready: true, port: server.address().port }));

process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
