// What stands between browsers and the listeners of the tests: a proxy that ends TLS for several host names on one
// port, by their `Host`. A browser that resolves those names to it sees sites of different owners, which two ports of one
// address are not.
//
//     node front.mjs '{"connect.isv.test": {"to": "127.0.0.1:9465", "strip": "/consents"}, …}'
//
// `to` is where requests for that host go; `strip` a beginning of the path that is taken away first, as a proxy does that
// publishes something below a path. Everything else passes through: `Host` as it came, and the usual `X-Forwarded-…`.
// `onward` in their place is another host name that the browser is sent on to, with the same path.
//
// Prints one line of JSON with `ready`, `port` and `spki` when it listens. `spki` names its key for
// `--ignore-certificate-errors-spki-list` of Chromium: the certificate is made anew at each start, by openssl.
// Then a line for each request that it has passed on: `host`, `method`, `path`, `status`, and of what the browser said
// `referer`, `site` (`Sec-Fetch-Site`), `language` and `cookies` (their names). Ends when its standard input ends.

import { execFileSync } from 'node:child_process';
import { createHash, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { request as requestOf } from 'node:http';
import { createServer } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const routes = JSON.parse(process.argv[2]);

function makeCertificate(names) {
  const folder = mkdtempSync(join(tmpdir(), 'consentry-front-'));
  try {
    const [key, certificate] = ['key.pem', 'certificate.pem'].map((name) => join(folder, name));
    const subject = ['-subj', `/CN=${names[0]}`, '-addext', `subjectAltName=${names.map((name) => `DNS:${name}`)}`];
    const curve = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];
    const files = ['-keyout', key, '-out', certificate, '-days', '2'];
    execFileSync('openssl', ['req', '-x509', ...curve, ...subject, ...files], { stdio: 'ignore' });
    return { key: readFileSync(key), cert: readFileSync(certificate) };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function spkiOf(certificate) {
  const key = new X509Certificate(certificate).publicKey.export({ type: 'spki', format: 'der' });
  return createHash('sha256').update(key).digest('base64');
}

function tell(request, status) {
  const { host, referer, cookie, 'sec-fetch-site': site, 'accept-language': language } = request.headers;
  const cookies = (cookie ?? '').split('; ').filter((pair) => pair !== '').map((pair) => pair.split('=')[0]);
  const { method, url: path } = request;
  console.log(JSON.stringify({ host, method, path, status, referer, site, language, cookies }));
}

// The path below `strip`, or nothing where it is not below it.
function pathBelow(path, strip = '') {
  if (!path.startsWith(strip)) return undefined;
  const rest = path.slice(strip.length);
  if (rest.startsWith('/')) return rest;
  return rest === '' || rest.startsWith('?') ? `/${rest}` : undefined;
}

function passOn(request, response) {
  const fail = (status) => {
    tell(request, status);
    if (response.headersSent) return response.destroy();
    return response.writeHead(status, { 'content-type': 'text/plain' }).end(`the front answers ${status}\n`);
  };
  const route = routes[request.headers.host];
  if (route?.onward !== undefined) {
    tell(request, 302);
    return response.writeHead(302, { location: `https://${route.onward}${request.url}` }).end();
  }
  const path = route && pathBelow(request.url, route.strip);
  if (path === undefined) return fail(404);

  const [host, port] = route.to.split(':');
  const headers = {
    ...request.headers,
    'x-forwarded-for': request.socket.remoteAddress,
    'x-forwarded-host': request.headers.host,
    'x-forwarded-proto': 'https',
  };
  const onward = requestOf({ host, port, method: request.method, path, headers }, (answer) => {
    tell(request, answer.statusCode);
    response.writeHead(answer.statusCode, answer.rawHeaders);
    answer.pipe(response);
  });
  onward.on('error', () => fail(502));
  return request.pipe(onward);
}

const certificate = makeCertificate(Object.keys(routes));
const server = createServer(certificate, passOn);
server.listen(0, '127.0.0.1');
await once(server, 'listening');
console.log(JSON.stringify({ ready: true, port: server.address().port, spki: spkiOf(certificate.cert) }));

process.stdin.on('end', () => process.exit(0));
process.stdin.on('error', () => process.exit(0));
process.stdin.resume();
