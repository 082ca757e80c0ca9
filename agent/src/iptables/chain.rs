//! A chain with its rules as text, and the hash by which it is compared with the kernel's.

use distributary_model::Name;
use sha2::{Digest as _, Sha256};

use super::rule::Rule;

/// The first 128 bits of a SHA-256 of a chain's `-A` lines.
pub(crate) type TextHash = u128;

/// A chain, rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: Name,
    /// `-A` lines.
    pub(crate) text: String,
    pub(crate) rules: usize,
}

/// What can stand in a chain.
pub(crate) trait Line {
    fn write(&self, out: &mut String);
}

impl Line for Rule {
    fn write(&self, out: &mut String) {
        Self::write(self, out);
    }
}

impl Line for &str {
    fn write(&self, out: &mut String) {
        out.push_str(self);
    }
}

/// A rule as it was found stands as it is.
impl Line for Result<Rule, Box<str>> {
    fn write(&self, out: &mut String) {
        match self {
            Ok(rule) => rule.write(out),
            Err(text) => out.push_str(text),
        }
    }
}

impl Chain {
    pub(crate) fn new<L: Line>(name: &str, lines: impl IntoIterator<Item = L>) -> Self {
        let mut chain = Self { name: name.into(), text: String::new(), rules: 0 };
        for line in lines {
            chain.text.extend(["-A ", name, " "]);
            line.write(&mut chain.text);
            chain.text.push('\n');
            chain.rules += 1;
        }
        chain
    }

    /// Without a rule.
    pub(crate) fn empty(name: &str) -> Self {
        Self::new::<&str>(name, [])
    }

    pub(crate) fn hash(&self) -> TextHash {
        let hash = Sha256::digest(&self.text);
        hash[..16].iter().fold(0, |head, &byte| head << 8 | u128::from(byte))
    }
}
