//! A directory of manifests that a server follows.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::scratch;

/// The directory. Goes away with its owner.
#[derive(Debug)]
pub struct Manifests(TempDir);

impl Manifests {
    /// Empty.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        scratch("manifests").map(Self)
    }

    /// As the server's `--source` wants it.
    #[must_use]
    pub fn source(&self) -> String {
        format!("dir:{}", self.0.path().display())
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Puts a file of these objects in place, as a whole.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, file: &str, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.put_text(file, &list.to_string())
    }

    /// Puts a file in place, as a whole.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put_text(&self, file: &str, text: &str) -> Result<()> {
        let new = self.0.path().join(format!(".{file}.new"));
        fs::write(&new, text)?;
        fs::rename(new, self.0.path().join(file))?;
        Ok(())
    }

    /// Removes a file.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove(&self, file: &str) -> Result<()> {
        Ok(fs::remove_file(self.0.path().join(file))?)
    }
}
