//! The REST admin API: types, server and client
