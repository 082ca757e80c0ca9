//! Metrics in the two text formats that scrapers ask for.

/// Of OpenMetrics.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Of the older format, which is what everybody gets who does not ask.
pub const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// OpenMetrics as the older format: a counter is declared under the name that its samples have, bounds of buckets that
/// are whole numbers are written like it, and there is no end mark.
pub fn plain(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 1024);
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take() {
                text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            match line
                .split_once("le=\"")
                .and_then(|(before, after)| Some((before, after.split_once(".0\"")?)))
            {
                Some((before, (bound, after))) if bound.bytes().all(|byte| byte.is_ascii_digit()) => {
                    text.extend([before, "le=\"", bound, "\"", after, "\n"]);
                }
                _ => text.extend([line, "\n"]),
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::registry::Registry;

    #[test]
    fn the_older_format_has_the_names_of_samples_and_no_end() {
        let mut registry = Registry::default();
        registry.register("changes", "What changed", Counter::<u64>::default());
        registry.register("rules_total", "Rules", Gauge::<i64>::default());
        registry.register("took_seconds", "Time", Histogram::new([0.5, 1.0, 10.0]));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let wanted = "# HELP changes_total What changed.\n# TYPE changes_total counter\nchanges_total 0\n\
                      # HELP rules_total Rules.\n# TYPE rules_total gauge\nrules_total 0\n\
                      # HELP took_seconds Time.\n# TYPE took_seconds histogram\n\
                      took_seconds_sum 0.0\ntook_seconds_count 0\n\
                      took_seconds_bucket{le=\"0.5\"} 0\ntook_seconds_bucket{le=\"1\"} 0\n\
                      took_seconds_bucket{le=\"10\"} 0\ntook_seconds_bucket{le=\"+Inf\"} 0\n";
        assert_eq!(plain(&text), wanted);
    }
}
