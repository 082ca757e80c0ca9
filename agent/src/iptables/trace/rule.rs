//! A rule, read from its text.

use std::net::{IpAddr, SocketAddr};

use distributary_model::Name;

use super::super::fixed;
use super::super::parse::words;
use super::condition::{self, Condition, What};

/// A rule, as far as it is understood.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rule {
    pub(super) conditions: Box<[Condition]>,
    pub(super) action: Action,
    /// A condition or the action is not understood.
    pub(super) unknown: bool,
    /// Where it may have to be named.
    pub(super) text: Option<Box<str>>,
    /// Of a rule for one port: for people.
    pub(super) comment: Option<Box<str>>,
}

/// What happens to what matches.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Action {
    /// Goes on with the next rule.
    #[default]
    Nothing,
    Jump(usize),
    Goto(usize),
    Return,
    Accept,
    /// With what it is to be called.
    Refuse(Name),
    /// Without a port, the port stays.
    Translate(IpAddr, Option<u16>),
    /// Zeroes the bits of the mask, then flips those of the value.
    Mark {
        value: u32,
        mask: u32,
    },
    Masquerade,
}

/// Reads what follows `-A CHAIN `. `chain` says where a chain of the same table is.
pub(super) fn read(text: &str, of: &str, chain: impl Fn(&str) -> Option<usize>) -> Rule {
    let mut reader =
        Reader { words: words(text), not: false, conditions: Vec::new(), known: true, comment: None };
    let action = reader.read(&chain);
    let unsure = !reader.known || reader.conditions.iter().any(|one| matches!(one.what, What::Output(_)));
    let text = unsure.then(|| format!("-A {of} {text}").into());
    let comment = reader.comment.filter(|_| reader.conditions.iter().any(|one| one.port().is_some()));
    let comment = comment.map(Into::into);
    Rule { conditions: reader.conditions.into(), action, unknown: !reader.known, text, comment }
}

struct Reader<'a, I: Iterator<Item = &'a str>> {
    words: I,
    not: bool,
    conditions: Vec<Condition>,
    known: bool,
    comment: Option<&'a str>,
}

impl<'a, I: Iterator<Item = &'a str>> Reader<'a, I> {
    fn read(&mut self, chain: &impl Fn(&str) -> Option<usize>) -> Action {
        let mut action = Action::Nothing;
        while let Some(word) = self.words.next() {
            match word {
                "!" => self.not = true,
                "-j" => action = self.target(chain),
                "-g" => match self.words.next().and_then(chain) {
                    Some(to) => action = Action::Goto(to),
                    None => self.known = false,
                },
                word => self.condition(word),
            }
        }
        action
    }

    fn condition(&mut self, word: &str) {
        let what = match word {
            // The name of a match says nothing yet.
            "-m" => return self.skip(),
            "--comment" => {
                self.comment = self.words.next();
                return;
            }
            "--mode" | "--nfacct-name" | "--mask" => return self.skip(),
            "--reap" | "--rsource" => return,
            "-s" => self.parsed(|text| text.parse().ok().map(What::Source)),
            "-d" => self.parsed(|text| text.parse().ok().map(What::Destination)),
            "--ctorigdst" => self.parsed(|text| text.parse().ok().map(What::SentTo)),
            "-i" => self.parsed(|text| Some(What::Input(text.into()))),
            "-o" => self.parsed(|text| Some(What::Output(text.into()))),
            "-p" => self.parsed(|text| Some(condition::protocol(text))),
            "--dport" | "--dports" => self.parsed(condition::ports),
            "--ctstate" | "--state" => self.parsed(|text| Some(condition::states(text))),
            "--src-type" => self.parsed(|text| (text == "LOCAL").then_some(What::FromHost)),
            "--dst-type" => self.parsed(|text| (text == "LOCAL").then_some(What::ToHost)),
            "--mark" => {
                self.parsed(|text| condition::mark(text).map(|(value, mask)| What::Mark { value, mask }))
            }
            "--bytecode" => self.parsed(|code| fixed::is_same_address(code).then_some(What::SameAddress)),
            "--probability" => self.parsed(|text| text.parse().ok().map(What::Chance)),
            "--set" => Some(What::Remember(Name::default())),
            "--rcheck" | "--update" => {
                let renews = word == "--update";
                Some(What::Remembered { list: Name::default(), seconds: None, renews })
            }
            "--seconds" => return self.seconds(),
            "--name" => return self.list(),
            _ => None,
        };
        let not = std::mem::take(&mut self.not);
        match what {
            Some(what) => self.conditions.push(Condition { not, what }),
            None => self.known = false,
        }
    }

    fn skip(&mut self) {
        self.words.next();
    }

    fn parsed(&mut self, parse: impl Fn(&str) -> Option<What>) -> Option<What> {
        self.words.next().and_then(parse)
    }

    /// Of the recent match that was begun.
    fn seconds(&mut self) {
        let given = self.words.next().and_then(|text| text.parse().ok());
        match self.conditions.last_mut().map(|last| &mut last.what) {
            Some(What::Remembered { seconds, .. }) if given.is_some() => *seconds = given,
            _ => self.known = false,
        }
    }

    fn list(&mut self) {
        let given = self.words.next().map(Name::from);
        match (self.conditions.last_mut().map(|last| &mut last.what), given) {
            (Some(What::Remembered { list, .. } | What::Remember(list)), Some(given)) => *list = given,
            _ => self.known = false,
        }
    }

    /// What stands behind the target belongs to it.
    fn target(&mut self, chain: &impl Fn(&str) -> Option<usize>) -> Action {
        let target = self.words.next().unwrap_or_default();
        let rest: Vec<&str> = self.words.by_ref().collect();
        let action = match (target, &rest[..]) {
            ("ACCEPT", []) => Some(Action::Accept),
            ("RETURN", []) => Some(Action::Return),
            ("DROP", []) => Some(Action::Refuse("DROP".into())),
            ("REJECT", ["--reject-with", "icmp-port-unreachable" | "icmp6-port-unreachable"] | []) => {
                Some(Action::Refuse("REJECT".into()))
            }
            ("REJECT", ["--reject-with", how]) => Some(Action::Refuse(format!("REJECT with {how}").into())),
            ("DNAT", ["--to-destination", to]) => translate(to),
            ("MARK", ["--set-xmark", mark]) => {
                condition::mark(mark).map(|(value, mask)| Action::Mark { value, mask })
            }
            ("MASQUERADE", [] | ["--random-fully"]) => Some(Action::Masquerade),
            ("LOG" | "NFLOG" | "TRACE", _) => Some(Action::Nothing),
            (name, []) => chain(name).map(Action::Jump),
            _ => None,
        };
        self.known &= action.is_some();
        action.unwrap_or_default()
    }
}

fn translate(to: &str) -> Option<Action> {
    if let Ok(to) = to.parse::<SocketAddr>() {
        return Some(Action::Translate(to.ip(), Some(to.port())));
    }
    to.parse().ok().map(|address| Action::Translate(address, None))
}
