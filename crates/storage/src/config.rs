//! Settings of managed ledgers and cursors. The embedded engine keeps its own beside it.

/// How managed ledgers behave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedConfig {
    /// A ledger that holds this much is closed and a new one begun.
    pub ledger_bytes_max: u64,
    /// A ledger that holds this many entries is closed and a new one begun.
    pub ledger_entries_max: u64,
    /// Memory for the entries just appended, over all topics, counted with what the slices pin.
    pub cache_bytes_max: usize,
    /// A run smaller than this is copied into the cache, so that it does not pin its read buffer.
    pub cache_copy_below_bytes: usize,
    /// Acks without a receipt are written after this time at the latest.
    pub ack_flush_interval_ms: u64,
    /// Memory for the acks of one cursor, counted in ranges of about 40 bytes (4,096 messages with
    /// more than 32 holes count for 16, parts of a batch of 320 for 2); further holes are refused. Above the most messages that a
    /// subscription may have unacked.
    pub cursor_ranges_max: usize,
}

impl Default for ManagedConfig {
    fn default() -> Self {
        Self {
            ledger_bytes_max: 256 << 20,
            ledger_entries_max: 5_000_000,
            cache_bytes_max: 64 << 20,
            cache_copy_below_bytes: 16 << 10,
            ack_flush_interval_ms: 100,
            cursor_ranges_max: 1 << 20,
        }
    }
}
