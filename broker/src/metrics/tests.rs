use super::*;
use weir_protocol::error_code::ErrorCode;

fn page_of(metrics: &Metrics) -> String {
    metrics.upkeep();
    metrics.render(|_| {})
}

/// Every sample line belongs to the TYPE line above it, and no family appears twice.
fn check(page: &str) {
    let mut seen = std::collections::BTreeSet::new();
    let mut current = "";
    for line in page.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            current = rest.split(' ').next().unwrap();
            assert!(seen.insert(current.to_owned()), "{current} appears twice");
            assert!(families::family_of(current).is_some(), "{current} is not in the table");
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(name.starts_with(current) && !current.is_empty(), "{line} stands alone");
            let value = line.rsplit(' ').next().unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}

#[test]
fn the_page_is_well_formed_and_counts() {
    let metrics = Metrics::new("n", 10);
    let name = Name::new("orders").unwrap();
    metrics.topic(&name).published(3, 300, false);
    metrics.topic(&name).published(2, 200, true);
    metrics.refused(Some(&name), ErrorCode::BacklogFull.number());
    metrics.refused(None, 0xffff);
    metrics.connection_opened();
    metrics.connection_closed("bye");
    metrics.flushed(Duration::from_micros(300), 4096);
    metrics.publish_ack.observe(Duration::from_micros(70));
    let page = page_of(&metrics);
    check(&page);
    for line in [
        "weir_publish_messages_total{topic=\"orders\",result=\"stored\"} 3",
        "weir_publish_messages_total{topic=\"orders\",result=\"duplicate\"} 2",
        "weir_publish_bytes_total{topic=\"orders\"} 300",
        "weir_publish_rejected_total{topic=\"orders\",reason=\"backlog\"} 1",
        "weir_publish_ack_seconds_bucket{le=\"0.0001\"} 1",
        "weir_publish_ack_seconds_count 1",
        "weir_log_flush_seconds_count 1",
        "weir_connections 0",
    ] {
        assert!(page.contains(line), "{line} is missing in\n{page}");
    }
}

#[test]
fn topics_beyond_the_cap_have_no_series_and_are_counted() {
    let metrics = Metrics::new("n", 1);
    for name in ["a", "b"] {
        metrics.topic(&Name::new(name).unwrap()).published(1, 1, false);
    }
    let page = page_of(&metrics);
    assert!(page.contains("topic=\"a\"") && !page.contains("topic=\"b\""));
    assert!(page.contains("weir_metric_series_dropped_total 1"));
    metrics.forget_topic(&Name::new("a").unwrap());
    assert!(!page_of(&metrics).contains("topic=\"a\""));
}

/// An alert on a family that nobody renders never fires, and a panel of it is empty.
#[test]
fn alerts_and_dashboards_ask_for_what_there_is() {
    let ops = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops");
    let page = std::fs::read_to_string(ops.join("dashboards/weir.json")).unwrap();
    let mut pages = vec![("the dashboard".to_owned(), page)];
    for item in std::fs::read_dir(ops.join("alerts")).unwrap() {
        let path = item.unwrap().path();
        if path.is_file() {
            pages.push((path.display().to_string(), std::fs::read_to_string(path).unwrap()));
        }
    }
    assert!(pages.len() > 2, "{pages:?}");
    for (page, text) in &pages {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for word in words.filter(|word| word.starts_with("weir_")) {
            let suffixes = ["_bucket", "_sum", "_count"];
            let family = suffixes.iter().find_map(|suffix| word.strip_suffix(suffix));
            let known = families::family_of(word).or(families::family_of(family.unwrap_or(word)));
            assert!(known.is_some(), "{page} asks for {word}");
        }
        for runbook in text.lines().filter_map(|line| line.trim().strip_prefix("runbook: ops/")) {
            assert!(ops.join(runbook).is_file(), "{page}: {runbook} is not there");
        }
    }
}
