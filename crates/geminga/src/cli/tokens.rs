//! `geminga tokens`: keys and tokens, as `pulsar tokens` makes them.

use std::io::Write;
use std::path::PathBuf;

use geminga_broker::auth::token::{MakeError, SigningKey, make, new_secret_key, validate};
use geminga_broker::auth::{SecurityConfig, read_key};
use geminga_proto::key::encode_base64;
use geminga_stdx::{Clock, Diagnostic};

use super::admin::parse_duration;
use crate::failure::{Exit, Failure, Outcome};
use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct TokensArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a random key for tokens
    CreateSecretKey {
        /// Write the key to this file, not to stdout; nobody else may read it
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Write it as base64
        #[arg(short, long)]
        base64: bool,
    },
    /// Make a token for a role
    Create {
        #[command(flatten)]
        key: KeyArgs,
        /// The private key, for tokens that a public key verifies
        #[arg(long = "private-key", visible_alias = "pk", value_name = "KEY")]
        private_key: Option<String>,
        /// The role
        #[arg(short, long)]
        subject: String,
        /// How long it is valid, such as 1h or 30d; for ever unless given
        #[arg(short, long = "expiry-time", value_name = "TIME")]
        expiry_time: Option<String>,
        /// HS256 or RS256 unless given
        #[arg(short = 'a', long = "signature-algorithm", value_name = "NAME")]
        algorithm: Option<String>,
    },
    /// Say whether a token is good, and for whom
    Validate {
        #[command(flatten)]
        key: KeyArgs,
        /// The public key
        #[arg(long = "public-key", visible_alias = "pk", value_name = "KEY")]
        public_key: Option<String>,
        /// The algorithm of the public key
        #[arg(
            short = 'a',
            long = "signature-algorithm",
            value_name = "NAME",
            default_value = "RS256"
        )]
        algorithm: String,
        /// The token, or `file:PATH` or `env:NAME`
        #[arg(value_name = "TOKEN")]
        given: String,
    },
}

#[derive(Debug, clap::Args)]
struct KeyArgs {
    /// The secret key: `file:PATH`, `env:NAME`, `data:;base64,..`, a path or base64
    #[arg(long = "secret-key", visible_alias = "sk", value_name = "KEY")]
    secret_key: Option<String>,
}

pub(crate) fn run(args: TokensArgs) -> Outcome {
    match args.command {
        Command::CreateSecretKey { file, base64 } => create_secret_key(file, base64),
        Command::Create {
            key,
            private_key,
            subject,
            expiry_time,
            algorithm,
        } => {
            let read = |given: &str| read_key(given).map_err(|reason| usage(&key_error(reason)));
            let expires = match expiry_time {
                Some(text) => {
                    let time = parse_duration(&text).map_err(|reason| usage(&reason))?;
                    Some(Clock::system().now_ms() / 1_000 + time.as_secs())
                }
                None => None,
            };
            let bytes;
            let signing = match (&key.secret_key, &private_key) {
                (Some(given), None) => {
                    bytes = read(given)?;
                    SigningKey::Secret(&bytes)
                }
                (None, Some(given)) => {
                    bytes = read(given)?;
                    SigningKey::Private(&bytes)
                }
                _ => return Err(usage("give --secret-key or --private-key")),
            };
            let token = make(&signing, algorithm.as_deref(), &subject, expires);
            output::line(&token.map_err(|error| refused(&error))?)?;
            Ok(())
        }
        Command::Validate {
            key,
            public_key,
            algorithm,
            given,
        } => {
            if key.secret_key.is_some() == public_key.is_some() {
                return Err(usage("give --secret-key or --public-key"));
            }
            let config = SecurityConfig {
                token_secret_key: key.secret_key,
                token_public_key: public_key,
                token_public_alg: algorithm,
                ..SecurityConfig::default()
            };
            let token = given_token(&given)?;
            let identity = validate(&config, &token, Clock::system().now_ms());
            let identity = identity.map_err(|error| refused(&error))?;
            let claims = serde_json::json!({
                "sub": identity.role,
                "exp": identity.expires_ms.map(|at| at / 1_000),
            });
            output::line(&claims.to_string())?;
            Ok(())
        }
    }
}

/// A token as it was given: itself, `file:PATH` or `env:NAME`.
pub(crate) fn given_token(given: &str) -> Outcome<String> {
    let read = if let Some(path) = given.strip_prefix("file:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        std::fs::read_to_string(path).map_err(|error| format!("can't read `{path}`: {error}"))
    } else if let Some(name) = given.strip_prefix("env:") {
        std::env::var(name).map_err(|_| format!("`{name}` is not set"))
    } else {
        Ok(given.to_owned())
    };
    let token = read.map_err(|reason| usage(&reason))?;
    Ok(token.trim().to_owned())
}

fn create_secret_key(file: Option<PathBuf>, base64: bool) -> Outcome {
    let key = new_secret_key().map_err(|error| refused(&error))?;
    let bytes = match base64 {
        true => encode_base64(&key).into_bytes(),
        false => key.to_vec(),
    };
    match file {
        Some(path) => {
            use std::os::unix::fs::OpenOptionsExt;
            let open = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path);
            open.and_then(|mut file| file.write_all(&bytes))
                .map_err(|error| {
                    let text = format!("can't write `{}`", path.display());
                    Diagnostic::error("G0110", text).cause(error.to_string())
                })?;
        }
        None if base64 => output::line(&String::from_utf8_lossy(&bytes))?,
        None => output::bytes(&bytes)?,
    }
    Ok(())
}

fn key_error(reason: &str) -> String {
    format!("the key {reason}")
}

fn usage(message: &str) -> Failure {
    Failure::new(Exit::Usage, Diagnostic::error("G0109", message))
}

fn refused(error: &MakeError) -> Failure {
    Failure::new(
        Exit::NotAuthorised,
        Diagnostic::error("G0110", error.to_string()),
    )
}
