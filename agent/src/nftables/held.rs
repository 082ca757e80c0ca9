//! What is remembered of what the kernel holds.

/// The rules of a chain, by the comment that each has: a hash of its text. The kernel prints rules in words of its own,
/// which change from version to version, but comments as they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digest {
    hash: u32,
    pub(super) rules: u32,
}

impl Digest {
    pub(super) fn of(rules: &[String]) -> Self {
        let mut digest = Self::default();
        rules.iter().for_each(|rule| digest.add(Some(comment(rule))));
        digest
    }

    /// One more rule; `None`: that we would not write.
    pub(super) fn add(&mut self, comment: Option<u32>) {
        let comment = comment.unwrap_or_default();
        let both = [self.hash.to_be_bytes(), comment.to_be_bytes()].concat();
        self.hash = crc32fast::hash(&both);
        self.rules += 1;
    }
}

/// What a rule is told by.
pub(super) fn comment(rule: &str) -> u32 {
    crc32fast::hash(rule.as_bytes())
}
