//! What vanished while nobody watched: the keys of a complete list compared with those known before it.

use std::collections::BTreeSet;

/// Keys that are known, through any number of lists that are begun and not finished.
#[derive(Debug)]
pub(super) struct Relist<K> {
    /// Never emptied by a beginning: what an abandoned list would have shown to be gone must show in the next.
    known: BTreeSet<K>,
    listing: Option<BTreeSet<K>>,
}

impl<K> Default for Relist<K> {
    fn default() -> Self {
        Self { known: BTreeSet::new(), listing: None }
    }
}

impl<K: Ord + Clone> Relist<K> {
    /// A list begins, maybe anew.
    pub(super) fn begin(&mut self) {
        self.listing = Some(BTreeSet::new());
    }

    /// The object is there.
    pub(super) fn seen(&mut self, key: K) {
        if let Some(listing) = &mut self.listing {
            listing.insert(key.clone());
        }
        self.known.insert(key);
    }

    /// Somebody said that the object is gone.
    pub(super) fn gone(&mut self, key: &K) {
        if let Some(listing) = &mut self.listing {
            listing.remove(key);
        }
        self.known.remove(key);
    }

    /// The list is complete. Gives the keys that vanished without a word.
    pub(super) fn finish(&mut self) -> Vec<K> {
        let Some(listed) = self.listing.take() else { return Vec::new() };
        let vanished = self.known.difference(&listed).cloned().collect();
        self.known = listed;
        vanished
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_in_a_list_vanished() {
        let mut relist = Relist::default();
        relist.begin();
        relist.seen("a");
        relist.seen("b");
        assert_eq!(relist.finish(), [""; 0]);
        relist.gone(&"b");
        relist.seen("c");
        relist.begin();
        relist.seen("c");
        assert_eq!(relist.finish(), ["a"]);
        assert_eq!(relist.finish(), [""; 0]);
    }

    #[test]
    fn lists_that_fail_forget_nothing() {
        let mut relist = Relist::default();
        for key in ["a", "b"] {
            relist.seen(key);
        }
        relist.begin();
        relist.begin();
        relist.seen("b");
        relist.begin();
        relist.seen("a");
        assert_eq!(relist.finish(), ["b"]);
    }

    #[test]
    fn what_is_deleted_while_it_is_listed_is_not_known() {
        let mut relist = Relist::default();
        relist.begin();
        relist.seen("a");
        relist.gone(&"a");
        assert_eq!(relist.finish(), [""; 0]);
        relist.begin();
        assert_eq!(relist.finish(), [""; 0]);
    }
}
