//! Pulsar's `broker.conf`: `name=value` lines, and beside them those of the worker inside. What is not honoured
//! is refused by name.

use std::path::Path;

use geminga_broker::BrokerConfig;
use geminga_broker::auth::SecurityConfig;
use geminga_functions::SecretRules;
use geminga_stdx::Diagnostic;
use geminga_stdx::nearest::nearest;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::secrets;
use crate::failure::{Exit, Failure, Outcome};

/// What a file says.
#[derive(Debug, Clone, Default)]
pub(crate) struct BrokerConf {
    pub(crate) broker: BrokerConfig,
    /// `bindAddress`, `brokerServicePort` and `webServicePort`: flags go before them.
    pub(crate) bind: Option<std::net::IpAddr>,
    pub(crate) port: Option<u16>,
    pub(crate) http_port: Option<u16>,
    /// What secrets of functions may name.
    pub(crate) secrets: SecretRules,
    /// `functionsDirectory`, which Pulsar has in `functions_worker.yml`.
    pub(crate) functions_directory: Option<std::path::PathBuf>,
}

/// Names that belong to the process and not to the broker.
const OURS: [&str; 4] = [
    "bindAddress",
    "brokerServicePort",
    "webServicePort",
    "functionsDirectory",
];

impl BrokerConf {
    pub(crate) fn read(path: &Path) -> Outcome<BrokerConf> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            Diagnostic::error("G0108", format!("can't read `{}`", path.display()))
                .cause(error.to_string())
        })?;
        BrokerConf::parse(&text).map_err(|(line, message)| {
            Failure::new(
                Exit::Usage,
                Diagnostic::error("G0108", message).at(path.to_owned(), line, 0),
            )
        })
    }

    /// The error has its line. It never quotes a value: that may be a secret. What secrets may name is none.
    fn parse(text: &str) -> Result<BrokerConf, (usize, String)> {
        let broker_names = names_of(&BrokerConfig::default());
        let security_names = names_of(&SecurityConfig::default());
        let (mut broker, mut security) = (Map::new(), Map::new());
        let mut conf = BrokerConf::default();
        let mut lists = secrets::Lists::default();
        for (at, line) in text.lines().enumerate() {
            let at = at + 1;
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((name, value)) = line.split_once('=') else {
                return Err((at, "a line without `=`".to_owned()));
            };
            let (name, value) = (name.trim(), value.trim());
            let bad = || (at, format!("the value of `{name}` is not valid"));
            if OURS.contains(&name) {
                if value.is_empty() && !name.ends_with("Port") {
                    continue;
                }
                if value.is_empty() {
                    // In Pulsar that switches the port off: whoever wants that must not get it on.
                    let hint = "leave `bindAddress` on loopback, and give addresses with TLS in \
                                `bindAddresses`";
                    return Err((
                        at,
                        format!("an empty `{name}` is not honoured, the port stays on: {hint}"),
                    ));
                }
                match name {
                    "bindAddress" => conf.bind = Some(value.parse().map_err(|_| bad())?),
                    "functionsDirectory" => conf.functions_directory = Some(value.into()),
                    "brokerServicePort" => conf.port = Some(value.parse().map_err(|_| bad())?),
                    _ => conf.http_port = Some(value.parse().map_err(|_| bad())?),
                }
                continue;
            }
            if secrets::NAMES.contains(&name) {
                lists.take(name, value).map_err(|why| (at, why))?;
                continue;
            }
            let is_broker = broker_names.contains_key(name);
            let (known, into) = if is_broker {
                (&broker_names, &mut broker)
            } else if security_names.contains_key(name) {
                (&security_names, &mut security)
            } else {
                let all = broker_names.keys().chain(security_names.keys());
                let all = all.map(String::as_str).chain(OURS).chain(secrets::NAMES);
                let hint = match nearest(name, all) {
                    Some(near) => format!("; did you mean `{near}`?"),
                    None => String::new(),
                };
                return Err((at, format!("the setting `{name}` is not honoured{hint}")));
            };
            // As in Pulsar, no value means the default.
            if value.is_empty() {
                continue;
            }
            let default = known.get(name).unwrap_or(&Value::Null);
            let value = typed(value, default).ok_or_else(bad)?;
            // One by one, so that the error has a line.
            let fits = |value: &Value| {
                let one = Map::from_iter([(name.to_owned(), value.clone())]);
                match is_broker {
                    true => from_map::<BrokerConfig>(one).is_some(),
                    false => from_map::<SecurityConfig>(one).is_some(),
                }
            };
            let number = || value.as_str()?.parse::<u64>().ok().map(Value::from);
            let value = match fits(&value) {
                true => value,
                // Unset by default, so its type is not known from that.
                false => number().filter(|number| fits(number)).ok_or_else(bad)?,
            };
            into.insert(name.to_owned(), value);
        }
        let whole = |what: &str| (0, format!("the {what} settings do not fit together"));
        conf.broker = from_map(broker).ok_or_else(|| whole("broker's"))?;
        conf.broker.security = from_map(security).ok_or_else(|| whole("security"))?;
        conf.secrets = lists.rules().map_err(|why| (0, why))?;
        Ok(conf)
    }
}

