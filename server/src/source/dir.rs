//! A directory of manifests as a source, followed by looking.
//!
//! A file that is broken or cannot be read says what it said before. After a start there is nothing that it said, so the
//! kinds count as listed only when every file that is there was read without an error once: a mistake in one file must
//! not take its services from every node because the server was started anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use distributary_cluster::{Event, Manifests, manifest};
use distributary_model::ObjectKind;
use distributary_runtime::files::{Stamp, stamps};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{Source, Update};

/// How often the directory is looked at.
const EVERY: Duration = Duration::from_millis(200);
/// Files that change are read once they have stayed as they are for so long…
const SETTLE: Duration = Duration::from_millis(20);
/// …or after so many looks, since a file that is written all the time must not hide the others.
const LOOKS: usize = 25;
/// How often it is told that all is well where nothing changes.
const CONFIRM: u32 = 5;

/// A directory of manifests.
#[derive(Debug)]
pub struct Dir {
    path: PathBuf,
}

impl Dir {
    /// A directory that exists.
    ///
    /// # Errors
    /// When it does not.
    pub fn open(path: impl Into<PathBuf>) -> anyhow::Result<Self> {
        let path = path.into();
        let meta =
            std::fs::metadata(&path).with_context(|| format!("the source directory {}", path.display()))?;
        if !meta.is_dir() {
            bail!("the source {} is not a directory", path.display());
        }
        Ok(Self { path })
    }
}

impl Source for Dir {
    async fn run(self, updates: mpsc::Sender<Update>) -> anyhow::Result<()> {
        let mut held = Held::new(self.path);
        let mut failing = None;
        let mut quiet = 0;
        let (mut listed, mut objects) = (false, 0);
        loop {
            match look(&mut held).await {
                Ok(events) => {
                    if failing.take().is_some() {
                        info!(path = %held.path.display(), "the source directory can be read again");
                    }
                    let mut update = Update { events, fresh: ObjectKind::ALL.to_vec(), ..Update::default() };
                    objects += update.events.len();
                    let listing = !listed && held.unknown.is_empty();
                    if listing {
                        listed = true;
                        update.listed = ObjectKind::ALL.to_vec();
                        update.marks = ObjectKind::ALL.map(|kind| (kind, 0)).to_vec();
                        info!(path = %held.path.display(), objects, "read the source directory");
                    }
                    quiet = if update.events.is_empty() && !listing { quiet + 1 } else { 0 };
                    if quiet % CONFIRM == 0 && updates.send(update).await.is_err() {
                        return Ok(());
                    }
                }
                Err(e) => {
                    let what = format!("{e:#}");
                    if failing.as_ref() != Some(&what) {
                        warn!(error = %what, "the source directory cannot be read; what is known stays");
                    }
                    failing = Some(what);
                }
            }
            tokio::select! {
                () = sleep(EVERY) => {}
                () = updates.closed() => return Ok(()),
            }
        }
    }
}

type Stamps = BTreeMap<String, Stamp>;

/// What is known of the directory.
struct Held {
    path: PathBuf,
    /// The files as they were read without an error; `None`: never looked yet.
    stamps: Option<Stamps>,
    /// Files so young that they may change without showing it: they are read again.
    recent: BTreeSet<String>,
    /// Files that could not be read, with the error that was told: they are read again.
    unread: BTreeMap<String, String>,
    /// Files that are there and were never read without an error, so that nobody knows what they say.
    unknown: BTreeSet<String>,
    manifests: Manifests,
}

