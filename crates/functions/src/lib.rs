//! The worker: function catalogue, scheduler, instances, runtimes and language hosts

pub mod runtime;
