//! The addresses of the interfaces, followed as they come and go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use distributary_runtime::backoff::Backoff;
use futures::StreamExt;
use futures::TryStreamExt;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::watch;

/// What changes shortly after another change is listed with it.
const SETTLE: Duration = Duration::from_millis(50);

/// All of them, now.
///
/// # Errors
/// When the kernel does not tell.
pub async fn list() -> anyhow::Result<BTreeSet<IpAddr>> {
    let (connection, handle, _) = rtnetlink::new_connection().context("a netlink socket cannot be opened")?;
    let connection = tokio::spawn(connection);
    let listed = listed(&handle).await;
    connection.abort();
    listed
}

/// Keeps `to` at what they are, for ever.
///
/// # Errors
/// Never: when the kernel does not tell, it is asked again.
pub async fn follow(to: watch::Sender<BTreeSet<IpAddr>>) -> anyhow::Result<()> {
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
    loop {
        if let Err(e) = until_lost(&to, &mut backoff).await {
            tracing::warn!(error = format!("{e:#}"), "the interfaces' addresses cannot be followed");
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Follows them as long as the socket lives. Any news leads to a listing, so that none that was lost matters.
async fn until_lost(to: &watch::Sender<BTreeSet<IpAddr>>, backoff: &mut Backoff) -> anyhow::Result<()> {
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut news) =
        rtnetlink::new_multicast_connection(&groups).context("a netlink socket cannot be opened")?;
    let connection = async {
        connection.await;
        anyhow::Ok(())
    };
    let listing = async {
        loop {
            let now = listed(&handle).await?;
            backoff.reset();
            to.send_if_modified(|was| {
                let changed = *was != now;
                *was = now;
                changed
            });
            if news.next().await.is_none() {
                return Ok(());
            }
            tokio::time::sleep(SETTLE).await;
            while news.try_recv().is_ok() {}
        }
    };
    tokio::select! {
        ended = connection => ended,
        ended = listing => ended,
    }
}

async fn listed(handle: &Handle) -> anyhow::Result<BTreeSet<IpAddr>> {
    let mut messages = std::pin::pin!(handle.address().get().execute());
    let mut all = BTreeSet::new();
    while let Some(message) =
        messages.try_next().await.context("the interfaces' addresses cannot be listed")?
    {
        // At a link with a peer the local one is not the address.
        let attributes = || message.attributes.iter();
        let local = attributes().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let address = attributes().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        all.extend(local.or(address));
    }
    Ok(all)
}
