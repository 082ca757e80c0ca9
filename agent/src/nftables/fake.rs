//! A table in memory: it takes the text of transactions as the kernel does, prints itself as the tool does, and says what
//! it means.

use std::collections::{BTreeMap, BTreeSet};

/// One family's table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fake {
    table: bool,
    sets: BTreeMap<String, Set>,
    chains: BTreeMap<String, Chain>,
    /// Chains and sets that cannot be removed, as those of older kernels cannot for a while.
    pub busy: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Set {
    is_map: bool,
    of: String,
    elements: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chain {
    hook: String,
    rules: Vec<String>,
}

impl Fake {
    /// As `nft -f -`: all of it, or nothing.
    ///
    /// # Errors
    /// The first command that the kernel or the tool would refuse.
    pub fn apply(&mut self, text: &str) -> Result<(), String> {
        let mut next = self.clone();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            next.command(line, &mut lines).map_err(|e| format!("{e}: {line}"))?;
        }
        *self = next;
        Ok(())
    }

    fn command<'a>(&mut self, line: &str, lines: &mut impl Iterator<Item = &'a str>) -> Result<(), String> {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_default();
        let (verb, what, _family, table) = (word(), word(), word(), word());
        if table != super::TABLE {
            return Err("another table".into());
        }
        let name = word().to_owned();
        let rest = words.collect::<Vec<_>>().join(" ");
        if what == "table" {
            *self = Self { table: verb == "add", busy: self.busy, ..Self::default() };
            return Ok(());
        }
        if !self.table {
            return Err("no such table".into());
        }
        match (verb, what) {
            ("add", "set" | "map") => {
                let (is_map, of) = (what == "map", rest.trim_matches(['{', '}', ' ']).to_owned());
                self.sets.entry(name).or_insert_with(|| Set { is_map, of, ..Set::default() });
            }
            ("add", "chain") => {
                let hook = rest.trim_matches(['{', '}', ' ']).to_owned();
                self.chains.entry(name).or_insert_with(|| Chain { hook, rules: Vec::new() });
            }
            ("flush", "chain") => self.chain(&name)?.rules.clear(),
            ("delete", "chain" | "set") if self.busy => return Err("Device or resource busy".into()),
            ("delete", "chain") => {
                if self.chain(&name)?.rules.len() + self.leading_to(&name) > 0 {
                    return Err("Device or resource busy".into());
                }
                self.chains.remove(&name);
            }
            ("delete", "set") => {
                if self.rules().any(|rule| words_of(rule).any(|word| word.strip_prefix('@') == Some(&name))) {
                    return Err("Device or resource busy".into());
                }
                self.sets.remove(&name).ok_or("no such set")?;
            }
            ("add", "rule") => {
                let targets: Vec<&str> = targets(&rest).collect();
                if let Some(missing) = targets.iter().find(|to| !self.chains.contains_key(**to)) {
                    return Err(format!("no such chain {missing}"));
                }
                let sets = words_of(&rest).filter_map(|word| word.strip_prefix('@'));
                if let Some(missing) = sets.into_iter().find(|set| !self.sets.contains_key(*set)) {
                    return Err(format!("no such set {missing}"));
                }
                self.chain(&name)?.rules.push(rest);
            }
            (_, "element") => {
                for line in lines.by_ref().take_while(|line| *line != "}") {
                    let (key, value) = line
                        .trim_end_matches(',')
                        .split_once(" : ")
                        .unwrap_or((line.trim_end_matches(','), ""));
                    self.element(verb, &name, key, value)?;
                }
            }
            _ => return Err("no such command".into()),
        }
        Ok(())
    }

    fn element(&mut self, verb: &str, set: &str, key: &str, value: &str) -> Result<(), String> {
        if let Some(missing) = targets(value).find(|to| !self.chains.contains_key(*to)) {
            return Err(format!("no such chain {missing}"));
        }
        let set = self.sets.get_mut(set).ok_or("no such set")?;
        let held = set.elements.get(key);
        match verb {
            "delete" if held.is_none() => return Err(format!("no such element {key}")),
            "delete" => {
                set.elements.remove(key);
            }
            _ if held.is_some_and(|held| held != value) => return Err(format!("there is another {key}")),
            _ if set.is_map == value.is_empty() => return Err(format!("no element of it: {key}")),
            _ => {
                set.elements.insert(key.to_owned(), value.to_owned());
            }
        }
        Ok(())
    }

    fn chain(&mut self, name: &str) -> Result<&mut Chain, String> {
        self.chains.get_mut(name).ok_or_else(|| "no such chain".into())
    }

    fn rules(&self) -> impl Iterator<Item = &String> {
        self.chains.values().flat_map(|chain| &chain.rules)
    }

    fn leading_to(&self, chain: &str) -> usize {
        let values = self.sets.values().flat_map(|set| set.elements.values());
        self.rules().chain(values).filter(|text| targets(text).any(|to| to == chain)).count()
    }

    /// As `nft -n list table`.
    pub fn list(&self) -> String {
        if !self.table {
            return String::new();
        }
        let mut text = format!("table ip {} {{\n", super::TABLE);
        for (name, set) in &self.sets {
            let kind = if set.is_map { "map" } else { "set" };
            text.push_str(&format!("\t{kind} {name} {{\n\t\t{}\n", set.of));
            let element = |(key, value): (&String, &String)| match value.is_empty() {
                true => key.clone(),
                false => format!("{key} : {value}"),
            };
            let elements: Vec<String> = set.elements.iter().map(element).collect();
            if !elements.is_empty() {
                text.push_str(&format!("\t\telements = {{ {} }}\n", elements.join(",\n\t\t\t     ")));
            }
            text.push_str("\t}\n\n");
        }
        for (name, chain) in &self.chains {
            text.push_str(&format!("\tchain {name} {{\n"));
            if !chain.hook.is_empty() {
                text.push_str(&format!("\t\t{}\n", chain.hook));
            }
            chain.rules.iter().for_each(|rule| text.push_str(&format!("\t\t{rule}\n")));
            text.push_str("\t}\n\n");
        }
        text + "}\n"
    }

    /// What becomes of what is looked up, whatever chains and places of endpoints it takes.
    ///
    /// # Errors
    /// When it leads nowhere.
    pub fn meaning(&self) -> Result<BTreeMap<String, String>, String> {
        let mut meaning = BTreeMap::new();
        for (name, set) in self.sets.iter().filter(|(name, _)| !name.contains("endpoints-")) {
            for (key, value) in &set.elements {
                meaning.insert(format!("{name} {key}"), self.resolve(value, key, true)?);
            }
        }
        for (name, chain) in self.chains.iter().filter(|(_, chain)| !chain.hook.is_empty()) {
            meaning.insert(name.clone(), self.chain_means(name, "", 0, true)? + &chain.hook);
        }
        Ok(meaning)
    }

    /// Whether a packet that was given a verdict here finds an endpoint there, whichever index it drew.
    ///
    /// # Errors
    /// Who finds none.
    pub fn holds_for(&self, before: &Self) -> Result<(), String> {
        let both = Self { sets: self.sets.clone(), ..before.clone() };
        for name in ["services", "node-ports"] {
            for (key, value) in before.sets.get(name).into_iter().flat_map(|set| &set.elements) {
                both.resolve(value, key, false).map_err(|e| format!("{name} {key}: {e}"))?;
            }
        }
        Ok(())
    }

    fn resolve(&self, value: &str, key: &str, each: bool) -> Result<String, String> {
        match value.strip_prefix("goto ") {
            Some(chain) => self.chain_means(chain, key, 0, each),
            None => Ok(value.to_owned()),
        }
    }

    fn chain_means(&self, name: &str, key: &str, depth: usize, each: bool) -> Result<String, String> {
        if depth > 8 {
            return Err("chains go round".into());
        }
        let chain = self.chains.get(name).ok_or_else(|| format!("no chain {name}"))?;
        let mut means = Vec::new();
        for rule in &chain.rules {
            let rule = rule.split(" comment ").next().unwrap_or_default();
            let mut words: Vec<String> = words_of(rule).map(str::to_owned).collect();
            for i in 1..words.len() {
                if ["goto", "jump"].contains(&words[i - 1].as_str()) {
                    words[i] = format!("({})", self.chain_means(&words[i].clone(), key, depth + 1, each)?);
                }
            }
            if let Some((_, map)) = rule.split_once(" map @") {
                let count =
                    rule.split_once("numgen random mod ").and_then(|(_, rest)| rest.split(' ').next());
                let count: usize = count.and_then(|count| count.parse().ok()).ok_or("no count")?;
                let endpoints = self.sets.get(map).ok_or("no map")?;
                let fields: Vec<&str> = key.split(" . ").collect();
                let at = match fields[..] {
                    [address, _, port] => format!("{address} . {port}"),
                    [_, port] => port.to_owned(),
                    _ => return Err(format!("{key} is looked up in {map}")),
                };
                let at = |index| endpoints.elements.get(&format!("{at} . {index}"));
                let all: Option<BTreeSet<&String>> = (0..count).map(at).collect();
                let all = all.ok_or_else(|| format!("not {count} in {map}"))?;
                if all.len() != count && each {
                    return Err(format!("one endpoint twice in {map}"));
                }
                means.push(format!("{all:?}"));
                continue;
            }
            means.push(words.join(" "));
        }
        Ok(means.join("; "))
    }
}

fn words_of(text: &str) -> impl Iterator<Item = &str> {
    text.split(' ')
}

/// The chains that a rule, or an element's value, leads to.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(' ');
    let next = words.clone().skip(1);
    words
        .zip(next)
        .filter(|(word, _)| ["goto", "jump"].contains(word))
        .map(|(_, to)| to.trim_end_matches(','))
}
