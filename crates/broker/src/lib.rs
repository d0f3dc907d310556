//! Connections, topics, subscriptions, dispatchers, namespaces
