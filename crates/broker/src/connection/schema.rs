//! GET_SCHEMA and GET_OR_CREATE_SCHEMA.

use geminga_proto::pb::{
    CommandGetOrCreateSchema, CommandGetOrCreateSchemaResponse, CommandGetSchema,
    CommandGetSchemaResponse,
};

use super::Connection;
use crate::error::BrokerError;
use crate::schema::version_bytes;

impl Connection {
    pub(super) fn handle_get_schema(&mut self, request: CommandGetSchema) {
        let request_id = request.request_id;
        let core = self.core.clone();
        self.request("get a schema", async move {
            let result = async {
                let name = core.parse_topic(&request.topic)?;
                let version = match request.schema_version.as_deref() {
                    None => None,
                    Some([]) => {
                        return Err(BrokerError::IncompatibleSchema(
                            "Empty schema version".to_owned(),
                        ));
                    }
                    Some(bytes) => {
                        Some(bytes.try_into().map(u64::from_be_bytes).map_err(|_| {
                            BrokerError::IncompatibleSchema("Invalid schema version".to_owned())
                        })?)
                    }
                };
                core.schemas
                    .get(&name, version)
                    .await?
                    .ok_or(BrokerError::SchemaNotFound)
            };
            let result = result.await;
            move |connection: &mut Connection| {
                let response = match result {
                    Ok((version, schema)) => CommandGetSchemaResponse {
                        request_id,
                        schema: Some(schema.to_wire()),
                        schema_version: Some(version_bytes(Some(version)).into()),
                        ..CommandGetSchemaResponse::default()
                    },
                    Err(reason) => CommandGetSchemaResponse {
                        request_id,
                        error_code: Some(reason.server_error() as i32),
                        error_message: Some(reason.to_string()),
                        ..CommandGetSchemaResponse::default()
                    },
                };
                connection.peer.outbox.send(response);
            }
        });
    }

    pub(super) fn handle_get_or_create_schema(&mut self, request: CommandGetOrCreateSchema) {
        let request_id = request.request_id;
        let core = self.core.clone();
        self.request("register a schema", async move {
            let result = async {
                let name = core.parse_topic(&request.topic)?;
                core.topic(&name, false).await?;
                core.producer_schema(&name, Some(&request.schema)).await
            };
            let result = result.await;
            move |connection: &mut Connection| {
                let response = match result {
                    Ok(version) => CommandGetOrCreateSchemaResponse {
                        request_id,
                        schema_version: Some(version_bytes(version).into()),
                        ..CommandGetOrCreateSchemaResponse::default()
                    },
                    Err(reason) => CommandGetOrCreateSchemaResponse {
                        request_id,
                        error_code: Some(reason.server_error() as i32),
                        error_message: Some(reason.to_string()),
                        ..CommandGetOrCreateSchemaResponse::default()
                    },
                };
                connection.peer.outbox.send(response);
            }
        });
    }
}
