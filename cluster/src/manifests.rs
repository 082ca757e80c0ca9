//! A directory of manifests, followed through its states.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use crate::manifest::{self, Placed, Problem};
use crate::{Event, Object, ObjectKey};

/// What the files of a directory say together. A file that is broken says what it last said while it was not; of an
/// object that is in two files, the first file by name has the word.
#[derive(Debug, Default)]
pub struct Manifests {
    files: BTreeMap<String, File>,
    current: BTreeMap<ObjectKey, Arc<Object>>,
    /// Second mentions of objects that were told: file, line and object.
    doubled: BTreeSet<(String, u64, ObjectKey)>,
}

#[derive(Debug)]
struct File {
    /// Of its content, also where that is broken.
    seen: (usize, u64),
    /// Whether it was ever read without an error.
    good: bool,
    objects: Vec<(u64, Arc<Object>)>,
}

impl Manifests {
    /// Takes in a whole directory: names of files and what is in them.
    pub fn apply(&mut self, files: BTreeMap<String, Vec<u8>>) -> (Vec<Event>, Vec<Problem>) {
        self.apply_changed(files.into_iter().map(|(name, content)| (name, Some(content))).collect())
    }

    /// The same, where `None` is a file that is as it was the last time.
    pub fn apply_changed(&mut self, files: BTreeMap<String, Option<Vec<u8>>>) -> (Vec<Event>, Vec<Problem>) {
        let mut problems = Vec::new();
        let held = self.files.len();
        self.files.retain(|name, _| files.contains_key(name));
        let mut changed = held != self.files.len();
        for (name, content) in files {
            if let Some(content) = content {
                changed |= self.read(&name, &content, &mut problems);
            }
        }
        if !changed {
            return (Vec::new(), problems);
        }
        (self.settle(&mut problems), problems)
    }

    /// Whether the file was ever read without an error, so that it is known what it says or last said.
    pub fn knows(&self, name: &str) -> bool {
        self.files.get(name).is_some_and(|file| file.good)
    }

    /// Whether the file says something new.
    fn read(&mut self, name: &str, content: &[u8], problems: &mut Vec<Problem>) -> bool {
        let seen = fingerprint(content);
        if self.files.get(name).is_some_and(|file| file.seen == seen) {
            return false;
        }
        let file = self.files.entry(name.to_owned()).or_insert_with(|| File {
            seen,
            good: false,
            objects: Vec::new(),
        });
        file.seen = seen;
        match manifest::parse(name, content) {
            Ok(manifest) => {
                let place = |Placed { line, mut object }: Placed| {
                    let told = std::mem::take(&mut object.meta_mut().problems);
                    let key = object.key();
                    problems.extend(told.into_iter().map(|what| Problem {
                        file: name.to_owned(),
                        line,
                        what: format!("{key}: {what}"),
                    }));
                    (line, Arc::new(object))
                };
                file.good = true;
                file.objects = manifest.objects.into_iter().map(place).collect();
                true
            }
            Err(mut problem) => {
                if file.good {
                    problem.what += "; what the file said before stays";
                }
                problems.push(problem);
                false
            }
        }
    }

    /// What differs from before.
    fn settle(&mut self, problems: &mut Vec<Problem>) -> Vec<Event> {
        let mut now: BTreeMap<ObjectKey, (&str, u64, &Arc<Object>)> = BTreeMap::new();
        let mut doubled = BTreeSet::new();
        for (name, file) in &self.files {
            for (line, object) in &file.objects {
                let key = object.key();
                let Some((first, at, _)) = now.get(key) else {
                    now.insert(key.clone(), (name, *line, object));
                    continue;
                };
                let mention = (name.clone(), *line, key.clone());
                if !self.doubled.contains(&mention) {
                    let place =
                        Problem { file: (*first).to_owned(), line: *at, what: String::new() }.to_string();
                    let place = place.trim_end_matches([':', ' ']);
                    let what = format!("{key} is ignored: it is in {place} already");
                    problems.push(Problem { file: name.clone(), line: *line, what });
                }
                doubled.insert(mention);
            }
        }
        let mut events: Vec<Event> = self
            .current
            .keys()
            .filter(|key| !now.contains_key(*key))
            .map(|key| Event::Gone { key: key.clone(), inferred: false })
            .collect();
        let new = |key: &ObjectKey, object: &Arc<Object>| {
            self.current.get(key).is_none_or(|before| !Arc::ptr_eq(before, object) && before != object)
        };
        let upserts = now.iter().filter(|(key, (_, _, object))| new(key, object));
        events.extend(upserts.map(|(_, (_, _, object))| Event::Upsert(Object::clone(object))));
        self.current = now.into_iter().map(|(key, (_, _, object))| (key, object.clone())).collect();
        self.doubled = doubled;
        events
    }
}

