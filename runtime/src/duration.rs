//! Durations as Go writes them: `30s`, `1h30m`, `24h0m0s`.

use std::fmt::Write as _;
use std::time::Duration;

/// What is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no duration such as 30s, 1h30m or 500ms")]
pub struct NoDuration(String);

/// Units with their nanoseconds, the longer name before the one that it begins with.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a duration that is not negative.
///
/// # Errors
/// When it is none, or longer than Go can hold.
pub fn parse(text: &str) -> Result<Duration, NoDuration> {
    read(text.strip_prefix('+').unwrap_or(text)).ok_or_else(|| NoDuration(text.to_owned()))
}

fn read(mut rest: &str) -> Option<Duration> {
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut all = 0_u64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && part.is_empty() {
            return None;
        }
        let (unit, nanos) = UNITS.into_iter().find(|(unit, _)| after.starts_with(unit))?;
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        all = all.checked_add(whole.checked_mul(nanos)?)?.checked_add(fraction(part, nanos)?)?;
        rest = &after[unit.len()..];
    }
    (all <= i64::MAX.unsigned_abs()).then(|| Duration::from_nanos(all))
}

/// So many nanoseconds are the digits behind the point; what is finer is cut off.
fn fraction(digits: &str, nanos: u64) -> Option<u64> {
    let (mut sum, mut scale) = (0, nanos);
    for digit in digits.chars() {
        let digit = u64::from(digit.to_digit(10)?);
        sum += digit * scale / 10;
        scale /= 10;
    }
    Some(sum)
}

/// As Go prints it.
pub fn text(duration: Duration) -> String {
    let mut text = String::new();
    let (seconds, nanos) = (duration.as_secs(), duration.subsec_nanos());
    let written = match (seconds, nanos) {
        (0, 0) => write!(text, "0s"),
        (0, 1..1_000) => write!(text, "{nanos}ns"),
        (0, 1_000..1_000_000) => write!(text, "{}µs", f64::from(nanos) / 1e3),
        (0, _) => write!(text, "{}ms", f64::from(nanos) / 1e6),
        _ => {
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let hours = if hours > 0 { format!("{hours}h") } else { String::new() };
            let minutes = if seconds >= 60 { format!("{minutes}m") } else { String::new() };
            let rest = format!("{}.{nanos:09}", seconds % 60);
            write!(text, "{hours}{minutes}{}s", rest.trim_end_matches('0').trim_end_matches('.'))
        }
    };
    debug_assert!(written.is_ok(), "a String takes everything");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_reads_is_read() {
        let table = [
            ("0", 0),
            ("0s", 0),
            ("30s", 30_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("24h0m0s", 86_400_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("500ms", 500_000_000),
            ("1m0.25s", 60_250_000_000),
            ("7us", 7_000),
            ("7µs", 7_000),
            ("3ns", 3),
            ("+2m", 120_000_000_000),
        ];
        for (text, nanos) in table {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in ["", "30", "s", ".s", "1d", "-1s", "1 s", "1s ", "1h30", "9223372036855s", "1..5s", "+"] {
            assert_eq!(parse(text), Err(NoDuration(text.to_owned())), "{text}");
        }
        let error = parse("thirty").unwrap_err().to_string();
        assert_eq!(error, "\"thirty\" is no duration such as 30s, 1h30m or 500ms");
    }

    #[test]
    fn it_is_written_as_go_writes_it() {
        let table = [
            ("0s", "0s"),
            ("30s", "30s"),
            ("90s", "1m30s"),
            ("1h", "1h0m0s"),
            ("24h", "24h0m0s"),
            ("1500ms", "1.5s"),
            ("250ms", "250ms"),
            ("1500us", "1.5ms"),
            ("7us", "7µs"),
            ("3ns", "3ns"),
        ];
        for (from, to) in table {
            assert_eq!(text(parse(from).unwrap()), to);
        }
    }
}
