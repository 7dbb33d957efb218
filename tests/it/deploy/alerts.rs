//! Alerts that arrive: the real worker, Prometheus with the shipped rules, Alertmanager, and somebody who listens.

use std::{thread, time::Duration};

use consentry::{
    model::Usage,
    sandbox::{Fault, FaultKind},
};
use serde_json::{Value, json};

use super::{
    installed,
    watched::{Alertmanager, Prometheus, impatient_rules},
};
use crate::harness::{
    sandbox::{CONSENTS, KEYS, Stand},
    worker::{Setup, Worker},
};

/// How long access tokens live at the sandboxes: they are refreshed every few seconds.
const TOKEN_SECONDS: u64 = 8;
/// How long the consent holds that ends in the test: long enough for its warning to arrive first.
const ENDS_IN: Duration = Duration::from_secs(25);

const ENDING: &str = "481001";
const WITHDRAWN: &str = "491001";
const STEADY: &str = "471001";

#[test]
fn an_ended_consent_a_refused_one_and_a_failing_provider_are_told_and_resolve() {
    if !installed("prometheus") || !installed("prometheus-alertmanager") {
        return;
    }
    let stand = Stand::start(TOKEN_SECONDS);
    let failing = Stand::start(TOKEN_SECONDS);
    let worker = Setup::default().sandbox(&stand).sandbox_as(&failing, "failing", "failing-keys").start();
    let end = (stand.now() + ENDS_IN).to_string();
    enrol(&worker, ENDING, &consent(&stand, "birgit", ENDING, Some(&end)));
    enrol(&worker, WITHDRAWN, &consent(&stand, "anders", WITHDRAWN, None));
    enrol(&worker, STEADY, &json!({ "provider": KEYS, "api_key": stand.api_key(STEADY) }));
    let another = failing.consent("carla", Usage::Reuse, &["461001"]);
    enrol(&worker, "461001", &json!({ "provider": "failing", "refresh_token": another }));

    let alertmanager = Alertmanager::start();
    let prometheus = Prometheus::start(worker.http(), Some(&impatient_rules()), Some(&alertmanager.address));

    // Another consent of the same provider goes well meanwhile, which makes a refusal a proof.
    enrol(&worker, "451001", &consent(&stand, "dora", "451001", None));
    assert!(stand.issuer().withdraw(stand.now(), "anders"));
    failing.fault(Fault { everywhere: true, ..Fault::always(FaultKind::Outage) });

    alertmanager.wait("firing", "ConsentryConsentExpiringCritical", ENDING);
    alertmanager.wait("firing", "ConsentryRefreshFailing", CONSENTS);
    alertmanager.wait("firing", "ConsentryProviderCircuitOpen", "failing");
    alertmanager.wait("firing", "ConsentryConsentExpired", ENDING);
    alertmanager.wait("resolved", "ConsentryConsentExpiringCritical", ENDING);
    alertmanager.wait("firing", "ConsentryAccessTokensLapsed", "failing");
    alertmanager.wait("firing", "ConsentryConsentLost", CONSENTS);
    alertmanager.wait("firing", "ConsentryBackupTooOld", "");

    // Long past its end, the alert has not vanished.
    thread::sleep(Duration::from_secs(5));
    let expired = |told: &super::watched::Told| told.alert == "ConsentryConsentExpired" && told.status == "resolved";
    assert!(!alertmanager.told().iter().any(expired), "{:#?}", alertmanager.told());

    enrol_again(&worker, ENDING, &consent(&stand, "birgit", ENDING, None));
    enrol_again(&worker, WITHDRAWN, &consent(&stand, "anders", WITHDRAWN, None));
    failing.issuer().clear_faults();
    let made = worker.command(&["backup", worker.file("backup.age").to_str().expect("a path of ours")]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    alertmanager.wait("resolved", "ConsentryConsentExpired", ENDING);
    alertmanager.wait("resolved", "ConsentryConsentLost", CONSENTS);
    alertmanager.wait("resolved", "ConsentryRefreshFailing", CONSENTS);
    alertmanager.wait("resolved", "ConsentryProviderCircuitOpen", "failing");
    alertmanager.wait("resolved", "ConsentryAccessTokensLapsed", "failing");
    alertmanager.wait("resolved", "ConsentryBackupTooOld", "");

    // Nobody was told of what did not happen. (That no worker was known was true until the first scrape.)
    for quiet in ["ConsentryDown", "ConsentryVaultFailing", "ConsentrySeriesDropped", "ConsentryInDoubt"] {
        assert!(alertmanager.told().iter().all(|told| told.alert != quiet), "{quiet}: {:#?}", alertmanager.told());
    }
    assert!(!prometheus.log().contains("level=error"), "{}", prometheus.log());
}

fn consent(stand: &Stand, user: &str, organization: &str, end: Option<&str>) -> Value {
    let token = stand.consent(user, Usage::Reuse, &[organization]);
    let mut body = json!({ "provider": CONSENTS, "refresh_token": token });
    if let Some(end) = end {
        body["expires_at"] = end.into();
    }
    body
}

fn enrol(worker: &Worker, organization: &str, body: &Value) {
    let answer = worker.enrol(organization, body);
    assert_eq!(answer.status, 201, "{answer:?}");
}

fn enrol_again(worker: &Worker, organization: &str, body: &Value) {
    let answer = worker.enrol(organization, body);
    assert_eq!(answer.status, 200, "{answer:?}");
}
