//! What is done about records that are not the server's: a comparison inside the stream, and if that does not help, the
//! end of the stream (stream rule 2.5).

use std::time::{Duration, Instant};

/// Comparisons are asked for at most this often.
const EVERY: Duration = Duration::from_secs(30);
/// What differs again so soon after a comparison was not mended by it.
const IN_A_ROW: Duration = Duration::from_secs(60);
/// Many agents may see the same at once.
const SPREAD: Duration = Duration::from_secs(5);

/// Of one stream.
#[derive(Debug, Default)]
pub struct Audit {
    state: State,
    asked: Option<Instant>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Agreed,
    Due(Instant, String),
    Asked(Instant),
}

impl Audit {
    /// The roots differ; `share` (0 to 1) spreads agents. False: the stream is to be closed.
    pub fn differs(&mut self, reason: String, share: f64, now: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        match &self.state {
            State::Agreed if self.asked.is_some_and(|at| since(at) < IN_A_ROW) => return false,
            State::Agreed => self.state = State::Due(now + SPREAD.mul_f64(share), reason),
            State::Due(..) => {}
            State::Asked(at) => return since(*at) < EVERY,
        }
        true
    }

    /// A comparison has ended, and the roots agree.
    pub fn agrees(&mut self) {
        self.state = State::Agreed;
    }

    /// When to ask for one.
    pub fn due(&self) -> Option<Instant> {
        match &self.state {
            State::Due(at, _) => Some(*at),
            _ => None,
        }
    }

    /// It is asked for now, if it is due; why.
    pub fn ask(&mut self, now: Instant) -> Option<String> {
        let State::Due(at, reason) = &mut self.state else { return None };
        let reason = (*at <= now).then(|| std::mem::take(reason))?;
        self.state = State::Asked(now);
        self.asked = Some(now);
        Some(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_at_most_once_in_30_s_and_a_second_mismatch_in_a_row_closes() {
        let (mut audit, start) = (Audit::default(), Instant::now());
        let differs = |audit: &mut Audit, at| audit.differs("roots".into(), 0.5, start + at);
        assert!(differs(&mut audit, Duration::ZERO));
        assert_eq!(audit.due(), Some(start + SPREAD / 2));
        assert_eq!(audit.ask(start), None);
        assert_eq!(audit.ask(start + SPREAD).as_deref(), Some("roots"));
        assert!(differs(&mut audit, SPREAD + EVERY / 2), "the answer is underway");
        audit.agrees();
        assert!(!differs(&mut audit, SPREAD + IN_A_ROW / 2), "it did not help");
        assert!(differs(&mut audit, SPREAD + IN_A_ROW), "long after, it is another one");
        assert!(audit.ask(start + 3 * IN_A_ROW).is_some());
        assert!(!differs(&mut audit, 3 * IN_A_ROW + EVERY), "nobody answers");
    }
}
