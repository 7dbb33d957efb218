//! People who are at the issuer, or came back a moment ago.
//!
//! A session is one browser, known by its cookie; a flow in it is one link that was started, known by its `state`. All of
//! it is in memory and ends by itself: who comes back too late, or to a worker that was started anew, opens the link again.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom, SystemRandom},
};

use super::{callback::Outcome, texts::Subject};
use crate::{links::Invitation, model::Secret};

/// How long a person may take at the issuer, and how long the result can be looked at.
pub(super) const LIFETIME: Duration = Duration::from_mins(15);
/// How many browsers may be under way; beyond, whoever began first opens the link again.
const MAX_SESSIONS: usize = 10_000;
/// How many links one browser may have started; beyond, the oldest goes.
const MAX_FLOWS: usize = 4;
/// How many browsers may be under way with one link: whoever holds one link must not push the holders of others out.
const MAX_OF_LINK: usize = 16;
/// How many random bytes name a session, and a flow.
const RANDOM_BYTES: usize = 32;

/// What is needed when the person comes back.
pub(super) struct Going {
    /// What the link asks for.
    pub(super) invitation: Invitation,
    /// PKCE's verifier, where the provider uses it.
    pub(super) verifier: Option<Secret>,
    /// As in the authorization request.
    pub(super) redirect_uri: String,
    /// The issuer whom the answer may name.
    pub(super) issuer: Option<String>,
    /// Whether the answer has to name it.
    pub(super) sends_issuer: bool,
    /// What pages say about it.
    pub(super) subject: Subject,
}

/// The flows of every browser.
#[derive(Default)]
pub(super) struct Flows(Mutex<HashMap<SessionKey, Session>>);

/// The hash of what the cookie holds, so that the table is no list of cookies and looking one up tells nothing by its time.
type SessionKey = [u8; 32];

#[derive(Default)]
struct Session {
    /// The one that came back last is the last.
    flows: Vec<Flow>,
}

struct Flow {
    state: Secret,
    /// The token of its link, hashed.
    link: SessionKey,
    /// When it began, or ended; on the boot-time clock.
    since: Duration,
    stage: Stage,
}

enum Stage {
    Away(Box<Going>),
    Ending,
    Ended(Arc<Outcome>),
}

/// A flow that has begun.
pub(super) struct Begun {
    /// What the cookie holds.
    pub(super) session: String,
    /// What the issuer gives back.
    pub(super) state: String,
}

/// Who came back.
pub(super) enum Back {
    /// Nobody who began here: an unknown state, another browser, or too late.
    Unknown,
    /// The same callback once more.
    Again,
    /// The person, and where to tell what came of it.
    Here(Box<Going>, Ticket),
}

/// Names a flow that is ending.
pub(super) struct Ticket {
    session: SessionKey,
    state: Secret,
}

/// What became of the flow that came back last.
pub(super) enum Latest {
    /// It is being stored.
    Ending,
    /// It has ended.
    Ended(Arc<Outcome>),
}

impl Flows {
    /// Begins a flow by the link whose token that is, in the browser's session or, where it has none, in a new one.
    pub(super) fn begin(&self, cookie: Option<&str>, token: &str, going: Going, now: Duration) -> Begun {
        let (state, link) = (random(), hash(token));
        let mut sessions = self.lock();
        forget_old(&mut sessions, now);
        make_room_for_link(&mut sessions, &link);
        let known = cookie.filter(|cookie| sessions.contains_key(&hash(cookie)));
        let session = known.map_or_else(random, str::to_owned);
        if known.is_none() && sessions.len() >= MAX_SESSIONS {
            tracing::warn!(
                sessions = sessions.len(),
                "too many people are giving consent at once; the first to begin opens the link again"
            );
            forget_first(&mut sessions);
        }
        let flows = &mut sessions.entry(hash(&session)).or_default().flows;
        if flows.len() >= MAX_FLOWS {
            flows.remove(0);
        }
        flows.push(Flow { state: Secret::new(state.as_str()), link, since: now, stage: Stage::Away(Box::new(going)) });
        Begun { session, state }
    }

