//! Advertised listeners: under which addresses clients are told to find this broker.
//!
//! Owns the reading of `advertisedListeners`, `internalListenerName` and `bindAddresses`, as pure
//! functions. What must hold: a name that no listener has is an error, never another's address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::config::BrokerConfig;
use crate::error::BrokerError;

/// What an address is spoken to with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Pulsar,
    PulsarSsl,
    Http,
    Https,
}

/// An address to listen on for clients of one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindAddress {
    pub listener: String,
    pub scheme: Scheme,
    pub address: SocketAddr,
}

/// What a lookup answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceUrls {
    pub pulsar: Option<String>,
    pub pulsar_ssl: Option<String>,
    pub http: Option<String>,
    pub https: Option<String>,
    /// They were named by the operator, so clients connect to them and to nothing else.
    pub is_listener: bool,
}

impl ServiceUrls {
    fn slot(&mut self, scheme: Scheme) -> &mut Option<String> {
        match scheme {
            Scheme::Pulsar => &mut self.pulsar,
            Scheme::PulsarSsl => &mut self.pulsar_ssl,
            Scheme::Http => &mut self.http,
            Scheme::Https => &mut self.https,
        }
    }
}

/// The listeners of a broker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Listeners {
    all: Vec<(String, ServiceUrls)>,
    internal: usize,
    pub(crate) bind: Vec<BindAddress>,
}

const ADVERTISED: &str = "advertisedListeners";
const BIND: &str = "bindAddresses";

impl Listeners {
    pub(crate) fn new(config: &BrokerConfig) -> Result<Self, BrokerError> {
        let bad = |setting, reason| Err(BrokerError::BadSetting { setting, reason });
        let mut listeners = Self::default();
        let advertised = config.advertised_listeners.as_deref().unwrap_or_default();
        let mut addresses: Vec<(&str, &str)> = Vec::new();
        for part in parts(advertised) {
            let Some((name, scheme, address)) = split(part) else {
                return bad(
                    ADVERTISED,
                    "must be `name:scheme://host:port`, separated by commas",
                );
            };
            if !has_host_and_port(address) {
                return bad(ADVERTISED, "has an address that is not `host:port`");
            }
            if addresses
                .iter()
                .any(|(other, of)| *of == address && *other != name)
            {
                return bad(ADVERTISED, "has one address in two listeners");
            }
            addresses.push((name, address));
            let known = listeners.all.iter().position(|(other, _)| other == name);
            let at = known.unwrap_or_else(|| {
                let urls = ServiceUrls {
                    is_listener: true,
                    ..ServiceUrls::default()
                };
                listeners.all.push((name.to_owned(), urls));
                listeners.all.len() - 1
            });
            let url = part.split_once(':').map(|(_, url)| url.to_owned());
            if std::mem::replace(listeners.all[at].1.slot(scheme), url).is_some() {
                return bad(ADVERTISED, "has two addresses of one scheme in a listener");
            }
        }
        if !listeners.all.is_empty() && config.advertised_address.is_some() {
            return bad(ADVERTISED, "and `advertisedAddress` must not both be set");
        }
        if let Some(name) = &config.internal_listener_name {
            match listeners.all.iter().position(|(other, _)| other == name) {
                Some(at) => listeners.internal = at,
                None => {
                    return bad(
                        "internalListenerName",
                        "is not one of `advertisedListeners`",
                    );
                }
            }
        }
        for part in parts(config.bind_addresses.as_deref().unwrap_or_default()) {
            let Some((name, scheme, address)) = split(part) else {
                return bad(
                    BIND,
                    "must be `name:scheme://address:port`, separated by commas",
                );
            };
            let Some(address) = socket_address(address) else {
                return bad(BIND, "has an address that is not `ip:port`");
            };
            if listeners.of(name).is_none() {
                return bad(
                    BIND,
                    "names a listener that is not in `advertisedListeners`",
                );
            }
            let has_tls = config.security.tls_certificate_file_path.is_some();
            if matches!(scheme, Scheme::PulsarSsl | Scheme::Https) && !has_tls {
                return bad(
                    BIND,
                    "has an address with TLS, without `tlsCertificateFilePath`",
                );
            }
            listeners.bind.push(BindAddress {
                listener: name.to_owned(),
                scheme,
                address,
            });
        }
        Ok(listeners)
    }

