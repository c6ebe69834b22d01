//! What lies in `deploy/` for other programs: each takes it, and it fits what the nodes do.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::TestNode;
use testkit::process::on_path;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Runs it there; what it printed.
fn run(directory: &str, program: &str, package: &str, arguments: &[&str]) -> String {
    assert!(on_path(program), "{program} is missing: run ./test.sh, or apt-get install {package}");
    let out = Command::new(program).args(arguments).current_dir(root().join(directory)).output().unwrap();
    let printed = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{program} {arguments:?}: {printed}");
    printed
}

// ---- Prometheus and Grafana ----

const RULES: &str = "deploy/prometheus/gateway.rules.yml";
const ALERTS: &str = "deploy/prometheus/gateway.alerts.yml";
const DASHBOARD: &str = "deploy/grafana/channel-gateway.json";

/// The alerts, with where each one's runbook is.
fn alerts() -> Vec<(String, String)> {
    let text = read(ALERTS);
    let after = |part: &str, key: &str| part.split_once(key).unwrap().1.lines().next().unwrap().trim().to_owned();
    text.split("- alert: ").skip(1).map(|part| (after(part, ""), after(part, "runbook_url:"))).collect()
}

#[test]
fn promtool_takes_the_rules_and_each_alert_fires_when_it_should() {
    let directory = "deploy/prometheus";
    run(directory, "promtool", "prometheus", &["check", "rules", "gateway.rules.yml", "gateway.alerts.yml"]);
    run(directory, "promtool", "prometheus", &["check", "config", "prometheus.yml"]);
    run(directory, "promtool", "prometheus", &["test", "rules", "gateway.test.yml"]);
    let tests = read("deploy/prometheus/gateway.test.yml");
    let untested: Vec<_> =
        alerts().into_iter().filter(|(name, _)| !tests.contains(&format!("alertname=\"{name}\""))).collect();
    assert!(untested.is_empty(), "no test lets these fire: {untested:?}");
}