fn names_of(defaults: &impl serde::Serialize) -> Map<String, Value> {
    match serde_json::to_value(defaults) {
        Ok(Value::Object(names)) => names,
        _ => Map::new(),
    }
}

fn from_map<T: DeserializeOwned>(map: Map<String, Value>) -> Option<T> {
    serde_json::from_value(Value::Object(map)).ok()
}

/// The text as a value of the default's type.
fn typed(text: &str, default: &Value) -> Option<Value> {
    Some(match default {
        Value::Bool(_) => Value::Bool(text.parse().ok()?),
        Value::Number(_) => Value::Number(text.parse().ok()?),
        Value::Array(_) => text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(Value::from)
            .collect(),
        _ => Value::from(text),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Known names with any values, unknown names, and lines that are none.
        #[test]
        fn any_file_is_read_or_refused_at_a_line(
            lines in proptest::collection::vec((any::<prop::sample::Index>(), "[^\n]{0,20}", 0..4u8), 0..6),
        ) {
            let names = names_of(&BrokerConfig::default());
            let security = names_of(&SecurityConfig::default());
            let names: Vec<&String> = names.keys().chain(security.keys()).collect();
            let text: Vec<String> = lines
                .iter()
                .map(|(name, value, kind)| match kind {
                    0 => value.clone(),
                    1 => format!("{}={}", name.get(&names), value.len()),
                    2 => format!(" {} = {value} ", name.get(&names)),
                    _ => format!("brokerServicePort={value}"),
                })
                .collect();
            if let Err((line, message)) = BrokerConf::parse(&text.join("\n")) {
                prop_assert!(line <= lines.len(), "{line}: {message}");
                prop_assert!(!message.is_empty());
            }
        }
    }

    #[test]
    fn settings_of_both_groups() {
        let conf = BrokerConf::parse(
            "# a comment\n\
             clusterName = c\n\
             maxMessageSize=1000\n\
             advertisedAddress=\n\
             authenticationEnabled=true\n\
             authenticationProviders=org.apache.pulsar.broker.authentication.AuthenticationProviderToken, tls\n\
             superUserRoles=a,b\n\
             tokenSecretKey=data:;base64,aGk=\n\
             brokerServicePortTls=6651\n\
             functionsDirectory = /srv/functions\n\
             brokerServicePort=6700\n\
             gemingaSecretsFromEnvironment=DB_*\n\
             gemingaSecretsFromFolders = /run/secrets, /etc/db\n\
             gemingaSecretsFromCommands=[[\"vault\",\"get\"]]\n",
        )
        .unwrap();
        assert_eq!(conf.broker.cluster_name, "c");
        assert_eq!(conf.broker.max_message_size, 1000);
        assert_eq!(conf.broker.advertised_address, None);
        let security = &conf.broker.security;
        assert_eq!(security.super_user_roles, ["a", "b"]);
        assert_eq!(security.broker_service_port_tls, Some(6651));
        assert_eq!(
            security.token_secret_key.as_deref(),
            Some("data:;base64,aGk=")
        );
        assert_eq!(conf.port, Some(6700));
        let secrets = format!("{:?}", conf.secrets);
        for part in ["DB_*", "/run/secrets", "/etc/db", "vault"] {
            assert!(secrets.contains(part), "{secrets}");
        }
        let folder = conf.functions_directory.as_deref();
        assert_eq!(folder, Some(std::path::Path::new("/srv/functions")));
        let unset = BrokerConf::parse("functionsDirectory=\n").unwrap();
        assert_eq!(unset.functions_directory, None);
    }

    #[test]
    fn what_is_not_honoured_is_refused_with_its_line() {
        for (text, line, part) in [
            ("clusterName=c\nzookeeperServers=x", 2, "`zookeeperServers`"),
            ("superUserRole=x", 1, "did you mean `superUserRoles`?"),
            (
                "functionDirectory=x",
                1,
                "did you mean `functionsDirectory`?",
            ),
            ("maxMessageSize=hunter2", 1, "`maxMessageSize`"),
            (
                "authenticationEnabled=hunter2",
                1,
                "`authenticationEnabled`",
            ),
            ("brokerServicePortTls=hunter2", 1, "`brokerServicePortTls`"),
            ("hunter2", 1, "without `=`"),
            ("brokerServicePort=", 1, "`brokerServicePort`"),
            ("webServicePort=", 1, "`bindAddresses`"),
            (
                "\ngemingaSecretsFromFolder=/a",
                2,
                "did you mean `gemingaSecretsFromFolders`?",
            ),
            (
                "\ngemingaSecretsFromFolders=a",
                2,
                "`gemingaSecretsFromFolders`",
            ),
            (
                "gemingaSecretsFromCommands=vault hunter2",
                1,
                "a JSON list of commands",
            ),
        ] {
            let (at, message) = BrokerConf::parse(text).unwrap_err();
            assert_eq!(at, line, "{message}");
            assert!(message.contains(part), "{message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }
}
