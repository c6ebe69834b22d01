use std::collections::BTreeSet;
use std::path::Path;

use super::*;

/// The words behind these calls in the crate's sources.
fn words(directory: &Path, calls: &[&str], found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            words(&entry, calls, found);
            continue;
        }
        let text = std::fs::read_to_string(&entry).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        for call in calls {
            found.extend(text.split(call).skip(1).filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
        }
    }
}

#[test]
fn every_series_that_the_program_knows_begins_at_zero() {
    let text = Metrics::new().encode();
    for (calls, series) in [
        (&["time_store(\""][..], "gateway_store_errors_total{operation="),
        (&["health.note(\"", "note_with(\""], "gateway_background_failures_total{task="),
        (&["self.dropped(\""], "gateway_layer_events_dropped_total{reason="),
        (&["postponed(\""], "gateway_stream_postponed_total{reason="),
        (&[" unusable(\"", "(unusable(\""], "gateway_stream_dead_total{reason="),
        (&["reject(&self.node, \"", "refuse(Refusal::Unavailable, \""], "gateway_handshakes_rejected_total{reason="),
    ] {
        let mut found = BTreeSet::new();
        words(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), calls, &mut found);
        assert!(!found.is_empty(), "{series}");
        for word in found {
            assert!(text.contains(&format!("{series}\"{word}\"}} 0")), "{series}{word}");
        }
    }
}

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");

/// The rows of `docs/metrics.md`: what `/metrics` shows.
fn rows() -> Vec<String> {
    let metrics = Metrics::new();
    // There once clocks have been compared.
    for of in ["database", "redis"] {
        drop(metrics.clock_skew_seconds.get_or_create(&ByOf { of }));
    }
    // There for each bridge.
    metrics.bridge.begin("/ws/orders/", crate::consumers::bridged::CODES);
    let text = metrics.encode();
    let mut rows = Vec::new();
    for part in text.split("# HELP ").skip(1) {
        let mut lines = part.lines();
        let (name, help) = lines.next().unwrap().split_once(' ').unwrap();
        let kind = lines.find_map(|line| line.strip_prefix(&format!("# TYPE {name} "))).unwrap();
        let samples: Vec<&str> = lines.filter(|line| line.starts_with(name)).collect();
        let shown = match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        };
        let mut labels: Vec<(&str, BTreeSet<&str>)> = Vec::new();
        for pairs in samples.iter().filter_map(|line| Some(line.split_once('{')?.1.split_once('}')?.0)) {
            for (label, value) in pairs.split(',').filter_map(|pair| pair.split_once('=')) {
                if label == "le" {
                    continue;
                }
                if !labels.iter().any(|(known, _)| *known == label) {
                    labels.push((label, BTreeSet::new()));
                }
                let values = &mut labels.iter_mut().find(|(known, _)| *known == label).unwrap().1;
                values.insert(value.trim_matches('"'));
            }
        }
        assert!(!samples.is_empty(), "{name} shows nothing");
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, values)| match *label {
                "version" | "path" => format!("`{label}`"),
                _ => format!("`{label}`: {}", values.iter().copied().collect::<Vec<_>>().join(", ")),
            })
            .collect();
        rows.push(format!("| `{shown}` | {kind} | {} | {} |", labels.join("; "), help.trim_end_matches('.')));
    }
    rows.sort();
    rows
}

/// `GATEWAY_WRITE_DOCUMENTS=1 cargo test -p gateway --lib metrics::` writes the table anew.
#[test]
fn the_document_explains_every_metric_by_its_help_text_and_labels() {
    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    let head = "| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n";
    let (before, rest) = document.split_once(head).unwrap();
    let table: String = rest.split_inclusive('\n').take_while(|line| line.starts_with('|')).collect();
    let wanted: String = rows().iter().map(|row| format!("{row}\n")).collect();
    if table != wanted && std::env::var_os("GATEWAY_WRITE_DOCUMENTS").is_some() {
        let after = &rest[table.len()..];
        std::fs::write(DOCUMENT, format!("{before}{head}{wanted}{after}")).unwrap();
        return;
    }
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let (has, wants) = (lines(&table), lines(&wanted));
    let (missing, gone): (Vec<_>, Vec<_>) = (wants.difference(&has).collect(), has.difference(&wants).collect());
    assert!(
        table == wanted,
        "docs/metrics.md: GATEWAY_WRITE_DOCUMENTS=1 writes it anew. Missing: {missing:#?} Gone: {gone:#?}"
    );
}