    /// The addresses of a listener.
    pub(crate) fn of(&self, name: &str) -> Option<&ServiceUrls> {
        let found = self.all.iter().find(|(other, _)| other == name);
        found.map(|(_, urls)| urls)
    }

    /// The addresses for those who name none; none where no listener is set.
    pub(crate) fn internal(&self) -> Option<&ServiceUrls> {
        self.all.get(self.internal).map(|(_, urls)| urls)
    }
}

fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
}

/// Name, scheme and `host:port`.
fn split(part: &str) -> Option<(&str, Scheme, &str)> {
    let (name, url) = part.split_once(':')?;
    let (scheme, address) = url.split_once("://")?;
    let scheme = match scheme {
        "pulsar" => Scheme::Pulsar,
        "pulsar+ssl" => Scheme::PulsarSsl,
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        _ => return None,
    };
    let is_word = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    (!name.is_empty() && name.chars().all(is_word)).then_some((name, scheme, address))
}

fn has_host_and_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && !host.contains(['/', '?', '#', '@', ' '])
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

fn socket_address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) => Some((IpAddr::V4(Ipv4Addr::LOCALHOST), port.parse().ok()?).into()),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(advertised: &str, internal: Option<&str>, bind: &str) -> BrokerConfig {
        BrokerConfig {
            advertised_listeners: Some(advertised.to_owned()),
            internal_listener_name: internal.map(str::to_owned),
            bind_addresses: Some(bind.to_owned()),
            ..BrokerConfig::default()
        }
    }

    #[test]
    fn listeners_have_their_own_addresses() {
        let text = "in:pulsar://10.0.0.1:6650, out:pulsar://broker.example:7000,\
                    out:pulsar+ssl://broker.example:7001,out:http://broker.example:80";
        let listeners = Listeners::new(&config(text, None, "out:pulsar://0.0.0.0:7000")).unwrap();
        let out = listeners.of("out").unwrap();
        assert_eq!(out.pulsar.as_deref(), Some("pulsar://broker.example:7000"));
        assert_eq!(
            out.pulsar_ssl.as_deref(),
            Some("pulsar+ssl://broker.example:7001")
        );
        assert_eq!(out.http.as_deref(), Some("http://broker.example:80"));
        assert_eq!(out.https, None);
        let first = listeners.internal().and_then(|urls| urls.pulsar.as_deref());
        assert_eq!(first, Some("pulsar://10.0.0.1:6650"));
        assert_eq!(listeners.bind[0].address, "0.0.0.0:7000".parse().unwrap());
        assert!(listeners.of("other").is_none());
        let chosen = Listeners::new(&config(text, Some("out"), "")).unwrap();
        assert_eq!(chosen.internal(), chosen.of("out"));
        assert_eq!(
            Listeners::new(&BrokerConfig::default()).unwrap().internal(),
            None
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let good = "a:pulsar://h:1";
        for (advertised, internal, bind, part) in [
            ("a", None, "", "`advertisedListeners`"),
            ("a:ftp://h:1", None, "", "`advertisedListeners`"),
            (":pulsar://h:1", None, "", "`advertisedListeners`"),
            ("a:pulsar://h", None, "", "`host:port`"),
            ("a:pulsar://h:0", None, "", "`host:port`"),
            ("a:pulsar://h:99999", None, "", "`host:port`"),
            ("a:pulsar://h:1/x", None, "", "`host:port`"),
            ("a:pulsar://h:1,b:pulsar://h:1", None, "", "two listeners"),
            ("a:pulsar://h:1,a:pulsar://h:2", None, "", "one scheme"),
            (good, Some("b"), "", "`internalListenerName`"),
            ("", Some("b"), "", "`internalListenerName`"),
            (good, None, "b:pulsar://127.0.0.1:1", "`bindAddresses`"),
            (good, None, "a:pulsar://h:1", "`ip:port`"),
            (good, None, "a:127.0.0.1:1", "`bindAddresses`"),
            (
                good,
                None,
                "a:https://127.0.0.1:1",
                "`tlsCertificateFilePath`",
            ),
        ] {
            let error = Listeners::new(&config(advertised, internal, bind)).unwrap_err();
            assert!(
                error.to_string().contains(part),
                "{advertised} {bind}: {error}"
            );
        }
        let mut both = config(good, None, "");
        both.advertised_address = Some("h".to_owned());
        assert!(Listeners::new(&both).is_err());
    }
}
