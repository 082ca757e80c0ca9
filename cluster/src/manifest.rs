//! Files of manifests: YAML with any number of documents, or JSON, as kubectl prints and takes them.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use distributary_model::ObjectKind;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::Object;
use crate::lean::{Metadata, NoLabels, or_default};

/// The extensions of files that hold manifests.
pub const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// What a file holds.
#[derive(Debug, Default, PartialEq)]
pub struct Manifest {
    /// The objects of kinds that are watched, in their order.
    pub objects: Vec<Placed>,
    /// Objects of other kinds: their line and what they are. They mean nothing here.
    pub skipped: Vec<(u64, String)>,
}

/// An object with the line at which it begins.
#[derive(Debug, PartialEq)]
pub struct Placed {
    /// Counted from 1; 0 where it is not known.
    pub line: u64,
    /// The object.
    pub object: Object,
}

/// Something in a file that does not take effect, for a person to read: `FILE:LINE: what`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub struct Problem {
    /// The file, as it was named to us.
    pub file: String,
    /// Counted from 1; 0 where it is not known.
    pub line: u64,
    /// What is wrong, and what becomes of it.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.what),
            line => write!(f, "{}:{line}: {}", self.file, self.what),
        }
    }
}

/// Reads a file; one whose name ends with `.json` is JSON, any other is YAML.
///
/// # Errors
/// When anything in it cannot be read: half a file is worse than the one before it.
pub fn parse(file: &str, bytes: &[u8]) -> Result<Manifest, Problem> {
    let located = |(line, what)| Problem { file: file.to_owned(), line, what };
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let line = 1 + bytes[..e.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
        located((line as u64, "this is not UTF-8".to_owned()))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut manifest = Manifest::default();
    if std::path::Path::new(file).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
    {
        document(&Document { text, before: 0, json: true }, &mut manifest).map_err(located)?;
        return Ok(manifest);
    }
    for part in documents(text) {
        document(&part, &mut manifest).map_err(located)?;
    }
    Ok(manifest)
}

/// A line, and what is wrong there.
type Wrong = (u64, String);

struct Document<'a> {
    text: &'a str,
    /// How many lines of the file are before it.
    before: u64,
    json: bool,
}

/// The documents of a YAML file that hold anything. YAML allows a line that begins with `---` nowhere else, not even
/// inside of a text.
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut found = Vec::new();
    let (mut start, mut before, mut at) = (0, 0, 0);
    let push = |from: usize, to: usize, before: u64, found: &mut Vec<_>| {
        let text = &text[from..to];
        let blank = |line: &str| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#') || line == "---" || line == "..."
        };
        if !text.lines().all(blank) {
            found.push(Document { text, before, json: false });
        }
    };
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if marker {
            push(start, at, before, &mut found);
            (start, before) = (at, number as u64);
        }
        at += line.len();
    }
    push(start, text.len(), before, &mut found);
    found
}

impl Document<'_> {
    fn read<S: for<'de> DeserializeSeed<'de, Value = T>, T>(&self, seed: S) -> Result<T, Wrong> {
        if self.json {
            let mut json = serde_json::Deserializer::from_str(self.text);
            let read = seed.deserialize(&mut json).and_then(|value| json.end().map(|()| value));
            return read.map_err(|e| (e.line() as u64, e.to_string()));
        }
        // The budget is for strangers' input; a manifest may be as large as a cluster.
        let options = serde_saphyr::options! { with_snippet: false, budget: None };
        serde_saphyr::with_deserializer_from_str_with_options(self.text, options, |yaml| {
            seed.deserialize(yaml)
        })
        .map_err(|e| {
            let line = e.location().map_or(1, |location| location.line());
            (self.line(line).max(self.first_line()), message(&e))
        })
    }

    /// The line in the file of a line in the document.
    fn line(&self, line: u64) -> u64 {
        if self.json { 0 } else { self.before + line }
    }

    /// What is wrong, with the name of the object where that can be read.
    fn named(&self, kind: ObjectKind, what: String) -> String {
        #[derive(Deserialize)]
        struct Named {
            metadata: Metadata<NoLabels>,
        }
        let named = self.read(PhantomData::<Named>).ok().and_then(|named| named.metadata.key(kind));
        named.map_or(what.clone(), |key| format!("{key}: {what}"))
    }

    /// Where its content begins.
    fn first_line(&self) -> u64 {
        let content = |line: &str| {
            let line = line.trim();
            !(line.is_empty() || line.starts_with('#') || line == "---")
        };
        self.before + 1 + self.text.lines().position(content).unwrap_or(0) as u64
    }
}

/// The parser's words without the place, which counts from the wrong line.
fn message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = text.lines().next().unwrap_or_default();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    text[..end]
        .replace("expected sequence start", "a list is wanted here")
        .replace("expected mapping start", "fields are wanted here")
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default, deserialize_with = "or_default")]
    api_version: String,
    #[serde(default, deserialize_with = "or_default")]
    kind: String,
}

