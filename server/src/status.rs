//! `distributary-server status`: the fleet as a table.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context;

use crate::admin::{Fleet, Replica};
use crate::ask::Asker;
use crate::fleet::Report;

/// All replicas are asked one after the other by the one that is asked, each for two seconds.
const WITHIN: Duration = Duration::from_secs(10);
/// So many names are printed of each kind.
const NAMES: usize = 10;

/// Asks a replica's admin port, at HOST:PORT, how all stand.
///
/// # Errors
/// When it does not answer.
pub async fn status(at: &str) -> anyhow::Result<String> {
    let fleet = Asker::default().ask(at, "/v1/fleet", WITHIN).await;
    Ok(table(
        &fleet.with_context(|| format!("no status from http://{at}/v1/fleet; --admin says where to ask"))?,
        at,
    ))
}

/// For people.
fn table(fleet: &Fleet, asked: &str) -> String {
    let head =
        ["REPLICA", "VERSION", "AGENTS", "IN STEP", "REVISION", "STALE", "SENT P99", "ACKED P99", "NOTE"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(fleet.replicas.iter().map(|replica| row(replica, asked)));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    let reports: Vec<&Report> = fleet.replicas.iter().filter_map(|one| one.report.as_ref()).collect();
    let laggards = reports.iter().flat_map(|one| &one.laggards);
    let laggards = laggards.map(|one| format!("{} ({:.1}s)", one.node, one.behind_seconds));
    list(&mut text, "behind", laggards.collect());
    let refusing = reports.iter().flat_map(|one| &one.refusing);
    let refusing = refusing.map(|one| format!("{} refuses {}: {}", one.node, one.service, one.message));
    list(&mut text, "refused by kernels", refusing.collect());
    list(&mut text, "nodes without a stream", fleet.absent.clone());
    text
}

fn row(Replica { at, report, error }: &Replica, asked: &str) -> [String; 9] {
    let at = if at.is_empty() { asked } else { at }.to_owned();
    let Some(report) = report else {
        let none = || "-".to_owned();
        let note = format!("does not answer: {}", error.as_deref().unwrap_or("no reason given"));
        return [at, none(), none(), none(), none(), none(), none(), none(), note];
    };
    let seconds =
        |found: Option<f64>| found.map_or_else(|| "-".to_owned(), |found| format!("{:.0}ms", found * 1e3));
    let notes = [
        (!report.listed).then(|| "has not listed".to_owned()),
        report.leaving.then(|| "is shutting down".to_owned()),
        (report.held > 0).then(|| format!("holds {} removals", report.held)),
    ];
    [
        at,
        report.version.clone(),
        report.agents.len().to_string(),
        report.in_step.to_string(),
        report.revision.to_string(),
        format!("{:.0}s", report.stale_seconds),
        seconds(report.sent.p99),
        seconds(report.acked.p99),
        notes.into_iter().flatten().collect::<Vec<_>>().join(", "),
    ]
}

fn list(text: &mut String, what: &str, all: Vec<String>) {
    if all.is_empty() {
        return;
    }
    let more = all.len().saturating_sub(NAMES);
    let shown = all[..all.len() - more].join(", ");
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let written = writeln!(text, "{what}: {shown}{more}");
    debug_assert!(written.is_ok(), "a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::{Laggard, Took};

    #[test]
    fn the_table_has_a_line_for_each_and_names_who_is_not_well() {
        let took = Took { p50: Some(0.001), p99: Some(0.0038), p999: None };
        let laggard = Laggard { node: "n2".into(), revision: Some(6), behind_seconds: 1.26 };
        let report = Report {
            version: "0.1.0".into(),
            listed: true,
            revision: 7,
            agents: vec!["n1".into(), "n2".into()],
            in_step: 1,
            sent: took,
            laggards: vec![laggard],
            ..Report::default()
        };
        let well = Replica { at: String::new(), report: Some(report), error: None };
        let cut =
            Replica { at: "10.0.0.2:7401".into(), report: None, error: Some("connection refused".into()) };
        let absent = (0..12).map(|node| format!("x{node}")).collect();
        let table = table(&Fleet { replicas: vec![well, cut], absent }, "127.0.0.1:7401");
        let wanted = "\
REPLICA         VERSION  AGENTS  IN STEP  REVISION  STALE  SENT P99  ACKED P99  NOTE
127.0.0.1:7401  0.1.0    2       1        7         0s     4ms       -
10.0.0.2:7401   -        -       -        -         -      -         -          does not answer: connection refused
behind: n2 (1.3s)
nodes without a stream: x0, x1, x2, x3, x4, x5, x6, x7, x8, x9 and 2 more
";
        assert_eq!(table, wanted);
    }
}
