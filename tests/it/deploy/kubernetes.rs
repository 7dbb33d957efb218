//! The manifests: rendered by kubectl, validated against the schemas of Kubernetes and of Prometheus's operator, and held to
//! what keeps the containers of a pod apart.

use std::{fs, process::Command};

use consentry::config::Config;
use serde_json::{Value, json};

use super::{documents, installed, path, run, text, tools};

/// Each with the kind that it puts the worker into.
pub(super) const OVERLAYS: [(&str, &str); 4] =
    [("sidecar", "Deployment"), ("statefulset", "StatefulSet"), ("job", "Job"), ("pages", "Deployment")];
/// Those whose workers share one vault, in PostgreSQL.
pub(super) const REPLICATED: [(&str, &str); 2] = [("replicas", "Deployment"), ("every-pod", "Deployment")];
/// The oldest Kubernetes in which a native sidecar is on by default, that the schemas are had for, and the newest.
const VERSIONS: [&str; 2] = ["1.29", "1.37"];

/// What an overlay renders to; nothing where kubectl is missing.
pub(super) fn rendered(overlay: &str) -> Option<Vec<Value>> {
    installed("kubectl").then(|| documents(&render(overlay)))
}

fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    OVERLAYS.into_iter().chain(REPLICATED)
}

fn render(overlay: &str) -> String {
    run(Command::new("kubectl").arg("kustomize").arg(path("deploy/kubernetes/overlays").join(overlay)))
}

/// The object of this kind and name; a generated one has a hash at the end of its name.
pub(super) fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| {
        let found = object["metadata"]["name"].as_str().unwrap_or_default();
        object["kind"] == kind && (found == name || kind == "ConfigMap" && found.starts_with(name))
    });
    found.next().unwrap_or_else(|| panic!("no {kind} {name}"))
}

/// The container of this name, whether it starts first or not.
pub(super) fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let all = ["initContainers", "containers"].into_iter().flat_map(|list| pod[list].as_array().into_iter().flatten());
    all.into_iter().find(|container| container["name"] == name).unwrap_or_else(|| panic!("no container {name}"))
}

#[test]
fn every_overlay_renders_and_fits_the_schemas_of_kubernetes() {
    if !installed("kubectl") {
        return;
    }
    let Some(validator) = tools("python") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (overlay, _) in all() {
        let file = folder.path().join(format!("{overlay}.yaml"));
        fs::write(&file, render(overlay)).expect("the folder is ours");
        for version in VERSIONS {
            let mut command = Command::new("python3");
            command
                .env("PYTHONPATH", &validator)
                .args(["-m", "kubernetes_validate", "--strict", "-k", version])
                .arg(&file);
            run(&mut command);
        }
    }
}

#[test]
fn what_prometheus_operator_takes_fits_its_schemas_and_has_no_key_that_it_does_not_know() {
    let Some(objects) = rendered("sidecar") else { return };
    let monitor = find(&objects, "PodMonitor", "consentry");
    let rules = find(&objects, "PrometheusRule", "consentry");
    // The published schemas let unknown keys pass, which a mistyped one would be.
    let keys = |value: &Value| value.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&monitor["spec"]), ["podMetricsEndpoints", "selector"]);
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!(keys(endpoint), ["interval", "path", "port", "relabelings", "scrapeTimeout"]);
    assert_eq!(
        endpoint["relabelings"],
        json!([{ "action": "replace", "targetLabel": "job", "replacement": "consentry" }])
    );
    for group in rules["spec"]["groups"].as_array().expect("groups") {
        assert_eq!(keys(group), ["name", "rules"]);
        for rule in group["rules"].as_array().expect("rules") {
            let known = ["alert", "annotations", "expr", "for", "labels", "record"];
            assert!(keys(rule).iter().all(|key| known.contains(&key.as_str())), "{rule}");
        }
    }

    let (true, Some(modules)) = (installed("node"), tools("node_modules")) else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::os::unix::fs::symlink(modules, folder.path().join("node_modules")).expect("the folder is ours");
    let script = folder.path().join("validate.mjs");
    fs::copy(path("tests/peers/deploy/validate.mjs"), &script).expect("the folder is ours");
    let file = folder.path().join("objects.json");
    fs::write(&file, json!([monitor, rules]).to_string()).expect("the folder is ours");
    let told = run(Command::new("node").arg(&script).arg(&file));
    assert_eq!(told.trim(), "2 objects fit");
}

