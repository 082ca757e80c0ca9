//! A directory of manifests as a source, followed by looking.

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

/// The extensions of manifests.
pub const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];
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
        let mut held =
            Held { path: self.path, stamps: None, recent: BTreeSet::new(), manifests: Manifests::default() };
        let mut failing = None;
        let mut quiet = 0;
        loop {
            let first = held.stamps.is_none();
            match look(&mut held).await {
                Ok(events) => {
                    if failing.take().is_some() {
                        info!(path = %held.path.display(), "the source directory can be read again");
                    }
                    let mut update = Update { events, fresh: ObjectKind::ALL.to_vec(), ..Update::default() };
                    if first {
                        update.listed = ObjectKind::ALL.to_vec();
                        update.marks = ObjectKind::ALL.map(|kind| (kind, 0)).to_vec();
                        info!(path = %held.path.display(), objects = update.events.len(), "read the source directory");
                    }
                    quiet = if update.events.is_empty() && !first { quiet + 1 } else { 0 };
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
    /// The files as they were read; `None`: never yet.
    stamps: Option<Stamps>,
    /// Files so young that they may change without showing it: they are read again.
    recent: BTreeSet<String>,
    manifests: Manifests,
}

/// What changed since the last look.
async fn look(held: &mut Held) -> anyhow::Result<Vec<Event>> {
    let now = SystemTime::now();
    let mut found = stat(&held.path).await?;
    if held.stamps.as_ref() == Some(&found) && held.recent.is_empty() {
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
    let (files, stamps) = spawn_blocking(move || read(&path, &before, found)).await?;
    held.recent =
        stamps.iter().filter(|(_, stamp)| stamp.is_recent(now)).map(|(name, _)| name.clone()).collect();
    held.stamps = Some(stamps);
    let (events, problems) = held.manifests.apply_changed(files);
    for manifest::Problem { file, line, what } in problems {
        let file = held.path.join(file).display().to_string();
        warn!("{}", manifest::Problem { file, line, what });
    }
    Ok(events)
}

/// Reading blocks, and a mounted directory may block for long.
async fn stat(path: &Path) -> anyhow::Result<Stamps> {
    let path = path.to_owned();
    spawn_blocking(move || stamps(&path, &EXTENSIONS)).await?
}

/// The contents of the files that changed (`None`: as before), and the stamps to compare with the next time.
fn read(path: &Path, before: &Stamps, found: Stamps) -> (BTreeMap<String, Option<Vec<u8>>>, Stamps) {
    let mut files = BTreeMap::new();
    let mut held = BTreeMap::new();
    for (name, stamp) in found {
        if before.get(&name) == Some(&stamp) {
            files.insert(name.clone(), None);
            held.insert(name, stamp);
            continue;
        }
        let file = path.join(&name);
        match std::fs::read(&file) {
            Ok(content) => {
                files.insert(name.clone(), Some(content));
                held.insert(name, stamp);
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            // It says what it said before.
            Err(e) => {
                warn!(path = %file.display(), error = %e, "a manifest cannot be read");
                files.insert(name.clone(), None);
                held.insert(name, stamp);
            }
        }
    }
    (files, held)
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
        let mut source = Running::start(&[("a.yaml", "kind: ["), ("b.yaml", &node("n2", "a"))]).await;
        assert_eq!(source.next().await, (vec!["n2=a".to_owned()], 4));
        source.write("b.yaml", "kind: [");
        source.write("a.yaml", &node("n1", "a"));
        assert_eq!(source.next().await, (vec!["n1=a".to_owned()], 0));
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

    #[tokio::test]
    async fn a_directory_that_vanishes_deletes_nothing() {
        let mut source = Running::start(&[("a.yaml", &node("n1", "a"))]).await;
        source.next().await;
        let aside = source.dir.path().with_extension("aside");
        std::fs::rename(source.dir.path(), &aside).unwrap();
        // It comes back with another content; had it been taken for empty, n1 would have gone first.
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