    /// The flow of that browser with that state, which can be had once.
    pub(super) fn come_back(&self, cookie: Option<&str>, state: &str, now: Duration) -> Back {
        let Some(key) = cookie.map(hash) else { return Back::Unknown };
        let state = Secret::new(state);
        let mut sessions = self.lock();
        forget_old(&mut sessions, now);
        let Some(session) = sessions.get_mut(&key) else { return Back::Unknown };
        let Some(at) = session.flows.iter().position(|flow| flow.state.same_as(&state)) else { return Back::Unknown };
        let mut flow = session.flows.remove(at);
        let back = match std::mem::replace(&mut flow.stage, Stage::Ending) {
            Stage::Away(going) => {
                flow.since = now;
                Back::Here(going, Ticket { session: key, state })
            }
            over => {
                flow.stage = over;
                Back::Again
            }
        };
        session.flows.push(flow);
        back
    }

    /// Keeps what came of a flow for the browser's next look.
    pub(super) fn end(&self, ticket: &Ticket, outcome: Outcome, now: Duration) {
        let mut sessions = self.lock();
        let flows = sessions.get_mut(&ticket.session).map(|session| &mut session.flows);
        let flow = flows.and_then(|flows| flows.iter_mut().find(|flow| flow.state.same_as(&ticket.state)));
        if let Some(flow) = flow {
            (flow.stage, flow.since) = (Stage::Ended(Arc::new(outcome)), now);
        }
    }

