// A certified authorization server that nobody here wrote, set up as Visma Connect describes itself: consents by the
// authorization code flow with PKCE, refresh tokens that are one-time for one client and re-usable for the other, JWT
// access tokens that name no organization. Beside it, API keys by the password grant, as Dinero takes them, and the
// two calls of Dinero's API that the tests need.
//
//     node server.mjs [PORT]        0 or nothing: any free port
//
// Prints one line of JSON with `ready` and `port` on standard output when it listens; what oidc-provider says itself
// goes there too. Ends when its standard input ends, so that it never outlives the test that started it.
//
// Environment:
//   ACCESS_TOKEN_SECONDS  how long an access token lives (3600)
//   ROTATE                true or false: one-time or re-usable refresh tokens for both consent clients; unset: by client
//   TOKEN_DELAY_MS        how long the token endpoint holds back each finished answer (0)
//   REDIRECT_URIS         where both consent clients may come back to besides, with spaces between
//
// A proxy that ends TLS may stand in front of it for browsers (see ../front.mjs). The issuer is the loopback address
// all the same: that is where the worker asks, and what `iss` says (RFC 9207).
//
// Clients (all `hush-` secrets are markers that must never show up in a log):
//   isv_one_time   hush-one-time-secret   client_secret_post, one-time: a spent token kills the whole grant
//   isv_reuse      hush-reuse-secret      client_secret_post, re-use
//   personal       hush-personal-secret   client_secret_basic, grant_type=password
//
// Besides oidc-provider's own endpoints (/auth, /token, /token/revocation, /.well-known/openid-configuration):
//   GET  /judge             what happened at the token endpoint, see `judge` below
//   POST /judge             {"delay_ms": N} changes the delay from now on
//   GET  /v1/organizations  the organizations of the access token's account
//   GET  /v1/me             200 while the access token lives, else 401

import { once } from 'node:events';
import { createServer } from 'node:http';
import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';

import { exportJWK, generateKeyPair, jwtVerify } from 'jose';
import Provider, { errors } from 'oidc-provider';

const YEAR = 365 * 24 * 3600;
const LONGEST_CONTROL_BODY = 4096;
const API = 'https://api.example.test';
const SCOPES = 'dineropublicapi:read dineropublicapi:write';
// The issuer counts in whole seconds, so a token may be up to one second older than it believes.
const CLOCK_TOLERANCE_SECONDS = 1;

const accessTokenSeconds = Number(process.env.ACCESS_TOKEN_SECONDS ?? 3600);
let delayMs = Number(process.env.TOKEN_DELAY_MS ?? 0);
const furtherRedirectUris = (process.env.REDIRECT_URIS ?? '').split(' ').filter((uri) => uri !== '');
const rotates = (clientId) => (process.env.ROTATE === undefined ? clientId === 'isv_one_time' : process.env.ROTATE === 'true');

// Who may do what. A user whose name is not here owns one organization: `user-17` owns `org-17`.
const ORGANIZATIONS_OF_USERS = { alice: ['org-a', 'org-b'], bob: ['org-d'] };
const API_KEY = /^KEY-(org-[a-z0-9-]{1,64})$/;

function organizationsOf(account) {
  if (Object.hasOwn(ORGANIZATIONS_OF_USERS, account)) return ORGANIZATIONS_OF_USERS[account];
  const numbered = /^(?:user-|api-key:org-)([a-z0-9-]+)$/.exec(account);
  return numbered ? [`org-${numbered[1]}`] : [];
}

// What the tests hold the worker against.
const judge = {
  // By grant type, how many token requests ended in `ok` or in which OAuth error.
  exchanges: {},
  // The same, by client.
  clients: {},
  // How often a one-time refresh token was sent that had already been granted an answer.
  replays: 0,
  // How many grants the server revoked, for a replay or because it was asked to.
  revoked_grants: 0,
  // The most token requests that were under way at once.
  most_at_once: 0,
};
const granted = new Set();

