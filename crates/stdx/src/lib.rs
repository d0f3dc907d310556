//! What the standard library lacks. Knows no Pulsar noun and no other crate of the workspace.

pub mod backoff;
pub mod clock;
pub mod diagnostic;
pub mod nearest;
pub mod random;
pub mod size;
pub mod tasks;

pub use backoff::Backoff;
pub use clock::Clock;
pub use diagnostic::Diagnostic;
pub use random::Random;
pub use tasks::Tasks;
