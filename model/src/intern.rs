//! Keeps one copy of what many records share: names of nodes and zones, lists of ports and hints.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use crate::{EndpointPort, Name};

/// Hands out shared copies. What nobody else holds any more is dropped as it grows.
#[derive(Debug, Default)]
pub struct Interner {
    names: Pool<str>,
    ports: Pool<[EndpointPort]>,
    lists: Pool<[Name]>,
}

impl Interner {
    /// The shared copy of a name.
    pub fn name(&mut self, name: &str) -> Name {
        self.names.get(name, |name| Arc::from(name))
    }

    /// The shared copy of an endpoint's ports, sorted and unique.
    pub fn ports(&mut self, mut ports: Vec<EndpointPort>) -> Arc<[EndpointPort]> {
        ports.sort_unstable();
        ports.dedup();
        self.ports.get(&ports, |ports| Arc::from(ports))
    }

    /// The shared copy of a list of names, sorted and unique.
    pub fn list(&mut self, mut names: Vec<Name>) -> Arc<[Name]> {
        names.sort_unstable();
        names.dedup();
        self.lists.get(&names, |names| Arc::from(names))
    }
}

#[derive(Debug)]
struct Pool<T: ?Sized> {
    held: HashSet<Arc<T>>,
    sweep_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { held: HashSet::new(), sweep_at: 1024 }
    }
}

impl<T: ?Sized + Hash + Eq> Pool<T> {
    fn get(&mut self, value: &T, make: impl FnOnce(&T) -> Arc<T>) -> Arc<T> {
        if let Some(held) = self.held.get(value) {
            return held.clone();
        }
        if self.held.len() >= self.sweep_at {
            self.held.retain(|held| Arc::strong_count(held) > 1);
            self.sweep_at = (2 * self.held.len()).max(1024);
        }
        let made = make(value);
        self.held.insert(made.clone());
        made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_one_and_unused_ones_go() {
        let mut interner = Interner::default();
        let kept = interner.name("node-1");
        assert!(Arc::ptr_eq(&kept, &interner.name("node-1")));
        for i in 0..10_000 {
            interner.name(&i.to_string());
        }
        assert!(interner.names.held.len() <= 1024);
        assert!(Arc::ptr_eq(&kept, &interner.name("node-1")));
    }
}
