//! What the endpoints of functions, sources, sinks and packages act on: the worker, and the broker
//! when there is one in this process. A worker by itself has none.

use std::sync::Arc;

use geminga_broker::Broker;
use geminga_broker::auth::{Need, Session};
use geminga_functions::Worker;

use crate::error::{Answer, ApiError};

/// The worker of this process, and who may use it.
#[derive(Clone, Default)]
pub(crate) struct Functions {
    pub(crate) worker: Option<Worker>,
    pub(crate) broker: Option<Broker>,
    pub(crate) cluster: String,
    /// Of a worker by itself: who shows it may do everything. Without one anybody may.
    pub(super) token: Option<Arc<str>>,
}

impl Functions {
    /// Beside a broker, which also says who may do what.
    pub(crate) fn beside(broker: &Broker, worker: Option<Worker>) -> Self {
        Self {
            worker,
            cluster: broker.config().cluster_name.clone(),
            broker: Some(broker.clone()),
            token: None,
        }
    }

    /// Pulsar answers 503 where no worker runs.
    pub(crate) fn worker(&self) -> Answer<&Worker> {
        self.worker
            .as_ref()
            .ok_or_else(|| ApiError::unavailable("there is no function worker in this process"))
    }

    /// Whether who asks may reach what only the machine's owner may: its files, other hosts.
    pub(crate) fn is_trusted(&self, session: &Session) -> bool {
        match &self.broker {
            Some(broker) => {
                !broker.asks_who() || broker.authorize(session, &Need::SuperUser).is_ok()
            }
            // Who shows the token is a super user; without one nobody is told apart.
            None => true,
        }
    }
}
