//! Room for bytes that wait: who puts something in a queue takes what it weighs, and gives it back when
//! it is done with.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that may wait together: some messages of the largest size.
const ROOM_BYTES: u32 = 16 * 1024 * 1024;

/// What may wait, in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Room(Arc<Semaphore>);

/// A part of a room; given back when it is dropped.
pub(crate) type Taken = OwnedSemaphorePermit;

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM_BYTES as usize)))
    }
}

impl Room {
    /// Room for so many bytes, when there is any now. What is larger than the whole room takes all of it.
    pub(crate) fn take(&self, bytes: usize) -> Option<Taken> {
        let bytes = u32::try_from(bytes).unwrap_or(ROOM_BYTES).min(ROOM_BYTES);
        self.0.clone().try_acquire_many_owned(bytes).ok()
    }

    /// Waits until nothing waits.
    pub(crate) async fn emptied(&self) {
        // The semaphore is never closed.
        let _ = self.0.acquire_many(ROOM_BYTES).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_too_much_gets_no_room_and_the_rest_is_waited_for() {
        let room = Room::default();
        room.emptied().await;
        let all = room.take(usize::MAX).expect("an empty room");
        assert!(room.take(1).is_none());
        drop(all);
        let most = room.take(ROOM_BYTES as usize - 10).expect("room");
        let last = room.take(10).expect("room");
        assert!(room.take(1).is_none());
        let soon = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, room.emptied()).await.is_err());
        drop((most, last));
        room.emptied().await;
    }
}
