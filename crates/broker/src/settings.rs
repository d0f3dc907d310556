//! Settings that change while the broker runs.
//!
//! What an operator sets is stored in the metadata (`/broker/settings`, a JSON of names and texts)
//! and comes before the configuration file, now and after a restart; removing it brings the file's
//! value back. What must hold: a change is durable before it takes effect, takes effect before its
//! caller is answered, and leaves settings that pass [`BrokerConfig::check`]. Only what stands in
//! [`DYNAMIC`] can change: everybody who honours one of these reads [`Settings::live`] whenever he
//! acts, and keeps no copy.

use std::collections::BTreeMap;
use std::sync::Arc;

use geminga_storage::metadata::Expected;
use parking_lot::RwLock;
use serde_json::{Map, Value};

use crate::broker::Broker;
use crate::config::BrokerConfig;
use crate::error::BrokerError;
use crate::namespace::Catalog;

/// Those that Pulsar changes while it runs, and that mean something here.
pub const DYNAMIC: &[&str] = &[
    "allowAutoSubscriptionCreation",
    "allowAutoTopicCreation",
    "allowAutoTopicCreationType",
    "brokerDeleteInactiveTopicsEnabled",
    "brokerDeleteInactiveTopicsFrequencySeconds",
    "brokerDeleteInactiveTopicsMaxInactiveDurationSeconds",
    "brokerDeleteInactiveTopicsMode",
    "defaultNumPartitions",
    "dispatchThrottlingRatePerReplicatorInByte",
    "dispatchThrottlingRatePerReplicatorInMsg",
    "dispatchThrottlingRatePerSubscriptionInByte",
    "dispatchThrottlingRatePerSubscriptionInMsg",
    "dispatchThrottlingRatePerTopicInByte",
    "dispatchThrottlingRatePerTopicInMsg",
    "dispatcherMaxReadBatchSize",
    "dispatcherMaxReadSizeBytes",
    "isAllowAutoUpdateSchemaEnabled",
    "maxMessagePublishBufferSizeInMB",
    "maxNumPartitionsPerPartitionedTopic",
    "maxTopicsPerNamespace",
    "replicationProducerQueueSize",
    "replicationStartAt",
    "subscribeRatePeriodPerConsumerInSecond",
    "subscribeThrottlingRatePerConsumer",
    "subscriptionTypesEnabled",
    "superUserRoles",
];

const KEY: &str = "/broker/settings";

pub(crate) struct Settings {
    /// Those of the file.
    started: BrokerConfig,
    live: RwLock<Arc<BrokerConfig>>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

type Texts = BTreeMap<String, String>;

async fn stored(catalog: &Catalog) -> Result<Texts, BrokerError> {
    let found = catalog.get::<Texts>(KEY).await?;
    Ok(found.map(|(texts, _)| texts).unwrap_or_default())
}

impl Settings {
    /// The file's settings, and over them what was set while an earlier broker ran.
    pub(crate) async fn load(
        catalog: &Catalog,
        started: BrokerConfig,
    ) -> Result<Settings, BrokerError> {
        let mut live = started.clone();
        for (name, text) in stored(catalog).await? {
            match with(&live, &name, &text) {
                Ok(changed) => live = changed,
                // Set in a release that knew it, or at odds with a file that has changed since.
                Err(reason) => {
                    tracing::error!(setting = name, value = text, reason, "stored, not in force");
                }
            }
        }
        Ok(Settings {
            started,
            live: RwLock::new(Arc::new(live)),
            changing: tokio::sync::Mutex::new(()),
        })
    }

    pub(crate) fn live(&self) -> Arc<BrokerConfig> {
        self.live.read().clone()
    }
}

/// The settings as the words of a file: each with its value.
fn as_map(config: &BrokerConfig) -> Result<Map<String, Value>, String> {
    match serde_json::to_value(config).map_err(|error| error.to_string())? {
        Value::Object(map) => Ok(map),
        other => Err(format!("settings are no `{other}`")),
    }
}

/// The settings with another value, given as text; an error says why that cannot be.
fn with(config: &BrokerConfig, name: &str, text: &str) -> Result<BrokerConfig, String> {
    if name == "superUserRoles" {
        let mut changed = config.clone();
        changed.security.super_user_roles = words(text).map(str::to_owned).collect();
        return Ok(changed);
    }
    if !DYNAMIC.contains(&name) {
        return Err(format!("`{name}` is read when the broker starts"));
    }
    let mut map = as_map(config)?;
    let before = map.get(name).cloned().unwrap_or_default();
    let wrong = |what: &str| format!("`{name}` must be {what}, not `{text}`");
    let value = match before {
        Value::Bool(_) => Value::Bool(text.parse().map_err(|_| wrong("true or false"))?),
        // A number that may be unset.
        Value::Number(_) | Value::Null => {
            let number: i64 = text.parse().map_err(|_| wrong("a number"))?;
            number.into()
        }
        Value::Array(_) => words(text).collect(),
        Value::String(_) => text.into(),
        Value::Object(_) => return Err(format!("`{name}` cannot be given as text")),
    };
    map.insert(name.to_owned(), value);
    let mut changed: BrokerConfig = serde_json::from_value(Value::Object(map))
        .map_err(|error| format!("`{name}` cannot be `{text}`: {error}"))?;
    changed.security = config.security.clone();
    changed.check().map_err(|error| error.to_string())?;
    Ok(changed)
}

/// The names in a list that is written with commas.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(',').map(str::trim);
    words.filter(|word| !word.is_empty())
}

