//! Reads `nft -n list table`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::element::{ElementKey, Map, Value};
use super::fixed::CANARY;
use super::held::Digest;

/// What the kernel holds of the table.
#[derive(Debug, Default)]
pub struct Listing {
    /// The table is there, and is laid out as we do it.
    pub(super) is_ours: bool,
    /// The table is there.
    pub(super) exists: bool,
    pub(super) sets: BTreeSet<String>,
    pub(super) chains: BTreeMap<String, Digest>,
    pub(super) elements: HashMap<(Map, ElementKey), Value>,
}

impl Listing {
    /// Whether there is a table that is laid out as we do it.
    pub fn holds_table(&self) -> bool {
        self.is_ours
    }
}

/// Reads what `nft -n list table` prints; an empty text is that of a table that is not there.
pub fn parse(text: &str) -> Listing {
    let mut listing = Listing { exists: !text.trim().is_empty(), ..Listing::default() };
    let maps: HashMap<String, Map> = Map::all().map(|map| (map.to_string(), map)).collect();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("set" | "map"), Some(name), Some("{")) => {
                listing.sets.insert(name.to_owned());
                read_set(maps.get(name).copied(), &mut lines, &mut listing.elements);
            }
            (Some("chain"), Some(name), Some("{")) => {
                let digest = read_chain(&mut lines);
                listing.chains.insert(name.to_owned(), digest);
            }
            _ => {}
        }
    }
    listing.is_ours = listing.sets.contains(CANARY);
    listing
}

/// Up to the line that ends the set.
fn read_set<'a>(
    map: Option<Map>,
    lines: &mut impl Iterator<Item = &'a str>,
    elements: &mut HashMap<(Map, ElementKey), Value>,
) {
    let mut within = false;
    for line in lines {
        let mut line = line.trim();
        if line == "}" && !within {
            return;
        }
        if let Some(first) = line.strip_prefix("elements = {") {
            (within, line) = (true, first);
        }
        if !within {
            continue;
        }
        if let Some(last) = line.strip_suffix('}') {
            (within, line) = (false, last);
        }
        let Some(map) = map else { continue };
        let found = line.split(',').filter_map(|element| map.element(element.trim()));
        elements.extend(found.map(|(key, value)| ((map, key), value)));
    }
}

/// Up to the line that ends the chain. A rule is known by its comment; one without is none of ours.
fn read_chain<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Digest {
    let (mut digest, mut open) = (Digest::default(), 0);
    for line in lines {
        let line = line.trim();
        if line == "}" && open == 0 {
            break;
        }
        if line.is_empty() || (open == 0 && line.starts_with("type ") && line.contains(" hook ")) {
            continue;
        }
        // A rule with a long set goes over several lines.
        open += line.matches('{').count();
        open = open.saturating_sub(line.matches('}').count());
        if open > 0 {
            continue;
        }
        let comment =
            line.strip_suffix('"').and_then(|line| line.rsplit_once(" comment \"")).map(|(_, text)| text);
        digest.add(comment.and_then(|comment| u32::from_str_radix(comment, 16).ok()));
    }
    digest
}