fn fingerprint(content: &[u8]) -> (usize, u64) {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    (content.len(), hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, zone: &str) -> String {
        format!(
            "---\nkind: Node\napiVersion: v1\nmetadata:\n  name: {name}\n  labels: {{topology.kubernetes.io/zone: {zone}}}\n"
        )
    }

    fn files(of: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        of.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect()
    }

    fn shown(events: &[Event]) -> Vec<String> {
        events
            .iter()
            .map(|event| match event {
                Event::Upsert(Object::Node(node)) => format!("{}={}", node.meta.key.name, node.view.zone),
                Event::Gone { key, inferred: false } => format!("-{}", key.name),
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut manifests = Manifests::default();
        let (a, b) = (node("n1", "a") + &node("n2", "a"), node("n3", "a"));
        let (events, problems) = manifests.apply(files(&[("a.yaml", &a), ("b.yaml", &b)]));
        assert_eq!(
            (shown(&events), problems),
            (vec!["n1=a".to_owned(), "n2=a".into(), "n3=a".into()], vec![])
        );
        assert_eq!(manifests.apply(files(&[("a.yaml", &a), ("b.yaml", &b)])), (vec![], vec![]));
        let (events, _) =
            manifests.apply(files(&[("a.yaml", &(node("n1", "b") + &node("n2", "a"))), ("b.yaml", &b)]));
        assert_eq!(shown(&events), ["n1=b"]);
        let mut same =
            files(&[("a.yaml", "")]).into_keys().map(|name| (name, None)).collect::<BTreeMap<_, _>>();
        assert_eq!(shown(&manifests.apply_changed(same.clone()).0), ["-n3"]);
        same.insert("b.yaml".into(), Some(b.into_bytes()));
        assert_eq!(shown(&manifests.apply_changed(same).0), ["n3=a"]);
        assert_eq!(shown(&manifests.apply(BTreeMap::new()).0), ["-n1", "-n2", "-n3"]);
    }

    #[test]
    fn an_object_that_moves_to_another_file_stays() {
        let mut manifests = Manifests::default();
        manifests.apply(files(&[("a.yaml", &node("n1", "a"))]));
        let (events, _) = manifests.apply(files(&[("b.yaml", &node("n1", "a"))]));
        assert_eq!(shown(&events), [""; 0]);
    }

    #[test]
    fn a_broken_file_says_what_it_said_before() {
        let mut manifests = Manifests::default();
        manifests.apply(files(&[("a.yaml", &node("n1", "a"))]));
        let broken = files(&[("a.yaml", "kind: [")]);
        let (events, problems) = manifests.apply(broken.clone());
        assert_eq!((events.len(), problems.len()), (0, 1));
        assert!(problems[0].to_string().starts_with("a.yaml:1: "), "{}", problems[0]);
        assert!(problems[0].what.ends_with("; what the file said before stays"), "{}", problems[0]);
        assert_eq!(manifests.apply(broken), (vec![], vec![]), "it is told once");
        assert_eq!(manifests.apply(files(&[("a.yaml", "kind: {")])).1.len(), 1, "this is another mistake");
        assert_eq!(shown(&manifests.apply(files(&[("a.yaml", &node("n2", "a"))])).0), ["-n1", "n2=a"]);
    }

    #[test]
    fn a_file_is_known_once_it_was_read_without_an_error() {
        let mut manifests = Manifests::default();
        manifests.apply(files(&[("a.yaml", "kind: ["), ("b.yaml", "")]));
        assert_eq!((manifests.knows("a.yaml"), manifests.knows("b.yaml")), (false, true));
        manifests.apply(files(&[("a.yaml", &node("n1", "a")), ("b.yaml", "kind: [")]));
        assert_eq!((manifests.knows("a.yaml"), manifests.knows("b.yaml")), (true, true));
        manifests.apply(BTreeMap::new());
        assert!(!manifests.knows("a.yaml"));
    }

    #[test]
    fn the_first_file_has_the_word() {
        let mut manifests = Manifests::default();
        let all = files(&[("a.yaml", &node("n1", "a")), ("b.yaml", &node("n1", "b"))]);
        let (events, problems) = manifests.apply(all.clone());
        assert_eq!(shown(&events), ["n1=a"]);
        assert_eq!(problems[0].to_string(), "b.yaml:2: Node n1 is ignored: it is in a.yaml:2 already");
        let mut more = all.clone();
        more.insert("c.yaml".into(), node("n2", "a").into_bytes());
        assert_eq!(manifests.apply(more).1, [], "it is told once");
        assert_eq!(shown(&manifests.apply(files(&[("b.yaml", &node("n1", "b"))])).0), ["-n2", "n1=b"]);
    }

    #[test]
    fn what_is_wrong_inside_of_an_object_names_the_line() {
        let text = "kind: Service\napiVersion: v1\nmetadata: {name: web, namespace: shop}\n";
        let (_, problems) = Manifests::default().apply(files(&[("a.yaml", text)]));
        let message = problems[0].to_string();
        assert!(
            message.starts_with("a.yaml:1: Service shop/web: it has no usable spec.clusterIP"),
            "{message}"
        );
    }
}