/// What a head says of the thing.
enum Is {
    Object(ObjectKind),
    /// Of this kind; `None`: of any.
    List(Option<ObjectKind>),
    Other,
}

const KINDS: [(&str, &str, ObjectKind); 4] = [
    ("v1", "Service", ObjectKind::Service),
    ("discovery.k8s.io/v1", "EndpointSlice", ObjectKind::EndpointSlice),
    ("v1", "Node", ObjectKind::Node),
    ("networking.k8s.io/v1", "ServiceCIDR", ObjectKind::ServiceCidr),
];

impl Head {
    fn is(&self) -> Result<Is, String> {
        if self.kind.is_empty() || self.api_version.is_empty() {
            let missing = if self.kind.is_empty() { "kind" } else { "apiVersion" };
            return Err(format!("{missing} is missing"));
        }
        if self.kind == "List" && self.api_version == "v1" {
            return Ok(Is::List(None));
        }
        let single = self.kind.strip_suffix("List").unwrap_or(&self.kind);
        let Some((wanted, _, kind)) = KINDS.into_iter().find(|(_, name, _)| *name == single) else {
            return Ok(Is::Other);
        };
        let group =
            |version: &str| version.rsplit_once('/').map_or(String::new(), |(group, _)| group.to_owned());
        match self.api_version == wanted {
            true if single == self.kind => Ok(Is::Object(kind)),
            true => Ok(Is::List(Some(kind))),
            // A Service of another API group is another thing; another version of this one is a mistake.
            false if group(&self.api_version) != group(wanted) => Ok(Is::Other),
            false => {
                Err(format!("{} has the apiVersion {}, {wanted} is wanted", self.kind, self.api_version))
            }
        }
    }

    fn name(&self) -> String {
        format!("{} {}", self.api_version, self.kind)
    }
}

fn document(document: &Document<'_>, manifest: &mut Manifest) -> Result<(), Wrong> {
    let start = if document.json { 0 } else { document.first_line() };
    let head: Head = document.read(PhantomData)?;
    match head.is().map_err(|what| (start, what))? {
        Is::Other => manifest.skipped.push((start, head.name())),
        Is::Object(kind) => {
            let object =
                document.read(OneOf(kind)).map_err(|(line, what)| (line, document.named(kind, what)))?;
            manifest.objects.push(Placed { line: start, object });
        }
        Is::List(of) => list(document, of, manifest)?,
    }
    Ok(())
}

/// The items of a list: first what they are, then each as that.
fn list(document: &Document<'_>, of: Option<ObjectKind>, manifest: &mut Manifest) -> Result<(), Wrong> {
    let List { items } = document.read(PhantomData)?;
    let heads: Vec<(u64, Head)> =
        items.into_iter().map(|head| (document.line(head.referenced.line()), head.value)).collect();
    let mut kinds = Vec::with_capacity(heads.len());
    for (line, head) in &heads {
        let is = match of {
            Some(kind) if head.kind.is_empty() => Is::Object(kind),
            _ => head.is().map_err(|what| (*line, what))?,
        };
        kinds.push(match is {
            Is::Object(kind) => Some(kind),
            Is::Other => {
                manifest.skipped.push((*line, head.name()));
                None
            }
            Is::List(_) => return Err((*line, "a list inside of a list is not read".to_owned())),
        });
    }
    let objects = document.read(Items(&kinds))?;
    let placed = objects
        .into_iter()
        .zip(heads)
        .filter_map(|(object, (line, _))| object.map(|object| Placed { line, object }));
    manifest.objects.extend(placed);
    Ok(())
}

#[derive(Debug, Deserialize)]
struct List {
    #[serde(default, deserialize_with = "or_default")]
    items: Vec<Spanned<Head>>,
}

/// Reads an object of a kind.
struct OneOf(ObjectKind);

impl<'de> DeserializeSeed<'de> for OneOf {
    type Value = Object;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Object, D::Error> {
        Object::read(self.0, from)
    }
}

/// Reads the items of a list, each as its kind; those without one are skipped.
struct Items<'a>(&'a [Option<ObjectKind>]);

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = Vec<Option<Object>>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = Vec<Option<Object>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list with items")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut objects = Vec::new();
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match &*key {
                "items" if !self.0.is_empty() => objects = map.next_value_seed(Sequence(self.0))?,
                _ => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(objects)
    }
}

struct Sequence<'a>(&'a [Option<ObjectKind>]);

impl<'de> DeserializeSeed<'de> for Sequence<'_> {
    type Value = Vec<Option<Object>>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Sequence<'_> {
    type Value = Vec<Option<Object>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut objects = Vec::with_capacity(self.0.len());
        for kind in self.0 {
            objects.push(match kind {
                Some(kind) => list.next_element_seed(OneOf(*kind))?,
                None => list.next_element::<IgnoredAny>()?.and(None),
            });
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(objects)
    }
}

#[cfg(test)]
mod tests;
