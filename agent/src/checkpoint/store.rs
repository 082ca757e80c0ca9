//! Checkpoints on disk: there is the last one that was written whole, or none.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use distributary_model::Name;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;

use super::{Checkpoint, form};

/// More is no checkpoint: a million endpoints are a tenth of this.
const MOST_BYTES: u64 = 1 << 30;

/// Where the checkpoint of an agent is.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// In a folder, which is made where it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("--state-dir {} cannot be made", folder.display()))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.folder.join("checkpoint")
    }

    /// What was saved last by an agent of this node; `None`: nothing was.
    ///
    /// # Errors
    /// When it is not to be used.
    pub fn load(&self, cluster: &Name, node: &Name) -> anyhow::Result<Option<Checkpoint>> {
        let file = match File::open(self.path()) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let length = file.metadata()?.len();
        if length > MOST_BYTES {
            bail!("it has {length} bytes, no checkpoint has more than {MOST_BYTES}");
        }
        let mut bytes = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut bytes)?;
        Ok(Some(form::decode(&bytes, cluster, node)?))
    }

    /// The same; what is not to be used is told, and passed over.
    pub fn load_or_not(&self, cluster: &Name, node: &Name) -> Option<Checkpoint> {
        let path = self.path();
        match self.load(cluster, node) {
            Ok(Some(saved)) => {
                let (services, endpoints) = (saved.table.len(), saved.table.endpoints());
                tracing::info!(path = %path.display(), services, endpoints, "goes on from a checkpoint");
                Some(saved)
            }
            Ok(None) => None,
            Err(e) => {
                tracing::warn!(path = %path.display(), error = format!("{e:#}"), "the checkpoint is not used");
                None
            }
        }
    }

    /// Puts a checkpoint in the place of the last one. After an error, the last one is still there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, checkpoint: &Checkpoint) -> anyhow::Result<usize> {
        let bytes = form::encode(checkpoint);
        let new = self.folder.join(".checkpoint.new");
        let written = write(&new, &bytes).and_then(|()| {
            fs::rename(&new, self.path())?;
            File::open(&self.folder)?.sync_all()
        });
        if let Err(e) = written {
            // What is left would only fill the disk further.
            let _ = fs::remove_file(&new);
            return Err(e).with_context(|| format!("writing {}", self.path().display()));
        }
        Ok(bytes.len())
    }

    /// Saves what comes, until nothing comes any more; what cannot be saved is told.
    pub async fn run(self, mut checkpoints: mpsc::Receiver<Box<Checkpoint>>, failed: Counter) {
        while let Some(checkpoint) = checkpoints.recv().await {
            let (store, began) = (self.clone(), Instant::now());
            let saved = tokio::task::spawn_blocking(move || store.save(&checkpoint)).await;
            match saved.map_err(anyhow::Error::from).flatten() {
                Ok(bytes) => {
                    let took_ms = began.elapsed().as_millis();
                    tracing::debug!(bytes, took_ms, "checkpoint saved");
                }
                Err(e) => {
                    failed.inc();
                    tracing::warn!(
                        error = format!("{e:#}"),
                        "no checkpoint was saved; rules do not depend on it"
                    );
                }
            }
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
