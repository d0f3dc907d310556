//! Functions: code, schemas, secrets, limits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use geminga_model::secret::MASK;
use geminga_model::{
    ConsumerConfig, FunctionConfig, ProcessingGuarantees, Resources, Runtime, Secrets,
};

use super::compat;
use super::schemas::{Field, Typed, Who};
use super::topics::{position, producer, refuse_pools, refuse_set, sub_type, topics};
use super::window::window;
use super::{
    Input, Language, Output, Plan, Policy, Process, ProducerPlan, RETRY_FIRST, Refused,
    Subscription, full_name,
};
use crate::runtime::options::Way;
use crate::runtime::sandbox::{self, Abilities};
use crate::runtime::{Code, HostSpec, Options};
use crate::secret::{Declared, declared};

pub(super) fn function(
    config: &FunctionConfig,
    code: Option<&Path>,
    refused: &mut Refused,
) -> Option<Plan> {
    // In Python they are the records that its schemas are made of.
    let has_types = matches!(config.runtime(), Some(Runtime::Java | Runtime::Python));
    refuse_set(
        refused,
        &[
            (
                "functionType",
                config.function_type.is_some() && config.code().is_some(),
                "it names a function of the server's `functionsDirectory`, and other code is given as well: \
                 give one of the two",
            ),
            (
                "functionType",
                config.function_type.is_some() && config.code().is_none() && code.is_none(),
                "it names a function of a server's `functionsDirectory`, and here is none: create it on a \
                 server, or give the code, as `jar`, `py`, `go`, `sh`, `wasm` or `exec`",
            ),
            (
                "exposePulsarAdminClientEnabled",
                config.expose_pulsar_admin_client_enabled == Some(true),
                "functions get no client from the worker: remove it, and let the code call the admin API by \
                 itself, with an address from `userConfig` and a token from `secrets`",
            ),
            (
                "inputTypeClassName",
                !has_types && is_java_type(config.input_type_class_name.as_deref()),
                "types are classes of Java and Python, and this function is neither: remove it, and give the \
                 `schemaType` of the input, where it has one",
            ),
            (
                "outputTypeClassName",
                !has_types && is_java_type(config.output_type_class_name.as_deref()),
                "types are classes of Java and Python, and this function is neither: remove it, and give \
                 `outputSchemaType`, where the output has one",
            ),
        ],
    );
    if config.function_type.is_some() && (config.code().is_some() || code.is_none()) {
        return None;
    }
    let guarantee = config.guarantees();
    let (language, given) = match (config.runtime(), config.code()) {
        (Some(Runtime::Bash), code) => (Language::Bash, code),
        (Some(Runtime::Python), code) => (Language::Python, code),
        (Some(Runtime::Exec), code) => (Language::Exec, code),
        (Some(Runtime::Go), code) => (Language::Go, code),
        (Some(Runtime::Java), code) => (Language::Java, code),
        (Some(Runtime::Wasm), code) => (Language::Wasm, code),
        (None, _) => {
            refused.push("no code: give `sh`, `py`, `go`, `jar`, `wasm` or `exec`".to_owned());
            return None;
        }
    };
    let path = match (code, given) {
        (Some(path), _) => path.to_path_buf(),
        (None, Some((_, path))) => PathBuf::from(path.strip_prefix("file://").unwrap_or(path)),
        (None, None) => {
            refused.push("no code: give `sh`, `py`, `go`, `jar`, `wasm` or `exec`".to_owned());
            return None;
        }
    };
    let inputs = match config.all_inputs() {
        Ok(inputs) => inputs,
        Err(error) => {
            refused.push(error.to_string());
            return None;
        }
    };
    let mut options = match Options::parse(config.custom_runtime_options.as_deref().unwrap_or("")) {
        Ok(options) => options,
        Err(error) => {
            refused.push(format!("`customRuntimeOptions`: {error}"));
            return None;
        }
    };
    let given_options = options.clone();
    let compat = compat::wanted(language, &options, &path, refused);
    if let Some(ms) = config.timeout_ms.and_then(|ms| u64::try_from(ms).ok()) {
        options.timeout_ms = ms;
    }
    if let Err(error) = options.run_as() {
        refused.push(error);
    }
    if let Some(pending) = config
        .max_pending_async_requests
        .and_then(|n| usize::try_from(n).ok())
    {
        options.window = Some(
            options
                .window
                .map_or(pending, |window| window.min(pending))
                .max(1),
        );
    }
    if language.has_host() && compat.is_none() {
        for field in options.of_other_runtimes() {
            refused.push(format!(
                "`{field}` of `customRuntimeOptions` has no meaning for a function with a host of its own"
            ));
        }
    }
    if compat.is_none()
        && !options.args.is_empty()
        && matches!(language, Language::Python | Language::Java)
    {
        refused.push("`args` of `customRuntimeOptions`: use `runtimeFlags`".to_owned());
    }
    if let Language::Bash | Language::Exec = language
        && let Some(way) = Way::of(&options, language == Language::Bash, &path)
    {
        refused.extend(way.refuses(&options));
        if language == Language::Bash && way != Way::Shell && config.runtime_flags.is_some() {
            refused.push(format!(
                "`runtimeFlags` have no effect in {}: give them in the script's first line, or use `args` of \
                 `customRuntimeOptions`",
                way.text()
            ));
        }
        if guarantee == ProcessingGuarantees::Manual && !way.acknowledges() {
            refused.push(format!(
                "`processingGuarantees: MANUAL` (`autoAck: false`) is not possible in {}: its code can not say \
                 which message it acknowledges. Use `mode: spawn`, or `mode: stream` with `framing: host`",
                way.text()
            ));
        }
    }
    if language == Language::Exec && config.runtime_flags.is_some() {
        refused.push(
            "`runtimeFlags` are for interpreters: use `args` of `customRuntimeOptions`".to_owned(),
        );
    }
    if language == Language::Wasm {
        for field in options.of_processes() {
            refused.push(format!(
                "`{field}` of `customRuntimeOptions` has no meaning for a WASM function: it is no process"
            ));
        }
    }
    // A NAR may name its class itself.
    let is_nar = path.extension().is_some_and(|ending| ending == "nar");
    if language == Language::Java
        && !is_nar
        && config.class_name.as_deref().unwrap_or("").is_empty()
    {
        refused.push("`className` is missing: the class of the function in the jar".to_owned());
    }
    let schemas: BTreeMap<String, String> = inputs
        .iter()
        .filter_map(|(topic, spec)| Some((full_name(topic), spec.schema_type.clone()?)))
        .collect();
    let serdes: BTreeMap<String, String> = inputs
        .iter()
        .filter_map(|(topic, spec)| Some((full_name(topic), spec.serde_class_name.clone()?)))
        .collect();
    // Pulsar's own instance declares what it reads and writes by itself.
    let who = compat.is_none().then_some(Who::Code(language));
    let (output_typed, output_schema) = output_schema(config, who, refused);
    check_serdes(language, &serdes, config, refused);
    let subscribed = topics(
        &inputs,
        (who, has_class(config.input_type_class_name.as_deref())),
        refused,
    );
    if language == Language::Python {
        let uses = |typed: &Typed| *typed == Typed::Host;
        let of_inputs = subscribed.inputs.iter().any(|input| uses(&input.schema));
        refuse_set(
            refused,
            &[
                (
                    "inputTypeClassName",
                    !of_inputs && has_class(config.input_type_class_name.as_deref()),
                    "in Python it is the class of the records of an input with a `schemaType`, and none has one \
                     that needs it: remove it",
                ),
                (
                    "outputTypeClassName",
                    !uses(&output_typed) && has_class(config.output_type_class_name.as_deref()),
                    "in Python it is the class of the records of an `outputSchemaType`, and there is none that \
                     needs it: remove it",
                ),
            ],
        );
    }
    let mut spec = HostSpec {
        tenant: config.tenant().to_owned(),
        namespace: config.namespace().to_owned(),
        name: config.name().unwrap_or_default().to_owned(),
        instances: config.parallelism(),
        code: Code {
            path,
            class_name: config.class_name.clone(),
        },
        inputs: inputs.keys().map(|topic| full_name(topic)).collect(),
        output: config.output.as_deref().map(full_name),
        output_serde: config.output_serde_class_name.clone(),
        input_serdes: serdes,
        input_schemas: schemas,
        output_schema,
        user_config: config.user_config.clone().unwrap_or_default(),
        log_topic: config.log_topic.clone(),
        windows: config.window_config.is_some(),
        manual_ack: guarantee == ProcessingGuarantees::Manual,
        options,
        runtime_flags: split_flags(config.runtime_flags.as_deref().unwrap_or("")),
        idle: config
            .idle_timeout_ms
            .and_then(|ms| u64::try_from(ms).ok())
            .map(Duration::from_millis),
        input_type: config.input_type_class_name.clone().filter(|_| has_types),
        output_type: config.output_type_class_name.clone().filter(|_| has_types),
        ..HostSpec::default()
    };
    let ram = config.resources.as_ref().and_then(|r| r.ram);
    if let Some(ram) = ram.and_then(|ram| u64::try_from(ram).ok()) {
        language.limit_memory(ram, &mut spec);
    }
    let mut warnings = hold(language, config.resources.as_ref(), &mut spec);
    match compat {
        None => {
            refuse_class(language, config.class_name.as_deref(), refused);
            refuse_pools(&inputs, refused);
        }
        // pulsar-admin always sends it: to refuse it would refuse every program that it brings.
        Some((super::Kind::Go, _)) if config.forward_source_message_property == Some(true) => {
            warnings.push(
                "`forwardSourceMessageProperty` has no effect: Pulsar's Go instance, which is in this program, \
                 copies no properties"
                    .to_owned(),
            );
        }
        Some(_) => {}
    }
    // Effects happen once in the order of the messages: one consumer a partition.
    let ordered =
        config.retain_ordering == Some(true) || guarantee == ProcessingGuarantees::EffectivelyOnce;
    let key_ordered = config.retain_key_ordering == Some(true);
    let is_compat = compat.is_some();
    let process = match compat {
        Some(compat) => Process::Compat(Box::new(compat::compat(
            compat,
            config,
            &inputs,
            &given_options,
            spec,
            refused,
        ))),
        None => Process::Host(language, Box::new(spec)),
    };
    let own = [&config.output, &config.log_topic, &config.dead_letter_topic];
    let own = own.into_iter().flatten().map(|topic| full_name(topic));
    Some(Plan {
        input: Input::Topics(Subscription {
            own: own.collect(),
            name: config.subscription().unwrap_or_default(),
            sub_type: sub_type(ordered, key_ordered),
            position: position(config.subscription_position),
            skip_to_latest: config.skip_to_latest == Some(true),
            ..subscribed
        }),
        process,
        output: Output::Topics {
            default: config.output.as_deref().map(full_name),
            producer: ProducerPlan {
                schema: output_typed,
                ..producer(
                    config.producer_config.as_ref(),
                    config.batch_builder,
                    refused,
                )
            },
            forward_properties: config.forwards_properties(),
        },
        secrets: secrets(config.secrets.as_ref(), refused),
        window: window(config, language, &inputs, refused),
        policy: Policy {
            guarantee,
            retries: config.retries(),
            dead_letter_topic: config.dead_letter_topic.as_deref().map(full_name),
            retry_first: config
                .retry_backoff_ms
                .and_then(|ms| u64::try_from(ms).ok())
                .map_or(RETRY_FIRST, Duration::from_millis),
            ordered: ordered || key_ordered,
        },
        log_topic: config.log_topic.as_deref().map(full_name),
        cleanup_subscription: config.cleans_up_subscription(),
        warnings: match is_compat {
            // It has no state.
            true => warnings,
            false => [warnings, no_shared_state(config)].concat(),
        },
    })
}

