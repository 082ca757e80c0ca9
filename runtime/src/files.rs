//! The files of a directory: what is in them, and whether they changed.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};

/// A file as `stat` sees it. As long as it is equal, the file was most likely not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    /// Whether the file was written so shortly before `now` that a further write may leave the stamp as it is.
    pub fn is_recent(&self, now: SystemTime) -> bool {
        // A time that lies ahead says nothing, and must not make the file look new for ever.
        let age = self.modified.and_then(|modified| now.duration_since(modified).ok());
        age.is_some_and(|age| age < Duration::from_secs(1))
    }
}

/// The stamps of the files of a directory whose names have one of the extensions, by name. Links are followed, as
/// mounted ConfigMaps consist of them; hidden files and further directories are not looked at.
///
/// # Errors
/// When the directory cannot be read, or one of the files is there and cannot be looked at: whoever compares with an
/// earlier look must not take it for gone.
pub fn stamps(path: &Path, extensions: &[&str]) -> anyhow::Result<BTreeMap<String, Stamp>> {
    let reading = || format!("reading the directory {}", path.display());
    let identity = || std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).with_context(reading);
    let before = identity()?;
    let mut missing = false;
    let mut stamps = BTreeMap::new();
    for entry in std::fs::read_dir(path).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        let name = entry.file_name();
        let (Some(name), Some(extension)) = (name.to_str(), Path::new(&name).extension()) else { continue };
        if name.starts_with('.') || !extensions.iter().any(|one| extension.eq_ignore_ascii_case(one)) {
            continue;
        }
        // What vanished since it was named, or leads nowhere, is not there.
        let meta = match std::fs::metadata(entry.path()) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                missing = true;
                continue;
            }
            Err(e) => return Err(e).with_context(|| format!("looking at {}", entry.path().display())),
        };
        if meta.is_file() {
            let stamp = Stamp {
                device: meta.dev(),
                inode: meta.ino(),
                size: meta.len(),
                modified: meta.modified().ok(),
            };
            stamps.insert(name.to_owned(), stamp);
        }
    }
    // The names lead nowhere as well when the directory itself was moved away meanwhile.
    if missing && identity()? != before {
        bail!("the directory {} was replaced while it was read", path.display());
    }
    Ok(stamps)
}

/// What is in the files of a directory whose names have one of the extensions, by name. See [`stamps`] for which.
///
/// # Errors
/// When the directory or one of the files cannot be read.
pub fn read_dir_files(path: &Path, extensions: &[&str]) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for name in stamps(path, extensions)?.into_keys() {
        let file = path.join(&name);
        match std::fs::read(&file) {
            Ok(content) => _ = files.insert(name, content),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("reading {}", file.display())),
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_visible_files_of_the_extensions_count() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["a.yaml", "b.YML", "c.json", ".d.yaml", "e.txt", "f", "target"] {
            std::fs::write(at(name), name).unwrap();
        }
        std::fs::create_dir(at("g.yaml")).unwrap();
        std::os::unix::fs::symlink(at("target"), at("h.yaml")).unwrap();
        std::os::unix::fs::symlink(at("nothing"), at("i.yaml")).unwrap();
        let files = read_dir_files(dir.path(), &["yaml", "yml", "json"]).unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["a.yaml", "b.YML", "c.json", "h.yaml"]);
        assert_eq!(files["h.yaml"], b"target");
    }

    #[test]
    fn a_replaced_file_has_another_stamp() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), "1").unwrap();
        let before = stamps(dir.path(), &["yaml"]).unwrap();
        assert_eq!(before, stamps(dir.path(), &["yaml"]).unwrap());
        std::fs::write(dir.path().join("b"), "2").unwrap();
        std::fs::rename(dir.path().join("b"), dir.path().join("a.yaml")).unwrap();
        assert_ne!(before, stamps(dir.path(), &["yaml"]).unwrap());
    }

    #[test]
    fn a_file_that_cannot_be_looked_at_is_not_taken_for_gone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yaml"), "1").unwrap();
        std::os::unix::fs::symlink("nothing", dir.path().join("b.yaml")).unwrap();
        assert_eq!(stamps(dir.path(), &["yaml"]).unwrap().into_keys().collect::<Vec<_>>(), ["a.yaml"]);
        // A link to itself fails in another way than by leading nowhere, whoever looks.
        std::os::unix::fs::symlink("c.yaml", dir.path().join("c.yaml")).unwrap();
        let error = format!("{:#}", stamps(dir.path(), &["yaml"]).unwrap_err());
        let file = dir.path().join("c.yaml");
        assert!(error.starts_with(&format!("looking at {}: ", file.display())), "{error}");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = read_dir_files(Path::new("/nowhere/at/all"), &["yaml"]).unwrap_err();
        assert!(format!("{error:#}").starts_with("reading the directory /nowhere/at/all: "), "{error:#}");
    }
}
