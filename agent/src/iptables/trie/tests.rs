use proptest::prelude::*;

use super::*;

const ROOT: Prefix = Prefix { prefix: 0, len: 0 };

/// Everything below a node, in order, and what holds of it.
fn walk(trie: &Trie<u8>, node: Prefix, out: &mut Vec<EntryKey>, nodes: &mut BTreeSet<Prefix>) {
    let items = trie.items(node);
    let split = items.iter().any(|item| matches!(item, Item::Child(_)))
        || trie.nodes.get(&node).is_some_and(|n| n.split);
    let start = out.len();
    for item in items {
        match item {
            Item::Entry(key, _) => {
                assert!(trie.covers(node, key.0));
                out.push(key);
            }
            Item::Child(child) => {
                assert!(child.len > node.len && trie.covers(node, child.prefix));
                assert!(child.len % STEP == 0 || child.len == trie.width);
                nodes.insert(child);
                let before = out.len();
                walk(trie, child, out, nodes);
                assert!(out.len() - before > 1, "a child of one entry stands in its parent");
            }
        }
    }
    let count = out.len() - start;
    let different = out[start..].iter().any(|key| key.0 != out[start].0);
    assert!(!(split && count <= MERGE), "{count} are split");
    assert!(split || count <= SPLIT || !different, "{count} are a list");
}

fn check(trie: &Trie<u8>) -> BTreeSet<Prefix> {
    let (mut all, mut nodes) = (Vec::new(), BTreeSet::new());
    walk(trie, ROOT, &mut all, &mut nodes);
    assert_eq!(all, trie.entries.keys().copied().collect::<Vec<_>>());
    assert_eq!(nodes, trie.nodes().collect());
    nodes
}

fn keys(width: u8) -> impl Strategy<Value = EntryKey> {
    // Dense, spread and equal ones.
    let key =
        prop_oneof![0..64_u128, (0..200_u128).prop_map(move |i| i << (width - 8)), Just(7), any::<u128>()];
    (key, 0..4_u32).prop_map(move |(key, sub)| (key & (u128::MAX >> (128 - width)), sub))
}

proptest! {
    #[test]
    fn shapes_hold_and_can_be_read_back(
        steps in proptest::collection::vec(proptest::collection::vec((keys(32), any::<bool>()), 1..80), 1..8),
        width in prop_oneof![Just(16_u8), Just(32), Just(128)],
    ) {
        let mut trie = Trie::new(width);
        let mut known: BTreeMap<Prefix, String> = BTreeMap::new();
        let text = |trie: &Trie<u8>, node| format!("{:?}", trie.items(node));
        for step in steps {
            for (key, put) in step {
                let key = (key.0 & (u128::MAX >> (128 - width)), key.1);
                if put { trie.insert(key, 0) } else { trie.remove(key) }
            }
            let laid = trie.lay();
            let nodes = check(&trie);
            // What lay did not name has not changed.
            for gone in &laid.gone {
                if !nodes.contains(gone) {
                    known.remove(gone);
                }
            }
            for &node in &laid.nodes {
                known.insert(node, text(&trie, node));
            }
            prop_assert_eq!(nodes.iter().collect::<Vec<_>>(), known.keys().filter(|n| **n != ROOT).collect::<Vec<_>>());
            for (node, was) in &known {
                prop_assert_eq!(was, &text(&trie, *node));
            }
            // Who starts anew and sees these nodes makes the same ones.
            let mut again = Trie::new(width);
            again.reset(nodes.clone());
            for key in trie.entries.keys() {
                again.insert(*key, 0);
            }
            again.lay();
            prop_assert_eq!(check(&again), nodes);
        }
    }
}

#[test]
fn a_change_lays_its_path_only() {
    let mut trie = Trie::new(32);
    for i in 0..5_000_u128 {
        trie.insert((i * 7919 % (1 << 20) + (10 << 24), 0), 0);
    }
    let all = trie.lay().nodes.len();
    assert!((300..1500).contains(&all), "{all}");
    trie.insert(((10 << 24) + 12_345, 1), 0);
    assert!(trie.lay().nodes.len() < 8);
}