/// Effects of one instance are in its own transactions: another's state is not.
fn no_shared_state(config: &FunctionConfig) -> Vec<String> {
    let instances = config.parallelism();
    let once = config.guarantees() == ProcessingGuarantees::EffectivelyOnce;
    let warning = || {
        format!(
            "`parallelism: {instances}` with `processingGuarantees: EFFECTIVELY_ONCE`: instances share no \
             state, and one that changes state stops with an error until `parallelism` is 1"
        )
    };
    (once && instances > 1).then(warning).into_iter().collect()
}

/// Gives the processes their share, and says what nothing holds them to here.
fn hold(language: Language, resources: Option<&Resources>, spec: &mut HostSpec) -> Vec<String> {
    spec.share.cpu = resources.and_then(|r| r.cpu).filter(|cpu| *cpu > 0.0);
    spec.share.disk_bytes = resources
        .and_then(|r| r.disk)
        .and_then(|disk| u64::try_from(disk).ok());
    if language == Language::Wasm {
        let cpu = spec.share.cpu.map(|cpu| {
            format!(
                "`resources.cpu: {cpu}` is not enforced: WASM functions share their threads evenly"
            )
        });
        let disk = spec.share.disk_bytes.map(|disk| {
            format!("`resources.disk: {disk}` has no effect: a WASM function has no files")
        });
        return cpu.into_iter().chain(disk).collect();
    }
    sandbox::not_enforced(
        &spec.share,
        spec.options.limits.processes,
        &spec.options.sandbox,
        Abilities::of_this_machine(),
    )
}

