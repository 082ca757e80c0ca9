//! The token that proves to servers which node this is.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use distributary_runtime::secret::Secret;
use tokio::sync::watch;

/// How often it is looked whether there is a newer one. The kubelet renews a token when a fifth of its life is left.
const LOOK: Duration = Duration::from_secs(20);
/// No token is longer, in bytes.
const LONGEST: u64 = 8 << 10;

/// The file that a token is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFile(PathBuf);

impl TokenFile {
    /// There.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The token that is in it now.
    ///
    /// # Errors
    /// When there is none: one line, which does not say what is there instead.
    pub fn read(&self) -> anyhow::Result<Secret> {
        let named = || format!("--token {}", self.0.display());
        let mut text = String::new();
        let file = std::fs::File::open(&self.0).with_context(named)?;
        file.take(LONGEST + 1).read_to_string(&mut text).with_context(named)?;
        ensure!(text.len() as u64 <= LONGEST, "{}: more than {LONGEST} bytes are no token", named());
        let token = text.trim();
        let one_word = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        ensure!(one_word, "{}: there is no token in it", named());
        Ok(Secret::new(token))
    }

    /// Tells whenever there is another token than before. While it cannot be read, the last one counts.
    pub async fn follow(self, tell: watch::Sender<Option<Secret>>) {
        let mut said = false;
        loop {
            match self.read() {
                Ok(token) => {
                    said = false;
                    tell.send_if_modified(|told| {
                        let news = told.as_ref() != Some(&token);
                        *told = Some(token);
                        news
                    });
                }
                Err(e) if !said => {
                    said = true;
                    tracing::error!(error = format!("{e:#}"), "the token cannot be renewed");
                }
                Err(_) => {}
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_token_is_told_when_it_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "one\n").unwrap();
        let (tell, mut told) = watch::channel(None);
        let _following = tokio::spawn(TokenFile::new(path.clone()).follow(tell));
        told.changed().await.unwrap();
        assert_eq!(told.borrow_and_update().as_ref().map(Secret::reveal), Some("one"));
        assert!(tokio::time::timeout(3 * LOOK, told.changed()).await.is_err(), "the same is no news");
        std::fs::remove_file(&path).unwrap();
        assert!(tokio::time::timeout(3 * LOOK, told.changed()).await.is_err(), "nothing is no token");
        std::fs::write(&path, "two").unwrap();
        told.changed().await.unwrap();
        assert_eq!(told.borrow().as_ref().map(Secret::reveal), Some("two"));
    }

    #[test]
    fn what_is_no_token_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let error = |text: &str| {
            std::fs::write(&path, text).unwrap();
            format!("{:#}", TokenFile::new(path.clone()).read().unwrap_err())
        };
        let named = format!("--token {}", dir.path().join("token").display());
        assert_eq!(error(" \n"), format!("{named}: there is no token in it"));
        assert_eq!(error("two words"), format!("{named}: there is no token in it"));
        assert_eq!(error(&"x".repeat(9000)), format!("{named}: more than 8192 bytes are no token"));
        assert!(!format!("{:?}", TokenFile::new(path.clone())).contains("xxx"));
    }
}