impl Held {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            stamps: None,
            recent: BTreeSet::new(),
            unread: BTreeMap::new(),
            unknown: BTreeSet::new(),
            manifests: Manifests::default(),
        }
    }

    /// Tells what is wrong with files, each thing once.
    fn warn(&self, problems: Vec<manifest::Problem>, unread: &BTreeMap<String, String>) {
        for manifest::Problem { file, line, what } in problems {
            let file = self.path.join(file).display().to_string();
            warn!("{}", manifest::Problem { file, line, what });
        }
        for (name, error) in unread.iter().filter(|(name, error)| self.unread.get(*name) != Some(*error)) {
            let path = self.path.join(name);
            warn!(path = %path.display(), error, "a manifest cannot be read; what it said before stays");
        }
    }

    /// Keeps in mind of which files nobody knows what they say.
    fn know(&mut self, names: impl Iterator<Item = String>) {
        let unknown: BTreeSet<String> = names.filter(|name| !self.manifests.knows(name)).collect();
        if !unknown.is_empty() && unknown != self.unknown {
            let files: Vec<&str> = unknown.iter().map(String::as_str).collect();
            warn!(
                path = %self.path.display(),
                files = files.join(", "),
                "files that were never read without an error; a server that was just started serves nothing until then"
            );
        }
        self.unknown = unknown;
    }
}

/// What changed since the last look.
async fn look(held: &mut Held) -> anyhow::Result<Vec<Event>> {
    let now = SystemTime::now();
    let mut found = stat(&held.path).await?;
    if held.stamps.as_ref() == Some(&found) && held.recent.is_empty() && held.unread.is_empty() {
        return Ok(Vec::new());
    }
    // Whoever writes a file in place has it empty or half for a moment.
    for _ in 0..LOOKS {
        sleep(SETTLE).await;
        let again = stat(&held.path).await?;
        if again == found {
            break;
        }
        found = again;
    }
    let (path, mut before) = (held.path.clone(), held.stamps.clone().unwrap_or_default());
    before.retain(|name, _| !held.recent.contains(name));
    let Read { files, stamps, unread } = spawn_blocking(move || read(&path, &before, found)).await?;
    held.recent =
        stamps.iter().filter(|(_, stamp)| stamp.is_recent(now)).map(|(name, _)| name.clone()).collect();
    held.stamps = Some(stamps);
    let names: Vec<String> = files.keys().cloned().collect();
    let (events, problems) = held.manifests.apply_changed(files);
    held.warn(problems, &unread);
    held.unread = unread;
    held.know(names.into_iter());
    Ok(events)
}

/// Reading blocks, and a mounted directory may block for long.
async fn stat(path: &Path) -> anyhow::Result<Stamps> {
    let path = path.to_owned();
    spawn_blocking(move || stamps(&path, &manifest::EXTENSIONS)).await?
}

/// What reading gave.
struct Read {
    /// The contents of the files that changed; `None`: as before.
    files: BTreeMap<String, Option<Vec<u8>>>,
    /// The stamps to compare with the next time. A file that could not be read has none, so that it is read again: to
    /// be made readable leaves the stamp as it is.
    stamps: Stamps,
    /// The errors, by file.
    unread: BTreeMap<String, String>,
}

fn read(path: &Path, before: &Stamps, found: Stamps) -> Read {
    let mut read = Read { files: BTreeMap::new(), stamps: Stamps::new(), unread: BTreeMap::new() };
    for (name, stamp) in found {
        let mut content = None;
        if before.get(&name) != Some(&stamp) {
            match std::fs::read(path.join(&name)) {
                Ok(read) => content = Some(read),
                // It says what it said before. Whether one that was not found is gone, or the whole directory is, the
                // next look shows.
                Err(e) => {
                    read.unread.insert(name.clone(), e.to_string());
                    read.files.insert(name, None);
                    continue;
                }
            }
        }
        read.files.insert(name.clone(), content);
        read.stamps.insert(name, stamp);
    }
    read
}

#[cfg(test)]
mod tests {
    use super::*;
    use distributary_cluster::Object;

    fn node(name: &str, zone: &str) -> String {
        format!(
            "---\nkind: Node\napiVersion: v1\nmetadata:\n  name: {name}\n  labels: {{topology.kubernetes.io/zone: {zone}}}\n"
        )
    }

    struct Running {
        dir: tempfile::TempDir,
        updates: mpsc::Receiver<Update>,
    }

