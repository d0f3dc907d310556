//! What operators do with schemas.

use geminga_model::TopicName;
use geminga_proto::pb::Schema;

use crate::broker::Broker;
use crate::error::BrokerError;
use crate::policies::SchemaCompatibilityStrategy;
use crate::schema::StoredSchema;

impl Broker {
    /// All versions, oldest first.
    pub async fn schemas(&self, name: &TopicName) -> Result<Vec<(u64, StoredSchema)>, BrokerError> {
        self.core.schemas.all(name).await
    }

    /// Registers a schema, also where producers may not.
    pub async fn create_schema(
        &self,
        name: &TopicName,
        schema: &Schema,
    ) -> Result<u64, BrokerError> {
        let rules = self.core.effective_policies(name).await?.policies;
        let strategy = rules.schema_compatibility_strategy;
        let now_ms = self.core.clock.now_ms();
        self.core
            .schemas
            .register(name, schema, strategy, now_ms)
            .await
    }

    /// The version that has this definition.
    pub async fn schema_version(
        &self,
        name: &TopicName,
        schema: &Schema,
    ) -> Result<Option<u64>, BrokerError> {
        self.core.schemas.version_of(name, schema).await
    }

    /// Whether the schema may be registered by the strategy in force.
    pub async fn is_schema_compatible(
        &self,
        name: &TopicName,
        schema: &Schema,
    ) -> Result<(SchemaCompatibilityStrategy, bool), BrokerError> {
        let rules = self.core.effective_policies(name).await?.policies;
        let strategy = rules.schema_compatibility_strategy;
        match self.core.schemas.check(name, schema, strategy).await {
            Ok(()) => Ok((strategy, true)),
            Err(BrokerError::IncompatibleSchema(_)) => Ok((strategy, false)),
            Err(error) => Err(error),
        }
    }

    /// Ends the versions there are, or with `force` forgets them. Returns the deletion's own version.
    pub async fn delete_schema(
        &self,
        name: &TopicName,
        force: bool,
    ) -> Result<Option<u64>, BrokerError> {
        if force {
            self.core.schemas.forget(name).await?;
            return Ok(None);
        }
        let now_ms = self.core.clock.now_ms();
        self.core.schemas.delete(name, now_ms).await
    }
}
