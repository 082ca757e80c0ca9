//! Waiting for a condition with a deadline. Nothing else in this crate sleeps.

use std::{
    thread,
    time::{Duration, Instant},
};

const POLL: Duration = Duration::from_millis(15);

/// Calls `probe` until it gives a value, and returns that.
///
/// # Panics
/// When `timeout` has passed; the text names `what`.
#[track_caller]
pub fn until<T>(what: &str, timeout: Duration, probe: impl FnMut() -> Option<T>) -> T {
    match within(timeout, probe) {
        Some(value) => value,
        None => panic!("waited {timeout:?} in vain: {what}"),
    }
}

/// Like [`until`], for those who have something better to do at the deadline than to panic.
pub fn within<T>(timeout: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = probe() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        pause();
    }
}

/// The asynchronous [`until`]. The probe is cut off at the deadline, too.
///
/// # Panics
/// When `timeout` has passed; the text names `what`.
pub async fn until_async<T, F>(what: &str, timeout: Duration, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let polling = async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    match tokio::time::timeout(timeout, polling).await {
        Ok(value) => value,
        Err(_) => panic!("waited {timeout:?} in vain: {what}"),
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the poll that everybody else is to use")]
fn pause() {
    thread::sleep(POLL);
}
