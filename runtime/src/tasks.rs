//! Supervised tasks: the first to end ends the process, and is named. No task is lost from sight.

use anyhow::{Context, bail};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The long-lived tasks of a process.
#[derive(Debug, Default)]
pub struct Tasks(JoinSet<(&'static str, anyhow::Result<()>)>);

impl Tasks {
    /// Starts a task that is meant to live until shutdown.
    pub fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.0.spawn(async move { (name, task.await) });
    }

    /// Waits for the shutdown, or for the first task that ends before it.
    ///
    /// # Errors
    /// When a task ended by itself, with or without an error. A panic goes on here.
    pub async fn supervise(&mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            ended = self.0.join_next() => match ended {
                None => bail!("nothing to do"),
                Some(Ok((name, Ok(())))) => bail!("{name} ended by itself"),
                Some(Ok((name, Err(e)))) => Err(e).context(name),
                Some(Err(join)) => std::panic::resume_unwind(join.into_panic()),
            },
        }
    }

    /// Waits for all to end, each being told by the shutdown token. Gives the first error.
    ///
    /// # Errors
    /// The first error that a task ended with.
    pub async fn finish(&mut self) -> anyhow::Result<()> {
        let mut first = Ok(());
        while let Some(ended) = self.0.join_next().await {
            match ended {
                Ok((name, Err(e))) if first.is_ok() => first = Err(e).context(name),
                Ok(_) => {}
                Err(join) if join.is_panic() => std::panic::resume_unwind(join.into_panic()),
                Err(_) => {}
            }
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_task_that_ends_is_named() {
        let mut tasks = Tasks::default();
        tasks.spawn("waiting", std::future::pending());
        tasks.spawn("watching services", async { bail!("no route to host") });
        let error = tasks.supervise(&CancellationToken::new()).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "watching services: no route to host");
    }

    #[tokio::test]
    async fn a_shutdown_is_no_error() {
        let mut tasks = Tasks::default();
        tasks.spawn("waiting", std::future::pending());
        let token = CancellationToken::new();
        token.cancel();
        tasks.supervise(&token).await.unwrap();
    }
}