/// Words that are names of metrics, or begin like one.
fn names(text: &str) -> BTreeSet<String> {
    let is_of_name = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | ':');
    text.split(|letter| !is_of_name(letter))
        .filter(|word| word.starts_with("gateway_") || word.starts_with("gateway:") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

/// The expressions of a dashboard.
fn expressions(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                match (key.as_str(), value.as_str()) {
                    ("expr" | "definition", Some(expression)) => found.push(expression.to_owned()),
                    _ => expressions(value, found),
                }
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

#[tokio::test]
async fn rules_and_dashboard_use_only_metrics_that_a_node_serves_and_a_document_explains() {
    let dashboard: serde_json::Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let mut used = Vec::new();
    expressions(&dashboard, &mut used);
    assert!(used.len() > 30, "{}", used.len());
    let rules = [read(RULES), read(ALERTS)];
    let expressions_of_rules = rules.iter().flat_map(|text| text.lines()).filter(|line| !line.contains("runbook_url"));
    let mut used = names(&used.join("\n"));
    used.extend(names(&expressions_of_rules.collect::<Vec<_>>().join("\n")));
    assert!(used.len() > 50, "{used:?}");

    // A bridge's metrics are there where there is one.
    let bridge = [("path", "/ws/site/"), ("workers", "unix:/nowhere/*.sock"), ("secret", "a secret of the bridge's")];
    let bridge = bridge.map(|(name, value)| (format!("bridge.{name}"), value));
    let bridge: Vec<_> = bridge.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let node = TestNode::start(&bridge).await;
    let (_, served) = node.at().internal_get("/metrics").await;
    let (served, document) = (names(&served), names(&read("docs/metrics.md")));
    let recorded = names(&rules[0].lines().filter(|line| line.contains("record:")).collect::<Vec<_>>().join("\n"));
    let mut unknown = Vec::new();
    for name in used {
        if recorded.contains(&name) || name == "gateway:" {
            continue;
        }
        let explained = ["_bucket", "_sum", "_count", ""]
            .iter()
            .any(|part| name.strip_suffix(part).is_some_and(|name| document.contains(name)));
        // Clocks are compared a little later.
        let there = served.contains(&name) || name == "gateway_clock_skew_seconds";
        if !explained || !there {
            unknown.push((name, explained, there));
        }
    }
    assert!(unknown.is_empty(), "a name, whether docs/metrics.md has it, whether a node serves it: {unknown:#?}");
    let missing: Vec<_> = served.iter().filter(|name| name.ends_with("_total") && !document.contains(*name)).collect();
    assert!(missing.is_empty(), "docs/metrics.md lacks {missing:?}");
}

#[test]
fn every_alert_has_a_section_that_says_where_to_look_and_what_to_do() {
    let page = read("docs/operations.md");
    let sections: Vec<(&str, &str)> =
        page.split("\n### ").skip(1).map(|section| section.split_once('\n').unwrap()).collect();
    let alerts = alerts();
    assert!(alerts.len() > 30, "{alerts:?}");
    for (name, runbook) in &alerts {
        let url = "https://github.com/channel-gateway/channel-gateway/blob/main/docs/operations.md#";
        assert_eq!(runbook, &format!("{url}{}", name.to_lowercase()));
        let found: Vec<_> = sections.iter().filter(|(title, _)| title == name).collect();
        let [(_, text)] = found[..] else { panic!("{name} has {} sections", found.len()) };
        let text = text.to_lowercase();
        assert!(text.contains("**look**") && text.contains("**do**"), "{name}: {text}");
    }
    for (title, _) in sections.iter().filter(|(title, _)| title.starts_with("Gateway")) {
        assert!(alerts.iter().any(|(name, _)| name == title), "{title} is no alert");
    }
}

// ---- numbers and names ----

/// The default of a setting, as a number.
fn default(name: &str) -> u64 {
    let setting = gateway::config::SETTINGS.iter().find(|setting| setting.name == name).unwrap();
    // The last number of an address is its port.
    setting.default.unwrap().rsplit(':').next().unwrap().parse().unwrap()
}

/// How long a node that leaves needs, and ten seconds more.
fn leaving() -> u64 {
    default("drain.delay_seconds") + default("drain.window_seconds") + 10
}

/// The number behind this text.
fn number(text: &str, before: &str) -> u64 {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("{before} is gone"));
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
}

/// The file of a settings file, or the variable, that this is.
fn is_setting(variable: &str) -> bool {
    let plain = variable.strip_suffix("_FILE");
    variable == "GATEWAY_CONFIG"
        || gateway::config::SETTINGS.iter().any(|setting| {
            setting.environment() == variable || (setting.has_file() && Some(&*setting.environment()) == plain)
        })
}

#[test]
fn supervisors_wait_for_the_drain_and_name_settings_that_exist() {
    let compose = read("docker-compose.yml");
    let grace = number(&compose, "stop_grace_period: ");
    assert!(grace >= leaving());
    assert_eq!(number(&compose, "GATEWAY_DRAIN__GRACE_SECONDS: "), grace);
    let unit = read("deploy/systemd/channel-gateway.service");
    assert!(number(&unit, "TimeoutStopSec=") >= leaving());
    // The node waits 30 s for its servers.
    assert!(number(&unit, "TimeoutStartSec=") > 30);
    let image = read("deploy/Dockerfile");
    for (file, text) in [("docker-compose.yml", &compose), ("the unit", &unit), ("deploy/Dockerfile", &image)] {
        let of_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        let words = text.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(|line| {
            line.split(move |letter| !of_name(letter)).filter(|word| word.starts_with("GATEWAY_")).collect::<Vec<_>>()
        });
        let unknown: Vec<_> = words
            // Of the files themselves: how many files the engine gives, and the balancer's list.
            .filter(|word| !matches!(*word, "GATEWAY_NOFILE" | "GATEWAY_HOST") && !is_setting(word))
            .collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
    let (public, internal) = (default("listen"), default("internal-listen"));
    assert!(image.contains(&format!("EXPOSE {public} {internal}")), "{image}");
    let balancer = read("deploy/haproxy.cfg");
    assert!(number(&balancer, "timeout tunnel ") * 3600 > default("limits.ping_seconds"));
    assert!(number(&balancer, "timeout client ") > default("limits.ping_seconds") + default("limits.pong_seconds"));
}

// ---- systemd ----

#[test]
fn systemd_takes_the_unit_and_finds_it_locked_up() {
    let unit = read("deploy/systemd/channel-gateway.service");
    let here = tempfile::tempdir().unwrap();
    let file = here.path().join("channel-gateway.service");
    std::fs::write(&file, unit.replace("/usr/local/bin/gateway", env!("CARGO_BIN_EXE_gateway"))).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(run("", "systemd-analyze", "systemd", &["verify", "--man=no", file]).trim(), "");
    let found = run("", "systemd-analyze", "systemd", &["security", "--offline=true", "--threshold=20", file]);
    assert!(found.contains("Overall exposure level"), "{found}");
}

/// A service manager that listens.
struct Manager {
    socket: std::os::unix::net::UnixDatagram,
    address: String,
}

impl Manager {
    fn new(directory: &Path) -> Self {
        let path = directory.join("notify");
        let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
        Self { socket, address: path.display().to_string() }
    }

    /// What it is told until something begins like this; that comes last.
    fn hears(&self, wanted: &str) -> Vec<String> {
        let (mut before, mut buffer) = (Vec::new(), [0; 512]);
        loop {
            let length = self.socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{wanted}: {error}; {before:?}"));
            let told = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let is_wanted = told.starts_with(wanted);
            before.push(told);
            if is_wanted {
                return before;
            }
        }
    }
}

#[test]
fn n3_the_service_manager_hears_that_a_node_is_ready_lives_and_leaves_and_how_long_that_takes() {
    let here = tempfile::tempdir().unwrap();
    let manager = Manager::new(here.path());
    let command = ["env".to_owned(), format!("NOTIFY_SOCKET={}", manager.address), "WATCHDOG_USEC=200000".to_owned()];
    let drain = [("drain.delay_seconds", "2"), ("drain.window_seconds", "100")];
    let mut node = common::NodeProcess::start_by(command.to_vec(), &drain);
    assert_eq!(manager.hears("READY=1").len(), 1, "nothing before it is ready");
    for _ in 0..3 {
        assert_eq!(manager.hears("WATCHDOG=1").len(), 1);
    }
    node.process.signal("TERM");
    let told = manager.hears("STOPPING=1");
    let (stopping, before) = told.split_last().unwrap();
    assert!(before.iter().all(|told| told == "WATCHDOG=1"), "{before:?}");
    // The delay, the window, and 10 s for what follows.
    assert!(stopping.lines().any(|line| line == "EXTEND_TIMEOUT_USEC=112000000"), "{stopping}");
    assert_eq!(node.process.exit_code(), 0, "{}", node.log());
}

#[test]
fn sysctl_lines_are_settings_of_this_kernel_with_a_reason() {
    let text = read("deploy/sysctl.d/60-channel-gateway.conf");
    let mut commented = false;
    for line in text.lines() {
        if let Some((name, value)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            assert!(Path::new(&path).exists(), "{name} is no setting");
            assert!(!value.is_empty() && commented, "{name} has no reason before it");
            commented = false;
        } else {
            commented |= line.starts_with('#');
        }
    }
    // What the nodes ask for.
    assert_eq!(number(&text, "net.core.somaxconn = "), 4096);
}

// ---- Kubernetes ----

/// What a script of `deploy/` makes of these directories: lists of objects, by name.
fn rendered(script: &str, directories: &[&str]) -> serde_json::Value {
    let mut command = Command::new(testkit::python::python());
    command.arg(root().join("gateway/tests/deploy").join(script));
    let out = command.args(directories.iter().map(|directory| root().join(directory))).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn of<'a>(objects: &'a serde_json::Value, kind: &str) -> Option<&'a serde_json::Value> {
    objects.as_array().unwrap().iter().find(|object| object["kind"] == kind)
}

/// That a Deployment fits what nodes do, and locks them up.
fn runs_nodes_well(name: &str, objects: &serde_json::Value) {
    let pod = &of(objects, "Deployment").unwrap()["spec"]["template"]["spec"];
    let node = &pod["containers"][0];
    let variables = node["env"].as_array().unwrap();
    let value = |setting: &str| -> u64 {
        let variable = setting.replace('.', "__").to_uppercase();
        let said = variables.iter().find(|it| it["name"] == format!("GATEWAY_{variable}"));
        said.map_or_else(|| default(setting), |said| said["value"].as_str().unwrap().parse().unwrap())
    };
    let delay = value("drain.delay_seconds");
    let leaving = delay + value("drain.window_seconds") + 10;
    let seconds: u64 = node["lifecycle"]["preStop"]["exec"]["command"][1].as_str().unwrap().parse().unwrap();
    let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(grace >= seconds + leaving, "{name}");
    assert_eq!(value("drain.grace_seconds"), grace - seconds, "{name}");
    let ports: Vec<u64> =
        node["ports"].as_array().unwrap().iter().map(|port| port["containerPort"].as_u64().unwrap()).collect();
    assert_eq!(ports, [default("listen"), default("internal-listen")], "{name}");
    // The node gives up waiting for its servers by itself before it is killed for that.
    let startup = &node["startupProbe"];
    assert!(startup["periodSeconds"].as_u64().unwrap() * startup["failureThreshold"].as_u64().unwrap() > 30);
    assert_eq!(node["readinessProbe"]["httpGet"]["path"], "/readyz");
    // A node that leaves is out of the way before it closes its listener.
    let readiness = &node["readinessProbe"];
    let noticed = readiness["periodSeconds"].as_u64().unwrap() * readiness["failureThreshold"].as_u64().unwrap();
    assert!(noticed <= seconds + delay, "{name}");
    assert_eq!(node["livenessProbe"]["httpGet"]["path"], "/healthz");
    let migrations = pod["initContainers"].as_array();
    for container in std::iter::once(node).chain(migrations.into_iter().flatten()) {
        let locked = &container["securityContext"];
        assert_eq!(locked["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(locked["allowPrivilegeEscalation"], false, "{name}");
        assert_eq!(locked["capabilities"]["drop"][0], "ALL", "{name}");
        for variable in container["env"].as_array().unwrap() {
            let variable = variable["name"].as_str().unwrap();
            assert!(is_setting(variable), "{name}: {variable} is no setting");
        }
    }
    // A Service that is called like a setting is none.
    assert_eq!(pod["enableServiceLinks"], false, "{name}");
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
    // The user that the image makes.
    let user = pod["securityContext"]["runAsUser"].as_u64().unwrap();
    assert!(read("deploy/Dockerfile").contains(&format!("--uid {user} ")), "{name}");
}

/// That there are more nodes quickly and fewer slowly, one at a time, and that not everybody may come.
fn is_kept_well(name: &str, objects: &serde_json::Value) {
    let spec = |kind: &str| &of(objects, kind).unwrap_or_else(|| panic!("{name} has no {kind}"))["spec"];
    let scaler = spec("HorizontalPodAutoscaler");
    assert!(scaler["minReplicas"].as_u64() <= scaler["maxReplicas"].as_u64(), "{name}");
    assert!(scaler["behavior"]["scaleDown"]["stabilizationWindowSeconds"].as_u64() >= Some(300), "{name}");
    assert_eq!(spec("PodDisruptionBudget")["maxUnavailable"], 1, "{name}");
    let allowed = spec("NetworkPolicy")["ingress"].to_string();
    assert!(allowed.contains("internal") && allowed.contains("public"), "{name}");
}

const SAME: [&str; 4] = ["base", "small", "production", "io-uring"];

#[test]
fn kubernetes_takes_what_the_overlays_make_and_the_numbers_are_the_nodes() {
    let rendered = rendered("kubernetes.py", &["deploy/kubernetes"]);
    for name in SAME {
        runs_nodes_well(name, &rendered[name]);
        is_kept_well(name, &rendered[name]);
    }
    let monitor = of(&rendered["production"], "ServiceMonitor").unwrap();
    assert_eq!(monitor["spec"]["endpoints"][0]["path"], "/metrics");
    let metrics = rendered["production"].to_string();
    assert!(metrics.contains("gateway_connections") && read("docs/metrics.md").contains("`gateway_connections`"));
}

#[test]
fn helm_makes_what_the_overlays_make_and_takes_no_value_that_means_nothing() {
    let chart = "deploy/helm/channel-gateway";
    let rendered = rendered("helm.py", &[chart, "deploy/kubernetes"]);
    for name in SAME {
        runs_nodes_well(name, &rendered[name]);
        is_kept_well(name, &rendered[name]);
    }
    // What the values say by themselves is what the node would do.
    let values = read(&format!("{chart}/values.yaml"));
    assert_eq!(number(&values, "  delaySeconds: "), default("drain.delay_seconds"));
    assert_eq!(number(&values, "  windowSeconds: "), default("drain.window_seconds"));
    assert!(read(&format!("{chart}/Chart.yaml")).contains(&format!("appVersion: \"{}\"", env!("CARGO_PKG_VERSION"))));

    let everything = &rendered["everything"];
    runs_nodes_well("everything", everything);
    let kinds = ["HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy"];
    assert!(kinds.iter().all(|kind| of(everything, kind).is_none()), "they are switched off");
    let deployment = of(everything, "Deployment").unwrap();
    assert_eq!((&deployment["metadata"]["name"], &deployment["spec"]["replicas"]), (&"sockets".into(), &4.into()));
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["terminationGracePeriodSeconds"], 8 + 10 + 60 + 10);
    assert!(pod["initContainers"].is_null());
    let variables = pod["containers"][0]["env"].to_string();
    for said in [
        r#"{"name":"GATEWAY_OTLP_SAMPLE_RATIO","value":"0.05"}"#,
        r#"{"name":"GATEWAY_LIMITS__OUTBOX_BYTES","value":"10485760"}"#,
        r#"{"name":"GATEWAY_STRICT_ENV","value":"true"}"#,
        r#"{"name":"GATEWAY_DJANGO_SECRET_KEY_FILE","value":"/run/secrets/gateway/key.txt"}"#,
        r#"{"name":"GATEWAY_CONFIG","value":"/etc/channel-gateway/gateway.toml"}"#,
    ] {
        assert!(variables.contains(said), "{said}: {variables}");
    }
    assert!(!variables.contains("REDIS_URL"), "null takes one out: {variables}");
    let file = of(everything, "ConfigMap").unwrap();
    assert!(file["data"]["gateway.toml"].as_str().unwrap().starts_with("[[bridge]]\n"));

    // Secrets stand in files, and what the chart says is said once.
    let schema: serde_json::Value = serde_json::from_str(&read(&format!("{chart}/values.schema.json"))).unwrap();
    let refused = schema["properties"]["settings"]["properties"].as_object().unwrap();
    assert!(refused.values().all(|value| value == false));
    let secrets = gateway::config::SETTINGS.iter().filter(|setting| setting.secret).map(|it| it.environment());
    let own = variables_of_the_chart(&rendered["base"], everything);
    let expected: BTreeSet<String> = secrets.chain(own).collect();
    assert_eq!(refused.keys().cloned().collect::<BTreeSet<_>>(), expected);
}

/// Settings that the chart gives each node, or the image, whatever the values are.
fn variables_of_the_chart(base: &serde_json::Value, everything: &serde_json::Value) -> BTreeSet<String> {
    let of_pod = |objects: &serde_json::Value| -> BTreeSet<String> {
        let node = &of(objects, "Deployment").unwrap()["spec"]["template"]["spec"]["containers"][0];
        node["env"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
    };
    let of_values = |name: &String| name.ends_with("_FILE") || name == "GATEWAY_LOG_FORMAT";
    let mut own: BTreeSet<String> = of_pod(base).into_iter().filter(|name| !of_values(name)).collect();
    own.extend(of_pod(everything).contains("GATEWAY_CONFIG").then(|| "GATEWAY_CONFIG".to_owned()));
    own.extend(["GATEWAY_LISTEN", "GATEWAY_INTERNAL_LISTEN"].map(str::to_owned));
    own
}