    /// What came of the flow that came back last in that browser.
    pub(super) fn latest(&self, cookie: Option<&str>, now: Duration) -> Option<Latest> {
        let key = cookie.map(hash)?;
        let mut sessions = self.lock();
        forget_old(&mut sessions, now);
        sessions.get(&key)?.flows.iter().rev().find_map(|flow| match &flow.stage {
            Stage::Away(_) => None,
            Stage::Ending => Some(Latest::Ending),
            Stage::Ended(outcome) => Some(Latest::Ended(Arc::clone(outcome))),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionKey, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Flows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flows").field("sessions", &self.lock().len()).finish()
    }
}

/// Ten thousand sessions are looked at in well under a millisecond, so that nothing else need wake up to forget them.
fn forget_old(sessions: &mut HashMap<SessionKey, Session>, now: Duration) {
    sessions.retain(|_, session| {
        session.flows.retain(|flow| now.saturating_sub(flow.since) < LIFETIME);
        !session.flows.is_empty()
    });
}

fn forget_first(sessions: &mut HashMap<SessionKey, Session>) {
    let began = |session: &Session| session.flows.iter().map(|flow| flow.since).max();
    if let Some(first) = sessions.iter().min_by_key(|(_, session)| began(session)).map(|(key, _)| *key) {
        sessions.remove(&first);
    }
}

/// Ends the oldest flow of a link that has as many as it may.
fn make_room_for_link(sessions: &mut HashMap<SessionKey, Session>, link: &SessionKey) {
    let of_link = || {
        let all = sessions.iter().flat_map(|(key, session)| session.flows.iter().map(move |flow| (key, flow)));
        all.filter(|(_, flow)| flow.link == *link)
    };
    if of_link().count() < MAX_OF_LINK {
        return;
    }
    let oldest = of_link().min_by_key(|(_, flow)| flow.since).map(|(key, flow)| (*key, flow.state.clone()));
    let Some((key, state)) = oldest else { return };
    if let Some(session) = sessions.get_mut(&key) {
        session.flows.retain(|flow| !flow.state.same_as(&state));
        if session.flows.is_empty() {
            sessions.remove(&key);
        }
    }
}

/// 256 random bits as 43 letters: also a verifier of PKCE (RFC 7636 section 4.1).
///
/// # Panics
///
/// If the system has no randomness, which it had when the vault was opened.
pub(super) fn random() -> String {
    let mut bytes = [0; RANDOM_BYTES];
    SystemRandom::new().fill(&mut bytes).expect("the system had randomness when the vault was opened");
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn hash(text: &str) -> SessionKey {
    digest(&SHA256, text.as_bytes()).as_ref().try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consent::tests::going;

    fn second(seconds: u64) -> Duration {
        Duration::from_secs(1000 + seconds)
    }

    fn is_here(back: &Back) -> bool {
        matches!(back, Back::Here(..))
    }

    #[test]
    fn only_the_browser_that_began_comes_back_and_only_once() {
        let flows = Flows::default();
        let mine = flows.begin(None, "link", going(), second(0));
        let other = flows.begin(None, "link", going(), second(0));
        for (cookie, state) in [
            (None, mine.state.as_str()),
            (Some(other.session.as_str()), &mine.state),
            (Some(&mine.session), &other.state),
            (Some(&mine.session), "made up"),
            (Some("made up"), &mine.state),
        ] {
            assert!(matches!(flows.come_back(cookie, state, second(1)), Back::Unknown), "{cookie:?} {state}");
        }
        assert!(is_here(&flows.come_back(Some(&mine.session), &mine.state, second(1))), "what was tried did no harm");
        assert!(matches!(flows.come_back(Some(&mine.session), &mine.state, second(2)), Back::Again));
        assert!(is_here(&flows.come_back(Some(&other.session), &other.state, second(2))));
    }

    #[test]
    fn two_links_in_one_browser_do_not_disturb_each_other() {
        let flows = Flows::default();
        let one = flows.begin(None, "one", going(), second(0));
        let two = flows.begin(Some(&one.session), "two", going(), second(1));
        assert_eq!(one.session, two.session);
        assert!(flows.latest(Some(&one.session), second(2)).is_none(), "both are at the issuer");
        let Back::Here(_, ticket) = flows.come_back(Some(&one.session), &one.state, second(3)) else { panic!() };
        assert!(matches!(flows.latest(Some(&one.session), second(4)), Some(Latest::Ending)));
        flows.end(&ticket, Outcome::for_test(), second(5));
        assert!(matches!(flows.latest(Some(&one.session), second(6)), Some(Latest::Ended(_))));
        assert!(is_here(&flows.come_back(Some(&two.session), &two.state, second(7))));
        assert!(matches!(flows.latest(Some(&one.session), second(8)), Some(Latest::Ending)), "the last to come back");
        assert!(flows.latest(None, second(8)).is_none());
    }

    #[test]
    fn a_flow_ends_by_itself() {
        let flows = Flows::default();
        let begun = flows.begin(None, "link", going(), second(0));
        let late = second(0) + LIFETIME;
        assert!(matches!(flows.come_back(Some(&begun.session), &begun.state, late), Back::Unknown));
        assert!(flows.lock().is_empty());
        let again = flows.begin(Some(&begun.session), "link", going(), late);
        assert_ne!(again.session, begun.session, "a session that is gone is not taken up");
    }

    #[test]
    fn everything_is_bounded_and_the_oldest_goes_first() {
        let flows = Flows::default();
        let first = flows.begin(None, "link", going(), second(0));
        for number in 1..=u64::try_from(MAX_OF_LINK).expect("small") {
            flows.begin(None, "link", going(), second(number));
        }
        assert_eq!(flows.lock().len(), MAX_OF_LINK);
        assert!(matches!(flows.come_back(Some(&first.session), &first.state, second(20)), Back::Unknown));
        let mine = flows.begin(None, "a", going(), second(30));
        for link in ["b", "c", "d", "e"] {
            flows.begin(Some(&mine.session), link, going(), second(30));
        }
        assert_eq!(flows.lock()[&hash(&mine.session)].flows.len(), MAX_FLOWS);
        for number in 0..MAX_SESSIONS {
            let key = hash(&format!("session {number}"));
            let flow = Flow { state: Secret::new("x"), link: key, since: second(31), stage: Stage::Ending };
            flows.lock().insert(key, Session { flows: vec![flow] });
        }
        let before = flows.lock().len();
        flows.begin(None, "f", going(), second(32));
        assert_eq!(flows.lock().len(), before, "one came and one went");
    }
}
