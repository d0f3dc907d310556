//! The command line against a server that it reaches with TLS.

use std::path::{Path, PathBuf};
use std::process::Output;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::server::Server;
use crate::{geminga, text};

/// An authority, and what it has signed: `NAME.pem` and `NAME.key` in a directory.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

impl Authority {
    fn new(directory: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("signed");
        let path = directory.join(format!("{name}.pem"));
        std::fs::write(path, issuer.pem()).expect("writes");
        Self {
            issuer,
            directory: directory.to_owned(),
        }
    }

    fn sign(&self, name: &str) -> [String; 2] {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.issuer).expect("signed");
        let files = [("pem", signed.pem()), ("key", key.serialize_pem())];
        files.map(|(ending, content)| {
            let path = self.directory.join(format!("{name}.{ending}"));
            std::fs::write(&path, content).expect("writes");
            path.display().to_string()
        })
    }
}

/// A server with TLS, with these settings beside.
fn server(directory: &Path, authority: &Authority, settings: &str) -> Server {
    let [certificate, key] = authority.sign("localhost");
    let conf = directory.join("broker.conf");
    let text = format!(
        "brokerServicePortTls=0\nwebServicePortTls=0\ntlsCertificateFilePath={certificate}\n\
         tlsKeyFilePath={key}\n{settings}\n"
    );
    std::fs::write(&conf, text).expect("writes");
    Server::start(&["--ephemeral", "--config", &conf.display().to_string()])
}

/// Runs a command against what has TLS, with the host's name as it is given.
struct Asks<'a> {
    server: &'a Server,
    directory: &'a Path,
    host: &'a str,
}

impl Asks<'_> {
    fn ask(&self, words: &str) -> Output {
        let named = |url: &Option<String>| {
            let url = url.as_deref().expect("an address with TLS");
            url.replace("127.0.0.1", self.host)
        };
        geminga()
            .current_dir(self.directory)
            .env("GEMINGA_ADMIN_URL", named(&self.server.admin_url_tls))
            .env("GEMINGA_SERVICE_URL", named(&self.server.service_url_tls))
            // What this machine trusts is no matter of the test.
            .env("SSL_CERT_FILE", self.directory.join("other.pem"))
            .args(words.split(' '))
            .output()
            .expect("runs")
    }

    /// What it says on both sides.
    fn check(&self, words: &str, exit: i32) -> (String, String) {
        let output = self.ask(words);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(exit), "{words}\n{out}{err}");
        (out, err)
    }
}

#[test]
fn commands_reach_a_server_whose_certificate_they_trust() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let authority = Authority::new(directory, "ca");
    Authority::new(directory, "other");
    let server = server(directory, &authority, "");
    let asks = |host: &'static str| Asks {
        server: &server,
        directory,
        host,
    };
    let trust = "--tls-trust-certs-file-path ca.pem";
    let local = asks("localhost");
    local.check(&format!("topics create words {trust}"), 0);
    local.check(&format!("produce words -m hello {trust}"), 0);
    let consume = format!("consume words --from earliest -n 1 {trust}");
    assert_eq!(local.check(&consume, 0).0, "hello\n");
    std::fs::write(directory.join("loud.sh"), "tr a-z A-Z\n").expect("writes");
    let create = "functions create --sh loud.sh --inputs words --output shouts";
    local.check(&format!("{create} {trust}"), 0);
    let trigger = format!("functions trigger loud --trigger-value hi {trust}");
    assert_eq!(local.check(&trigger, 0).0, "HI\n");
    // By another name, or trusting nobody in particular, as far as one asks for it.
    let other = asks("127.0.0.1");
    for more in [
        "--tls-enable-hostname-verification=false --tls-trust-certs-file-path ca.pem",
        "--tls-allow-insecure-connection",
    ] {
        other.check(&format!("topics list {more}"), 0);
        other.check(&format!("produce words -m hello {more}"), 0);
    }
    let names_off = "--tls-enable-hostname-verification=false";
    for (asks, more, exit, want) in [
        (&local, "", 6, "--tls-trust-certs-file-path FILE"),
        (&other, names_off, 6, "--tls-trust-certs-file-path FILE"),
        (&other, trust, 6, "--tls-enable-hostname-verification=false"),
        (
            &local,
            "--tls-trust-certs-file-path none.pem",
            2,
            "error[G0213]: `none.pem` can not be read",
        ),
        (
            &local,
            "--tls-key-file-path ca.pem --tls-trust-certs-file-path ca.pem",
            2,
            "error[G0213]: a client's certificate and its key go together",
        ),
    ] {
        for words in ["topics list", "produce words -m hello"] {
            let started = std::time::Instant::now();
            let said = asks.check(format!("{words} {more}").trim(), exit).1;
            assert!(said.contains(want), "{words} {more}: {said}");
            // Nobody waits for what is not going to change.
            assert!(started.elapsed().as_secs() < 4, "{words} {more}");
        }
    }
    // The plain port.
    let plain = server
        .admin_url
        .replace("http://127.0.0.1", "https://localhost");
    let said = local
        .check(&format!("topics list {trust} --admin-url {plain}"), 6)
        .1;
    assert!(said.contains("that port is without TLS"), "{said}");
}

#[test]
fn a_certificate_says_who_one_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let authority = Authority::new(directory, "ca");
    Authority::new(directory, "other");
    let trusted = directory.join("ca.pem");
    let settings = format!(
        "tlsTrustCertsFilePath={}\ntlsRequireTrustedClientCertOnConnect=true\nauthenticationEnabled=true\n\
         authorizationEnabled=true\nsuperUserRoles=me\n\
         authenticationProviders=org.apache.pulsar.broker.authentication.AuthenticationProviderTls",
        trusted.display()
    );
    let server = server(directory, &authority, &settings);
    authority.sign("me");
    authority.sign("somebody");
    let asks = Asks {
        server: &server,
        directory,
        host: "localhost",
    };
    let trust = "--tls-trust-certs-file-path ca.pem";
    let shows = |name: &str| {
        format!("{trust} --tls-certificate-file-path {name}.pem --tls-key-file-path {name}.key")
    };
    asks.check(&format!("topics create words {}", shows("me")), 0);
    asks.check(&format!("produce words -m hello {}", shows("me")), 0);
    for words in ["topics list", "produce words -m hello"] {
        let said = asks.check(&format!("{words} {trust}"), 6).1;
        assert!(
            said.contains("--tls-certificate-file-path FILE"),
            "{words}: {said}"
        );
        asks.check(&format!("{words} {}", shows("somebody")), 5);
    }
}