impl Broker {
    /// The settings in force now. [`Broker::config`] has those of the file.
    pub fn settings(&self) -> Arc<BrokerConfig> {
        self.core.settings.live()
    }

    /// What was set while a broker ran.
    pub async fn changed_settings(&self) -> Result<BTreeMap<String, String>, BrokerError> {
        stored(&self.core.catalog).await
    }

    /// Changes a setting that is in [`DYNAMIC`].
    pub async fn change_setting(&self, name: &str, text: &str) -> Result<(), BrokerError> {
        self.update_settings(name, Some(text)).await
    }

    /// Back to what the file says.
    pub async fn reset_setting(&self, name: &str) -> Result<(), BrokerError> {
        self.update_settings(name, None).await
    }

    async fn update_settings(&self, name: &str, text: Option<&str>) -> Result<(), BrokerError> {
        let broker = self.clone();
        let (name, text) = (name.to_owned(), text.map(str::to_owned));
        let change = async move { broker.update_settings_now(&name, text.as_deref()).await };
        self.core.uncancelled(change).await
    }

    async fn update_settings_now(&self, name: &str, text: Option<&str>) -> Result<(), BrokerError> {
        let (core, settings) = (&self.core, &self.core.settings);
        if !DYNAMIC.contains(&name) {
            return Err(BrokerError::PreconditionFailed(format!(
                "`{name}` is read when the broker starts"
            )));
        }
        let _one = settings.changing.lock().await;
        let mut texts = stored(&core.catalog).await?;
        match text {
            Some(text) => texts.insert(name.to_owned(), text.to_owned()),
            None => texts.remove(name),
        };
        let mut live = settings.started.clone();
        for (other, text) in &texts {
            match with(&live, other, text) {
                Ok(changed) => live = changed,
                Err(reason) if other == name => {
                    return Err(BrokerError::PreconditionFailed(reason));
                }
                // As at the start.
                Err(reason) => tracing::error!(setting = other, reason, "stored, not in force"),
            }
        }
        core.catalog.put(KEY, &texts, Expected::Any).await?;
        tracing::info!(setting = name, value = text, "setting changed");
        *settings.live.write() = Arc::new(live);
        self.settings_changed().await;
        Ok(())
    }

    /// Tells those that keep something made of the settings.
    async fn settings_changed(&self) {
        let live = self.settings();
        let mib = live.max_message_publish_buffer_size_in_mb;
        self.core.publishing.resize(mib.saturating_mul(1 << 20));
        let roles = live.security.super_user_roles.clone();
        self.core.security.set_super_users(roles);
        self.core.rights_changed();
        self.core.all_policies_changed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_becomes_a_setting_or_says_why_not() {
        let config = BrokerConfig::default();
        for (name, text, shown) in [
            ("allowAutoTopicCreation", "false", Ok("false")),
            ("maxTopicsPerNamespace", "7", Ok("7")),
            (
                "allowAutoTopicCreationType",
                "partitioned",
                Ok("\"partitioned\""),
            ),
            (
                "subscriptionTypesEnabled",
                "Shared, Key_Shared",
                Ok(r#"["Shared","Key_Shared"]"#),
            ),
            (
                "brokerDeleteInactiveTopicsMaxInactiveDurationSeconds",
                "9",
                Ok("9"),
            ),
            ("maxTopicsPerNamespace", "many", Err("a number")),
            ("maxTopicsPerNamespace", "-5", Err("`-5`")),
            ("allowAutoTopicCreation", "maybe", Err("true or false")),
            ("subscriptionTypesEnabled", "Nope", Err("Nope")),
            ("defaultNumPartitions", "0", Err("above 0")),
            ("clusterName", "x", Err("when the broker starts")),
            ("nonsense", "x", Err("when the broker starts")),
        ] {
            match (with(&config, name, text), shown) {
                (Ok(changed), Ok(shown)) => {
                    assert_eq!(as_map(&changed).unwrap()[name].to_string(), shown);
                }
                (Err(reason), Err(word)) => assert!(reason.contains(word), "{reason}"),
                (found, expected) => panic!("{name} {text}: {found:?}, {expected:?}"),
            }
        }
        let changed = with(&config, "superUserRoles", "a,b").unwrap();
        assert_eq!(changed.security.super_user_roles, ["a", "b"]);
    }

    #[test]
    fn each_is_a_setting_with_a_value_that_text_can_say() {
        let map = as_map(&BrokerConfig::default()).unwrap();
        for name in DYNAMIC {
            let known = map.contains_key(*name) || *name == "superUserRoles";
            assert!(known, "{name}");
            assert!(!map.get(*name).is_some_and(Value::is_object), "{name}");
        }
    }
}