// Storage that forgets nothing before its time: the adapter that comes with oidc-provider keeps about 1,000 entries.
const stored = new Map();
const membersOfGrant = new Map();
const idOfSessionUid = new Map();

class Adapter {
  constructor(model) {
    this.model = model;
  }

  key(id) {
    return `${this.model}:${id}`;
  }

  async upsert(id, payload, expiresIn) {
    const key = this.key(id);
    stored.set(key, { payload, expiresAt: expiresIn === undefined ? Infinity : Date.now() + expiresIn * 1000 });
    if (payload.uid !== undefined && this.model === 'Session') idOfSessionUid.set(payload.uid, id);
    if (payload.grantId !== undefined) {
      if (!membersOfGrant.has(payload.grantId)) membersOfGrant.set(payload.grantId, new Set());
      membersOfGrant.get(payload.grantId).add(key);
    }
  }

  async find(id) {
    const entry = stored.get(this.key(id));
    if (entry === undefined) return undefined;
    if (entry.expiresAt > Date.now()) return entry.payload;
    await this.destroy(id);
    return undefined;
  }

  async findByUid(uid) {
    return this.find(idOfSessionUid.get(uid));
  }

  async consume(id) {
    stored.get(this.key(id)).payload.consumed = Math.floor(Date.now() / 1000);
  }

  async destroy(id) {
    const key = this.key(id);
    membersOfGrant.get(stored.get(key)?.payload.grantId)?.delete(key);
    stored.delete(key);
  }

  async revokeByGrantId(grantId) {
    for (const key of membersOfGrant.get(grantId) ?? []) {
      if (key.startsWith(`${this.model}:`)) stored.delete(key);
    }
  }
}

const { publicKey, privateKey } = await generateKeyPair('RS256', { extractable: true });
const signingKey = { ...(await exportJWK(privateKey)), use: 'sig', alg: 'RS256', kid: 'test' };

const resourceServer = () => ({
  scope: SCOPES,
  audience: API,
  accessTokenTTL: accessTokenSeconds,
  accessTokenFormat: 'jwt',
  jwt: { sign: { alg: 'RS256' } },
});

function consentClient(clientId, secret) {
  return {
    client_id: clientId,
    client_secret: secret,
    application_type: 'native',
    // A native client may use any port of the loopback address (RFC 8252 section 7.3).
    redirect_uris: ['http://127.0.0.1/cb', ...furtherRedirectUris],
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    token_endpoint_auth_method: 'client_secret_post',
  };
}

function makeProvider(issuer) {
  const provider = new Provider(issuer, {
    adapter: Adapter,
    clients: [
      consentClient('isv_one_time', 'hush-one-time-secret'),
      consentClient('isv_reuse', 'hush-reuse-secret'),
      {
        client_id: 'personal',
        client_secret: 'hush-personal-secret',
        redirect_uris: [],
        grant_types: ['password'],
        response_types: [],
        token_endpoint_auth_method: 'client_secret_basic',
      },
    ],
    cookies: { keys: [randomBytes(32).toString('hex')] },
    features: {
      devInteractions: { enabled: true },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => API,
        useGrantedResource: () => true,
        getResourceServerInfo: resourceServer,
      },
    },
    findAccount: (_ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    jwks: { keys: [signingKey] },
    pkce: { required: () => true },
    rotateRefreshToken: (ctx) => rotates(ctx.oidc.client.clientId),
    scopes: ['offline_access'],
    ttl: { Grant: YEAR, Interaction: 3600, RefreshToken: YEAR, Session: 3600 },
  });

  // What the proxy says of scheme and host counts, or no cookie would be a secure one.
  provider.proxy = true;
  provider.registerGrantType('password', exchangeApiKey, ['username', 'password', 'scope']);
  provider.on('grant.revoked', () => {
    judge.revoked_grants += 1;
  });
  provider.on('server_error', (_ctx, error) => console.error(error));
  provider.use(watchTokenEndpoint());
  return provider;
}

