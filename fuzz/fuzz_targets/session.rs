//! A client that says anything, to a broker in this process: the sessions of
//! `crates/broker/tests/it/fuzz`, with the fuzzer's bytes for chances. A panic of any task ends the
//! run, and a connection that does not end is a hang.
#![no_main]

#[path = "../../crates/broker/tests/it/fuzz/sessions.rs"]
mod sessions;

use std::cell::OnceCell;
use std::sync::Arc;

use bytes::BytesMut;
use geminga_broker::{Broker, BrokerConfig};
use geminga_proto::frame::encode_command;
use geminga_proto::pb::CommandConnect;
use geminga_stdx::{Clock, Tasks};
use geminga_storage::ledger::memory::{MemoryImage, MemoryStore};
use geminga_storage::{ManagedConfig, State, Storage};
use sessions::{Choices, damage, piece, session};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

struct Server {
    runtime: Runtime,
    broker: Broker,
    _tasks: Tasks,
    _store: Arc<MemoryStore>,
}

impl Server {
    fn start() -> Server {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let (broker, tasks, store) = runtime.block_on(async {
            let state = Arc::new(State::new());
            let store = MemoryStore::start(MemoryImage::default(), state.clone()).expect("a store");
            let tasks = Tasks::new();
            let managed = ManagedConfig::default();
            let storage = Storage::on(store.clone(), state, managed, Clock::system(), &tasks)
                .await
                .expect("storage");
            let broker = Broker::start(BrokerConfig::default(), storage).await.expect("a broker");
            (broker, tasks, store)
        });
        Server { runtime, broker, _tasks: tasks, _store: store }
    }

    fn serve(&self, bytes: &[u8]) {
        let mut choices = Choices::read(bytes);
        let commands = session(&mut choices);
        let mut pieces: Vec<_> = commands.iter().map(|command| piece(command, &mut choices)).collect();
        for _ in 0..choices.below(5) {
            damage(&mut pieces, &mut choices);
        }
        let mut hello = BytesMut::new();
        let connect = CommandConnect { client_version: "fuzz".to_owned(), protocol_version: Some(21), ..CommandConnect::default() };
        encode_command(&connect.into(), &mut hello);
        let mut out = hello.to_vec();
        for piece in &pieces {
            piece.encode(&mut out);
        }
        self.runtime.block_on(async {
            let mut stream = self.broker.connect_in_process();
            // It may be closed before all is said.
            _ = stream.write_all(&out).await;
            _ = stream.shutdown().await;
            _ = stream.read_to_end(&mut Vec::new()).await;
        });
    }
}

thread_local! {
    static SERVER: OnceCell<Server> = const { OnceCell::new() };
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    SERVER.with(|server| server.get_or_init(Server::start).serve(bytes));
});