/// `className` where the code is a whole program, and nothing in it is looked up by a name.
fn refuse_class(language: Language, name: Option<&str>, refused: &mut Refused) {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return;
    };
    match language {
        Language::Python | Language::Java => {}
        Language::Bash | Language::Exec | Language::Go | Language::Wasm => refused.push(format!(
            "`className: {name}` is not supported: it names a class of Python or Java: remove it"
        )),
    }
}

/// What the output is declared to be, and the name that the host is told.
fn output_schema(
    config: &FunctionConfig,
    who: Option<Who>,
    refused: &mut Refused,
) -> (Typed, Option<String>) {
    let mut name = config.output_schema_type.clone().unwrap_or_default();
    let mut properties = BTreeMap::new();
    let mut called = format!("`outputSchemaType: {name}`");
    let custom = config.custom_schema_outputs.as_ref();
    let custom = config.output.as_ref().and_then(|output| {
        let text = custom?.get(output)?;
        Some((output, text))
    });
    if let Some((output, text)) = custom {
        match serde_json::from_str::<ConsumerConfig>(text) {
            Ok(spec) => {
                let rest = ConsumerConfig {
                    schema_type: None,
                    schema_properties: None,
                    ..spec.clone()
                };
                if rest != ConsumerConfig::default() {
                    refused.push(format!(
                        "`customSchemaOutputs` of `{output}`: only `schemaType` and `schemaProperties` are supported there"
                    ));
                }
                properties = spec.schema_properties.unwrap_or_default();
                if let Some(own) = spec.schema_type.filter(|_| name.is_empty()) {
                    called = format!("`customSchemaOutputs` of `{output}`: `schemaType: {own}`");
                    name = own;
                }
            }
            Err(error) => {
                refused.push(format!("`customSchemaOutputs` of `{output}`: {error}"));
            }
        }
    }
    if let (Some((output, _)), true, false) = (custom, name.is_empty(), properties.is_empty()) {
        refused.push(format!(
            "`customSchemaOutputs` of `{output}`: `schemaProperties` without a `schemaType`: give that, or `outputSchemaType`"
        ));
    }
    let Some(who) = who else {
        if let (Some((output, _)), false) = (custom, properties.is_empty()) {
            refused.push(format!(
                "`customSchemaOutputs` of `{output}`: `schemaProperties` is not supported in the runtime `compat`: remove it"
            ));
        }
        return (Typed::Bytes, Some(name).filter(|name| !name.is_empty()));
    };
    if name.is_empty() {
        let derives = who == Who::Code(Language::Java) && config.output_serde_class_name.is_none();
        return match derives {
            true => (Typed::Derived, None),
            false => (Typed::Bytes, None),
        };
    }
    let field = Field {
        who,
        is_output: true,
        called,
        name: &name,
        properties: &properties,
        has_class: has_class(config.output_type_class_name.as_deref()),
    };
    let typed = field.typed(refused);
    (typed, Some(name))
}

