use std::{sync::Arc, time::Duration};

use super::{Denied, Granted, Refusal, Request, Rules, Standing};
use crate::{
    model::{ClientCredentials, Secret, Timestamp},
    sandbox::{
        fault::{Fault, FaultKind},
        mint::{Face, Kind, Mark, challenge_of, subject_of},
        record::{Entry, GrantType, Outcome},
    },
};

/// How long an authorization code lives (RFC 6749 section 4.1.2 recommends at most ten minutes).
const CODE_LIFETIME: Duration = Duration::from_mins(5);
/// The scopes of an API key's access token.
const PERSONAL_SCOPES: [&str; 2] = ["read", "write"];

impl Rules {
    /// One call of a token endpoint that reaches the rules. A fault is only noted, except that
    /// [`FaultKind::OmitRefreshToken`] keeps a one-time token from being spent.
    pub(in crate::sandbox) fn exchange(
        &mut self,
        now: Timestamp,
        client: &ClientCredentials,
        request: &Request<'_>,
        fault: Option<&Fault>,
    ) -> Result<Granted, Denied> {
        let mut entry = Entry::new(now, request.grant_type(), &client.id, fault.map(|fault| fault.kind));
        let omit = entry.fault == Some(FaultKind::OmitRefreshToken);
        let result = self.check_client(client, request).and_then(|()| match request {
            Request::Refresh(token) => self.exchange_refresh(now, token, omit, &mut entry),
            Request::Code { code, redirect_uri, verifier } => {
                self.exchange_code(now, code, redirect_uri, *verifier, omit, &mut entry)
            }
            Request::ApiKey(key) => self.exchange_key(now, key, &mut entry),
        });
        entry.result = result.as_ref().map_or_else(|denied| Outcome::Denied(*denied), |_| Outcome::Granted);
        self.exchanges += 1;
        self.record.push(entry);
        result
    }

    /// Notes a call that made no sense.
    pub(in crate::sandbox) fn reject(&mut self, now: Timestamp, client: &str, denied: Denied) {
        let mut entry = Entry::new(now, GrantType::Other, client, None);
        entry.result = Outcome::Denied(denied);
        self.exchanges += 1;
        self.record.push(entry);
    }

    /// Notes a call that a fault kept from the rules.
    pub(in crate::sandbox) fn not_processed(
        &mut self,
        now: Timestamp,
        client: &str,
        request: Option<&Request<'_>>,
        fault: &Fault,
    ) {
        let grant_type = request.map_or(GrantType::Other, Request::grant_type);
        let mut entry = Entry::new(now, grant_type, client, Some(fault.kind));
        entry.user = request.and_then(|request| self.whose(request)).map(|user| user.to_string());
        if let Some(Request::Refresh(token)) = request
            && let Some(mark) = self.mint.open(Kind::Refresh, token.expose())
        {
            (entry.authorization, entry.token) = (Some(mark.id), Some(mark.number));
        }
        self.record.push(entry);
    }

    /// RFC 7009: takes refresh tokens only, and answers well for those that it does not know. Access tokens that were
    /// given live out their time.
    pub(in crate::sandbox) fn revoke(
        &mut self,
        now: Timestamp,
        client: &ClientCredentials,
        token: &Secret,
    ) -> Result<(), Denied> {
        let mut entry = Entry::new(now, GrantType::Revocation, &client.id, None);
        let result = self.check_client(client, &Request::Refresh(token));
        if result.is_ok()
            && let Some(mark) = self.mint.open(Kind::Refresh, token.expose())
        {
            self.revoke_known(now, mark, &mut entry);
        }
        entry.result = result.map_or_else(Outcome::Denied, |()| Outcome::Done);
        self.record.push(entry);
        result
    }

    fn revoke_known(&mut self, now: Timestamp, mark: Mark, entry: &mut Entry) {
        let Some(authorization) = self.authorizations.get_mut(mark.id) else { return };
        let standing = authorization.standing(now, mark.number);
        let user = Arc::clone(&authorization.user);
        entry.user = Some(user.to_string());
        entry.authorization = Some(mark.id);
        if matches!(standing, Standing::Live | Standing::InGrace) {
            authorization.ended = Some(Refusal::Revoked);
            entry.killed.push(mark.id);
            if let Some(owner) = self.users.get_mut(&user) {
                owner.authorizations.retain(|id| *id != mark.id);
            }
        }
    }

    fn exchange_refresh(
        &mut self,
        now: Timestamp,
        token: &Secret,
        omit: bool,
        entry: &mut Entry,
    ) -> Result<Granted, Denied> {
        let mark = self.mint.open(Kind::Refresh, token.expose()).ok_or(refused(Refusal::Unknown))?;
        let authorization = self.authorizations.get_mut(mark.id).ok_or(refused(Refusal::Unknown))?;
        let user = Arc::clone(&authorization.user);
        entry.user = Some(user.to_string());
        entry.authorization = Some(mark.id);
        entry.token = Some(mark.number);
        entry.usage = Some(authorization.usage);
        match authorization.standing(now, mark.number) {
            Standing::Live => {}
            Standing::InGrace => entry.in_grace = true,
            Standing::Dead(why) => return Err(refused(why)),
            Standing::Spent => {
                self.replays += 1;
                entry.replay = true;
                entry.killed = self.end_user(now, &user, Refusal::Ended);
                return Err(refused(Refusal::Replay));
            }
        }
        let number = authorization.exchange(now, mark.number, !omit).ok_or(refused(Refusal::TooMany))?;
        Ok(self.consent_tokens(now, Mark { id: mark.id, number }, omit))
    }

