//! Which index an endpoint has. It keeps it as long as it can, so that a change touches few elements: who comes gets the
//! next free index, and where one is freed below the end, the last moves there.

use std::collections::BTreeSet;
use std::net::SocketAddr;

/// More cannot be told apart by an index.
pub(super) const MOST: usize = u16::MAX as usize;

/// The endpoints that are wanted, in the order of their indices, given the order that was.
pub(super) fn place(was: &[SocketAddr], wanted: &[SocketAddr]) -> Vec<SocketAddr> {
    let wanted = &wanted[..wanted.len().min(MOST)];
    let mut missing: BTreeSet<SocketAddr> = wanted.iter().copied().collect();
    let mut placed: Vec<Option<SocketAddr>> = vec![None; missing.len()];
    for (at, endpoint) in placed.iter_mut().zip(was) {
        *at = missing.take(endpoint);
    }
    // Who was behind the end before who is new.
    let behind = was.iter().skip(placed.len()).filter_map(|endpoint| missing.take(endpoint));
    let behind: Vec<SocketAddr> = behind.collect();
    let mut rest = behind.into_iter().chain(missing);
    placed.into_iter().filter_map(|at| at.or_else(|| rest.next())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(last: &[u8]) -> Vec<SocketAddr> {
        last.iter().map(|last| SocketAddr::from(([10, 0, 0, *last], 80))).collect()
    }

    #[test]
    fn who_stays_keeps_its_index() {
        assert_eq!(place(&[], &all(&[1, 2, 3])), all(&[1, 2, 3]));
        assert_eq!(place(&all(&[2, 3]), &all(&[1, 2, 3])), all(&[2, 3, 1]));
        assert_eq!(place(&all(&[1, 2, 3, 4]), &all(&[2, 3, 4])), all(&[4, 2, 3]));
        assert_eq!(place(&all(&[1, 2, 3]), &all(&[1, 3, 4])), all(&[1, 4, 3]));
        assert_eq!(place(&all(&[1, 2, 3, 4, 5]), &all(&[3, 5])), all(&[3, 5]));
        assert_eq!(place(&all(&[1, 1, 2]), &all(&[1, 2])), all(&[1, 2]));
        assert_eq!(place(&all(&[1, 2]), &[]), []);
    }
}
