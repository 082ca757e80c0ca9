//! Endpoints of a service beyond a flat list: groups by the top bits of a hash of the endpoint, so that one that comes
//! or goes changes one group (spec/layout.md §2).

use std::net::SocketAddr;

use sha2::{Digest as _, Sha256};

/// The longest flat list, and the mean size at which groups split.
const GROUP: usize = 32;
/// The same from [`MANY`] endpoints on.
const LARGE_GROUP: usize = 64;
const MANY: usize = 2_000;
/// Mean size below which groups merge.
const SPARSE: usize = 12;
/// So many are flat again.
const FLAT: usize = 16;
/// What a name of a group can say.
const DEEPEST: u8 = 15;

/// How many bits of the hash choose the group: 0 is a flat list. Depends on what it was, so that an endpoint moves
/// seldom. `level(n, level(n, was)) == level(n, was)`.
pub(crate) fn level(endpoints: usize, was: u8) -> u8 {
    if endpoints <= FLAT {
        return 0;
    }
    let most = if endpoints >= MANY { LARGE_GROUP } else { GROUP };
    let mut level = was.min(DEEPEST);
    while level < DEEPEST && endpoints > most << level {
        level += 1;
    }
    while level > 1 && endpoints < SPARSE << level {
        level -= 1;
    }
    level
}

/// The groups that have endpoints, each with its index, in order. Level 0 has one.
pub(crate) fn split(endpoints: &[SocketAddr], level: u8) -> Vec<(usize, Vec<SocketAddr>)> {
    let mut groups = vec![Vec::new(); 1 << level];
    for endpoint in endpoints {
        groups[index(endpoint, level)].push(*endpoint);
    }
    groups.into_iter().enumerate().filter(|(_, group)| !group.is_empty()).collect()
}

fn index(endpoint: &SocketAddr, level: u8) -> usize {
    if level == 0 {
        return 0;
    }
    let hash = Sha256::digest(endpoint.to_string());
    let head = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]);
    (head >> (32 - u32::from(level))) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn levels_grow_and_shrink_with_slack() {
        for (endpoints, was, is) in [
            (32, 0, 0),
            (33, 0, 1),
            (17, 1, 1),
            (16, 1, 0),
            (64, 1, 1),
            (65, 1, 2),
            (48, 2, 2),
            (47, 2, 1),
            (1_999, 0, 6),
            (2_000, 0, 5),
            (2_000, 6, 6),
            (5_000, 0, 7),
        ] {
            assert_eq!(level(endpoints, was), is, "{endpoints} from {was}");
        }
    }

    proptest! {
        #[test]
        fn a_level_rests(endpoints in 0..100_000_usize, was in 0..16_u8) {
            let once = level(endpoints, was);
            prop_assert_eq!(level(endpoints, once), once);
        }

        #[test]
        fn groups_hold_everybody_once(ports in proptest::collection::btree_set(any::<u16>(), 0..200), at in 0..6_u8) {
            let all: Vec<SocketAddr> = ports.into_iter().map(|port| SocketAddr::from(([10, 0, 0, 1], port))).collect();
            let groups = split(&all, at);
            let mut back: Vec<_> = groups.iter().flat_map(|(_, group)| group.clone()).collect();
            back.sort();
            prop_assert_eq!(back, all);
            // Of two levels, the deeper one only splits groups.
            for (index, group) in split(&groups.iter().flat_map(|(_, g)| g.clone()).collect::<Vec<_>>(), at + 1) {
                prop_assert!(group.iter().all(|one| super::index(one, at) == index >> 1));
            }
        }
    }
}