fn has_class(name: Option<&str>) -> bool {
    is_java_type(name)
}

/// SerDe classes where no host loads them.
fn check_serdes(
    language: Language,
    serdes: &BTreeMap<String, String>,
    config: &FunctionConfig,
    refused: &mut Refused,
) {
    if matches!(language, Language::Python | Language::Java) {
        return;
    }
    let output = config.output_serde_class_name.is_some();
    for (field, given) in [
        ("serdeClassName` and `customSerdeInputs", !serdes.is_empty()),
        ("outputSerdeClassName", output),
    ] {
        if given {
            refused.push(format!(
                "`{field}`: SerDe classes are for Python and Java functions; others get and give bytes"
            ));
        }
    }
}

fn is_java_type(name: Option<&str>) -> bool {
    // Function Mesh writes the Java name of bytes into every resource.
    !matches!(name, None | Some("" | "[B" | "java.lang.String"))
}

fn secrets(secrets: Option<&Secrets>, refused: &mut Refused) -> Declared {
    let each = secrets.into_iter().flat_map(|secrets| secrets.iter());
    for (name, _) in each.filter(|(_, value)| *value == MASK) {
        refused.push(format!(
            "`secrets.{name}`: `{MASK}` stands for a secret that is stored already, and none of this name is: give \
             the secret itself, or say where it is"
        ));
    }
    declared(secrets)
}

/// Splits at blanks outside quotes.
pub(super) fn split_flags(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quote, mut inside) = (None, false);
    for c in text.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                inside = true;
            }
            (None, c) if c.is_whitespace() => {
                if inside {
                    words.push(std::mem::take(&mut word));
                }
                inside = false;
            }
            (_, c) => {
                word.push(c);
                inside = true;
            }
        }
    }
    if inside {
        words.push(word);
    }
    words
}