#[test]
fn the_containers_of_a_pod_are_restricted_and_kept_apart() {
    for (overlay, kind) in all() {
        let Some(objects) = rendered(overlay) else { return };
        let workload = find(&objects, kind, "application");
        let pod = &workload["spec"]["template"]["spec"];
        assert_eq!(pod["enableServiceLinks"], false, "{overlay}");
        assert_eq!(pod["automountServiceAccountToken"], false, "{overlay}");
        assert_eq!(pod["terminationGracePeriodSeconds"], 90, "{overlay}");
        assert_eq!(
            pod["securityContext"],
            json!({
                "runAsNonRoot": true, "fsGroup": 10000, "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": { "type": "RuntimeDefault" },
            }),
            "{overlay}"
        );
        for name in ["consentry-init", "consentry", "application"] {
            let context = &container(pod, name)["securityContext"];
            let user = if name == "application" { 10002 } else { 10001 };
            let restricted = json!({
                "runAsUser": user, "runAsGroup": user, "runAsNonRoot": true, "readOnlyRootFilesystem": true,
                "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] },
            });
            assert_eq!(*context, restricted, "{overlay}: {name}");
            assert!(container(pod, name)["resources"]["requests"]["memory"].is_string(), "{overlay}: {name}");
        }
        // The application sees the socket, and neither vault nor secrets.
        let seen = json!([{ "name": "consentry-socket", "mountPath": "/run/consentry", "readOnly": true }]);
        assert_eq!(container(pod, "application")["volumeMounts"], seen, "{overlay}");
        let sidecar = container(pod, "consentry");
        assert_eq!(sidecar["restartPolicy"], "Always", "{overlay}: a native sidecar");
        for (probe, command) in [
            ("startupProbe", json!(["/usr/bin/consentry", "health"])),
            ("readinessProbe", json!(["/usr/bin/consentry", "health"])),
            ("livenessProbe", json!(["/usr/bin/consentry", "health", "--live"])),
        ] {
            assert_eq!(sidecar[probe]["exec"]["command"], command, "{overlay}: {probe}");
        }
        for mount in sidecar["volumeMounts"].as_array().expect("mounts") {
            let changes = ["consentry-vault", "consentry-backups", "consentry-socket"];
            let writable = changes.contains(&mount["name"].as_str().expect("a name"));
            assert_eq!(mount.get("readOnly").is_none(), writable, "{overlay}: {mount}");
        }
        let starts: Vec<_> = pod["initContainers"].as_array().expect("some").iter().map(|init| &init["name"]).collect();
        assert_eq!(starts[..2], ["consentry-init", "consentry"], "{overlay}: the vault is there before the worker");
        if kind == "Job" {
            assert_eq!(starts[2..], ["consentry-enrol"], "what the Job needs is enrolled by the worker that runs");
            assert_eq!(
                container(pod, "consentry-enrol")["securityContext"],
                container(pod, "consentry")["securityContext"]
            );
        }
    }
}

#[test]
fn there_is_one_worker_for_one_vault_and_only_its_pod_may_open_it() {
    for (overlay, kind) in OVERLAYS {
        let Some(objects) = rendered(overlay) else { return };
        let spec = &find(&objects, kind, "application")["spec"];
        let claim = match kind {
            "Deployment" => {
                assert_eq!((&spec["replicas"], &spec["strategy"]["type"]), (&json!(1), &json!("Recreate")));
                find(&objects, "PersistentVolumeClaim", "consentry-vault")
            }
            "StatefulSet" => {
                assert_eq!(spec["replicas"], 1);
                assert_eq!(
                    spec["persistentVolumeClaimRetentionPolicy"],
                    json!({ "whenDeleted": "Retain", "whenScaled": "Retain" })
                );
                &spec["volumeClaimTemplates"][0]
            }
            _ => {
                assert_eq!((&spec["completions"], &spec["parallelism"]), (&json!(1), &json!(1)));
                assert_eq!(spec["template"]["spec"]["restartPolicy"], "Never", "the Job ends with the application");
                find(&objects, "PersistentVolumeClaim", "consentry-vault")
            }
        };
        assert_eq!(claim["spec"]["accessModes"], json!(["ReadWriteOncePod"]), "{overlay}");
    }
}

