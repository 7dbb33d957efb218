//! The overlays whose workers share a vault in PostgreSQL: that the database keeps what it confirms, that the workers find it and
//! nobody else does, and that its connections are enough.

use serde_json::{Value, json};

use super::kubernetes::{REPLICATED, container, find, rendered};
use crate::deploy::text as page;

/// The database's cluster, and the port of its servers and of PgBouncer.
const CLUSTER: &str = "consentry-db";
const POOLER: &str = "consentry-db-pooler-rw";
/// What a worker takes unless it is told otherwise: commits at once, two for claims, one for reading.
const CONNECTIONS: u64 = 8 + 3;
/// What the operator, its metrics and people need besides.
const OTHERS: u64 = 20;

#[test]
fn workers_that_share_a_vault_are_replaced_one_after_the_other_and_hold_no_volume() {
    for (overlay, kind) in REPLICATED {
        let Some(objects) = rendered(overlay) else { return };
        let workload = find(&objects, kind, "application");
        let (spec, pod) = (&workload["spec"], &workload["spec"]["template"]["spec"]);
        let replicas = number(&spec["replicas"]);
        assert!(replicas >= 2, "{overlay}");
        assert_eq!(spec["strategy"]["type"], "RollingUpdate", "{overlay}");
        let away = number(&spec["strategy"]["rollingUpdate"]["maxUnavailable"]);
        let budget = &find(&objects, "PodDisruptionBudget", "application")["spec"];
        let kept = number(&budget["minAvailable"]);
        assert!((1..replicas).contains(&kept) && replicas - away >= kept, "{overlay}: machines can be emptied");
        assert_eq!(budget["selector"], spec["selector"], "{overlay}: the budget is about these pods");
        assert!(!objects.iter().any(|object| object["kind"] == "PersistentVolumeClaim"), "{overlay}");
        let volumes = pod["volumes"].as_array().expect("volumes");
        assert!(volumes.iter().all(|volume| volume.get("persistentVolumeClaim").is_none()), "{overlay}: {volumes:?}");
        let apart = [&pod["affinity"]["podAntiAffinity"], &pod["topologySpreadConstraints"]];
        assert!(apart.iter().any(|rule| rule.to_string().contains("kubernetes.io/hostname")), "{overlay}");
    }
}

#[test]
fn the_database_confirms_what_two_machines_have_and_promotes_who_has_it() {
    for (overlay, _) in REPLICATED {
        let Some(objects) = rendered(overlay) else { return };
        let spec = &find(&objects, "Cluster", CLUSTER)["spec"];
        let durable = json!({ "method": "any", "number": 1, "dataDurability": "required", "failoverQuorum": true });
        assert_eq!(spec["postgresql"]["synchronous"], durable, "{overlay}");
        assert!(number(&spec["instances"]) >= 3, "{overlay}: one may fail");
        assert_eq!(spec["affinity"]["podAntiAffinityType"], "required", "{overlay}");
        assert_eq!(spec["bootstrap"]["initdb"]["dataChecksums"], true, "{overlay}");
        let parameters = spec["postgresql"]["parameters"].as_object().expect("parameters");
        for given in ["synchronous_commit", "fsync", "full_page_writes", "statement_timeout"] {
            assert!(!parameters.contains_key(given), "{overlay}: {given} is left as it is");
        }
    }
}

#[test]
fn a_worker_is_told_where_the_database_is_by_files_and_trusts_its_authority_alone() {
    for (overlay, kind) in REPLICATED {
        let Some(objects) = rendered(overlay) else { return };
        let pod = &find(&objects, kind, "application")["spec"]["template"]["spec"];
        let secret = if has(&objects, "Pooler") { "consentry-db-pooler".to_owned() } else { format!("{CLUSTER}-app") };
        for name in ["consentry-init", "consentry"] {
            let container = container(pod, name);
            let variable = |wanted: &str| {
                let all = container["env"].as_array().expect("variables");
                let found = all.iter().find(|variable| variable["name"] == wanted);
                found.unwrap_or_else(|| panic!("{overlay}: {name}: no {wanted}"))["value"].clone()
            };
            assert_eq!(variable("CONSENTRY__VAULT__ENGINE"), "postgres");
            let (url, authority) =
                (variable("CONSENTRY__VAULT__POSTGRES__URL_FILE"), variable("CONSENTRY__VAULT__POSTGRES__CA_FILE"));
            for (file, secret, key) in [(url, secret.clone(), "uri"), (authority, format!("{CLUSTER}-ca"), "ca.crt")] {
                let file = file.as_str().expect("a path");
                let mounted = volume_of(pod, container, file);
                assert_eq!(mounted["secret"]["secretName"], secret, "{overlay}: {name}: {file}");
                // Of the authority's secret the certificate alone: its key would make certificates.
                assert_eq!(mounted["secret"]["items"], json!([{ "key": key, "path": key }]), "{overlay}: {file}");
            }
        }
        let known = page("docs/configuration.md");
        for key in ["url_file", "ca_file", "engine"] {
            assert!(known.contains(&format!("| `{key}` |")), "{key} is no key");
        }
        let application = container(pod, "application");
        assert!(!application.to_string().contains("database"), "{overlay}: the application sees nothing of it");
    }
}