// Dinero's personal integration: the key is user name and password at once; there is no refresh token.
async function exchangeApiKey(ctx) {
  const { provider, client, params } = ctx.oidc;
  const key = API_KEY.exec(params.username ?? '');
  if (key === null || params.password !== params.username) throw new errors.InvalidGrant('unknown API key');

  const token = new provider.AccessToken({ accountId: `api-key:${key[1]}`, client, gty: 'password', scope: SCOPES });
  token.resourceServer = new provider.ResourceServer(API, resourceServer());
  ctx.oidc.entity('AccessToken', token);
  ctx.body = {
    access_token: await token.save(),
    expires_in: token.expiration,
    token_type: token.tokenType,
    scope: token.scope,
  };
}

// Counts each finished token request, then holds its answer back for the configured delay.
function watchTokenEndpoint() {
  let underWay = 0;
  return async (ctx, next) => {
    if (ctx.path !== '/token' || ctx.method !== 'POST') return next();
    underWay += 1;
    judge.most_at_once = Math.max(judge.most_at_once, underWay);
    try {
      await next();
      countExchange(ctx);
      await sleep(delayMs);
    } finally {
      underWay -= 1;
    }
    return undefined;
  };
}

function countExchange(ctx) {
  const { client, params } = ctx.oidc;
  const result = ctx.status === 200 ? 'ok' : (ctx.body?.error ?? String(ctx.status));
  for (const [table, key] of [[judge.exchanges, params?.grant_type], [judge.clients, client?.clientId]]) {
    const counts = (table[key ?? 'none'] ??= {});
    counts[result] = (counts[result] ?? 0) + 1;
  }

  const token = params?.refresh_token;
  if (token === undefined || client === undefined || !rotates(client.clientId)) return;
  if (granted.has(token)) judge.replays += 1;
  if (result === 'ok') granted.add(token);
}

async function accountOf(request, issuer) {
  const [, token] = /^Bearer (.+)$/i.exec(request.headers.authorization ?? '') ?? [];
  if (token === undefined) return undefined;
  try {
    const options = { issuer, audience: API, clockTolerance: CLOCK_TOLERANCE_SECONDS };
    return (await jwtVerify(token, publicKey, options)).payload.sub;
  } catch {
    return undefined;
  }
}

async function readControl(request) {
  let text = '';
  for await (const chunk of request) {
    text += chunk;
    if (text.length > LONGEST_CONTROL_BODY) throw new Error('control body too long');
  }
  return JSON.parse(text);
}

function answer(response, status, body) {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body));
}

async function serve(request, response, issuer, authorizationServer) {
  const route = `${request.method} ${request.url.split('?')[0]}`;
  if (route === 'GET /judge') return answer(response, 200, judge);
  if (route === 'POST /judge') {
    delayMs = Number((await readControl(request)).delay_ms);
    return answer(response, 200, { delay_ms: delayMs });
  }
  if (route === 'GET /v1/me' || route === 'GET /v1/organizations') {
    const account = await accountOf(request, issuer);
    if (account === undefined) return answer(response, 401, { error: 'invalid_token' });
    if (route === 'GET /v1/me') return answer(response, 200, { account });
    return answer(response, 200, organizationsOf(account).map((id) => ({ id, name: `The company ${id}` })));
  }
  return authorizationServer(request, response);
}

const server = createServer();
server.listen(Number(process.argv[2] ?? 0), '127.0.0.1');
await once(server, 'listening');
const { port } = server.address();
const issuer = `http://127.0.0.1:${port}`;
const authorizationServer = makeProvider(issuer).callback();
server.on('request', (request, response) => {
  serve(request, response, issuer, authorizationServer).catch((error) => {
    console.error(error);
    if (!response.headersSent) answer(response, 500, { error: 'server_error' });
  });
});
console.log(JSON.stringify({ ready: true, port }));

process.stdin.on('end', () => process.exit(0));
process.stdin.on('error', () => process.exit(0));
process.stdin.resume();