#[test]
fn policies_and_monitors_find_the_pod_and_its_port() {
    for (overlay, kind) in all() {
        let Some(objects) = rendered(overlay) else { return };
        let template = &find(&objects, kind, "application")["spec"]["template"];
        let selector = json!({ "consentry.dev/worker": "true" });
        assert_eq!(template["metadata"]["labels"]["consentry.dev/worker"], "true", "{overlay}");
        assert_eq!(find(&objects, "PodMonitor", "consentry")["spec"]["selector"]["matchLabels"], selector);
        let policy = &find(&objects, "NetworkPolicy", "consentry")["spec"];
        assert_eq!(policy["podSelector"]["matchLabels"], selector);
        assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
        let ports = container(&template["spec"], "consentry")["ports"].as_array().expect("ports");
        let port = ports.iter().find(|port| port["name"] == "metrics").expect("it is named");
        assert_eq!(port["containerPort"], policy["ingress"][0]["ports"][0]["port"]);
        assert_eq!(find(&objects, "PodMonitor", "consentry")["spec"]["podMetricsEndpoints"][0]["port"], "metrics");
        // The configuration that the pod mounts is the one that was generated.
        let generated = find(&objects, "ConfigMap", "consentry-config");
        let volumes = template["spec"]["volumes"].as_array().expect("volumes");
        assert!(volumes.iter().any(|volume| volume["configMap"]["name"] == generated["metadata"]["name"]), "{overlay}");
    }
}

#[test]
fn the_consent_pages_are_reached_through_a_service_and_a_policy_of_their_own() {
    let Some(objects) = rendered("pages") else { return };
    let pod = &find(&objects, "Deployment", "application")["spec"]["template"]["spec"];
    let sidecar = container(pod, "consentry");
    let port = json!({ "name": "pages", "containerPort": 9465 });
    assert!(sidecar["ports"].as_array().expect("ports").contains(&port), "{sidecar}");
    let listen = json!({ "name": "CONSENTRY__CONSENT__LISTEN", "value": "0.0.0.0:9465" });
    assert!(sidecar["env"].as_array().expect("variables").contains(&listen), "{sidecar}");
    let service = &find(&objects, "Service", "consentry-pages")["spec"];
    assert_eq!(service["ports"][0]["targetPort"], "pages");
    let policy = &find(&objects, "NetworkPolicy", "consentry-pages")["spec"];
    assert_eq!(policy["ingress"][0]["ports"], json!([{ "protocol": "TCP", "port": 9465 }]), "and not the metrics");
    let without = rendered("sidecar").expect("kubectl was there");
    assert!(
        !without.iter().any(|object| object.to_string().contains("9465")),
        "who has no pages opens no port for them"
    );
}

#[test]
fn the_configuration_of_the_pod_is_one_that_the_worker_takes_and_fits_its_mounts() {
    let configuration = text("deploy/kubernetes/base/consentry.toml");
    let config = Config::parse(&configuration).expect("a configuration");
    let component = documents(&text("deploy/kubernetes/components/sidecar/sidecar.yaml")).remove(0);
    let pod = &component["spec"]["template"]["spec"];
    let mounts = container(pod, "consentry")["volumeMounts"].as_array().expect("mounts").clone();
    let below = |file: &std::path::Path| {
        mounts.iter().any(|mount| file.starts_with(mount["mountPath"].as_str().expect("a path")))
    };
    assert!(below(&config.vault.path) && below(&config.vault.identity_file) && below(&config.socket.path));
    assert!(configuration.contains("listen = \"0.0.0.0:9464\""));
    assert!(configuration.contains(&format!("group = \"{}\"", pod["securityContext"]["fsGroup"])));
    assert!(configuration.contains("uid = 10002"), "the application's runAsUser");
}