    fn exchange_code(
        &mut self,
        now: Timestamp,
        code: &Secret,
        redirect_uri: &str,
        verifier: Option<&str>,
        omit: bool,
        entry: &mut Entry,
    ) -> Result<Granted, Denied> {
        let mark = self.mint.open(Kind::Code, code.expose()).ok_or(refused(Refusal::Unknown))?;
        let code = self.codes.get_mut(mark.id).ok_or(refused(Refusal::Unknown))?;
        entry.user = Some(code.approval.user.clone());
        if std::mem::replace(&mut code.used, true) {
            return Err(refused(Refusal::UsedCode));
        }
        if now.since(code.issued_at) >= CODE_LIFETIME {
            return Err(refused(Refusal::OldCode));
        }
        if code.approval.redirect_uri != redirect_uri {
            return Err(refused(Refusal::WrongRedirect));
        }
        // RFC 9700 section 2.1.1: a verifier without a challenge is as wrong as a challenge without a verifier.
        if code.approval.challenge != verifier.map(challenge_of) {
            return Err(refused(Refusal::WrongVerifier));
        }
        let (user, scopes, usage) = (code.approval.user.clone(), code.approval.scopes, self.terms.usage);
        let id = self.authorize(now, &user, usage, scopes);
        entry.authorization = Some(id);
        entry.usage = Some(usage);
        Ok(self.consent_tokens(now, Mark { id, number: 0 }, omit))
    }

    fn exchange_key(&mut self, now: Timestamp, key: &Secret, entry: &mut Entry) -> Result<Granted, Denied> {
        let mark = self.mint.open(Kind::ApiKey, key.expose()).ok_or(refused(Refusal::Unknown))?;
        let key = self.keys.get(mark.id).ok_or(refused(Refusal::Unknown))?;
        entry.user = Some(key.organization.to_string());
        if key.deleted {
            return Err(refused(Refusal::Withdrawn));
        }
        let subject = subject_of(&key.organization);
        let (claims, expires_in) = self.access_token(now, true, mark.id);
        let face = Face {
            issuer: &self.name,
            client: &self.terms.personal_client.0,
            subject: &subject,
            scopes: &PERSONAL_SCOPES,
            authenticated_at: now,
            now,
        };
        Ok(Granted {
            access_token: self.mint.access_token(&claims, &face),
            expires_in,
            scope: PERSONAL_SCOPES.join(" "),
            refresh_token: None,
        })
    }

    fn consent_tokens(&mut self, now: Timestamp, mark: Mark, omit: bool) -> Granted {
        let (claims, expires_in) = self.access_token(now, false, mark.id);
        let (user, scopes, granted_at) = self.authorizations.get(mark.id).map_or_else(
            || unreachable!("an authorization that was just exchanged is there"),
            |authorization| (&authorization.user, authorization.scopes, authorization.granted_at),
        );
        let words = scopes.words();
        let face = Face {
            issuer: &self.name,
            client: &self.terms.client_id,
            subject: &subject_of(user),
            scopes: &words,
            authenticated_at: granted_at,
            now,
        };
        Granted {
            access_token: self.mint.access_token(&claims, &face),
            expires_in,
            scope: words.join(" "),
            refresh_token: (scopes.offline() && !omit).then(|| self.mint.seal(Kind::Refresh, mark)),
        }
    }

    /// Consents belong to one client and API keys to another; neither knows the other's.
    fn check_client(&self, client: &ClientCredentials, request: &Request<'_>) -> Result<(), Denied> {
        let right = match request {
            Request::ApiKey(_) => {
                let (id, secret) = &self.terms.personal_client;
                *id == client.id && secret.same_as(&client.secret)
            }
            Request::Refresh(_) | Request::Code { .. } => {
                let secrets = &self.terms.client_secrets;
                self.terms.client_id == client.id && secrets.iter().any(|secret| secret.same_as(&client.secret))
            }
        };
        if right { Ok(()) } else { Err(Denied::InvalidClient) }
    }

    /// Whose credential it is; an API key is its organization's.
    pub(super) fn whose(&self, request: &Request<'_>) -> Option<Arc<str>> {
        match request {
            Request::Refresh(token) => {
                let mark = self.mint.open(Kind::Refresh, token.expose())?;
                Some(Arc::clone(&self.authorizations.get(mark.id)?.user))
            }
            Request::Code { code, .. } => {
                let mark = self.mint.open(Kind::Code, code.expose())?;
                Some(Arc::from(self.codes.get(mark.id)?.approval.user.as_str()))
            }
            Request::ApiKey(key) => {
                let mark = self.mint.open(Kind::ApiKey, key.expose())?;
                Some(Arc::clone(&self.keys.get(mark.id)?.organization))
            }
        }
    }
}

const fn refused(why: Refusal) -> Denied {
    Denied::InvalidGrant(why)
}
