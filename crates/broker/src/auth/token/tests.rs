use proptest::prelude::*;
use rcgen::PublicKeyData;

use super::*;

const NOW_MS: u64 = 1_700_000_000_000;
const SECRET: [u8; 32] = [7; 32];

fn config(secret: &[u8]) -> SecurityConfig {
    let text = geminga_proto::key::encode_base64(secret);
    SecurityConfig {
        authentication_enabled: true,
        token_secret_key: Some(format!("data:;base64,{text}")),
        ..SecurityConfig::default()
    }
}

fn signed(secret: &[u8], claims: &Value) -> String {
    let key = EncodingKey::from_secret(secret);
    encode(&Header::new(Algorithm::HS256), claims, &key).unwrap()
}

/// Claims, the role or none.
#[test]
fn claims() {
    let now = NOW_MS / 1_000;
    let verifier = TokenVerifier::new(&config(&SECRET)).unwrap();
    for (claims, role) in [
        (json!({"sub": "a"}), Some("a")),
        (json!({"sub": "a", "exp": now + 1}), Some("a")),
        (json!({"sub": "a", "exp": now}), None),
        (json!({"sub": "a", "exp": "soon"}), None),
        (json!({"sub": "a", "exp": -1}), None),
        (json!({"sub": "a", "nbf": now}), Some("a")),
        (json!({"sub": "a", "nbf": now + 1}), None),
        (json!({"sub": ""}), None),
        (json!({"sub": 7}), None),
        (json!({}), None),
    ] {
        let verified = verifier.verify(&signed(&SECRET, &claims), NOW_MS);
        assert_eq!(verified.ok().map(|it| it.role).as_deref(), role, "{claims}");
    }
    let identity = verifier.verify(
        &signed(&SECRET, &json!({"sub": "a", "exp": now + 9})),
        NOW_MS,
    );
    assert_eq!(identity.unwrap().expires_ms, Some(NOW_MS + 9_000));
}

#[test]
fn forged_tokens_are_refused() {
    let verifier = TokenVerifier::new(&config(&SECRET)).unwrap();
    let good = signed(&SECRET, &json!({"sub": "a"}));
    assert!(verifier.verify(&good, NOW_MS).is_ok());
    let parts: Vec<&str> = good.split('.').collect();
    // {"alg":"none"}
    let none = "eyJhbGciOiJub25lIn0";
    for token in [
        signed(&[8; 32], &json!({"sub": "a"})),
        format!("{none}.{}.", parts[1]),
        format!("{none}.{}.{}", parts[1], parts[2]),
        format!("{}.{}", parts[0], parts[1]),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}x.{}", parts[0], parts[1], parts[2]),
        String::new(),
        "..".to_owned(),
        "x".repeat(TOKEN_BYTES_MAX + 1),
    ] {
        assert!(verifier.verify(&token, NOW_MS).is_err(), "{token}");
    }
}

#[test]
fn audiences_skew_and_other_claims() {
    let config = SecurityConfig {
        token_auth_claim: "role".to_owned(),
        token_audience_claim: Some("for".to_owned()),
        token_audience: Some("here".to_owned()),
        token_allowed_clock_skew_seconds: 10,
        ..config(&SECRET)
    };
    let verifier = TokenVerifier::new(&config).unwrap();
    let now = NOW_MS / 1_000;
    for (claims, good) in [
        (json!({"role": "a", "for": "here"}), true),
        (
            json!({"role": "a", "for": ["there", "here"], "exp": now - 9}),
            true,
        ),
        (json!({"role": "a", "for": "here", "exp": now - 10}), false),
        (json!({"role": ["a", "b"], "for": "here"}), true),
        (json!({"role": "a", "for": "there"}), false),
        (json!({"role": "a"}), false),
        (json!({"sub": "a", "for": "here"}), false),
    ] {
        let verified = verifier.verify(&signed(&SECRET, &claims), NOW_MS);
        assert_eq!(verified.is_ok(), good, "{claims}");
    }
}