    impl Running {
        async fn start(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in files {
                std::fs::write(dir.path().join(name), text).unwrap();
            }
            Self::of(dir)
        }

        fn of(dir: tempfile::TempDir) -> Self {
            let (sender, updates) = mpsc::channel(8);
            let source = Dir::open(dir.path()).unwrap();
            drop(tokio::spawn(source.run(sender)));
            Self { dir, updates }
        }

        /// Replaces a file at once, as careful writers do.
        fn write(&self, name: &str, text: &str) {
            let temporary = self.dir.path().join("temporary");
            std::fs::write(&temporary, text).unwrap();
            std::fs::rename(temporary, self.dir.path().join(name)).unwrap();
        }

        /// The next update that says anything.
        async fn next(&mut self) -> (Vec<String>, usize) {
            loop {
                let update = tokio::time::timeout(Duration::from_secs(20), self.updates.recv())
                    .await
                    .unwrap()
                    .unwrap();
                assert_eq!(update.fresh, ObjectKind::ALL);
                let told: Vec<String> = update
                    .events
                    .iter()
                    .map(|event| match event {
                        Event::Upsert(Object::Node(node)) => {
                            format!("{}={}", node.meta.key.name, node.view.zone)
                        }
                        Event::Gone { key, inferred: false } => format!("-{}", key.name),
                        other => format!("{other:?}"),
                    })
                    .collect();
                if !told.is_empty() || !update.listed.is_empty() {
                    return (told, update.listed.len());
                }
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_is_removed_as_soon_as_it_was_written_is_gone() {
        let mut source = Running::start(&[]).await;
        assert_eq!(source.next().await, (vec![], 4));
        source.write("a.yaml", &node("n1", "a"));
        assert_eq!(source.next().await, (vec!["n1=a".to_owned()], 0));
        std::fs::remove_file(source.dir.path().join("a.yaml")).unwrap();
        assert_eq!(source.next().await, (vec!["-n1".to_owned()], 0));
    }

    #[tokio::test]
    async fn a_directory_is_followed() {
        let mut source = Running::start(&[("a.yaml", &node("n1", "a")), ("b.txt", &node("n2", "a"))]).await;
        assert_eq!(source.next().await, (vec!["n1=a".to_owned()], 4));
        source.write("b.yml", &node("n2", "a"));
        assert_eq!(source.next().await, (vec!["n2=a".to_owned()], 0));
        source.write("a.yaml", &node("n1", "b"));
        assert_eq!(source.next().await, (vec!["n1=b".to_owned()], 0));
        std::fs::remove_file(source.dir.path().join("b.yml")).unwrap();
        assert_eq!(source.next().await, (vec!["-n2".to_owned()], 0));
    }

    #[tokio::test]
    async fn a_broken_file_hides_no_other_and_keeps_what_it_said() {
        let both = [("a.yaml", node("n1", "a")), ("b.yaml", node("n2", "a"))];
        let mut source = Running::start(&both.each_ref().map(|(name, text)| (*name, text.as_str()))).await;
        assert_eq!(source.next().await, (vec!["n1=a".to_owned(), "n2=a".to_owned()], 4));
        source.write("b.yaml", "kind: [");
        source.write("a.yaml", &node("n1", "b"));
        assert_eq!(source.next().await, (vec!["n1=b".to_owned()], 0));
    }

    #[tokio::test]
    async fn nothing_is_listed_before_every_file_was_understood_once() {
        let mut source = Running::start(&[("a.yaml", "kind: ["), ("b.yaml", &node("n2", "a"))]).await;
        assert_eq!(source.next().await, (vec!["n2=a".to_owned()], 0), "nobody knows what was in the other");
        // What was understood once may break again.
        source.write("b.yaml", "kind: [");
        source.write("a.yaml", &node("n1", "a"));
        assert_eq!(source.next().await, (vec!["n1=a".to_owned()], 4));
    }

    #[tokio::test]
    async fn a_broken_file_that_is_removed_is_not_waited_for() {
        let mut source = Running::start(&[("a.yaml", "kind: ["), ("b.yaml", &node("n2", "a"))]).await;
        assert_eq!(source.next().await, (vec!["n2=a".to_owned()], 0));
        std::fs::remove_file(source.dir.path().join("a.yaml")).unwrap();
        assert_eq!(source.next().await, (vec![], 4));
    }

    /// A file that cannot be read, not even by root.
    const UNREADABLE: &str = "/proc/self/mem";

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_waited_for_as_well() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(UNREADABLE, dir.path().join("a.yaml")).unwrap();
        std::fs::write(dir.path().join("b.yaml"), node("n2", "a")).unwrap();
        let mut source = Running::of(dir);
        assert_eq!(source.next().await, (vec!["n2=a".to_owned()], 0));
        source.write("a.yaml", &node("n1", "a"));
        assert_eq!(source.next().await, (vec!["n1=a".to_owned()], 4));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_read_again_and_says_what_it_said() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        std::fs::write(&file, node("n1", "a")).unwrap();
        let mut held = Held::new(dir.path().to_owned());
        assert_eq!(look(&mut held).await.unwrap().len(), 1);
        std::os::unix::fs::symlink(UNREADABLE, dir.path().join("temporary")).unwrap();
        std::fs::rename(dir.path().join("temporary"), &file).unwrap();
        assert_eq!(look(&mut held).await.unwrap(), []);
        let known = held.stamps.clone().unwrap();
        assert!(known.is_empty(), "its stamp does not change when it can be read: {known:?}");
        assert_eq!((held.unread.len(), held.unknown.len()), (1, 0));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(look(&mut held).await.unwrap().len(), 1, "gone is gone");
        assert!(held.unread.is_empty());
    }

    #[tokio::test]
    async fn a_mounted_config_map_is_followed_when_its_link_changes() {
        let mut source = Running::start(&[]).await;
        assert_eq!(source.next().await, (vec![], 4));
        let at = |name: &str| source.dir.path().join(name);
        for (version, zone) in [("..1", "a"), ("..2", "b")] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("a.yaml"), node("n1", zone)).unwrap();
        }
        std::os::unix::fs::symlink("..1", at("..data")).unwrap();
        std::os::unix::fs::symlink("..data/a.yaml", at("a.yaml")).unwrap();
        assert_eq!(source.next().await, (vec!["n1=a".to_owned()], 0));
        let at = |name: &str| source.dir.path().join(name);
        std::os::unix::fs::symlink("..2", at("..new")).unwrap();
        std::fs::rename(at("..new"), at("..data")).unwrap();
        assert_eq!(source.next().await, (vec!["n1=b".to_owned()], 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_that_vanishes_deletes_nothing() {
        let mut source = Running::start(&[("a.yaml", &node("n1", "a"))]).await;
        source.next().await;
        let aside = source.dir.path().with_extension("aside");
        std::fs::rename(source.dir.path(), &aside).unwrap();
        // As long as it is seen, all is confirmed to be well much more often than this.
        let silence = 4 * CONFIRM * (EVERY + SETTLE);
        while let Ok(update) = tokio::time::timeout(silence, source.updates.recv()).await {
            assert_eq!(update.unwrap().events, []);
        }
        std::fs::write(aside.join("a.yaml"), node("n1", "b")).unwrap();
        std::fs::rename(&aside, source.dir.path()).unwrap();
        assert_eq!(source.next().await, (vec!["n1=b".to_owned()], 0));
    }

    #[test]
    fn a_directory_must_be_there_at_the_start() {
        let error = Dir::open("/nowhere/at/all").unwrap_err();
        assert!(format!("{error:#}").starts_with("the source directory /nowhere/at/all: "), "{error:#}");
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(Dir::open(file.path()).unwrap_err().to_string().ends_with("is not a directory"));
    }
}