#[test]
fn workers_reach_the_database_and_who_is_none_does_not() {
    for (overlay, _) in REPLICATED {
        let Some(objects) = rendered(overlay) else { return };
        let worker = json!({ "consentry.dev/worker": "true" });
        let way = &find(&objects, "NetworkPolicy", "consentry-database")["spec"];
        assert_eq!((&way["podSelector"]["matchLabels"], &way["policyTypes"]), (&worker, &json!(["Egress"])));
        let servers = json!({ "cnpg.io/cluster": CLUSTER });
        let pooler = json!({ "cnpg.io/poolerName": POOLER });
        let led_to: Vec<_> = way["egress"][0]["to"].as_array().expect("peers").iter().collect();
        assert_eq!(
            led_to.iter().map(|peer| &peer["podSelector"]["matchLabels"]).collect::<Vec<_>>(),
            [&servers, &pooler]
        );
        for (policy, of) in [(CLUSTER, &servers), ("consentry-db-pooler", &pooler)] {
            if policy != CLUSTER && !has(&objects, "Pooler") {
                continue;
            }
            let spec = &find(&objects, "NetworkPolicy", policy)["spec"];
            assert_eq!(spec["podSelector"]["matchLabels"], *of, "{overlay}");
            let open = spec["ingress"].as_array().expect("rules").iter().filter(|rule| {
                let ports = rule["ports"].as_array().expect("ports");
                ports.iter().any(|port| port["port"] == 5432)
                    && rule["from"].to_string().contains("consentry.dev/worker")
            });
            assert_eq!(open.count(), 1, "{overlay}: {policy}");
            let rules = spec["ingress"].as_array().expect("rules");
            assert!(rules.iter().all(|rule| rule["from"].is_array()), "{overlay}: {policy} lets nobody in unnamed");
        }
    }
}

#[test]
fn the_database_has_connections_for_all_workers_also_while_they_are_replaced() {
    for (overlay, kind) in REPLICATED {
        let Some(objects) = rendered(overlay) else { return };
        let cluster = &find(&objects, "Cluster", CLUSTER)["spec"];
        let most: u64 = text(&cluster["postgresql"]["parameters"]["max_connections"]).parse().expect("a number");
        let spec = &find(&objects, kind, "application")["spec"];
        let workers = number(&spec["replicas"]) + number(&spec["strategy"]["rollingUpdate"]["maxSurge"]);
        if !has(&objects, "Pooler") {
            assert!(workers * CONNECTIONS + OTHERS <= most, "{overlay}");
            continue;
        }
        let pooler = &find(&objects, "Pooler", POOLER)["spec"];
        assert_eq!((&pooler["type"], &pooler["cluster"]["name"]), (&json!("rw"), &json!(CLUSTER)));
        let bouncer = &pooler["pgbouncer"];
        assert_eq!(bouncer["poolMode"], "transaction");
        let of = |key: &str| -> u64 { text(&bouncer["parameters"][key]).parse().expect("a number") };
        assert!(number(&pooler["instances"]) * of("default_pool_size") + OTHERS <= most, "{overlay}");
        assert!(workers * CONNECTIONS <= of("max_client_conn"), "{overlay}: one of them may be away");
        assert_eq!(of("query_timeout"), 0, "no time limit surrounds a commit");
        let names = cluster["certificates"]["serverAltDNSNames"].as_array().expect("names");
        assert!(names.iter().any(|name| name == POOLER), "its certificate is the servers'");
    }
}

/// The volume that a container finds this file in.
fn volume_of<'a>(pod: &'a Value, container: &Value, file: &str) -> &'a Value {
    let mounts = container["volumeMounts"].as_array().expect("mounts");
    let mount = mounts.iter().find(|mount| file.starts_with(&format!("{}/", text(&mount["mountPath"]))));
    let mount = mount.unwrap_or_else(|| panic!("{file} is below no mount"));
    let volumes = pod["volumes"].as_array().expect("volumes");
    volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("a mount is of a volume")
}

fn has(objects: &[Value], kind: &str) -> bool {
    objects.iter().any(|object| object["kind"] == kind)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}
