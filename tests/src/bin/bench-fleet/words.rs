//! Numbers for people.

/// `12,345`
pub(crate) fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `12.3 MiB`
pub(crate) fn kib(kib: u64) -> String {
    format!("{:.1} MiB", kib as f64 / 1024.0)
}

/// `1.2 ms`, of microseconds.
pub(crate) fn millis(micros: u64) -> String {
    format!("{:.1} ms", micros as f64 / 1000.0)
}

/// `12 µs`, or `1.2 ms` where that is shorter.
pub(crate) fn micros(micros: f64) -> String {
    match micros < 1000.0 {
        true => format!("{micros:.0} µs"),
        false => format!("{:.1} ms", micros / 1000.0),
    }
}

/// `0.98×`
pub(crate) fn ratio(a: f64, b: f64) -> String {
    format!("**{:.2}×**", a / b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            (micros(12.4), micros(1_240.0), millis(1_240)),
            ("12 µs".into(), "1.2 ms".into(), "1.2 ms".into())
        );
        assert_eq!(ratio(9.8, 10.0), "**0.98×**");
    }
}
