//! Host names to addresses, by `/etc/hosts` and the name servers of `/etc/resolv.conf`.
//!
//! In Rust rather than by the C library, whose resolver does not work in a static binary. Both files are read at each
//! use, since they change with the network, and nothing is remembered.

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use std::net::IpAddr;
use std::time::Duration;

/// Time for one name, all servers and families together.
const TIMEOUT: Duration = Duration::from_secs(4);
/// Time for one server to answer before it is asked again, or the next one.
const SERVER_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;

/// The addresses of `name`, families interleaved; the error is for people.
pub(crate) async fn resolve(name: &str) -> Result<Vec<IpAddr>, String> {
    let resolver = resolver().map_err(|error| error.to_string())?;
    let lookup = tokio::time::timeout(TIMEOUT, resolver.lookup_ip(name)).await;
    let found = lookup.map_err(|_| format!("no name server answered within {TIMEOUT:?}"))?;
    let found: Vec<IpAddr> = found.map_err(|error| error.to_string())?.iter().collect();
    Ok(interleave(found))
}

fn resolver() -> Result<TokioResolver, NetError> {
    // Without a readable resolv.conf there is still /etc/hosts.
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|_| {
        TokioResolver::builder_with_config(ResolverConfig::default(), TokioRuntimeProvider::default())
    });
    let options = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.timeout = options.timeout.min(SERVER_TIMEOUT);
    options.cache_size = 0;
    builder.build()
}

/// IPv6 and IPv4 in turn, so that a family that leads nowhere costs one attempt (RFC 8305, 4).
fn interleave(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let (v6, v4): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let longest = v6.len().max(v4.len());
    let turns = (0..longest).flat_map(|turn| [v6.get(turn), v4.get(turn)]);
    turns.flatten().copied().take(MAX_ADDRESSES).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns_and_the_number_is_capped() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let mixed = addresses(&["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1"]);
        assert_eq!(interleave(mixed), addresses(&["2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3"]));
        assert_eq!(interleave(vec![IpAddr::from([192, 0, 2, 1]); 20]).len(), MAX_ADDRESSES);
    }

    #[tokio::test]
    async fn the_host_itself_resolves_without_a_name_server() {
        let found = resolve("localhost").await.unwrap();
        assert!(!found.is_empty() && found.iter().all(IpAddr::is_loopback), "{found:?}");
    }
}