#[test]
fn keys_of_elliptic_curves() {
    let pair = rcgen::KeyPair::generate().unwrap();
    let public = geminga_proto::key::encode_base64(&pair.subject_public_key_info());
    let config = SecurityConfig {
        token_public_key: Some(format!("data:;base64,{public}")),
        token_public_alg: "ES256".to_owned(),
        ..SecurityConfig::default()
    };
    let key = SigningKey::Private(pair.serialized_der());
    let token = make(&key, Some("ES256"), "a", None).unwrap();
    assert_eq!(validate(&config, &token, NOW_MS).unwrap().role, "a");
    // The public key is public: as a secret it must sign nothing.
    let forged = signed(&pair.subject_public_key_info(), &json!({"sub": "a"}));
    assert!(validate(&config, &forged, NOW_MS).is_err());
}

#[test]
fn settings_that_cannot_be_honoured_are_refused_without_the_key() {
    let weak = SecurityConfig {
        token_secret_key: Some("data:,hunter2".to_owned()),
        ..SecurityConfig::default()
    };
    let none = SecurityConfig::default();
    let missing = SecurityConfig {
        token_secret_key: Some("file:///none/hunter2".to_owned()),
        ..SecurityConfig::default()
    };
    for config in [weak, none, missing] {
        let error = TokenVerifier::new(&config).err().unwrap().to_string();
        assert!(error.contains("tokenSecretKey"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}

#[test]
fn made_tokens_are_taken() {
    let secret = new_secret_key().unwrap();
    assert_ne!(secret, new_secret_key().unwrap());
    let token = make(
        &SigningKey::Secret(&secret),
        None,
        "a",
        Some(NOW_MS / 1_000 + 5),
    )
    .unwrap();
    let identity = validate(&config(&secret), &token, NOW_MS).unwrap();
    assert_eq!(identity.role, "a");
    assert!(validate(&config(&secret), &token, NOW_MS + 5_000).is_err());
    assert!(make(&SigningKey::Secret(b"short"), None, "a", None).is_err());
    assert!(make(&SigningKey::Secret(&secret), Some("RS256"), "a", None).is_err());
}

proptest! {
    /// Tokens come from anybody: any text, and good ones with a character changed.
    #[test]
    fn any_text_is_no_token(text in ".{0,80}", dotted in "[A-Za-z0-9_=-]{0,30}\\.[A-Za-z0-9_=-]{0,30}\\.[A-Za-z0-9_=-]{0,30}") {
        let verifier = TokenVerifier::new(&config(&SECRET)).unwrap();
        prop_assert!(verifier.verify(&text, NOW_MS).is_err());
        prop_assert!(verifier.verify(&dotted, NOW_MS).is_err());
    }

    #[test]
    fn a_changed_token_names_nobody_else(at in 0usize..100, with in "[A-Za-z0-9_.-]") {
        let verifier = TokenVerifier::new(&config(&SECRET)).unwrap();
        let good = signed(&SECRET, &json!({"sub": "a"}));
        let at = at % good.len();
        let changed = format!("{}{with}{}", &good[..at], &good[at + 1..]);
        if let Ok(identity) = verifier.verify(&changed, NOW_MS) {
            // The last character of the signature has bits that mean nothing.
            prop_assert_eq!(identity.role, "a");
            prop_assert!(changed == good || at + 1 == good.len());
        }
    }

    /// Whatever time a signed token names.
    #[test]
    fn any_times_are_read(exp in any::<u64>(), nbf in any::<i64>(), part in any::<f64>()) {
        let verifier = TokenVerifier::new(&config(&SECRET)).unwrap();
        for claims in [
            json!({"sub": "a", "exp": exp, "nbf": nbf}),
            json!({"sub": "a", "exp": u64::MAX}),
            json!({"sub": "a", "exp": part}),
            json!({"sub": "a", "exp": nbf}),
        ] {
            if let Ok(identity) = verifier.verify(&signed(&SECRET, &claims), NOW_MS) {
                prop_assert!(identity.expires_ms.is_some_and(|at| at > NOW_MS), "{claims}");
            }
        }
    }
}
