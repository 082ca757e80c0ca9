//! Flags of what those who connect may take.

use std::time::Duration;

use distributary_runtime::duration;

/// What those who connect may take, whoever they are.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Connections at a time; who comes then is sent away
    #[arg(long, env = "DISTRIBUTARY_MAX_CONNECTIONS", value_name = "COUNT", default_value_t = 50_000,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// Connections at a time from one address; loopback may have more
    #[arg(long, env = "DISTRIBUTARY_MAX_CONNECTIONS_PER_ADDRESS", value_name = "COUNT", default_value_t = 64,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections_per_address: u32,
    /// Streams at a time on one connection; an agent has one
    #[arg(long, env = "DISTRIBUTARY_MAX_STREAMS_PER_CONNECTION", value_name = "COUNT", default_value_t = 8,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub max_streams_per_connection: u32,
    /// TLS handshakes a second; those beyond wait their turn
    #[arg(long, env = "DISTRIBUTARY_HANDSHAKES_PER_SECOND", value_name = "COUNT", default_value_t = 2_000,
        value_parser = clap::value_parser!(u32).range(1..))]
    pub handshakes_per_second: u32,
    /// How long a TLS handshake may take
    #[arg(long, env = "DISTRIBUTARY_HANDSHAKE_TIMEOUT", value_name = "DURATION", default_value = "10s",
        value_parser = some_time)]
    pub handshake_timeout: Duration,
    /// How long a connection may be without a stream
    #[arg(long, env = "DISTRIBUTARY_IDLE_TIMEOUT", value_name = "DURATION", default_value = "30s",
        value_parser = some_time)]
    pub idle_timeout: Duration,
}

/// More than nothing.
fn some_time(text: &str) -> Result<Duration, String> {
    let time = duration::parse(text).map_err(|e| e.to_string())?;
    if time.is_zero() { Err("more than nothing is wanted, such as 10s".to_owned()) } else { Ok(time) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_more_than_nothing() {
        assert_eq!(some_time("1m30s"), Ok(Duration::from_secs(90)));
        for odd in ["0s", "-1s", "soon", ""] {
            assert!(some_time(odd).is_err(), "{odd}");
        }
    }
}
