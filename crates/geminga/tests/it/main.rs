//! The binary as its users run it.

mod codes;
mod develop;
mod localrun;
mod mesh;
mod objects;
mod run;
mod secrets;
mod server;
mod storage;
mod tls;
mod workers;

/// The binary, with nothing of this shell's settings.
fn geminga() -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_geminga"));
    for name in [
        "GEMINGA_SERVICE_URL",
        "GEMINGA_ADMIN_URL",
        "GEMINGA_DATA",
        "GEMINGA_TOKEN",
        "GEMINGA_TLS_TRUST_CERTS_FILE_PATH",
        "GEMINGA_TLS_CERTIFICATE_FILE_PATH",
        "GEMINGA_TLS_KEY_FILE_PATH",
        "GEMINGA_TLS_ALLOW_INSECURE_CONNECTION",
        "GEMINGA_TLS_ENABLE_HOSTNAME_VERIFICATION",
        "COLUMNS",
    ] {
        command.env_remove(name);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
