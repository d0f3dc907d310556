//! What the `pulsar` crate can do, done with it: `conformance-rust [PART OF A NAME]` against
//! `SERVICE_URL`. Prints a line a test (`passed` or `failed`, tab, name), and why one failed.

mod consuming;
mod producing;
mod support;

use std::time::Duration;

use support::{Outcome, Test};

#[tokio::main]
async fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let all: Vec<Test> = [producing::tests(), consuming::tests()].concat();
    let mut failed = 0;
    for test in all.iter().filter(|test| test.name.contains(&wanted)) {
        let limited = tokio::time::timeout(Duration::from_secs(60), (test.run)());
        let outcome: Outcome = match limited.await {
            Ok(outcome) => outcome,
            Err(_) => Err("it takes longer than a minute".into()),
        };
        match outcome {
            Ok(()) => println!("passed\t{}", test.name),
            Err(error) => {
                failed += 1;
                println!("failed\t{}\n    {error}", test.name);
            }
        }
    }
    std::process::exit(i32::from(failed > 0));
}
